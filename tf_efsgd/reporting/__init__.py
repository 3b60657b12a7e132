"""Writes the pages of a run: one that may be shared, and one that may not."""
