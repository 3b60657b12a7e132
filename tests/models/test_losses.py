"""The losses, by hand: one value per example."""

import numpy as np
import pytest
import tensorflow as tf

from tf_efsgd.models.losses import NonSaturatingLosses

_LN_2 = 0.693147
# log(1 + e^2) and log(1 + e^-2).
_HIGH, _LOW = 2.126928, 0.126928


def test_realness_is_the_logit_of_the_own_class():
    logits = tf.constant([[0.1, -0.2, 0.3], [4.0, 5.0, 6.0]])
    realness = NonSaturatingLosses.realness(logits, tf.constant([1, 2]))
    np.testing.assert_allclose(realness, [-0.2, 6.0])


@pytest.mark.parametrize(
    ('loss', 'wanted'),
    [
        ('real', [_LN_2, _LOW, _HIGH]),
        ('fake', [_LN_2, _HIGH, _LOW]),
        ('generator', [_LN_2, _LOW, _HIGH]),
    ],
)
def test_adversarial_losses(loss, wanted):
    realness = tf.constant([0.0, 2.0, -2.0])
    np.testing.assert_allclose(getattr(NonSaturatingLosses, loss)(realness), wanted, rtol=1e-5)


@pytest.mark.parametrize('loss', ['real', 'fake', 'generator'])
def test_far_off_realness_gives_finite_losses(loss):
    losses = getattr(NonSaturatingLosses, loss)(tf.constant([-1e4, 1e4]))
    np.testing.assert_allclose(np.sort(losses), [0, 1e4])


def test_the_generator_learns_most_where_it_is_found_out():
    realness = tf.constant([-5.0, 5.0])
    with tf.GradientTape() as tape:
        tape.watch(realness)
        loss = NonSaturatingLosses.generator(realness)
    # Non-saturating: slope -1 where the discriminator is sure that the image is generated.
    np.testing.assert_allclose(tape.gradient(loss, realness), [-0.993307, -0.006693], rtol=1e-4)


def test_reconstruction_sums_over_an_image_and_not_over_the_batch():
    images = tf.constant([1.0, 0.5, -1.0, 0.0] * 2, shape=[2, 2, 1, 2])
    reconstructions = tf.constant([0.0, 0.5, 1.0, 0.0, 1.0, 0.5, -1.0, 0.3], shape=[2, 2, 1, 2])
    loss = NonSaturatingLosses.reconstruction(images, reconstructions)
    np.testing.assert_allclose(loss, [5.0, 0.09], rtol=1e-6)


def test_divergence_of_normals_by_hand():
    # (m^2 + v - 1 - ln v) / 2, added up: (0.25 + 2 - 1 - ln 2) / 2 + (0 + 0.5 - 1 + ln 2) / 2.
    mean = tf.constant([[0.0, 0.0], [0.5, 0.0]])
    log_variance = tf.constant([[0.0, 0.0], [_LN_2, -_LN_2]])
    divergence = NonSaturatingLosses.divergence(mean, log_variance)
    np.testing.assert_allclose(divergence, [0.0, 0.375], atol=1e-6)


def test_a_posterior_has_a_mean_and_a_bounded_log_variance():
    parameters = tf.constant([[1e9, -0.3, 0.01, 1e9], [2.0, 5.0, -1e9, -3.0]])
    mean, log_variance = NonSaturatingLosses.posterior(parameters)
    np.testing.assert_array_equal(mean, parameters[:, :2])
    # 6 tanh(x / 6).
    np.testing.assert_allclose(log_variance, [[0.01, 6.0], [-6.0, -2.772703]], rtol=1e-5)
    assert np.isfinite(NonSaturatingLosses.divergence(mean, log_variance)).all()


@pytest.mark.parametrize('batch', [0, 1, 4])
def test_every_loss_is_one_value_per_example(batch):
    images = tf.ones([batch, 2, 2, 3])
    realness = NonSaturatingLosses.realness(tf.ones([batch, 5]), tf.zeros([batch], tf.int32))
    assert realness.shape == [batch]
    assert NonSaturatingLosses.reconstruction(images, images).shape == [batch]
    posterior = NonSaturatingLosses.posterior(tf.ones([batch, 6]))
    assert NonSaturatingLosses.divergence(*posterior).shape == [batch]
    for loss in ('real', 'fake', 'generator'):
        assert getattr(NonSaturatingLosses, loss)(realness).shape == [batch]
