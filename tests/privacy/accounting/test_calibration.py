"""The noise that fits a budget."""

import math

import dp_accounting
import pytest
from helpers.events import DELTA, Q, epsilon_of, share_of_all

from tf_efsgd.privacy import accounting


@pytest.mark.parametrize(
    'target, q, steps',
    [
        (0.1, Q, 8_000),
        (2.0, 1.0, 300),
        (8.0, 1.0, 3),
        pytest.param(40.0, 1.0, 3, marks=pytest.mark.slow),
        pytest.param(7.0, 0.3, 40, marks=pytest.mark.slow),
        pytest.param(30.0, 0.3, 40, marks=pytest.mark.acceptance),
        pytest.param(1.0, Q, 450_000, marks=pytest.mark.acceptance),
        pytest.param(9.0, Q, 450_000, marks=pytest.mark.slow),
        pytest.param(50.0, Q, 2_000, marks=pytest.mark.acceptance),
    ],
)
def test_calibration_meets_the_target_and_is_tight(target, q, steps):
    sigma = accounting.calibrate_noise_multiplier(target, DELTA, q, steps)
    assert 0.998 * target <= epsilon_of(q, sigma, steps).pld <= target


@pytest.mark.parametrize('target', [0.3, 3.0, 30.0])
def test_noise_of_unsampled_steps_is_calibrated_to_the_honest_epsilon(target):
    sigma = accounting.calibrate_unsampled_noise_multiplier(target, DELTA, 70)
    event = dp_accounting.GaussianDpEvent(sigma)
    spent = accounting.compute_epsilon(event, 70, DELTA).headline
    assert 0.9999 * target <= spent <= target
    meter = accounting.EpsilonMeter(event, 70, DELTA)
    assert meter(0) == 0.0 < meter(30) < meter(70) == spent


def test_calibration_is_tight_at_a_very_small_delta():
    # By PLD alone it would take sigma = 438, 200 times what RDP needs.
    sigma = accounting.calibrate_noise_multiplier(1.0, 1e-15, 0.03, 10)
    spent = accounting.compute_epsilon(accounting.step_event(0.03, sigma), 10, 1e-15)
    assert 0.998 <= spent.headline <= 1.0 and spent.accountant == 'RDP'


def test_a_target_that_needs_no_noise_gets_the_least():
    # One step samples a record with probability delta / 2: (0, delta) holds without any noise.
    sigma = accounting.calibrate_noise_multiplier(0.05, 1e-5, 5e-6, 1)
    assert sigma >= accounting.SMALLEST_NOISE
    spent = accounting.compute_epsilon(accounting.step_event(5e-6, sigma), 1, 1e-5)
    assert spent.headline <= 0.05


def test_noise_for_a_small_delta_is_calibrated_without_pld():
    sigma = accounting.calibrate_noise_multiplier(1.0, 1e-10, 0.05, 50)
    epsilon = accounting.compute_epsilon(accounting.step_event(0.05, sigma), 50, 1e-10)
    assert epsilon.accountant == 'RDP' and math.isinf(epsilon.pld)
    assert 0.998 <= epsilon.headline <= 1.0


def test_a_warm_start_that_leaves_little_by_rdp_leaves_room_by_pld():
    warm_start = share_of_all(0.95)
    assert accounting.rdp_epsilon(warm_start, DELTA) > 1.0
    sigma = accounting.calibrate_noise_multiplier(1.0, DELTA, 0.1, 20, warm_start)
    spent = accounting.compute_epsilon(accounting.step_event(0.1, sigma), 20, DELTA, warm_start)
    assert 0.998 <= spent.headline <= 1.0


def test_calibration_leaves_room_for_the_warm_start():
    warm_start = share_of_all(0.5)
    sigma = accounting.calibrate_noise_multiplier(1.0, DELTA, 0.1, 20, warm_start)
    spent = accounting.compute_epsilon(accounting.step_event(0.1, sigma), 20, DELTA, warm_start)
    assert 0.998 <= spent.headline <= 1.0
    without = accounting.compute_epsilon(accounting.step_event(0.1, sigma), 20, DELTA)
    assert without.headline < 0.9

    sigma = accounting.calibrate_unsampled_noise_multiplier(1.0, DELTA, 20, warm_start)
    event = dp_accounting.GaussianDpEvent(sigma)
    spent = accounting.compute_epsilon(event, 20, DELTA, warm_start)
    assert spent.headline == pytest.approx(1.0, rel=1e-6)
    assert spent.headline <= 1.0
