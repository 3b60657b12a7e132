"""Pixels: every kind of file, the crop, the resize, channels, and the two ranges."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.data_sets import (
    gray_image,
    jpeg,
    noise_images,
    palette_png,
    png,
    write_folder,
    write_idx,
    write_train,
)

from tf_efsgd.data import images, load, parts


def test_every_kind_of_png_becomes_8_bit_rgb(tmp_path):
    gray, alpha, rgb = gray_image(1), gray_image(2), noise_images(6, 6, 3, seed=3)
    indices = noise_images(6, 6, seed=4) % 5
    palette = noise_images(5, 3, seed=5)
    opacity = alpha / 255
    on_white = np.round(rgb * opacity + 255 * (1 - opacity))
    files = {
        '0 gray': (png(gray), np.repeat(gray, 3, -1)),
        '1 rgb': (png(rgb), rgb),
        '2 gray, 16 bits': (png(gray.astype(np.uint16) * 256 + 99), np.repeat(gray, 3, -1)),
        '3 rgb, 16 bits': (png(rgb.astype(np.uint16) * 256 + 99), rgb),
        '4 palette': (palette_png(indices, palette), palette[indices]),
        '5 rgb, alpha': (png(np.concatenate([rgb, alpha], -1)), on_white),
        '6 gray, clear': (png(np.concatenate([gray, 0 * gray], -1)), np.full_like(rgb, 255)),
        '7 rgb, opaque': (png(np.concatenate([rgb, 0 * alpha + 255], -1)), rgb),
    }
    contents = {f'{name}.png': data for name, (data, _) in files.items()}
    loaded = load.load(write_train(tmp_path, {'x': contents}))
    assert loaded.train.images.shape == (len(files), 6, 6, 3)
    for image, (name, (_, wanted)) in zip(loaded.train.images, files.items()):
        np.testing.assert_allclose(image.astype(int), wanted, atol=1 if '5' in name else 0)


def test_gray_with_and_without_alpha_stays_gray(tmp_path):
    gray = gray_image(1)
    opaque = np.concatenate([gray, 0 * gray + 255], -1)
    files = {'0.png': png(gray), '1.png': png(opaque), '2.jpg': jpeg(gray)}
    write_folder(tmp_path / 'train', {'x': files})
    write_folder(tmp_path / 'test', {'x': {'0.jpeg': jpeg(gray)}})
    loaded = load.load(f'folder:{tmp_path}')
    assert loaded.train.image_shape == loaded.test.image_shape == (6, 6, 1)
    np.testing.assert_array_equal(loaded.train.images[0], gray)
    np.testing.assert_array_equal(loaded.train.images[1], gray)
    # One coloured test image makes all of them RGB.
    write_folder(tmp_path / 'test', {'x': {'1.png': png(noise_images(6, 6, 3))}})
    loaded = load.load(f'folder:{tmp_path}')
    assert loaded.train.image_shape == loaded.test.image_shape == (6, 6, 3)
    np.testing.assert_array_equal(loaded.train.images[0], np.repeat(gray, 3, -1))


def test_images_are_cropped_to_the_centre_and_resized(tmp_path):
    # Left and right thirds are black and must be gone; the square is dark above, bright below.
    wide = np.zeros([8, 24, 1], np.uint8)
    wide[:4, 8:16], wide[4:, 8:16] = 30, 201
    tall = wide.transpose(1, 0, 2)
    write_train(tmp_path, {'x': {'0.png': png(wide), '1.png': png(tall)}})
    native = load.load(f'folder:{tmp_path}').train.images
    np.testing.assert_array_equal(native[0], wide[:, 8:16])
    np.testing.assert_array_equal(native[1], tall[8:16])
    small = load.load(f'folder:{tmp_path}', image_size=2).train.images[..., 0]
    # Antialiased: a pixel is a weighted mean of what it covers, a little of the other side too.
    assert small[0, 0, 0] == small[0, 0, 1] and small[0, 1, 0] == small[0, 1, 1]
    assert 30 < small[0, 0, 0] < 60 and 171 < small[0, 1, 0] < 201
    np.testing.assert_array_equal(small[1], small[0].T)


def test_resizing_rounds_to_the_nearest():
    image = noise_images(1, 9, 9, 3)
    exact = tf.image.resize(image, [4, 4], antialias=True).numpy()
    error = images.resize(tf.constant(image), 4).numpy() - exact
    assert np.abs(error).max() <= 0.5
    assert (error < -0.1).any() and (error > 0.1).any()


def test_resizing_is_antialiased(tmp_path):
    # Stripes one pixel wide: without antialiasing a single stripe would be picked.
    stripes = np.zeros([32, 32, 1], np.uint8)
    stripes[:, ::2] = 255
    write_train(tmp_path, {'x': {'0.png': png(stripes)}})
    small = load.load(f'folder:{tmp_path}', image_size=4).train.images
    assert small.dtype == np.uint8
    assert 110 < small.min() <= small.max() < 145
    same = load.load(f'folder:{tmp_path}', image_size=32).train.images
    np.testing.assert_array_equal(same[0], stripes)
    idx, array = tmp_path / 'idx', stripes[None, ..., 0]
    idx.mkdir()
    write_idx(idx, 'train', array, [0])
    write_idx(idx, 't10k', array, [0])
    np.testing.assert_array_equal(load.load(f'idx:{idx}', image_size=4).train.images, small)


def test_pixels_go_there_and_back():
    pixels = tf.constant(np.arange(256, dtype=np.uint8))
    floats = images.to_float(pixels)
    assert (float(floats[0]), float(floats[-1])) == (-1.0, 1.0)
    np.testing.assert_array_equal(images.to_uint8(floats), pixels)
    np.testing.assert_array_equal(images.to_uint8(tf.constant([-9.0, 9.0])), [0, 255])


@pytest.mark.parametrize('had', [1, 3])
@pytest.mark.parametrize('channels', [1, 3])
def test_images_have_the_channels_that_are_asked_for(had, channels):
    drawn = np.random.default_rng(4).integers(0, 256, [5, 4, 4, had]).astype(np.uint8)
    made = images.with_channels(drawn, channels)
    assert made.shape == (5, 4, 4, channels) and made.dtype == np.uint8
    if had == channels:
        np.testing.assert_array_equal(made, drawn)
    elif channels == 1:
        np.testing.assert_array_equal(made, images.to_gray(drawn))
    else:
        np.testing.assert_array_equal(made[..., 2:], drawn)


def test_arrays_of_colours_become_a_part():
    drawn = np.random.default_rng(5).integers(0, 256, [3, 6, 4, 3]).astype(np.uint8)
    part = parts.part_of_arrays(drawn, np.arange(3), 4)
    np.testing.assert_array_equal(part.images, drawn[:, 1:5])
    assert len(part.digests) == 3
