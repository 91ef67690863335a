"""Weights on disk: known checkpoints, finding, downloading and verifying them."""
