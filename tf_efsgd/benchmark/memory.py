"""Measures the memory that the batch of a step takes.

A separate process makes the step, and its growth is measured: its peak in RAM, less what it had
after TensorFlow was loaded and the data were made. The growth for a step on two images is
subtracted, so tracing, weights and optimizer are not included, nor is the memory of a GPU.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import multiprocessing
import pathlib
import signal
import sys

from tf_efsgd.benchmark import steps
from tf_efsgd.benchmark.variants import Networks, Variant

_STEPS_FOR_MEMORY = 3


def measure_memory(networks: Networks, variant: Variant) -> float | None:
    """Measures the memory that the batch of a step takes.

    Args:
      networks: the shapes of the networks.
      variant: which step to measure.

    Returns:
      Bytes; None if a process did not survive, or if the system does not say.
    """
    whole = _process_memory(networks, variant)
    fixed = _process_memory(networks, dataclasses.replace(variant, batch_size=2))
    return None if whole is None or fixed is None else max(0.0, whole - fixed)


def _process_memory(networks: Networks, variant: Variant) -> float | None:
    """Returns what a few steps add to the memory of a separate process, in bytes."""
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The process that waits ends this one.
    import tensorflow as tf

    tf.get_logger().setLevel('ERROR')
    data = steps.make_data(networks, variant.records)
    before = _memory('VmRSS')
    steps.build_run(networks, variant, data)(_STEPS_FOR_MEMORY)
    after = _memory('VmHWM')
    sender.send(None if before is None else float(after - before))


def _memory(field: str) -> int | None:
    """Returns the bytes in RAM: now for 'VmRSS', at the peak for 'VmHWM' or outside Linux.

    `ru_maxrss` is not used on Linux, because a process inherits it from the one that started it.
    """
    status = pathlib.Path('/proc/self/status')
    if status.exists():
        lines = dict(line.split(':', 1) for line in status.read_text(encoding='utf-8').splitlines())
        return 1024 * int(lines[field].split()[0])
    if importlib.util.find_spec('resource') is None:
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else 1024 * peak
