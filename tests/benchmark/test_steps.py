"""What is timed is right: the same gradients, loss and updates in all variants."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from helpers.pairs import pairs
from helpers.tiny_benchmark import NETWORKS, RECORDS, VARIANTS

from tf_efsgd.benchmark import steps


@pytest.fixture(scope='module')
def data():
    """The benchmark's own batch."""
    return steps.make_data(NETWORKS, RECORDS)


def _gan(name, data, **changes):
    return steps.build_gan(NETWORKS, dataclasses.replace(VARIANTS[name], **changes), data[2])


def _sums(gan, data):
    """(clipped sum, residual sum without privacy [], sum of generated images), flat."""
    sums = tf.function(lambda *records: gan._sums_of_step(*records)[:3])(*data[:2])
    return [np.concatenate([np.zeros(0), *(s.numpy().ravel() for s in part)]) for part in sums]


def test_clipping_methods_sum_the_same_gradients(data):
    vectorized = _gan('error_feedback_vectorized', data)
    fast, parts = _gan('error_feedback', data), _gan('error_feedback', data, microbatch_size=4)
    assert (vectorized.clipping, fast.clipping, parts.clipping) == ('vectorized', 'fast', 'fast')
    expected = _sums(vectorized, data)
    for found in _sums(fast, data), _sums(parts, data):
        for part, expected_part in zip(found, expected):
            length = np.linalg.norm(expected_part)
            assert length > 0.1
            assert np.linalg.norm(part - expected_part) < 1e-4 * length


def test_plain_steps_do_not_clip(data):
    (plain, residual, _), (clipped, *_) = (_sums(_gan(n, data), data) for n in ('plain', 'dp_sgd'))
    assert len(residual) == 0
    assert np.linalg.norm(clipped) <= RECORDS * steps.L2_NORM_CLIP * 1.0001
    assert np.linalg.norm(plain) > 1.5 * np.linalg.norm(clipped)


def test_tf_privacy_takes_the_same_loss(data, monkeypatch):
    monkeypatch.setattr(steps, 'NOISE_MULTIPLIER', 0.0)
    images, labels, generated = data
    gan = _gan('dp_sgd', data)
    # Generated images draw labels of their own; here they have those of the records.
    monkeypatch.setattr(gan, '_generate_share', lambda: (generated, labels))
    clipped, _, of_generated = _sums(gan, data)
    variables = gan.discriminator.trainable_variables
    optimizer = steps.build_optimizer(VARIANTS['tf_privacy'])
    with tf.GradientTape(persistent=True) as tape:
        losses = steps.drop_in_losses(gan.discriminator, images, labels, generated)
    gradients = optimizer._compute_gradients(losses, variables, tape=tape)
    theirs = np.concatenate([gradient.numpy().ravel() for gradient, _ in gradients])
    np.testing.assert_allclose(theirs * 2 * RECORDS, clipped + of_generated, atol=1e-4)


@pytest.mark.parametrize(
    'name', ['plain', 'error_feedback', 'error_feedback_drop_in', 'tf_privacy']
)
def test_a_step_updates_every_variable(name, monkeypatch):
    monkeypatch.setattr(steps, 'LEARNING_RATE', 0.01)
    variant = VARIANTS[name]
    is_drop_in = variant.clipping == 'jacobian'
    build = steps._build_drop_in_step if is_drop_in else steps._build_gan_step
    step, variables = build(NETWORKS, variant, steps.make_data(NETWORKS, variant.records))
    before = [variable.numpy() for variable in variables]
    step()
    assert all(np.abs(v.numpy() - b).max() > 1e-4 for v, b in pairs(variables, before))
