"""Describes the machine that a figure was measured on."""

from __future__ import annotations

import glob
import os
import pathlib
import platform
import shutil
from collections.abc import Mapping

_DRIVER_FILES = ('/proc/driver/nvidia', '/dev/nvidia*')


def cores() -> int:
    """Returns how many cores this process may use."""
    is_limited = hasattr(os, 'sched_getaffinity')
    return len(os.sched_getaffinity(0)) if is_limited else os.cpu_count() or 1


def has_nvidia_driver() -> bool:
    """Whether there are traces of an NVIDIA driver; whether it works is not tried."""
    return bool(shutil.which('nvidia-smi')) or any(map(glob.glob, _DRIVER_FILES))


def machine() -> dict[str, object]:
    """Returns facts about this machine by name: cores, processor, GPUs and versions."""
    import tensorflow as tf

    return {
        'cores': cores(),
        'processor': _processor(),
        'gpus': len(tf.config.list_physical_devices('GPU')),
        'tensorflow': tf.__version__,
        'python': platform.python_version(),
    }


def _processor() -> str:
    path = pathlib.Path('/proc/cpuinfo')
    lines = path.read_text(encoding='utf-8', errors='replace').splitlines() if path.exists() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def describe_machine(facts: Mapping[str, object]) -> str:
    """Describes the facts of `machine` in words."""
    gpus = f', {facts["gpus"]} GPUs' if facts['gpus'] else ''
    return (
        f'{facts["cores"]} cores of {facts["processor"]}{gpus}, TensorFlow {facts["tensorflow"]}, '
        f'Python {facts["python"]}'
    )
