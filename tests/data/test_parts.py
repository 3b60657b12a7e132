"""Parts: images of a stream are decoded in batches, and the one that breaks a batch is named."""

import numpy as np
import pytest
from helpers.data_sets import (
    error_of,
    gray_files,
    gray_image,
    jpeg,
    noise_images,
    png,
    write_folder,
    write_train,
)

from tf_efsgd.data import load, parts


def test_colour_after_the_first_batch_makes_all_rgb(tmp_path):
    count = parts._BATCH + 5
    files = {'a': gray_files(count, 0), 'b': {'c.png': png(noise_images(6, 6, 3))}}
    loaded = load.load(write_train(tmp_path, files))
    assert loaded.train.images.shape == (count + 1, 6, 6, 3)
    np.testing.assert_array_equal(loaded.train.images[3], np.repeat(gray_image(3), 3, -1))
    np.testing.assert_array_equal(loaded.train.images[-1], noise_images(6, 6, 3))


@pytest.mark.parametrize('fault', ['empty', 'text', 'cut off'])
@pytest.mark.parametrize('place', ['0bad.JPG', '100bad.jpg'])
def test_an_unreadable_image_is_named(tmp_path, fault, place):
    cut_off = jpeg(noise_images(60, 60, 3))[:-900]
    content = {'empty': b'', 'text': b'no image', 'cut off': cut_off}[fault]
    dataset = write_folder(
        tmp_path, {'a': gray_files(2, 0), 'b': {**gray_files(150, 9), place: content}}
    )
    error_of([str(tmp_path / 'b' / place), 'cannot be read'], dataset)
    error_of([str(tmp_path / 'b' / place), 'cannot be read'], dataset, image_size=5)


@pytest.mark.parametrize('count', [3, parts._BATCH])
def test_images_of_two_sizes_need_image_size(tmp_path, count):
    files = {**gray_files(count, 0), 'odd.png': png(gray_image(1, 7, 9, 1))}
    dataset = write_train(tmp_path, {'a': files})
    error_of([str(tmp_path / 'train' / 'a' / 'odd.png'), '7x7', '6x6', '--image_size'], dataset)
    assert load.load(dataset, image_size=5).train.images.shape == (count + 1, 5, 5, 1)
