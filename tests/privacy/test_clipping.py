"""Tests of per-example gradients and their clipped sums."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.pairs import pairs
from helpers.properties import PROPERTIES
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_privacy.privacy.optimizers import dp_optimizer_keras_vectorized

from tf_efsgd.privacy import clipping

_C1, _C2 = 0.7, 0.3
# The same examples every time, and a failure is shown as it is: shrinking takes minutes.


def _by_float64(gradients, c1, c2):
    """The definition, one record at a time: (sum of c, sum of r), per variable."""
    sums = [[np.zeros(g.shape[1:]) for g in gradients] for _ in range(2)]
    for i in range(len(gradients[0])):
        record = [np.float64(g[i]) for g in gradients]
        norm = np.sqrt(sum(np.sum(np.square(g)) for g in record))
        if not np.isfinite(norm) or norm == 0:
            continue
        c_length = min(norm, c1)
        r_length = min(norm - c_length, c2)
        for variable, g in enumerate(record):
            sums[0][variable] += g / norm * c_length
            sums[1][variable] += g / norm * r_length
    return sums


def _by_tf_privacy(gradients, c1, c2):
    clip = dp_optimizer_keras_vectorized.clip_gradients_vmap
    clipped = tf.vectorized_map(lambda g: clip(g, c1), gradients)
    cut = [g - c for g, c in zip(gradients, clipped)]
    residual = tf.vectorized_map(lambda g: clip(g, c2), cut)
    return [[tf.reduce_sum(t, axis=0).numpy() for t in tensors] for tensors in (clipped, residual)]


def _sums(gradients, c1=_C1, c2=_C2):
    return clipping.clip_and_sum([tf.constant(g, tf.float32) for g in gradients], c1, c2)


def _assert_close(actual, expected, atol):
    for a, e in pairs(tf.nest.flatten(actual), tf.nest.flatten(expected)):
        np.testing.assert_allclose(a, e, rtol=0, atol=atol)


def test_by_hand():
    # |(3; 4)| = 5: c = (0.6; 0.8) at C1 = 1, g - c = (2.4; 3.2) of norm 4, r = (1.2; 1.6) at
    # C2 = 2. |(0; 1.5)|: c = (0; 1), g - c = r = (0; 0.5). |(0.3; 0)| < C1: c is g and r is 0.
    sums = _sums([[3.0, 0.0, 0.3], [[4.0], [1.5], [0.0]]], 1.0, 2.0)
    _assert_close(sums, [[0.9, [1.8]], [1.2, [2.1]]], 1e-6)


@settings(PROPERTIES, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(0, 4),
    shapes=st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=3),
    exponent=st.integers(-6, 6),
    c1=st.floats(0.01, 100),
    c2=st.floats(0.01, 100),
)
def test_equals_tf_privacy_and_the_definition(seed, batch, shapes, exponent, c1, c2):
    rng = np.random.default_rng(seed)
    rows = 10.0 ** rng.integers(-2, 3, size=batch) * 10.0**exponent
    gradients = [
        np.float32(rng.normal(size=[batch, *s]) * rows.reshape([-1] + [1] * len(s))) for s in shapes
    ]
    sums = _sums(gradients, c1, c2)
    for variable, shape in enumerate(shapes):
        assert sums[0][variable].shape == sums[1][variable].shape == shape
    # g - c cancels: its error is a rounding of |g|, at most of C1 + C2 where it matters.
    atol = 1e-6 * (c1 + c2)
    _assert_close(sums, _by_float64(gradients, c1, c2), atol)
    _assert_close(sums, _by_tf_privacy(gradients, c1, c2), max(atol, 3e-7 * batch * (c1 + c2)))


# Rows of one record each; their lengths overflow, underflow or vanish in float32.
_EXTREME = [
    [1e20, 0.0, 0.0],
    [1e30, -1e30, 1e30],
    [3e38, 3e38, -3e38],
    [1e30, 1e-30, 0.0],
    [1e-30, 2e-30, 0.0],
    [1e-22, 0.0, 1e-22],
    [1e-20, 1e20, 1.0],
    [0.0, 0.0, 0.0],
]


@pytest.mark.parametrize('row', _EXTREME, ids=str)
def test_extreme_lengths(row):
    gradients = [np.float32([row[:1]]), np.float32([row[1:]])]
    clipped, residual = _sums(gradients)
    expected_c, expected_r = _by_float64(gradients, _C1, _C2)
    for actual, expected in ((clipped, expected_c), (residual, expected_r)):
        for a, e in pairs(actual, expected):
            # Below 1e-37 numbers are subnormal, and flushing them to zero is right enough.
            np.testing.assert_allclose(a, e, rtol=3e-6, atol=1e-37)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('place', [0, 1, 3])
def test_a_record_that_is_not_finite_adds_exactly_zero(bad, place):
    rng = np.random.default_rng(5)
    gradients = [np.float32(rng.normal(size=[3, 2])), np.float32(rng.normal(size=[3, 2]))]
    poisoned = [g.copy() for g in gradients]
    poisoned[place // 2][1, place % 2] = bad
    zeroed = [g * np.float32([[1], [0], [1]]) for g in gradients]
    _assert_close(_sums(poisoned), _sums(zeroed), 0.0)
    # And alone in its batch.
    for s in tf.nest.flatten(_sums([g[1:2] for g in poisoned])):
        np.testing.assert_array_equal(s, np.zeros(2))


@settings(PROPERTIES, max_examples=25)
@given(
    row=st.lists(st.floats(width=32), min_size=3, max_size=3),
    c1=st.sampled_from([1e-3, 0.7, 30.0]),
    c2=st.sampled_from([2e-3, 0.3, 50.0]),
)
def test_no_record_passes_its_bound_and_both_parts_point_along_it(row, c1, c2):
    # Any float32 at all: NaN, infinities, subnormals, zeros of either sign.
    clipped, residual = (np.float64(s[0]) for s in _sums([np.float32([row])], c1, c2))
    for part, bound in ((clipped, c1), (residual, c2)):
        assert np.linalg.norm(part) <= bound * (1 + 1e-6)
        assert np.all(part * np.sign(np.nan_to_num(row)) >= 0)
    cross = np.outer(clipped, residual) - np.outer(residual, clipped)
    np.testing.assert_allclose(cross, 0, atol=1e-6 * c1 * c2)


def test_empty_batch_and_absent_gradients():
    clipped, residual = clipping.clip_and_sum([tf.zeros([0, 2, 3]), None, tf.zeros([0])], _C1, _C2)
    for sums in (clipped, residual):
        assert sums[1] is None
        np.testing.assert_array_equal(sums[0], np.zeros([2, 3]))
        assert sums[2].shape == [] and sums[2].numpy() == 0.0
    present, _ = clipping.clip_and_sum([None, tf.constant([[3.0, 4.0]])], _C1, _C2)
    np.testing.assert_allclose(present[1], [0.42, 0.56], rtol=1e-6)


def test_per_example_gradients_are_each_records_own():
    weights, unused = tf.Variable([[0.3, -0.2], [0.5, 0.7]]), tf.Variable(1.0)
    x = np.float32([[1, 2], [-0.5, 0.3], [0, 4]])
    y = np.float32([0.1, 0.2, 0.3])

    def loss(record):
        inputs, label = record
        outputs = tf.linalg.matvec(weights, inputs)
        return tf.reduce_sum(tf.square(outputs - label))

    first, second = clipping.per_example_gradients(loss, (x, y), [weights, unused])
    # d|Wx - y|^2 / dW = 2 (Wx - y) x^T.
    expected = [2 * np.outer(weights.numpy() @ a - b, a) for a, b in zip(x, y)]
    np.testing.assert_allclose(first, expected, rtol=1e-5)
    assert second is None
    none, _ = clipping.per_example_gradients(loss, (x[:0], y[:0]), [weights, unused])
    assert none.shape == [0, 2, 2]


@pytest.mark.parametrize(
    'loss, message',
    [
        (lambda w, x: x * w, r'one number, shape \[\].*Received: shape \(2,\)'),
        (lambda w, x: tf.reduce_sum(x), 'uses none of the variables'),
    ],
)
def test_losses_that_cannot_be_clipped_are_refused(loss, message):
    weights = tf.Variable([0.3, 0.4])
    with pytest.raises(ValueError, match=message):
        clipping.per_example_gradients(lambda x: loss(weights, x), tf.ones([3, 2]), [weights])


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_records_do_not_meet_in_a_convolution(bad):
    # 0 * NaN is NaN: were the records' gradients one masked pass, one record would empty all.
    images = np.float32(np.random.default_rng(5).normal(size=[3, 4, 4, 2]))
    images[1] = bad
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(4, 3, 2, 'same'),
            tf.keras.layers.GroupNormalization(2),
            tf.keras.layers.Conv2DTranspose(2, 3, 2, 'same'),
        ]
    )
    model.build([None, 4, 4, 2])

    def sums(records):
        gradients = clipping.per_example_gradients(
            lambda image: tf.reduce_sum(tf.square(model(image[None]) - 0.3)),
            records,
            model.trainable_variables,
        )
        return clipping.clip_and_sum(gradients, _C1, _C2)

    _assert_close(sums(images), sums(images[[0, 2]]), 1e-6)
    assert np.abs(sums(images)[0][0]).max() > 1e-3


@pytest.fixture
def tensor_float_32():
    """On, as TensorFlow begins; another test of this process may have switched it off."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(True)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(before)


@pytest.mark.usefixtures('tensor_float_32')
def test_sums_avoid_the_rounded_products_of_gpus(monkeypatch):
    """With TF32 on, the sums come from float32 additions, and are the same."""
    gradients = [tf.constant([[3.0, 4.0], [0.3, 0.0]]), tf.constant([[12.0], [0.4]])]
    plain = clipping.clip_and_sum(gradients, 1.3, 0.7)
    used = []
    monkeypatch.setattr(tf, 'matmul', lambda *args: used.append(args))
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind: [kind])
    on_gpu = clipping.clip_and_sum(gradients, 1.3, 0.7)
    assert not used and tf.config.experimental.tensor_float_32_execution_enabled()
    for expected, actual in zip(tf.nest.flatten(plain), tf.nest.flatten(on_gpu)):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
