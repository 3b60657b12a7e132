"""Features of a record are its own to the last bit, wherever it stands, whoever is beside it."""

import numpy as np
import pytest
import tensorflow as tf

from tf_efsgd.models.classifier import build_classifier
from tf_efsgd.models.public_heads import HeadInputs
from tf_efsgd.models.public_network import build_public_network
from tf_efsgd.privacy import class_sums
from tf_efsgd.privacy.features import alone, learned, pixels, public

pytestmark = pytest.mark.real_trials

_SHAPE = (16, 16, 3)


@pytest.fixture(scope='module')
def network():
    return build_public_network(_SHAPE, enlarge=2)


@pytest.fixture(scope='module')
def photographs():
    return public.public_photographs(_SHAPE)


@pytest.mark.parametrize('size', [0.2, 0.23, 0.55, 1.0])
def test_public_features_are_a_record_s_own(network, photographs, size):
    features = public.PublicFeatures(network, _SHAPE, size)
    assert alone.why_not_alone(features, photographs, features.rows()) is None


def _pixel_features(shape):
    return pixels.FeatureMap(shape)


def _learned_features(shape):
    return learned.LearnedFeatures(build_classifier(shape, 10), [1.0, 1.0, 1.0], shape)


def _public_features(shape):
    return public.PublicFeatures(build_public_network(shape), shape)


@pytest.mark.parametrize('make', [_pixel_features, _learned_features, _public_features])
@pytest.mark.parametrize('shape', [(28, 28, 1), (32, 32, 3)])
def test_a_record_more_adds_its_own_numbers_alone_to_a_sum(make, shape):
    """To the last integer, though every other record stands at another place then."""
    features, draws = make(shape), np.random.default_rng(3)
    images = draws.integers(0, 256, [250, *shape]).astype(np.uint8)
    labels = draws.integers(0, 10, 250).astype(np.int32)

    def sums(kept):
        return class_sums.sum_over_records(images[kept], labels[kept], 10, features, 0.7)

    np.testing.assert_array_equal(sums(slice(None)), sums(slice(1, None)) + sums(slice(1)))
    assert np.any(sums(slice(1)))


def test_many_records_are_computed_at_a_time(network):
    """Parts of 1 would be safe, too, and slow."""
    for features in (_pixel_features((28, 28, 1)), public.PublicFeatures(network, _SHAPE, 0.2)):
        assert features.rows() >= 24


@pytest.mark.parametrize(
    ('most', 'rows'), [(200, alone.ROWS[0]), (50, 48), (47, 24), (10, 8), (2, 1)]
)
def test_parts_are_as_small_as_leaves_each_record_alone(photographs, most, rows):
    def mixes_many(images):
        return _flat(images) + (
            tf.reduce_mean(_flat(images), axis=0) if images.shape[0] > most else 0
        )

    assert alone.choose_rows(mixes_many, photographs) == rows


def test_features_that_are_not_even_a_record_s_own_alone_are_refused(photographs):
    def random(images):
        return _flat(images) + tf.random.normal([])

    with pytest.raises(alone.NotAlone, match='another place'):
        alone.choose_rows(random, photographs)


def test_sums_are_made_in_the_parts_that_were_tried(monkeypatch):
    features, seen = _pixel_features((8, 8, 1)), []
    compute = features.class_sums

    def remember(images, *rest):
        seen.append(len(images))
        return compute(images, *rest)

    monkeypatch.setattr(features, 'class_sums', remember)
    monkeypatch.setattr(features, '_rows', 24)
    images = np.zeros([30, 8, 8, 1], np.uint8)
    class_sums.sum_over_records(images, np.zeros([30], np.int32), 1, features, 0.7)
    assert seen == [24, 24]


def test_sums_that_depend_on_the_place_are_found(network, photographs, monkeypatch):
    """As these features were made at first: over an axis that is not the last."""
    monkeypatch.setattr(public, '_flat_mean', lambda x: tf.reduce_mean(x, axis=[1, 2]))
    features = public.PublicFeatures(network, _SHAPE, 0.23)
    reason = alone.why_not_alone(features, photographs, 512)
    assert 'another place' in reason


def test_what_the_heads_see_is_a_record_s_own(network, photographs):
    inputs = HeadInputs(network, photographs, pixels=True)
    rows = alone.choose_rows(inputs, photographs)
    assert rows >= 24 and alone.why_not_alone(inputs, photographs, rows) is None


def _flat(images):
    return tf.reshape(images, [tf.shape(images)[0], 16 * 16 * 3])


@pytest.mark.parametrize(
    ('function', 'reason'),
    [
        # Only one row of many, and by little.
        (lambda x: _flat(x) + 1e-6 * tf.roll(_flat(x), 1, axis=0), 'the others beside it'),
        # Its rounding shows where records stand, first.
        (lambda x: _flat(x) - 1e-4 * tf.reduce_mean(_flat(x), axis=0), 'a record'),
        (
            lambda x: _flat(x) * tf.linspace(1.0, 1.001, tf.shape(x)[0])[:, tf.newaxis],
            'another place',
        ),
    ],
)
def test_what_mixes_records_is_found(photographs, function, reason):
    assert reason in alone.why_not_alone(function, photographs, 64)


def test_what_mixes_large_batches_alone_is_found_at_the_size_of_the_parts(photographs):
    def mixes(images):
        others = tf.reduce_mean(_flat(images), axis=0)
        return _flat(images) + tf.where(tf.shape(images)[0] > 100, others, 0.0)

    assert alone.why_not_alone(mixes, photographs, 64) is None
    assert alone.why_not_alone(mixes, photographs, 256) is not None


def test_another_network_or_size_is_another_version(network):
    one = public.PublicFeatures(network, _SHAPE, 0.2)
    assert one.version == public.PublicFeatures(network, _SHAPE, 0.2).version
    again = build_public_network(_SHAPE, enlarge=2)  # Keras gives its layers other names.
    assert one.version == public.PublicFeatures(again, _SHAPE, 0.2).version
    other = build_public_network(_SHAPE, enlarge=1)
    changed = build_public_network(_SHAPE, enlarge=2)
    changed.layers[-1].trainable = False
    weights = changed.get_weights()
    weights[0] = weights[0] + 1e-6
    changed.set_weights(weights)
    versions = {
        one.version,
        public.PublicFeatures(network, _SHAPE, 0.5).version,
        public.PublicFeatures(other, _SHAPE, 0.2).version,
        public.PublicFeatures(changed, _SHAPE, 0.2).version,
    }
    assert len(versions) == 4 and min(versions) > public.VERSION
