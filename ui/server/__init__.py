"""The HTTP server: what it answers, and to whom."""
