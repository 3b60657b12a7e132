"""The accountants of dp_accounting, with an allowance for what their floats round."""

from __future__ import annotations

import math
from collections.abc import Sequence

import dp_accounting
import numpy as np
from dp_accounting import pld, rdp

# Rounding takes less than this from the Renyi divergence of one event; 1e-13 was seen.
_DIVERGENCE_ROUNDING = 1e-12
# Rounding adds less than this to delta in a privacy loss distribution. Below the smallest delta,
# where that would matter, PLD gives no bound.
_PLD_ROUNDING, SMALLEST_PLD_DELTA = 1e-11, 0.99e-8


class PldAccountant(pld.PLDAccountant):
    """dp_accounting's, with room for its rounding.

    It composes by Fourier transforms, whose rounding adds to delta: up to 3e-12 was seen, of
    200,000 steps, so that at delta = 1e-12 the true one can be twice what was asked for.
    """

    def get_epsilon(self, target_delta: float) -> float:
        """As dp_accounting's; infinite where its rounding would count."""
        if target_delta < SMALLEST_PLD_DELTA:
            return math.inf
        return super().get_epsilon(target_delta - _PLD_ROUNDING)


class RdpAccountant(rdp.RdpAccountant):
    """dp_accounting's, with every divergence rounded up.

    Its own are logarithms of sums near 1. Where the sampling probability is tiny they are far below
    the rounding of those sums, and come out as 0 or negative: no bound, and an epsilon of 0.
    """

    _rdp: np.ndarray

    def compose(self, event: dp_accounting.DpEvent, count: int = 1) -> RdpAccountant:
        """As dp_accounting's."""
        super().compose(event, count)
        # tests/test_upstream_semantics.py holds `_rdp` to be the summed divergences.
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
    """The one event that these pairs (event, count), at least one, compose to."""
    events = [dp_accounting.SelfComposedDpEvent(one, count) for one, count in parts]
    return events[0] if len(events) == 1 else dp_accounting.ComposedDpEvent(events)


def is_unsampled(event: dp_accounting.DpEvent) -> bool:
    """Whether it is a Gaussian mechanism on all records."""
    return isinstance(event, dp_accounting.GaussianDpEvent)
