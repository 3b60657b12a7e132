"""Settings of property tests: the same examples at every run, and no limit on their time."""

from hypothesis import Phase, settings

PROPERTIES = settings(deadline=None, derandomize=True, phases=[Phase.generate])
