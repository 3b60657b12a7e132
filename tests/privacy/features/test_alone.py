"""Features of a record are its own to the last bit, wherever it stands, whoever is beside it."""

import pytest
import tensorflow as tf

from tf_efsgd.models.public_heads import RECORDS_PER_PART, HeadInputs
from tf_efsgd.models.public_network import build_public_network
from tf_efsgd.privacy import class_sums
from tf_efsgd.privacy.features import alone, public

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
    assert alone.why_not_alone(features, photographs, class_sums.RECORDS_PER_PART) is None


def test_sums_that_depend_on_the_place_are_found(network, photographs, monkeypatch):
    """As these features were made at first: over an axis that is not the last."""
    monkeypatch.setattr(public, '_flat_mean', lambda x: tf.reduce_mean(x, axis=[1, 2]))
    features = public.PublicFeatures(network, _SHAPE, 0.23)
    reason = alone.why_not_alone(features, photographs, class_sums.RECORDS_PER_PART)
    assert 'another place' in reason


def test_what_the_heads_see_is_a_record_s_own(network, photographs):
    inputs = HeadInputs(network, photographs, pixels=True)
    assert alone.why_not_alone(inputs, photographs, RECORDS_PER_PART) is None


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
