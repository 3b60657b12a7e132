"""Tests of the grid: its table against another library, its law, and what it costs."""

import math
from fractions import Fraction

import mpmath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_efsgd.privacy import grid

# s, from privacy by hand: 128 sqrt(1 + 64^2 + 4096^2).
_S = 524352.0117173195


def test_constants_are_those_of_the_proof():
    assert grid.STDDEV == pytest.approx(_S, rel=1e-15)
    assert grid.VARIANCE == 128**2 * (1 + 64**2 + 4096**2)
    assert grid.LARGEST_PART == 13 * 128 and grid.SLACK == 2**-7


# The table.


def test_table_entries_against_mpmath():
    table = grid.cumulative_table()
    assert len(table) == 3329 and table[-1] == 2**128
    with mpmath.workdps(70):
        weights = [mpmath.exp(mpmath.mpf(-k * k) / (2 * 128**2)) for k in range(-1664, 1665)]
        unit = mpmath.mpf(2) ** 128 / mpmath.fsum(weights)
        total, worst = mpmath.mpf(0), mpmath.mpf(0)
        for weight, entry in zip(weights, table):
            total += weight
            worst = max(worst, abs(total * unit - entry))
        assert worst <= 0.5 + 1e-20
        # Of what is cut off, two sided.
        beyond = mpmath.erfc(mpmath.mpf(1664.5) / (128 * mpmath.sqrt(2)))
        assert beyond < mpmath.mpf(2) ** -120


def test_probabilities_are_symmetric_and_add_up():
    found = grid.probabilities()
    assert sum(found) == 2**128 and min(found) >= 0
    assert all(abs(a - b) <= 2 for a, b in zip(found, reversed(found)))


def test_alias_table_is_the_law_exactly():
    first, second, others = grid.alias_table()
    mass, capacity = dict.fromkeys(range(-1664, 2432), 0), 2**116
    for column in range(4096):
        threshold = (int(first[column]) << 64) + int(second[column])
        assert 0 <= threshold <= capacity
        mass[column - 1664] += threshold
        mass[int(others[column])] += capacity - threshold
    assert [mass[k] for k in range(-1664, 1665)] == grid.probabilities()
    assert all(mass[k] == 0 for k in range(1665, 2432))


def test_three_parts_have_the_law_of_one_discrete_gaussian():
    """The convolution of the three tables against N_Z(0, s^2), at points all over."""
    with mpmath.workdps(60):

        def weight(x, stddev_squared):
            return mpmath.exp(-(mpmath.mpf(x) ** 2) / (2 * stddev_squared))

        def convolved(n):
            """sum over x_2, x_3 of w(n - 64 x_2 - 4096 x_3) w(x_2) w(x_3), the peak of each."""
            total = mpmath.mpf(0)
            middle = round(n * 4096 / grid.SCALES[2] ** 2 * 0.9999389)
            for x3 in range(middle - 25, middle + 26):
                rest = n - 4096 * x3
                centre = round(rest * 64 / (1 + 64**2))
                for x2 in range(centre - 25, centre + 26):
                    parts = rest - 64 * x2, x2, x3
                    total += mpmath.exp(-mpmath.mpf(sum(x * x for x in parts)) / (2 * 128**2))
            return total

        ratios = [
            convolved(n) / weight(n, grid.VARIANCE)
            for n in (0, 1, -37, 4097, 524_352, -1_048_704, 3_000_001)
        ]
        for ratio in ratios:
            assert abs(ratio / ratios[0] - 1) < mpmath.mpf(10) ** -33
        # The measure does see another scale: 4096 for 4095 leaves the law far behind.
        assert abs(convolved(524_352) / weight(524_352, grid.VARIANCE * 1.001) / ratios[0] - 1) > (
            1e-4
        )


# Steps.


@given(st.floats(0.25, 1e6), st.floats(1e-9, 1e9))
def test_a_step_is_the_noise_over_s(noise_multiplier, clip):
    assert grid.step(noise_multiplier * clip, clip) == noise_multiplier * clip / _S
    assert grid.class_sum_step(noise_multiplier) == noise_multiplier / _S


@given(st.floats(1e-9, 1e9))
def test_without_noise_a_step_is_not_zero(clip):
    assert 0 < grid.step(0.0, clip) <= clip * 2**-39
    assert grid.class_sum_step(0.0) > 0


@given(st.floats(0.25, 1e6))
def test_the_largest_squared_norm_is_exact(noise_multiplier):
    exact = Fraction(grid.VARIANCE) / Fraction(noise_multiplier) ** 2
    assert grid.largest_squared_norm(noise_multiplier) <= exact
    assert exact < grid.largest_squared_norm(noise_multiplier) + 1


# What the grid costs.


def _effective(sigma, coordinates):
    """privacy.md, section 5, by hand: (of a step's sums; of an exact sum)."""
    exact = sigma * math.sqrt(1 - 16 / _S**2)
    return exact / (1 + sigma * math.sqrt(coordinates) / _S + 2**-7), exact


@given(st.floats(0.25, 50), st.integers(1, 10**8))
def test_effective_noise_multipliers(sigma, coordinates):
    of_step, exact = _effective(sigma, coordinates)
    for found, wanted in (
        (grid.effective_noise_multiplier(sigma, coordinates), of_step),
        (grid.effective_noise_multiplier(sigma, None), exact),
    ):
        assert found <= wanted and found == pytest.approx(wanted, rel=1e-11)
    # For K images of a person the noise over what moves is 1/K, and no more is rounded.
    assert grid.effective_noise_multiplier(sigma / 3, coordinates) > of_step / 3


@given(st.floats(0.25, 50), st.integers(1, 10**8))
def test_noise_for_an_effective_one_is_enough_and_no_more(effective, coordinates):
    for d in (coordinates, None):
        sigma = grid.noise_multiplier_for(effective, d)
        assert grid.effective_noise_multiplier(sigma, d) >= effective
        assert grid.effective_noise_multiplier(0.999999 * sigma, d) < effective


def test_no_noise_is_enough_where_rounding_alone_moves_too_far():
    assert math.isinf(grid.noise_multiplier_for(600.0, 10**6))


def test_delta_of_the_draws_is_counted_in_logs():
    draws = 3 * 10**9
    exact = math.log2((1 + math.exp(10.0)) * draws) - 108
    assert grid.log2_delta_of_draws(10.0, draws) == pytest.approx(exact, abs=1e-9)
    assert grid.log2_delta_of_draws(4797.0, draws) > 6000  # Where e^epsilon has no float.
    assert grid.log2_delta_of_draws(math.inf, 1) == math.inf
    assert grid.log2_delta_of_draws(3.0, 0) == -math.inf


def test_a_noise_without_a_step_is_refused():
    with pytest.raises(ValueError, match='too small for a grid. Received: stddev=1e-300'):
        grid.step(1e-300, 1.0)


@pytest.mark.parametrize('draws', [2 * 10**5, 2**28, 10**10])
def test_an_epsilon_ends_where_the_draws_show_in_delta(draws):
    assert grid.is_negligible(30.0, 1e-5, draws)
    assert not grid.is_negligible(48.0, 1e-5, draws)
    assert not grid.is_negligible(math.inf, 1e-5, draws)
    # What is kept back is what may be used: both together are delta.
    kept = 1e-5 - grid.accounted_delta(1e-5)
    largest = grid.largest_epsilon(1e-5, draws)
    assert grid.is_negligible(largest - 1e-6, 1e-5, draws)
    assert not grid.is_negligible(largest + 1e-6, 1e-5, draws)
    edge = next(e / 100 for e in range(5000) if not grid.is_negligible(e / 100, 1e-5, draws))
    assert 2 ** grid.log2_delta_of_draws(edge - 0.01, draws) <= kept * (1 + 1e-9)
    assert 2 ** grid.log2_delta_of_draws(edge, draws) > kept


def test_moments_of_the_table_by_exact_arithmetic():
    found = [Fraction(p, 2**128) for p in grid.probabilities()]
    second = sum(p * k * k for p, k in zip(found, range(-1664, 1665)))
    assert float(second) == pytest.approx(128**2, rel=1e-12)
    assert float(second) * sum(scale**2 for scale in grid.SCALES) == pytest.approx(
        grid.VARIANCE, rel=1e-12
    )
