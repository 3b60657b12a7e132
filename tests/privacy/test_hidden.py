"""The published error feedback: what it does, what it leaks, and what it is said to spend."""

import functools

import dp_accounting
import numpy as np
import pytest
import tensorflow as tf
from helpers.pairs import pairs
from helpers.properties import PROPERTIES
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_efsgd.privacy import accounting, clipping, error_feedback, grid, noise, private_step
from tf_efsgd.privacy import optimizer as optimizers
from tf_efsgd.privacy.mechanism import Mechanism

_C1, _C2, _SIGMA, _B = 0.7, 0.3, 1.3, 4


def _mechanism(**changes):
    values = {'l2_norm_clip': _C1, 'noise_multiplier': 0.0, 'residual_l2_norm_clip': _C2}
    return Mechanism(**{**values, 'error_feedback': 'hidden', **changes})


def _clip(vector, bound):
    return vector * min(1.0, bound / max(np.linalg.norm(vector), 1e-300))


def _dice_sgd(steps, noises):
    """The algorithm as published, in units of the sum, float64: yields v B of every step."""
    e = 0.0
    for gradients, w in zip(steps, noises):
        release = sum((_clip(g, _C1) for g in gradients), start=np.zeros(3)) + w
        release = release + _clip(e, _C2) if np.any(e) else release
        e = e + gradients.sum(axis=0) - (release - w)
        yield release


@functools.lru_cache
def _step(mechanism):
    """One step of the product, traced once: no record is the same as zeros here."""

    @tf.function
    def step(gradients, buffer, draws):
        sums = clipping.clip_and_sum([gradients], *mechanism.clips)
        v, buffer = private_step.release(
            mechanism, *sums, [buffer], float(_B), {'draws': [[draws]] * 2}
        )
        return v[0], buffer[0]

    return step


def _ours(mechanism, steps, draws=None):
    """v B of every step and the buffer behind it."""
    buffer = tf.zeros([3])
    for i, gradients in enumerate(steps):
        padded = np.zeros([6, 3], np.float32)
        padded[: len(gradients)] = gradients
        none = tf.zeros([3], tf.int64)
        v, buffer = _step(mechanism)(padded, buffer, none if draws is None else draws[i])
        yield v.numpy() * _B, buffer.numpy()


def _random_steps(seed, count=12):
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=[rng.integers(0, 5), 3]) * 10 ** rng.uniform(-2, 1) for _ in range(count)
    ]


@settings(PROPERTIES, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_it_is_the_published_algorithm(seed):
    steps = _random_steps(seed)
    normals = np.random.default_rng(seed).normal(size=[12, 3])
    draws = [tf.constant(np.round(grid.STDDEV * d), tf.int64) for d in normals]
    noises = [_SIGMA * _C1 * d for d in normals]
    mechanism = _mechanism(noise_multiplier=_SIGMA)
    for (ours, _), published in pairs(_ours(mechanism, steps, draws), _dice_sgd(steps, noises)):
        np.testing.assert_allclose(ours, published, atol=1e-4)


def _neighbours(seed):
    """Two sequences of batches: in the second, some have one more record."""
    rng = np.random.default_rng(seed)
    steps, canary = _random_steps(seed), rng.normal(size=[1, 3]) * 10 ** rng.uniform(-2, 4)
    sampled = rng.random(len(steps)) < 0.3
    more = [np.concatenate([g, canary]) if s else g for g, s in zip(steps, sampled)]
    return steps, more, sampled


@settings(PROPERTIES, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_step_moves_by_more_than_its_event_says(seed):
    steps, more, sampled = _neighbours(seed)
    both = pairs(_ours(_mechanism(), steps), _ours(_mechanism(), more))
    for ((one, _), (other, _)), is_in in pairs(both, sampled):
        moved = np.linalg.norm(other - one)
        assert moved <= (_C1 if is_in else 0.0) + 2 * _C2 + 1e-4


def test_a_record_comes_out_again_in_steps_that_do_not_sample_it():
    # Sampled in the first of many steps, with a gradient far above C1: C2 of it in each later one.
    steps = [np.zeros([0, 3])] * 6
    more = [np.array([[0.0, 50.0, 0.0]]), *steps[1:]]
    released = [v for v, _ in _ours(_mechanism(), more)]
    np.testing.assert_allclose(released[0], [0, _C1, 0], rtol=1e-6)
    for later in released[1:]:
        np.testing.assert_allclose(later, [0, _C2, 0], rtol=1e-5)


def test_the_event_is_the_unsampled_one_with_the_whole_sensitivity():
    mechanism = _mechanism(noise_multiplier=_SIGMA)
    unit = _SIGMA * _C1 / (_C1 + 2 * _C2)
    wanted = dp_accounting.GaussianDpEvent(grid.effective_noise_multiplier(unit, 9))
    assert mechanism.step_event(0.01, 9) == wanted
    assert 0.99 * unit < wanted.noise_multiplier < unit / (1 + 2**-7)
    # Of a person's images only what is clipped adds up: the buffer gives back C2 at most.
    of_person = _SIGMA * _C1 / (5 * _C1 + 2 * _C2)
    assert mechanism.unit_noise_multiplier(5) == pytest.approx(of_person)
    # Nothing that could be taken for amplified by sampling.
    assert mechanism.dp_event(9) == dp_accounting.NonPrivateDpEvent()
    assert mechanism.has_buffer and mechanism.hides_buffer and not mechanism.feeds_back
    private = _mechanism(noise_multiplier=_SIGMA, error_feedback='private')
    effective = grid.effective_noise_multiplier(_SIGMA, 18)  # Two numbers a parameter.
    assert private.step_event(0.01, 9) == accounting.step_event(0.01, effective)
    assert _mechanism().dp_event(9) == dp_accounting.NonPrivateDpEvent()


def test_all_its_noise_is_on_the_clipped_sum():
    mechanism = _mechanism(noise_multiplier=_SIGMA)
    assert mechanism.clipped_noise_stddev == pytest.approx(_SIGMA * _C1)
    draws = [tf.constant([524_352] * 3, tf.int64)]
    v, _ = next(iter(_ours(mechanism, [np.zeros([0, 3])], draws)))
    np.testing.assert_allclose(v, _SIGMA * _C1, rtol=1e-6)


def test_a_huge_gradient_does_not_overflow_the_buffer():
    mechanism = _mechanism()
    steps = [np.full([3, 3], 1e38), np.array([[np.nan, 1.0, 1.0]]), np.zeros([0, 3])]
    for v, buffer in _ours(mechanism, steps):
        assert np.all(np.isfinite(v)) and np.all(np.isfinite(buffer))
    # Nor does the square of a large one.
    for large in (2e19, 1e30, 3e38):
        delivered, _ = error_feedback.feed_back_hidden(
            [tf.constant([large, 0.0])], [tf.zeros([2])], _C2
        )
        np.testing.assert_allclose(delivered[0], [_C2, 0.0], rtol=1e-5)


def test_what_of_generated_images_arrives():
    clipped, residual = [tf.constant([1.0, 0.0])], [tf.constant([0.0, 9.0])]

    def arrives(mode, share=0.1):
        mechanism = _mechanism(error_feedback=mode, residual_share=share)
        return private_step.delivered_sums(mechanism, clipped, residual)[0].numpy().tolist()

    assert arrives('none') == arrives('private', 0.0) == [1.0, 0.0]
    assert arrives('private') == [1.0, 9.0]
    assert arrives('hidden') == pytest.approx([1.0, _C2])


def test_the_optimizer_keeps_the_buffer_and_two_replicas_agree(strategy):
    settings_ = dict(
        l2_norm_clip=_C1,
        noise_multiplier=_SIGMA,
        error_feedback='hidden',
        residual_l2_norm_clip=_C2,
        expected_batch_size=_B,
        learning_rate=1.0,
    )
    records = tf.constant([[3.0, 4.0], [0.3, 0.1], [9.0, -2.0], [0.0, 1.0]])

    def make():
        return optimizers.ErrorFeedbackDPKerasSGDOptimizer(**settings_), tf.Variable([0.0, 0.0])

    def step(optimizer, variable, rows, step_noise):
        sums = optimizer.clipped_sums(lambda row: tf.reduce_sum(row * variable), rows, [variable])
        v = optimizer.release(*sums, [variable], step_noise=step_noise)
        optimizer.apply_gradients([(v[0], variable)])

    key = noise.NoiseKey(11)
    noises = [key.next() for _ in range(3)]
    one, variable = make()
    for step_noise in noises:
        step(one, variable, records, step_noise)
    buffer = one.get_slot(variable, 'error_feedback').numpy()
    assert np.linalg.norm(buffer) > 1.0
    with strategy.scope():
        two, mirrored = make()

    @tf.function
    def share(step_noise):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        step(two, mirrored, records[replica::2], step_noise)

    for step_noise in noises:
        strategy.run(share, args=(step_noise,))
    for value in mirrored.values:
        np.testing.assert_allclose(value.numpy(), variable.numpy(), rtol=1e-5)
    for value in two.get_slot(mirrored, 'error_feedback').values:
        np.testing.assert_allclose(value.numpy(), buffer, rtol=1e-5)
