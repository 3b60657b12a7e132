"""One run, in order."""
