"""Makes a song from a request: plan, both stages, rendering, previews, edits."""
