"""Features of pixels: bounded, fixed, and of the kernels that they stand for."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.small_images import SHAPE, draw_images

from tf_efsgd.privacy.features import pixels


@pytest.fixture(scope='module')
def features():
    return pixels.FeatureMap(SHAPE)


@pytest.mark.parametrize('shape', [SHAPE, (28, 28, 1), (64, 64, 3), (4, 4, 1)])
def test_features_have_norm_one_at_most_whatever_the_image(shape):
    drawn = np.random.default_rng(1).uniform(-1, 1, [3, *shape])
    extreme = np.stack([np.full(shape, v) for v in (-1.0, 1.0, 1e3, -1e3)])
    images = tf.constant(np.concatenate([drawn, extreme]), tf.float32)
    features = pixels.FeatureMap(shape)
    norms = np.linalg.norm(features(images).numpy().astype(np.float64), axis=1)
    assert features(images).shape == [7, features.size]
    assert np.all(norms <= 1.0)
    assert norms[:3] == pytest.approx(1.0, abs=1e-3)  # Nor is room wasted.


def test_the_map_is_fixed_before_it_sees_a_record(features):
    images = tf.constant(draw_images(4), tf.float32) / 127.5 - 1.0
    before = features(images).numpy()
    tf.random.set_seed(4711)
    np.testing.assert_array_equal(pixels.FeatureMap(SHAPE)(images).numpy(), before)


def test_groups_stand_for_the_kernels(features):
    # exp(-|a - b|^2 / (2 bandwidth^2)) on pixels in [0, 1], whole and, the mean, in windows.
    images = draw_images(2, 8).astype(np.float32) / 255
    images = images[:1] + 0.6 * (images - images[:1])  # Near each other, as images of a class.

    def kernel(a, b):
        return np.exp(-np.sum((a - b) ** 2) / (2 * 0.18**2 * a.size))

    corners = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)]
    windows = [images[:, y : y + 4, x : x + 4] for y, x in corners]
    wanted = (kernel(*images) + np.mean([kernel(*w) for w in windows])) / 2
    assert 0.05 < wanted < 0.8
    found = []
    for group in range(8):
        phi = features.group(tf.constant(2 * images - 1), group).numpy()
        found.append(phi[0] @ phi[1])
    assert np.mean(found) == pytest.approx(wanted, abs=0.02)
    assert np.mean(found) != pytest.approx(1.2 * wanted, abs=0.02)


def test_the_features_are_those_of_their_version(features):
    # What a run has released is of use to these features only: with others, count VERSION up.
    images = tf.reshape(tf.linspace(-1.0, 1.0, 64), [1, *SHAPE])
    phi = features(images).numpy()[0]
    found = [*phi[[0, 1000, 2000, -2, -1]], phi.sum()]
    golden = [-7.24404e-3, 3.06552e-3, 4.55121e-3, 2.93692e-3, 0.099999, 12.48481]
    assert pixels.VERSION == 3
    np.testing.assert_allclose(found, golden, rtol=1e-3)
