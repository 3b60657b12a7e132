"""Image files in class folders."""

import numpy as np
import tensorflow as tf
from helpers.data_sets import error_of, gray_files, gray_image, png, rows_of, write_folder

from tf_efsgd.data import load
from tf_efsgd.data.sources import folder


def test_folder_of_classes(tmp_path):
    files = {
        'zebra': gray_files(70, 0),
        'ant': {**gray_files(29, 100), 'UPPER.PNG': png(gray_image(300))},
    }
    dataset = write_folder(tmp_path, files)
    (tmp_path / '.hidden').mkdir()
    (tmp_path / 'ant' / '.junk.png').write_bytes(b'no image')
    (tmp_path / 'ant' / 'notes.txt').write_bytes(b'no image')
    (tmp_path / 'README.md').write_bytes(b'no image')
    loaded = load.load(dataset)
    assert loaded.train.class_names == ('ant', 'zebra')
    assert loaded.train.image_shape == (6, 6, 1)
    wanted = {(gray_image(100 + i).tobytes(), 0) for i in range(29)} | {
        (gray_image(300).tobytes(), 0)
    }
    wanted |= {(gray_image(i).tobytes(), 1) for i in range(70)}
    assert rows_of(loaded.train) | rows_of(loaded.test) == wanted
    assert 1 <= len(loaded.test) <= 25
    # Not by position: without one file all others stay where they were.
    (tmp_path / 'ant' / '000.png').unlink()
    fewer = load.load(dataset)
    gone = {(gray_image(100).tobytes(), 0)}
    assert rows_of(fewer.train) == rows_of(loaded.train) - gone
    assert rows_of(fewer.test) == rows_of(loaded.test) - gone
    # Nor by the size it is resized to.
    small = load.load(dataset, image_size=3)
    np.testing.assert_array_equal(small.test.labels, fewer.test.labels)


def test_folder_with_train_and_test(tmp_path):
    write_folder(
        tmp_path / 'train', {'a': gray_files(3, 0), 'b': gray_files(2, 10), 'c': gray_files(1, 20)}
    )
    write_folder(tmp_path / 'test', {'c': gray_files(2, 30), 'b': gray_files(1, 40)})
    loaded = load.load(f'folder:{tmp_path}')
    assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert loaded.test.labels.tolist() == [1, 2, 2]
    np.testing.assert_array_equal(loaded.test.images[1], gray_image(30))
    write_folder(tmp_path / 'test', {'dog': gray_files(1, 50)})
    error_of(["'dog'", 'Every class of the test images'], f'folder:{tmp_path}')


def test_folders_without_images_are_named(tmp_path):
    error_of([str(tmp_path), 'no class folders'], f'folder:{tmp_path}')
    dataset = write_folder(tmp_path, {'empty': {}, 'too': {}})
    error_of([str(tmp_path), 'no images (.png, .jpg'], dataset)
    write_folder(tmp_path / 'train', {'a': gray_files(1, 0)})
    write_folder(tmp_path / 'test', {'a': {}})
    error_of([str(tmp_path / 'test'), 'no images (.png, .jpg'], dataset)


def test_images_in_folders_within_a_class_folder_are_of_the_class(tmp_path):
    files = {'cat': gray_files(20, 0), 'dog/rex': gray_files(9, 50), 'dog/a/b': gray_files(9, 70)}
    loaded = load.load(write_folder(tmp_path, files))
    assert loaded.train.class_names == ('cat', 'dog')
    dogs = {(gray_image(i).tobytes(), 1) for i in (*range(50, 59), *range(70, 79))}
    assert dogs <= rows_of(loaded.train) | rows_of(loaded.test)
    (said,) = [note for note in loaded.notes if 'lie in folders' in note]
    assert '18 images' in said and '--person=folder' in said


def test_a_folder_with_nothing_but_the_right_one_is_pointed_out(tmp_path):
    write_folder(tmp_path / 'images', {'cat': gray_files(2, 0), 'dog': gray_files(2, 9)})
    error_of(['one folder, images', f'folder:{tmp_path / "images"}'], f'folder:{tmp_path}')
    assert load.load(f'folder:{tmp_path}', classes=['images']).train.num_classes == 1


def test_the_usual_side_is_the_middle_of_the_shorter_sides(tmp_path):
    assert folder.usual_side(tmp_path / 'nowhere') is None
    (tmp_path / 'a').mkdir()
    for number, shape in enumerate(([9, 30, 1], [20, 11, 1], [40, 13, 1])):
        png = tf.io.encode_png(tf.zeros(shape, tf.uint8)).numpy()
        (tmp_path / 'a' / f'{number}.png').write_bytes(png)
    assert folder.usual_side(tmp_path) == 11
    (tmp_path / 'a' / 'broken.png').write_bytes(b'no image')
    assert folder.usual_side(tmp_path) == 11
