"""What is public is declared, by the data set or the caller, or read off the records and said."""

import struct

import numpy as np
import pytest
import tensorflow as tf

from tf_efsgd.data import records
from tf_efsgd.data.errors import DataError


def _image(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape or (6, 6, 1), dtype=np.uint8)


def _png(pixels):
    return tf.io.encode_png(pixels).numpy()


def _write(root, classes):
    for name, files in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            (root / name / file).write_bytes(data)
    return f'folder:{root}'


def _grey_files(count, start):
    return {f'{i:02}.png': _png(_image(start + i)) for i in range(count)}


def _write_idx(folder, split, labels, seed):
    images = _image(seed, len(labels), 6, 9)
    (folder / f'{split}-images-idx3-ubyte').write_bytes(
        struct.pack('>4I', 2051, *images.shape) + images.tobytes()
    )
    (folder / f'{split}-labels-idx1-ubyte').write_bytes(
        struct.pack('>2I', 2049, len(labels)) + bytes(labels)
    )


def _error(words, *args, **kwargs):
    with pytest.raises(DataError) as caught:
        records.load(*args, **kwargs)
    assert '\n' not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


# Classes.


def test_an_empty_class_folder_is_a_class(tmp_path):
    dataset = _write(tmp_path, {'a': {}, 'b': _grey_files(30, 0), 'c': {}})
    loaded = records.load(dataset)
    assert loaded.train.class_names == loaded.test.class_names == ('a', 'b', 'c')
    assert set(loaded.train.labels) == {1}
    assert loaded.found['classes'] == ('a', 'b', 'c')
    assert 'classes' not in loaded.read_off  # The folders' names declare them.


def test_the_last_record_of_a_class_does_not_take_the_class_along(tmp_path):
    dataset = _write(tmp_path, {'a': _grey_files(1, 0), 'b': _grey_files(30, 10)})
    before = records.load(dataset)
    (tmp_path / 'a' / '00.png').unlink()
    after = records.load(dataset)
    assert after.train.class_names == before.train.class_names
    gone = {(_image(0).tobytes(), 0)}
    rows = [
        {(i.tobytes(), int(n)) for i, n in zip(part.images, part.labels)}
        for part in (before.train, before.test, after.train, after.test)
    ]
    assert (rows[0] | rows[1]) - (rows[2] | rows[3]) == gone
    assert rows[2] <= rows[0] and rows[3] <= rows[1]


def test_declared_classes_set_the_labels_in_their_order(tmp_path):
    dataset = _write(tmp_path, {'b': _grey_files(20, 0), 'a': _grey_files(20, 50)})
    loaded = records.load(dataset, classes=['none', 'b', 'a'])
    assert loaded.train.class_names == ('none', 'b', 'a')
    wanted = {_image(i).tobytes(): 1 for i in range(20)}
    wanted |= {_image(50 + i).tobytes(): 2 for i in range(20)}
    assert set(loaded.train.labels) == {1, 2}
    for image, label in zip(loaded.train.images, loaded.train.labels):
        assert wanted[image.tobytes()] == label
    assert 'classes' not in loaded.found


def test_an_image_of_a_class_that_is_not_declared_is_named(tmp_path):
    dataset = _write(tmp_path, {'a': _grey_files(2, 0), 'b': _grey_files(2, 9), 'empty': {}})
    path = str(tmp_path / 'b' / '00.png')
    _error([path, "'b'", '--classes', 'a, c'], dataset, classes=['a', 'c'])
    # A folder of no class without an image in it is in nobody's way.
    assert records.load(dataset, classes=['a', 'b']).train.num_classes == 2
    _write(tmp_path / 'train', {'a': _grey_files(2, 0), 'b': {}})
    _write(tmp_path / 'test', {'b': _grey_files(1, 9), 'c': _grey_files(1, 5)})
    path = str(tmp_path / 'test' / 'c' / '00.png')
    _error([path, "'c'", 'to test'], dataset)
    assert len(records.load(dataset, classes=['a', 'b', 'c']).test) == 2


def test_the_number_of_classes_of_idx_is_read_off_unless_it_is_declared(tmp_path):
    _write_idx(tmp_path, 'train', [0, 1, 2, 1], 3)
    _write_idx(tmp_path, 't10k', [0, 1], 4)
    read = records.load(f'idx:{tmp_path}')
    assert read.read_off == ('classes', 'dataset_size')
    assert read.found == {'classes': ('0', '1', '2'), 'dataset_size': 4}
    names = ('shirt', 'coat', 'boot', 'bag')
    declared = records.load(f'idx:{tmp_path}', classes=names, dataset_size=4)
    assert (declared.read_off, declared.found) == ((), {})
    assert declared.train.class_names == names and declared.test.num_classes == 4
    _error(
        ['record 2', 'train-labels-idx1-ubyte', 'label 2', '2 classes'],
        f'idx:{tmp_path}',
        classes=names[:2],
    )
    _write_idx(tmp_path, 't10k', [0, 4], 4)
    _error(['record 1', 't10k-labels-idx1-ubyte', 'label 4'], f'idx:{tmp_path}', classes=names)


@pytest.mark.parametrize('dataset', ['digits', 'mnist_10k'])
def test_a_named_set_has_its_own_classes_and_shape(dataset):
    loaded = records.load(dataset)
    assert loaded.read_off == ('dataset_size',)
    assert loaded.found == {'dataset_size': len(loaded.train)}
    again = records.load(dataset, classes=tuple('0123456789'), channels=3, dataset_size=1700)
    assert (again.read_off, again.found) == ((), {})
    np.testing.assert_array_equal(again.train.images[..., 2:], loaded.train.images)
    assert again.train.image_shape[-1] == 3
    _error([dataset, 'leave --classes out', 'a, b'], dataset, classes=['a', 'b'])


# Channels and size.


def test_channels_and_size_of_a_folder_are_read_off_and_declare_the_same_set(tmp_path):
    files = {'a': _grey_files(20, 0), 'b': {'c.png': _png(_image(99, 6, 6, 3))}}
    dataset = _write(tmp_path, files)
    read = records.load(dataset)
    assert read.read_off == ('channels', 'image_size', 'dataset_size')
    assert read.found == {
        'classes': ('a', 'b'), 'channels': 3, 'image_size': 6, 'dataset_size': len(read.train)
    }  # fmt: skip
    declared = records.load(dataset, **read.found)
    assert (declared.read_off, declared.found) == ((), {})
    for one, other in ((read.train, declared.train), (read.test, declared.test)):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize('channels', [1, 3])
def test_one_image_with_colours_does_not_change_declared_channels(tmp_path, channels):
    def load():
        loaded = records.load(f'folder:{tmp_path}', channels=channels)
        parts = [part.images for part in (loaded.train, loaded.test)]
        return np.concatenate(parts), len(loaded.test)

    _write(tmp_path, {'a': _grey_files(40, 0)})
    before, tested = load()
    colour = _image(99, 6, 6, 3)
    _write(tmp_path, {'a': {'99.png': _png(colour)}})
    after, tested_then = load()
    assert before.shape[1:] == after.shape[1:] == (6, 6, channels)
    (added,) = {i.tobytes() for i in after} - {i.tobytes() for i in before}
    assert {i.tobytes() for i in before} <= {i.tobytes() for i in after}
    assert tested_then - tested in (0, 1)
    if channels == 1:
        grey = np.round(colour @ np.array([0.299, 0.587, 0.114]))
        assert np.abs(np.frombuffer(added, np.uint8) - grey.ravel()).max() <= 1
    else:
        assert added == colour.tobytes()


def test_grey_stored_with_three_channels_is_the_same_grey(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    files = {'x': {'1.png': _png(np.repeat(grey, 3, -1)), '2.png': _png(grey)}}
    _write(tmp_path / 'train', files)
    _write(tmp_path / 'test', files)
    loaded = records.load(f'folder:{tmp_path}', channels=1)
    np.testing.assert_array_equal(loaded.train.images, [grey, grey])


@pytest.mark.parametrize('channels', [0, 2, 4])
def test_other_channels_are_refused(channels):
    _error(['channels must be 1 or 3', f'Received: {channels}'], 'digits', channels=channels)


def test_a_schema_declares_classes_channels_and_size(own_tfds):
    load, images = own_tfds
    loaded = load({'train': range(60), 'test': range(60, 80)})
    assert loaded.read_off == ('dataset_size',)
    assert loaded.found == {'dataset_size': 60}
    grey = load({'train': range(60), 'test': range(60, 80)}, channels=1)
    assert grey.train.image_shape == (5, 5, 1)
    weighted = images[0][:, 1:6] @ np.array([0.299, 0.587, 0.114])
    distance = np.abs(grey.train.images[..., 0].astype(int) - weighted).max(axis=(1, 2))
    assert distance.min() <= 1


def test_what_a_schema_leaves_open_is_read_off(own_tfds):
    load, _ = own_tfds
    loaded = load({'train': range(60), 'test': range(60, 80)}, shape=(None, None, None))
    assert loaded.read_off == ('channels', 'image_size', 'dataset_size')
    assert loaded.found == {'channels': 3, 'image_size': 5, 'dataset_size': 60}
    declared = load({'train': range(60), 'test': range(60, 80)}, **loaded.found)
    np.testing.assert_array_equal(declared.train.images, loaded.train.images)


def test_the_declared_sizes_are_those_before_the_limit(tmp_path):
    dataset = _write(tmp_path, {'a': _grey_files(90, 0)})
    whole = records.load(dataset)
    limited = records.load(dataset, limit_records=40)
    assert limited.declared_size == 40
    assert limited.found['dataset_size'] == len(whole.train)
    declared = records.load(dataset, limit_records=40, **limited.found)
    np.testing.assert_array_equal(declared.train.images, limited.train.images)
    assert declared.declared_size == 40
