"""The one look at all records: every one counts, alike wherever it stands, and noise is added."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.small_images import CLASSES, SHAPE, draw_images, exact_sums, released_sums

from tf_efsgd.privacy import class_sums, grid, noise
from tf_efsgd.privacy.features import alone, pixels


@pytest.fixture(scope='module')
def features():
    return pixels.FeatureMap(SHAPE)


def test_more_features_than_are_accounted_are_refused(features, monkeypatch):
    monkeypatch.setattr(grid, 'LARGEST_FEATURES', features.size - 1)
    with pytest.raises(ValueError, match=f'Received: {features.size}'):
        released_sums(draw_images(2), [0, 1], features, 0.7)


def test_a_record_does_not_depend_on_its_place_or_its_neighbours(features):
    """Tested, not proven: a row's features are the same to the last bit wherever it stands."""
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, [96, *SHAPE]).astype(np.uint8)

    def to_float(pixels):
        return tf.cast(pixels, tf.float32) / 127.5 - 1.0

    rows = alone.choose_rows(features, to_float(images).numpy())
    compute = tf.function(lambda pixels: features(to_float(pixels)))

    def in_parts(pixels):
        parts = [compute(tf.constant(pixels[i : i + rows])) for i in range(0, len(pixels), rows)]
        return np.concatenate(parts)

    whole = in_parts(images)
    order = rng.permutation(len(images))
    np.testing.assert_array_equal(in_parts(images[order]), whole[order])
    others = images.copy()
    others[::2] = 255 - others[::2]
    np.testing.assert_array_equal(in_parts(others)[1::2], whole[1::2])
    padded = images.copy()
    padded[20:] = 0
    np.testing.assert_array_equal(in_parts(padded)[:20], whole[:20])


@pytest.mark.parametrize('make_source', [noise.NoiseKey, noise.SecureNoise])
def test_noise_has_its_scale_also_without_records(features, make_source):
    none = np.zeros([0, *SHAPE], np.uint8)
    sums = released_sums(none, [], features, 0.7, make_source())
    assert sums.shape == (CLASSES, features.size)
    n = sums.size
    error = 4 / np.sqrt(2 * n)  # Four standard deviations of a standard deviation.
    assert abs(sums.std() / 0.7 - 1) < error
    assert abs(sums.mean()) < 4 * 0.7 / np.sqrt(n)
    for wrong in (2 / 3, 3 / 2):
        assert abs(wrong * sums.std() / 0.7 - 1) > error
    other = released_sums(none, [], features, 0.7, make_source())
    assert abs(np.corrcoef(sums.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(n)


def test_noise_is_added_to_the_sums(features):
    images, labels = draw_images(6), [0, 0, 1, 1, 1, 1]

    def release(*records):
        return class_sums.release(*records, CLASSES, features, 0.7, noise.NoiseKey(3))

    labels = np.asarray(labels, np.int32)
    moved = release(images, labels) - release(images[:0], labels[:0])
    np.testing.assert_array_equal(moved, exact_sums(images, labels, features, 0.7))


@pytest.mark.parametrize('n', [511, 512, 513])
def test_every_record_counts_whatever_the_parts(features, n):
    images, labels = draw_images(n), np.arange(n, dtype=np.int32) % CLASSES
    true = np.zeros([CLASSES, features.size])
    for start in range(0, n, 100):
        pixels = tf.constant(images[start : start + 100], tf.float32) / 127.5 - 1.0
        np.add.at(true, labels[start : start + 100], features(pixels).numpy().astype(np.float64))
    np.testing.assert_allclose(released_sums(images, labels, features), true, atol=1e-3)


def test_a_record_is_seen_alike_in_a_full_part_and_in_the_last_one(features):
    images, labels = draw_images(513), np.zeros(513, np.int32)
    whole = exact_sums(images, labels, features, 0.7)
    parts = [
        exact_sums(images[part], labels[part], features, 0.7)
        for part in (slice(512), slice(512, 513))
    ]
    np.testing.assert_array_equal(whole, sum(parts))


@pytest.mark.parametrize('n', [0, 1, 1100])
def test_the_sum_over_replicas_is_that_of_one_device_to_the_last_digit(features, several, n):
    """Parts that do not come out even, fewer records than replicas, and none."""
    images, labels = draw_images(n), np.arange(n, dtype=np.int32) % CLASSES
    one = exact_sums(images, labels, features, 0.7)
    sums = class_sums.sum_over_records(images, labels, CLASSES, features, 0.7, several)
    np.testing.assert_array_equal(sums, one)
    assert sums.dtype == np.int64 and bool(sums.any()) == bool(n)


def test_replicas_release_one_noise(features, strategy):
    images, labels = draw_images(600), np.zeros(600, np.int32)
    released = [
        class_sums.release(images, labels, CLASSES, features, 0.7, noise.NoiseKey(3), how)
        for how in (None, strategy)
    ]
    np.testing.assert_array_equal(*released)


def test_class_means_are_means_whatever_the_size_of_a_class(features):
    images = draw_images(9)
    sums = exact_sums(images, [0, 0, 0, 0, 0, 0, 0, 1, 1], features, 0.7)
    means = class_sums.class_means(sums, 0.7, 9)
    for group in (0, 3):
        phi = features.group(tf.constant(images, tf.float32) / 127.5 - 1.0, group).numpy()
        np.testing.assert_allclose(means[group, 0], phi[:7].mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(means[group, 1], phi[7:].mean(axis=0), atol=1e-5)
    # An empty class, and one whose count noise has made negative, stay finite.
    assert np.all(means[:, 2] == 0)
    assert np.all(np.isfinite(class_sums.class_means(-sums, 0.7, 9)))
