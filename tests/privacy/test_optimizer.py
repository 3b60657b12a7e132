"""Tests of the whole private step against the definition, plain Keras and TF Privacy."""

import copy
import dataclasses
import math
import pickle

import dp_accounting
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import stats
from tensorflow_privacy.privacy.optimizers import dp_optimizer_keras_vectorized

from tf_efsgd.privacy import clipping, grid, noise
from tf_efsgd.privacy import optimizer as optimizers
from tf_efsgd.privacy.mechanism import Mechanism

_SGD = optimizers.ErrorFeedbackDPKerasSGDOptimizer
_ADAM = optimizers.ErrorFeedbackDPKerasAdamOptimizer
_KEY = 0x1234_5678_9ABC_DEF1
_SHAPES = ([3], [2, 2])
_BATCH_SIZE = 4
_SETTINGS = {
    'l2_norm_clip': 0.7,
    'noise_multiplier': 0.0,
    'expected_batch_size': _BATCH_SIZE,
    'residual_l2_norm_clip': 0.3,
    'residual_share': 0.2,
    'feedback_decay': 0.6,
}
# Fixed keys make the draws fixed; at this level another key fails one time in a million.
_LEVEL = 1e-6
# The same examples every time, and a failure is shown as it is: shrinking takes minutes.
_PROPERTIES = settings(deadline=None, derandomize=True, phases=[Phase.generate])


def _make(cls=_SGD, learning_rate=1.0, **changes):
    return cls(**{**_SETTINGS, **changes}, learning_rate=learning_rate)


def _variables(shapes=_SHAPES):
    return [tf.Variable(tf.zeros(shape)) for shape in shapes]


def _step_noise(key, step):
    return {'key': noise.NoiseKey(key).key, 'step': tf.constant(step, tf.uint64)}


def _release(optimizer, variables, gradients, step=0, key=_KEY):
    """`release` of per-example gradients, [batch, *shape] per variable."""
    mechanism = optimizer.mechanism
    sums = clipping.clip_and_sum(
        [tf.constant(g, tf.float32) for g in gradients],
        mechanism.l2_norm_clip,
        mechanism.residual_l2_norm_clip,
    )
    return optimizer.release(
        *sums,
        variables,
        step_noise=_step_noise(key, step),
    )


def _buffer(optimizer, variables):
    return [optimizer.get_slot(v, 'error_feedback') for v in variables]


def _random_gradients(rng, batch, shapes=_SHAPES):
    rows = np.exp(rng.normal(size=batch))
    return [rng.normal(size=[batch, *s]) * rows.reshape([-1] + [1] * len(s)) for s in shapes]


def _unit_noise(step, purpose, shapes=_SHAPES):
    """Of variables so small that their noise is drawn at once."""
    size = sum(math.prod(shape) for shape in shapes)
    drawn = noise.integers([size], step_noise=_step_noise(_KEY, step), purpose=purpose, variable=0)
    return drawn.numpy() / grid.STDDEV


def _flat(tensors):
    return np.concatenate([np.ravel(np.float64(t)) for t in tensors])


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
    optimizer = _make(l2_norm_clip=1.0, residual_l2_norm_clip=2.0, feedback_decay=0.75)
    variables = [tf.Variable([0.0, 0.0])]
    v = _release(optimizer, variables, [[[3.0, 4.0], [0.3, 0.0]]])
    np.testing.assert_allclose(v[0], [0.3, 0.3], rtol=1e-6)
    np.testing.assert_allclose(_buffer(optimizer, variables)[0], [0.225, 0.3], rtol=1e-6)
    optimizer.apply_gradients(zip(v, variables))
    # An empty batch is a full step: u = E, d = E / 4 = (0.05625, 0.075) = v, E = (0.16875, 0.225).
    v = _release(optimizer, variables, [np.zeros([0, 2])], step=1)
    np.testing.assert_allclose(v[0], [0.05625, 0.075], rtol=1e-6)
    np.testing.assert_allclose(_buffer(optimizer, variables)[0], [0.16875, 0.225], rtol=1e-6)
    optimizer.apply_gradients(zip(v, variables))
    np.testing.assert_allclose(variables[0], [-0.35625, -0.375], rtol=1e-6)


@settings(_PROPERTIES, max_examples=12)
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
    optimizer = _make(
        l2_norm_clip=c1,
        noise_multiplier=sigma,
        residual_l2_norm_clip=c2,
        residual_share=rho,
        feedback_decay=beta,
        feedback_l2_norm_clip=ce,
    )
    definition = _Definition(c1, sigma, _BATCH_SIZE, c2, rho, beta, ce)
    variables, rng, moved = _variables(), np.random.default_rng(seed), 0.0
    for step, batch in enumerate([3, 0, 1, 5]):
        gradients = _random_gradients(rng, batch)
        v = _release(optimizer, variables, gradients, step)
        optimizer.apply_gradients(zip(v, variables))
        expected, _, _ = definition.step(
            _rows(gradients), _unit_noise(step, 0), _unit_noise(step, 1)
        )
        moved = moved - expected
        atol = 1e-5 * (1 + sigma) * (c1 + c2)
        np.testing.assert_allclose(_flat(v), expected, atol=atol)
        np.testing.assert_allclose(_flat(variables), moved, atol=4 * atol)
        if rho:
            np.testing.assert_allclose(
                _flat(_buffer(optimizer, variables)), definition.buffer, atol=4 * atol
            )


@pytest.mark.parametrize('ce', [None, 0.2])
def test_everything_released_is_delivered_or_in_the_buffer(ce):
    optimizer = _make(noise_multiplier=0.5, feedback_l2_norm_clip=ce)
    mechanism, variables = optimizer.mechanism, _variables()
    taker, rng = noise.NoiseKey(_KEY), np.random.default_rng(3)
    release = tf.function(
        lambda c, r, step_noise: optimizer.release(c, r, variables, step_noise=step_noise)
    )
    delivered = released = 0.0
    for step in range(50):
        gradients = [tf.constant(g, tf.float32) for g in _random_gradients(rng, step % 4)]
        sums = clipping.clip_and_sum(gradients, 0.7, 0.3)
        delivered = delivered + _flat(release(*sums, taker.next()))
        released = released + _flat(sums[0]) + _flat(sums[1])
        # sigma C1 / sqrt(1 - rho) and sigma C2 / sqrt(rho), here 0.3913 and 0.3354.
        released = released + 0.5 * 0.7 / math.sqrt(0.8) * _unit_noise(step, 0)
        released = released + 0.5 * 0.3 / math.sqrt(0.2) * _unit_noise(step, 1)
    total = delivered + _flat(_buffer(optimizer, variables))
    np.testing.assert_allclose(total, released / _BATCH_SIZE, atol=2e-5)
    assert np.linalg.norm(delivered - released / _BATCH_SIZE) > 0.01  # the buffer is no formality
    assert mechanism.feeds_back


_RECORDS = {
    'ordinary': [0.3, -0.2, 0.5, 2.0, 0.1, -1.0, 0.4],
    'huge': [1e30, -3e38, 1e30, 0.0, 1e20, 1.0, 0.0],
    'tiny': [1e-20, 0.0, 1e-30, 0.0, 0.0, 0.0, 0.0],
    'nan': [0.1, math.nan, 0.0, 0.0, 0.0, 1.0, 0.0],
    'inf': [0.1, 0.2, 0.0, -math.inf, 0.0, 1.0, math.inf],
}


@settings(_PROPERTIES, max_examples=25)
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
    rows = _rows(_random_gradients(rng, batch)) * 10.0 ** rng.integers(-3, 4)
    more = np.insert(rows, min(place, batch), _RECORDS[extra], axis=0)

    def stacked(matrix):
        parts = [tf.constant(matrix[:, :3], tf.float32), tf.constant(matrix[:, 3:], tf.float32)]
        clipped, residual = clipping.clip_and_sum(parts, c1, c2)
        scaled = [_flat(clipped) / mechanism.clipped_noise_stddev]
        if mechanism.feeds_back:
            scaled.append(_flat(residual) / mechanism.residual_noise_stddev)
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
    optimizer, variables = _make(noise_multiplier=1.3), [tf.Variable(tf.zeros([size]))]
    v = _flat(_release(optimizer, variables, [np.zeros([0, size])]))
    residual = _flat(_buffer(optimizer, variables)) / 0.6 * _BATCH_SIZE
    clipped = v * _BATCH_SIZE - 0.4 * residual
    for sample, stddev in (
        (clipped, 1.3 * 0.7 / math.sqrt(1 - 0.2)),
        (residual, 1.3 * 0.3 / math.sqrt(0.2)),
    ):
        assert _scale_p_value(sample, stddev) > _LEVEL > _scale_p_value(sample, stddev * wrong)
    r = np.corrcoef(clipped, residual)[0, 1] * math.sqrt(size)
    assert abs(r) < 5


def _scale_p_value(sample, stddev):
    statistic = np.sum(np.square(sample)) / stddev**2
    tail = stats.chi2(sample.size)
    return 2 * min(tail.cdf(statistic), tail.sf(statistic))


# A small problem for whole steps: least squares on six records.

_X = np.float32(np.random.default_rng(1).normal(size=[6, 3]))
_Y = np.float32(np.random.default_rng(2).normal(size=[6, 2]) * 3)


def _weights():
    return [tf.Variable([[0.3, -0.2], [0.1, 0.5], [-0.4, 0.2]]), tf.Variable([0.1, -0.3])]


def _loss_of_record(weights):
    def loss(record):
        x, y = record
        output = tf.linalg.matvec(weights[0], x, transpose_a=True) + weights[1]
        return tf.reduce_sum(tf.square(output - y))

    return loss


def _loss_vector(weights, x=_X, y=_Y):
    return lambda: tf.reduce_sum(tf.square(tf.matmul(x, weights[0]) + weights[1] - y), axis=1)


def _drop_in_step(optimizer, weights, x=_X, y=_Y, key=None, step=0):
    del key, step
    optimizer.minimize(_loss_vector(weights, x, y), weights, tape=tf.GradientTape(persistent=True))


def _fast_step(optimizer, weights, x=_X, y=_Y, key=None, step=0):
    sums = optimizer.clipped_sums(_loss_of_record(weights), (x, y), weights)
    v = optimizer.release(
        *sums,
        weights,
        step_noise={
            'key': noise.NoiseKey(_KEY).key if key is None else key,
            'step': tf.cast(step, tf.uint64),
        },
        batch_size=tf.cast(tf.shape(x)[0], tf.float32),
    )
    optimizer.apply_gradients(zip(v, weights))


_WAYS = pytest.mark.parametrize('way', [_drop_in_step, _fast_step])


@_WAYS
@pytest.mark.parametrize('changes', [{'residual_share': 0.0}, {'error_feedback': 'none'}])
def test_without_a_residual_it_is_tf_privacys_dp_sgd(way, changes):
    ours, theirs = _weights(), _weights()
    reference = dp_optimizer_keras_vectorized.VectorizedDPKerasSGDOptimizer(
        l2_norm_clip=0.7, noise_multiplier=0.0, learning_rate=0.3
    )
    optimizer = _make(expected_batch_size=None, learning_rate=0.3, **changes)
    for _ in range(2):
        way(optimizer, ours)
        reference.minimize(_loss_vector(theirs), theirs, tape=tf.GradientTape(persistent=True))
    np.testing.assert_allclose(_flat(ours), _flat(theirs), rtol=1e-5)
    assert not optimizer.get_slot_names() or 'error_feedback' not in optimizer.get_slot_names()


def test_without_a_residual_the_noise_is_dp_sgds():
    gradients = _random_gradients(np.random.default_rng(4), 3)
    released = [
        _flat(_release(_make(noise_multiplier=1.1, **changes), _variables(), gradients))
        for changes in ({'residual_share': 0.0}, {'error_feedback': 'none'})
    ]
    np.testing.assert_array_equal(*released)
    definition = _Definition(0.7, 1.1, _BATCH_SIZE, 0.3, 0.0, 0.6, None)
    expected, _, _ = definition.step(_rows(gradients), _unit_noise(0, 0), None)
    np.testing.assert_allclose(released[0], expected, atol=1e-6)


@_WAYS
@pytest.mark.parametrize(
    'cls, plain', [(_SGD, tf.keras.optimizers.legacy.SGD), (_ADAM, tf.keras.optimizers.legacy.Adam)]
)
def test_without_clip_and_noise_it_is_keras(way, cls, plain):
    ours, theirs = _weights(), _weights()
    optimizer = _make(cls, learning_rate=0.05, l2_norm_clip=1e9, expected_batch_size=6)
    reference = plain(learning_rate=0.05)
    for _ in range(3):
        way(optimizer, ours)
        reference.minimize(lambda: tf.reduce_mean(_loss_vector(theirs)()), theirs)
    np.testing.assert_allclose(_flat(ours), _flat(theirs), rtol=1e-4)


@pytest.mark.parametrize(
    'cls, plain', [(_SGD, tf.keras.optimizers.legacy.SGD), (_ADAM, tf.keras.optimizers.legacy.Adam)]
)
def test_compile_and_fit_without_clip_and_noise_is_keras(cls, plain):
    def fitted(optimizer, reduction):
        tf.keras.utils.set_random_seed(5)
        model = tf.keras.Sequential(
            [tf.keras.layers.Dense(4, activation='tanh'), tf.keras.layers.Dense(2)]
        )
        model.compile(optimizer, tf.keras.losses.MeanSquaredError(reduction=reduction))
        model.fit(_X, _Y, batch_size=3, epochs=3, shuffle=False, verbose=0)
        return _flat(model.get_weights())

    ours = fitted(
        _make(cls, learning_rate=0.05, l2_norm_clip=1e9, expected_batch_size=None), 'none'
    )
    np.testing.assert_allclose(
        ours, fitted(plain(learning_rate=0.05), 'sum_over_batch_size'), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize('expected_batch_size', [None, 5])
def test_both_ways_give_the_same_update(expected_batch_size):
    moved = []
    for way in (_drop_in_step, _fast_step):
        weights = _weights()
        optimizer = _make(expected_batch_size=expected_batch_size, learning_rate=0.3)
        for _ in range(3):
            way(optimizer, weights)
        moved.append(_flat(weights) - _flat(_weights()))
    np.testing.assert_allclose(*moved, rtol=1e-4, atol=1e-6)


def test_without_expected_batch_size_the_batchs_own_size_divides():
    gradients = [np.float32([[0.1], [0.2], [0.3]])]
    for given_size, divisor in ((None, 3.0), (5, 5.0)):
        optimizer = _make(expected_batch_size=given_size, residual_share=0.0)
        variables = [tf.Variable([0.0])]
        sums = clipping.clip_and_sum([tf.constant(g) for g in gradients], 0.7, 0.3)
        v = optimizer.release(
            *sums,
            variables,
            step_noise=_step_noise(_KEY, 0),
            batch_size=tf.constant(3.0),
        )
        assert v[0].numpy()[0] == pytest.approx(0.6 / divisor)
    with pytest.raises(ValueError, match='expected_batch_size'):
        _release(_make(expected_batch_size=None), [tf.Variable([0.0])], gradients)


# Several replicas.


def _on_two(strategy, step, make_weights, **changes):
    """Weights and optimizer on both replicas, and `step(optimizer, weights, *args)` compiled."""
    with strategy.scope():
        weights, optimizer = make_weights(), _make(**changes)

    @tf.function
    def compiled(*args):
        strategy.run(lambda *of_replica: step(optimizer, weights, *of_replica), args=args)

    return weights, optimizer, compiled


def _shares(strategy, array, sizes):
    parts = np.split(array, np.cumsum(sizes)[:-1])
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    )


def _copies(strategy, variables):
    """One flat vector per replica."""
    return [
        _flat(copies)
        for copies in zip(*(strategy.experimental_local_results(v) for v in variables))
    ]


@_WAYS
@pytest.mark.parametrize('sizes', [(4, 2), (6, 0)])
@pytest.mark.parametrize('expected_batch_size', [None, 5])
def test_two_replicas_give_the_one_device_update(strategy, way, sizes, expected_batch_size):
    changes = {'expected_batch_size': expected_batch_size, 'learning_rate': 0.3}
    weights, optimizer, step = _on_two(strategy, way, _weights, **changes)
    one_weights, one_optimizer = _weights(), _make(**changes)
    x, y = (_shares(strategy, array, sizes) for array in (_X, _Y))
    for _ in range(2):
        step(x, y)
        way(one_optimizer, one_weights)
    for variables, one in (
        (weights, one_weights),
        (_buffer(optimizer, weights), _buffer(one_optimizer, one_weights)),
    ):
        first, second = _copies(strategy, variables)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, _flat(one), atol=1e-5)


_SIZE = 20_000


def _wide():
    return [tf.Variable(tf.zeros([_SIZE]))]


def _noise_step(optimizer, weights, step_noise):
    """A step on no records, through `release`."""
    nothing = [tf.zeros([_SIZE])]
    v = optimizer.release(nothing, nothing, weights, step_noise=step_noise)
    optimizer.apply_gradients(zip(v, weights))


def _drop_in_noise_step(optimizer, weights):
    optimizer.minimize(lambda: 0.0 * weights[0][:2], weights, tape=tf.GradientTape(persistent=True))


# Variance of v after one step on no records: that of A/B + (1 - beta) R/B, C1 = 0.7, C2 = 0.3.
_ONE_DEVICE_STDDEV = (
    math.sqrt((1.3 * 0.7) ** 2 / 0.8 + 0.4**2 * (1.3 * 0.3) ** 2 / 0.2) / _BATCH_SIZE
)


@pytest.mark.parametrize('drop_in', [False, True])
def test_two_replicas_add_one_noise(strategy, drop_in):
    run = _drop_in_noise_step if drop_in else _noise_step
    weights, optimizer, step = _on_two(strategy, run, _wide, noise_multiplier=1.3)
    key = noise.NoiseKey(_KEY)
    if drop_in:
        optimizer._own_randomness._key.assign(tf.bitcast(key.key, tf.int64))
        step()
    else:
        step(key.next())
    first, second = _copies(strategy, weights)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(*_copies(strategy, _buffer(optimizer, weights)))
    assert _scale_p_value(first, _ONE_DEVICE_STDDEV) > _LEVEL
    # Noise of every replica summed, or averaged, would be sqrt(2) too wide or too narrow.
    for wrong in (2 / 3, 3 / 2, math.sqrt(2), math.sqrt(1 / 2)):
        assert _scale_p_value(first * wrong, _ONE_DEVICE_STDDEV) < _LEVEL
    one_weights, one_optimizer = _wide(), _make(noise_multiplier=1.3)
    _noise_step(one_optimizer, one_weights, _step_noise(_KEY, 0))
    np.testing.assert_allclose(first, _flat(one_weights), rtol=1e-5, atol=1e-7)


def test_every_replica_draws_rows_of_its_own_for_its_records(strategy):
    step_noise, shapes = noise.NoiseKey(7).next(), {'a': [5], 'b': [2, 3]}

    @tf.function
    def draw(step_noise):
        return strategy.run(
            lambda: optimizers.draw_for_records(shapes, tf.constant(4), step_noise, 1)
        )

    drawn = draw(step_noise)
    numbers = []
    for variable, (name, shape) in enumerate(shapes.items()):
        for replica, rows in enumerate(strategy.experimental_local_results(drawn[name])):
            wanted = noise.normals_of_records(
                4, shape, step_noise=step_noise, variable=variable, replica=replica, first_row=1
            )
            np.testing.assert_array_equal(rows, wanted)
            numbers.append(np.ravel(rows))
    numbers = np.concatenate(numbers)
    assert len(np.unique(numbers)) == len(numbers) == 2 * 4 * 11


def test_a_noise_of_every_replicas_own_would_be_seen(strategy, monkeypatch):
    real = noise.integers

    def of_replica(*args, step_noise, **kwargs):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        key = step_noise['key'] + tf.cast(replica, tf.uint64)
        return real(*args, step_noise={**step_noise, 'key': key}, **kwargs)

    monkeypatch.setattr(noise, 'integers', of_replica)
    weights, _, step = _on_two(strategy, _noise_step, _wide, noise_multiplier=1.3)
    key = noise.NoiseKey(_KEY)
    step(key.next())
    first, second = _copies(strategy, weights)
    assert np.abs(first - second).max() > _ONE_DEVICE_STDDEV


def test_an_optimizer_made_outside_the_scope_is_refused(strategy):
    optimizer = _make(noise_multiplier=1.3)
    with strategy.scope():
        weights = _wide()
    with pytest.raises(ValueError, match='outside the scope'):
        strategy.run(_drop_in_noise_step, args=(optimizer, weights))


# State.


def test_the_buffer_is_in_the_checkpoint_and_comes_back(tmp_path):
    variables, optimizer = _variables(), _make(noise_multiplier=0.5)
    gradients = _random_gradients(np.random.default_rng(4), 3)
    optimizer.apply_gradients(zip(_release(optimizer, variables, gradients), variables))
    saved = tf.train.Checkpoint(optimizer=optimizer, variables=variables)
    path = saved.write(str(tmp_path / 'checkpoint'))
    names = [name for name, _ in tf.train.list_variables(path)]
    assert sum('error_feedback' in name for name in names) == len(variables)

    again, other = _variables(), _make(noise_multiplier=0.5)
    tf.train.Checkpoint(optimizer=other, variables=again).read(path)
    released = [
        _flat(_release(o, v, gradients, step=1))
        for o, v in ((optimizer, variables), (other, again))
    ]
    np.testing.assert_array_equal(*released)
    np.testing.assert_array_equal(
        _flat(_buffer(optimizer, variables)), _flat(_buffer(other, again))
    )


def test_keys_are_nowhere_in_what_is_saved(tmp_path):
    weights, optimizer = _weights(), _make(noise_multiplier=0.5)
    _drop_in_step(optimizer, weights)
    key = int(optimizer._own_randomness._key)
    checkpoint = tf.train.Checkpoint(optimizer=optimizer, weights=weights)
    path = checkpoint.write(str(tmp_path / 'checkpoint'))
    assert not [name for name, _ in tf.train.list_variables(path) if 'secret' in name]
    for file in tmp_path.iterdir():
        assert key.to_bytes(8, 'little', signed=True) not in file.read_bytes()
    assert not [v.name for v in optimizer.variables() if 'secret' in v.name]
    for value in optimizer.get_weights():
        assert not np.any(np.equal(value, key))
    assert str(key) not in str(optimizer.get_config())
    with pytest.raises(TypeError, match='never pickled or copied'):
        copy.deepcopy(optimizer)


def test_every_optimizer_has_its_own_key():
    one = _make(noise_multiplier=1.3)
    others = [_make(noise_multiplier=1.3), _SGD.from_config(one.get_config())]
    moved = []
    for optimizer in (one, *others):
        weights = _weights()
        _drop_in_step(optimizer, weights)
        _drop_in_step(optimizer, weights)
        moved.append(_flat(weights))
    assert len({m.tobytes() for m in moved}) == 3


@pytest.mark.parametrize('cls', [_SGD, _ADAM])
def test_config_round_trip(cls):
    optimizer = _make(
        cls, noise_multiplier=1.3, num_microbatches=6, feedback_l2_norm_clip=0.4, learning_rate=0.3
    )
    again = cls.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert again.mechanism == optimizer.mechanism
    assert again.expected_batch_size == _BATCH_SIZE
    assert isinstance(again, optimizers.PrivateOptimizer)


# What is claimed and what is refused.


def test_dp_event():
    non_private = dp_accounting.NonPrivateDpEvent()
    optimizer = _make(noise_multiplier=1.3)
    # Before a step 2^20 parameters are counted, each in both sums.
    effective = grid.effective_noise_multiplier(1.3, 2**21)
    assert optimizer.dp_event == dp_accounting.GaussianDpEvent(effective)
    assert 1.27 < effective < 1.3 / (1 + 2**-7)
    few = _variables()
    _release(optimizer, few, [np.zeros([1, *v.shape]) for v in few])
    assert optimizer.dp_event == dp_accounting.GaussianDpEvent(effective)
    many = [tf.Variable(tf.zeros([2**20 + 5]))]
    with pytest.warns(UserWarning, match='read when it counted 1048576 .* Received: 1048581'):
        _release(optimizer, many, [np.zeros([1, 2**20 + 5])])
    effective = grid.effective_noise_multiplier(1.3, 2**21 + 10)
    assert optimizer.dp_event == dp_accounting.GaussianDpEvent(effective)
    assert optimizer.dp_event_of(few) == dp_accounting.GaussianDpEvent(effective)
    assert _make(noise_multiplier=1.3).dp_event_of(many) == optimizer.dp_event
    assert _make(noise_multiplier=0.0).dp_event == non_private
    assert _make(noise_multiplier=0.0).dp_event_of(many) == non_private
    assert _make(noise_multiplier=1.3, expected_batch_size=None).dp_event == non_private
    assert _make(noise_multiplier=1.3, error_feedback='hidden').dp_event == non_private


def test_slots_that_are_restored_say_how_many_parameters_there_are():
    many = [tf.Variable(tf.zeros([2**20 + 5]))]
    optimizer = _make(noise_multiplier=1.3)
    # As Keras does when it loads a model, before any step.
    optimizer._create_all_weights(many)
    assert optimizer.dp_event == _make(noise_multiplier=1.3).dp_event_of(many)
    assert optimizer.dp_event != _make(noise_multiplier=1.3).dp_event


@pytest.mark.parametrize(
    'name, values',
    [
        ('l2_norm_clip', [0.0, -0.3, math.inf, math.nan]),
        ('noise_multiplier', [-0.3, math.inf, math.nan]),
        ('error_feedback', ['published', '', None]),
        ('residual_l2_norm_clip', [0.0, -0.3, math.inf, math.nan]),
        ('residual_share', [-0.1, 1.0, 1.3, math.nan]),
        ('feedback_decay', [-0.1, 1.0, 1.3, math.nan]),
        ('feedback_l2_norm_clip', [0.0, -0.3, math.inf, math.nan]),
        ('expected_batch_size', [0, -4]),
    ],
)
def test_impossible_settings_are_refused_by_name(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f'^{name} must be .*Received: {value!r}'):
            _make(**{name: value})


def test_the_classes_are_found_by_their_names():
    for cls, base in ((_SGD, 'SGD'), (_ADAM, 'Adam')):
        assert pickle.loads(pickle.dumps(cls)) is cls
        assert cls.__name__ == cls.__qualname__ == f'ErrorFeedbackDPKeras{base}Optimizer'
        assert issubclass(cls, getattr(tf.keras.optimizers.legacy, base))
        assert cls.__doc__.startswith(
            f'Error-feedback DP-SGD over `tf.keras.optimizers.legacy.{base}`'
        )
        assert f'tf_efsgd.{cls.__name__}(' in cls.__doc__


def test_the_mechanism_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        _make().mechanism.l2_norm_clip = 7.0


def test_microbatches_are_refused_unless_of_one_record():
    for allowed in (None, 6):
        _drop_in_step(_make(num_microbatches=allowed), _weights())
    for refused in (1, 2, 3, 12):
        with pytest.raises(ValueError, match=f'num_microbatches={refused}, batch size 6'):
            _drop_in_step(_make(num_microbatches=refused), _weights())


def test_losses_and_calls_that_bypass_the_mechanism_are_refused():
    weights = _weights()
    tape = tf.GradientTape(persistent=True)
    optimizer = _make()
    with pytest.raises(ValueError, match=r'one value per example.*Received: shape \(\)'):
        optimizer.minimize(lambda: tf.reduce_mean(_loss_vector(weights)()), weights, tape=tape)
    with pytest.raises(ValueError, match='one number'):
        optimizer.clipped_sums(lambda r: r[0][:2] * weights[1], (_X, _Y), weights)
    with pytest.raises(ValueError, match='tape'):
        optimizer.minimize(_loss_vector(weights)(), weights)
    with pytest.raises(ValueError, match='grad_loss'):
        optimizer.minimize(_loss_vector(weights), weights, grad_loss=tf.ones(6), tape=tape)
    with pytest.raises(ValueError, match='get_gradients'):
        optimizer.get_gradients(_loss_vector(weights), weights)
    with pytest.raises(ValueError, match='private mechanism'):
        optimizer.apply_gradients([(tf.zeros_like(w), w) for w in weights])
    np.testing.assert_array_equal(_flat(weights), _flat(_weights()))


def test_one_release_pays_for_one_update():
    weights, optimizer = _weights(), _make()
    optimizer.minimize(_loss_vector(weights), weights)
    with pytest.raises(ValueError, match='private mechanism'):
        optimizer.apply_gradients([(tf.ones_like(w), w) for w in weights])


@pytest.mark.parametrize('cls', [tf.keras.optimizers.SGD, object, 'SGD', _SGD])
def test_other_base_classes_are_refused(cls):
    with pytest.raises(TypeError, match='legacy'):
        optimizers.make_error_feedback_optimizer_class(cls)


@pytest.mark.parametrize(
    'way',
    [
        _fast_step,
        pytest.param(
            _drop_in_step,
            marks=pytest.mark.xfail(
                strict=True,
                reason='the jacobian of a loss vector multiplies the other records by 0, and '
                '0 * NaN is NaN: one record that is not finite empties the whole batch',
            ),
        ),
    ],
)
@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_a_record_that_is_not_finite_touches_no_other(way, bad):
    x, y = np.r_[_X, np.float32([[bad] * 3])], np.r_[_Y, np.float32([[1.0, 2.0]])]
    weights, clean = _weights(), _weights()
    way(_make(), weights, x, y)
    way(_make(), clean)
    np.testing.assert_allclose(_flat(weights), _flat(clean), rtol=1e-5)


# Keras' own ways to save, and to compute in fewer bits.


def _fitted_classifier(optimizer, **settings):
    tf.keras.utils.set_random_seed(5)
    model = tf.keras.Sequential(
        [tf.keras.layers.Input([3]), tf.keras.layers.Dense(4), tf.keras.layers.Dense(2)]
    )
    model.compile(optimizer, tf.keras.losses.MeanSquaredError(reduction='none'), **settings)
    model.fit(_X, _Y, batch_size=3, epochs=3, verbose=0)
    return model


def _saved_and_loaded(optimizer, path):
    model = _fitted_classifier(optimizer)
    model.save(path)
    name = type(optimizer).__name__
    return model, tf.keras.models.load_model(path, custom_objects={name: type(optimizer)})


@pytest.mark.parametrize('error_feedback', ['private', 'none', 'hidden'])
@pytest.mark.parametrize('cls', [_SGD, _ADAM])
def test_an_hdf5_file_keeps_the_state_of_the_optimizer(tmp_path, cls, error_feedback):
    optimizer = _make(cls, noise_multiplier=0.5, error_feedback=error_feedback, learning_rate=0.1)
    _, again = _saved_and_loaded(optimizer, tmp_path / 'model.h5')
    assert isinstance(again.optimizer, cls)
    assert int(again.optimizer.iterations) == int(optimizer.iterations) == 6
    for one, other in zip(optimizer.get_weights(), again.optimizer.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    if error_feedback == 'private':
        assert np.all(_flat(_buffer(again.optimizer, again.trainable_variables)) != 0)


def test_a_saved_model_trains_again(tmp_path):
    # Of its own legacy optimizers, too, Keras keeps nothing but the settings here.
    model, again = _saved_and_loaded(_make(noise_multiplier=0.5), tmp_path / 'saved_model')
    np.testing.assert_array_equal(_flat(again.get_weights()), _flat(model.get_weights()))
    assert again.optimizer.mechanism == model.optimizer.mechanism
    again.fit(_X, _Y, batch_size=3, verbose=0)
    assert int(again.optimizer.iterations) == 2


def test_keras_loss_scaling_is_refused_by_name():
    message = 'LossScaleOptimizer multiplies the loss before .* clips it.*mixed_float16'
    with pytest.raises(ValueError, match=message):
        tf.keras.mixed_precision.LossScaleOptimizer(_make())
    tf.keras.mixed_precision.set_global_policy('mixed_float16')
    try:
        with pytest.raises(ValueError, match=message):
            _fitted_classifier(_make())
    finally:
        tf.keras.mixed_precision.set_global_policy('float32')
    # Other models take no notice.
    _fitted_classifier(_make())


@pytest.mark.parametrize('dtype', [tf.float64, tf.float16, tf.bfloat16])
def test_variables_of_other_precision_are_refused(dtype):
    optimizer, weights = _make(), [tf.Variable(tf.ones([3], dtype))]
    x = tf.ones([2, 3], dtype)
    message = f"float32 variables only.*Received: variable 'Variable:0' of {dtype.name}"

    def losses_of():
        return tf.reduce_sum(x * weights[0], axis=1)

    for call in (
        lambda: optimizer.minimize(losses_of, weights),
        lambda: optimizer.clipped_sums(lambda r: tf.reduce_sum(r * weights[0]), x, weights),
        lambda: optimizer.batch_sums([], losses_of, weights),
        lambda: optimizer.batch_delivered_sum([], losses_of, weights),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_size_of_a_batch_is_in_no_text():
    optimizer, weights = _make(num_microbatches=7), _weights()
    step = tf.function(
        lambda x, y: _drop_in_step(optimizer, weights, x, y),
        input_signature=[tf.TensorSpec([None, 3]), tf.TensorSpec([None, 2])],
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match='num_microbatches=7') as caught:
        step(np.repeat(_X, 2000, axis=0)[:11213], np.repeat(_Y, 2000, axis=0)[:11213])
    assert '11213' not in caught.value.message
    step(np.repeat(_X, 2, axis=0)[:7], np.repeat(_Y, 2, axis=0)[:7])
