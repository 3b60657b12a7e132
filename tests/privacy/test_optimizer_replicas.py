"""The private step on two replicas: one noise, and the update of one device."""

import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.small_step import (
    BATCH_SIZE,
    KEY,
    LEVEL,
    WAYS,
    X,
    Y,
    buffer_of,
    flat,
    make,
    make_weights,
    scale_p_value,
    step_noise_of,
)

from tf_efsgd.privacy import noise
from tf_efsgd.privacy import optimizer as optimizers


def _on_two(strategy, step, make_weights, **changes):
    """Weights and optimizer on both replicas, and `step(optimizer, weights, *args)` compiled."""
    with strategy.scope():
        weights, optimizer = make_weights(), make(**changes)

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
        flat(copies) for copies in zip(*(strategy.experimental_local_results(v) for v in variables))
    ]


@WAYS
@pytest.mark.parametrize('sizes', [(4, 2), (6, 0)])
@pytest.mark.parametrize('expected_batch_size', [None, 5])
def test_two_replicas_give_the_one_device_update(strategy, way, sizes, expected_batch_size):
    changes = {'expected_batch_size': expected_batch_size, 'learning_rate': 0.3}
    weights, optimizer, step = _on_two(strategy, way, make_weights, **changes)
    one_weights, one_optimizer = make_weights(), make(**changes)
    x, y = (_shares(strategy, array, sizes) for array in (X, Y))
    for _ in range(2):
        step(x, y)
        way(one_optimizer, one_weights)
    for variables, one in (
        (weights, one_weights),
        (buffer_of(optimizer, weights), buffer_of(one_optimizer, one_weights)),
    ):
        first, second = _copies(strategy, variables)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, flat(one), atol=1e-5)


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
    math.sqrt((1.3 * 0.7) ** 2 / 0.8 + 0.4**2 * (1.3 * 0.3) ** 2 / 0.2) / BATCH_SIZE
)


@pytest.mark.parametrize('drop_in', [False, True])
def test_two_replicas_add_one_noise(strategy, drop_in):
    run = _drop_in_noise_step if drop_in else _noise_step
    weights, optimizer, step = _on_two(strategy, run, _wide, noise_multiplier=1.3)
    key = noise.NoiseKey(KEY)
    if drop_in:
        optimizer._own_randomness._key.assign(tf.bitcast(key.key, tf.int64))
        step()
    else:
        step(key.next())
    first, second = _copies(strategy, weights)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(*_copies(strategy, buffer_of(optimizer, weights)))
    assert scale_p_value(first, _ONE_DEVICE_STDDEV) > LEVEL
    # Noise of every replica summed, or averaged, would be sqrt(2) too wide or too narrow.
    for wrong in (2 / 3, 3 / 2, math.sqrt(2), math.sqrt(1 / 2)):
        assert scale_p_value(first * wrong, _ONE_DEVICE_STDDEV) < LEVEL
    one_weights, one_optimizer = _wide(), make(noise_multiplier=1.3)
    _noise_step(one_optimizer, one_weights, step_noise_of(KEY, 0))
    np.testing.assert_allclose(first, flat(one_weights), rtol=1e-5, atol=1e-7)


_COORDINATES, _STEPS = 300, 60
_PLAIN_STDDEV = 1.3 * 0.7 / BATCH_SIZE


def _noise_differs_from_one_devices(strategy):
    """Whether any coordinate's variance, on any replica, is not that of one device."""

    def narrow():
        return [tf.Variable(tf.zeros([_COORDINATES]))]

    def step_on_nothing(optimizer, weights, step_noise):
        nothing = [tf.zeros([_COORDINATES], tf.float64)]
        v = optimizer.release(nothing, nothing, weights, step_noise=step_noise)
        optimizer.apply_gradients(zip(v, weights))

    weights, _, step = _on_two(
        strategy, step_on_nothing, narrow, noise_multiplier=1.3, error_feedback='none'
    )
    key, seen = noise.NoiseKey(KEY), [_copies(strategy, weights)]
    for _ in range(_STEPS):
        step(key.next())
        seen.append(_copies(strategy, weights))
    noises = np.diff(np.array(seen), axis=0)  # [steps, replicas, coordinates]
    p_values = [
        scale_p_value(noises[:, replica, i], _PLAIN_STDDEV)
        for replica in range(strategy.num_replicas_in_sync)
        for i in range(_COORDINATES)
    ]
    whole = [scale_p_value(of_replica, _PLAIN_STDDEV) for of_replica in np.moveaxis(noises, 1, 0)]
    return min(p_values) * len(p_values) < LEVEL or min(whole) * len(whole) < LEVEL


def test_the_variance_of_every_coordinate_is_that_of_one_device(several):
    assert not _noise_differs_from_one_devices(several)


def _every_replica_adds_its_own(monkeypatch):
    """Full noise on every share before the shares come together; none afterwards."""
    real = optimizers.PrivateOptimizer.release
    draw = noise.integers

    def release(self, clipped, residual, var_list, *, step_noise, **more):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        own = {**step_noise, 'key': step_noise['key'] + tf.cast(replica, tf.uint64)}
        noisy = [
            s + self.mechanism.clipped_step * tf.cast(drawn, tf.float64)
            for i, s in enumerate(clipped)
            for drawn in [draw(s.shape, step_noise=own, purpose=0, variable=i)]
        ]
        return real(self, noisy, residual, var_list, step_noise=step_noise, **more)

    monkeypatch.setattr(optimizers.PrivateOptimizer, 'release', release)
    monkeypatch.setattr(noise, 'integers', lambda shape, **_: tf.zeros(shape, tf.int64))


def _only_the_first_replica_adds_it(monkeypatch):
    """After the shares have come together."""
    draw = noise.integers

    def integers(shape, **how):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return tf.where(tf.equal(replica, 0), draw(shape, **how), 0)

    monkeypatch.setattr(noise, 'integers', integers)


@pytest.mark.parametrize('plant', [_every_replica_adds_its_own, _only_the_first_replica_adds_it])
def test_noise_of_every_replica_or_of_one_alone_is_found(strategy, plant, monkeypatch):
    plant(monkeypatch)
    assert _noise_differs_from_one_devices(strategy)


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
    key = noise.NoiseKey(KEY)
    step(key.next())
    first, second = _copies(strategy, weights)
    assert np.abs(first - second).max() > _ONE_DEVICE_STDDEV


def test_an_optimizer_made_outside_the_scope_is_refused(strategy):
    optimizer = make(noise_multiplier=1.3)
    with strategy.scope():
        weights = _wide()
    with pytest.raises(ValueError, match='outside the scope'):
        strategy.run(_drop_in_noise_step, args=(optimizer, weights))
