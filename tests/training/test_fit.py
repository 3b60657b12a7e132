"""The fit of a generator to released means, and its checkpoints."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_run
from helpers.pairs import pairs
from helpers.small_images import CLASSES, SHAPE, PixelFeatures

from tf_efsgd.data import load
from tf_efsgd.models.generator import build_generator, draw_inputs
from tf_efsgd.privacy import class_sums, noise
from tf_efsgd.privacy.features import pixels
from tf_efsgd.training import fit as fitting
from tf_efsgd.training import targets as fit_targets


@pytest.fixture(scope='module')
def features():
    return pixels.FeatureMap(SHAPE)


def test_a_fit_to_two_targets_comes_near_both():
    """Two targets that look at one half of the pixels each: none alone says all."""

    class Half(PixelFeatures):
        def __init__(self, first):
            self._first = first

        def group(self, images, group):
            height = images.shape[1] // 2
            half = images[:, :height] if self._first else images[:, height:]
            return super().group(half, group)

    means = [np.full([1, CLASSES, 32], value, np.float32) for value in (0.6, -0.4)]
    targets = [fit_targets.Target(Half(i == 0), m) for i, m in enumerate(means)]
    generator = build_generator(SHAPE, CLASSES, latent_dim=4, width=8)
    generator.set_weights(fitting.fit(generator, draw_inputs, targets, steps=120))
    drawn = draw_inputs(generator, tf.constant([0, 1, 2] * 20), tf.constant([1, 2]))
    made = generator(drawn).numpy()
    assert made[:, :4].mean() == pytest.approx(0.6, abs=0.1)
    assert made[:, 4:].mean() == pytest.approx(-0.4, abs=0.1)


def test_a_generator_learns_the_classes():
    train = load.load('digits').train
    features = pixels.FeatureMap(train.image_shape)
    sums = class_sums.release(train.images, train.labels, 10, features, 1.0, noise.NoiseKey(7))
    means = class_sums.class_means(sums, 1.0, len(train.images))
    generator = build_generator(train.image_shape, 10, latent_dim=8, width=16)
    labels = np.repeat(np.arange(10, dtype=np.int32), 20)

    def distances():
        """Of mean images, made from true: [made class, true class]."""
        drawn = draw_inputs(generator, tf.constant(labels), tf.constant([1, 2]))
        made = generator(drawn).numpy().reshape(10, 20, -1).mean(axis=1)
        pixels = train.images.reshape(len(train.images), -1) / 127.5 - 1.0
        true = np.stack([pixels[train.labels == k].mean(axis=0) for k in range(10)])
        return np.linalg.norm(made[:, np.newaxis] - true, axis=-1)

    before = np.diag(distances()).mean()
    average = fitting.fit(generator, draw_inputs, [fit_targets.Target(features, means)], steps=150)
    generator.set_weights(average)
    after = distances()
    assert np.diag(after).mean() < 0.5 * before
    assert np.mean(after.argmin(axis=1) == np.arange(10)) >= 0.9


def test_the_fit_is_repeatable(features):
    target = fit_targets.Target(features, np.zeros([8, CLASSES, features.group_size], np.float32))

    def fitted(seed):
        tf.keras.utils.set_random_seed(1)
        generator = build_generator(SHAPE, CLASSES, latent_dim=4, width=8)
        return fitting.fit(generator, draw_inputs, [target], steps=3, seed=seed)

    first, again, other = fitted(2), fitted(2), fitted(3)
    for a, b in zip(first, again):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert any(np.max(np.abs(a - b)) > 1e-4 for a, b in zip(first, other))


def _fitted(folder, *, cut_after=None, **how):
    """Six steps, with a checkpoint after every second; returns the weights and which ran."""
    means = np.random.default_rng(5).normal(size=[1, CLASSES, 64]).astype(np.float32)
    tf.keras.utils.set_random_seed(1)
    generator = build_generator(SHAPE, CLASSES, latent_dim=4, width=8)
    ran = []

    def numbers(steps):
        for number in steps:
            if len(ran) == cut_after:
                raise tiny_run.PowerCut
            ran.append(number)
            yield number

    how = {'steps': 6, 'checkpoint_steps': 2, 'checkpoint_dir': folder, **how}
    targets, weights = [fit_targets.Target(PixelFeatures(), means)], None
    try:
        weights = fitting.fit(generator, draw_inputs, targets, progress=numbers, **how)
    except tiny_run.PowerCut:
        pass
    return weights, ran


@pytest.fixture(scope='module')
def whole_fit():
    weights, ran = _fitted(None)
    assert ran == [0, 1, 2, 3, 4, 5]
    return weights


def _assert_same(weights, others):
    for a, b in pairs(weights, others):
        np.testing.assert_allclose(a, b, atol=1e-6)


# Checkpoints follow steps 0, 2, 4 and the last, 5.
@pytest.mark.parametrize('cut_after, goes_on_at', [(2, 1), (5, 5)])
def test_a_fit_that_was_cut_short_goes_on_as_if_it_had_not_been(
    whole_fit, tmp_path, cut_after, goes_on_at
):
    weights, ran = _fitted(tmp_path, cut_after=cut_after)
    assert weights is None and len(ran) == cut_after
    weights, ran = _fitted(tmp_path)
    assert ran == list(range(goes_on_at, 6))
    _assert_same(weights, whole_fit)
    weights, ran = _fitted(tmp_path)  # Once more: it is done.
    assert ran == []
    _assert_same(weights, whole_fit)


def test_a_fit_goes_on_from_no_other_fits_checkpoint(tmp_path):
    _fitted(tmp_path)
    for other in ({'steps': 5}, {'seed': 3}, {'first_step': 6}, {'learning_rate': 1e-3}):
        _, ran = _fitted(tmp_path, cut_after=1, **other)
        assert ran == [other.get('first_step', 0)]


@pytest.mark.parametrize('what', ['*.index', '*.data-*', 'checkpoint'])
def test_a_damaged_checkpoint_of_a_fit_is_not_used(whole_fit, tmp_path, capfd, what):
    _fitted(tmp_path, cut_after=5)
    (path,) = tmp_path.glob(f'*/{what}')
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    weights, ran = _fitted(tmp_path)
    assert ran == [0, 1, 2, 3, 4, 5]
    assert ('is damaged, so the fit starts again' in capfd.readouterr().out) == (
        what != 'checkpoint'
    )
    _assert_same(weights, whole_fit)
