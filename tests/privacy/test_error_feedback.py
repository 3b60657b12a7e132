"""Tests of the error-feedback buffer."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.properties import PROPERTIES
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_efsgd.privacy import error_feedback

_SHAPES = ([3], [2, 2], [])
# The same examples every time, and a failure is shown as it is: shrinking takes minutes.


def _zeros():
    return [tf.zeros(shape) for shape in _SHAPES]


def _run(residuals, decay, clip):
    """Feeds residuals, one list of arrays per step; returns all d, and E after every step."""
    buffer, delivered, buffers = _zeros(), [], []
    for residual in residuals:
        d, buffer = error_feedback.feed_back(buffer, residual, decay, clip)
        delivered.append(d)
        buffers.append(buffer)
    return delivered, buffers


def _norm(tensors):
    return np.sqrt(sum(np.sum(np.square(np.float64(t))) for t in tensors))


def test_by_hand():
    # E = 0, R/B = (0.3, 0.4), beta = 0.75: d = u / 4 = (0.075, 0.1), E = (0.225, 0.3).
    # Then R/B = (0.175, -0.3): u = (0.4, 0), d = (0.1, 0), E = (0.3, 0).
    delivered, buffer = error_feedback.feed_back([tf.zeros(2)], [tf.constant([0.3, 0.4])], 0.75)
    np.testing.assert_allclose(delivered[0], [0.075, 0.1], rtol=1e-6)
    np.testing.assert_allclose(buffer[0], [0.225, 0.3], rtol=1e-6)
    delivered, buffer = error_feedback.feed_back(buffer, [tf.constant([0.175, -0.3])], 0.75)
    np.testing.assert_allclose(delivered[0], [0.1, 0.0], atol=1e-7)
    np.testing.assert_allclose(buffer[0], [0.3, 0.0], atol=1e-7)


def test_clip_by_hand_over_all_variables():
    # u = (3; 4), beta = 0.5: d = (1.5; 2) of norm 2.5, clipped to 0.5: (0.3; 0.4).
    owed = [tf.constant([3.0]), tf.constant(4.0)]
    delivered, buffer = error_feedback.feed_back(
        [tf.zeros(1), tf.zeros([])], owed, 0.5, feedback_l2_norm_clip=0.5
    )
    np.testing.assert_allclose(np.r_[delivered[0], delivered[1]], [0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(np.r_[buffer[0], buffer[1]], [2.7, 3.6], rtol=1e-6)


@settings(PROPERTIES, max_examples=15)
@given(
    seed=st.integers(0, 2**32 - 1),
    decay=st.sampled_from([0.0, 0.3, 0.9]),
    clip=st.sampled_from([None, 1e-3, 0.7, 1e6]),
)
def test_nothing_is_lost_only_delayed(seed, decay, clip):
    rng = np.random.default_rng(seed)
    residuals = [[np.float32(rng.normal(size=shape)) for shape in _SHAPES] for _ in range(50)]
    delivered, buffers = _run(residuals, decay, clip)
    for i in range(len(_SHAPES)):
        given_back = np.sum([np.float64(d[i]) for d in delivered], axis=0)
        owed = np.sum([np.float64(r[i]) for r in residuals], axis=0)
        np.testing.assert_allclose(given_back + buffers[-1][i], owed, atol=1e-4)
    if clip is not None:
        assert max(map(_norm, delivered)) <= clip * (1 + 1e-5)
    if decay == 0.0 and clip is None:
        assert _norm(buffers[-1]) == 0.0


def test_a_clip_below_the_noise_makes_the_buffer_grow_and_a_wide_one_does_nothing():
    residuals = [[np.full(shape, 0.3, np.float32) for shape in _SHAPES]] * 20
    free, narrow, wide = (_run(residuals, 0.3, clip) for clip in (None, 0.01, 1e3))
    np.testing.assert_allclose(wide[1][-1][0], free[1][-1][0], rtol=1e-6)
    # Stationary without a clip: E = beta (E + R/B), so E = 0.3 * 0.3 / 0.7.
    np.testing.assert_allclose(free[1][-1][0], [0.09 / 0.7] * 3, rtol=1e-5)
    assert _norm(narrow[1][-1]) > 0.9 * 20 * _norm(residuals[0])


@pytest.mark.parametrize('wrong', [2 / 3, 3 / 2])
def test_stationary_noise_has_the_documented_variance(wrong):
    # White R/B of variance 1: d = (1 - beta) u has variance (1 - beta) / (1 + beta).
    decay, rng = 0.8, np.random.default_rng(11)
    buffer, delivered = [tf.zeros(20_000)], None
    for _ in range(40):  # 0.8^80 is 2e-8
        white = [np.float32(rng.normal(size=20_000))]
        delivered, buffer = error_feedback.feed_back(buffer, white, decay)
    ratio = np.var(delivered[0]) / ((1 - decay) / (1 + decay))
    tolerance = 6 * np.sqrt(2 / 20_000)  # six standard errors: fails once in 5e8
    assert abs(ratio - 1) < tolerance < abs(ratio * wrong**2 - 1)
