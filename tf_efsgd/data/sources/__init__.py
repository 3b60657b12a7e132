"""Where records come from: one file for each kind of data set.

Each file has a function `read`, which takes a `parts.Wanted` and returns a `parts.Source`, and is
in one of the two tables of `data/load.py`; `tfds` reads every other name.
"""
