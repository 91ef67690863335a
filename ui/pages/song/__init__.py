"""The tab Song: takes, timeline, actions, export."""
