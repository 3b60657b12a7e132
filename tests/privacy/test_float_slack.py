"""Adversarial batches against the allowance for float32: how far can rounding move neighbours?

The account allows `grid.SLACK` of a clipping norm for what float32 does in clipping and summing.
Here one record is added to batches that are made to round badly, and the distance of the two sums,
in units of their noise, is held to one plus HALF of that.
"""

import functools

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


def _part_size(batch):
    return clipping.records_per_part(batch.shape[0])


def _by_gradients(batch):
    return clipping.clip_and_sum(
        [tf.convert_to_tensor(batch)], *_MECHANISM.clips, _part_size(batch)
    )


def _by_layer(batch, kernel=None):
    """A dense layer whose per-example gradients are the batch: loss = <gradient, kernel>."""
    if kernel is None:
        kernel = tf.Variable(tf.zeros([_SIZE, 1]))
    part = layer_norms.Products(
        kernel,
        tf.convert_to_tensor(batch)[:, tf.newaxis, tf.newaxis],
        tf.ones([batch.shape[0], 1, 1, 1]),
        lambda sums: sums[:, 0],
    )
    gradients = clipping.BatchGradients([part], [kernel])
    return private_step.batch_sums(_MECHANISM, gradients, _part_size(batch))


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
    gradients = clipping.BatchGradients([part], [kernel])
    return private_step.batch_sums(_MECHANISM, gradients, _part_size(batch))


@pytest.mark.parametrize('n', [1, 100, 700])
@pytest.mark.parametrize('sums_of', [_by_gradients, _by_layer, _by_positions])
def test_rounding_stays_within_half_of_the_allowance(sums_of, n):
    found = _worst(sums_of, n)
    assert max(found.values()) <= _ALLOWED, found
    # The bound is met, so there is something to see.
    assert found['aligned, all far beyond the clip'] > 0.99


@pytest.mark.parametrize('by_layer', [False, True])
def test_rounding_stays_there_when_xla_adds_up(by_layer):
    """Padded, as `--jit_compile` has it: one shape for both neighbours, zeros at the end."""
    kernel = tf.Variable(tf.zeros([_SIZE, 1]))  # A graph can be given no new one.
    sums_of = functools.partial(_by_layer, kernel=kernel) if by_layer else _by_gradients
    compiled = tf.function(sums_of, jit_compile=True)

    def sums_of_padded(batch):
        return compiled(tf.constant(np.pad(batch, [(0, 120 - len(batch)), (0, 0)])))

    found = _worst(sums_of_padded, 100)
    assert max(found.values()) <= _ALLOWED, found
    assert found['aligned, all far beyond the clip'] > 0.99


def _convolution(size, filters):
    """A convolution whose per-example products are its pixels times the weights of its outputs."""
    pixels = tf.keras.Input([2 * size, 2 * size, 2])
    layer = tf.keras.layers.Conv2D(filters, 2, strides=2, use_bias=False)
    return tf.keras.Model(pixels, layer(pixels[..., :1]))


def _sums_of_convolution(model, batch, part_size):
    """The private sums of the loss <outputs, second channel>."""
    batch = tf.constant(batch)

    def losses_of():
        return tf.reduce_sum(model(batch) * batch[:, ::2, ::2, 1:], axis=[1, 2, 3])

    parts = layer_norms.gradients_by_layer(model, losses_of, model.trainable_variables)
    gradients = clipping.BatchGradients(parts, model.trainable_variables)
    return private_step.batch_sums(_MECHANISM, gradients, part_size)


def _image(products, rest=0.0):
    """[2 size, 2 size, 2], whose gradient by the first tap is the sum of these [size^2]."""
    size = int(len(products) ** 0.5)
    image = np.zeros([2 * size, 2 * size, 2], np.float32)
    image[::2, ::2, 0], image[::2, ::2, 1] = products.reshape(size, size), 1.0
    image[1, 1, 0] = rest
    return image


@pytest.mark.parametrize('scale', [1e2, 1e4, 1e6, 1e9])
@pytest.mark.parametrize('filters', [4, 64])
def test_a_record_whose_positions_cancel_is_clipped_all_the_same(scale, filters):
    """Its sum is rounding of numbers that are far larger than the clip: norm and sum must agree."""
    model, rng = _convolution(28, filters), np.random.default_rng(1)
    for _ in range(5):
        products = rng.normal(size=28 * 28).astype(np.float32) * np.float32(scale)
        products[392:] = -products[:392]
        sums = _sums_of_convolution(model, _image(products, 0.1)[np.newaxis], 32)
        nothing = [[tf.zeros_like(s) for s in of_purpose] for of_purpose in sums]
        assert _distance(sums, nothing) <= _ALLOWED


@pytest.mark.parametrize('shape', [(16, 512, 64), (64, 1152, 256), (100, 1024, 256)])
def test_the_gram_form_takes_no_record_for_shorter_than_it_is(shape):
    """Half of the positions pull one way, half nearly as much the other, over many channels."""
    positions, channels, filters = shape
    first = np.arange(positions) < positions // 2
    pull = np.where(first, 1.0 + 2 * np.sqrt(0.02 * positions) / positions, -1.0)
    for more in 2.0 ** -np.arange(12, 20) * 1.02:
        inputs = np.where(first, 0.9, 0.9 + more)[:, np.newaxis] * np.ones(channels)
        gradients = np.zeros([positions, filters])
        gradients[:, 0] = pull
        kernel = tf.Variable(tf.zeros([channels, filters]))
        part = layer_norms.Products(
            kernel,
            tf.constant(inputs[np.newaxis, np.newaxis], tf.float32),
            tf.constant(gradients[np.newaxis, np.newaxis], tf.float32),
            lambda sums: sums[:, 0],
        )
        assert part._products is None
        sums = private_step.batch_sums(_MECHANISM, clipping.BatchGradients([part], [kernel]))
        nothing = [[tf.zeros_like(s) for s in of_purpose] for of_purpose in sums]
        assert _distance(sums, nothing) <= _ALLOWED


@pytest.mark.parametrize('big', [15, 63])
@pytest.mark.parametrize('size', [16, 32])
def test_many_positions_round_no_more_than_records_do(size, big):
    """Large records first, then small ones of just over half of a last digit at every position."""
    model, count = _convolution(size, 16), size * size
    total = 2.0 ** np.ceil(np.log2(big + 1))
    small = np.full(count, total * 2.0**-24 * 1.01 * 0.7, np.float32)
    # Of norm 0.7 = C1 with 16 filters.
    large = np.full(count, 0.7 / (count * 4), np.float32)
    batch = np.stack([_image(large)] * (big + 1) + [_image(small)] * (255 - big))
    part_size = clipping.records_per_part(255)
    with_all = _sums_of_convolution(model, batch, part_size)
    moved = _distance(with_all, _sums_of_convolution(model, batch[1:], part_size))
    assert 0.8 < moved <= _ALLOWED


@pytest.mark.acceptance
def test_rounding_does_not_add_up_over_parts():
    """A record put first moves all others by one place, so that every part rounds anew."""
    of_part = [1.0] * 127 + [2.0**-17 * 1.01] * 128 + [1.0]
    for parts in (4, 40):
        lengths = np.array([1.0, *(of_part * parts)])
        batch = (0.7 * lengths[:, np.newaxis] * _unit(16)).astype(np.float32)
        moved = _distance(_by_gradients(batch), _by_gradients(batch[1:]))
        assert 0.8 < moved <= _ALLOWED


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


@pytest.mark.parametrize('batch_size', [1, 100, 256, 512, 513, 4096, 16384, 10**6])
def test_a_part_is_no_longer_than_the_allowance_bears(batch_size):
    """n records in parts of m are off by n m 2^-24 of one at most, for either neighbour."""
    part_size = clipping.records_per_part(batch_size)
    assert 1 <= part_size <= 32
    records = max(1024, 2 * batch_size)
    if part_size > 1:  # One by one nothing is added up in float32.
        assert 2 * records * part_size * 2.0**-24 <= grid.SLACK / 2
        assert batch_size <= 512 or 2 * records * 2 * part_size * 2.0**-24 > grid.SLACK / 2
