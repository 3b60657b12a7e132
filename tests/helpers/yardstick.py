"""A measure of time that does not depend on how fast a machine is, or how busy.

A core that counts twice, or a neighbour's work on it, makes a test's calculation slower and a fixed
calculation, too. So limits are in units of that calculation.
"""

import contextlib
import dataclasses
import hashlib
import time

import numpy as np


def _unit():
    """Measures the processor seconds of a fixed calculation: about 0.1 on a core of 2020."""
    started = time.process_time()
    values = np.linspace(0.0, 1.0, 2**18)
    for _ in range(8):
        values = np.abs(np.fft.irfft(np.fft.rfft(values) ** 2))
        values /= values.max()
    content = values.tobytes()
    for _ in range(8):
        hashlib.sha256(content).digest()
    sum(i * i for i in range(400_000))
    return time.process_time() - started


@dataclasses.dataclass
class Measured:
    """What a block took.

    Attributes:
      units: its processor time, in units of the fixed calculation.
    """

    units: float = float('nan')


@contextlib.contextmanager
def measured():
    """Measures the processor time of a block, and the fixed calculation before and after it."""
    result = Measured()
    before = _unit()
    started = time.process_time()
    yield result
    used = time.process_time() - started
    result.units = used / max(before, _unit())
