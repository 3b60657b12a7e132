"""The tables and pictures of the README: grids of runs, made one after the other.

  python -m tf_efsgd.results --grid=main

Every run is a process of its own, `python -m tf_efsgd.launch`. A run that was interrupted is
resumed, one that is finished is kept, and one that was made with other settings is refused.
"""
