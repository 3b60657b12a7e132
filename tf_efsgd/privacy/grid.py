"""The grid of the releases: exact discrete Gaussian noise, and what the grid costs. No TensorFlow.

Floating-point noise reveals records: the values it can take have gaps, so a coordinate that no
noise explains refutes a guess of the records (Mironov 2012). Whatever is released is therefore an
integer, the number of public steps of size gamma = stddev / `STDDEV`, and so is its noise:

    n = x_1 + 64 x_2 + 4096 x_3,   x_i independent discrete Gaussians N_Z(0, 128^2)

Formal guarantees:
  - Every x_i is drawn by the alias method (Walker 1977, Vose 1991) from a table of integers that
    add up to exactly 2^128; no entry is off the law N_Z(0, 128^2), cut off at 13 standard
    deviations, by more than 2^-128. What is cut off has probability below 2^-120.
  - Within 13 standard deviations n has the law N_Z(0, s^2), s = `STDDEV`, to a relative 1e-33 at
    every point: completing the square leaves sum_j exp(-(j - c)^2 / 2 w^2) with w >= 1.99, which
    depends on c by 2 exp(-2 pi^2 w^2) (Micciancio and Walter 2017).
  - Adding n to an integer z is post-processing of the Gaussian mechanism: draw Y from
    N(z, s^2 - 16), then an integer k with weight exp(-(k - Y)^2 / 32); k has the law N_Z(z, s^2)
    to a relative 1e-136. So the accounts of the Gaussian mechanism hold with s^2 - 16 for s^2.
  - Altogether a draw is within 2^-108 of that mechanism in total variation; `is_negligible` says
    whether a number of draws leaves (epsilon, delta) unchanged.

One thing is tested, not proven: float32 arithmetic in clipping and summing a batch stays within
`SLACK` (see `effective_noise_multiplier`).
"""

from __future__ import annotations

import decimal
import functools
import math
from fractions import Fraction

import numpy as np

# n is the sum of SCALES[i] x_i; PART_STDDEV is the standard deviation of every x_i.
SCALES = (1, 64, 4096)
PART_STDDEV = 128
# s^2 and s.
VARIANCE = PART_STDDEV**2 * sum(scale**2 for scale in SCALES)
STDDEV = math.sqrt(VARIANCE)
# The variance of the kernel that carries the ideal mechanism's real number to an integer.
_KERNEL_VARIANCE = 16

# The largest x_i: 13 standard deviations.
LARGEST_PART = 13 * PART_STDDEV
# Bits of the table's integers, of the choice of a column, and of a threshold's two words.
TABLE_BITS = 128
COLUMN_BITS = 12
FIRST_BITS = 64 - COLUMN_BITS
_SECOND_BITS = 64
# Decimal digits of the exponentials that the table is made from: 2^-128 is 3e-39.
_DIGITS = 60

# How much float32 may add to the distance of two neighbouring sums of clipped gradients, relative
# to the clipping norm. Tests compare adversarial batches with half of it.
SLACK = 2.0**-7
# A draw's distance from the ideal mechanism in total variation, in bits.
_LOG2_ERROR = -108
# The share of delta that is reserved for that distance.
_RESERVE = 2.0**-10
# float64 rounds, so bounds are moved to the safe side by this, relatively.
_ROUNDING = 1e-12

# Without noise (in tests, or training without privacy) the grid has steps of its own. They are
# finer than float32 for numbers of the size of a clipping norm and of a class sum.
_NOISELESS_STEP = 2.0**-40
_NOISELESS_CLASS_SUM_STEP = 2.0**-26
# The most features that a release before the first step may have for each class.
LARGEST_FEATURES = 2**18
# float64 would round the steps themselves if they were smaller.
_SMALLEST_STEP = 1e-290


# Steps.


def step(stddev: float, l2_norm_clip: float) -> float:
    """The size of a step of the grid on which a sum over a batch is released.

    Args:
      stddev: of the noise, >= 0.
      l2_norm_clip: the norm to which each summand is clipped, > 0.

    Returns:
      gamma = stddev / s; without noise a step of its own, never 0.

    Raises:
      ValueError: if the noise is so small that float64 cannot hold the step.
    """
    if not stddev:
        return min(l2_norm_clip, 1.0) * _NOISELESS_STEP
    if stddev / STDDEV < _SMALLEST_STEP:
        raise ValueError(f'The noise is too small for a grid. Received: stddev={stddev!r}.')
    return stddev / STDDEV


def class_sum_step(noise_multiplier: float) -> float:
    """The size of a step of the grid of a sum over all records, where each adds at most 1.

    Args:
      noise_multiplier: sigma_w >= 0.

    Returns:
      gamma = sigma_w / s; without noise a step of its own, never 0.
    """
    return noise_multiplier / STDDEV if noise_multiplier else _NOISELESS_CLASS_SUM_STEP


def largest_squared_norm(noise_multiplier: float) -> int:
    """The largest squared norm, in steps, that a record may have in a sum over all records.

    Args:
      noise_multiplier: sigma_w >= 0.

    Returns:
      floor((1 / gamma)^2), exact.
    """
    if not noise_multiplier:
        return int(_NOISELESS_CLASS_SUM_STEP**-2)
    return int(VARIANCE / Fraction(noise_multiplier) ** 2)


# What the grid costs.


def effective_noise_multiplier(noise_multiplier: float, coordinates: int | None) -> float:
    """The noise multiplier to account a release on the grid by, below the one it was made with.

    A sum over all records is exact, because every record is rounded to integers before the sum. A
    sum over a batch is rounded afterwards, which moves neighbours up to sqrt(d) steps further
    apart; it is computed in floating point, for which `SLACK` is allowed.

    Args:
      noise_multiplier: sigma > 0, the noise divided by how far one unit of privacy moves the
        release.
      coordinates: d, the number of coordinates that a step releases from its batch; None for a sum
        over all records.

    Returns:
      sigma_eff, rounded down.
    """
    exact = noise_multiplier * math.sqrt(1.0 - _KERNEL_VARIANCE / VARIANCE)
    if coordinates is None:
        return exact * (1.0 - _ROUNDING)
    rounded = noise_multiplier * math.sqrt(coordinates) / STDDEV
    return exact / (1.0 + rounded + SLACK) * (1.0 - _ROUNDING)


def noise_multiplier_for(effective: float, coordinates: int | None) -> float:
    """The smallest noise multiplier with at least this effective one.

    Args:
      effective: sigma_eff > 0.
      coordinates: as in `effective_noise_multiplier`.

    Returns:
      sigma, rounded up; infinite where rounding alone moves neighbours too far apart.
    """
    share = math.sqrt(1.0 - _KERNEL_VARIANCE / VARIANCE)
    if coordinates is None:
        return effective / share * (1.0 + 3 * _ROUNDING)
    left = share - effective * math.sqrt(coordinates) / STDDEV
    return effective * (1.0 + SLACK) / left * (1.0 + 1e-9) if left > 0 else math.inf


def accounted_delta(delta: float) -> float:
    """The delta at which the ideal mechanism is accounted: the draws' errors get the rest.

    Args:
      delta: in (0, 1), the promised one.

    Returns:
      delta, less the share that `is_negligible` may use.
    """
    return delta * (1.0 - _RESERVE)


def log2_delta_of_draws(epsilon: float, draws: int) -> float:
    """What the draws' distance from the ideal mechanism adds to delta, in bits.

    Args:
      epsilon: >= 0, may be infinite.
      draws: how many numbers of noise were drawn, >= 0.

    Returns:
      log2 of (1 + e^epsilon) draws 2^-108; -inf without a draw.
    """
    if not draws:
        return -math.inf
    log2_factor = np.logaddexp(0.0, epsilon) / math.log(2.0)
    return float(log2_factor + math.log2(draws) + _LOG2_ERROR)


def is_negligible(epsilon: float, delta: float, draws: int) -> bool:
    """Whether what the draws add to delta fits into what `accounted_delta` reserves for it."""
    return log2_delta_of_draws(epsilon, draws) <= math.log2(delta * _RESERVE)


def largest_epsilon(delta: float, draws: int) -> float:
    """The largest epsilon that `is_negligible` allows; `draws` counts as at least 1."""
    log2_factor = math.log2(delta * _RESERVE) - math.log2(max(1, draws)) - _LOG2_ERROR
    return max(0.0, log2_factor * math.log(2.0))


# The table of one x_i.


@functools.lru_cache(maxsize=1)
def cumulative_table() -> tuple[int, ...]:
    """The cumulative law of one x_i, in units of 2^-128.

    Returns:
      round(2^128 P(x_i <= k)) for k = -1664, ..., 1664: 3,329 integers, the last one 2^128.
    """
    with decimal.localcontext() as context:
        context.prec = _DIGITS
        weights = [
            (decimal.Decimal(-k * k) / (2 * PART_STDDEV**2)).exp() for k in range(LARGEST_PART + 1)
        ]
        weights = weights[:0:-1] + weights
        unit = decimal.Decimal(2**TABLE_BITS) / sum(weights)
        total, table = decimal.Decimal(0), []
        for weight in weights:
            total += weight
            table.append(int((total * unit).to_integral_value()))
    table[-1] = 2**TABLE_BITS
    return tuple(table)


def probabilities() -> list[int]:
    """P(x_i = k) for k = -1664, ..., 1664, in units of 2^-128: they add up to 2^128."""
    table = cumulative_table()
    return [high - low for low, high in zip((0, *table), table)]


@functools.lru_cache(maxsize=1)
def alias_table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`probabilities`, spread over 4,096 columns of equal weight for the alias method.

    A uniform number of 128 bits chooses a column by its first 12 bits. If its other 116 bits are
    below the column's threshold, the result is the column's own value, else the other value.

    Returns:
      (the thresholds' first 52 bits, int64 [4096], 2^52 where the own value is always kept; their
      last 64 bits, uint64 [4096]; the other value, int32 [4096]). Column j's own value is
      j - 1664.
    """
    columns, capacity = 2**COLUMN_BITS, 2 ** (TABLE_BITS - COLUMN_BITS)
    weights = probabilities()
    weights += [0] * (columns - len(weights))
    others = list(range(columns))
    small = [j for j in range(columns) if weights[j] < capacity]
    large = [j for j in range(columns) if weights[j] > capacity]
    thresholds = [capacity] * columns
    while small:
        column, giver = small.pop(), large[-1]
        thresholds[column], others[column] = weights[column], giver
        weights[giver] -= capacity - weights[column]
        if weights[giver] <= capacity:
            large.pop()
            if weights[giver] < capacity:
                small.append(giver)
    return (
        np.array([t >> _SECOND_BITS for t in thresholds], np.int64),
        np.array([t & (2**_SECOND_BITS - 1) for t in thresholds], np.uint64),
        np.array(others, np.int32) - LARGEST_PART,
    )
