"""Tests of the second release: what its features may depend on, what one record can move."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from tf_efsgd.data import load
from tf_efsgd.models.classifier import build_classifier
from tf_efsgd.privacy import grid, learned_features, warm_start

_SHAPE = (8, 8, 1)
_CLASSES = 3


def _make(shape=_SHAPE, distances=(0.3, 0.5, 0.7), scale=1.0):
    classifier = build_classifier(shape, _CLASSES, width=8)
    classifier.set_weights([scale * w for w in classifier.get_weights()])
    return learned_features.LearnedFeatures(classifier, distances, shape)


@pytest.fixture(scope='module')
def features():
    tf.keras.utils.set_random_seed(3)
    return _make()


def _exact(images, labels, features):
    """The sum before its noise, in steps, for a noise multiplier of 0.7."""
    labels = np.asarray(labels, np.int32)
    return warm_start.sum_over_records(images, labels, _CLASSES, features, 0.7)


def _images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, [n, *_SHAPE]).astype(np.uint8)


@pytest.mark.parametrize('shape', [_SHAPE, (28, 28, 1), (64, 64, 3), (4, 4, 1)])
def test_features_have_norm_one_at_most_whatever_the_image(shape):
    drawn = np.random.default_rng(1).uniform(-1, 1, [3, *shape])
    extreme = np.stack([np.full(shape, v) for v in (-1.0, 1.0, 1e3, -1e3)])
    images = tf.constant(np.concatenate([drawn, extreme]), tf.float32)
    features = _make(shape)
    found = features(images).numpy().astype(np.float64)
    assert found.shape == (7, features.size)
    norms = np.linalg.norm(found, axis=1)
    assert np.all(norms <= 1.0)
    assert norms[:3] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize('scale', [0.0, 1e20, np.nan, np.inf])
def test_whatever_the_classifier_has_become_the_bound_holds(scale):
    with np.errstate(invalid='ignore'):
        found = _make(scale=scale)(tf.constant(_images(5), tf.float32) / 127.5 - 1.0).numpy()
    assert np.all(np.linalg.norm(found.astype(np.float64), axis=1) <= 1.0)


@hypothesis.given(
    seed=st.integers(0, 1000), label=st.integers(0, _CLASSES - 1), place=st.integers(0, 5)
)
@hypothesis.settings(max_examples=10, deadline=None)
def test_one_record_moves_its_class_alone_and_by_one_at_most(features, seed, label, place):
    images, labels = _images(5, seed), np.arange(5, dtype=np.int32) % _CLASSES
    more = (
        np.insert(images, place, _images(1, seed + 1)[0], axis=0),
        np.insert(labels, place, label),
    )
    moved = _exact(*more, features) - _exact(images, labels, features)
    square = int(np.sum(moved[label].astype(object) ** 2))
    assert 0.99 * (grid.STDDEV / 0.7) ** 2 < square <= grid.largest_squared_norm(0.7)
    assert not np.delete(moved, label, axis=0).any()


def test_a_record_put_first_does_not_move_others(features):
    """Many others, all of one class, and a record of another before them."""
    images, labels = _images(1500), np.zeros(1500, np.int32)
    more = np.concatenate([np.full([1, *_SHAPE], 255, np.uint8), images])
    moved = _exact(more, np.insert(labels, 0, 1), features) - _exact(images, labels, features)
    assert not moved[0].any()


def test_the_map_of_a_classifier_is_fixed(features):
    images = tf.constant(_images(4), tf.float32) / 127.5 - 1.0
    again = learned_features.LearnedFeatures(features._classifier, (0.3, 0.5, 0.7), _SHAPE)
    np.testing.assert_array_equal(again(images).numpy(), features(images).numpy())


def test_groups_stand_for_the_kernels():
    """exp(-|a - b|^2 / (2 bandwidth^2)) of what each kernel looks at, in windows: the mean."""
    classifier = build_classifier((16, 16, 1), _CLASSES, width=8)
    one = np.random.default_rng(2).uniform(-1, 1, [16, 16, 1])
    images = tf.constant([one, 0.8 * one], tf.float32)
    outputs = {name: value.numpy() for name, value in classifier(images).items()}
    distances = [
        np.sqrt(np.mean((outputs[name][0] - outputs[name][1]) ** 2))
        for name in ('low', 'high', 'vector')
    ]
    found = learned_features.LearnedFeatures(classifier, distances, (16, 16, 1))

    def kernel(a, b, distance):
        return np.exp(-np.mean((a - b) ** 2) / (2 * (0.5 * distance) ** 2))

    def of_windows(name, corners, distance):
        corners = [(y, x) for y in corners for x in corners]
        windows = [outputs[name][:, y : y + 2, x : x + 2] for y, x in corners]
        return np.mean([kernel(*w, distance) for w in windows])

    # Windows of 2x2, one apart: of the first layer's 8x8, of the second's 4x4.
    wanted = {
        ('low', 1 / 4): of_windows('low', range(7), distances[0]),
        ('high', 1 / 2): of_windows('high', range(3), distances[1]),
        ('high', 1.0): kernel(*outputs['high'], distances[1]),
        ('vector', 1.0): kernel(*outputs['vector'], distances[2]),
    }
    wanted = np.mean([wanted[layer, part] for layer, part, _ in learned_features._KERNELS])
    dots = []
    for group in range(8):
        phi = found.group(images, group).numpy()
        dots.append(phi[0] @ phi[1])
    assert 0.1 < wanted < 0.8
    assert np.mean(dots) == pytest.approx(wanted, abs=0.03)
    assert np.mean(dots) != pytest.approx(1.3 * wanted, abs=0.03)


def test_distances_are_those_of_two_images_of_a_class():
    rng = np.random.default_rng(6)
    labels = np.arange(4000) % 2
    outputs = rng.normal(0, 0.3, [4000, 5]) + 7.0 * labels[:, np.newaxis]
    assert learned_features._distance(outputs, labels) == pytest.approx(0.3 * 2**0.5, rel=0.03)
    # However few images of a class there are.
    many = np.arange(4000) % 2000
    outputs = rng.normal(0, 0.3, [4000, 5]) + 1e-3 * many[:, np.newaxis]
    assert learned_features._distance(outputs, many) == pytest.approx(0.3 * 2**0.5, rel=0.05)
    assert np.isnan(learned_features._distance(np.full([4, 5], np.nan), labels[:4]))
    # What hardly differs is not blown up until rounding shows.
    assert learned_features._distance(np.full([10, 5], 4.0), labels[:10]) == pytest.approx(0.2)
    assert learned_features._distance(np.zeros([10, 5]), labels[:10]) > 0


def test_the_classifier_learns_from_generated_images():
    train = load.load('digits').train
    classifier = build_classifier(train.image_shape, 10)

    def generate(labels):  # Digits that stand for generated ones.
        at = np.stack([np.flatnonzero(train.labels == k)[:100] for k in range(10)])
        return train.images[at[labels, np.arange(len(labels)) % 100]]

    before = classifier.get_weights()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned_features, '_IMAGES', 4000)
        distances = learned_features.learn(classifier, generate, 10, seed=5)
    logits = classifier(train.images / np.float32(127.5) - 1.0)['logits'].numpy()
    assert np.mean(logits.argmax(axis=1) == train.labels) > 0.9
    assert all(np.any(a != b) for a, b in zip(before, classifier.get_weights()))
    assert all(0.01 < distance < 100 for distance in distances)


def test_a_release_is_the_same_when_it_is_read_back():
    weights = [np.float32([[1.5]]), np.float32([2.5, 3.5])] + [np.float32([k]) for k in range(12)]
    release = learned_features.Release(
        np.float32([[4.5, 5.5]]), (0.1, 0.4, 0.7), weights, weights[::-1]
    )
    again = learned_features.Release.from_bytes(release.to_bytes())
    np.testing.assert_array_equal(again.sums, release.sums)
    assert again.distances == release.distances
    for name in ('classifier', 'generator'):
        wanted, found = getattr(release, name), getattr(again, name)
        assert len(found) == 14
        for a, b in zip(wanted, found):
            np.testing.assert_array_equal(a, b)


def test_the_features_are_those_of_their_version():
    # What a run has released is of use to these features only: with others, count VERSION up.
    classifier = build_classifier(_SHAPE, _CLASSES, width=8)
    classifier.set_weights([np.full(w.shape, 0.01, np.float32) for w in classifier.get_weights()])
    features = learned_features.LearnedFeatures(classifier, (0.3, 0.5, 0.7), _SHAPE)
    images = tf.reshape(tf.linspace(-1.0, 1.0, 64), [1, *_SHAPE])
    phi = features(images).numpy()[0]
    found = [*phi[[0, 1000, 2000, 5000, -1]], phi.sum()]
    assert learned_features.VERSION == 2
    golden = [4.39722e-3, 4.17526e-3, 0.0, 3.80887e-3, 0.099999, 172.549]
    np.testing.assert_allclose(found, golden, rtol=1e-3)
