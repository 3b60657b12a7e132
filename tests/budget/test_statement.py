"""The privacy statement, word for word: no sentence can be emptied, changed or left out."""

import math
import tempfile

import dp_accounting
import pytest
from dp_accounting import pld, rdp
from helpers import account_by_hand as by_hand
from helpers import plans
from scipy import optimize, stats

from tf_efsgd import budget
from tf_efsgd.budget import epsilon, statement
from tf_efsgd.privacy.ledger import Ledger
from tf_efsgd.reporting import report

_DELTA = by_hand.accounted_delta(1e-5)

# Of two releases, for each class.
_DRAWS_BEFORE = 2 * 2**18 * 10
_SOFTWARE = {'tf_efsgd': '7', 'python': '3.11'}
_NOT_COVERED = [
    'anything in the folder nonprivate/ (evaluation against real images)',
    'the choice of settings after looking at other runs on the same records',
    'other runs on the same records, and copies of this run folder that were trained further: '
    'their epsilons and deltas add up',
    'the declared number of records, the image size, the channels, the classes and all settings, '
    'which are public',
    'the time that steps take',
]
_NOT_COVERED_PER_IMAGE = [
    *_NOT_COVERED,
    'several records of one person: the guarantee is per record (one image with its label); '
    'epsilon_by_images_per_person, where it is given, states it for several',
]
_NOT_COVERED_PER_PERSON = [
    *_NOT_COVERED,
    'an image that was assigned to a person other than the one it shows',
    'the declared number of persons, which is public',
]
_PROVEN = [
    'every record adds at most its clipping norms to a step, and at most norm 1, held in integers, '
    'to a release before the first step',
    'the released numbers are integers on a public grid, their noise has the exact law of a '
    'discrete Gaussian, and the two together are post-processing of the accounted Gaussian '
    'mechanism',
    'adding up the clipped gradients of a step in floating point moves neighbours apart by less '
    'than half of an allowance of 0.0078125 of the clipping norm, in steps of up to 1,024 '
    'records or twice the expected number; a larger step has a probability below 1e-40 if the '
    'declared number of records is at least four fifths of the true one',
    'the accounted noise multipliers are lowered by what rounding to the grid costs, and the '
    'accounted delta by how far the noise is from its law',
]
_TESTED = [
    'the norm by which a gradient is clipped has an error from float32 arithmetic; tests with '
    'adversarial batches keep it within the other half of the allowance, and the whole allowance '
    'is accounted',
    'the features of one record, and what the layers of a private network put out for it (if they '
    'have no rule of fast clipping: its loss), depend neither on the other records that are '
    'computed beside it nor on its place among them; every process tries this, to the last bit, '
    'before its first look at records, but not the way back through the layers',
]


def _near(value, relative=1e-6):
    return pytest.approx(value, rel=relative)


def _gaussian(sigma):
    return {'class_name': 'GaussianDpEvent', 'noise_multiplier': _near(sigma, 1e-9)}


def _sampled(probability, sigma):
    return {
        'class_name': 'PoissonSampledDpEvent',
        'sampling_probability': _near(probability, 1e-9),
        'event': _gaussian(sigma),
    }


def _bounds(*parts):
    """PLD and RDP of (probability, sigma, steps); probability None: not sampled."""
    events = []
    for probability, sigma, steps in parts:
        event = dp_accounting.GaussianDpEvent(sigma)
        if probability is not None:
            event = dp_accounting.PoissonSampledDpEvent(probability, event)
        events.append(dp_accounting.SelfComposedDpEvent(event, steps))
    composed = dp_accounting.ComposedDpEvent(events)
    return tuple(
        make().compose(composed).get_epsilon(_DELTA)
        for make in (pld.PLDAccountant, rdp.RdpAccountant)
    )


def _closed_form(mu):
    """Epsilon of a Gaussian mechanism (Balle and Wang 2018)."""

    def excess(epsilon):
        second = epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu)
        return stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(second) - _DELTA

    return optimize.brentq(excess, 1e-9, 60, xtol=1e-13)


def _statement(plan, steps, *flags, applied=None, change=None, releases=()):
    """Of a run that has reserved so many steps; with a change, as many again after it."""
    settings = plans.settings(*flags)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(f'{folder}/ledger.jsonl', plan)
        if releases:
            ledger.reserve_warm_start(releases[0], 2)
        if releases[1:]:
            ledger.note_learned_features(releases[1], 2 if releases[1] else None)
        if steps:
            ledger.reserve(steps)
        if change is not None:
            settings = plans.settings(*change, '--resume', '--run_dir=x', '--change_mechanism')
            ledger.change_plan(budget.changed_plan(settings.privacy, ledger, is_allowed=True))
            ledger.reserve(steps)
        ledger.close()
        applied = steps if applied is None else applied
        return budget.make_statement(
            ledger,
            applied,
            _SOFTWARE,
            data=settings.data,
            privacy=settings.privacy,
            model=settings.model,
        )


def _start(**changes):
    """What every statement begins with."""
    return {
        'unit_of_privacy': 'one image with its label',
        'private': True,
        'dataset': 'digits',
        'dataset_size': 1602,
        'persons': None,
        'record': 'one image with its label',
        'software': _SOFTWARE,
        'public_images': None,
        **changes,
    }


def _end(epsilon, draws, **changes):
    """And what every private one ends with."""
    return {
        'unverified_resumes': 0,
        'neighboring_relation': 'ADD_OR_REMOVE_ONE',
        'changes_of_mechanism': 0,
        'randomness': 'Philox under secret keys from the operating system; the guarantee is '
        'computational',
        'noise': {
            'law': 'discrete Gaussian of integers, exact within 13 standard deviations of its '
            'parts',
            'standard_deviation_in_steps_of_the_grid': _near(by_hand.STDDEV, 1e-12),
            'numbers_drawn_at_most': draws,
            'log2_of_what_that_adds_to_delta': _near(by_hand.log2_of_draws(epsilon, draws)),
            'delta_accounted_for_the_ideal_mechanism': _near(_DELTA, 1e-12),
            'allowance_for_float32': 0.0078125,
        },
        'proven': _PROVEN,
        'tested_not_proven': _TESTED,
        'not_covered': _NOT_COVERED_PER_IMAGE,
        **changes,
    }


def _check(statement, *expected):
    """Key by key, and that no key is missing or was not expected."""
    together = {}
    for part in expected:
        together.update(part)
    assert set(statement) == set(together), (
        'A new line is entered in _start, _end or _mechanism above, see CONTRIBUTING.md.'
    )
    for name, value in together.items():
        assert statement[name] == value, name
    named = {*report._LABELS, *report._LISTS, report._NOT_COVERED, report._BY_IMAGES}
    assert set(statement) <= named, 'Give the new line a name in _LABELS of reporting/report.py.'
    # The unit of privacy comes first.
    assert next(iter(statement)) == 'unit_of_privacy'


def _mechanism(sigma, accounted, batch, **changes):
    return {
        'mechanism': 'Gaussian on clipped per-example gradients, error feedback from noisy '
        'residuals',
        'private_step_updates': 'discriminator',
        'private_parameters': 1234,
        'sampling': 'Poisson',
        'sampling_probability': _near(batch / 1602, 1e-6),
        'expected_batch_size': batch,
        'l2_norm_clip': 1.0,
        'noise_multiplier': sigma,
        'error_feedback': 'private',
        'residual_l2_norm_clip': 1.0,
        'residual_share': 0.1,
        'feedback_decay': 0.9,
        'feedback_l2_norm_clip': None,
        'noise_multiplier_accounted': _near(accounted, 1e-9),
        **changes,
    }


def _by_images(sigma, q, steps, coordinates, warm_start=None):
    """Epsilon for K images of one person, by hand; None where it is too large to be proven."""
    found = {}
    for images in (2, 5, 10):
        effective = by_hand.effective_step(sigma / images, coordinates)
        parts = [(1 - (1 - q) ** images, effective, steps)]
        if warm_start is not None:
            parts.insert(0, (None, by_hand.effective_sum(warm_start / images), 1))
        epsilon = min(_bounds(*parts))
        found[images] = _near(epsilon) if epsilon < 35 else None
        assert epsilon < 35 or epsilon > 45
    return found


_GIVEN = ['--noise_multiplier=8', '--expected_batch_size=80', '--train_steps=40']
_Q = math.ceil(2**32 * 80 / 1602) / 2**32
_ACCOUNTED = by_hand.effective_step(8, 2 * 1234)


def _epsilons(by_pld, by_rdp, epsilon=None, accountant='PLD', target=None):
    epsilon = by_pld if epsilon is None else epsilon
    return {
        'epsilon': _near(epsilon),
        'delta': 1e-5,
        'delta_times_units': 0.01602,
        'target_epsilon': target,
        'epsilon_of_the_ideal_mechanism': _near(epsilon),
        'epsilon_pld': by_pld and _near(by_pld),
        'epsilon_rdp': _near(by_rdp),
        'accountant': accountant,
    }


@pytest.mark.parametrize('reserved', [30, 40])
def test_the_statement_of_a_run(reserved):
    """A run that was stopped early claims the epsilon of its plan: what it showed can stop it."""
    by_pld, by_rdp = _bounds((_Q, _ACCOUNTED, 40))
    stopped = {}
    if reserved < 40:
        so_far, _ = _bounds((_Q, _ACCOUNTED, reserved))
        assert so_far < 0.9 * by_pld
        stopped = {'epsilon_if_the_stop_was_fixed_in_advance': _near(so_far)}
    _check(
        _statement(plans.plan(*_GIVEN), reserved, *_GIVEN, applied=25),
        _start(applied_steps=25),
        _epsilons(by_pld, by_rdp),
        stopped,
        {
            'epsilon_by_images_per_person': _by_images(8, _Q, 40, 2 * 1234),
            'warm_start': None,
            'events': [{'event': _sampled(_Q, _ACCOUNTED), 'steps': reserved}],
            'steps': reserved,
            'planned_steps': 40,
        },
        _mechanism(8.0, _ACCOUNTED, 80),
        # Of all that is planned, not of what was spent.
        _end(by_pld, 40 * 2 * 1234),
    )


@pytest.mark.parametrize(
    ('flag', 'sums', 'changes'),
    [
        (
            '--error_feedback=none',
            1,
            {
                'mechanism': 'Gaussian on clipped per-example gradients, DP-SGD',
                'error_feedback': 'none',
            },
        ),
        (
            '--residual_share=0',
            1,
            {
                'mechanism': 'Gaussian on clipped per-example gradients, DP-SGD',
                'residual_share': 0.0,
            },
        ),
        (
            '--reconstruction=generator',
            2,
            {'private_step_updates': 'discriminator and generator'},
        ),
        ('--secure_noise', 2, {'randomness': 'operating system'}),
    ],
)
def test_the_statement_of_other_settings(monkeypatch, flag, sums, changes):
    monkeypatch.setattr(epsilon, 'IMAGES_PER_PERSON', ())  # They take the longest.
    statement = _statement(plans.plan(*_GIVEN, flag), 3, *_GIVEN, flag)
    for name, value in changes.items():
        assert statement[name] == value
    accounted = by_hand.effective_step(8, sums * 1234)
    assert statement['noise_multiplier_accounted'] == _near(accounted, 1e-9)
    assert statement['noise']['numbers_drawn_at_most'] == 40 * sums * 1234


def test_the_statement_of_a_run_for_persons():
    accounted = by_hand.effective_step(8 / 5, 2 * 1234)
    probability = 1 - (1 - _Q) ** 5
    warm = by_hand.effective_sum(30 / 5)
    flags = [*_GIVEN, '--warm_start_noise_multiplier=30']
    by_pld, by_rdp = _bounds((None, warm, 1), (probability, accounted, 40))
    _check(
        _statement(plans.plan(*flags, **plans.PERSONS), 40, *flags, releases=['ab']),
        _start(
            unit_of_privacy='one person, with up to 5 images and their labels',
            persons=700,
            applied_steps=40,
        ),
        {**_epsilons(by_pld, by_rdp), 'delta_times_units': 0.007},
        {
            'epsilon_by_images_per_person': None,
            'warm_start': {
                'mechanism': 'one Gaussian release of the per-class sums of bounded features of '
                'all records, not sampled, before the first step',
                'event': _gaussian(warm),
                'noise_multipliers': [30.0],
                'never_released': [],
                'epsilon_alone': _near(_closed_form(1 / warm)),
            },
            'events': [{'event': _sampled(probability, accounted), 'steps': 40}],
            'steps': 40,
            'planned_steps': 40,
        },
        # q is that of every record; p is in the event.
        _mechanism(8.0, accounted, 80),
        _end(by_pld, _DRAWS_BEFORE + 40 * 2 * 1234, not_covered=_NOT_COVERED_PER_PERSON),
    )


def test_the_statement_of_a_hidden_buffer():
    flags = ['--error_feedback=hidden', '--train_steps=40', '--target_epsilon=7']
    flags += ['--expected_batch_size=80', '--residual_l2_norm_clip=2']
    plan = plans.plan(*flags)
    sigma = plan.mechanism['noise_multiplier']
    accounted = by_hand.effective_step(sigma / 5, 1234)
    epsilon = _closed_form(math.sqrt(40) / accounted)
    _, by_rdp = _bounds((None, accounted, 40))
    # What plain DP-SGD accounting would print, at the noise that is drawn.
    ideal = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(_Q, dp_accounting.GaussianDpEvent(sigma)), 40
    )
    by_images = {}
    for images in (2, 5, 10):
        unit = by_hand.effective_step(sigma / (images + 4), 1234)
        by_images[images] = _near(_closed_form(math.sqrt(40) / unit))
    _check(
        _statement(plan, 40, *flags),
        _start(applied_steps=40),
        _epsilons(None, by_rdp, epsilon, 'closed form', 7.0),
        {
            'epsilon_unproven': _near(pld.PLDAccountant().compose(ideal).get_epsilon(1e-5)),
            'epsilon_by_images_per_person': by_images,
            'warm_start': None,
            'events': [{'event': _gaussian(accounted), 'steps': 40}],
            'steps': 40,
            'planned_steps': 40,
        },
        _mechanism(
            sigma,
            accounted,
            80,
            mechanism='Gaussian on clipped per-example gradients, error feedback from a hidden '
            'buffer that is not noised (DiceSGD): every step is counted unsampled, with '
            'sensitivity l2_norm_clip + 2 residual_l2_norm_clip',
            error_feedback='hidden',
            residual_l2_norm_clip=2.0,
        ),
        _end(epsilon, 40 * 1234),
    )


def test_a_hidden_buffer_without_a_target_is_not_called_private():
    flags = ['--error_feedback=hidden', '--train_steps=40', '--noise_multiplier=80']
    statement = _statement(plans.plan(*flags), 30, *flags)
    assert statement['private'] is False and statement['epsilon'] < 10


def test_the_statement_after_a_change_of_the_mechanism():
    change = [*_GIVEN[1:], '--noise_multiplier=9']
    second = by_hand.effective_step(9, 2 * 1234)
    by_pld, by_rdp = _bounds((_Q, _ACCOUNTED, 10), (_Q, second, 10))
    _, planned = _bounds((_Q, _ACCOUNTED, 40))
    expected = _epsilons(None, planned, planned, 'RDP filter')
    del expected['epsilon_pld'], expected['epsilon_rdp']
    _check(
        _statement(plans.plan(*_GIVEN), 10, *_GIVEN, applied=20, change=change),
        _start(applied_steps=20),
        expected,
        {
            'epsilon_pld_fixed_in_advance_only': _near(by_pld),
            'epsilon_rdp_fixed_in_advance_only': _near(by_rdp),
            'epsilon_by_images_per_person': None,
            'warm_start': None,
            'events': [
                {'event': _sampled(_Q, _ACCOUNTED), 'steps': 10},
                {'event': _sampled(_Q, second), 'steps': 10},
            ],
            'steps': 20,
            'planned_steps': 40,
        },
        _mechanism(9.0, second, 80),
        _end(planned, 2 * 40 * 2 * 1234, changes_of_mechanism=1),
    )


def test_the_statement_of_the_warm_start_alone():
    flags = ['--target_epsilon=2', '--warm_start_share=1']
    plan = plans.plan(*flags)
    sigma = plan.warm_start_noise_multiplier
    warm = by_hand.effective_sum(sigma)
    epsilon = _closed_form(1 / warm)
    assert 1.9999 < epsilon < 2.000001
    _, by_rdp = _bounds((None, warm, 1))
    _check(
        _statement(plan, 0, *flags, releases=['ab']),
        _start(applied_steps=0),
        _epsilons(None, by_rdp, epsilon, 'closed form', 2.0),
        {
            'epsilon_by_images_per_person': {
                images: _near(_closed_form(images / warm)) for images in (2, 5, 10)
            },
            'warm_start': {
                'mechanism': 'one Gaussian release of the per-class sums of bounded features of '
                'all records, not sampled, before the first step',
                'event': _gaussian(warm),
                'noise_multipliers': [sigma],
                'never_released': [],
                'epsilon_alone': _near(epsilon),
            },
            'events': [],
            'steps': 0,
            'planned_steps': 0,
            'mechanism': 'the warm start alone: no private steps',
        },
        _end(epsilon, _DRAWS_BEFORE),
    )


@pytest.mark.parametrize(
    ('releases', 'lost', 'images'),
    [
        (['ab', 'cd'], [], (2, 5, 10)),
        (['ab', None], ['second'], ()),
        ([None, None], ['first', 'second'], ()),
    ],
)
def test_the_statement_of_two_releases_and_steps(monkeypatch, releases, lost, images):
    if not images:  # They take the longest.
        monkeypatch.setattr(epsilon, 'IMAGES_PER_PERSON', ())
    flags = [*_GIVEN, '--warm_start_noise_multiplier=20', '--learned_features_share=0.2']
    warm = by_hand.effective_sum(20)
    by_pld, by_rdp = _bounds((None, warm, 1), (_Q, _ACCOUNTED, 40))
    _check(
        _statement(plans.plan(*flags), 40, *flags, releases=releases),
        _start(applied_steps=40),
        _epsilons(by_pld, by_rdp),
        {
            'epsilon_by_images_per_person': (_by_images(8, _Q, 40, 2 * 1234, 20) if images else {}),
            'warm_start': {
                'mechanism': 'two Gaussian releases of the per-class sums of bounded features of '
                'all records, not sampled, before the first step; the second uses features chosen '
                'after the first; together they are the one Gaussian of the event',
                'event': _gaussian(warm),
                'noise_multipliers': [_near(20 / 0.8**0.5, 1e-12), _near(20 / 0.2**0.5, 1e-12)],
                'never_released': lost,
                'epsilon_alone': _near(_closed_form(1 / warm)),
            },
            'events': [{'event': _sampled(_Q, _ACCOUNTED), 'steps': 40}],
            'steps': 40,
            'planned_steps': 40,
        },
        _mechanism(8.0, _ACCOUNTED, 80),
        _end(by_pld, _DRAWS_BEFORE + 40 * 2 * 1234),
    )


def test_the_statement_without_privacy():
    _check(
        _statement(plans.plan('--noprivate'), 3, '--noprivate'),
        _start(
            private=False,
            applied_steps=3,
            mechanism='none: trained without clipping and noise',
        ),
    )


def test_the_statement_where_no_epsilon_is_proven():
    flags = [plans.HIDDEN, '--noise_multiplier=7', '--log_steps=100']
    statement = _statement(plans.plan(*flags), 100, *flags)
    assert statement['private'] is False
    assert (statement['epsilon'], statement['accountant']) == (None, 'none')
    assert 38 < statement['epsilon_of_the_ideal_mechanism'] < 100
    assert statement['epsilon_by_images_per_person'] == {2: None, 5: None, 10: None}


@pytest.mark.parametrize(
    ('network', 'wanted'),
    [
        ('efficientnet_lite0', 'features of a network that learned from ImageNet'),
        ('/a/net.keras', 'a network (net.keras) that, says its user, learned from public images'),
        ('none', None),
    ],
)
def test_public_images_are_told(network, wanted):
    lines = ['--target_epsilon=3', '--warm_start_share=0.5', f'--public_features={network}']
    told = statement._public_images(plans.settings(*lines).privacy)
    assert told is None if wanted is None else wanted in told
    # Without a warm start there is no release that has them.
    assert statement._public_images(plans.settings('--target_epsilon=3').privacy) is None
