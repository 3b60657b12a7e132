"""bfloat16 for generated images: what sees a record is the same to the last bit without it."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_gan
from helpers.pairs import pairs

import tf_efsgd
from tf_efsgd.models import precision, public_heads
from tf_efsgd.models.generator import build_generator, draw_inputs
from tf_efsgd.models.public_network import build_public_network
from tf_efsgd.privacy import class_sums, grid
from tf_efsgd.privacy.features import public
from tf_efsgd.privacy.noise import NoiseKey
from tf_efsgd.training import fit as fitting
from tf_efsgd.training import public_heads_gan, targets

_ALLOWED = 1.0 + grid.SLACK / 2
_SHAPE, _CLASSES = (16, 16, 3), 2


def _reduced(model):
    return precision.copy_in(model, 'mixed_bfloat16')


@pytest.fixture(scope='module')
def network():
    return build_public_network(_SHAPE)


@pytest.fixture(scope='module')
def inputs(network):
    return public_heads.HeadInputs(network, public.public_photographs(_SHAPE)[:64])


@pytest.fixture(scope='module')
def reduced_inputs(network, inputs):
    return inputs.on(_reduced(network))


def _on_pixels(is_reduced):
    """A GAN on pixels, compiled."""
    tf.keras.utils.set_random_seed(5)
    generator = build_generator(tiny_gan.SHAPE, tiny_gan.CLASSES, latent_dim=4, width=8)
    networks = {'generator': _reduced(generator) if is_reduced else generator}
    return tiny_gan.make(networks=networks)


def _skip_generator():
    tf.keras.utils.set_random_seed(5)
    return build_generator(_SHAPE, _CLASSES, latent_dim=4, width=16, architecture='skip')


def _with_heads(inputs, is_reduced):
    """A GAN with heads on the public network, compiled."""
    generator = _skip_generator()
    gan = public_heads_gan.PublicHeadsGan(
        _reduced(generator) if is_reduced else generator,
        public_heads.build_public_heads(inputs.shapes, _CLASSES, channels=4),
        draw_inputs,
        inputs,
        seed=1,
    )
    gan.discriminator.set_weights(_weights_of(gan.discriminator))
    gan.compile(
        generator_optimizer=tf.keras.optimizers.legacy.Adam(0.01, beta_1=0.5),
        discriminator_optimizer=tf_efsgd.ErrorFeedbackDPKerasAdamOptimizer(
            l2_norm_clip=0.3,
            noise_multiplier=0.6,
            expected_batch_size=12,
            residual_l2_norm_clip=0.7,
            learning_rate=0.01,
        ),
        losses=public_heads.HingeLosses(),
        noise=NoiseKey(7),
        generated=8,
    )
    return gan


def _weights_of(model):
    draws = np.random.default_rng(4)
    return [0.1 * draws.normal(size=w.shape).astype(np.float32) for w in model.get_weights()]


def _batch_of(gan, n):
    """Records as a batch holds them, the last of them far from all others."""
    draws = np.random.default_rng(2)
    labels = draws.integers(0, gan.num_classes, n).astype(np.int32)
    shape = gan._record_shape()
    if isinstance(gan, public_heads_gan.PublicHeadsGan):
        features = draws.normal(size=[n, *shape])
        features[-1] *= 1e3
        return features.astype(np.float16), labels
    images = draws.integers(0, 256, [n, *shape]).astype(np.uint8)
    images[-1] = 255
    return images, labels


def _sums(gan, records):
    """(clipped, residual, of generated images) of one step on these records."""
    images, labels = map(tf.constant, records)
    clipped, residual, public_sums, _ = gan._sums_of_step(images, labels, gan._noise.next())
    return clipped, residual, public_sums


@pytest.fixture(scope='module', params=['pixels', 'heads'])
def pair(request, inputs, reduced_inputs):
    """The same GAN in float32 and with generated images in bfloat16."""
    if request.param == 'heads':
        return _with_heads(inputs, False), _with_heads(reduced_inputs, True)
    return _on_pixels(False), _on_pixels(True)


def test_what_records_add_is_the_same_to_the_last_bit(pair):
    plain, reduced = pair
    records = _batch_of(plain, 5)

    sums, others = _sums(plain, records), _sums(reduced, records)

    for one, two in pairs(sums[0] + sums[1], others[0] + others[1]):
        assert one.dtype == two.dtype == tf.float64
        np.testing.assert_array_equal(one, two)
    assert tf.linalg.global_norm(sums[0]) > 0.1
    # What generated images add is not: the setting does something.
    moved = [np.abs(one - two).max() for one, two in pairs(sums[2], others[2])]
    assert 0.0 < max(moved) < 0.5


def test_one_record_moves_the_sums_by_no_more_than_the_account_says(pair):
    """The test of `privacy/test_float_slack.py`, through the networks and under the setting."""
    _, reduced = pair
    mechanism = reduced.discriminator_optimizer.mechanism
    images, labels = _batch_of(reduced, 6)
    with_all = _sums(reduced, (images, labels))
    found = []
    for left_out in (-1, 0):
        rest = (np.delete(images, left_out, axis=0), np.delete(labels, left_out))
        without = _sums(reduced, rest)
        square = 0.0
        for one, two, stddev in zip(
            with_all, without, (mechanism.clipped_noise_stddev, mechanism.residual_noise_stddev)
        ):
            square += sum(np.sum(np.square(a - b)) for a, b in zip(one, two)) / stddev**2
        found.append(mechanism.noise_multiplier * np.sqrt(square))
        # What is seen of generated images does not depend on the records.
        for one, two in pairs(with_all[2], without[2]):
            np.testing.assert_array_equal(one, two)
    assert max(found) <= _ALLOWED
    assert max(found) > 0.3  # There is something to see.


def test_records_go_through_the_network_in_float32(network, inputs, reduced_inputs):
    draws = np.random.default_rng(6)
    images = draws.integers(0, 256, [3, *_SHAPE]).astype(np.uint8)
    labels = np.array([0, 1, 1], np.int32)
    features = public.PublicFeatures(network, _SHAPE, 0.02)

    def seen():
        record_features = public_heads.record_features(inputs, images)
        return record_features, class_sums.sum_over_records(images, labels, _CLASSES, features, 0.9)

    before = seen()
    floats = tf.constant(images / np.float32(127.5) - 1.0)
    on_reduced = public_heads_gan.OnNetwork(features, _reduced(network))
    moved = on_reduced.group(floats, 0) - features.group(floats)
    # Neither a copy nor its use changes what a record's features are.
    for one, two in pairs(before, seen()):
        np.testing.assert_array_equal(one, two)
    # Both would change under bfloat16.
    assert np.abs(public_heads.record_features(reduced_inputs, images) - before[0]).max() > 1e-2
    assert 1e-4 < np.abs(moved).max() < 0.1


def test_networks_that_see_records_are_refused():
    discriminator = tiny_gan.build().discriminator
    with pytest.raises(ValueError, match='computes in bfloat16.*networks that see records'):
        tiny_gan.build(_reduced(discriminator))
    plain = tiny_gan.build(reconstruction='generator')
    with pytest.raises(ValueError, match='computes in bfloat16.*decodes no record'):
        tiny_gan.build(plain.discriminator, _reduced(plain.generator))


@pytest.mark.parametrize('policy', ['mixed_float16', 'bfloat16'])
def test_generators_of_other_precision_are_refused(policy):
    generator = tiny_gan.build().generator
    with pytest.raises(ValueError, match=f'computes in {policy.removeprefix("mixed_")}'):
        tiny_gan.build(generator=precision.copy_in(generator, policy))


@pytest.mark.acceptance
def test_a_generator_is_fitted_to_a_release_and_its_average_computes_in_float32(network):
    features = public.PublicFeatures(network, _SHAPE, 0.02)
    draws = np.random.default_rng(3)
    labels = np.arange(24, dtype=np.int32) % _CLASSES
    images = draws.integers(0, 100, [24, *_SHAPE]) + 150 * labels[:, None, None, None]
    sums = class_sums.release(images.astype(np.uint8), labels, _CLASSES, features, 0.0, None)
    means = class_sums.class_means(sums, 0.0, len(images), groups=features.groups)
    generator = _reduced(_skip_generator())
    held_against = targets.Target(features, means)
    labels_of_step = held_against.draw_labels(tf.constant([0, 1]))
    drawn = draw_inputs(generator, labels_of_step, tf.constant([3, 4]))

    def distance(model):
        return float(held_against.distance(model(drawn), labels_of_step, tf.constant([0, 1])))

    before = distance(generator)
    target = targets.Target(public_heads_gan.OnNetwork(features, _reduced(network)), means)
    averages = fitting.fit(generator, draw_inputs, [target], steps=12, seed=1)

    in_float32 = precision.copy_in(generator, 'float32')
    in_float32.set_weights(averages)
    assert {weights.dtype for weights in averages} == {np.dtype(np.float32)}
    assert distance(in_float32) < 0.9 * before


def test_the_moving_average_computes_in_float32(pair):
    for gan in pair:
        layers = gan.ema_generator._flatten_layers(include_self=False)
        assert {layer.compute_dtype for layer in layers} == {'float32', 'int32'}  # Of labels.
    computes_in = {layer.compute_dtype for layer in pair[1].generator.layers}
    assert computes_in == {'float32', 'bfloat16', 'int32'}


def test_a_copy_of_head_inputs_leaves_the_first_alone(network, inputs):
    other = inputs.on(_reduced(network))
    images = tf.random.stateless_uniform([2, *_SHAPE], [1, 2], -1.0, 1.0)
    np.testing.assert_array_equal(inputs.maps(images)['stage_5'], network(images)['stage_5'])
    assert np.any(other.maps(images)['stage_5'] != network(images)['stage_5'])
