"""What a release sums over the records."""
