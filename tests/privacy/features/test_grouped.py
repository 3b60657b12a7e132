"""What one record can move the sums by, whatever it holds."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from helpers.small_images import CLASSES, SHAPE, draw_images, exact_sums
from hypothesis import strategies as st

from tf_efsgd.privacy import grid
from tf_efsgd.privacy.features import grouped, pixels


@pytest.fixture(scope='module')
def features():
    return pixels.FeatureMap(SHAPE)


def test_features_longer_than_one_are_cut():
    long = tf.constant([[3.0, 4.0], [0.3, 0.4]])
    assert grouped._bounded(long).numpy() == pytest.approx(
        np.array([[0.6, 0.8], [0.3, 0.4]]), rel=2e-5
    )


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_record_that_is_not_finite_counts_as_zero_alone(features, bad):
    images = np.zeros([3, *SHAPE], np.float32)
    good = features(tf.constant(images)).numpy()
    images[1, 2, 3] = bad
    found = features(tf.constant(images)).numpy()
    assert np.all(found[1] == 0)
    np.testing.assert_array_equal(found[[0, 2]], good[[0, 2]])


@hypothesis.given(
    seed=st.integers(0, 1000),
    label=st.integers(0, CLASSES - 1),
    place=st.integers(0, 5),
    value=st.sampled_from(['noise', 'black', 'white']),
)
@pytest.mark.acceptance
@hypothesis.settings(max_examples=15, deadline=None)
def test_one_record_moves_its_class_alone_and_by_one_at_most(features, seed, label, place, value):
    images, labels = draw_images(5, seed), np.arange(5, dtype=np.int32) % CLASSES
    one = draw_images(1, seed + 1) if value == 'noise' else np.zeros([1, *SHAPE], np.uint8)
    one = np.full_like(one, 255) if value == 'white' else one
    more = np.insert(images, place, one[0], axis=0), np.insert(labels, place, label)
    for sigma in (0.3, 7.0):
        moved = exact_sums(*more, features, sigma) - exact_sums(images, labels, features, sigma)
        # Exact: integers, and the bound on their squares without any rounding.
        square = int(np.sum(moved[label].astype(object) ** 2))
        assert 0.99 * (grid.STDDEV / sigma) ** 2 < square <= grid.largest_squared_norm(sigma)
        assert not np.delete(moved, label, axis=0).any()


@hypothesis.given(
    seed=st.integers(0, 1000),
    sigma=st.floats(0.25, 3000),
    length=st.floats(0.5, 3),
    one=st.booleans(),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_contributions_are_integers_within_the_bound(seed, sigma, length, one):
    # Also of features that are longer than 1, and of a single number, that rounding makes longer.
    rng = np.random.default_rng(seed)
    phi = np.eye(1, 40) if one else rng.normal(size=[5, 40])
    phi = (length * phi / np.linalg.norm(phi, axis=1, keepdims=True)).astype(np.float32)
    step, most = grid.class_sum_step(sigma), grid.largest_squared_norm(sigma)
    found = grouped.on_grid(
        tf.constant(phi), tf.constant(step, tf.float64), tf.constant(most, tf.int64)
    ).numpy()
    squares = np.sum(found.astype(object) ** 2, axis=1)
    assert all(square <= most for square in squares)
    # No more is taken away than rounding asks for.
    wanted = np.minimum(1.0, np.linalg.norm(phi.astype(float), axis=1)) / step
    assert np.all(np.sqrt(squares.astype(float)) >= wanted * (1 - 1e-4) - 4)
    # A bound of which rounding up alone takes a record beyond it is kept too.
    tight = np.full([1, 64], 0.125, np.float32)
    step = tf.constant(0.25 - 1e-9, tf.float64)
    kept = grouped.on_grid(tf.constant(tight), step, tf.constant(16, tf.int64)).numpy()
    assert np.sum(kept**2) <= 16
