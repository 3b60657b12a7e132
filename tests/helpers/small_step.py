"""Optimizers of a small private step, and least squares on six records for whole steps."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tf_efsgd.privacy import clipping, noise
from tf_efsgd.privacy import optimizer as optimizers

SGD = optimizers.ErrorFeedbackDPKerasSGDOptimizer
ADAM = optimizers.ErrorFeedbackDPKerasAdamOptimizer
KEY = 0x1234_5678_9ABC_DEF1
SHAPES = ([3], [2, 2])
BATCH_SIZE = 4
SETTINGS = {
    'l2_norm_clip': 0.7,
    'noise_multiplier': 0.0,
    'expected_batch_size': BATCH_SIZE,
    'residual_l2_norm_clip': 0.3,
    'residual_share': 0.2,
    'feedback_decay': 0.6,
}
# Fixed keys make the draws fixed; at this level another key fails one time in a million.
LEVEL = 1e-6


def make(cls=SGD, learning_rate=1.0, **changes):
    return cls(**{**SETTINGS, **changes}, learning_rate=learning_rate)


def make_variables(shapes=SHAPES):
    return [tf.Variable(tf.zeros(shape)) for shape in shapes]


def step_noise_of(key, step):
    return {'key': noise.NoiseKey(key).key, 'step': tf.constant(step, tf.uint64)}


def release(optimizer, variables, gradients, step=0, key=KEY):
    """Calls `release` for per-example gradients, [batch, *shape] per variable."""
    mechanism = optimizer.mechanism
    sums = clipping.clip_and_sum(
        [tf.constant(g, tf.float32) for g in gradients],
        mechanism.l2_norm_clip,
        mechanism.residual_l2_norm_clip,
    )
    optimizer._unapplied.take()  # A release that the test did not apply.
    return optimizer.release(
        *sums,
        variables,
        step_noise=step_noise_of(key, step),
    )


def buffer_of(optimizer, variables):
    return [optimizer.get_slot(v, 'error_feedback') for v in variables]


def random_gradients(rng, batch, shapes=SHAPES):
    rows = np.exp(rng.normal(size=batch))
    return [rng.normal(size=[batch, *s]) * rows.reshape([-1] + [1] * len(s)) for s in shapes]


def flat(tensors):
    return np.concatenate([np.ravel(np.float64(t)) for t in tensors])


def scale_p_value(sample, stddev):
    statistic = np.sum(np.square(sample)) / stddev**2
    tail = stats.chi2(sample.size)
    return 2 * min(tail.cdf(statistic), tail.sf(statistic))


X = np.float32(np.random.default_rng(1).normal(size=[6, 3]))
Y = np.float32(np.random.default_rng(2).normal(size=[6, 2]) * 3)


def make_weights():
    return [tf.Variable([[0.3, -0.2], [0.1, 0.5], [-0.4, 0.2]]), tf.Variable([0.1, -0.3])]


def loss_of_record(weights):
    def loss(record):
        x, y = record
        output = tf.linalg.matvec(weights[0], x, transpose_a=True) + weights[1]
        return tf.reduce_sum(tf.square(output - y))

    return loss


def loss_vector(weights, x=X, y=Y):
    return lambda: tf.reduce_sum(tf.square(tf.matmul(x, weights[0]) + weights[1] - y), axis=1)


def drop_in_step(optimizer, weights, x=X, y=Y, key=None, step=0):
    del key, step
    optimizer.minimize(loss_vector(weights, x, y), weights, tape=tf.GradientTape(persistent=True))


def fast_step(optimizer, weights, x=X, y=Y, key=None, step=0):
    sums = optimizer.clipped_sums(loss_of_record(weights), (x, y), weights)
    v = optimizer.release(
        *sums,
        weights,
        step_noise={
            'key': noise.NoiseKey(KEY).key if key is None else key,
            'step': tf.cast(step, tf.uint64),
        },
        batch_size=tf.cast(tf.shape(x)[0], tf.float32),
    )
    optimizer.apply_gradients(zip(v, weights))


WAYS = pytest.mark.parametrize('way', [drop_in_step, fast_step])


def fitted_classifier(optimizer, **settings):
    tf.keras.utils.set_random_seed(5)
    model = tf.keras.Sequential(
        [tf.keras.layers.Input([3]), tf.keras.layers.Dense(4), tf.keras.layers.Dense(2)]
    )
    model.compile(optimizer, tf.keras.losses.MeanSquaredError(reduction='none'), **settings)
    model.fit(X, Y, batch_size=3, epochs=3, verbose=0)
    return model
