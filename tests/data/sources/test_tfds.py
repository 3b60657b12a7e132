"""Data sets of TensorFlow Datasets."""

import functools
import logging as std_logging

import numpy as np
import pytest
from helpers.data_sets import error_of, png, rows_of

from tf_efsgd.data import decoding, load, parts
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
    stream = tfds._stream(builder, 'validation', partial, get_label).take(1200)
    items = [
        parts.Item(functools.partial(bytes, image), label, '')
        for image, label, _ in stream.as_numpy_iterator()
    ]
    split = parts.Split('faces', lambda: items, 1200, str, [], area=True)
    part, _ = parts.part_of_split(split, parts.Wanted(16, 3))
    assert part.images.shape == (1200, 16, 16, 3)
    whole = builder.as_dataset(split='validation', shuffle_files=False).take(1200)
    wanted = [int(record['attributes']['Eyeglasses']) for record in whole.as_numpy_iterator()]
    assert part.labels.tolist() == wanted
    assert 0 < sum(wanted) < 1200


def _celeb_a(test_data):
    prepared = test_data / 'tfds_drawn'
    if not (prepared / 'celeb_a').is_dir():
        pytest.skip(f'no celeb_a in {test_data}')
    return tfds._builder('celeb_a', prepared)


def test_several_attributes_make_a_class_of_every_combination(test_data):
    builder = _celeb_a(test_data)
    names, partial, get_label = tfds._find_label(
        builder.info.features, 'celeb_a', 'Male, Smiling,Eyeglasses'
    )
    assert len(names) == 8
    assert names[0] == 'not Male + not Smiling + not Eyeglasses'
    assert names[0b110] == 'Male + Smiling + not Eyeglasses'
    stream = tfds._stream(builder, 'validation', partial, get_label).take(300)
    labels = [int(label) for _, label, _ in stream.as_numpy_iterator()]
    whole = builder.as_dataset(split='validation', shuffle_files=False).take(300)
    for label, record in zip(labels, whole.as_numpy_iterator()):
        has = record['attributes']
        assert label == 4 * has['Male'] + 2 * has['Smiling'] + has['Eyeglasses']
    assert len(set(labels)) > 2


@pytest.mark.parametrize('label', ['Male,Male', 'Male,', ','.join(map(str, range(9)))])
def test_attributes_that_cannot_be_combined_are_named(test_data, label):
    builder = _celeb_a(test_data)
    with pytest.raises(DataError, match='--label'):
        tfds._find_label(builder.info.features, 'celeb_a', label)


def test_every_attribute_of_celeb_a_can_be_a_label(test_data):
    features = _celeb_a(test_data).info.features
    attributes = list(features['attributes'])
    assert len(attributes) == 40
    for attribute in attributes:
        names, _, _ = tfds._find_label(features, 'celeb_a', attribute)
        assert names == (f'not {attribute}', attribute)


def test_faces_are_made_small_by_area():
    # Two thirds of a pixel's area are black, one is white; a triangle filter gives another gray.
    stripes = np.zeros([6, 6, 1], np.uint8)
    stripes[:, 2::3] = 255
    image = png(stripes)

    def first_of(area):
        split = parts.Split(
            'x', lambda: [parts.Item(functools.partial(bytes, image), 0, '')], 1, str, [], area=area
        )
        return parts.part_of_split(split, parts.Wanted(2, 1))[0].images[0]

    np.testing.assert_array_equal(first_of(True), np.full([2, 2, 1], 85))
    assert (first_of(False) != 85).any()


def test_a_download_that_is_refused_says_what_to_fetch_by_hand(monkeypatch, tmp_path):
    class Refused:
        name, data_dir = 'celeb_a', tmp_path

        def download_and_prepare(self, **_):
            raise RuntimeError('Failed to get url https://drive.google.com/uc?id=0: quota exceeded')

    with pytest.raises(DataError) as caught:
        tfds._prepare(Refused(), 'celeb_a', None)
    message = str(caught.value)
    assert '\n' not in message and 'quota exceeded' in message
    builder = __import__('tensorflow_datasets').builder_cls('celeb_a')
    files = [info.filename for info in builder.url_infos.values()]
    assert len(files) == 5
    for word in (*files, 'mmlab.ie.cuhk.edu.hk', '--tfds_manual_dir'):
        assert word in message


@pytest.mark.parametrize('has_validation', [True, False])
def test_a_test_split_without_labels_is_left_before_anything_is_decoded(
    own_tfds, has_validation, monkeypatch
):
    load_own, images = own_tfds
    whole = tfds._stream

    def without_labels(builder, split, *rest):
        stream = whole(builder, split, *rest)
        if split == 'test':
            stream = stream.map(lambda image, label, person: (image, -1, person))
        return stream

    decoded = []
    decode = decoding.decode
    monkeypatch.setattr(decoding, 'decode', lambda *a: decoded.append(1) or decode(*a))
    monkeypatch.setattr(tfds, '_stream', without_labels)
    splits = {'train': range(150), 'test': range(150, 180)}
    if has_validation:
        splits['validation'] = range(180, 200)
    loaded = load_own(splits)
    if has_validation:
        assert rows_of(loaded.test) == _wanted(images, range(180, 200))
    else:
        assert rows_of(loaded.train) | rows_of(loaded.test) == _wanted(images, range(150))
    assert len(decoded) == 150 + 20 * has_validation
    assert any('split test has no labels' in note for note in loaded.notes)
    monkeypatch.setattr(
        tfds, '_stream', lambda *a: whole(*a).map(lambda image, label, person: (image, -1, person))
    )
    with pytest.raises(DataError, match='split train of own_set has no labels'):
        load_own({'train': range(9)})
