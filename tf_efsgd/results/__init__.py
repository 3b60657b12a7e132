"""The tables and pictures of the README: grids of runs, made one after the other.

  python -m tf_efsgd.results --grid=main

Every run is its own process, `python -m tf_efsgd.launch`. A run that was interrupted is resumed, a
finished run is kept, and a run with other settings is refused.
"""
