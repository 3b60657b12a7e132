"""Times steps side by side, and measures their memory.

A step is one discriminator step as training runs it, without the input pipeline: forward, backward,
clipping, noise, error feedback and update, on records and as many generated images. The content of
the images has no influence; they are random.

How it measures:
  - Everything is built and traced first. Then, in each round, each kind of step is run for at least
    0.2 seconds, forwards in one round and backwards in the next.
  - A ratio is taken within a round, so that what slows the machine down for a while slows both
    sides; shown are the median over the rounds, the least and the largest.
  - Memory is what a step's batch takes: the most that a process of its own had in RAM at any time,
    without what it had after TensorFlow was loaded and the data made, less the same for a step on
    two images. So tracing, weights and optimizer are not in it; what a GPU holds is not either.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import multiprocessing
import pathlib
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from tf_efsgd import progress
from tf_efsgd.benchmark.steps import Networks, Run, Variant, build_run, make_data

_LEAST_SECONDS = 0.2
_STEPS_FOR_MEMORY = 3


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, least and largest over the rounds."""

    median: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured of one variant.

    Attributes:
      variant: which one.
      seconds: of one step, in every round.
      ratio: of the time of a record to that in `variant.against`.
      memory: bytes; None if it was not measured.
      memory_ratio: to that of `variant.against`.
    """

    variant: Variant
    seconds: Sequence[float]
    ratio: Spread
    memory: float | None = None
    memory_ratio: float | None = None


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
    seconds = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs) if number % 2 == 0 else reversed(runs):
            seconds[name].append(seconds_of(runs[name], repeats[name]) / repeats[name])
            after_each()
    return seconds


def seconds_of(run: Run, steps: int) -> float:
    """Runs so many steps; returns the seconds of all."""
    start = time.perf_counter()
    run(steps)
    return time.perf_counter() - start


def spread_of_ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of the ratios within each round."""
    ratios = [a / b for a, b in zip(above, below)]
    return Spread(statistics.median(ratios), min(ratios), max(ratios))


def measure_memory(networks: Networks, variant: Variant) -> float | None:
    """What the batch of a step takes, see the top of this file.

    Returns:
      Bytes; None if a process did not survive or the system does not tell.
    """
    whole = _process_memory(networks, variant)
    fixed = _process_memory(networks, dataclasses.replace(variant, batch_size=2))
    return None if whole is None or fixed is None else max(0.0, whole - fixed)


def _process_memory(networks: Networks, variant: Variant) -> float | None:
    """What a few steps add to the memory of a process of their own, in bytes."""
    context = multiprocessing.get_context('spawn')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_memory, args=(sender, networks, variant), daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.terminate()
        process.join()


def _send_memory(sender, networks, variant) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Whoever waits ends this process.
    import tensorflow as tf

    tf.get_logger().setLevel('ERROR')
    data = make_data(networks, variant.records)
    before = _memory('VmRSS')
    build_run(networks, variant, data)(_STEPS_FOR_MEMORY)
    after = _memory('VmHWM')
    sender.send(None if before is None else float(after - before))


def _memory(field: str) -> int | None:
    """Bytes in RAM, 'VmRSS' now or 'VmHWM' at the most; elsewhere than on Linux always the latter.

    `ru_maxrss` alone would not do on Linux: a process inherits it from the one that started it.
    """
    status = pathlib.Path('/proc/self/status')
    if status.exists():
        lines = dict(line.split(':', 1) for line in status.read_text().splitlines())
        return 1024 * int(lines[field].split()[0])
    if importlib.util.find_spec('resource') is None:
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else 1024 * peak


def measure(
    networks: Networks, variants: Sequence[Variant], rounds: int, memory: bool = True
) -> list[Result]:
    """Times all variants side by side, then measures the memory of each.

    Args:
      networks: their shapes.
      variants: with all that they are compared with.
      rounds: at least 1.
      memory: measure that too, in a new process for each.

    Returns:
      One result for each variant.
    """
    total = len(variants) * (rounds + 2 + memory)
    with progress.Bar(total=total, desc='benchmark', disable=None, leave=False) as bar:
        runs = {}
        for variant in variants:
            runs[variant.name] = build_run(networks, variant)
            bar.update()
        seconds = measure_times(runs, rounds, bar.update)
        runs.clear()
        used = dict.fromkeys(seconds)
        for variant in variants if memory else ():
            used[variant.name] = measure_memory(networks, variant)
            bar.update()
    return _results(variants, seconds, used)


def _results(variants, seconds, used) -> list[Result]:
    per_record = {v.name: [s / v.records for s in seconds[v.name]] for v in variants}
    results = []
    for variant in variants:
        name, against = variant.name, variant.against
        ratio = spread_of_ratios(per_record[name], per_record[against])
        known = used[name] and used[against]
        memory_ratio = used[name] / used[against] if known else None
        results.append(Result(variant, seconds[name], ratio, used[name], memory_ratio))
    return results
