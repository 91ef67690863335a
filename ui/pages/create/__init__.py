"""The tab Create: words, tags, reference, model, plan."""
