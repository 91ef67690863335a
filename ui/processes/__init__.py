"""Processes beside the page: one generates songs, one downloads models."""
