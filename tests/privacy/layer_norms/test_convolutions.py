"""The rules for convolutions: norms and sums equal those of single records."""

import sys

import numpy as np
import pytest
from helpers.layer_gradients import (
    ACTIVATIONS,
    BATCHES,
    KERAS,
    PROPERTIES,
    assert_equal,
    by_layer,
    check,
    draw,
    has_grouped_gradients,
    model_of_images,
    model_of_transposed,
    model_of_vectors,
    one_by_one,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st


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
        'activation': draw(ACTIVATIONS),
    }


@settings(PROPERTIES, max_examples=20)
@given(
    convolution=_convolutions(),
    groups=st.sampled_from([1, 1, 2, 3]),
    channels=st.integers(1, 2),
    filters=st.integers(1, 3),
    batch=BATCHES,
)
def test_conv2d(convolution, groups, channels, filters, batch):
    assume(groups == 1 or has_grouped_gradients())
    size, arguments = convolution
    layer = KERAS.Conv2D(groups * filters, groups=groups, **arguments)
    check(layer, [*size, groups * channels], batch)


# Without XLA oneDNN gives convolutions of no images, but for transposed ones, a wrong shape; from
# TensorFlow 2.16 on also the gradients of those.
_TRANSPOSED = pytest.mark.skipif(
    sys.version_info >= (3, 12), reason='oneDNN gives a convolution of no images a wrong shape'
)


@pytest.mark.parametrize(
    ('mode', 'make'),
    [
        ('xla', model_of_images),
        ('graph', model_of_vectors),
        pytest.param('graph', model_of_transposed, marks=_TRANSPOSED),
    ],
)
def test_no_records(mode, make):
    model = make()
    drawn = draw(model, 0)
    norms, sums = by_layer(model, *drawn, mode=mode)
    assert norms.shape == (0,)
    for total, variable in zip(sums, model.trainable_variables):
        np.testing.assert_array_equal(total, np.zeros([2, *variable.shape]))
    assert_equal((norms, sums), one_by_one(model, *drawn))


@pytest.mark.parametrize('size', [2, 3])
def test_conv2d_of_patches(size):
    # Kernel and strides are equal, so that a cheaper way is taken.
    check(KERAS.Conv2D(3, size, size, activation='tanh'), [2 * size, size, 2], 3)
    check(KERAS.Conv2D(3, size, size, 'same'), [2 * size + 1, size, 2], 3)


@settings(PROPERTIES, max_examples=16)
@given(
    convolution=_convolutions(may_dilate=False),
    channels=st.integers(1, 4),
    filters=st.integers(1, 4),
    batch=BATCHES,
)
def test_conv2d_transpose(convolution, channels, filters, batch):
    size, arguments = convolution
    check(KERAS.Conv2DTranspose(filters, **arguments), [*size, channels], batch)


@pytest.mark.parametrize('padding', ['valid', 'same'])
def test_conv2d_transpose_with_dilation(padding):
    layer = KERAS.Conv2DTranspose(3, 3, padding=padding, dilation_rate=2, activation='tanh')
    check(layer, [6, 5, 2], 3)


@PROPERTIES
@given(
    convolution=_convolutions(strides_may_differ=False),
    channels=st.integers(1, 4),
    multiplier=st.integers(1, 3),
    batch=BATCHES,
)
def test_depthwise_conv2d(convolution, channels, multiplier, batch):
    size, arguments = convolution
    layer = KERAS.DepthwiseConv2D(depth_multiplier=multiplier, **arguments)
    check(layer, [*size, channels], batch)
