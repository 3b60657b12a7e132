"""Tests of the accounting: golden values, calibration, sampling probability, the meter."""

import fractions
import math

import dp_accounting
import pytest
from dp_accounting import pld, rdp

from tf_efsgd.privacy import accounting

_DELTA = 1e-5
_Q = accounting.sampling_probability(128, 60_000)


def _epsilon(q, sigma, steps):
    return accounting.compute_epsilon(accounting.step_event(q, sigma), steps, _DELTA)


@pytest.mark.parametrize(
    'sigma, steps, by_pld, by_rdp', [(1.0, 450_000, 9.279, 9.970), (0.5, 8_000, 8.582, 10.048)]
)
def test_golden_values(sigma, steps, by_pld, by_rdp):
    epsilon = _epsilon(_Q, sigma, steps)
    assert epsilon.pld == pytest.approx(by_pld, abs=6e-4)
    assert epsilon.rdp == pytest.approx(by_rdp, abs=6e-4)
    assert (epsilon.headline, epsilon.accountant) == (epsilon.pld, 'PLD')


def test_headline_is_the_smaller_bound():
    smaller_rdp = accounting.Epsilon(pld=math.inf, rdp=3.0)
    assert (smaller_rdp.headline, smaller_rdp.accountant) == (3.0, 'RDP')


def test_unsampled_gaussian_equals_its_closed_form():
    # Balle and Wang 2018: delta = Phi(1/2s - e s) - exp(e) Phi(-1/2s - e s), T steps: s/sqrt(T).
    def phi(x):
        return math.erfc(-x / math.sqrt(2)) / 2

    sigma, steps = 3.0, 7
    epsilon = _epsilon(1.0, sigma, steps).headline
    s = sigma / math.sqrt(steps)

    def delta(e):
        return phi(1 / (2 * s) - e * s) - math.exp(e) * phi(-1 / (2 * s) - e * s)

    assert delta(epsilon) <= _DELTA < delta(0.99 * epsilon)


def test_one_step_is_a_poisson_sampled_gaussian():
    event = accounting.step_event(0.03, 0.7)
    assert event == dp_accounting.PoissonSampledDpEvent(0.03, dp_accounting.GaussianDpEvent(0.7))


def test_no_steps_cost_nothing_and_no_noise_costs_everything():
    assert _epsilon(_Q, 0.7, 0) == accounting.Epsilon(pld=0.0, rdp=0.0)
    assert accounting.compute_epsilon(dp_accounting.NonPrivateDpEvent(), 1, _DELTA).headline == (
        math.inf
    )


@pytest.mark.parametrize('batch, size', [(1, 1), (1, 3), (128, 60_000), (7, 7), (999, 1_000_003)])
def test_sampling_probability_rounds_up_to_the_grain_of_the_draw(batch, size):
    threshold = accounting.sampling_threshold(batch, size)
    exact = fractions.Fraction(batch, size)
    assert 0 <= fractions.Fraction(threshold, 2**32) - exact < fractions.Fraction(1, 2**32)
    assert fractions.Fraction(accounting.sampling_probability(batch, size)) == (
        fractions.Fraction(threshold, 2**32)
    )


@pytest.mark.parametrize('batch, size', [(0, 10), (-1, 10), (11, 10), (1, 0)])
def test_impossible_batches_are_refused(batch, size):
    for function in (accounting.sampling_threshold, accounting.sampling_probability):
        with pytest.raises(ValueError, match=f'expected_batch_size={batch}, records={size}'):
            function(batch, size)


@pytest.mark.parametrize(
    'target, q, steps',
    [
        (0.1, _Q, 8_000),
        (2.0, 1.0, 300),
        (8.0, 1.0, 3),
        pytest.param(40.0, 1.0, 3, marks=pytest.mark.slow),
        pytest.param(7.0, 0.3, 40, marks=pytest.mark.slow),
        pytest.param(30.0, 0.3, 40, marks=pytest.mark.slow),
        pytest.param(1.0, _Q, 450_000, marks=pytest.mark.slow),
        pytest.param(9.0, _Q, 450_000, marks=pytest.mark.slow),
        pytest.param(50.0, _Q, 2_000, marks=pytest.mark.slow),
    ],
)
def test_calibration_meets_the_target_and_is_tight(target, q, steps):
    sigma = accounting.calibrate_noise_multiplier(target, _DELTA, q, steps)
    assert 0.998 * target <= _epsilon(q, sigma, steps).pld <= target


def test_meter_is_an_upper_bound_that_ends_at_the_headline():
    steps, event = 100, accounting.step_event(_Q, 2.0)
    meter = accounting.EpsilonMeter(event, steps, _DELTA, grid_points=4)
    assert meter(0) == 0.0
    shown = {t: meter(t) for t in (1, 25, 26, 99, 100)}
    for t, epsilon in shown.items():
        composed = dp_accounting.SelfComposedDpEvent(event, t)
        by_rdp = rdp.RdpAccountant().compose(composed).get_epsilon(_DELTA)
        assert min(by_rdp, _exact_pld(composed)) <= epsilon <= by_rdp
    assert list(shown.values()) == sorted(shown.values())
    assert shown[100] == accounting.compute_epsilon(event, steps, _DELTA).headline
    assert len(meter._pld_at) <= 4
    # Beyond the plan there is no grid point; RDP still holds.
    beyond = accounting.compute_epsilon(event, 130, _DELTA)
    assert meter(130) == beyond.rdp >= beyond.headline


def _exact_pld(event):
    return pld.PLDAccountant().compose(event).get_epsilon(_DELTA)
