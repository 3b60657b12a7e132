"""Features: of classifiers trained once and kept apart, of Inception's graph, of pixels."""

import io
import os
import stat
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_inception
from helpers.toy_images import toy

from tf_efsgd.evaluation import classifiers, extractors

_TRAIN = toy(200, 0)


def _classifiers(folder, train=_TRAIN, epochs=1):
    return extractors.RealClassifiers(train, folder, epochs=epochs)


@pytest.fixture
def trained(monkeypatch):
    """The arguments of every training."""
    calls = []
    real = classifiers.train

    def train(*args, **kwargs):
        calls.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(classifiers, 'train', train)
    return calls


def test_a_classifier_is_trained_once_and_read_back(tmp_path, trained):
    first = _classifiers(tmp_path / 'kept').get(classifiers.build_cnn, seed=3)
    again = _classifiers(tmp_path / 'kept').get(classifiers.build_cnn, seed=3)
    assert len(trained) == 1
    for one, other in zip(first.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.chosen_epoch == first.chosen_epoch
    assert again.held_out_accuracy == first.held_out_accuracy
    assert classifiers.accuracy(again.model, _TRAIN) == classifiers.accuracy(first.model, _TRAIN)


def test_other_records_seeds_or_recipes_have_classifiers_of_their_own(
    tmp_path, trained, monkeypatch
):
    _classifiers(tmp_path).get(classifiers.build_mlp, seed=0)
    _classifiers(tmp_path).get(classifiers.build_mlp, seed=1)
    _classifiers(tmp_path, toy(200, 5)).get(classifiers.build_mlp, seed=0)
    _classifiers(tmp_path, epochs=2).get(classifiers.build_mlp, seed=0)
    monkeypatch.setattr(extractors, '_RECIPE', extractors._RECIPE + 1)
    _classifiers(tmp_path).get(classifiers.build_mlp, seed=0)
    assert len(trained) == len(list(tmp_path.iterdir())) == 5


def test_what_is_kept_is_for_the_user_alone(tmp_path):
    folder = tmp_path / 'state' / 'classifiers'
    _classifiers(folder).get(classifiers.build_mlp, seed=0)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    (file,) = folder.iterdir()
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600


@pytest.mark.parametrize('damage', [b'', None])
def test_a_damaged_file_is_trained_again(tmp_path, trained, capsys, damage):
    _classifiers(tmp_path).get(classifiers.build_mlp, seed=0)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-200] if damage is None else damage)
    _classifiers(tmp_path).get(classifiers.build_mlp, seed=0)
    assert len(trained) == 2
    assert 'damaged' in capsys.readouterr().out
    _classifiers(tmp_path).get(classifiers.build_mlp, seed=0)
    assert len(trained) == 2


@pytest.mark.parametrize('build', [classifiers.build_cnn, classifiers.build_mlp])
def test_features_are_what_the_last_layer_sees(build):
    model = build((8, 8, 1), 3, seed=1)
    images = toy(600, 1).images  # more than a batch
    seen = extractors.Look(model)(images)
    width = 128 if build is classifiers.build_cnn else 256
    assert seen.features.shape == (600, width)
    assert (seen.features >= 0).all()
    kernel, bias = model.layers[-1].get_weights()
    logits = model(images / np.float32(127.5) - 1).numpy()
    np.testing.assert_allclose(seen.features @ kernel + bias, logits, atol=1e-4)
    np.testing.assert_allclose(seen.probabilities, tf.nn.softmax(logits), atol=1e-5)
    np.testing.assert_allclose(seen.probabilities.sum(1), 1)


def test_pixels_are_averages_between_minus_one_and_one():
    images = np.zeros([2, 32, 32, 3], np.uint8)
    images[1, :2, :2] = [[[0], [255]], [[255], [0]]]
    features = extractors.pixel_features(images).reshape(2, 16, 16, 3)
    np.testing.assert_allclose(features[0], -1)
    np.testing.assert_allclose(features[1, 0, 0], 0, atol=1e-6)
    np.testing.assert_allclose(features[1, 0, 1], -1)
    assert extractors.pixel_features(images[:, :8, :8]).shape == (2, 8 * 8 * 3)


# The 2015 Inception network, or rather a graph with its names.


@pytest.fixture
def graph_file(tmp_path):
    path = tmp_path / 'classify_image_graph_def.pb'
    path.write_bytes(tiny_inception.graph_def())
    return path


def test_inception_gets_what_the_network_wants(graph_file):
    images = np.zeros([40, 28, 28, 3], np.uint8)  # more than a batch
    images[7] = [255, 128, 0]
    features = extractors.Inception(graph_file)(images)
    assert (features.shape, features.dtype) == ((40, 6), np.float32)
    np.testing.assert_allclose(features[:7], -1)
    np.testing.assert_allclose(features[7], [0.9921875, 0, -1] * 2, atol=1e-6)


def test_inception_sees_grey_images_as_rgb_and_the_legacy_resize(graph_file):
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1) * 10
    features = extractors.Inception(graph_file)(image)
    expected = tf.compat.v1.image.resize_bilinear(image.astype(np.float32), [299, 299])
    mean = (np.mean(expected) - 128) / 128
    np.testing.assert_allclose(features[0, :3], mean, rtol=1e-5)
    half_pixel = tf.image.resize(image.astype(np.float32), [299, 299])
    assert abs((np.mean(half_pixel) - 128) / 128 - mean) > 1e-3
    assert extractors.Inception(graph_file)(image).tolist() == features.tolist()


def test_inception_is_found_in_the_archive_and_in_its_folder(graph_file, tmp_path):
    archive = tmp_path / 'inception-2015-12-05.tgz'
    content = graph_file.read_bytes()
    with tarfile.open(archive, 'w:gz') as file:
        for name, data in (('LICENSE', b'x'), (f'./{graph_file.name}', content)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    images = toy(3, 0).images
    expected = extractors.Inception(graph_file)(images)
    for place in (archive, tmp_path):
        np.testing.assert_array_equal(extractors.Inception(place)(images), expected)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (tiny_inception.graph_def(without=['Mul']), 'no node Mul'),
        (tiny_inception.graph_def(without=['pool_3']), 'no node pool_3'),
        (b'\xff no graph', 'frozen graph'),
        (None, 'No such file'),
    ],
    ids=['another layer', 'another output', 'no graph', 'no file'],
)
def test_another_file_is_refused(tmp_path, content, message):
    path = tmp_path / 'graph.pb'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(extractors.ExtractorError, match=message) as raised:
        extractors.Inception(path)
    assert str(path) in str(raised.value)
    assert 'classify_image_graph_def.pb' in str(raised.value)


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    asked = {}

    def get_file(**kwargs):
        asked.update(kwargs)
        raise Exception('URL fetch failure:\n no network')

    monkeypatch.setattr(tf.keras.utils, 'get_file', get_file)
    with pytest.raises(extractors.ExtractorError, match='no network.*--inception_weights=PATH'):
        extractors.download_inception(tmp_path)
    assert asked['origin'].endswith('inception-2015-12-05.tgz')
    assert asked['cache_dir'] == str(tmp_path)
