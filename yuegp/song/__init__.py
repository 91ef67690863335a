"""What a song is: pure data."""
