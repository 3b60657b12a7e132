"""How long a step takes is measured as the strategy that will train takes it."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from helpers import toy_images

from tf_efsgd import config
from tf_efsgd.run import speed

_FLAGS = (
    '--target_epsilon=1', '--generator=plain', '--discriminator=pixels', '--public_features=none',
    '--generator_width=8', '--latent_dim=4',
)  # fmt: skip


@pytest.mark.parametrize(
    ('replicas', 'is_alone', 'images', 'devices'),
    [(1, True, 100, 1), (2, True, 50, 2), (2, False, 50, 1)],
)
def test_every_replica_makes_its_share(
    replicas, is_alone, images, devices, strategy, monkeypatch, capsys
):
    seen, real = [], speed.draw_inputs

    def draw_inputs(generator, labels):
        context = tf.distribute.get_replica_context()
        seen.append((len(labels), context.num_replicas_in_sync))
        return real(generator, labels)

    monkeypatch.setattr(speed, 'draw_inputs', draw_inputs)
    trains = strategy if replicas == 2 else tf.distribute.get_strategy()
    settings = config.from_flagfile('\n'.join(_FLAGS))
    found = speed.measure(settings, toy_images.toy(6, 1), trains, is_alone)
    assert seen == [(images, devices)] * devices
    assert 0 < found.fit < found.private and np.isfinite(found.private)
    assert 'Measuring' in capsys.readouterr().out
    assert found.both == found.learning == 0


def test_a_second_release_takes_time_of_its_own():
    flags = (*_FLAGS, '--warm_start_share=1', '--learned_features_share=0.5')
    settings = config.from_flagfile('\n'.join(flags))
    found = speed.measure(settings, toy_images.toy(6, 1), tf.distribute.get_strategy())
    assert found.both > found.fit and found.learning > 0


@pytest.mark.parametrize(
    ('flags', 'size', 'message'),
    [
        (('--discriminator=public_heads',), 8, 'public_heads needs the network'),
        ((), 9, '4, 5, 6 or 7 times a power of two'),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_is_timed(flags, size, message):
    records = toy_images.toy(6, 1)
    images = np.zeros([6, size, size, 1], np.uint8)
    records = dataclasses.replace(records, images=images)
    settings = config.from_flagfile('\n'.join((*_FLAGS, *flags)))
    with pytest.raises(config.ConfigError, match=message):
        speed.measure(settings, records, tf.distribute.get_strategy(), True)
