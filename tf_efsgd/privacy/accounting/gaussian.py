"""Gaussian mechanisms without sampling: their exact epsilon, and how one is split in two."""

from __future__ import annotations

import math

from scipy import optimize, special


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The exact epsilon of a Gaussian mechanism with sensitivity mu and unit noise.

    Solves delta = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu) (Balle and Wang 2018).

    Args:
      mu: > 0; sqrt(T) / sigma for T steps of sensitivity 1 with noise sigma.
      delta: in (0, 1).

    Returns:
      The smallest epsilon >= 0, rounded up by at most 1e-12 of itself.
    """
    if _gaussian_log_delta(mu, 0.0) <= math.log(delta):
        return 0.0
    # The privacy loss is N(mu^2/2, mu^2): the probability that it is above `high` is delta.
    high = mu * (mu / 2 - special.ndtri_exp(math.log(delta)))
    epsilon = optimize.brentq(
        lambda e: _gaussian_log_delta(mu, e) - math.log(delta), 0.0, high, xtol=1e-300, rtol=1e-14
    )
    return float(min(high, epsilon * (1 + 1e-12)))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The largest mu whose `gaussian_epsilon` is at most `epsilon`, from just below.

    Args:
      epsilon: > 0.
      delta: in (0, 1).

    Returns:
      mu > 0.
    """

    def excess(log_mu):
        return _gaussian_log_delta(math.exp(log_mu), epsilon) - math.log(delta)

    low = high = 0.0
    while excess(low) > 0:
        low -= 1.0
    while excess(high) < 0:
        high += 1.0
    return math.exp(optimize.brentq(excess, low, high, xtol=1e-13)) * (1 - 1e-9)


def _gaussian_log_delta(mu: float, epsilon: float) -> float:
    """The log of delta(epsilon) of a Gaussian mechanism, without overflow or cancellation."""
    near, far = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    if near < -1.0:
        # delta is not small: the difference of the two loses little.
        first, second = special.log_ndtr(-near), epsilon + special.log_ndtr(-far)
        return float(first + math.log1p(-math.exp(min(second - first, -1e-300))))
    # e^eps Phi(-far) = erfcx(far / sqrt 2) / 2 exp(-near^2 / 2), since far^2 - near^2 = 2 eps.
    difference = special.erfcx(near / math.sqrt(2)) - special.erfcx(far / math.sqrt(2))
    if difference <= 0:  # So little privacy is spent that the two are equal in floating point.
        return -math.inf
    return float(math.log(difference / 2) - near**2 / 2)


def split_release(noise_multiplier: float, share: float) -> tuple[float, float]:
    """The noise of two releases that together spend as much as one.

    Args:
      noise_multiplier: sigma > 0 of the one release.
      share: the share of its 1/sigma^2 that the second release gets, in (0, 1).

    Returns:
      sigma_1 and sigma_2 with 1/sigma_1^2 + 1/sigma_2^2 = 1/sigma^2: two Gaussian mechanisms, the
      second chosen after the first, are as private as the one (Dong, Roth and Su 2022, corollary
      3.3).
    """
    return noise_multiplier / math.sqrt(1.0 - share), noise_multiplier / math.sqrt(share)
