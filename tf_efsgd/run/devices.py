"""What a run computes on."""

from __future__ import annotations

import tensorflow as tf

from tf_efsgd.config import TrainingConfig


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
