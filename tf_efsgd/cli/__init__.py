"""One file a command; no work of its own."""
