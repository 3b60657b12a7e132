"""Times steps side by side.

In each round, each kind of step is run for at least 0.2 seconds, in one order in odd rounds and in
the reverse order in even rounds. Ratios are taken within a round, so whatever slows the machine
down for a while slows both sides.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

# Makes so many steps and waits until they are done.
Run = Callable[[int], None]

_LEAST_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, least and largest value over the rounds."""

    median: float
    low: float
    high: float


def measure_times(
    runs: Mapping[str, Run], rounds: int, after_each: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Times steps side by side.

    Args:
      runs: the steps to time, by name.
      rounds: number of rounds, at least 1.
      after_each: called after each of len(runs) * (rounds + 1) parts.

    Returns:
      The seconds of one step by name, one number for each round.
    """
    repeats = {}
    for name, run in runs.items():
        run(1)  # The first call traces.
        repeats[name] = max(1, math.ceil(_LEAST_SECONDS / seconds_of(run, 1)))
        after_each()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs) if number % 2 == 0 else reversed(list(runs)):
            seconds[name].append(seconds_of(runs[name], repeats[name]) / repeats[name])
            after_each()
    return seconds


def seconds_of(run: Run, steps: int) -> float:
    """Measures the seconds that so many steps take together."""
    start = time.perf_counter()
    run(steps)
    return time.perf_counter() - start


def spread_of_ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Returns the spread of the ratios, each taken within a round."""
    ratios = [a / b for a, b in zip(above, below)]
    return Spread(statistics.median(ratios), min(ratios), max(ratios))
