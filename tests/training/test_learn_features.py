"""The classifier learns from generated images, and its layers are measured."""

import numpy as np
import pytest
from helpers.pairs import pairs

from tf_efsgd.data import load
from tf_efsgd.models.classifier import build_classifier
from tf_efsgd.training import learn_features


def test_distances_are_those_of_two_images_of_a_class():
    rng = np.random.default_rng(6)
    labels = np.arange(4000) % 2
    outputs = rng.normal(0, 0.3, [4000, 5]) + 7.0 * labels[:, np.newaxis]
    assert learn_features._distance(outputs, labels) == pytest.approx(0.3 * 2**0.5, rel=0.03)
    # However few images of a class there are.
    many = np.arange(4000) % 2000
    outputs = rng.normal(0, 0.3, [4000, 5]) + 1e-3 * many[:, np.newaxis]
    assert learn_features._distance(outputs, many) == pytest.approx(0.3 * 2**0.5, rel=0.05)
    assert np.isnan(learn_features._distance(np.full([4, 5], np.nan), labels[:4]))
    # What hardly differs is not blown up until rounding shows.
    assert learn_features._distance(np.full([10, 5], 4.0), labels[:10]) == pytest.approx(0.2)
    assert learn_features._distance(np.zeros([10, 5]), labels[:10]) > 0


def test_the_classifier_learns_from_generated_images():
    train = load.load('digits').train
    classifier = build_classifier(train.image_shape, 10)

    def generate(labels):  # Digits that stand for generated ones.
        at = np.stack([np.flatnonzero(train.labels == k)[:100] for k in range(10)])
        return train.images[at[labels, np.arange(len(labels)) % 100]]

    before = classifier.get_weights()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn_features, '_IMAGES', 4000)
        distances = learn_features.learn(classifier, generate, 10, seed=5)
    logits = classifier(train.images / np.float32(127.5) - 1.0)['logits'].numpy()
    assert np.mean(logits.argmax(axis=1) == train.labels) > 0.9
    assert all(np.any(a != b) for a, b in pairs(before, classifier.get_weights()))
    assert len(distances) == 3 and all(0.01 < distance < 100 for distance in distances)
