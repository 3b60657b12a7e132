"""Measures the time and memory of all variants, and compares each with another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from tf_efsgd import progress
from tf_efsgd.benchmark import memory, steps, timing
from tf_efsgd.benchmark.variants import Networks, Variant


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured for one variant.

    Attributes:
      variant: the variant.
      seconds: the seconds of one step, one number for each round.
      ratio: the time for a record over that of `variant.against`.
      memory: the memory in bytes; None if it was not measured.
      memory_ratio: the memory over that of `variant.against`; None if either was not measured.
    """

    variant: Variant
    seconds: Sequence[float]
    ratio: timing.Spread
    memory: float | None = None
    memory_ratio: float | None = None


def measure(
    networks: Networks, variants: Sequence[Variant], rounds: int, with_memory: bool = True
) -> list[Result]:
    """Times all variants side by side, then measures the memory of each.

    Args:
      networks: the shapes of the networks.
      variants: the variants, including those that they are compared with.
      rounds: number of rounds, at least 1.
      with_memory: whether to measure memory too, each in a new process.

    Returns:
      One result for each variant.
    """
    total = len(variants) * (rounds + 2 + with_memory)
    with progress.Bar(total=total, desc='benchmark', disable=None, leave=False) as bar:
        runs = {}
        for variant in variants:
            runs[variant.name] = steps.build_run(networks, variant)
            bar.update()
        seconds = timing.measure_times(runs, rounds, bar.update)
        runs.clear()
        used = dict.fromkeys(seconds)
        for variant in variants if with_memory else ():
            used[variant.name] = memory.measure_memory(networks, variant)
            bar.update()
    return results_of(variants, seconds, used)


def results_of(
    variants: Sequence[Variant],
    seconds: Mapping[str, Sequence[float]],
    used: Mapping[str, float | None],
) -> list[Result]:
    """Computes the results from what was measured.

    Args:
      variants: the variants, including those that they are compared with.
      seconds: the seconds of one step in every round, by the name of the variant.
      used: bytes by the name of the variant; None where memory was not measured.

    Returns:
      One result for each variant.
    """
    per_record = {v.name: [s / v.records for s in seconds[v.name]] for v in variants}
    results = []
    for variant in variants:
        name, against = variant.name, variant.against
        ratio = timing.spread_of_ratios(per_record[name], per_record[against])
        known = used[name] and used[against]
        memory_ratio = used[name] / used[against] if known else None
        results.append(Result(variant, seconds[name], ratio, used[name], memory_ratio))
    return results
