"""The noise with which a number of steps stays just within a budget."""

from __future__ import annotations

import functools
import math

import dp_accounting
from dp_accounting import mechanism_calibration

from tf_efsgd.privacy.accounting.accountants import (
    SMALLEST_PLD_DELTA,
    PldAccountant,
    RdpAccountant,
    compose,
    parts_of,
)
from tf_efsgd.privacy.accounting.epsilon import NO_PRIVACY, rdp_epsilon
from tf_efsgd.privacy.accounting.events import step_event
from tf_efsgd.privacy.accounting.gaussian import gaussian_mu

# The smallest noise, divided by how far one unit of privacy moves a release. Less noise protects
# nothing.
SMALLEST_NOISE = 0.25
# The distance of discretized privacy losses; dp_accounting's default is 1e-4.
_COARSE_INTERVAL = 1e-3
# A calibrated run spends at least this share of its target.
_TIGHT = 0.998
# What calibrate_dp_mechanism raises when it gives up; none of them is a ValueError.
_NOT_CALIBRATED = (
    mechanism_calibration.NoBracketIntervalFoundError,
    mechanism_calibration.NoOptimumFoundError,
)


def calibrate_unsampled_noise_multiplier(
    target_epsilon: float,
    target_delta: float,
    steps: int,
    warm_start: dp_accounting.DpEvent | None = None,
) -> float:
    """The noise multiplier with which `steps` unsampled Gaussians stay just within the target.

    Args:
      target_epsilon: > 0, finite.
      target_delta: in (0, 1).
      steps: number of steps, >= 1.
      warm_start: the event of a release before the first step; spends less than the target.

    Returns:
      sigma of a step's `GaussianDpEvent`.
    """
    mu = gaussian_mu(target_epsilon, target_delta)
    if warm_start is not None:
        mu = math.sqrt(mu**2 - 1.0 / warm_start.noise_multiplier**2)
    return math.sqrt(steps) / mu


# A planner and a table of runs ask for the same noise again.
@functools.lru_cache(maxsize=256)
def calibrate_noise_multiplier(
    target_epsilon: float,
    target_delta: float,
    sampling_probability: float,
    steps: int,
    warm_start: dp_accounting.DpEvent | None = None,
) -> float:
    """The noise multiplier with which `steps` private steps stay just within the target.

    Args:
      target_epsilon: > 0, finite.
      target_delta: in (0, 1).
      sampling_probability: q in (0, 1].
      steps: number of private steps, >= 1.
      warm_start: the event of a release before the first step; spends less than the target.

    Returns:
      sigma such that epsilon, the smaller of the PLD and the RDP bound, is at most
      `target_epsilon` and at least 99.8% of it; or `SMALLEST_NOISE`, if even that noise spends
      less.

    Raises:
      ValueError: if dp_accounting finds no such noise, because the target is far from usual ones.
    """

    def event(noise_multiplier: float) -> dp_accounting.DpEvent:
        return compose(
            parts_of(step_event(sampling_probability, noise_multiplier), steps, warm_start)
        )

    def calibrate(make_accountant, low, high, tolerance):
        def spends_less(noise_multiplier):
            accountant = make_accountant().compose(event(noise_multiplier))
            return accountant.get_epsilon(target_delta) < target_epsilon

        low = max(low, SMALLEST_NOISE)
        while spends_less(low):
            if low == SMALLEST_NOISE:
                return SMALLEST_NOISE
            low, high = max(0.9 * low, SMALLEST_NOISE), low
        bracket = dp_accounting.LowerEndpointAndGuess(low, high)
        return dp_accounting.calibrate_dp_mechanism(
            make_accountant, event, target_epsilon, target_delta, bracket, tol=tolerance
        )

    def coarse_pld():
        return PldAccountant(value_discretization_interval=_COARSE_INTERVAL)

    # Each accountant is slower than the one before and starts where that one ended: RDP, PLD on a
    # coarse grid, PLD. All are upper bounds. For few steps the coarse one is tight already, and
    # the fine one would take half a minute; for many steps it is the other way round.
    try:
        if warm_start is not None and rdp_epsilon(warm_start, target_delta) > 0.98 * target_epsilon:
            # By RDP the warm start leaves nothing, or next to nothing, for the steps.
            sigma = calibrate(coarse_pld, 1.0, 4.0, 1e-4)
            return float(calibrate(PldAccountant, 0.98 * sigma, sigma, 1e-4))
        by_rdp = calibrate(RdpAccountant, SMALLEST_NOISE, 1.0, 1e-3)
        if target_epsilon > NO_PRIVACY / 5 or by_rdp <= SMALLEST_NOISE:
            return float(by_rdp)  # PLD takes minutes there.
        if target_delta < SMALLEST_PLD_DELTA:
            return float(calibrate(RdpAccountant, 0.99 * by_rdp, by_rdp, 1e-5))
        sigma = calibrate(coarse_pld, 0.9 * by_rdp, 1.01 * by_rdp, 1e-4)
        epsilon = PldAccountant().compose(event(sigma)).get_epsilon(target_delta)
        if not _TIGHT * target_epsilon <= epsilon <= target_epsilon:
            sigma = calibrate(PldAccountant, 0.98 * sigma, sigma, 1e-4)
        if sigma > by_rdp:  # At an extreme delta PLD can be the looser bound, or have none.
            sigma = calibrate(RdpAccountant, 0.99 * by_rdp, by_rdp, 1e-5)
        return float(sigma)
    except (ValueError, ArithmeticError, *_NOT_CALIBRATED) as error:
        raise ValueError(
            f'No noise fits target_epsilon={target_epsilon:g}, target_delta={target_delta:g} and '
            f'{steps} steps: choose an epsilon between 0.01 and 100, or give noise_multiplier. '
            f'dp_accounting says: {error}'
        ) from error
