"""MNIST's four files, and the two of them that come with the package."""

import gzip
import struct

import numpy as np
import pytest
from helpers.data_sets import error_of, noise_images, rows_of, write_idx

from tf_efsgd.data import load
from tf_efsgd.data.records import Records


def test_mnist_10k_is_split_9000_to_1000():
    loaded = load.load('mnist_10k')
    assert loaded.name == 'mnist_10k'
    assert loaded.train.images.shape == (9000, 28, 28, 1)
    assert loaded.test.images.shape == (1000, 28, 28, 1)
    assert loaded.train.num_classes == 10
    assert loaded.train.class_names == tuple('0123456789')
    assert len(rows_of(loaded.train) | rows_of(loaded.test)) == 10_000
    # The counts of MNIST's test set, digit by digit.
    both = np.concatenate([loaded.train.labels, loaded.test.labels])
    assert np.bincount(both).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.fixture
def idx_folder(tmp_path):
    """40 training images 6x9 of 3 classes, as .gz, and 7 test images, plain."""
    images = noise_images(47, 6, 9)
    labels = np.arange(47) % 3
    write_idx(tmp_path, 'train', images[:40], labels[:40].astype(np.uint8))
    write_idx(tmp_path, 't10k', images[40:], labels[40:].astype(np.uint8), compress=False)
    return tmp_path, images, labels


def test_idx_reads_both_kinds_of_file_and_crops(idx_folder):
    folder, images, labels = idx_folder
    loaded = load.load(f'idx:{folder}')
    # 6x9: one column goes on the left, two on the right.
    np.testing.assert_array_equal(loaded.train.images[..., 0], images[:40, :, 1:7])
    np.testing.assert_array_equal(loaded.train.labels, labels[:40])
    np.testing.assert_array_equal(loaded.test.images[..., 0], images[40:, :, 1:7])
    np.testing.assert_array_equal(loaded.test.labels, labels[40:])
    assert loaded.train.num_classes == loaded.test.num_classes == 3


def test_idx_without_a_test_set_is_split(idx_folder):
    folder, images, labels = idx_folder
    for path in folder.glob('t10k*'):
        path.unlink()
    loaded = load.load(f'idx:{folder}')
    assert 0 < len(loaded.test) < len(loaded.train) < 40
    cropped = Records(images[:40, :, 1:7, None], labels[:40].astype(np.int32), 3, ('0', '1', '2'))
    assert rows_of(loaded.train) | rows_of(loaded.test) == rows_of(cropped)


def test_idx_faults_are_named(idx_folder):
    folder, _, _ = idx_folder
    train_images = folder / 'train-images-idx3-ubyte.gz'
    test_labels = folder / 't10k-labels-idx1-ubyte'
    whole = train_images.read_bytes()

    train_images.write_bytes(whole[:-300])
    error_of([str(train_images), 'cannot be read'], f'idx:{folder}')
    train_images.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    error_of([str(train_images), 'truncated', '2175 bytes, not 2176'], f'idx:{folder}')
    train_images.write_bytes(gzip.compress(gzip.decompress(whole) + b'x'))
    error_of([str(train_images), 'too long'], f'idx:{folder}')
    train_images.write_bytes(b'')
    error_of([str(train_images), 'must start with the number 2051'], f'idx:{folder}')
    train_images.write_bytes(gzip.compress(struct.pack('>I', 2051)))
    error_of([str(train_images), 'truncated'], f'idx:{folder}')
    train_images.write_bytes((folder / 'train-labels-idx1-ubyte.gz').read_bytes())
    error_of(['2051', 'Received: 2049'], f'idx:{folder}')
    train_images.write_bytes(gzip.compress(struct.pack('>4I', 2051, 0, 6, 9)))
    error_of(['0 train images', '40 labels'], f'idx:{folder}')
    train_images.unlink()
    error_of('neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz', f'idx:{folder}')

    train_images.write_bytes(whole)
    test_labels.write_bytes(struct.pack('>2I', 2049, 7) + bytes([0, 1, 2, 3, 0, 0, 0]))
    error_of(['test labels', 'up to 3'], f'idx:{folder}')
    test_labels.unlink()
    error_of('t10k-labels-idx1-ubyte', f'idx:{folder}')


def test_an_empty_idx_set_is_refused(tmp_path):
    write_idx(tmp_path, 'train', np.zeros([0, 6, 9], np.uint8), np.zeros([0], np.uint8))
    error_of('empty', f'idx:{tmp_path}')
