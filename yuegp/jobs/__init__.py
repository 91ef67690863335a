"""The queue of songs to make, the worker that makes them, and the remaining time."""
