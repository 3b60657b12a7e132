"""Adversarial batches against the allowance for float32: how far can rounding move neighbours?

The account allows `grid.SLACK` of a clipping norm for what float32 does in clipping and summing.
Here one record is added to batches that are made to round badly, and the distance of the two sums,
in units of their noise, is held to one plus HALF of that. What is proven is the integers behind it.
"""

import numpy as np
import pytest
import tensorflow as tf

from tf_efsgd.privacy import clipping, grid, layer_norms, private_step
from tf_efsgd.privacy.mechanism import Mechanism

_ALLOWED = 1.0 + grid.SLACK / 2
_MECHANISM = Mechanism(0.7, 1.0, residual_l2_norm_clip=0.9, residual_share=0.3)
_SIZE = 2000


def _distance(sums, other):
    """Of two stacked releases over their noise, times sigma: 1 is the bound without rounding."""
    square = 0.0
    for one, two, stddev in zip(
        sums, other, (_MECHANISM.clipped_noise_stddev, _MECHANISM.residual_noise_stddev)
    ):
        for a, b in zip(one, two):
            square += np.sum(np.square(np.float64(a) - np.float64(b))) / stddev**2
    return np.sqrt(square)


def _unit(size, seed=None):
    """A direction: all entries alike, or random ones."""
    if seed is None:
        return np.full(size, size**-0.5)
    drawn = np.random.default_rng(seed).normal(size=size)
    return drawn / np.linalg.norm(drawn)


def _batches(n):
    """Name to per-example gradients float32 [n + 1, size]; the record that is added comes last."""
    aligned, rng = _unit(_SIZE), np.random.default_rng(n)
    random = _unit(_SIZE, 3)
    long = 10.0 ** rng.uniform(0.5, 6, size=n + 1)
    # Multiples of a third: every partial sum rounds, and for long in the same direction.
    thirds = np.full(n + 1, 1 / 3)
    tiny_and_huge = np.where(np.arange(n + 1) % 2, 1e-20, 1e20)
    tiny_and_huge[-1] = 5.0
    lengths = {
        'aligned, all far beyond the clip': long,
        'aligned, thirds': thirds,
        'aligned, at the clip': np.full(n + 1, 0.7000001),
        'aligned, tiny and huge': tiny_and_huge,
    }
    batches = {name: length[:, np.newaxis] * aligned for name, length in lengths.items()}
    batches['random, aligned'] = long[:, np.newaxis] * random
    batches['opposed'] = batches['random, aligned'] * np.where(np.arange(n + 1) % 2, 1, -1)[:, None]
    spikes = np.zeros([n + 1, _SIZE])
    spikes[:, 7] = long
    spikes[:, 8:] = 1e-7 * long[:, np.newaxis]
    batches['one large entry beside small ones'] = spikes
    return {name: batch.astype(np.float32) for name, batch in batches.items()}


def _worst(sums_of, n):
    """The largest distance over the batches: with and without the last record, and the first."""
    found = {}
    for name, batch in _batches(n).items():
        with_all = sums_of(batch)
        found[name] = max(
            _distance(with_all, sums_of(batch[:-1])), _distance(with_all, sums_of(batch[1:]))
        )
    return found


def _by_gradients(batch):
    return private_step.clipped_sums(_MECHANISM, [tf.constant(batch)])


def _by_layer(batch):
    """A dense layer whose per-example gradients are the batch: loss = <gradient, kernel>."""
    kernel = tf.Variable(tf.zeros([_SIZE, 1]))
    part = layer_norms.Products(
        kernel,
        tf.constant(batch)[:, tf.newaxis, tf.newaxis],
        tf.ones([len(batch), 1, 1, 1]),
        lambda sums: sums[:, 0],
    )
    gradients = clipping.BatchGradients([part], [kernel])
    return private_step.batch_sums(_MECHANISM, gradients)


def _by_positions(batch):
    """The same gradients as sums over 49 positions that mostly cancel."""
    kernel, positions = tf.Variable(tf.zeros([_SIZE, 1])), 49
    signs = np.ones(positions, np.float32)
    signs[1::2] = -1.0  # 25 of one sign, 24 of the other.
    inputs = batch[:, np.newaxis, np.newaxis] * np.ones([positions, 1], np.float32)
    part = layer_norms.Products(
        kernel,
        tf.constant(inputs),
        tf.constant(np.tile(signs[:, np.newaxis], (len(batch), 1, 1, 1))),
        lambda sums: sums[:, 0],
    )
    return private_step.batch_sums(_MECHANISM, clipping.BatchGradients([part], [kernel]))


@pytest.mark.parametrize('n', [1, 100, 255, 256, 700])
@pytest.mark.parametrize('sums_of', [_by_gradients, _by_layer, _by_positions])
def test_rounding_stays_within_half_of_the_allowance(sums_of, n):
    found = _worst(sums_of, n)
    assert max(found.values()) <= _ALLOWED, found
    # The bound is met, so there is something to see.
    assert found['aligned, all far beyond the clip'] > 0.99


@pytest.mark.parametrize('n', [255, 700])
def test_a_convolution_s_own_sums_stay_within_half_of_the_allowance(n):
    """`Patches`: the sums are what TensorFlow's convolution gives, over all positions at once."""
    layer = tf.keras.layers.Conv2D(4, 3, padding='same', activation='tanh')
    model = tf.keras.Sequential([layer, tf.keras.layers.Flatten(), tf.keras.layers.Dense(1)])
    model.build([None, 8, 8, 1])
    rng = np.random.default_rng(5)
    images = np.repeat(rng.normal(size=[1, 8, 8, 1]), n + 1, axis=0) * 3
    images = (images + 1e-3 * rng.normal(size=images.shape)).astype(np.float32)

    def sums_of(batch):
        def losses_of():
            return 100.0 * tf.squeeze(model(batch), 1)

        parts = layer_norms.gradients_by_layer(model, losses_of, model.trainable_variables)
        gradients = clipping.BatchGradients(parts, model.trainable_variables)
        return private_step.batch_sums(_MECHANISM, gradients)

    moved = _distance(sums_of(images), sums_of(images[:-1]))
    assert 0.99 < moved <= _ALLOWED


def test_sums_in_bfloat16_would_be_seen():
    """What the allowance is for: sums of some 500 aligned gradients that keep 8 bits pass it."""

    def sums_of(batch):
        return [
            [tf.cast(tf.cast(s, tf.bfloat16), tf.float64) for s in of_purpose]
            for of_purpose in _by_gradients(batch)
        ]

    batch = _batches(520)['aligned, all far beyond the clip']
    moved = [_distance(sums_of(batch[: n + 1]), sums_of(batch[:n])) for n in range(505, 520)]
    assert max(moved) > 2 * _ALLOWED


def test_a_part_is_no_longer_than_the_allowance_bears():
    """Added up one after the other, n aligned gradients round by n^2 2^-24 of one at most."""
    assert clipping.PART**2 * 2.0**-24 <= grid.SLACK / 2
    assert (2 * clipping.PART) ** 2 * 2.0**-24 > grid.SLACK / 2
