"""The whole private step against its definition, plain Keras and TF Privacy."""

import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.properties import PROPERTIES
from helpers.small_step import (
    ADAM,
    BATCH_SIZE,
    KEY,
    LEVEL,
    SGD,
    SHAPES,
    WAYS,
    X,
    Y,
    buffer_of,
    drop_in_step,
    fast_step,
    flat,
    loss_vector,
    make,
    make_variables,
    make_weights,
    random_gradients,
    release,
    scale_p_value,
    step_noise_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_privacy.privacy.optimizers import dp_optimizer_keras_vectorized

from tf_efsgd.privacy import clipping, grid, noise
from tf_efsgd.privacy.mechanism import Mechanism


def _unit_noise(step, purpose, shapes=SHAPES):
    """Of variables so small that their noise is drawn at once."""
    size = sum(math.prod(shape) for shape in shapes)
    drawn = noise.integers([size], step_noise=step_noise_of(KEY, step), purpose=purpose, variable=0)
    return drawn.numpy() / grid.STDDEV


def _rows(gradients):
    """Per-example gradients as one matrix [batch, all entries]."""
    flat = [np.reshape(g, [len(g), math.prod(g.shape[1:])]) for g in gradients]
    return np.concatenate(flat, axis=1)


class _Definition:
    """Section by section the definition, in float64 on flat vectors."""

    def __init__(self, c1, sigma, batch_size, c2, rho, beta, ce):
        self._args = c1, sigma, batch_size, c2, rho, beta, ce
        self.buffer = 0.0

    def step(self, rows, unit_clipped, unit_residual):
        """Returns (v, A, R)."""
        c1, sigma, batch_size, c2, rho, beta, ce = self._args
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        clipped = rows * np.minimum(1, c1 / lengths)
        cut = rows - clipped
        cut_lengths = np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-300)
        residual = cut * np.minimum(1, c2 / cut_lengths)
        a = clipped.sum(axis=0) + sigma / math.sqrt(1 - rho) * c1 * unit_clipped
        if rho == 0:
            return a / batch_size, a, 0.0
        r = residual.sum(axis=0) + sigma / math.sqrt(rho) * c2 * unit_residual
        owed = self.buffer + r / batch_size
        delivered = (1 - beta) * owed
        if ce is not None:
            delivered = delivered * min(1, ce / max(np.linalg.norm(delivered), 1e-300))
        self.buffer = owed - delivered
        return a / batch_size + delivered, a, r


def test_two_steps_by_hand():
    # C1 = 1, C2 = 2, B = 4, beta = 0.75, no noise, SGD of rate 1 from 0. Records (3, 4) and
    # (0.3, 0): c = (0.6, 0.8) and (0.3, 0), r = (1.2, 1.6) and 0.
    # u = R/B = (0.3, 0.4), d = u / 4 = (0.075, 0.1), E = (0.225, 0.3), A/B = (0.225, 0.2).
    optimizer = make(l2_norm_clip=1.0, residual_l2_norm_clip=2.0, feedback_decay=0.75)
    variables = [tf.Variable([0.0, 0.0])]
    v = release(optimizer, variables, [[[3.0, 4.0], [0.3, 0.0]]])
    np.testing.assert_allclose(v[0], [0.3, 0.3], rtol=1e-6)
    np.testing.assert_allclose(buffer_of(optimizer, variables)[0], [0.225, 0.3], rtol=1e-6)
    optimizer.apply_gradients(zip(v, variables))
    # An empty batch is a full step: u = E, d = E / 4 = (0.05625, 0.075) = v, E = (0.16875, 0.225).
    v = release(optimizer, variables, [np.zeros([0, 2])], step=1)
    np.testing.assert_allclose(v[0], [0.05625, 0.075], rtol=1e-6)
    np.testing.assert_allclose(buffer_of(optimizer, variables)[0], [0.16875, 0.225], rtol=1e-6)
    optimizer.apply_gradients(zip(v, variables))
    np.testing.assert_allclose(variables[0], [-0.35625, -0.375], rtol=1e-6)


@settings(PROPERTIES, max_examples=12)
@given(
    seed=st.integers(0, 2**32 - 1),
    sigma=st.sampled_from([0.0, 0.3, 2.0]),
    rho=st.sampled_from([0.0, 0.1, 0.7]),
    beta=st.sampled_from([0.0, 0.6, 0.9]),
    ce=st.sampled_from([None, 0.05, 10.0]),
    c1=st.floats(0.05, 5),
    c2=st.floats(0.05, 5),
)
def test_steps_follow_the_definition(seed, sigma, rho, beta, ce, c1, c2):
    optimizer = make(
        l2_norm_clip=c1,
        noise_multiplier=sigma,
        residual_l2_norm_clip=c2,
        residual_share=rho,
        feedback_decay=beta,
        feedback_l2_norm_clip=ce,
    )
    definition = _Definition(c1, sigma, BATCH_SIZE, c2, rho, beta, ce)
    variables, rng, moved = make_variables(), np.random.default_rng(seed), 0.0
    for step, batch in enumerate([3, 0, 1, 5]):
        gradients = random_gradients(rng, batch)
        v = release(optimizer, variables, gradients, step)
        optimizer.apply_gradients(zip(v, variables))
        expected, _, _ = definition.step(
            _rows(gradients), _unit_noise(step, 0), _unit_noise(step, 1)
        )
        moved = moved - expected
        atol = 1e-5 * (1 + sigma) * (c1 + c2)
        np.testing.assert_allclose(flat(v), expected, atol=atol)
        np.testing.assert_allclose(flat(variables), moved, atol=4 * atol)
        if rho:
            np.testing.assert_allclose(
                flat(buffer_of(optimizer, variables)), definition.buffer, atol=4 * atol
            )


@pytest.mark.parametrize('ce', [None, 0.2])
def test_everything_released_is_delivered_or_in_the_buffer(ce):
    optimizer = make(noise_multiplier=0.5, feedback_l2_norm_clip=ce)
    mechanism, variables = optimizer.mechanism, make_variables()
    taker, rng = noise.NoiseKey(KEY), np.random.default_rng(3)
    release = tf.function(
        lambda c, r, step_noise: optimizer.release(c, r, variables, step_noise=step_noise)
    )
    delivered = released = 0.0
    for step in range(50):
        gradients = [tf.constant(g, tf.float32) for g in random_gradients(rng, step % 4)]
        sums = clipping.clip_and_sum(gradients, 0.7, 0.3)
        delivered = delivered + flat(release(*sums, taker.next()))
        released = released + flat(sums[0]) + flat(sums[1])
        # sigma C1 / sqrt(1 - rho) and sigma C2 / sqrt(rho), here 0.3913 and 0.3354.
        released = released + 0.5 * 0.7 / math.sqrt(0.8) * _unit_noise(step, 0)
        released = released + 0.5 * 0.3 / math.sqrt(0.2) * _unit_noise(step, 1)
    total = delivered + flat(buffer_of(optimizer, variables))
    np.testing.assert_allclose(total, released / BATCH_SIZE, atol=2e-5)
    assert np.linalg.norm(delivered - released / BATCH_SIZE) > 0.01  # the buffer is no formality
    assert mechanism.feeds_back


_RECORDS = {
    'ordinary': [0.3, -0.2, 0.5, 2.0, 0.1, -1.0, 0.4],
    'huge': [1e30, -3e38, 1e30, 0.0, 1e20, 1.0, 0.0],
    'tiny': [1e-20, 0.0, 1e-30, 0.0, 0.0, 0.0, 0.0],
    'nan': [0.1, math.nan, 0.0, 0.0, 0.0, 1.0, 0.0],
    'inf': [0.1, 0.2, 0.0, -math.inf, 0.0, 1.0, math.inf],
}


@settings(PROPERTIES, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(0, 4),
    extra=st.sampled_from(sorted(_RECORDS)),
    place=st.integers(0, 4),
    rho=st.sampled_from([0.0, 0.05, 0.3, 0.9]),
    c1=st.sampled_from([0.01, 0.7, 40.0]),
    c2=st.sampled_from([0.02, 0.3, 70.0]),
    sigma=st.sampled_from([0.3, 1.7]),
)
def test_one_record_moves_the_scaled_release_by_at_most_one_over_sigma(
    seed, batch, extra, place, rho, c1, c2, sigma
):
    mechanism = Mechanism(
        l2_norm_clip=c1,
        noise_multiplier=sigma,
        residual_l2_norm_clip=c2,
        residual_share=rho,
    )
    rng = np.random.default_rng(seed)
    rows = _rows(random_gradients(rng, batch)) * 10.0 ** rng.integers(-3, 4)
    more = np.insert(rows, min(place, batch), _RECORDS[extra], axis=0)

    def stacked(matrix):
        parts = [tf.constant(matrix[:, :3], tf.float32), tf.constant(matrix[:, 3:], tf.float32)]
        clipped, residual = clipping.clip_and_sum(parts, c1, c2)
        scaled = [flat(clipped) / mechanism.clipped_noise_stddev]
        if mechanism.feeds_back:
            scaled.append(flat(residual) / mechanism.residual_noise_stddev)
        return np.concatenate(scaled)

    moved = np.linalg.norm(stacked(more) - stacked(rows))
    assert moved <= (1 + 1e-5) / sigma
    if extra in ('nan', 'inf'):
        assert moved == 0.0
    if extra == 'huge' and c1 > 0.01 * c2 and c2 > 0.01 * c1:
        assert moved >= (1 - 1e-5) / sigma  # the bound is the true sensitivity, not a loose one


@pytest.mark.parametrize('wrong', [2 / 3, 3 / 2])
def test_noise_of_a_release_has_the_right_scale_in_both_sums(wrong):
    # First step from an empty batch: v = A/B + (1 - beta) R/B and E = beta R/B.
    size = 20_000
    optimizer, variables = make(noise_multiplier=1.3), [tf.Variable(tf.zeros([size]))]
    v = flat(release(optimizer, variables, [np.zeros([0, size])]))
    residual = flat(buffer_of(optimizer, variables)) / 0.6 * BATCH_SIZE
    clipped = v * BATCH_SIZE - 0.4 * residual
    for sample, stddev in (
        (clipped, 1.3 * 0.7 / math.sqrt(1 - 0.2)),
        (residual, 1.3 * 0.3 / math.sqrt(0.2)),
    ):
        assert scale_p_value(sample, stddev) > LEVEL > scale_p_value(sample, stddev * wrong)
    r = np.corrcoef(clipped, residual)[0, 1] * math.sqrt(size)
    assert abs(r) < 5


@WAYS
@pytest.mark.parametrize('changes', [{'residual_share': 0.0}, {'error_feedback': 'none'}])
def test_without_a_residual_it_is_tf_privacys_dp_sgd(way, changes):
    ours, theirs = make_weights(), make_weights()
    reference = dp_optimizer_keras_vectorized.VectorizedDPKerasSGDOptimizer(
        l2_norm_clip=0.7, noise_multiplier=0.0, learning_rate=0.3
    )
    optimizer = make(expected_batch_size=None, learning_rate=0.3, **changes)
    for _ in range(2):
        way(optimizer, ours)
        reference.minimize(loss_vector(theirs), theirs, tape=tf.GradientTape(persistent=True))
    np.testing.assert_allclose(flat(ours), flat(theirs), rtol=1e-5)
    assert not optimizer.get_slot_names() or 'error_feedback' not in optimizer.get_slot_names()


def test_without_a_residual_the_noise_is_dp_sgds():
    gradients = random_gradients(np.random.default_rng(4), 3)
    released = [
        flat(release(make(noise_multiplier=1.1, **changes), make_variables(), gradients))
        for changes in ({'residual_share': 0.0}, {'error_feedback': 'none'})
    ]
    np.testing.assert_array_equal(*released)
    definition = _Definition(0.7, 1.1, BATCH_SIZE, 0.3, 0.0, 0.6, None)
    expected, _, _ = definition.step(_rows(gradients), _unit_noise(0, 0), None)
    np.testing.assert_allclose(released[0], expected, atol=1e-6)


@WAYS
@pytest.mark.parametrize(
    'cls, plain', [(SGD, tf.keras.optimizers.legacy.SGD), (ADAM, tf.keras.optimizers.legacy.Adam)]
)
def test_without_clip_and_noise_it_is_keras(way, cls, plain):
    ours, theirs = make_weights(), make_weights()
    optimizer = make(cls, learning_rate=0.05, l2_norm_clip=1e9, expected_batch_size=6)
    reference = plain(learning_rate=0.05)
    for _ in range(3):
        way(optimizer, ours)
        reference.minimize(lambda: tf.reduce_mean(loss_vector(theirs)()), theirs)
    np.testing.assert_allclose(flat(ours), flat(theirs), rtol=1e-4)


@pytest.mark.parametrize(
    'cls, plain', [(SGD, tf.keras.optimizers.legacy.SGD), (ADAM, tf.keras.optimizers.legacy.Adam)]
)
def test_compile_and_fit_without_clip_and_noise_is_keras(cls, plain):
    def fitted(optimizer, reduction):
        tf.keras.utils.set_random_seed(5)
        model = tf.keras.Sequential(
            [tf.keras.layers.Dense(4, activation='tanh'), tf.keras.layers.Dense(2)]
        )
        model.compile(optimizer, tf.keras.losses.MeanSquaredError(reduction=reduction))
        model.fit(X, Y, batch_size=3, epochs=3, shuffle=False, verbose=0)
        return flat(model.get_weights())

    ours = fitted(make(cls, learning_rate=0.05, l2_norm_clip=1e9, expected_batch_size=None), 'none')
    np.testing.assert_allclose(
        ours, fitted(plain(learning_rate=0.05), 'sum_over_batch_size'), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize('expected_batch_size', [None, 5])
def test_both_ways_give_the_same_update(expected_batch_size):
    moved = []
    for way in (drop_in_step, fast_step):
        weights = make_weights()
        optimizer = make(expected_batch_size=expected_batch_size, learning_rate=0.3)
        for _ in range(3):
            way(optimizer, weights)
        moved.append(flat(weights) - flat(make_weights()))
    np.testing.assert_allclose(*moved, rtol=1e-4, atol=1e-6)


def test_without_expected_batch_size_the_batchs_own_size_divides():
    gradients = [np.float32([[0.1], [0.2], [0.3]])]
    for given_size, divisor in ((None, 3.0), (5, 5.0)):
        optimizer = make(expected_batch_size=given_size, residual_share=0.0)
        variables = [tf.Variable([0.0])]
        sums = clipping.clip_and_sum([tf.constant(g) for g in gradients], 0.7, 0.3)
        v = optimizer.release(
            *sums,
            variables,
            step_noise=step_noise_of(KEY, 0),
            batch_size=tf.constant(3.0),
        )
        assert v[0].numpy()[0] == pytest.approx(0.6 / divisor)
    with pytest.raises(ValueError, match='expected_batch_size'):
        release(make(expected_batch_size=None), [tf.Variable([0.0])], gradients)
