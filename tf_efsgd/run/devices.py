"""The devices that a run computes on."""

from __future__ import annotations

import os

import tensorflow as tf

from tf_efsgd import machine
from tf_efsgd.config import TrainingConfig


def make_strategy(training: TrainingConfig) -> tf.distribute.Strategy:
    """Makes the strategy of a run: one device, or several that hold the same variables.

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


def describe(strategy: tf.distribute.Strategy, workers: int = 1) -> str:
    """Describes the devices of a run in a few words: 'CPU, 2 cores', '2 x NVIDIA A100'.

    Args:
      strategy: over the devices of all workers.
      workers: the number of workers; each has as many devices as this one.
    """
    replicas = strategy.num_replicas_in_sync // workers
    on_each = f' on each of {workers} workers' if workers > 1 else ''
    gpus = tf.config.list_physical_devices('GPU')
    if not gpus:
        in_parts = f' in {replicas} parts' if replicas > 1 else ''
        return f'CPU, {machine.cores()} cores{in_parts}{on_each}'
    names = [
        tf.config.experimental.get_device_details(gpu).get('device_name', 'GPU') for gpu in gpus
    ][:replicas]
    described = ', '.join(f'{names.count(name)} x {name}' for name in dict.fromkeys(names))
    return f'{described}{on_each}'


def warning(training: TrainingConfig) -> str | None:
    """Says what to install if the CPU trains although a GPU was expected; otherwise None.

    Args:
      training: the settings `strategy` and `logical_devices`.
    """
    if tf.config.list_physical_devices('GPU'):
        return None
    install = "pip install 'tf_efsgd[gpu]'"
    if machine.has_nvidia_driver():
        hidden = os.environ.get('CUDA_VISIBLE_DEVICES')
        if hidden is not None:
            why = f'CUDA_VISIBLE_DEVICES={hidden} may hide it, or its libraries are missing'
        else:
            why = 'the libraries for it are missing or do not fit the driver'
        return (
            'WARNING: this machine has an NVIDIA driver, but TensorFlow sees no GPU, so the CPU '
            f'trains: {why}. Install them with {install}.'
        )
    if training.strategy == 'mirrored' and training.logical_devices == 1:
        return (
            'WARNING: --strategy=mirrored finds no GPU, so the CPU trains by itself. For NVIDIA '
            f'GPUs install their driver and {install}; without a GPU leave --strategy out.'
        )
    return None
