"""Sampling probabilities, and events as a ledger has them."""

import fractions
import json
import math

import dp_accounting
import pytest

from tf_efsgd.privacy import accounting


def test_one_step_is_a_poisson_sampled_gaussian():
    event = accounting.step_event(0.03, 0.7)
    assert event == dp_accounting.PoissonSampledDpEvent(0.03, dp_accounting.GaussianDpEvent(0.7))


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


@pytest.mark.parametrize('q', [3e-7, 1 / 60_000, 0.03, 0.7, 1 - 2**-32, 1.0])
@pytest.mark.parametrize('images', [1, 2, 5, 10])
def test_a_person_is_sampled_when_any_of_the_images_is(q, images):
    exact = 1 - (1 - fractions.Fraction(q)) ** images
    found = fractions.Fraction(accounting.person_sampling_probability(q, images))
    # Never below, and at most a little above.
    assert exact <= found <= exact * (1 + fractions.Fraction(1, 10**11)) and found <= 1


def test_a_person_of_k_images_is_at_least_as_private_as_the_mixture_over_them():
    """K Gaussians that point the same way, each sampled by itself, lie below what is accounted."""
    q, sigma, images = 0.5, 3.0, 3
    sampled = accounting.person_sampling_probability(q, images)
    accounted = accounting.compute_epsilon(accounting.step_event(sampled, sigma / images), 1, 1e-5)
    # The mixture over Binomial(K, q) of what N(k, sigma^2) adds to N(0, sigma^2), by its integral.
    from scipy import integrate, stats

    weights = [math.comb(images, k) * q**k * (1 - q) ** (images - k) for k in range(images + 1)]

    def mixture(x):
        return sum(w * stats.norm.pdf(x, k, sigma) for k, w in enumerate(weights))

    def delta(epsilon):
        def excess(x):
            return max(0.0, mixture(x) - math.exp(epsilon) * stats.norm.pdf(x, 0, sigma))

        return integrate.quad(excess, -12 * sigma, 14 * sigma, limit=500, epsabs=1e-12)[0]

    assert delta(accounted.headline) <= 1e-5
    # One image, a person's sampling with one image's norm, and an image fewer do not cover it.
    for wrong in ((q, sigma), (sampled, sigma), (sampled, sigma / 2)):
        event = accounting.step_event(*wrong)
        assert delta(accounting.compute_epsilon(event, 1, 1e-5).headline) > 1e-5


@pytest.mark.parametrize(('images', 'moved'), [(1, 0.7 + 0.6), (2, 1.4 + 0.6), (5, 3.5 + 0.6)])
def test_what_moves_a_step_of_a_hidden_buffer(images, moved):
    # What comes out of the buffer is clipped, whoever's it is: only the first part grows.
    assert accounting.hidden_sensitivity(0.7, 0.3, images) == pytest.approx(moved, rel=1e-12)


@pytest.mark.parametrize(
    'event', [accounting.step_event(0.3, 0.7), dp_accounting.GaussianDpEvent(0.3)]
)
def test_events_come_back_from_json(event):
    text = json.dumps(accounting.event_to_dict(event))
    assert accounting.event_from_dict(json.loads(text)) == event


@pytest.mark.parametrize(
    'values',
    [
        {},
        {'class_name': 'NonPrivateDpEvent'},
        {'class_name': 'GaussianDpEvent'},
        {'class_name': 'GaussianDpEvent', 'noise_multiplier': 1.0, 'more': 2},
        {'class_name': 'PoissonSampledDpEvent', 'sampling_probability': 0.3, 'event': {}},
        {'class_name': 'os.system', 'command': 'true'},
    ],
)
def test_what_is_no_event_of_a_step_is_refused(values):
    with pytest.raises(ValueError, match='Not an event of a private step'):
        accounting.event_from_dict(values)
