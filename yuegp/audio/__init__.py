"""Sound files, the mix of a song, and metadata inside files."""
