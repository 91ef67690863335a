"""What a song is, as pure data: request, sections, lyrics, tags."""
