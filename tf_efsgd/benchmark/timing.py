"""Times steps side by side.

In each round, each kind of step is run for at least 0.2 seconds, forwards in one round and
backwards in the next. A ratio is taken within a round, so that what slows the machine down for a
while slows both sides.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

# Does so many steps and waits until they are done.
Run = Callable[[int], None]

_LEAST_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, least and largest over the rounds."""

    median: float
    low: float
    high: float


def measure_times(
    runs: Mapping[str, Run], rounds: int, after_each: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Times steps side by side.

    Args:
      runs: by name.
      rounds: at least 1.
      after_each: called when one of len(runs) * (rounds + 1) parts is done.

    Returns:
      Seconds of one step by name, one for every round.
    """
    repeats = {}
    for name, run in runs.items():
        run(1)  # Traces.
        repeats[name] = max(1, math.ceil(_LEAST_SECONDS / seconds_of(run, 1)))
        after_each()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs) if number % 2 == 0 else reversed(list(runs)):
            seconds[name].append(seconds_of(runs[name], repeats[name]) / repeats[name])
            after_each()
    return seconds


def seconds_of(run: Run, steps: int) -> float:
    """Seconds that so many steps take together."""
    start = time.perf_counter()
    run(steps)
    return time.perf_counter() - start


def spread_of_ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """The spread of the ratios within each round."""
    ratios = [a / b for a, b in zip(above, below)]
    return Spread(statistics.median(ratios), min(ratios), max(ratios))
