"""Data sets of TensorFlow Datasets."""

import logging as std_logging

import numpy as np
import pytest
from helpers.data_sets import error_of, rows_of

from tf_efsgd.data import load, parts
from tf_efsgd.data.records import DataError
from tf_efsgd.data.sources import tfds


def test_a_set_that_cannot_be_had_is_one_line(tmp_path):
    # ImageNet asks for files that only a person can fetch: TFDS refuses without any network.
    words = ['imagenet2012', 'ILSVRC2012_img_train.tar', '--data_dir', '--tfds_manual_dir']
    error_of(words, 'imagenet2012', data_dir=tmp_path)
    error_of('--tfds_manual_dir', 'imagenet2012', data_dir=tmp_path, manual_dir=tmp_path / 'gone')


def test_a_set_without_images_is_refused():
    from tensorflow_datasets import features as kinds

    text = kinds.FeaturesDict({'text': kinds.Text(), 'label': np.int64})
    depth = kinds.FeaturesDict(
        {
            'image': kinds.Image(shape=(4, 4, 1), dtype=np.float32),
            'label': kinds.ClassLabel(num_classes=2),
        }
    )
    number = kinds.FeaturesDict({'image': kinds.Image(), 'label': np.int64})
    for features in (text, depth, number):
        with pytest.raises(DataError, match='cannot be used'):
            tfds._find_label(features, 'some_set', 'Male')


def _wanted(images, numbers):
    return {(images[i][:, 1:6].tobytes(), i % 3) for i in numbers}


@pytest.mark.parametrize('held_out', ['test', 'validation'])
def test_tfds_splits_are_taken_as_they_are(own_tfds, held_out):
    load, images = own_tfds
    loaded = load({'train': range(150), held_out: range(150, 200)})
    assert loaded.train.class_names == ('x', 'y', 'z')
    assert rows_of(loaded.train) == _wanted(images, range(150))
    assert rows_of(loaded.test) == _wanted(images, range(150, 200))


def test_tfds_prefers_test_to_validation(own_tfds):
    load, images = own_tfds
    loaded = load({'train': range(9), 'validation': range(9, 80), 'test': range(80, 99)})
    assert rows_of(loaded.test) == _wanted(images, range(80, 99))


def test_tfds_set_with_one_split_is_split_by_hash(own_tfds):
    load, images = own_tfds
    loaded = load({'train': range(200)})
    assert 5 <= len(loaded.test) <= 45
    assert rows_of(loaded.train) | rows_of(loaded.test) == _wanted(images, range(200))
    limited = load({'train': range(200)}, limit_records=60)
    assert rows_of(limited.train) < rows_of(loaded.train)
    assert 30 <= len(limited.train) <= 90


def test_tfds_set_without_train_is_refused(own_tfds):
    load, _ = own_tfds
    with pytest.raises(DataError, match='no split train, only test'):
        load({'test': range(5)})


@pytest.mark.acceptance
def test_real_tfds_mnist_equals_the_idx_files(test_data, caplog):
    prepared = test_data / 'tfds'
    if not (prepared / 'mnist').is_dir() or not (test_data / 'mnist').is_dir():
        pytest.skip(f'no MNIST in {test_data}')
    with caplog.at_level(std_logging.DEBUG):
        ours = load.load('mnist', data_dir=prepared, limit_records=300)
    assert [r.getMessage() for r in caplog.records if r.name == 'absl'] == []
    idx = load.load(f'idx:{test_data / "mnist"}')
    assert rows_of(ours.test) == rows_of(idx.test)
    assert 220 < len(ours.train) < 380 and rows_of(ours.train) < rows_of(idx.train)


@pytest.mark.acceptance
def test_fashion_mnist_is_prepared_from_files_without_network(test_data, tmp_path):
    files = test_data / 'fashion_mnist'
    if not files.is_dir():
        pytest.skip(f'no fashion_mnist in {test_data}')
    ours = load.load('fashion_mnist', data_dir=tmp_path, manual_dir=files, limit_records=300)
    assert ours.train.class_names[9] == 'Ankle boot'
    assert rows_of(ours.test) == rows_of(load.load(f'idx:{files}').test)


def test_celeb_a_schema(test_data):
    prepared = test_data / 'tfds_drawn'
    if not (prepared / 'celeb_a').is_dir():
        pytest.skip(f'no celeb_a in {test_data}')
    words = ["'smilling'", 'Smiling', '--label']
    error_of(words, 'celeb_a', data_dir=prepared, label='smilling')
    builder = tfds._builder('celeb_a', prepared)
    names, partial, get_label = tfds._find_label(builder.info.features, 'celeb_a', 'Eyeglasses')
    assert names == ('not Eyeglasses', 'Eyeglasses')
    stream = tfds._stream(builder, 'validation', partial, get_label)
    part = parts.part_of_stream(stream, 1200, 16, 3, str)
    assert part.images.shape == (1200, 16, 16, 3)
    whole = builder.as_dataset(split='validation', shuffle_files=False).take(1200)
    wanted = [int(record['attributes']['Eyeglasses']) for record in whole.as_numpy_iterator()]
    assert part.labels.tolist() == wanted
    assert 0 < sum(wanted) < 1200
