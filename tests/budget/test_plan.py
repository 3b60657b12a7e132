"""Plans: what is refused, and that a plan keeps to its target and is tight."""

import dataclasses
import math

import dp_accounting
import hypothesis
import pytest
from helpers import account_by_hand as by_hand
from helpers import plans
from hypothesis import strategies as st
from scipy import optimize

from tf_efsgd import budget, config
from tf_efsgd.privacy import accounting

_DELTA = by_hand.accounted_delta(1e-5)


# What is refused, and when.


def test_a_hidden_buffer_with_a_large_clip_gets_the_noise_that_it_needs():
    plan = plans.plan(plans.HIDDEN, '--target_epsilon=10')
    # mu = sqrt(T) (C1 + 2 C2) / (sigma C1), which is 1.9 at epsilon 10 and delta 1e-5.
    assert plan.event.noise_multiplier == pytest.approx(100**0.5 / 1.9, rel=0.1)
    assert plan.mechanism['noise_multiplier'] == pytest.approx(5 * 100**0.5 / 1.9, rel=0.1)
    assert budget.planned_epsilon(plan).headline <= 10


def test_without_steps_no_noise_of_theirs_is_too_small():
    plan = plans.plan(plans.HIDDEN, '--target_epsilon=10\n--warm_start_share=1')
    assert plan.train_steps == 0


@pytest.mark.parametrize(
    ('flags', 'facts', 'said'),
    [
        (plans.HIDDEN + '--noise_multiplier=1.2', {}, 'in a step, since less .* Received: 0.2'),
        ('--noise_multiplier=0.24', {}, 'in a step, since less .* Received: 0.24 times.'),
        ('--noise_multiplier=1.2', plans.PERSONS, 'in a step, since less .* Received: 0.24 times.'),
        (
            '--noise_multiplier=1\n--warm_start_noise_multiplier=0.24',
            {},
            'The noise of the warm start must be at least 0.25 times .*Received: 0.24 times.',
        ),
        (
            '--noise_multiplier=2\n--warm_start_noise_multiplier=1.2',
            plans.PERSONS,
            'The noise of the warm start must be at least 0.25 times .*Received: 0.24 times.',
        ),
        ('--target_epsilon=90\n--warm_start_share=0.5', {}, 'warm start must be at least 0.25'),
    ],
)
def test_too_little_noise_is_refused(flags, facts, said):
    with pytest.raises(config.ConfigError, match=said):
        plans.plan(flags, **facts)


@pytest.mark.parametrize('facts', [{}, plans.PERSONS], ids=['images', 'persons'])
def test_a_quarter_of_what_one_unit_moves_is_enough(facts):
    sigma = 0.25 * (5 if facts else 1)
    plan = plans.plan(
        f'--noise_multiplier={sigma}\n--warm_start_noise_multiplier={sigma}\n--train_steps=1',
        **facts,
    )
    assert plan.mechanism['noise_multiplier'] == sigma == plan.warm_start_noise_multiplier


@pytest.mark.parametrize(
    ('facts', 'units', 'largest', 'said'),
    [
        (
            {},
            'images',
            1 / 1602,
            'must be below 1 / number of images = 0.00062: a mechanism that gives away one image '
            'whole would satisfy a larger one. Lower it, or accept it with --allow_large_delta.',
        ),
        (
            plans.PERSONS,
            'persons',
            1 / 700,
            'must be below 1 / number of persons = 0.0014: a mechanism that gives away one person '
            'whole would satisfy a larger one. Lower it, or accept it with --allow_large_delta.',
        ),
    ],
    ids=['images', 'persons'],
)
@pytest.mark.parametrize('noise', ['--noise_multiplier=6', plans.HIDDEN + '--target_epsilon=3'])
def test_a_delta_that_gives_one_away_is_refused_unless_it_is_allowed(
    facts, units, largest, said, noise
):
    flags = noise, f'--target_delta={largest!r}'
    with pytest.raises(config.ConfigError) as caught:
        plans.plan(*flags, **facts)
    assert str(caught.value) == f'--target_delta {said} Received: {largest:g}.'
    plan = plans.plan(*flags, '--allow_large_delta', **facts)
    assert plan.target_delta == largest and plan.name_of_units == units
    below = plans.plan(noise, f'--target_delta={0.999 * largest!r}', **facts)
    assert below.target_delta == 0.999 * largest
    # Without privacy there is no delta.
    assert plans.plan('--noprivate', flags[1], **facts).target_delta is None


def test_an_epsilon_that_cannot_be_proven_is_no_target_and_no_headline():
    with pytest.raises(config.ConfigError) as caught:
        plans.plan(plans.HIDDEN, '--target_epsilon=60')
    assert str(caught.value) == (
        'An ε this large cannot be proven, because the noise is drawn with 128 bits: choose '
        '--target_epsilon=44 or less. Received: 60.'
    )
    # At a noise that was given there is no epsilon, whatever the accountants say.
    plan = plans.plan(plans.HIDDEN, '--noise_multiplier=7')
    epsilon = budget.planned_epsilon(plan)
    assert 50 < epsilon.smallest_bound < 100
    assert (epsilon.headline, epsilon.accountant) == (math.inf, 'none')
    assert budget.rdp_epsilon(plan, 100, 7.0) == math.inf
    assert budget.rdp_epsilon(plan, 3, 7.0) < 38


@pytest.mark.parametrize(('steps', 'is_proven'), [(98, True), (99, False)])
def test_where_an_epsilon_ends(steps, is_proven):
    """Just where (1 + e^epsilon) draws 2^-108 is delta / 1024, which is computed here."""
    # One step has 1,234 numbers; the epsilon at which so many steps are just proven, and its noise.
    draws = 98.5 * plans.PARAMETERS
    epsilon = optimize.brentq(
        lambda e: by_hand.log2_of_draws(e, draws) - math.log2(1e-5 / 1024), 1, 90
    )
    assert 30 < epsilon < 50
    mu = accounting.gaussian_mu(epsilon, _DELTA)
    effective = math.sqrt(98.5) / mu
    sigma = 5 * by_hand.noise_for_step(effective, plans.PARAMETERS)
    plan = plans.plan(plans.HIDDEN, f'--train_steps={steps}', f'--noise_multiplier={sigma}')
    assert budget.planned_epsilon(plan).is_proven == is_proven


def test_delta_times_the_number_is_as_by_hand():
    plan = dataclasses.replace(plans.plan('--noise_multiplier=1'), dataset_size=60_000)
    assert budget.delta_times_units(plan) == 0.6 < 1e-5 * 60_000
    persons = dataclasses.replace(plan, **plans.PERSONS)
    assert budget.delta_times_units(persons) == 0.007


# Plans keep to the target, with hardly more noise than that takes.


def _person_probability(images):
    """Of a sample to hold a person: computed from that of one record, which the sampler rounds."""
    one = math.ceil(2**32 * _BATCH / plans.RECORDS) / 2**32
    return 1 - (1 - one) ** images


_BATCH = 80


def _event_by_hand(plan, images):
    """The event of a step of a plan, from its noise and the formulas of section 5."""
    numbers = plan.mechanism
    sigma, sums = numbers['noise_multiplier'], 1
    if numbers['error_feedback'] == 'private' and numbers['residual_share']:
        sums = 2
    if numbers['error_feedback'] == 'hidden':
        first, second = numbers['l2_norm_clip'], numbers['residual_l2_norm_clip']
        unit = sigma * first / (images * first + 2 * second)
        return dp_accounting.GaussianDpEvent(by_hand.effective_step(unit, plans.PARAMETERS))
    effective = by_hand.effective_step(sigma / images, sums * plans.PARAMETERS)
    return dp_accounting.PoissonSampledDpEvent(
        _person_probability(images), dp_accounting.GaussianDpEvent(effective)
    )


def _noise_of(event):
    """Its noise multiplier, and its sampling probability."""
    if isinstance(event, dp_accounting.GaussianDpEvent):
        return event.noise_multiplier, None
    return event.event.noise_multiplier, event.sampling_probability


def _check_plan(plan, target, images):
    """A calibrated plan: within the target, tight, and its events those of its noise."""
    epsilon = budget.planned_epsilon(plan)
    assert epsilon.is_proven and epsilon.headline <= target
    warm_start = plan.warm_start_event
    if warm_start is not None:
        sigma = plan.warm_start_noise_multiplier
        assert warm_start.noise_multiplier <= by_hand.effective_sum(sigma / images)
        assert warm_start.noise_multiplier == pytest.approx(
            by_hand.effective_sum(sigma / images), rel=1e-9
        )
    if not plan.train_steps:
        assert epsilon.headline >= 0.9999 * target
        return
    event, expected = plan.event, _event_by_hand(plan, images)
    assert type(event) is type(expected)
    for found, by_formula, sign in zip(_noise_of(event), _noise_of(expected), (1, -1)):
        if by_formula is None:
            assert found is None
            continue
        assert found == pytest.approx(by_formula, rel=1e-9)
        # Rounded to the safe side: noise down, probability up.
        assert sign * (by_formula - found) >= -1e-13 * found
    least = 0.25 * images
    if plan.mechanism['noise_multiplier'] > 1.01 * least:
        less = budget.event_of(plan, plan.mechanism['noise_multiplier'] / 1.01)
        spent = accounting.compute_epsilon(less, plan.train_steps, _DELTA, warm_start)
        assert spent.smallest_bound > target


_BUDGETS = {
    'target': st.floats(0.3, 20.0),
    'images': st.sampled_from([None, 2, 5]),
    'share': st.sampled_from([0.0, 0.2, 0.5, 0.8]),
    'learned': st.sampled_from([0.0, 0.3]),
    'residual': st.sampled_from([0.0, 0.1, 0.3]),
    'clips': st.tuples(st.floats(0.1, 3.0), st.floats(0.1, 3.0)),
}


def _planned(target, images, share, learned, residual, clips, *flags):
    facts = {'images_per_person': images, 'persons': 700} if images else {}
    return plans.plan(
        f'--target_epsilon={target}',
        f'--expected_batch_size={_BATCH}',
        f'--warm_start_share={share}',
        f'--learned_features_share={learned}',
        f'--residual_share={residual}',
        f'--l2_norm_clip={clips[0]}',
        f'--residual_l2_norm_clip={clips[1]}',
        *flags,
        **facts,
    )


def _few(number):
    return hypothesis.settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@hypothesis.given(steps=st.integers(1, 3_000), **_BUDGETS)
@_few(40)
def test_a_plan_of_a_hidden_buffer_keeps_to_the_target_and_is_tight(steps, **values):
    plan = _planned(*values.values(), '--error_feedback=hidden', f'--train_steps={steps}')
    _check_plan(plan, values['target'], values['images'] or 1)


@hypothesis.given(**{**_BUDGETS, 'share': st.just(1.0)})
@_few(40)
def test_a_plan_of_the_warm_start_alone_keeps_to_the_target_and_is_tight(**values):
    plan = _planned(*values.values())
    assert plan.train_steps == 0
    _check_plan(plan, values['target'], values['images'] or 1)
    noise, learned = budget.noise_of_releases(plan), values['learned']
    assert len(noise) == 1 + bool(learned)
    assert sum(1 / sigma**2 for sigma in noise) == pytest.approx(
        1 / plan.warm_start_noise_multiplier**2, rel=1e-9
    )
    if learned:
        assert (plan.warm_start_noise_multiplier / noise[1]) ** 2 == pytest.approx(learned)


@pytest.mark.acceptance
@hypothesis.given(steps=st.integers(1, 60), mode=st.sampled_from(['private', 'none']), **_BUDGETS)
@_few(6)
def test_a_plan_keeps_to_the_target_and_is_tight(steps, mode, **values):
    plan = _planned(*values.values(), f'--error_feedback={mode}', f'--train_steps={steps}')
    _check_plan(plan, values['target'], values['images'] or 1)
