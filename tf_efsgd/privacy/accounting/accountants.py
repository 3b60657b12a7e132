"""The accountants of dp_accounting, with an allowance for their rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import dp_accounting
import numpy as np
from dp_accounting import pld, rdp

# Rounding makes the Renyi divergence of one event smaller by less than this; 1e-13 was seen.
_DIVERGENCE_ROUNDING = 1e-12
# Rounding adds less than this to delta in a privacy loss distribution. Below the smallest delta it
# would matter, and PLD gives no bound there.
_PLD_ROUNDING, SMALLEST_PLD_DELTA = 1e-11, 0.99e-8


class PldAccountant(pld.PLDAccountant):
    """dp_accounting's PLD accountant, with room for its rounding.

    It composes by Fourier transforms, whose rounding adds to delta: up to 3e-12 was seen for
    200,000 steps, so for delta = 1e-12 the true delta can be a multiple of what was asked for.
    """

    def get_epsilon(self, target_delta: float) -> float:
        """Epsilon as dp_accounting computes it; infinite where its rounding would matter."""
        if target_delta < SMALLEST_PLD_DELTA:
            return math.inf
        return super().get_epsilon(target_delta - _PLD_ROUNDING)


class RdpAccountant(rdp.RdpAccountant):
    """dp_accounting's RDP accountant, with every divergence rounded up.

    dp_accounting computes divergences as logarithms of sums near 1. Where the sampling probability
    is tiny they are far below the rounding of those sums, and come out as 0 or negative: then they
    are no bound, and epsilon would be 0.
    """

    _rdp: np.ndarray

    def compose(self, event: dp_accounting.DpEvent, count: int = 1) -> RdpAccountant:
        """Composes as dp_accounting does, and rounds up."""
        super().compose(event, count)
        # tests/test_upstream_semantics.py checks that `_rdp` holds the summed divergences.
        rounding = count * _number_of_events(event) * _DIVERGENCE_ROUNDING
        self._rdp = np.maximum(self._rdp, 0.0) + rounding
        return self


def _number_of_events(event: dp_accounting.DpEvent) -> int:
    if isinstance(event, dp_accounting.ComposedDpEvent):
        return sum(_number_of_events(one) for one in event.events)
    if isinstance(event, dp_accounting.SelfComposedDpEvent):
        return event.count * _number_of_events(event.event)
    return 1


def parts_of(
    event: dp_accounting.DpEvent, steps: int, warm_start: dp_accounting.DpEvent | None = None
) -> list[tuple[dp_accounting.DpEvent, int]]:
    """The pairs (event, count) that have an event and a count, in order."""
    return [(one, count) for one, count in ((warm_start, 1), (event, steps)) if one and count]


def compose(parts: Sequence[tuple[dp_accounting.DpEvent, int]]) -> dp_accounting.DpEvent:
    """Composes pairs (event, count), at least one, to one event."""
    events = [dp_accounting.SelfComposedDpEvent(one, count) for one, count in parts]
    return events[0] if len(events) == 1 else dp_accounting.ComposedDpEvent(events)


def is_unsampled(event: dp_accounting.DpEvent) -> bool:
    """Whether it is a Gaussian mechanism on all records."""
    return isinstance(event, dp_accounting.GaussianDpEvent)
