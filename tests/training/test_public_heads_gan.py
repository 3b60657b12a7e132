"""Tests of the heads on a public network: whose gradient is clipped, who sees what, who learns."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_heads
from helpers.tiny_heads import BATCH, SHAPE, make, records

from tf_efsgd.models import public_heads
from tf_efsgd.models.public_network import build_public_network
from tf_efsgd.privacy.features import public
from tf_efsgd.training import targets


@pytest.fixture(scope='module')
def network():
    return build_public_network(SHAPE)


@pytest.fixture(scope='module')
def inputs(network):
    return tiny_heads.head_inputs(network)


def _batches(features, labels, size=BATCH):
    data = tf.data.Dataset.from_tensor_slices((features, labels))
    return data.repeat().batch(size)


def test_features_of_records_are_those_of_images(inputs, tmp_path):
    images, _ = records(5)
    path = tmp_path / 'features.npy'

    found = public_heads.record_features(inputs, images, path)
    in_memory = public_heads.record_features(inputs, images)

    expected = inputs(tf.cast(images, tf.float32) / 127.5 - 1.0)
    np.testing.assert_allclose(found, expected, atol=5e-3)
    np.testing.assert_array_equal(found, in_memory)
    assert isinstance(found, np.memmap)
    # Nothing is left of them when the process ends.
    assert list(tmp_path.iterdir()) == []
    assert np.abs(found).max() <= 5.0


def test_pixels_are_a_part_of_their_own(network, inputs):
    photographs = public.public_photographs(SHAPE)[:64]
    without = public_heads.HeadInputs(network, photographs)
    checkerboard = 0.4 * (-1.0) ** np.add.outer(np.arange(16), np.arange(16))
    images = tf.constant(photographs[:2] + checkerboard[:, :, np.newaxis], tf.float32)

    assert inputs.shapes[:-1] == without.shapes
    assert tuple(inputs.shapes[-1]) == (8, 8, 12)
    np.testing.assert_array_equal(inputs(images)[:, : without.size], without(images))
    moved = (inputs(images) - inputs(tf.constant(photographs[:2])))[:, without.size :]
    assert np.abs(moved).mean() > 0.3


def test_a_records_features_do_not_depend_on_the_others(inputs):
    images, _ = records(7)

    alone = public_heads.record_features(inputs, images[3:4])

    np.testing.assert_array_equal(alone[0], public_heads.record_features(inputs, images)[3])


@pytest.mark.parametrize('reconstruction', [False, True])
def test_clipping_is_fast_and_equal_to_that_of_each_record(inputs, reconstruction):
    gan = make(inputs, wrong_class_weight=0.7, reconstruction=reconstruction)
    assert gan.clipping == 'fast'
    images, labels = records(6)
    features = tf.cast(public_heads.record_features(inputs, images), tf.float32)
    variables = gan.private_variables

    def losses_of():
        return gan._losses_of_records(features, tf.constant(labels))

    optimizer = gan.discriminator_optimizer
    fast, _ = optimizer.batch_sums([gan.discriminator], losses_of, variables)
    slow, _ = optimizer.clipped_sums(gan._loss_of_record, (features, labels, {}), variables)

    for one, two in zip(fast, slow):
        np.testing.assert_allclose(one, two, atol=1e-5)
    assert tf.linalg.global_norm(fast) <= 6 * 0.3 + 1e-5


def test_patches_are_the_pixels(inputs):
    images, _ = records(3)
    features = public_heads.record_features(inputs, images)

    found = inputs.patches(tf.cast(features, tf.float32))

    floats = images / np.float32(127.5) - 1.0
    np.testing.assert_allclose(found, tf.nn.space_to_depth(floats, 2), atol=5e-3)


def test_records_are_reconstructed_from_their_features(inputs):
    gan = make(inputs, reconstruction=True)
    images, labels = records(40)
    features = public_heads.record_features(inputs, images)
    seen = tf.cast(features, tf.float32)

    def error():
        decoded = gan.discriminator(seen)['reconstruction']
        floats = tf.nn.space_to_depth(images / np.float32(127.5) - 1.0, 2)
        return float(tf.reduce_mean(tf.reduce_sum((floats - decoded) ** 2, axis=[1, 2, 3])))

    before = error()
    without = make(inputs, reconstruction=False)._losses_of_records(seen, tf.constant(labels))
    losses = gan._losses_of_records(seen, tf.constant(labels))
    # The pixels, a part of their own, are not decoded from themselves.
    no_pixels = seen * tf.cast(tf.range(inputs.size) < inputs.size - 8 * 8 * 12, tf.float32)
    np.testing.assert_allclose(
        gan.discriminator(seen)['reconstruction'], gan.discriminator(no_pixels)['reconstruction']
    )
    gan.fit(_batches(features, labels), steps_per_epoch=60, verbose=0)

    assert losses.shape == without.shape == [40]
    assert 0.01 * before < float(tf.reduce_mean(losses - without)) < 0.04 * before
    assert error() < 0.8 * before


@pytest.mark.parametrize('error_feedback', ['none', 'private'])
def test_generator_and_heads_learn_in_one_fit(network, inputs, error_feedback):
    gan = make(inputs, 0.4, error_feedback)
    images, labels = records(40)
    features, means = tiny_heads.class_means(network, images, labels)
    gan.follow(tiny_heads.averaged_target(features, means), 0.5)
    heads = [w.copy() for w in gan.discriminator.get_weights()]

    held_against = targets.Target(features, means)
    labels_of_step = held_against.draw_labels(tf.constant([0, 1]))

    def distance():
        made = gan.generate(labels_of_step, tf.constant([3, 4]))
        return float(held_against.distance(made, labels_of_step, tf.constant([0, 1])))

    before = distance()
    seen = public_heads.record_features(inputs, images)
    gan.fit(_batches(seen, labels), steps_per_epoch=60, verbose=0)

    assert distance() < 0.7 * before
    assert any(np.any(a != b) for a, b in zip(heads, gan.discriminator.get_weights()))
    assert 0.0 < float(gan.balance) < np.inf
    assert not network.trainable_variables
    # A checkpoint has no weights of the network.
    assert sum(v.shape.num_elements() for v in gan.variables) < network.count_params() // 2


def test_a_step_on_no_records_is_a_step(inputs):
    gan = make(inputs, 0.4)

    data = tf.data.Dataset.from_tensors(
        (tf.zeros([0, inputs.size], tf.float16), tf.zeros([0], tf.int32))
    )
    history = gan.fit(data.repeat(), steps_per_epoch=2, verbose=0)

    assert int(gan.private_steps) == 2
    assert history.history['released_gradient_norm'][0] > 0.0


def test_consistent_images_are_those_with_the_largest_margins(inputs):
    gan = make(inputs)
    labels = np.array([0, 1, 1, 0, 1, 0, 0], np.int32)

    chosen = gan.generate_consistent(labels, seed=3, candidates=4.0)
    plain = gan.generate_consistent(labels, seed=3, candidates=1.0)

    def margins(images):
        floats = tf.cast(images, tf.float32) / 127.5 - 1.0
        return gan.class_margins(floats, tf.constant(labels)).numpy()

    assert chosen.shape == (7, *SHAPE) and chosen.dtype == np.uint8
    for label in (0, 1):
        of_label = labels == label
        assert margins(chosen)[of_label].mean() > margins(plain)[of_label].mean()
    np.testing.assert_array_equal(chosen, gan.generate_consistent(labels, seed=3, candidates=4.0))
    # A margin is of the own class: under the other label it is as much below.
    floats = tf.cast(chosen, tf.float32) / 127.5 - 1.0
    other = gan.class_margins(floats, tf.constant(1 - labels))
    np.testing.assert_allclose(other, -margins(chosen), atol=1e-4)


def test_what_is_measured_on_records(inputs):
    gan = make(inputs, 0.4, measure_records=True)
    images, labels = records(9)
    features = public_heads.record_features(inputs, images)

    found = gan._measured_sums_of_share(tf.cast(features, tf.float32), tf.constant(labels), {})

    logits = gan.discriminator(tf.cast(features, tf.float32))['logits'].numpy()
    own = np.stack([logits[i, :, label] for i, label in enumerate(labels)])
    np.testing.assert_allclose(found['real_accuracy'], np.mean(own > 0) * 9, rtol=1e-5)


def test_hinge_losses():
    losses = public_heads.HingeLosses
    logits = tf.constant([[[0.3, -2.0], [3.0, 0.5]], [[-0.4, 0.2], [0.0, -3.0]]])
    labels = tf.constant([0, 1])

    realness = losses.realness(logits, labels)

    np.testing.assert_allclose(realness, [[0.3, 3.0], [0.2, -3.0]])
    np.testing.assert_allclose(losses.real(realness), [0.35, 2.4], rtol=1e-6)
    np.testing.assert_allclose(losses.fake(realness), [2.65, 0.6], rtol=1e-6)
    np.testing.assert_allclose(losses.generator(realness), [-1.65, 1.4], rtol=1e-6)
    np.testing.assert_allclose(losses.wrong_class(logits, labels), [0.75, 0.8], rtol=1e-6)
