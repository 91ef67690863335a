"""The computer: what it has, what is wrong with it, which models suit it."""
