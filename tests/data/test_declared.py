"""What is public is declared, by the data set or the caller, or read off the records and said."""

import numpy as np
import pytest
from helpers import data_sets
from helpers.data_sets import error_of, gray_files, gray_image, noise_images, png, write_folder

from tf_efsgd.data import load


def _write_idx(folder, split, labels, seed):
    data_sets.write_idx(folder, split, noise_images(len(labels), 6, 9, seed=seed), labels)


# Classes.


def test_an_empty_class_folder_is_a_class(tmp_path):
    dataset = write_folder(tmp_path, {'a': {}, 'b': gray_files(30, 0), 'c': {}})
    loaded = load.load(dataset)
    assert loaded.train.class_names == loaded.test.class_names == ('a', 'b', 'c')
    assert set(loaded.train.labels) == {1}
    assert loaded.found['classes'] == ('a', 'b', 'c')
    assert 'classes' not in loaded.read_off  # The folders' names declare them.


def test_the_last_record_of_a_class_does_not_take_the_class_along(tmp_path):
    dataset = write_folder(tmp_path, {'a': gray_files(1, 0), 'b': gray_files(30, 10)})
    before = load.load(dataset)
    (tmp_path / 'a' / '000.png').unlink()
    after = load.load(dataset)
    assert after.train.class_names == before.train.class_names
    gone = {(gray_image(0).tobytes(), 0)}
    rows = [
        {(i.tobytes(), int(n)) for i, n in zip(part.images, part.labels)}
        for part in (before.train, before.test, after.train, after.test)
    ]
    assert (rows[0] | rows[1]) - (rows[2] | rows[3]) == gone
    assert rows[2] <= rows[0] and rows[3] <= rows[1]


def test_declared_classes_set_the_labels_in_their_order(tmp_path):
    dataset = write_folder(tmp_path, {'b': gray_files(20, 0), 'a': gray_files(20, 50)})
    loaded = load.load(dataset, classes=['none', 'b', 'a'])
    assert loaded.train.class_names == ('none', 'b', 'a')
    wanted = {gray_image(i).tobytes(): 1 for i in range(20)}
    wanted |= {gray_image(50 + i).tobytes(): 2 for i in range(20)}
    assert set(loaded.train.labels) == {1, 2}
    for image, label in zip(loaded.train.images, loaded.train.labels):
        assert wanted[image.tobytes()] == label
    assert 'classes' not in loaded.found


def test_an_image_of_a_class_that_is_not_declared_is_named(tmp_path):
    dataset = write_folder(tmp_path, {'a': gray_files(2, 0), 'b': gray_files(2, 9), 'empty': {}})
    path = str(tmp_path / 'b' / '000.png')
    error_of([path, "'b'", '--classes', 'a, c'], dataset, classes=['a', 'c'])
    # A folder of no class without an image in it is in nobody's way.
    assert load.load(dataset, classes=['a', 'b']).train.num_classes == 2
    write_folder(tmp_path / 'train', {'a': gray_files(2, 0), 'b': {}})
    write_folder(tmp_path / 'test', {'b': gray_files(1, 9), 'c': gray_files(1, 5)})
    path = str(tmp_path / 'test' / 'c' / '000.png')
    error_of([path, "'c'", 'Every class of the test images'], dataset)
    assert len(load.load(dataset, classes=['a', 'b', 'c']).test) == 2


def test_the_number_of_classes_of_idx_is_read_off_unless_it_is_declared(tmp_path):
    _write_idx(tmp_path, 'train', [0, 1, 2, 1], 3)
    _write_idx(tmp_path, 't10k', [0, 1], 4)
    read = load.load(f'idx:{tmp_path}')
    assert read.read_off == ('classes', 'dataset_size')
    assert read.found == {'classes': ('0', '1', '2'), 'dataset_size': 4}
    names = ('shirt', 'coat', 'boot', 'bag')
    declared = load.load(f'idx:{tmp_path}', classes=names, dataset_size=4)
    assert (declared.read_off, declared.found) == ((), {})
    assert declared.train.class_names == names and declared.test.num_classes == 4
    error_of(['1.25 times the 3 records', '--dataset_size'], f'idx:{tmp_path}', dataset_size=3)
    error_of(
        ['Record 2', 'train-labels-idx1-ubyte', 'label 2', '2 classes'],
        f'idx:{tmp_path}',
        classes=names[:2],
    )
    _write_idx(tmp_path, 't10k', [0, 4], 4)
    error_of(['Record 1', 't10k-labels-idx1-ubyte', 'label 4'], f'idx:{tmp_path}', classes=names)


@pytest.mark.parametrize('dataset', ['digits', 'mnist_10k'])
def test_a_named_set_has_its_own_classes_and_shape(dataset):
    loaded = load.load(dataset)
    assert loaded.read_off == ('dataset_size',)
    assert loaded.found == {'dataset_size': len(loaded.train)}
    again = load.load(dataset, classes=tuple('0123456789'), channels=3, dataset_size=8000)
    assert (again.read_off, again.found) == ((), {})
    np.testing.assert_array_equal(again.train.images[..., 2:], loaded.train.images)
    assert again.train.image_shape[-1] == 3
    error_of([dataset, 'Leave --classes out', 'a, b'], dataset, classes=['a', 'b'])


# Channels and size.


def test_channels_and_size_of_a_folder_are_read_off_and_declare_the_same_set(tmp_path):
    files = {'a': gray_files(20, 0), 'b': {'c.png': png(gray_image(99, 6, 6, 3))}}
    dataset = write_folder(tmp_path, files)
    read = load.load(dataset)
    assert read.read_off == ('channels', 'image_size', 'dataset_size')
    assert read.found == {
        'classes': ('a', 'b'), 'channels': 3, 'image_size': 6, 'dataset_size': len(read.train)
    }  # fmt: skip
    declared = load.load(dataset, **read.found)
    assert (declared.read_off, declared.found) == ((), {})
    for one, other in ((read.train, declared.train), (read.test, declared.test)):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize('channels', [1, 3])
def test_one_image_with_colours_does_not_change_declared_channels(tmp_path, channels):
    def load_all():
        loaded = load.load(f'folder:{tmp_path}', channels=channels)
        parts = [part.images for part in (loaded.train, loaded.test)]
        return np.concatenate(parts), len(loaded.test)

    write_folder(tmp_path, {'a': gray_files(40, 0)})
    before, tested = load_all()
    colour = gray_image(99, 6, 6, 3)
    write_folder(tmp_path, {'a': {'99.png': png(colour)}})
    after, tested_then = load_all()
    assert before.shape[1:] == after.shape[1:] == (6, 6, channels)
    (added,) = {i.tobytes() for i in after} - {i.tobytes() for i in before}
    assert {i.tobytes() for i in before} <= {i.tobytes() for i in after}
    assert tested_then - tested in (0, 1)
    if channels == 1:
        gray = np.round(colour @ np.array([0.299, 0.587, 0.114]))
        assert np.abs(np.frombuffer(added, np.uint8) - gray.ravel()).max() <= 1
    else:
        assert added == colour.tobytes()


def test_gray_stored_with_three_channels_is_the_same_gray(tmp_path):
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    files = {'x': {'1.png': png(np.repeat(gray, 3, -1)), '2.png': png(gray)}}
    write_folder(tmp_path / 'train', files)
    write_folder(tmp_path / 'test', files)
    loaded = load.load(f'folder:{tmp_path}', channels=1)
    np.testing.assert_array_equal(loaded.train.images, [gray, gray])


@pytest.mark.parametrize('channels', [0, 2, 4])
def test_other_channels_are_refused(channels):
    error_of(['channels must be 1 or 3', f'Received: {channels}'], 'digits', channels=channels)


def test_a_schema_declares_classes_channels_and_size(own_tfds):
    load, images = own_tfds
    loaded = load({'train': range(60), 'test': range(60, 80)})
    assert loaded.read_off == ('dataset_size',)
    assert loaded.found == {'dataset_size': 60}
    gray = load({'train': range(60), 'test': range(60, 80)}, channels=1)
    assert gray.train.image_shape == (5, 5, 1)
    weighted = images[0][:, 1:6] @ np.array([0.299, 0.587, 0.114])
    distance = np.abs(gray.train.images[..., 0].astype(int) - weighted).max(axis=(1, 2))
    assert distance.min() <= 1


def test_what_a_schema_leaves_open_is_read_off(own_tfds):
    load, _ = own_tfds
    loaded = load({'train': range(60), 'test': range(60, 80)}, shape=(None, None, None))
    assert loaded.read_off == ('channels', 'image_size', 'dataset_size')
    assert loaded.found == {'channels': 3, 'image_size': 5, 'dataset_size': 60}
    declared = load({'train': range(60), 'test': range(60, 80)}, **loaded.found)
    np.testing.assert_array_equal(declared.train.images, loaded.train.images)


def test_the_declared_sizes_are_those_before_the_limit(tmp_path):
    dataset = write_folder(tmp_path, {'a': gray_files(90, 0)})
    whole = load.load(dataset)
    limited = load.load(dataset, limit_records=40)
    assert limited.declared_size == 40
    assert limited.found['dataset_size'] == len(whole.train)
    declared = load.load(dataset, limit_records=40, **limited.found)
    np.testing.assert_array_equal(declared.train.images, limited.train.images)
    assert declared.declared_size == 40
