"""How far images are from released means, and the averages over steps."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.small_images import CLASSES, SHAPE, PixelFeatures, draw_images

from tf_efsgd.privacy.features import pixels
from tf_efsgd.training import targets as fit_targets


@pytest.fixture(scope='module')
def features():
    return pixels.FeatureMap(SHAPE)


def test_mmd_loss_is_its_formula():
    # Two classes with n = 2: |m - F|^2 - sum_i |phi_i - m|^2 / (n (n - 1)), by hand:
    # class 0: m = (2, 0), F = (1, 1): 2 - (1 + 1) / 2 = 1; class 1: m = F = (0, 3): 0 - 0 = 0.
    features = tf.constant([[[1.0, 0.0], [3.0, 0.0]], [[0.0, 3.0], [0.0, 3.0]]])
    means = tf.constant([[1.0, 1.0], [0.0, 3.0]])
    assert float(fit_targets.mmd_loss(features, means)) == pytest.approx(1.0)


def test_mmd_loss_is_unbiased():
    rng = np.random.default_rng(5)
    drawn = rng.normal([0.3, -0.2], 1.0, [2000, 4, 2]).astype(np.float32)
    losses = [
        float(fit_targets.mmd_loss(tf.constant(d[np.newaxis]), tf.zeros([1, 2]))) for d in drawn
    ]
    expected = 0.3**2 + 0.2**2
    error = 4 * np.std(losses) / np.sqrt(len(losses))
    assert abs(np.mean(losses) - expected) < error
    # With the bias, the variance 2 / n, it would be found out.
    assert abs(np.mean(losses) + 2 / 4 - expected) > error


@pytest.mark.parametrize('num_classes, classes', [(1, 1), (2, 2), (10, 10), (25, 25), (1000, 25)])
def test_a_step_makes_about_as_many_images_whatever_the_classes(num_classes, classes):
    target = fit_targets.Target(None, np.zeros([8, num_classes, 1], np.float32))
    labels = target.draw_labels(tf.constant([1, 2])).numpy()
    found, counts = np.unique(labels, return_counts=True)
    assert len(found) == classes and set(found) <= set(range(num_classes))
    assert len(set(counts)) == 1 and counts[0] >= 2
    assert len(labels) <= 100


def test_images_are_held_against_the_means_of_their_own_class(features):
    images = tf.constant(draw_images(CLASSES, 5) / 127.5 - 1.0, tf.float32)
    # Of each class all images are the same, so the distance of means is that of images.
    means = np.stack([features.group(images, g).numpy() for g in range(8)])
    target = fit_targets.Target(features, means)
    labels = target.draw_labels(tf.constant([1, 2]))
    right = target.distance(tf.gather(images, labels), labels, tf.constant([3, 4]))
    wrong = target.distance(tf.gather(images, (labels + 1) % 3), labels, tf.constant([3, 4]))
    assert float(right) == pytest.approx(0.0, abs=1e-5)
    assert float(wrong) > 0.1


def _gradient(target, images, labels, seed=(1, 2)):
    images = tf.constant(images, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = target.loss(images, tf.constant(labels, tf.int32), tf.constant(seed))
    return tape.gradient(loss, images).numpy().reshape(len(labels), -1)


def _averaged(means):
    return fit_targets.AveragedTarget(
        fit_targets.Target(PixelFeatures(), np.asarray(means, np.float32))
    )


def test_the_first_step_has_the_gradient_of_the_unbiased_distance():
    means = np.random.default_rng(2).normal(size=[1, 3, 4]).astype(np.float32)
    images = tf.constant(np.random.default_rng(3).normal(size=[6, 2, 2, 1]), tf.float32)
    found = _gradient(_averaged(means), images, [2, 2, 2, 0, 0, 0])
    with tf.GradientTape() as tape:
        tape.watch(images)
        made = tf.reshape(images, [2, 3, 4])
        loss = fit_targets.mmd_loss(made, tf.gather(means[0], [2, 0]))
    wanted = tape.gradient(loss, images).numpy().reshape(6, 4)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize('classes, memory', [(2, 0.8), (6, 0.8**3)])
def test_the_difference_is_an_average_over_the_steps_of_each_class(classes, memory):
    # Two of the classes have part in a step: the fewer of all, the longer ago was the last time.
    target, ones = _averaged(np.full([1, classes, 4], 0.5)), np.ones([4, 2, 2, 1])
    other = np.array([1, 1, 7, 7]).reshape(4, 1, 1, 1)
    first = _gradient(target, 3 * ones * other, [1, 1, 0, 0])
    np.testing.assert_allclose(first[:2], 2.5, rtol=1e-5)
    second = _gradient(target, 5 * ones, [1, 1, 0, 0])
    average = (memory * 2.5 + 4.5) / (memory + 1)
    np.testing.assert_allclose(second[:2], average, rtol=1e-5)
    np.testing.assert_allclose(second[2:], (memory * 20.5 + 4.5) / (memory + 1), rtol=1e-5)


def test_a_class_that_had_no_part_begins_with_its_own_difference():
    target, ones = _averaged(np.full([1, 6, 4], 0.5)), np.ones([4, 2, 2, 1])
    _gradient(target, 3 * ones, [1, 1, 0, 0])
    np.testing.assert_allclose(_gradient(target, 9 * ones, [5, 5, 2, 2]), 8.5, rtol=1e-5)


def test_a_step_counts_once_however_surely_it_is_remembered():
    """Means of many steps that stand still: the distance alone is left, no variance within it."""
    drawn = np.random.default_rng(5).normal(size=[400, 4, 2, 2, 1])
    target = _averaged(np.zeros([1, 1, 4]))
    scale = tf.Variable(1.0)  # Scales the images, whose true mean is 0: nothing should be gained.
    gradients = []
    for images in drawn:
        with tf.GradientTape() as tape:
            made = scale * tf.constant(images, tf.float32)
            loss = target.loss(made, tf.zeros([4], tf.int32), tf.constant([1, 2]))
        gradients.append(float(tape.gradient(loss, scale)))
    error = np.std(gradients) / 20
    assert abs(np.mean(gradients)) < 4 * error
    # With the variance of the mean in it, 0.2 of 2 times 4 / 4, it would be found out.
    assert abs(np.mean(gradients) + 0.4) > 4 * error


def test_a_sum_of_targets_is_the_sum_of_their_distances():
    rng = np.random.default_rng(4)
    targets = [
        fit_targets.Target(PixelFeatures(), rng.normal(size=[1, 3, 4]).astype(np.float32))
        for _ in range(2)
    ]
    both = fit_targets.SumOfTargets(targets)
    labels, seed = both.draw_labels(tf.constant([1, 2])), tf.constant([3, 4])
    images = tf.constant(rng.normal(size=[len(labels), 2, 2, 1]), tf.float32)
    parts = [float(target.distance(images, labels, seed)) for target in targets]
    assert float(both.distance(images, labels, seed)) == pytest.approx(sum(parts), rel=1e-5)
    assert min(map(abs, parts)) > 0.01 * max(map(abs, parts))  # Both count.


def test_every_group_has_means_and_differences_of_its_own():
    target = _averaged(np.stack([np.zeros([1, 4]), np.full([1, 4], 8.0)]))
    ones = np.ones([2, 2, 2, 1])
    found = {round(float(_gradient(target, ones, [0, 0], (1, n))[0, 0]), 3) for n in range(12)}
    assert found == {1.0, -7.0}
