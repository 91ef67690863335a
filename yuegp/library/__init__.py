"""Songs on disk."""
