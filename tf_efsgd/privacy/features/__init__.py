"""The features of records that a release sums."""
