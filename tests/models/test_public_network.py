"""Tests of the frozen network: its weights are where they belong, and no image sees another."""

import numpy as np
import pytest
import tensorflow as tf

from tf_efsgd.models import public_network


@pytest.fixture(scope='module')
def network():
    return public_network.build_public_network((32, 32, 3))


def _images(n, shape=(32, 32, 3), seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, [n, *shape]).astype(np.float32)


def test_shapes_of_the_stages(network):
    maps = network(_images(2))

    shapes = {name: tuple(values.shape) for name, values in maps.items()}
    assert shapes == {
        'stage_1': (2, 16, 16, 16),
        'stage_2': (2, 8, 8, 24),
        'stage_3': (2, 4, 4, 40),
        'stage_4': (2, 2, 2, 80),
        'stage_5': (2, 2, 2, 112),
    }
    assert network.count_params() == 692_688
    assert not network.trainable_variables


def test_first_stage_is_what_the_weights_say(network):
    """The stem and the first block at one inner position, by hand."""
    image = _images(1)[0].astype(np.float64)
    with np.load(public_network._WEIGHTS) as arrays:
        weights = [arrays[name].astype(np.float64) for name in sorted(arrays)]
    stem, stem_bias, depth, depth_bias, point, point_bias = weights[:6]

    def relu6(x):
        return np.clip(x, 0, 6)

    # 'same' padding of a 3x3 kernel with stride 2 on an even size: one row below, none above. So
    # position (r, c) of the stem sees pixels 2r to 2r + 2.
    around = np.zeros([3, 3, 32])
    for r in range(3):
        for c in range(3):
            row, column = 2 * (4 + r), 2 * (6 + c)
            window = image[row : row + 3, column : column + 3]
            around[r, c] = relu6(np.einsum('hwc,hwco->o', window, stem) + stem_bias)
    middle = relu6(np.einsum('hwc,hwc->c', around, depth[..., 0]) + depth_bias)
    expected = middle @ point[0, 0] + point_bias

    found = network(image[np.newaxis].astype(np.float32))['stage_1'][0, 5, 7]

    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_an_image_does_not_see_the_others_of_its_batch(network):
    images = _images(4)
    others = np.concatenate([images[:1], 100 * _images(3, seed=1)])

    alone, beside = network(images), network(others)
    assert set(alone) == set(beside) == set(public_network.STAGES)
    for name in public_network.STAGES:
        np.testing.assert_array_equal(alone[name][0], beside[name][0])


def test_two_builds_agree_and_training_changes_nothing(network):
    images = _images(2)
    other = public_network.build_public_network((32, 32, 3))

    expected, found = network(images), other(images, training=True)
    assert set(found) == set(expected) == set(public_network.STAGES)
    for name in public_network.STAGES:
        np.testing.assert_array_equal(found[name], expected[name])


def test_gray_is_repeated_to_three_channels_and_small_images_are_enlarged():
    gray = _images(2, (28, 28, 1))
    network = public_network.build_public_network((28, 28, 1), enlarge=2)
    colour = public_network.build_public_network((28, 28, 3), enlarge=2)

    maps, same = network(gray), colour(np.repeat(gray, 3, axis=-1))

    assert maps['stage_2'].shape[1:] == (14, 14, 24)
    for name, values in maps.items():
        np.testing.assert_allclose(values, same[name], atol=1e-5)


def test_it_learned_something():
    """A photograph's own features are nearer to those of its mirror image than to another's."""
    public = pytest.importorskip('tf_efsgd.privacy.features.public')
    photographs = public.public_photographs((64, 64, 3))[:60]
    network = public_network.build_public_network((64, 64, 3))

    def means(images):
        values = tf.reduce_mean(network(images)['stage_5'], axis=[1, 2])
        return (values - tf.reduce_mean(values, axis=0)).numpy()

    one, two = means(photographs), means(photographs[:, :, ::-1])
    distances = np.linalg.norm(one[:, np.newaxis] - two, axis=-1)
    assert np.mean(distances.argmin(axis=1) == np.arange(60)) > 0.9


@pytest.mark.parametrize(
    'shape, arguments',
    [((32, 32, 2), {}), ((32, 32, 3), {'last_stage': 6}), ((8, 8, 1), {'enlarge': 0})],
)
def test_wrong_arguments_are_refused(shape, arguments):
    with pytest.raises(ValueError, match='Received'):
        public_network.build_public_network(shape, **arguments)


def _save(path, mixes=False):
    images = tf.keras.Input([None, None, 3])
    x, maps = images, {}
    for number, channels in enumerate((4, 5, 6, 7, 8)):
        x = tf.keras.layers.Conv2D(channels, 3, strides=2, padding='same')(x)
        if mixes:
            x = x - tf.reduce_mean(x, axis=0, keepdims=True)
        maps[f'map_{number}'] = x
    tf.keras.Model(images, maps).save(path)
    return str(path)


def test_a_network_of_ones_own_by_its_path(tmp_path):
    path = _save(tmp_path / 'mine.keras')

    network = public_network.load_public_network(path, (32, 32, 1), enlarge=2)
    maps = network(_images(2, (32, 32, 1)))

    assert [tuple(maps[name].shape[1:]) for name in public_network.MAPS] == [
        (16, 16, 5),
        (8, 8, 6),
        (4, 4, 7),
        (2, 2, 8),
    ]
    assert not network.trainable_variables


def test_a_network_that_mixes_images_is_refused(tmp_path):
    path = _save(tmp_path / 'mixes.keras', mixes=True)

    with pytest.raises(ValueError, match='mixes them'):
        public_network.load_public_network(path, (32, 32, 3))


@pytest.mark.parametrize('name', ['', 'no_such_network', '/no/such/path.keras', 'mobilenet_v2'])
def test_an_unknown_network_is_refused(name):
    with pytest.raises(ValueError, match='Received'):
        public_network.load_public_network(name, (32, 32, 3))


def test_a_network_of_keras(monkeypatch):
    """Without its download: the weights are random."""
    module = tf.keras.applications.mobilenet_v2
    build = module.MobileNetV2

    def without_weights(**kwargs):
        return build(**{**kwargs, 'weights': None, 'alpha': 0.35})

    monkeypatch.setattr(module, 'MobileNetV2', without_weights)

    network = public_network.load_public_network('MobileNetV2', (32, 32, 3), enlarge=2)

    sizes = [network.output[name].shape[1] for name in public_network.MAPS]
    assert sizes == [16, 8, 4, 2]
    assert not network.trainable_variables


@pytest.mark.parametrize(
    'size, classes, expected', [(28, 10, 2), (32, 2, 2), (32, 10, 1), (64, 10, 1), (128, 2, 1)]
)
def test_enlargement(size, classes, expected):
    assert public_network.choose_enlargement(size, classes) == expected
