"""Sound as files, as a mix, and what is written inside."""
