"""Features: what a classifier sees, and pixels."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.toy_images import toy

from tf_efsgd.evaluation import classifiers, looks


@pytest.mark.parametrize('build', [classifiers.build_cnn, classifiers.build_mlp])
def test_features_are_what_the_last_layer_sees(build):
    model = build((8, 8, 1), 3, seed=1)
    images = toy(600, 1).images  # more than a batch
    seen = looks.Look(model)(images)
    width = 128 if build is classifiers.build_cnn else 256
    assert seen.features.shape == (600, width)
    assert (seen.features >= 0).all()
    kernel, bias = model.layers[-1].get_weights()
    logits = model(images / np.float32(127.5) - 1).numpy()
    np.testing.assert_allclose(seen.features @ kernel + bias, logits, atol=1e-4)
    np.testing.assert_allclose(seen.probabilities, tf.nn.softmax(logits), atol=1e-5)
    np.testing.assert_allclose(seen.probabilities.sum(1), 1)


def test_pixels_are_averages_between_minus_one_and_one():
    images = np.zeros([2, 32, 32, 3], np.uint8)
    images[1, :2, :2] = [[[0], [255]], [[255], [0]]]
    features = looks.pixel_features(images).reshape(2, 16, 16, 3)
    np.testing.assert_allclose(features[0], -1)
    np.testing.assert_allclose(features[1, 0, 0], 0, atol=1e-6)
    np.testing.assert_allclose(features[1, 0, 1], -1)
    assert looks.pixel_features(images[:, :8, :8]).shape == (2, 8 * 8 * 3)


def test_the_public_network_sees_colours():
    images = np.zeros([3, 16, 16, 3], np.uint8)
    images[1, ..., 0], images[2, ..., 2] = 200, 200

    found = looks.PublicLook((16, 16, 3))(images)

    assert found.shape == (3, 112) and found.dtype == np.float32
    assert np.abs(found[1] - found[2]).max() > 0.1
