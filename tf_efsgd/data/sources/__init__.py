"""Where records come from: one file for each kind of data set.

Each file has a `read` that takes a `parts.Wanted` and returns a `parts.Source`, and stands in one
of the two tables of `data/load.py`; `tfds` reads every other name.
"""
