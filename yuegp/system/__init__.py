"""This computer: its environment, its faults, and the models that suit it."""
