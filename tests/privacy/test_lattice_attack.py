"""The lattice attack: it finds records through floating-point noise, and nothing through the grid.

The sampler of earlier versions is kept in `old_sampler`, so that the attack is known to work.
"""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from helpers import old_sampler

from tf_efsgd.audit import lattice
from tf_efsgd.data import load
from tf_efsgd.privacy import class_sums, grid, noise
from tf_efsgd.privacy.features import pixels

_SIGMA = 0.7
_KEY = 0x1234_5678_9ABC_DEF1


@pytest.fixture(scope='module')
def digits():
    """Records of the digits, their features, and the digit that is guessed at."""
    train = load.load('digits').train
    images, labels = train.images[:600], train.labels[:600]
    features = pixels.FeatureMap(train.image_shape)
    scaled = tf.constant(images, tf.float32) / 127.5 - 1.0
    return images, labels, features, features(scaled).numpy()


def _guesses(images, labels, phi):
    """The truth, the records without one, and with another one for it."""
    without = np.arange(len(labels)) != 5
    other = np.where(np.arange(len(labels)) == 5, 9, np.arange(len(labels)))
    return {
        'true': (images, labels, phi),
        'without one': (images[without], labels[without], phi[without]),
        'with another': (images[other], labels[other], phi[other]),
    }


@pytest.mark.parametrize('gaussian', [old_sampler.gaussian, old_sampler.secure_gaussian])
def test_the_attack_finds_records_through_the_old_sampler(digits, gaussian):
    images, labels, _, phi = digits
    guesses = {
        name: old_sampler.sums(of_guess, of_labels, 10)
        for name, (_, of_labels, of_guess) in _guesses(images, labels, phi).items()
    }
    released = old_sampler.release(guesses['true'], _SIGMA, gaussian)
    found = {name: old_sampler.unexplained(released, sums) for name, sums in guesses.items()}
    assert found['true'] == 0
    assert found['without one'] > 1000 and found['with another'] > 1000


@pytest.mark.parametrize('make_noise', [lambda: noise.NoiseKey(_KEY), noise.SecureNoise])
def test_the_same_attack_finds_nothing_on_the_grid(digits, make_noise):
    images, labels, features, phi = digits
    guesses = {
        name: class_sums.sum_over_records(*of_guess[:2], 10, features, _SIGMA)
        for name, of_guess in _guesses(images, labels, phi).items()
    }
    released = class_sums.release(images, labels, 10, features, _SIGMA, make_noise())
    step = grid.class_sum_step(_SIGMA)
    floats = {name: sums * step for name, sums in guesses.items()}
    found = {
        name: old_sampler.unexplained(np.float32(released * step), sums)
        for name, sums in floats.items()
    }
    # As the old attack counts, no guess stands out: what it looks at says nothing.
    counts = np.array(list(found.values()))
    assert counts.max() - counts.min() < 6 * np.sqrt(counts.max() + 1)
    # Nor does anything else: every guess leaves integers that the noise can be.
    for sums in guesses.values():
        refuted, p_value = lattice.left_as_noise(released, sums)
        assert refuted == 0 and p_value > 1e-9


@pytest.mark.parametrize('replicas', [1, 2])
def test_the_audit_finds_nothing(replicas, strategy):
    attacks = lattice.audit(strategy=strategy if replicas == 2 else None)
    names = [(attack.release, attack.source) for attack in attacks]
    assert names == [
        (release, source)
        for source in ('Philox', 'secure')
        for release in ('F', 'F, second', 'A', 'R')
    ]
    for attack in attacks:
        assert not attack.finds, attack
        assert list(attack.refuted) == ['true', 'without one', 'with another']
        assert attack.coordinates >= 20_000


@pytest.mark.parametrize(('spacing', 'replicas'), [(2, 1), (48, 1), (2, 2)])
def test_the_audit_finds_noise_with_gaps(monkeypatch, spacing, replicas, strategy):
    real = noise.integers
    monkeypatch.setattr(noise, 'integers', lambda *a, **k: spacing * (real(*a, **k) // spacing))
    several = strategy if replicas == 2 else None
    attacks = lattice._attack_step(1.0, 'Philox', noise.NoiseKey, several)
    assert all(attack.finds for attack in attacks)
    assert 'REFUTES' in attacks[0].verdict


def test_the_audit_finds_noise_that_ends_too_early():
    found = lattice.Attack('A', 'Philox', 5, {'true': 0, 'without one': 3}, {'true': 0.3})
    assert found.finds
    assert not dataclasses.replace(found, refuted={'true': 0}).finds
    assert lattice.left_as_noise(np.array([lattice.LARGEST_DRAW + 1]), np.array([0]))[0] == 1
    assert lattice.left_as_noise(np.array([-lattice.LARGEST_DRAW]), np.array([0]))[0] == 0
