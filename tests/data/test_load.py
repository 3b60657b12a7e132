"""Loading by name: the split, the limit, what is declared, and what a user gets wrong."""

import dataclasses
import pathlib

import numpy as np
import pytest
from helpers.data_sets import (
    error_of,
    gray_files,
    png,
    rows_of,
    write_folder,
    write_idx,
    write_train,
)

from tf_efsgd import config
from tf_efsgd.data import load, parts, split
from tf_efsgd.data.sources import idx


def test_every_data_set_with_a_path_is_known_as_one():
    assert set(load._BY_SCHEME) == set(config.PLACED_DATASETS), (
        'A data set NAME:PATH is entered in _BY_SCHEME of data/load.py and in PLACED_DATASETS of '
        'config/resume.py. Otherwise --resume does not let the folder move.'
    )


@pytest.mark.parametrize('name', [*load._BY_NAME, *(f'{s}:PATH' for s in load._BY_SCHEME)])
def test_every_data_set_is_named_where_a_user_looks(name):
    (field,) = (f for f in dataclasses.fields(config.DataConfig) if f.name == 'dataset')
    readme = (pathlib.Path(__file__).parents[2] / 'README.md').read_text('utf-8')
    table = '\n'.join(line for line in readme.splitlines() if line.startswith('| `'))
    for place, text in (
        ('the help of --dataset', field.metadata['help']),
        ('the docstring of load', load.load.__doc__),
        ('the table of the README', table),
    ):
        assert name in text, f'{name} is missing in {place}, see CONTRIBUTING.md.'


def test_split_of_mnist_10k_is_the_same_at_another_size():
    native, large = load.load('mnist_10k'), load.load('mnist_10k', image_size=31)
    assert large.test.images.shape == (1000, 31, 31, 1)
    np.testing.assert_array_equal(large.test.labels, native.test.labels)


@pytest.mark.parametrize('limit', [None, 3000])
def test_shuffling_or_removing_records_moves_no_other(tmp_path, limit, monkeypatch):
    images, labels = idx._read_pair(idx._EMBEDDED, 't10k')
    before = load.load('mnist_10k', limit_records=limit)
    order = np.random.default_rng(3).permutation(10_000)
    write_idx(tmp_path, 't10k', images[order], labels[order])
    monkeypatch.setattr(idx, '_EMBEDDED', tmp_path)
    shuffled = load.load('mnist_10k', limit_records=limit)
    assert rows_of(shuffled.train) == rows_of(before.train)
    assert rows_of(shuffled.test) == rows_of(before.test)
    if limit is None:  # The limit is a share of the public number of records: here it changes.
        for left_out in (0, 4321, 9999):
            kept = np.arange(10_000) != left_out
            write_idx(tmp_path, 't10k', images[kept], labels[kept])
            fewer = load.load('mnist_10k')
            gone = {(images[left_out].tobytes(), int(labels[left_out]))}
            assert rows_of(fewer.train) == rows_of(before.train) - gone
            assert rows_of(fewer.test) == rows_of(before.test) - gone


def test_limit_keeps_about_as_many():
    full = load.load('mnist_10k')
    limited = load.load('mnist_10k', limit_records=2500)
    # Binomial: standard deviation 42.
    assert 2300 < len(limited.train) < 2700
    assert len(limited.train) != 2500
    assert rows_of(limited.train) < rows_of(full.train)
    assert rows_of(limited.test) == rows_of(full.test)
    smaller = load.load('mnist_10k', limit_records=700)
    assert rows_of(smaller.train) < rows_of(limited.train)


@pytest.mark.parametrize('limit', [9000, 123_456])
def test_limit_from_the_full_size_on_keeps_all(limit):
    assert len(load.load('mnist_10k', limit_records=limit).train) == 9000


def test_either_side_of_a_split_may_stay_empty(tmp_path, monkeypatch):
    dataset = write_folder(tmp_path, {'only': gray_files(3, 0)})
    monkeypatch.setattr(split, '_TEST_THRESHOLD', 0)
    loaded = load.load(dataset)
    assert (len(loaded.train), loaded.test) == (3, None)
    monkeypatch.setattr(split, '_TEST_THRESHOLD', 2**64 - 1)
    error_of('no training records left', dataset)


def test_train_and_test_of_two_sizes_need_image_size(tmp_path):
    write_train(tmp_path, {'a': gray_files(2, 0)})
    write_folder(tmp_path / 'test', {'a': gray_files(2, 0, png, 9, 9, 1)})
    error_of(['6x6', '9x9', '--image_size'], f'folder:{tmp_path}')
    assert load.load(f'folder:{tmp_path}', image_size=4).test.image_shape == (4, 4, 1)


# The number of records is declared.


def test_removing_a_record_moves_no_other_under_a_limit(tmp_path):
    # By the number of records there are, one more or less moved others for most limits.
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (300, 4, 4)).astype(np.uint8)
    labels = np.arange(300, dtype=np.int32) % 3

    def kept(images, labels, limit, dataset_size):
        part = parts.part_of_arrays(images, labels, None)
        assert part.images.shape[-1] == 1
        source = parts.Source(part, part, ('a', 'b', 'c'))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(load, '_read', lambda *_: source)
            dataset = load.load('any', limit_records=limit, dataset_size=dataset_size)
        assert dataset.declared_size == min(limit, dataset_size or len(images))
        return {image.tobytes() for image in dataset.train.images}

    moved = set()
    for limit in (100, 101, 149, 150, 299):
        whole = kept(images, labels, limit, 300)
        assert abs(len(whole) - limit) < 50
        for i in range(0, 300, 7):
            less = kept(np.delete(images, i, 0), np.delete(labels, i), limit, 300)
            assert whole ^ less <= {images[i].tobytes()}
            counted = kept(np.delete(images, i, 0), np.delete(labels, i), limit, None)
            moved |= counted ^ less
    assert moved  # so the declared number is what prevents it


def test_the_declared_size_is_what_was_declared():
    assert load.load('digits').declared_size == 1602
    assert load.load('digits', dataset_size=1600).declared_size == 1600
    assert load.load('digits', dataset_size=1600, limit_records=400).declared_size == 400
    assert load.load('digits', dataset_size=1600, limit_records=2000).declared_size == 1600


# What a user gets wrong.


def test_unknown_names():
    error_of(["'mnst'", 'Did you mean mnist'], 'mnst')
    error_of('Did you mean mnist_10k', 'mnist10k')
    error_of('Did you mean digits', 'digit')
    error_of('folder:PATH', 'zzqqxxzz')
    error_of('folder:PATH', '')
    error_of('folder:PATH', '/some/images')
    error_of(['name without a colon', "'floder:/x'", 'folder:PATH', 'idx:PATH'], 'floder:/x')
    error_of('9.9.9', 'mnist:9.9.9')


@pytest.mark.parametrize('scheme', ['idx', 'folder'])
def test_missing_folder(tmp_path, scheme):
    error_of(str(tmp_path / 'gone'), f'{scheme}:{tmp_path}/gone')
    error_of('needs the path of a folder', f'{scheme}:')


@pytest.mark.parametrize('value', [0, -5])
@pytest.mark.parametrize('name', ['limit_records', 'image_size'])
def test_sizes_below_one(name, value):
    error_of([name, f'Received: {value}'], 'mnist_10k', **{name: value})
