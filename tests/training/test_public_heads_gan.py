"""Tests of the heads on a public network: whose gradient is clipped, who sees what, who learns."""

import numpy as np
import pytest
import tensorflow as tf

import tf_efsgd
from tf_efsgd.models import public_heads
from tf_efsgd.models.generator import build_generator, draw_inputs
from tf_efsgd.models.public_network import build_public_network
from tf_efsgd.privacy import class_sums
from tf_efsgd.privacy.features import public
from tf_efsgd.training import public_heads_gan, targets

_SHAPE = (16, 16, 3)
_CLASSES = 2
_B = 24


@pytest.fixture(scope='module')
def network():
    return build_public_network(_SHAPE)


@pytest.fixture(scope='module')
def inputs(network):
    return public_heads.HeadInputs(network, public.public_photographs(_SHAPE)[:64], pixels=True)


def _records(n, seed=0):
    """Dark and bright noise."""
    draws = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int32) % _CLASSES
    images = draws.integers(0, 100, [n, *_SHAPE]) + 150 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


def _make(
    inputs,
    noise_multiplier=0.0,
    error_feedback='none',
    wrong_class_weight=0.7,
    measure_records=False,
):
    tf.keras.utils.set_random_seed(5)
    gan = public_heads_gan.PublicHeadsGan(
        build_generator(
            _SHAPE, _CLASSES, latent_dim=4, width=16, noise_injection=False, embedding_stddev=2.0
        ),
        public_heads.build_public_heads(inputs.shapes, _CLASSES, channels=4),
        draw_inputs,
        inputs,
        seed=1,
    )
    gan.compile(
        generator_optimizer=tf.keras.optimizers.legacy.Adam(0.01, beta_1=0.5),
        discriminator_optimizer=tf_efsgd.ErrorFeedbackDPKerasAdamOptimizer(
            l2_norm_clip=0.3,
            noise_multiplier=noise_multiplier,
            expected_batch_size=_B,
            error_feedback=error_feedback,
            residual_l2_norm_clip=0.7,
            learning_rate=0.01,
            beta_1=0.5,
        ),
        losses=public_heads.HingeLosses(),
        wrong_class_weight=wrong_class_weight,
        generated=8,
        measure_records=measure_records,
    )
    return gan


def _batches(features, labels, size=_B):
    data = tf.data.Dataset.from_tensor_slices((features, labels))
    return data.repeat().batch(size)


def test_features_of_records_are_those_of_images(inputs, tmp_path):
    images, _ = _records(5)
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
    photographs = public.public_photographs(_SHAPE)[:64]
    without = public_heads.HeadInputs(network, photographs)
    checkerboard = 0.4 * (-1.0) ** np.add.outer(np.arange(16), np.arange(16))
    images = tf.constant(photographs[:2] + checkerboard[:, :, np.newaxis], tf.float32)

    assert inputs.shapes[:-1] == without.shapes
    assert tuple(inputs.shapes[-1]) == (8, 8, 12)
    np.testing.assert_array_equal(inputs(images)[:, : without.size], without(images))
    moved = (inputs(images) - inputs(tf.constant(photographs[:2])))[:, without.size :]
    assert np.abs(moved).mean() > 0.3


def test_a_records_features_do_not_depend_on_the_others(inputs):
    images, _ = _records(7)

    alone = public_heads.record_features(inputs, images[3:4])

    np.testing.assert_array_equal(alone[0], public_heads.record_features(inputs, images)[3])


def test_clipping_is_fast_and_equal_to_that_of_each_record(inputs):
    gan = _make(inputs, wrong_class_weight=0.7)
    assert gan.clipping == 'fast'
    images, labels = _records(6)
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


@pytest.mark.parametrize('error_feedback', ['none', 'private'])
def test_generator_and_heads_learn_in_one_fit(network, inputs, error_feedback):
    gan = _make(inputs, 0.4, error_feedback)
    features = public.PublicFeatures(network, _SHAPE, 0.02)
    images, labels = _records(40)
    sums = class_sums.release(images, labels, _CLASSES, features, 0.0, None)
    means = class_sums.class_means(sums, 0.0, len(images), groups=features.groups)
    target = targets.Target(public_heads_gan.OfMaps(features), means)
    gan.follow(targets.AveragedTarget(target), 0.5)
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
    gan = _make(inputs, 0.4)

    data = tf.data.Dataset.from_tensors(
        (tf.zeros([0, inputs.size], tf.float16), tf.zeros([0], tf.int32))
    )
    history = gan.fit(data.repeat(), steps_per_epoch=2, verbose=0)

    assert int(gan.private_steps) == 2
    assert history.history['released_gradient_norm'][0] > 0.0


def test_consistent_images_are_those_with_the_largest_margins(inputs):
    gan = _make(inputs)
    labels = np.array([0, 1, 1, 0, 1, 0, 0], np.int32)

    chosen = gan.generate_consistent(labels, seed=3, candidates=4.0)
    plain = gan.generate_consistent(labels, seed=3, candidates=1.0)

    def margins(images):
        floats = tf.cast(images, tf.float32) / 127.5 - 1.0
        return gan.class_margins(floats, tf.constant(labels)).numpy()

    assert chosen.shape == (7, *_SHAPE) and chosen.dtype == np.uint8
    for label in (0, 1):
        of_label = labels == label
        assert margins(chosen)[of_label].mean() > margins(plain)[of_label].mean()
    np.testing.assert_array_equal(chosen, gan.generate_consistent(labels, seed=3, candidates=4.0))
    # A margin is of the own class: under the other label it is as much below.
    floats = tf.cast(chosen, tf.float32) / 127.5 - 1.0
    other = gan.class_margins(floats, tf.constant(1 - labels))
    np.testing.assert_allclose(other, -margins(chosen), atol=1e-4)


def test_what_is_measured_on_records(inputs):
    gan = _make(inputs, 0.4, measure_records=True)
    images, labels = _records(9)
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
