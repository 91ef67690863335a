"""Memory: what the machine has, what fits, and who is on the card now."""
