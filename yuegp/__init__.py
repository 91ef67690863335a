"""yuegp: whole songs from lyrics and tags, with the open model YuE v1, on one consumer graphics card."""

__version__ = "0.1.0"
