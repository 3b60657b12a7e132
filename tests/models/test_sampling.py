"""Images from labels: in batches, and the same for the same seed."""

import numpy as np
import pytest
import tensorflow as tf

from tf_efsgd.data import images as pixels
from tf_efsgd.models import sampling
from tf_efsgd.models.generator import build_generator, draw_inputs


@pytest.fixture(scope='module')
def generator():
    tf.keras.utils.set_random_seed(3)
    return build_generator((8, 8, 1), 3, latent_dim=4, width=4)


def test_images_come_in_batches_each_with_latents_of_its_own(generator, monkeypatch):
    labels = np.arange(7, dtype=np.int32) % 3
    monkeypatch.setattr(sampling, '_BATCH_SIZE', 3)
    images = sampling.generate(generator, labels, 11)
    assert (images.shape, images.dtype) == ((7, 8, 8, 1), np.uint8)
    for start in (0, 3, 6):
        part = labels[start : start + 3]
        made = generator(draw_inputs(generator, tf.constant(part), tf.constant([11, start])))
        np.testing.assert_array_equal(images[start : start + 3], pixels.to_uint8(made))
    # The labels 0, 1, 2 again, but not the same images.
    assert not np.array_equal(images[:3], images[3:6])


def test_the_seed_decides_the_images(generator):
    labels = np.zeros([4], np.int32)
    images = sampling.generate(generator, labels, 11)
    np.testing.assert_array_equal(sampling.generate(generator, labels, 11, 'again'), images)
    assert not np.array_equal(sampling.generate(generator, labels, 12), images)
