"""What a run of steps spends: events, epsilon, and the noise that fits a budget.

One private step is one Gaussian mechanism on a Poisson sample, under add-or-remove-one-record
neighbours, so T steps are `SelfComposedDpEvent(PoissonSampledDpEvent(q, GaussianDpEvent(sigma)),
T)` whatever the error feedback does with the releases. All numerics are dp_accounting's.
"""

from __future__ import annotations

import bisect
import dataclasses
import math

import dp_accounting
from dp_accounting import pld, rdp

# The sampler compares 32-bit integers with a threshold, so this is the grain of q.
SAMPLING_GRAIN = 2**32

# Between privacy losses; dp_accounting's own is 1e-4.
_COARSE_INTERVAL = 1e-3
# Share of the target that a calibrated run spends at the least.
_TIGHT = 0.998


@dataclasses.dataclass(frozen=True)
class Epsilon:
    """Two upper bounds on the same epsilon.

    Attributes:
      pld: by privacy loss distributions; may be infinite.
      rdp: by Renyi differential privacy.
    """

    pld: float
    rdp: float

    @property
    def headline(self) -> float:
        """The smaller of the two: both are upper bounds, so the smaller one holds."""
        return min(self.pld, self.rdp)

    @property
    def accountant(self) -> str:
        """The name of the accountant behind `headline`: 'PLD' or 'RDP'."""
        return 'PLD' if self.pld <= self.rdp else 'RDP'


def sampling_threshold(expected_batch_size: int, dataset_size: int) -> int:
    """The integer below which a uniform 32-bit draw samples a record.

    Args:
      expected_batch_size: mean number of records in a batch, B >= 1.
      dataset_size: the declared number of records, N >= B.

    Returns:
      ceil(2^32 B / N), in [1, 2^32]: q is rounded up to the grain of the draw, never down.

    Raises:
      ValueError: if not 1 <= B <= N.
    """
    if not 1 <= expected_batch_size <= dataset_size:
        raise ValueError(
            'expected_batch_size must be between 1 and the number of records. '
            f'Received: expected_batch_size={expected_batch_size}, records={dataset_size}.'
        )
    return -(-SAMPLING_GRAIN * expected_batch_size // dataset_size)


def sampling_probability(expected_batch_size: int, dataset_size: int) -> float:
    """The probability with which each record enters a step, exactly as it is sampled.

    Args:
      expected_batch_size: mean number of records in a batch, B >= 1.
      dataset_size: the declared number of records, N >= B.

    Returns:
      B / N rounded up to a multiple of 2^-32, in (0, 1].

    Raises:
      ValueError: if not 1 <= B <= N.
    """
    return sampling_threshold(expected_batch_size, dataset_size) / SAMPLING_GRAIN


def step_event(sampling_probability: float, noise_multiplier: float) -> dp_accounting.DpEvent:
    """The event of one private step.

    Args:
      sampling_probability: q in (0, 1].
      noise_multiplier: sigma > 0: noise over sensitivity of the stacked release.

    Returns:
      `PoissonSampledDpEvent(q, GaussianDpEvent(sigma))`.
    """
    return dp_accounting.PoissonSampledDpEvent(
        sampling_probability, dp_accounting.GaussianDpEvent(noise_multiplier)
    )


def compute_epsilon(event: dp_accounting.DpEvent, steps: int, delta: float) -> Epsilon:
    """Epsilon of `steps` repetitions of `event`, neighbours ADD_OR_REMOVE_ONE.

    Args:
      event: the event of one step.
      steps: number of repetitions, >= 0, fixed in advance.
      delta: in (0, 1).

    Returns:
      The PLD and the RDP bound; both 0 for 0 steps.
    """
    if steps == 0:
        return Epsilon(pld=0.0, rdp=0.0)
    composed = dp_accounting.SelfComposedDpEvent(event, steps)
    return Epsilon(
        pld=float(pld.PLDAccountant().compose(composed).get_epsilon(delta)),
        rdp=float(rdp.RdpAccountant().compose(composed).get_epsilon(delta)),
    )


def calibrate_noise_multiplier(
    target_epsilon: float, target_delta: float, sampling_probability: float, steps: int
) -> float:
    """The noise multiplier with which `steps` steps stay just within the target.

    Args:
      target_epsilon: > 0, finite.
      target_delta: in (0, 1).
      sampling_probability: q in (0, 1].
      steps: number of private steps, >= 1.

    Returns:
      sigma such that the PLD epsilon of `steps` steps is at most `target_epsilon`, and at least
      99.8% of it.

    Raises:
      ValueError: if dp_accounting finds none: the target is far from anything usual.
    """

    def event(noise_multiplier: float) -> dp_accounting.DpEvent:
        return dp_accounting.SelfComposedDpEvent(
            step_event(sampling_probability, noise_multiplier), steps
        )

    def calibrate(make_accountant, low, high, tolerance):
        def spends_less(noise_multiplier):
            accountant = make_accountant().compose(event(noise_multiplier))
            return accountant.get_epsilon(target_delta) < target_epsilon

        while spends_less(low):
            low, high = 0.9 * low, low
        bracket = dp_accounting.LowerEndpointAndGuess(low, high)
        return dp_accounting.calibrate_dp_mechanism(
            make_accountant, event, target_epsilon, target_delta, bracket, tol=tolerance
        )

    def coarse_pld():
        return pld.PLDAccountant(value_discretization_interval=_COARSE_INTERVAL)

    # Each accountant is slower than the one before and starts where that one ended: RDP, PLD on a
    # coarse grid, PLD. All are upper bounds. For few steps the coarse one is tight already, and
    # the fine one would take half a minute; for many steps it is the other way round.
    try:
        by_rdp = calibrate(rdp.RdpAccountant, 0.1, 1.0, 1e-3)
        sigma = calibrate(coarse_pld, 0.9 * by_rdp, 1.01 * by_rdp, 1e-4)
        spent = pld.PLDAccountant().compose(event(sigma)).get_epsilon(target_delta)
        if not _TIGHT * target_epsilon <= spent <= target_epsilon:
            sigma = calibrate(pld.PLDAccountant, 0.98 * sigma, sigma, 1e-4)
        return float(sigma)
    except (ValueError, ArithmeticError) as error:
        raise ValueError(
            f'No noise fits target_epsilon={target_epsilon:g}, target_delta={target_delta:g} and '
            f'{steps} steps: choose an epsilon between 0.01 and 100, or give noise_multiplier. '
            f'dp_accounting says: {error}'
        ) from error


class EpsilonMeter:
    """Epsilon so far, cheap enough for a progress bar, never below the truth.

    PLD takes about half a second. Between the points of a grid of step counts this reports the
    smaller of two upper bounds: RDP at the step itself and PLD at the next grid point.

    Args:
      event: the event of one step.
      steps: the planned number of steps, >= 1: the last grid point.
      delta: in (0, 1).
      grid_points: how many times PLD is computed over a whole run.
    """

    def __init__(
        self, event: dp_accounting.DpEvent, steps: int, delta: float, grid_points: int = 20
    ):
        self._event = event
        self._delta = delta
        self._grid = sorted({math.ceil(steps * (i + 1) / grid_points) for i in range(grid_points)})
        self._pld_at = {}

    def __call__(self, steps: int) -> float:
        """Returns an upper bound on the epsilon of `steps` steps (0 to the planned number)."""
        if steps == 0:
            return 0.0
        composed = dp_accounting.SelfComposedDpEvent(self._event, steps)
        by_rdp = rdp.RdpAccountant().compose(composed).get_epsilon(self._delta)
        position = bisect.bisect_left(self._grid, steps)
        if position == len(self._grid):
            return float(by_rdp)
        point = self._grid[position]
        if point not in self._pld_at:
            self._pld_at[point] = compute_epsilon(self._event, point, self._delta).pld
        return float(min(by_rdp, self._pld_at[point]))
