"""Norms and sums by layer equal those of gradients that are taken one record at a time."""

import contextlib
import re

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tensorflow_privacy.privacy.fast_gradient_clipping import clip_grads

from tf_efsgd.models import layers
from tf_efsgd.models.discriminator import build_discriminator
from tf_efsgd.models.generator import build_generator
from tf_efsgd.privacy import clipping, independence, layer_norms
from tf_efsgd.privacy.optimizer import ErrorFeedbackDPKerasSGDOptimizer, why_not_fast

# The same examples every time, and a failure is shown as it is: shrinking takes minutes.
_PROPERTIES = settings(
    deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate], max_examples=12
)
_KERAS = tf.keras.layers
_MODES = {
    'eager': lambda function: function,
    'graph': tf.function,
    'xla': lambda function: tf.function(function, jit_compile=True),
}


def _weights(batch):
    return np.float32(np.random.default_rng(3).normal(size=[2, batch]))


def _losses(model, records, directions):
    """One loss for every record: what comes out, along a direction of the record's own."""
    outputs = model(records) * directions
    return tf.reduce_sum(outputs, axis=list(range(1, outputs.shape.rank)))


def _made_up(shape):
    """Records to try a loss on."""
    return np.random.default_rng(1).normal(size=[6, *shape]).astype(np.float32)


def _fast(model, records, directions, loss_scales=None, mode='eager', variables=None):
    """(norms, weighted sums) by layer."""
    variables = model.trainable_variables if variables is None else variables

    def norms_and_sums(records, directions):
        def losses_of():
            losses = _losses(model, records, directions)
            return losses if loss_scales is None else losses * loss_scales

        parts = layer_norms.gradients_by_layer(model, losses_of, variables)
        gradients = clipping.BatchGradients(parts, variables)
        return gradients.norms, gradients.weighted_sums(tf.constant(_weights(len(records))))

    function = _MODES[mode](norms_and_sums)
    return tf.nest.map_structure(np.array, function(tf.constant(records), directions))


def _one_by_one(model, records, directions, loss_scales=None, variables=None):
    """(norms, weighted sums, what rounding of the sums is relative to), from all gradients."""
    variables = model.trainable_variables if variables is None else variables
    scales = np.ones(len(records)) if loss_scales is None else loss_scales

    def loss_of_record(record):
        one, direction, scale = record
        return scale * _losses(model, one[tf.newaxis], direction[tf.newaxis])[0]

    gradients = clipping.per_example_gradients(
        loss_of_record, (tf.constant(records), directions, np.float32(scales)), variables
    )
    return _of_gradients(
        [np.zeros([len(records), *v.shape]) if g is None else g
         for g, v in zip(gradients, variables)]
    )  # fmt: skip


def _of_gradients(gradients):
    gradients = [np.asarray(g, np.float64) for g in gradients]
    batch = len(gradients[0])
    squares = [np.square(g).reshape([batch, int(np.prod(g.shape[1:]))]).sum(1) for g in gradients]
    weights = np.float64(_weights(batch))
    sums = [np.tensordot(weights, g, 1) for g in gradients]
    sizes = [np.max(np.tensordot(np.abs(weights), np.abs(g), 1), initial=0) for g in gradients]
    return np.sqrt(sum(squares)), sums, sizes


def _assert_equal(actual, wanted, rtol=1e-5):
    norms, sums = actual
    wanted_norms, wanted_sums, sizes = wanted
    # Gradients are of size 1; where they vanish, both ways leave some rounding.
    np.testing.assert_allclose(norms, wanted_norms, rtol=rtol, atol=2e-6)
    assert len(sums) == len(wanted_sums)
    for one, other, size in zip(sums, wanted_sums, sizes):
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * size + 2e-6)


def _draw(model, batch, seed=1):
    """(records, directions); also draws all weights, so that no bias is zero."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(size=w.shape) * 0.5 for w in model.get_weights()])
    shape = model.inputs[0].shape[1:]
    if model.inputs[0].dtype.is_integer:
        records = rng.integers(0, 5, size=[batch, *shape]).astype(np.int32)
    else:
        records = np.float32(rng.normal(size=[batch, *shape]))
    directions = np.float32(rng.normal(size=[batch, *model.output_shape[1:]]))
    return records, tf.constant(directions)


def _model_of(layer, shape, dtype=tf.float32):
    inputs = tf.keras.Input(shape, dtype=dtype)
    return tf.keras.Model(inputs, layer(inputs))


# Every rule.

_ACTIVATIONS = st.sampled_from([None, 'tanh', 'relu', 'softmax', 'elu'])
_BATCHES = st.sampled_from([3, 1, 2, 5])


@st.composite
def _convolutions(draw, strides_may_differ=True, may_dilate=True):
    """(image height and width, arguments that all convolutions take)."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    if not strides_may_differ:
        strides = (strides[0], strides[0])
    dilation = (1, 1)
    if may_dilate and draw(st.booleans()):
        strides, dilation = (1, 1), draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.sampled_from(['valid', 'same']))
    least = [(k - 1) * d + 1 if padding == 'valid' else 1 for k, d in zip(kernel, dilation)]
    size = [draw(st.integers(n, max(9, n))) for n in least]
    return size, {
        'kernel_size': kernel,
        'strides': strides,
        'dilation_rate': dilation,
        'padding': padding,
        'use_bias': draw(st.booleans()),
        'activation': draw(_ACTIVATIONS),
    }


def _check(layer, shape, batch, dtype=tf.float32):
    model = _model_of(layer, shape, dtype)
    drawn = _draw(model, batch)
    _assert_equal(_fast(model, *drawn), _one_by_one(model, *drawn))


@settings(_PROPERTIES, max_examples=20)
@given(
    convolution=_convolutions(),
    groups=st.sampled_from([1, 1, 2, 3]),
    channels=st.integers(1, 2),
    filters=st.integers(1, 3),
    batch=_BATCHES,
)
def test_conv2d(convolution, groups, channels, filters, batch):
    size, arguments = convolution
    layer = _KERAS.Conv2D(groups * filters, groups=groups, **arguments)
    _check(layer, [*size, groups * channels], batch)


@pytest.mark.parametrize('mode', ['xla', 'graph'])
def test_no_records(mode):
    # Without XLA oneDNN gives convolutions of no images, but for transposed ones, a wrong shape.
    model = _images() if mode == 'xla' else _transposed()
    drawn = _draw(model, 0)
    norms, sums = _fast(model, *drawn, mode=mode)
    assert norms.shape == (0,)
    for total, variable in zip(sums, model.trainable_variables):
        np.testing.assert_array_equal(total, np.zeros([2, *variable.shape]))
    _assert_equal((norms, sums), _one_by_one(model, *drawn))


@pytest.mark.parametrize('size', [2, 3])
def test_conv2d_of_patches(size):
    # Kernel and strides are equal, so that a cheaper way is taken.
    _check(_KERAS.Conv2D(3, size, size, activation='tanh'), [2 * size, size, 2], 3)
    _check(_KERAS.Conv2D(3, size, size, 'same'), [2 * size + 1, size, 2], 3)


@settings(_PROPERTIES, max_examples=16)
@given(
    convolution=_convolutions(may_dilate=False),
    channels=st.integers(1, 4),
    filters=st.integers(1, 4),
    batch=_BATCHES,
)
def test_conv2d_transpose(convolution, channels, filters, batch):
    size, arguments = convolution
    _check(_KERAS.Conv2DTranspose(filters, **arguments), [*size, channels], batch)


@pytest.mark.parametrize('padding', ['valid', 'same'])
def test_conv2d_transpose_with_dilation(padding):
    layer = _KERAS.Conv2DTranspose(3, 3, padding=padding, dilation_rate=2, activation='tanh')
    _check(layer, [6, 5, 2], 3)


@_PROPERTIES
@given(
    convolution=_convolutions(strides_may_differ=False),
    channels=st.integers(1, 4),
    multiplier=st.integers(1, 3),
    batch=_BATCHES,
)
def test_depthwise_conv2d(convolution, channels, multiplier, batch):
    size, arguments = convolution
    layer = _KERAS.DepthwiseConv2D(depth_multiplier=multiplier, **arguments)
    _check(layer, [*size, channels], batch)


@_PROPERTIES
@given(
    groups=st.sampled_from([1, 2, 4, -1]),
    axis=st.sampled_from([-1, 1, 3]),
    parts=st.sampled_from([(True, True), (True, False), (False, True)]),
    size=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    batch=_BATCHES,
)
def test_group_normalization(groups, axis, parts, size, batch):
    shape = [4, *size] if axis == 1 else [*size, 4]
    layer = _KERAS.GroupNormalization(groups, axis=axis, scale=parts[0], center=parts[1])
    _check(layer, shape, batch)


@_PROPERTIES
@given(
    axis=st.sampled_from([-1, [1, 2], [2, 3], 1]),
    parts=st.sampled_from([(True, True), (True, False), (False, True)]),
    epsilon=st.sampled_from([1e-3, 1e-6]),
    batch=_BATCHES,
)
def test_layer_normalization(axis, parts, epsilon, batch):
    layer = _KERAS.LayerNormalization(axis, epsilon, scale=parts[0], center=parts[1])
    _check(layer, [3, 4, 5], batch)
    # What it took away for the pass is back.
    assert [layer.gamma is not None, layer.beta is not None] == list(parts)
    assert len(layer.trainable_variables) == sum(parts)


@_PROPERTIES
@given(
    shape=st.sampled_from([[1], [6], [3, 2], [2, 3, 4]]),
    units=st.integers(1, 6),
    use_bias=st.booleans(),
    activation=_ACTIVATIONS,
    batch=_BATCHES,
)
def test_dense(shape, units, use_bias, activation, batch):
    _check(_KERAS.Dense(units, activation, use_bias), shape, batch)


@pytest.mark.parametrize('mode', _MODES)
def test_patches_may_be_made_of_some_examples_at_a_time(monkeypatch, mode):
    # 7 examples in blocks of up to 3: two of the three blocks share an example.
    monkeypatch.setattr(layer_norms, '_BLOCK_BYTES', 3 * 4 * 12 * (4 * 2 + 3))
    taken = []
    original = layer_norms._by_blocks

    def by_blocks(function, like, most):
        taken.append(most)
        return original(function, like, most)

    monkeypatch.setattr(layer_norms, '_by_blocks', by_blocks)
    layer = _KERAS.Conv2D(3, 2, 2, 'same', activation='tanh')
    model = _model_of(layer, [5, 8, 2])
    records, directions = _draw(model, 7)
    wanted = _one_by_one(model, records, directions)
    assert len(set(np.round(wanted[0], 3))) == 7
    _assert_equal(_fast(model, records, directions, mode=mode), wanted)
    assert set(taken) == {3}


@pytest.mark.parametrize('batch', [0, 1, 5])
def test_blocks_of_a_batch_whose_size_is_not_known(batch):
    rows = np.arange(2.0 * batch, dtype=np.float32).reshape([batch, 2])
    seen = []

    @tf.function(input_signature=[tf.TensorSpec([None, 2])])
    def by_blocks(rows):
        def of_block(take):
            block = take(rows)
            tf.py_function(lambda size: seen.append(int(size)), [tf.shape(block)[0]], [])
            return [block[:, 1], block[:, 0] > 3]

        return layer_norms._by_blocks(of_block, rows, 2)

    floats, bools = by_blocks(tf.constant(rows))
    np.testing.assert_array_equal(floats, rows[:, 1])
    np.testing.assert_array_equal(bools, rows[:, 0] > 3)
    assert seen == {0: [0], 1: [1], 5: [2, 2, 2]}[batch]


@pytest.mark.parametrize('shape', [[], [1], [7], [2, 3]], ids=str)
@pytest.mark.parametrize('batch', [0, 3])
def test_embedding(shape, batch):
    # Seven of five numbers: one comes twice in a record.
    _check(_KERAS.Embedding(5, 3), shape, batch, tf.int32)


@pytest.mark.parametrize('shape', [(5, 2), (3, 3)])
@pytest.mark.parametrize(('groups', 'positions'), [(1, 1), (1, 3), (2, 1), (3, 4)])
def test_both_forms_agree(monkeypatch, groups, positions, shape):
    monkeypatch.setattr(layer_norms, '_GRAM_ADVANTAGE', np.inf)
    rng = np.random.default_rng(4)
    a, g = (np.float32(rng.normal(size=[3, groups, positions, n])) for n in shape)
    variable = tf.Variable(tf.zeros([groups, *shape]))
    gram, direct = (
        layer_norms.Products(variable, tf.constant(a), tf.constant(g), lambda sums: sums, direct)
        for direct in (False, True)
    )
    assert gram._products is None and direct._products is not None
    wanted = _of_gradients([np.einsum('bntm,bntp->bnmp', a, g)])
    for part in (gram, direct, gram.exact(), direct.exact()):
        sums = part.weighted_sums(tf.constant(_weights(3)))
        _assert_equal((np.sqrt(part.squared_norms()), sums), wanted)


# Whole models.


def _shared():
    """A convolution that is called twice in one pass, and a Dense that is called on its own."""
    images = tf.keras.Input([5, 5, 2])
    convolution, dense = _KERAS.Conv2D(2, 3, padding='same', activation='tanh'), _KERAS.Dense(2)
    return tf.keras.Model(images, dense(dense(convolution(convolution(images)))))


def _nested():
    """A model inside of another, called on two things."""
    inner = tf.keras.Sequential(
        [_KERAS.Conv2D(4, 2, 2, activation='elu'), _KERAS.GroupNormalization(2)]
    )
    images = tf.keras.Input([6, 4, 2])
    features = inner(images) * inner(tf.reverse(images, [1]))
    return tf.keras.Model(images, _KERAS.Dense(3, 'tanh')(_KERAS.Flatten()(features)))


def _chain():
    """All rules."""
    return tf.keras.Sequential(
        [
            tf.keras.Input([16], dtype=tf.int32),
            _KERAS.Embedding(5, 4),
            _KERAS.Reshape([4, 4, 4]),
            _KERAS.Conv2D(4, 3, padding='same', groups=2, activation='relu'),
            _KERAS.DepthwiseConv2D(2, depth_multiplier=2),
            _KERAS.GroupNormalization(4),
            _KERAS.LeakyReLU(0.2),
            _KERAS.Conv2DTranspose(3, 3, 2, 'same', activation='tanh'),
            _KERAS.LayerNormalization(),
            _KERAS.Dense(2, 'softmax'),
            _KERAS.Flatten(),
            _KERAS.Dense(3),
        ]
    )


def _images():
    """A small network on images."""
    return tf.keras.Sequential(
        [
            tf.keras.Input([6, 6, 2]),
            _KERAS.Conv2D(4, 3, 2, 'same', activation='tanh'),
            _KERAS.GroupNormalization(2),
            _KERAS.Conv2DTranspose(3, 3, 2, 'same'),
            _KERAS.LayerNormalization(),
            _KERAS.DepthwiseConv2D(3),
            _KERAS.LeakyReLU(0.2),
            _KERAS.Flatten(),
            _KERAS.Dense(2),
        ]
    )


def _transposed():
    return tf.keras.Sequential(
        [
            tf.keras.Input([16], dtype=tf.int32),
            _KERAS.Embedding(5, 4),
            _KERAS.Reshape([4, 4, 4]),
            _KERAS.GroupNormalization(2),
            _KERAS.Conv2DTranspose(3, 3, 2, 'same', activation='tanh'),
            _KERAS.LayerNormalization(),
            _KERAS.Dense(2),
        ]
    )


@pytest.mark.parametrize('build', [_shared, _nested, _chain])
def test_models(build):
    model = build()
    drawn = _draw(model, 3)
    wanted = _one_by_one(model, *drawn)
    assert wanted[0].min() > 0.1
    for mode in _MODES:
        _assert_equal(_fast(model, *drawn, mode=mode), wanted)
    # No layer is left as it was called in the pass.
    layers = [layer for layer in model._flatten_layers() if layer._trainable_weights]
    assert layers and not any('call' in vars(layer) for layer in layers)


@pytest.mark.parametrize(
    ('make', 'shape', 'dtype'),
    [
        (lambda: _KERAS.Conv2D(2, 3, padding='same'), [4, 4, 2], tf.float32),
        (lambda: _KERAS.Dense(3), [3], tf.float32),
        (lambda: _KERAS.LayerNormalization(), [3, 2], tf.float32),
        (lambda: _KERAS.GroupNormalization(1), [3, 2], tf.float32),
        (lambda: _KERAS.Embedding(5, 2), [4], tf.int32),
    ],
    ids=['conv2d', 'dense', 'layer_normalization', 'group_normalization', 'embedding'],
)
def test_two_calls_add_before_they_are_squared(monkeypatch, make, shape, dtype):
    layer, inputs = make(), tf.keras.Input(shape, dtype=dtype)
    # The second call's gradients point along the first one's, in part.
    model = tf.keras.Model(inputs, layer(inputs) + 2 * layer(tf.reverse(inputs, [1])))
    drawn = _draw(model, 3)
    wanted = _one_by_one(model, *drawn)
    _assert_equal(_fast(model, *drawn), wanted)

    class Apart(layer_norms.PerExample):
        def squared_norms(self):
            return tf.add_n([call.squared_norms() for call in self.calls])

    def join_apart(cls, calls):
        joined = Apart(calls[0].variables, calls[0].exact().gradients)
        joined.calls = calls
        return joined

    for part in (layer_norms.PerExample, layer_norms.Products, layer_norms.Patches):
        monkeypatch.setattr(part, 'join', classmethod(join_apart))
    apart, _ = _fast(model, *drawn)
    assert np.all(np.abs(apart - wanted[0]) > 1e-2 * wanted[0])


@pytest.mark.parametrize('advantage', [0.0, np.inf])
def test_models_by_either_form(monkeypatch, advantage):
    monkeypatch.setattr(layer_norms, '_GRAM_ADVANTAGE', advantage)
    model = _chain()
    drawn = _draw(model, 3)
    # Nearly all of a Gram form's digits may cancel here: what is believed has lost two or three.
    _assert_equal(_fast(model, *drawn), _one_by_one(model, *drawn), rtol=1e-5)


def test_some_of_the_variables():
    model = _images()
    model.layers[0].trainable = False
    drawn = _draw(model, 3)
    for variables in (model.trainable_variables, model.layers[-1].trainable_variables[:1]):
        _assert_equal(
            _fast(model, *drawn, variables=variables),
            _one_by_one(model, *drawn, variables=variables),
        )


def test_a_variable_that_the_loss_does_not_use_adds_nothing():
    images = tf.keras.Input([3])
    model = tf.keras.Model(images, [_KERAS.Dense(2)(images), _KERAS.Dense(4)(images)])
    x = tf.constant([[0.3, 1.0, -2.0], [1.0, 0.0, 0.7]])

    def losses_of():
        return tf.reduce_sum(tf.square(model(x)[0]), axis=1)

    variables = model.trainable_variables
    gradients = clipping.BatchGradients(
        layer_norms.gradients_by_layer(model, losses_of, variables), variables
    )
    sums = gradients.weighted_sums(tf.ones([1, 2]))
    assert [s.shape for s in sums] == [[1, *v.shape] for v in variables]
    assert [bool(tf.reduce_any(s != 0)) for s in sums] == [True, True, False, False]


# Records as bad as they come.


@pytest.mark.parametrize('mode', _MODES)
@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_record_that_is_not_finite_counts_as_zero(bad, mode):
    model = _images()
    records, directions = _draw(model, 4)
    good = [0, 2, 3]
    norms, sums, sizes = _one_by_one(model, records, directions)
    assert norms[1] > 0.1
    without = _of_gradients_without(model, records, directions, 1)
    records[1, 2, 3, 0] = bad
    actual_norms, actual_sums = _fast(model, records, directions, mode=mode)
    assert actual_norms[1] == 0
    np.testing.assert_allclose(actual_norms[good], norms[good], rtol=1e-5)
    for one, other, size, whole in zip(actual_sums, without, sizes, sums):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * size)
        assert np.abs(whole - other).max() > 1e-3  # The record had been in it.


def _of_gradients_without(model, records, directions, index):
    scales = np.ones(len(records))
    scales[index] = 0
    return _one_by_one(model, records, directions, scales)[1]


@pytest.mark.parametrize('mode', _MODES)
def test_gradients_of_any_size(mode):
    model = _images()
    records, directions = _draw(model, 3)
    variables = model.trainable_variables
    wanted, _, _ = _one_by_one(model, records, directions)

    def norms_of(scales):
        parts = layer_norms.gradients_by_layer(
            model, lambda: _losses(model, records, directions) * scales, variables
        )
        return clipping.BatchGradients(parts, variables).norms

    norms_of = _MODES[mode](norms_of)
    for scales in (
        (1, 0, 1),
        (0, 0, 0),
        (1, 1e-15, 1),
        (1, 1, 1e25),
        (1e-25, 1, 1e25),
        (1e25, 0, 1e-13),
    ):
        norms = norms_of(tf.constant(scales, tf.float32))
        np.testing.assert_allclose(
            norms, wanted * np.float64(np.float32(scales)), rtol=1e-5, atol=0, err_msg=str(scales)
        )


@pytest.mark.parametrize('scale', [1e-25, 1e-15, 1e15, 1e25])
def test_clipped_sums_with_a_record_of_any_size(scale):
    model = _images()
    records, directions = _draw(model, 3)
    scales, variables = np.float32([1, scale, 1]), model.trainable_variables

    def losses_of():
        return _losses(model, records, directions) * scales

    gradients = clipping.BatchGradients(
        layer_norms.gradients_by_layer(model, losses_of, variables), variables
    )
    weights = tf.stack(clipping.clip_weights(gradients.norms, 0.7, 0.3))
    wanted = clipping.clipped_sums(
        clipping.per_example_gradients(
            lambda record: _losses(model, record[0][None], record[1][None])[0] * record[2],
            (tf.constant(records), directions, scales),
            variables,
        ),
        0.7,
        0.3,
    )
    for actual, clipped, residual in zip(gradients.weighted_sums(weights), *wanted):
        np.testing.assert_allclose(actual[0], clipped, rtol=0, atol=1e-5)
        np.testing.assert_allclose(actual[1], residual, rtol=0, atol=1e-5)


@pytest.mark.parametrize('mode', _MODES)
def test_positions_that_cancel(mode):
    # A^T G = a (g - (1 + 2^-13) g)^T: its square is 1e-8 of |A|^2 |G|^2, a tenth of a rounding.
    a = np.float32([1, 0.5, 0.25, 2, 1, 0.5, 1, 0.25])
    inputs = tf.constant(np.stack([[a, a], [a, 2 * a]])[:, np.newaxis])
    gradients = tf.constant(np.stack([[a, -a * np.float32(1 + 2**-13)]] * 2)[:, np.newaxis])
    variable = tf.Variable(tf.zeros([8, 8]))
    wanted = [np.dot(a, a) * 2**-13, np.dot(a, a) * (1 + 2**-12)]

    def norms_of(inputs, gradients):
        part = layer_norms.Products(variable, inputs, gradients, lambda sums: sums[:, 0])
        assert part._products is None
        batch = clipping.BatchGradients([part], [variable])
        sums = batch.weighted_sums(tf.constant([[1.0, 0.0]]))
        return part.squared_norms(), part.is_exact(), batch.norms, sums[0][0]

    _, is_exact, norms, total = _MODES[mode](norms_of)(inputs, gradients)
    np.testing.assert_array_equal(is_exact, [False, True])
    np.testing.assert_allclose(norms, wanted, rtol=1e-6)
    np.testing.assert_allclose(total, np.outer(a, a) * -(2.0**-13), rtol=1e-6)


@pytest.mark.parametrize(('positions', 'dtype'), [(16, tf.float32), (49, tf.float64)])
def test_a_gram_form_that_is_trusted_is_right_to_a_share_of_the_slack(positions, dtype):
    # Pairs of positions cancel but for a part that shrinks from record to record.
    draws = np.random.default_rng(4)
    kept = np.float32(2.0 ** -np.linspace(0, 12, 40))[:, np.newaxis, np.newaxis]
    a = np.abs(draws.normal(size=[40, 1, positions, 512])).astype(np.float32)
    g = draws.normal(size=[40, positions, 64]).astype(np.float32)
    half = positions // 2
    a[:, 0, half : 2 * half] = a[:, 0, :half]
    g[:, half : 2 * half] = -g[:, :half] * (1 - kept)
    g[:, 2 * half :] = 0
    g = g[:, np.newaxis]
    part = layer_norms.Products(
        tf.Variable(tf.zeros([512, 64])), tf.constant(a), tf.constant(g), lambda sums: sums[:, 0]
    )
    found, trusted = part.squared_norms().numpy(), part.is_exact().numpy()
    assert part._products is None and part._gram[0].dtype == dtype
    true = np.linalg.norm(
        np.einsum('btm,btp->bmp', a[:, 0].astype(np.float64), g[:, 0].astype(np.float64)),
        axis=(1, 2),
    )
    assert np.abs(np.sqrt(found[trusted]) / true[trusted] - 1).max() < 2**-9
    assert trusted[:5].all()
    if dtype == tf.float32:
        assert not trusted[-5:].any()


def test_public_sums_are_weighted_sums():
    # Of a model with every kind of part, for images that need no privacy.
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(4, 4, 2, 'same', 'channels_last', activation='relu'),
            tf.keras.layers.Conv2D(3, 1),
            tf.keras.layers.GroupNormalization(3),
            tf.keras.layers.Conv2DTranspose(2, 3, 2),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(2),
        ]
    )
    model.build([None, 8, 8, 2])
    draws = np.random.default_rng(5)
    images = tf.constant(draws.normal(size=[5, 8, 8, 2]), tf.float32)
    for scale in [1.0, 1e-25]:  # The second way is taken for the other.
        gradients = clipping.BatchGradients(
            layer_norms.gradients_by_layer(
                model,
                lambda scale=scale: tf.reduce_sum(tf.square(model(images)), axis=1) * scale,
                model.trainable_variables,
            ),
            model.trainable_variables,
        )
        weights = tf.constant(draws.uniform(size=[2, 5]), tf.float32)
        wanted = gradients.weighted_sums(weights)
        for actual, exact in zip(gradients.public_sums(weights), wanted):
            assert actual.dtype == tf.float32
            np.testing.assert_allclose(actual, exact, rtol=1e-4, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize('positions', [1, 2])
@pytest.mark.parametrize('of_input', [1e-20, 1e18])
def test_factors_whose_squares_vanish(of_input, positions):
    # |A|^2 underflows to 0 and so would the norm, while the sums know G = 1e-2 and are not clipped.
    parts = [
        layer_norms.Products(
            tf.Variable(tf.zeros([300, 300])),
            tf.fill([1, 1, positions, 300], of_input),
            tf.fill([1, 1, positions, 300], 1e-2 / of_input),
            lambda sums: sums[:, 0],
        ),
        layer_norms.PerExample([tf.Variable([0.0])], [tf.constant([[1e-3]])]),
    ]
    assert parts[0]._products is None
    gradients = clipping.BatchGradients(parts, [part.variables[0] for part in parts])
    np.testing.assert_allclose(gradients.norms, [300 * 1e-2 * positions], rtol=1e-5)


def test_what_went_in_may_be_far_above_the_gradient():
    # Where the input is huge no gradient arrives; another record asks for the second way.
    model = _model_of(_KERAS.Dense(4, 'relu', use_bias=False), [3, 4])
    records, directions = _draw(model, 2)
    model.set_weights([np.vstack([-np.ones([1, 4]), np.ones([3, 4])])])
    records = np.abs(records)
    records[0, :, 0] = 0
    records[0, 0] = [1e25, 0, 0, 0]
    wanted, _, _ = _one_by_one(model, records, directions)
    records[1] = np.nan
    norms, _ = _fast(model, records, directions)
    assert wanted[0] > 0.1 and norms[1] == 0
    np.testing.assert_allclose(norms[0], wanted[0], rtol=1e-5)


# In TF Privacy.


@pytest.mark.parametrize('num_microbatches', [None, 2])
def test_the_registry_serves_tf_privacy(num_microbatches):
    inputs = tf.keras.Input([6, 6, 2])
    outputs = inputs
    for layer in _images().layers:
        outputs = layer(outputs)
    model = tf.keras.Model(inputs, outputs)
    records, directions = _draw(model, 4)

    def losses(labels, outputs, weights=None):
        assert weights is None
        return tf.reduce_sum(labels * outputs, axis=1)

    norms = clip_grads.compute_gradient_norms(
        model,
        layer_norms.make_layer_registry(),
        tf.constant(records),
        directions,
        per_example_loss_fn=losses,
        num_microbatches=num_microbatches,
    )
    gradients = clipping.per_example_gradients(
        lambda record: losses(record[1][None], model(record[0][None]))[0],
        (tf.constant(records), directions),
        model.trainable_variables,
    )
    if num_microbatches is not None:
        gradients = [
            np.mean(np.reshape(g, [num_microbatches, -1, *g.shape[1:]]), axis=1) for g in gradients
        ]
    np.testing.assert_allclose(norms, _of_gradients(gradients)[0], rtol=1e-5)


def test_the_registry_serves_tf_privacy_with_an_embedding():
    ids = tf.keras.Input([4], dtype=tf.int32)
    features = _KERAS.LayerNormalization()(_KERAS.Embedding(5, 3)(ids))
    model = tf.keras.Model(ids, features)
    records, directions = _draw(model, 4)
    for num_microbatches in (None, 2):
        norms = clip_grads.compute_gradient_norms(
            model,
            layer_norms.make_layer_registry(),
            tf.constant(records),
            directions,
            per_example_loss_fn=lambda y, outputs, _: tf.reduce_sum(y * outputs, axis=[1, 2]),
            num_microbatches=num_microbatches,
        )
        gradients = clipping.per_example_gradients(
            lambda record: _losses(model, record[0][None], record[1][None])[0],
            (tf.constant(records), directions),
            model.trainable_variables,
        )
        size = 1 if num_microbatches is None else 4 // num_microbatches
        gradients = [np.mean(np.reshape(g, [-1, size, *g.shape[1:]]), axis=1) for g in gradients]
        np.testing.assert_allclose(norms, _of_gradients(gradients)[0], rtol=1e-5)


# What is refused.


class _Scale(_KERAS.Layer):
    def build(self, input_shape):
        self.scale = self.add_weight('scale', [input_shape[-1]], initializer='ones')

    def call(self, inputs):
        return inputs * self.scale


class _OddDense(_KERAS.Dense):
    def call(self, inputs):
        return super().call(inputs) + tf.reduce_sum(self.kernel)


class _SameDense(_KERAS.Dense):
    """Says what it computes; a class made from it has said nothing."""

    computes_as = _KERAS.Dense

    def call(self, inputs):
        return super().call(tf.identity(inputs))


class _OddAgain(_SameDense):
    def call(self, inputs):
        return super().call(inputs) + tf.reduce_sum(self.kernel)


class _Reused(_KERAS.Layer):
    """A layer that uses another one's variable itself."""

    def __init__(self, dense):
        super().__init__(name='reused')
        self.kernel = dense.kernel

    def call(self, inputs):
        return inputs * tf.reduce_sum(self.kernel)


def _with_a_shared_variable():
    inputs = tf.keras.Input([4, 4, 2])
    dense = _KERAS.Dense(2, name='odd')
    features = dense(inputs)
    return tf.keras.Model(inputs, _Reused(dense)(features))


_REFUSED = {
    'separable': (_KERAS.SeparableConv2D(2, 3, name='odd'), "'odd' .SeparableConv2D. has no rule"),
    'custom': (_Scale(name='odd'), "'odd' ._Scale. has no rule"),
    'subclass': (_OddDense(2, name='odd'), "'odd' ._OddDense. has no rule"),
    'its_subclass': (_OddAgain(2, name='odd'), "'odd' ._OddAgain. has no rule"),
    'activation': (
        _KERAS.Dense(2, activation=_KERAS.PReLU(name='odd')),
        "'odd' .PReLU. has no rule",
    ),
    'float16': (_KERAS.Dense(2, name='odd', dtype='mixed_float16'), "'odd' .* in float16"),
    'channels_first': (
        _KERAS.Conv2D(2, 3, data_format='channels_first', padding='same', name='odd'),
        "'odd' .Conv2D. has its channels first",
    ),
    'output_padding': (
        _KERAS.Conv2DTranspose(2, 3, 2, output_padding=1, name='odd'),
        "'odd' .Conv2DTranspose. has output_padding",
    ),
    'over_the_batch': (
        _KERAS.LayerNormalization([0, -1], name='odd'),
        "'odd' .LayerNormalization. mixes the examples",
    ),
}


@pytest.mark.parametrize('name', _REFUSED)
def test_layers_without_a_rule_are_refused(name):
    layer, message = _REFUSED[name]
    inputs = tf.keras.Input([4, 4, 2], batch_size=1)
    model = tf.keras.Model(inputs, layer(inputs))
    with pytest.raises(layer_norms.UnsupportedLayerError, match=message):
        _fast(model, np.ones([1, 4, 4, 2], np.float32), 1.0)
    reason = why_not_fast(
        model,
        lambda records: _losses(model, records, 1.0),
        model.trainable_variables,
        _made_up([4, 4, 2]),
    )
    assert 'odd' in reason
    assert 'call' not in vars(layer)


def test_a_layer_may_say_whose_rule_it_has():
    _check(_SameDense(2, 'tanh'), [3], 3)
    _check(layers.GroupNormalization(2), [3, 4, 4], 3)


def test_variables_of_no_layer_or_of_two_are_refused():
    model = _model_of(_KERAS.Dense(2), [3])
    variable = tf.Variable(0.3, name='loose')
    for variables in ([variable], [*model.trainable_variables, variable]):
        with pytest.raises(layer_norms.UnsupportedLayerError, match='loose.* belongs to no layer'):
            _fast(model, np.ones([1, 3], np.float32), 1.0, variables=variables)
    model = _with_a_shared_variable()
    with pytest.raises(layer_norms.UnsupportedLayerError, match='odd/kernel.* several layers'):
        layer_norms.check_layers(model, model.trainable_variables)


def test_losses_that_are_not_one_for_every_example_are_refused():
    model = _model_of(_KERAS.Dense(2), [3])
    for loss in (lambda: tf.reduce_sum(model(tf.ones([2, 3]))), lambda: model(tf.ones([2, 3]))):
        with pytest.raises(ValueError, match='one loss for every example'):
            layer_norms.gradients_by_layer(model, loss, model.trainable_variables)
    with pytest.raises(ValueError, match='uses none of the variables'):
        layer_norms.gradients_by_layer(model, lambda: tf.ones([2]), model.trainable_variables)


@pytest.mark.parametrize('shape', [(28, 28, 1), (32, 32, 3)])
@pytest.mark.parametrize('reconstruction', ['head', 'generator', 'none'])
def test_the_discriminator_of_this_package_has_all_rules(shape, reconstruction):
    model = build_discriminator(shape, 10, width=8, reconstruction=reconstruction)

    def losses_of(images):
        outputs = tf.nest.flatten(model(images))
        return tf.add_n([tf.reduce_sum(o, axis=list(range(1, o.shape.rank))) for o in outputs])

    assert why_not_fast(model, losses_of, model.trainable_variables, _made_up(shape)) is None


# Several models.


def _encoder_and_decoder():
    """Two networks that records go through one after the other, the second this package's own."""
    tf.keras.utils.set_random_seed(5)
    encoder = _model_of(_KERAS.Dense(4, activation='tanh'), [6])
    decoder = build_generator((8, 8, 1), 3, latent_dim=4, width=8)
    rng = np.random.default_rng(1)
    # No weight is zero: injected noise acts, and biases count.
    decoder.set_weights([rng.normal(size=w.shape) * 0.5 for w in decoder.get_weights()])
    records = {
        'x': rng.normal(size=[5, 6]).astype(np.float32),
        'labels': np.int32([0, 2, 1, 1, 0]),
        'noise_8': rng.normal(size=[5, 8, 8, 1]).astype(np.float32),
        'direction': rng.normal(size=[5, 8, 8, 1]).astype(np.float32),
    }

    def losses(records):
        images = decoder({
            'latents': encoder(records['x']),
            'labels': records['labels'],
            'noise_8': records['noise_8'],
        })  # fmt: skip
        return tf.reduce_sum(images * records['direction'], axis=[1, 2, 3])

    return encoder, decoder, losses, tf.nest.map_structure(tf.constant, records)


def test_a_loss_may_go_through_several_models():
    encoder, decoder, losses, records = _encoder_and_decoder()
    variables = [*encoder.trainable_variables, *decoder.trainable_variables]
    gradients = []
    for i in range(5):
        with tf.GradientTape() as tape:
            loss = losses({name: value[i : i + 1] for name, value in records.items()})
        gradients.append(tape.gradient(loss, variables))
    gradients = [np.stack([np.asarray(tf.convert_to_tensor(g)) for g in of_variable])
                 for of_variable in zip(*gradients)]  # fmt: skip
    assert all(np.abs(g).max() > 1e-3 for g in gradients)
    parts = layer_norms.gradients_by_layer([encoder, decoder], lambda: losses(records), variables)
    fast = clipping.BatchGradients(parts, variables)
    actual = fast.norms.numpy(), fast.weighted_sums(tf.constant(_weights(5)))
    wanted = _of_gradients(gradients)
    _assert_equal(actual, wanted)
    np.testing.assert_allclose(actual[0], wanted[0], rtol=1e-5)
    # A gradient of the decoder that is left out would show.
    part = _of_gradients(gradients[:-1])[0]
    assert not np.allclose(actual[0], part, rtol=1e-3)


def test_a_model_that_is_not_told_of_is_refused():
    encoder, decoder, losses, records = _encoder_and_decoder()
    variables = [*encoder.trainable_variables, *decoder.trainable_variables]
    with pytest.raises(layer_norms.UnsupportedLayerError, match='belongs to no layer'):
        layer_norms.gradients_by_layer(encoder, lambda: losses(records), variables)


def test_models_may_share_a_layer():
    dense = _KERAS.Dense(3, activation='tanh')
    one, other = _model_of(dense, [3]), _model_of(dense, [3])
    rows = tf.constant([[0.3, -0.2, 0.5], [1.0, 2.0, -0.7]])
    parts = layer_norms.gradients_by_layer(
        [one, other], lambda: tf.reduce_sum(other(one(rows)), axis=1), dense.trainable_variables
    )
    norms = clipping.BatchGradients(parts, dense.trainable_variables).norms
    for row, norm in zip(rows, norms):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(other(one(row[tf.newaxis])))
        gradients = tape.gradient(loss, dense.trainable_variables)
        assert float(norm) == pytest.approx(float(tf.linalg.global_norm(gradients)), rel=1e-5)


def test_the_rounded_products_of_gpus_are_switched_off(monkeypatch):
    layer = tf.keras.layers.Dense(2)
    model = tf.keras.Sequential([tf.keras.Input([3]), layer])
    rows = tf.ones([4, 3])
    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    before = enabled()
    try:
        for devices, wanted in (([], True), (['GPU:0'], False)):
            tf.config.experimental.enable_tensor_float_32_execution(True)
            monkeypatch.setattr(tf.config, 'list_physical_devices', lambda *_, d=devices: d)
            layer_norms.gradients_by_layer(
                model, lambda: tf.reduce_sum(model(rows), axis=1), model.trainable_variables
            )
            assert enabled() is wanted
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


# Calls whose rows are not the records, and gradients that no call shows.


def _views():
    """Sixteen augmented views of a record on the batch axis."""
    model = _model_of(_KERAS.Dense(4), [3])

    def losses_of(records):
        views = tf.repeat(records, 16, axis=0) * (1.0 + tf.linspace(0.0, 0.1, 3))
        return tf.reduce_sum(tf.reshape(model(views), [-1, 16 * 4]), axis=1)

    return model, losses_of


def _time_distributed():
    steps = tf.keras.Input([9, 3])
    model = tf.keras.Model(steps, _KERAS.TimeDistributed(_KERAS.Dense(4))(steps))
    return model, lambda records: tf.reduce_sum(model(tf.tile(records[:, None], [1, 9, 1])), [1, 2])


def _constant():
    """One row for all records."""
    model = _model_of(_KERAS.Dense(3, use_bias=False), [2])

    def losses_of(records):
        return tf.reduce_sum(records * model(tf.ones([1, 2])), axis=1)

    return model, losses_of


_OTHER_ROWS = {'views': _views, 'time steps': _time_distributed, 'constant': _constant}


def _norm_of_sum(model, losses_of, records, mode='eager'):
    """Of what `batch_sums` clips to 0.5, of the records together."""
    optimizer = ErrorFeedbackDPKerasSGDOptimizer(
        l2_norm_clip=0.5, noise_multiplier=1.0, error_feedback='none', learning_rate=1.0
    )

    def norm(records):
        sums, _ = optimizer.batch_sums(model, lambda: losses_of(records), model.trainable_variables)
        return tf.linalg.global_norm(sums)

    if mode != 'eager':
        spec = tf.TensorSpec([None, *records.shape[1:]])
        norm = tf.function(norm, input_signature=[spec], jit_compile=mode == 'xla')
    return float(norm(tf.constant(records)))


@pytest.mark.parametrize('name', sorted(_OTHER_ROWS))
def test_rows_that_are_not_records_are_refused(name):
    model, losses_of = _OTHER_ROWS[name]()
    records = _made_up([3])[:2]
    message = r"layer '\w+' \(Dense\) is called on a batch axis that is not that of the losses"
    if name != 'time steps':  # Of a known number of records Keras makes a loop over the steps.
        with pytest.raises(layer_norms.UnsupportedLayerError, match=message):
            _norm_of_sum(model, losses_of, records)
    with pytest.raises(tf.errors.InvalidArgumentError, match='is called on a batch axis'):
        _norm_of_sum(model, losses_of, records, 'graph')
    # XLA leaves out the assertion: nothing is released rather than too much.
    assert _norm_of_sum(model, losses_of, records, 'xla') == 0.0
    reason = why_not_fast(model, losses_of, model.trainable_variables, _made_up([3]))
    assert re.match(message, reason)


def test_how_many_rows_there_are_is_in_no_text():
    model, losses_of = _views()
    records = np.ones([11213, 3], np.float32)
    for mode in ('eager', 'graph'):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)) as caught:
            _norm_of_sum(model, losses_of, records, mode)
        for number in ('11213', str(16 * 11213)):
            assert number not in str(caught.value)


def _penalized():
    """R1: the squared norm of the gradient at the record (Mescheder et al. 2018)."""
    model = _model_of(_KERAS.Dense(1), [3])

    def losses_of(records):
        with tf.GradientTape() as tape:
            tape.watch(records)
            logits = tf.square(model(records))[:, 0]
        at_record = tape.gradient(logits, records)
        return logits + 5.0 * tf.reduce_sum(tf.square(at_record), axis=1)

    return model, losses_of


def _tied():
    """Decodes by the kernel that it encoded with."""
    model = _model_of(_KERAS.Dense(2, use_bias=False), [3])

    def losses_of(records):
        decoded = tf.matmul(model(records), model.trainable_variables[0], transpose_b=True)
        return tf.reduce_sum(tf.square(decoded - records), axis=1)

    return model, losses_of


def _behind_a_function(is_traced):
    trunk = _model_of(_KERAS.Dense(4, 'tanh', name='trunk'), [3])
    head = _model_of(_KERAS.Dense(1), [4])
    compiled = tf.function(trunk, input_signature=[tf.TensorSpec([None, 3])])
    if is_traced:
        compiled.get_concrete_function()
    return [trunk, head], lambda records: head(compiled(records))[:, 0]


@pytest.mark.parametrize(
    'build',
    [_penalized, _tied, lambda: _behind_a_function(True), lambda: _behind_a_function(False)],
    ids=['penalty', 'tied', 'traced', 'not yet traced'],
)
def test_gradients_that_no_call_shows_are_found_by_trying(build):
    models, losses_of = build()
    variables = [v for model in tf.nest.flatten(models) for v in model.trainable_variables]
    before = [variable.numpy() for variable in variables]
    reason = why_not_fast(models, losses_of, variables, _made_up([3]))
    assert re.match(
        'one backward pass misses something: the gradient|it fails on this loss', reason
    )
    for variable, value in zip(variables, before):
        np.testing.assert_array_equal(variable, value)


def test_a_penalty_that_is_zero_at_first_is_found_with_random_weights(monkeypatch):
    model = _model_of(_KERAS.Dense(1, kernel_initializer='zeros', use_bias=False), [3])

    def losses_of(records):
        kernel = model.trainable_variables[0]
        return model(records)[:, 0] + tf.reduce_sum(kernel * kernel) * records[:, 0]

    def tried():
        return why_not_fast(model, losses_of, model.trainable_variables, _made_up([3]))

    assert 'misses something' in tried()
    monkeypatch.setattr(independence, '_random_weights', lambda *_, **__: contextlib.nullcontext())
    assert tried() is None


def test_a_loss_that_is_clipped_as_it_should_be_is_not_refused():
    encoder, decoder, losses, records = _encoder_and_decoder()
    variables = [*encoder.trainable_variables, *decoder.trainable_variables]
    assert why_not_fast([encoder, decoder], losses, variables, records) is None
