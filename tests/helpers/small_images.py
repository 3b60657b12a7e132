"""Small random images, and the sums of their features by class."""

import numpy as np
import tensorflow as tf

from tf_efsgd.privacy import class_sums, grid, noise

SHAPE = (8, 8, 1)
CLASSES = 3


def draw_images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, [n, *SHAPE]).astype(np.uint8)


def exact_sums(images, labels, features, noise_multiplier):
    """Returns the sum before its noise, in steps."""
    labels = np.asarray(labels, np.int32)
    return class_sums.sum_over_records(images, labels, CLASSES, features, noise_multiplier)


def released_sums(images, labels, features, noise_multiplier=0.0, source=None):
    """Returns F in its own unit, from the released integers."""
    labels = np.asarray(labels, np.int32)
    source = source or noise.NoiseKey()
    sums = class_sums.release(images, labels, CLASSES, features, noise_multiplier, source)
    assert sums.dtype == np.int64
    return sums * grid.class_sum_step(noise_multiplier)


class PixelFeatures:
    """Features that are the pixels, the same in every group."""

    def group(self, images, group):
        return tf.reshape(images, [tf.shape(images)[0], -1])
