"""The audit: bounds that hold, honest mechanisms that pass, and planted bugs that do not.

Noise keys and coins are fixed, so nothing here fails by chance.
"""

import dataclasses
import functools
import itertools
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from helpers import account_by_hand as by_hand
from helpers.pairs import pairs
from scipy import special, stats

from tf_efsgd.audit import bounds, findings, training
from tf_efsgd.audit import mechanism as mechanism_audit
from tf_efsgd.audit.likelihood import Claim, Observations
from tf_efsgd.cli import audit as cli
from tf_efsgd.privacy import accounting, clipping, noise, private_step
from tf_efsgd.privacy.mechanism import Mechanism
from tf_efsgd.privacy.optimizer import ErrorFeedbackDPKerasSGDOptimizer

_REPO = pathlib.Path(__file__).resolve().parent.parent
_CONFIDENCE = 0.999
_DELTAS = (1e-5, 0.1)


def _mechanism(error_feedback='private', **settings):
    defaults = {
        'l2_norm_clip': 0.7,
        'noise_multiplier': 1.0,
        'residual_l2_norm_clip': 0.4,
        'residual_share': 0.3,
        'feedback_decay': 0.8,
    }
    return Mechanism(error_feedback=error_feedback, **{**defaults, **settings})


def _audit(mechanism, steps, sampling_probability, runs, **options):
    """A mechanism audit; the finding at the smallest and at the largest delta."""
    return mechanism_audit.audit(
        mechanism,
        sampling_probability,
        steps,
        runs,
        deltas=_DELTAS,
        confidence=_CONFIDENCE,
        noise_key=noise.NoiseKey(17),
        seed=23,
        **options,
    )


# Bounds.


def test_clopper_pearson_has_its_closed_forms():
    n, error = 40, 0.03
    assert bounds.upper_rate(0, n, error) == pytest.approx(1 - error ** (1 / n))
    assert bounds.lower_rate(n, n, error) == pytest.approx(error ** (1 / n))
    assert bounds.lower_rate(0, n, error) == 0
    assert bounds.upper_rate(n, n, error) == 1


@pytest.mark.parametrize('count', [1, 7, 39])
def test_clopper_pearson_is_scipys(count):
    expected = stats.binomtest(count, 40).proportion_ci(0.94, method='exact')
    assert bounds.lower_rate(count, 40, 0.03) == pytest.approx(expected.low)
    assert bounds.upper_rate(count, 40, 0.03) == pytest.approx(expected.high)


@pytest.mark.parametrize('runs', [100, 10_000])
def test_ceiling_is_about_the_log_of_the_runs(runs):
    assert bounds.ceiling(runs, 0.0, 0.95) == pytest.approx(math.log(runs / 3.7), abs=0.06)


def test_no_scores_pass_the_ceiling():
    apart = bounds.choose_attack([np.ones(50)], [np.zeros(50)], 100, 1e-5, 0.95)
    bound = apart.lower_bound([np.ones(100)], [np.zeros(100)], 1e-5, 0.95)
    assert bound == pytest.approx(bounds.ceiling(100, 1e-5, 0.95))


def test_equal_worlds_prove_nothing():
    scores = np.random.default_rng(1).normal(size=(4, 3, 2000))  # of three statistics
    attack = bounds.choose_attack(*scores[:2], 2000, 1e-5, _CONFIDENCE)
    assert attack.lower_bound(*scores[2:], 1e-5, _CONFIDENCE) < 0.05


@pytest.mark.parametrize('sign', [1, -1])
def test_bound_of_a_gaussian_is_close_below_its_epsilon(sign):
    # Minus the score of the other world: the attack that looks for runs without the record.
    delta, mu, runs = 0.1, 1.3, 1_000_000
    draws = np.random.default_rng(2).normal(size=(4, 1, runs))
    draws += np.reshape([mu, 0, mu, 0], [4, 1, 1])
    worlds = draws if sign > 0 else -draws[[1, 0, 3, 2]]
    attack = bounds.choose_attack(*worlds[:2], runs, delta, _CONFIDENCE)
    bound = attack.lower_bound(*worlds[2:], delta, _CONFIDENCE)
    epsilon = accounting.gaussian_epsilon(mu, delta)
    assert 0.97 * epsilon < bound <= epsilon
    assert bound > accounting.gaussian_epsilon(2 / 3 * mu, delta)


def test_bound_exceeds_epsilon_no_more_often_than_its_confidence_says():
    # At 80%, where it can be seen; one threshold, the best one.
    delta, mu, runs, confidence = 0.1, 1.0, 400, 0.8
    epsilon = accounting.gaussian_epsilon(mu, delta)
    attack = bounds.Attack(0, epsilon / mu + mu / 2, says_out=False)
    rng = np.random.default_rng(3)
    found = [
        attack.lower_bound(
            rng.normal(mu, size=[1, runs]), rng.normal(size=[1, runs]), delta, confidence
        )
        for _ in range(400)
    ]
    assert np.mean(np.array(found) > epsilon) <= 1 - confidence


# Likelihoods.


def _observations(claim, steps, runs, seed=4):
    """Random releases along a gradient in three variables, far beyond both clips."""
    rng = np.random.default_rng(seed)
    sums = [rng.normal(size=[steps, runs, 6]) for _ in claim.noise_stddevs]
    others, own = [rng.normal(size=6) for _ in sums], 100 * rng.normal(size=6)
    steps = [claim.observe(list(noisy), others, own, [3, 1, 2]) for noisy in zip(*sums)]
    along = [(s - other) @ own / np.linalg.norm(own) for s, other in zip(sums, others)]
    releases, shifts = zip(*steps)
    return Observations(np.stack(releases), np.stack(shifts)[:, np.newaxis]), along


@pytest.mark.parametrize('error_feedback', ['private', 'none', 'hidden'])
def test_likelihood_ratio_is_that_of_all_sampling_patterns(error_feedback):
    q, steps = 0.3, 4
    claim = Claim(_mechanism(error_feedback, noise_multiplier=1.7), q, 6)
    first, second, share = 0.7, 0.4, 0.3
    stddevs = [1.7 * first]
    if error_feedback == 'private':
        stddevs = [1.7 * first / math.sqrt(1 - share), 1.7 * second / math.sqrt(share)]
    observations, along = _observations(claim, steps, 5)
    terms = []
    for pattern in itertools.product([0, 1], repeat=steps):
        pattern = np.array(pattern)
        shifts = first * pattern, second * pattern
        if error_feedback == 'hidden':
            shifts = (first * pattern + second * (np.cumsum(pattern) - pattern > 0),)
        log_density = sum(
            stats.norm.logpdf(a.T, shift, stddev).sum(axis=1)
            for a, shift, stddev in zip(along, shifts, stddevs)
        )
        sampled = pattern.sum()
        terms.append(log_density + sampled * math.log(q) + (steps - sampled) * math.log(1 - q))
    without = sum(stats.norm.logpdf(a, 0, stddev).sum(axis=0) for a, stddev in zip(along, stddevs))
    found = claim.statistics(observations, np.eye(observations.releases.shape[-1]))[0]
    np.testing.assert_allclose(found, special.logsumexp(terms, axis=0) - without, rtol=1e-9)


def test_with_the_claimed_noise_measured_both_likelihood_ratios_agree():
    claim = Claim(_mechanism(), 0.3, 6)
    observations, _ = _observations(claim, 4, 5)
    covariance = np.diag(np.repeat(np.square(claim.noise_stddevs), 3))
    documented, measured, _ = claim.statistics(observations, covariance)
    np.testing.assert_allclose(measured, documented, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('feedback_l2_norm_clip', [None, 0.05, 0.5])
def test_both_sums_are_recovered_from_gradient_and_buffer(feedback_l2_norm_clip):
    mechanism = _mechanism(feedback_l2_norm_clip=feedback_l2_norm_clip)
    rng = np.random.default_rng(5)
    sums = rng.normal(size=(2, 6, 3))  # [purpose, step, size]
    buffer, claim = np.zeros(3, np.float32), Claim(mechanism, 1.0, 3)
    for clipped, residual in pairs(*sums):
        draws = [[tf.zeros(3, tf.int64)], [tf.zeros(3, tf.int64)]]
        (gradient,), (after,) = private_step.release(
            mechanism, [clipped], [residual], [buffer], 3.0, {'draws': draws}
        )
        found = claim.recover(gradient.numpy(), buffer, after.numpy(), 3.0)
        np.testing.assert_allclose(found[0], clipped, atol=1e-4)
        np.testing.assert_allclose(found[1], residual, atol=1e-4)
        buffer = after.numpy()


@pytest.mark.parametrize('error_feedback', ['private', 'none', 'hidden'])
def test_a_release_that_is_no_number_counts_as_in(error_feedback):
    claim = Claim(_mechanism(error_feedback), 0.3, 6)
    observations, _ = _observations(claim, 4, 5)
    observations.releases[2, 3, 0] = np.nan
    statistics = claim.statistics(observations, np.eye(observations.releases.shape[-1]))
    assert len(statistics) > 0
    for statistic in statistics:
        assert np.flatnonzero(np.isinf(statistic)).tolist() == [3]


# Honest mechanisms.


@pytest.mark.parametrize('error_feedback', ['private', 'none'])
@pytest.mark.parametrize(('steps', 'sampling_probability'), [(1, 1.0), (20, 0.2)])
def test_honest_mechanism_passes(error_feedback, steps, sampling_probability):
    found = _audit(_mechanism(error_feedback), steps, sampling_probability, 8000)
    assert not any(finding.exceeds for finding in found)
    assert all(finding.verdict == 'consistent with the account' for finding in found)
    # An attack that proved little would let every bug pass.
    assert found[-1].bound > 0.7 * found[-1].account


def test_honest_mechanism_with_a_clip_on_what_is_given_back_passes():
    found = _audit(_mechanism(feedback_l2_norm_clip=0.3), 3, 0.6, 3000)
    assert not any(finding.exceeds for finding in found)
    assert found[-1].bound > 0.5 * found[-1].account


def test_honest_optimizer_passes_under_a_strategy(strategy):
    found = _audit(_mechanism(), 3, 0.6, 3000, strategy=strategy)
    assert found[0].replicas == 2
    assert not any(finding.exceeds for finding in found)
    assert found[-1].bound > 0.5 * found[-1].account


def test_hidden_exceeds_what_is_unproven_and_not_what_it_spends():
    mechanism = _mechanism('hidden', l2_norm_clip=1.0, residual_l2_norm_clip=1.0)
    at_small_delta, _ = _audit(mechanism, 200, 0.05, 2000)
    assert at_small_delta.unproven == pytest.approx(4.766, abs=0.01)
    assert at_small_delta.unproven < at_small_delta.bound <= at_small_delta.ceiling
    # mu = sqrt(200) 3 is 1,080 and more: no such epsilon can be proven, so none is claimed.
    assert math.isinf(at_small_delta.account)
    assert not at_small_delta.exceeds
    assert 'the unproven ε = 4.77 is not true' in at_small_delta.verdict


def test_hidden_stays_below_what_it_spends():
    # mu = sqrt(30) 3 / 4: what is accounted can be proven there.
    mechanism = _mechanism(
        'hidden', l2_norm_clip=1.0, residual_l2_norm_clip=1.0, noise_multiplier=4.0
    )
    found = _audit(mechanism, 30, 0.05, 2000)
    assert len(found) == 2
    for finding in found:
        mu = math.sqrt(30) / by_hand.effective_step(4 / 3, 5)
        expected = accounting.gaussian_epsilon(mu, by_hand.accounted_delta(finding.delta))
        assert finding.account == pytest.approx(expected, rel=1e-9)
        assert finding.bound < finding.account < 40 and not finding.exceeds


def test_what_is_claimed_is_what_the_verdict_compares_with():
    finding = findings.Finding('mechanism', 'hidden', 1, 9, 0.5, 1e-5, 10, 3.0, 2.0, 5.0, 2.001)
    assert finding.verdict == 'consistent with the account; unproven ε = 2.01 not refuted'
    without = dataclasses.replace(finding, account=math.inf)
    assert without.verdict == 'nothing is claimed; unproven ε = 2.01 not refuted'
    assert dataclasses.replace(without, unproven=None).verdict == 'nothing is claimed'


def test_hidden_with_few_runs_says_that_it_refuted_nothing():
    finding, _ = _audit(_mechanism('hidden'), 2, 0.05, 100)
    assert finding.ceiling < finding.unproven or finding.bound <= finding.unproven
    assert 'not refuted' in finding.verdict


# Planted bugs.


def _plant_less_noise(monkeypatch):
    """Noise at 2/3 of its scale."""
    for name in ('clipped_noise_stddev', 'residual_noise_stddev'):
        honest = getattr(Mechanism, name).fget
        monkeypatch.setattr(
            Mechanism, name, property(lambda self, honest=honest: 2 / 3 * honest(self))
        )


def _plant_forgotten_clip(monkeypatch):
    """One variable goes into the first sum as it is."""
    honest = clipping.clip_and_sum

    def forgetful(gradients, *clips):
        clipped, residual = honest(gradients, *clips)
        whole = tf.reduce_sum(tf.cast(gradients[-1], tf.float64), axis=0)
        return [*clipped[:-1], whole], residual

    monkeypatch.setattr(clipping, 'clip_and_sum', forgetful)


def _plant_clip_per_variable(monkeypatch):
    """Every variable is clipped by itself, so that all together are longer than C1."""
    honest = clipping.clip_and_sum

    def separate(gradients, *clips):
        clipped, residual = zip(*[honest([gradient], *clips) for gradient in gradients])
        return [c for (c,) in clipped], [r for (r,) in residual]

    monkeypatch.setattr(clipping, 'clip_and_sum', separate)


def _plant_clip_of_the_batch(monkeypatch):
    """The sum is clipped, not the gradients in it: one record moves what others add."""
    honest = clipping.clip_and_sum

    def at_once(gradients, *clips):
        return honest([tf.reduce_sum(g, axis=0, keepdims=True) for g in gradients], *clips)

    monkeypatch.setattr(clipping, 'clip_and_sum', at_once)


def _plant_silent_residual(monkeypatch):
    """The residual goes into the buffer almost without noise."""
    honest = Mechanism.residual_noise_stddev.fget
    monkeypatch.setattr(
        Mechanism, 'residual_noise_stddev', property(lambda self: 0.01 * honest(self))
    )


def _plant_shared_noise(monkeypatch):
    """All variables and both sums draw from the same counters."""
    monkeypatch.setattr(
        noise, 'counter', lambda step, *_: tf.stack([tf.zeros([], tf.uint64), step])
    )


def _plant_repeated_noise(monkeypatch):
    """Every step draws from the counters of the first."""
    honest = noise.NoiseKey.next
    monkeypatch.setattr(
        noise.NoiseKey,
        'next',
        lambda self, *shapes: {**honest(self, *shapes), 'step': tf.zeros([], tf.uint64)},
    )


_BUGS = {
    'less noise': _plant_less_noise,
    'forgotten clip': _plant_forgotten_clip,
    'clip per variable': _plant_clip_per_variable,
    'clip of the batch': _plant_clip_of_the_batch,
}


@pytest.mark.parametrize('error_feedback', ['private', 'none'])
@pytest.mark.parametrize('bug', _BUGS)
@pytest.mark.parametrize(('steps', 'sampling_probability'), [(1, 1.0), (20, 0.2)])
def test_planted_bug_is_caught(bug, error_feedback, steps, sampling_probability, monkeypatch):
    _BUGS[bug](monkeypatch)
    found = _audit(_mechanism(error_feedback), steps, sampling_probability, 6000)
    assert found[-1].exceeds
    assert 'EXCEEDS' in found[-1].verdict


@pytest.mark.parametrize(
    ('plant', 'steps', 'sampling_probability'),
    [
        (_plant_silent_residual, 1, 1.0),
        (_plant_shared_noise, 1, 1.0),
        (_plant_repeated_noise, 20, 0.2),
    ],
)
def test_planted_bug_in_a_part_of_the_noise_is_caught(
    plant, steps, sampling_probability, monkeypatch
):
    plant(monkeypatch)
    found = _audit(_mechanism(), steps, sampling_probability, 4000)
    assert found[-1].exceeds


def _plant_noise_per_replica(monkeypatch, share):
    """Every replica draws its own noise, at `share` of the scale."""
    honest = noise.integers

    @tf.autograph.experimental.do_not_convert
    def own(shape, *, step_noise, **rest):
        replica = tf.distribute.get_replica_context()
        shift = tf.cast(replica.replica_id_in_sync_group, tf.uint64)
        step_noise = {**step_noise, 'key': step_noise['key'] + shift}
        return _scaled(honest(shape, step_noise=step_noise, **rest), share)

    monkeypatch.setattr(noise, 'integers', own)


def _scaled(integers, share):
    """Whole numbers of noise at another scale."""
    return tf.cast(tf.round(share * tf.cast(integers, tf.float64)), tf.int64)


def _plant_noise_before_the_sum(monkeypatch):
    """One replica adds half of the noise to its share, the other forgets its half."""
    honest = ErrorFeedbackDPKerasSGDOptimizer.release

    def release(self, clipped, residual, var_list, *, step_noise):
        own = tf.distribute.get_replica_context().replica_id_in_sync_group
        half = tf.where(tf.equal(own, 0), tf.constant(0.5, tf.float64), 0.0)
        scale = half * self.mechanism.clipped_step

        def draw(s, variable):
            n = noise.integers(s.shape, step_noise=step_noise, purpose=5, variable=variable)
            return scale * tf.cast(n, tf.float64)

        noisy = [s + draw(s, i) for i, s in enumerate(clipped)]
        return honest(self, noisy, residual, var_list, step_noise=step_noise)

    monkeypatch.setattr(
        private_step,
        'noisy_integers',
        lambda sums, step, *_: [noise.to_grid(s, step) for s in sums],
    )
    monkeypatch.setattr(ErrorFeedbackDPKerasSGDOptimizer, 'release', release)


@pytest.mark.parametrize(
    ('error_feedback', 'share'), [('private', 1.0), ('none', 1.0), ('none', 0.5**0.5)]
)
def test_planted_noise_per_replica_is_caught(error_feedback, share, strategy, monkeypatch):
    _plant_noise_per_replica(monkeypatch, share)
    found = _audit(_mechanism(error_feedback), 1, 1.0, 6000, strategy=strategy)
    assert found[-1].exceeds


def test_planted_noise_on_one_share_only_is_caught(strategy, monkeypatch):
    _plant_noise_before_the_sum(monkeypatch)
    found = _audit(_mechanism('none'), 1, 1.0, 4000, strategy=strategy)
    assert any(finding.exceeds for finding in found)


def test_planted_noise_of_one_replica_alone_is_caught(strategy, monkeypatch):
    """The other one releases what it has without any."""
    honest = noise.integers

    def integers(shape, **rest):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return tf.where(tf.equal(replica, 0), honest(shape, **rest), 0)

    monkeypatch.setattr(noise, 'integers', integers)
    found = _audit(_mechanism('none'), 1, 1.0, 4000, strategy=strategy)
    assert found[-1].exceeds


@pytest.mark.acceptance
def test_planted_less_noise_is_caught_under_a_strategy(strategy, monkeypatch):
    honest = noise.integers
    monkeypatch.setattr(
        noise, 'integers', lambda shape, **rest: _scaled(honest(shape, **rest), 2 / 3)
    )
    found = _audit(_mechanism('none'), 1, 1.0, 4000, strategy=strategy)
    assert any(finding.exceeds for finding in found)


# Training.


def _audit_training(mechanism, steps, runs, **options):
    return training.audit(
        mechanism,
        20,
        steps,
        runs,
        deltas=(0.1,),
        confidence=0.95,
        noise_key=noise.NoiseKey(29),
        seed=31,
        **options,
    )


@pytest.mark.parametrize('replicas', [1, 2])
def test_honest_training_passes(replicas, strategy):
    options = {'strategy': strategy} if replicas == 2 else {}
    (finding,) = _audit_training(_mechanism(), 3, 20, **options)
    assert (finding.audit, finding.runs, finding.steps) == ('training', 20, 3)
    assert finding.replicas == replicas
    assert finding.sampling_probability == pytest.approx(0.2)
    assert 0 <= finding.bound <= finding.ceiling
    assert not finding.exceeds


@pytest.mark.acceptance
def test_training_without_clipping_is_caught(monkeypatch):
    monkeypatch.setattr(
        clipping, 'clip_weights', lambda norms, *_: (tf.ones_like(norms), tf.zeros_like(norms))
    )
    # The record's gradient is about 2 long.
    mechanism = _mechanism('none', l2_norm_clip=0.05)
    (finding,) = _audit_training(mechanism, 5, 40)
    assert finding.exceeds


@pytest.mark.acceptance
def test_training_on_two_replicas_stays_below_its_account(strategy):
    # So little noise that so few runs show something.
    (finding,) = _audit_training(_mechanism(noise_multiplier=0.5), 5, 100, strategy=strategy)
    assert finding.replicas == 2 and not finding.exceeds
    assert 0 < finding.bound < finding.account


@pytest.mark.acceptance
def test_training_on_two_replicas_without_noise_is_caught(strategy, monkeypatch):
    monkeypatch.setattr(noise, 'integers', lambda shape, **_: tf.zeros(shape, tf.int64))
    (finding,) = _audit_training(_mechanism('none'), 5, 60, strategy=strategy)
    assert finding.exceeds


def test_the_record_under_audit_is_like_no_other():
    images = training.load_records().images
    assert len(images) == training.DATASET_SIZE
    assert not any(np.array_equal(image, images[-1]) for image in images[:-1])


# The command line.


def _command(*arguments):
    paths = [str(_REPO), *os.environ.get('PYTHONPATH', '').split(os.pathsep)]
    return subprocess.run(
        [sys.executable, '-m', 'tf_efsgd.audit', *arguments],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--audit=everything'], '--audit'),
        (['--noise_multiplier=0'], '--noise_multiplier must be at least 1e-06'),
        (['--sampling_probability=1.5'], '--sampling_probability must be in (0, 1]'),
        (['--target_delta=0'], '--target_delta must be in (0, 1)'),
        (['--feedback_decay=0'], '--feedback_decay'),
        (['--train_steps=0'], '--train_steps must be at least 1'),
        (['--runs=3'], '--runs must be at least 10'),
        (['--audit=training', '--error_feedback=hidden'], '--audit=mechanism'),
        (['--logical_devices=2', '--error_feedback=hidden'], '--logical_devices=2'),
        (['mechanism'], 'Received: mechanism'),
    ],
)
def test_a_mistake_is_one_line(arguments, said):
    finished = _command(*arguments)
    assert finished.returncode == 2
    assert finished.stdout == ''
    assert len(finished.stderr.splitlines()) == 1, finished.stderr
    assert finished.stderr.startswith('tf_efsgd: ')
    assert said in finished.stderr


def _run_cli(monkeypatch, *arguments):
    """Runs the command in this process; its exit code."""
    values = flags.FlagValues()
    cli.define_flags(values)
    values(['audit', *arguments])
    monkeypatch.setattr(cli.flags, 'FLAGS', values)
    with pytest.raises(SystemExit) as exited:
        cli._main()
    return exited.value.code


def test_a_mistake_that_the_mechanism_finds_is_one_line(monkeypatch, capsys):
    assert _run_cli(monkeypatch, '--residual_share=1') == 2
    written = capsys.readouterr()
    assert written.out == ''
    assert written.err == (
        'tf_efsgd: --residual_share must be 0, or at least 1e-09 and below 1. Received: 1.0.\n'
    )


_QUICK = ('--error_feedback=none', '--train_steps=1', '--sampling_probability=1', '--runs=1000')


def test_command_shows_bound_ceiling_and_account(monkeypatch, capsys):
    # With a key of its own the bound is below what is asked for here in one run of seven.
    fixed = {'noise_key': noise.NoiseKey(17), 'seed': 23}
    monkeypatch.setattr(mechanism_audit, 'audit', functools.partial(mechanism_audit.audit, **fixed))
    # At the usual 95% honest code would fail once in a while.
    confidence = f'--confidence={_CONFIDENCE}'
    assert _run_cli(monkeypatch, *_QUICK, '--target_delta=0.1', confidence) == 0
    titles, row, warm_start, *attacks = capsys.readouterr().out.splitlines()[1:]
    assert warm_start.startswith('warm start') and 'consistent with the account' in warm_start
    assert sum('no guess is refuted' in line for line in attacks) == 8
    values = dict(zip(titles.split(), row.split()))
    assert values['audit'] == 'mechanism'
    # Two lines share what the confidence allows to prove, less the delta.
    ceiling = math.log(1000 * 0.9 / -math.log((1 - _CONFIDENCE) / 4))
    assert float(values['ceiling']) == pytest.approx(ceiling, abs=0.01)
    assert 0.4 < float(values['bound']) < float(values['account'])
    # One Gaussian of everybody, by its closed form; PLD is a little above it.
    mu = 1 / by_hand.effective_step(1, 5)
    account = accounting.gaussian_epsilon(mu, by_hand.accounted_delta(0.1))
    assert account < float(values['account']) < account + 0.003
    assert 'consistent with the account' in row


@pytest.mark.acceptance
def test_command_says_none_where_nothing_is_accounted(monkeypatch, capsys):
    arguments = ('--error_feedback=hidden', '--train_steps=9', '--sampling_probability=1')
    assert _run_cli(monkeypatch, *arguments, '--runs=30', '--target_delta=1e-5') == 0
    titles, row, *_ = capsys.readouterr().out.splitlines()[1:]
    assert dict(zip(titles.split(), row.split()))['account'] == 'none'
    assert 'consistent' not in row


@pytest.mark.acceptance
def test_command_fails_when_a_bound_exceeds_the_account(monkeypatch, capsys):
    _plant_forgotten_clip(monkeypatch)
    assert _run_cli(monkeypatch, *_QUICK) == 1
    assert 'EXCEEDS the account' in capsys.readouterr().out


def test_all_is_every_mode_in_every_audit(monkeypatch):
    values = flags.FlagValues()
    cli.define_flags(values)
    values(['audit', '--audit=all'])
    assert cli._plan(values) == [
        ('mechanism', 'none', 1, 1.0),
        ('mechanism', 'none', 200, 0.05),
        ('mechanism', 'private', 1, 1.0),
        ('mechanism', 'private', 200, 0.05),
        ('mechanism', 'hidden', 200, 0.05),
        ('training', 'none', 20, 0.2),
        ('training', 'private', 20, 0.2),
    ]


@pytest.mark.acceptance
def test_confidence_is_that_of_the_whole_table(monkeypatch):
    asked = []

    def audit(mechanism, *_, confidence, **__):
        asked.append(confidence)
        return []

    monkeypatch.setattr(mechanism_audit, 'audit', audit)
    assert _run_cli(monkeypatch, *_QUICK, '--error_feedback=all', '--confidence=0.92') == 0
    # Three modes and the warm start at two deltas.
    assert asked == pytest.approx([0.99] * 3)


def test_held_out_runs_are_a_third():
    for runs in (10, 11, 12):
        total = findings.runs_with_held_out(runs)
        assert total - total // 3 in (runs, runs + 1)
