"""Tests of features of a public network: one bound for all parts, and what one record can move."""

import numpy as np
import pytest
import tensorflow as tf

from tf_efsgd.models.public_network import build_public_network
from tf_efsgd.privacy import class_sums, grid
from tf_efsgd.privacy.features import public
from tf_efsgd.training import fit as fitting
from tf_efsgd.training import targets

_SHAPE = (16, 16, 3)
_CLASSES = 3


@pytest.fixture(scope='module')
def features():
    return public.PublicFeatures(build_public_network(_SHAPE, enlarge=2), _SHAPE, 0.05)


def _images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, [n, *_SHAPE]).astype(np.uint8)


def _exact(images, labels, features):
    labels = np.asarray(labels, np.int32)
    return class_sums.sum_over_records(images, labels, _CLASSES, features, 0.7)


@pytest.mark.parametrize('scale', [0.0, 1.0, 1e3])
def test_features_have_norm_one_at_most_whatever_the_image(features, scale):
    images = tf.constant(scale * np.random.default_rng(1).normal(size=[9, *_SHAPE]), tf.float32)

    phi = features(images)

    assert phi.shape == (9, features.size)
    assert np.all(np.linalg.norm(phi, axis=1) <= 1.0)
    # The kernels' part is a constant: they are not lost beside the activations.
    assert np.all(np.linalg.norm(phi, axis=1) > 0.6)


def test_not_finite_counts_as_zero(features):
    images = np.zeros([2, *_SHAPE], np.float32)
    images[0, 3, 3, 0] = np.nan

    phi = features(tf.constant(images)).numpy()

    assert np.all(phi[0] == 0.0)
    assert np.linalg.norm(phi[1]) > 0.6


def test_one_record_moves_the_sums_by_one_at_most_and_its_class_alone(features):
    images, labels = _images(5), [0, 1, 2, 1, 1]

    moved = _exact(images, labels, features) - _exact(images[:4], labels[:4], features)

    assert np.all(moved[[0, 2]] == 0)
    squares = sum(int(v) ** 2 for v in moved[1])
    assert 0 < squares <= grid.largest_squared_norm(0.7)


def test_sums_do_not_depend_on_the_order_of_the_records(features):
    images, labels = _images(7), np.arange(7) % _CLASSES
    order = np.random.default_rng(2).permutation(7)

    one, two = _exact(images, labels, features), _exact(images[order], labels[order], features)

    np.testing.assert_array_equal(one, two)


def test_class_means_come_back_without_noise(features):
    images, labels = _images(40), np.arange(40, dtype=np.int32) % 2
    sums = class_sums.release(images, labels, 2, features, 0.0, None)

    means = class_sums.class_means(sums, 0.0, 40, groups=features.groups)

    floats = tf.cast(images, tf.float32) / 127.5 - 1.0
    expected = features.group(floats).numpy()
    for label in (0, 1):
        np.testing.assert_allclose(means[0, label], expected[labels == label].mean(0), atol=1e-4)
    activations = features.activations(features.maps(floats)).numpy()
    of_class = activations[labels == 1].mean(axis=0)
    np.testing.assert_allclose(features.activation_means(means)[1], of_class, atol=1e-4)


def test_two_makes_agree(features):
    again = public.PublicFeatures(build_public_network(_SHAPE, enlarge=2), _SHAPE, 0.05)
    images = tf.cast(_images(3), tf.float32) / 127.5 - 1.0

    np.testing.assert_array_equal(features(images), again(images))


def test_fewer_features_for_fewer_records_and_more_noise():
    usual = public.choose_size(20_000, 10, 0.8)

    assert public.choose_size(5_000, 10, 0.8) < usual
    assert public.choose_size(20_000, 100, 0.8) < usual
    assert public.choose_size(20_000, 10, 4.0) < usual
    assert public.choose_size(10**9, 1, 0.8) <= 2.0
    assert public.choose_size(10, 10, 9.0) > 0.0


def test_a_fit_comes_nearer_to_the_release(features):
    generator = _Pixels()
    target_images = tf.constant(np.tile(np.linspace(-1, 1, 16), [60, 16, 3, 1]), tf.float32)
    target_images = tf.transpose(target_images, [0, 1, 3, 2])
    target = targets.Target(
        features, tf.reduce_mean(features.group(target_images), axis=0)[tf.newaxis, tf.newaxis]
    )

    def draw_inputs(_, labels, seed, rows=None):
        assert rows is None  # One device makes all images of a step.
        return tf.random.stateless_normal([tf.shape(labels)[0], 4], seed)

    seed = tf.constant([0, 1])
    labels = target.draw_labels(seed)

    def distance():
        return float(target.distance(generator(draw_inputs(None, labels, seed)), labels, seed))

    before = distance()
    fitting.fit(generator, draw_inputs, [target], steps=30, learning_rate=0.05)
    assert distance() < 0.6 * before


class _Pixels(tf.keras.Model):
    """A generator so small that it is fitted in seconds."""

    def __init__(self):
        super().__init__()
        self._dense = tf.keras.layers.Dense(16 * 16 * 3, activation='tanh')
        self(tf.zeros([1, 4]))

    def call(self, inputs, training=None):
        return tf.reshape(self._dense(inputs), [-1, *_SHAPE])
