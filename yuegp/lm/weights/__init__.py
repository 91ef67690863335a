"""Reading weights, and the formats they are stored in."""
