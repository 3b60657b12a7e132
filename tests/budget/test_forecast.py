"""Forecasts: their numbers against formulas of their own, and their words."""

import dataclasses
import math

import numpy as np
import pytest
from helpers import account_by_hand, yardstick
from helpers.forecasts import DELTA, assert_said, bounds, effective
from scipy import stats

from tf_efsgd import config, rounding
from tf_efsgd.budget import forecast, text
from tf_efsgd.privacy import accounting

# No two alike, so that one in the place of another is noticed.
_SETTINGS = config.PrivacyConfig(
    noise_multiplier=1.1,
    l2_norm_clip=0.7,
    residual_l2_norm_clip=0.4,
    residual_share=0.3,
    feedback_decay=0.8,
    expected_batch_size=16,
    train_steps=60,
)


def _simulate(settings, coordinates=40_000):
    """Noise alone through release and feedback: the last update, and all of them plus the rest."""
    rng = np.random.default_rng(7)
    sigma, share, decay = 1.1, settings.residual_share, settings.feedback_decay
    buffer = total = np.zeros(coordinates)
    for _ in range(settings.train_steps):
        a = rng.normal(size=coordinates) * sigma / math.sqrt(1 - share) * settings.l2_norm_clip
        r = rng.normal(size=coordinates) * sigma / math.sqrt(share) * settings.residual_l2_norm_clip
        waiting = buffer + r / settings.expected_batch_size
        given_back = (1 - decay) * waiting
        buffer = waiting - given_back
        update = a / settings.expected_batch_size + given_back
        total = total + update
    return update.std(), (total + buffer).std()


def test_noise_of_error_feedback_is_that_of_its_recursion():
    settings = dataclasses.replace(_SETTINGS, residual_l2_norm_clip=1.3)
    noise = forecast.compute_noise(settings, 1.1)['update with error feedback, A/B + d']
    one_step, accumulated = _simulate(settings)
    # Four standard errors of a standard deviation of 40,000 draws.
    assert noise.one_step == pytest.approx(one_step, rel=0.015)
    assert noise.accumulated == pytest.approx(accumulated, rel=0.015)
    # A factor that is wrong would be seen: the whole of R, (1 - b)/(1 + b) of it without the root,
    # 1 - b, none.
    a, r = 1.1 * 0.7 / math.sqrt(0.7) / 16, 1.1 * 1.3 / math.sqrt(0.3) / 16
    for wrong in (r, r / 9, r * 0.2, 0.0):
        assert abs(math.hypot(a, wrong) / one_step - 1) > 0.03


def test_noise_of_plain_dp_sgd_and_of_the_averaged_gradient():
    noise = forecast.compute_noise(_SETTINGS, 1.1)
    assert noise['averaged gradient A/B'].one_step == pytest.approx(1.1 / math.sqrt(0.7) * 0.7 / 16)
    for clip in (0.7, 1.1):  # C1, and C1 + C2.
        plain = noise[f'plain DP-SGD, clipped at {clip:g}']
        assert plain.one_step == pytest.approx(1.1 * clip / 16)
        assert plain.accumulated == pytest.approx(1.1 * clip / 16 * math.sqrt(60))
    # Over many steps error feedback never beats plain DP-SGD clipped at C1 + C2.
    feedback = noise['update with error feedback, A/B + d']
    assert feedback.accumulated >= noise['plain DP-SGD, clipped at 1.1'].accumulated


def test_without_a_residual_error_feedback_is_dp_sgd():
    off = forecast.compute_noise(dataclasses.replace(_SETTINGS, residual_share=0.0), 1.1)
    none = forecast.compute_noise(dataclasses.replace(_SETTINGS, error_feedback='none'), 1.1)
    assert list(none) == ['plain DP-SGD, clipped at 0.7']
    assert off['update with error feedback, A/B + d'] == none['plain DP-SGD, clipped at 0.7']


def test_golden_values():
    # At the noise that is accounted as 1.
    sigma = account_by_hand.noise_for_step(1.0, 2 * 2**20)
    assert effective(sigma) == pytest.approx(1.0, rel=1e-12) and 1.009 < sigma < 1.012
    settings = config.PrivacyConfig(
        noise_multiplier=sigma, expected_batch_size=128, train_steps=450_000
    )
    result = forecast.forecast(settings, 60_000)
    assert result.epsilon.pld == pytest.approx(9.279, abs=0.002)
    assert result.epsilon.rdp == pytest.approx(9.970, abs=0.002)
    assert result.epsilon.headline == result.epsilon.pld
    assert result.epochs == 960
    printed = text.format_forecast(result)
    assert_said(
        printed,
        f'ε                     {rounding.up(result.epsilon.pld)} ',
        f'RDP {rounding.up(result.epsilon.rdp)}',
        '  1           is accounted: the grid of the releases, 1,048,576 parameters',
        'times 60,000 images is 0.6, which must be below 1',
    )


def test_calibration_keeps_to_the_target():
    settings = config.PrivacyConfig(target_epsilon=0.4, expected_batch_size=20, train_steps=300)
    result = forecast.forecast(settings, 2_000)
    assert 0.396 <= result.epsilon.headline <= 0.4
    event = accounting.step_event(0.01 + 2**-33, effective(result.noise_multiplier))
    assert bounds(event, 300).headline == pytest.approx(result.epsilon.headline, rel=1e-4)
    # What the grid costs is in it: without it the budget would not be used up.
    ideal = accounting.step_event(0.01 + 2**-33, result.noise_multiplier)
    assert bounds(ideal, 300).headline < 0.396


def test_fewer_parameters_cost_less():
    settings = config.PrivacyConfig(target_epsilon=0.4, expected_batch_size=20, train_steps=300)
    few, many = (forecast.forecast(settings, 2_000, n) for n in (1_000, 10**9))
    for result, parameters in ((few, 1_000), (many, 10**9)):
        assert result.event.event.noise_multiplier == pytest.approx(
            effective(result.noise_multiplier, parameters), rel=1e-9
        )
        assert 0.396 <= result.epsilon.headline <= 0.4
    assert 1.1 * few.noise_multiplier < many.noise_multiplier


def test_a_hidden_buffer_costs_what_the_closed_form_says():
    settings = dataclasses.replace(_SETTINGS, error_feedback='hidden', noise_multiplier=3.3)
    result = forecast.forecast(settings, 1_000)
    # Only one sum is released, and its noise is over what a record moves it by.
    mu = math.sqrt(60) / effective(3.3 * 0.7 / (0.7 + 2 * 0.4), sums=1)
    epsilon = result.epsilon.headline
    assert result.epsilon.accountant == 'closed form'
    delta = stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(
        epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu)
    )
    assert delta == pytest.approx(DELTA, rel=1e-4)
    # Beside it what plain DP-SGD accounting says, at the noise really added.
    plain = forecast.forecast(dataclasses.replace(settings, error_feedback='none'), 1_000)
    ideal = accounting.step_event(accounting.sampling_probability(16, 1_000), 3.3)
    assert result.unproven == bounds(ideal, 60, 1e-5).headline and plain.unproven is None
    assert result.unproven == pytest.approx(plain.epsilon.headline, rel=0.03)
    assert result.unproven < epsilon / 10
    printed = text.format_forecast(result)
    assert 'unproven' in printed and 'the buffer is not noised' in printed
    assert f'moves every update by at most {(0.7 + 2 * 0.4) / 16:.3g}' in printed
    assert f'moves it by at most {0.7 / 16:.3g}' in text.format_forecast(plain)


def test_the_table_is_an_upper_bound_around_what_was_asked_for():
    settings = config.PrivacyConfig(noise_multiplier=3.0, expected_batch_size=20, train_steps=400)
    table = forecast.forecast(settings, 2_000).table
    assert table.steps == [50, 100, 200, 400, 800, 1600]
    assert table.noise_multipliers == [1.5, 2.1, 3.0, 4.2, 6.0]
    exact = bounds(accounting.step_event(0.01, effective(3.0)), 400)
    assert table.epsilons[3][2] == pytest.approx(exact.rdp)
    assert table.epsilons[3][2] >= exact.headline
    epsilons = np.array(table.epsilons)
    assert (np.diff(epsilons, axis=0) > 0).all() and (np.diff(epsilons, axis=1) < 0).all()


def test_a_plan_for_persons_says_so_and_needs_more_noise():
    settings = config.PrivacyConfig(
        target_epsilon=0.4, target_delta=1e-4, expected_batch_size=20, train_steps=300
    )
    image = forecast.forecast(settings, 2_000)
    person = forecast.forecast(settings, 2_000, images_per_person=5, persons=700)
    assert person.noise_multiplier > 3 * image.noise_multiplier
    for result in (image, person):
        assert 0.396 <= result.epsilon.headline <= 0.4
    for result, unit, said in (
        (image, 'one image with its label', 'times 2,000 images is 0.2, which'),
        (person, 'one person, with up to 5 images and their labels', '700 persons is 0.07,'),
    ):
        printed = text.format_forecast(result)
        assert printed.splitlines()[0] == f'Unit of privacy: {unit}'
        assert_said(printed, said)
    assert_said(text.format_forecast(person), '1,048,576 parameters, 5 images of a person')
    # Delta counts persons.
    with pytest.raises(config.ConfigError, match='number of persons = 0.1: .* gives away one p'):
        forecast.forecast(
            dataclasses.replace(settings, target_delta=0.1), 2_000, images_per_person=5, persons=10
        )


@pytest.mark.acceptance
def test_calibration_of_the_longest_run_is_fast():
    settings = config.PrivacyConfig(
        target_epsilon=10.0, expected_batch_size=128, train_steps=450_000
    )
    accounting.calibrate_noise_multiplier.cache_clear()
    accounting.compute_epsilon.cache_clear()
    with yardstick.measured() as took:
        result = forecast.forecast(settings, 60_000)
    assert took.units < 400  # About 130, with the table.
    assert 9.98 <= result.epsilon.headline <= 10
