"""The 2015 Inception network, or rather a graph with its names."""

import io
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_inception
from helpers.toy_images import toy

from tf_efsgd.evaluation import inception


@pytest.fixture
def graph_file(tmp_path):
    path = tmp_path / 'classify_image_graph_def.pb'
    path.write_bytes(tiny_inception.graph_def())
    return path


def test_inception_gets_what_the_network_wants(graph_file):
    images = np.zeros([40, 28, 28, 3], np.uint8)  # more than a batch
    images[7] = [255, 128, 0]
    features = inception.Inception(graph_file)(images)
    assert (features.shape, features.dtype) == ((40, 6), np.float32)
    np.testing.assert_allclose(features[:7], -1)
    np.testing.assert_allclose(features[7], [0.9921875, 0, -1] * 2, atol=1e-6)


def test_inception_sees_gray_images_as_rgb_and_the_legacy_resize(graph_file):
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1) * 10
    features = inception.Inception(graph_file)(image)
    expected = tf.compat.v1.image.resize_bilinear(image.astype(np.float32), [299, 299])
    mean = (np.mean(expected) - 128) / 128
    np.testing.assert_allclose(features[0, :3], mean, rtol=1e-5)
    half_pixel = tf.image.resize(image.astype(np.float32), [299, 299])
    assert abs((np.mean(half_pixel) - 128) / 128 - mean) > 1e-3
    assert inception.Inception(graph_file)(image).tolist() == features.tolist()


def test_inception_is_found_in_the_archive_and_in_its_folder(graph_file, tmp_path):
    archive = tmp_path / 'inception-2015-12-05.tgz'
    content = graph_file.read_bytes()
    with tarfile.open(archive, 'w:gz') as file:
        for name, data in (('LICENSE', b'x'), (f'./{graph_file.name}', content)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    images = toy(3, 0).images
    expected = inception.Inception(graph_file)(images)
    for place in (archive, tmp_path):
        np.testing.assert_array_equal(inception.Inception(place)(images), expected)


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
    with pytest.raises(inception.InceptionError, match=message) as raised:
        inception.Inception(path)
    assert str(path) in str(raised.value)
    assert 'classify_image_graph_def.pb' in str(raised.value)


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    asked = {}

    def get_file(**kwargs):
        asked.update(kwargs)
        raise Exception('URL fetch failure:\n no network')

    monkeypatch.setattr(tf.keras.utils, 'get_file', get_file)
    with pytest.raises(inception.InceptionError, match='no network.*--inception_weights=PATH'):
        inception.download(tmp_path)
    assert asked['origin'].endswith('inception-2015-12-05.tgz')
    assert asked['cache_dir'] == str(tmp_path)
