"""What a run computes on."""

from __future__ import annotations

import tensorflow as tf

from tf_efsgd import machine
from tf_efsgd.config import ConfigError, RunConfig, TrainingConfig


def make_strategy(training: TrainingConfig) -> tf.distribute.Strategy:
    """One device, or several that hold the same variables.

    Args:
      training: the settings `strategy` and `logical_devices`.

    Returns:
      The default strategy for one device, else a `MirroredStrategy` over all GPUs or, without any,
      over the logical devices of the CPU.
    """
    if training.logical_devices > 1:
        cpu = tf.config.list_physical_devices('CPU')[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * training.logical_devices
        )
    gpus = tf.config.list_logical_devices('GPU')
    devices = gpus or tf.config.list_logical_devices('CPU')
    if training.strategy == 'one_device' or (training.strategy == 'auto' and len(devices) == 1):
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def describe(strategy: tf.distribute.Strategy) -> str:
    """What it computes on, in a few words: 'CPU, 2 cores', '2 x NVIDIA A100'."""
    gpus = tf.config.list_physical_devices('GPU')
    if not gpus:
        text = f'CPU, {machine.cores()} cores'
        replicas = strategy.num_replicas_in_sync
        return f'{text} in {replicas} parts' if replicas > 1 else text
    names = [
        tf.config.experimental.get_device_details(gpu).get('device_name', 'GPU') for gpu in gpus
    ][: strategy.num_replicas_in_sync]
    return ', '.join(f'{names.count(name)} x {name}' for name in dict.fromkeys(names))


def for_settings(strategy: tf.distribute.Strategy, config: RunConfig) -> tf.distribute.Strategy:
    """The strategy that these settings can be trained under.

    Args:
      strategy: from `make_strategy`.
      config: the settings, none of them 'auto'.

    Returns:
      That strategy, or that of one device where heads on a public network cannot be spread.

    Raises:
      ConfigError: if several devices were asked for that these settings cannot use.
    """
    if config.model.discriminator != 'public_heads' or strategy.num_replicas_in_sync == 1:
        return strategy
    if config.training.strategy == 'auto':
        print('Heads on a public network train on one device: the first one is used.')
        return tf.distribute.OneDeviceStrategy(strategy.extended.worker_devices[0])
    raise ConfigError(
        '--discriminator=public_heads trains on one device: give --strategy=one_device, or '
        f'--discriminator=pixels. Received: --strategy={config.training.strategy} with '
        f'{strategy.num_replicas_in_sync} devices.'
    )
