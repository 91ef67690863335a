"""The tabs of the page, with the same three functions where they apply: `load` reads what is on disk, `render` gives
what the tab's script shows, and `handle_action` does what the user clicked."""
