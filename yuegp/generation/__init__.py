"""From a request to a song: both stages, rendering, previews, edits."""
