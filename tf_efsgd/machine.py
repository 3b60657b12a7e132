"""The machine that figures are made on."""

from __future__ import annotations

import os
import pathlib
import platform
from collections.abc import Mapping


def facts() -> dict[str, object]:
    """What figures are made on: this machine, and the versions of TensorFlow and Python."""
    import tensorflow as tf

    is_limited = hasattr(os, 'sched_getaffinity')
    return {
        'cores': len(os.sched_getaffinity(0)) if is_limited else os.cpu_count(),
        'processor': _processor(),
        'gpus': len(tf.config.list_physical_devices('GPU')),
        'tensorflow': tf.__version__,
        'python': platform.python_version(),
    }


def _processor() -> str:
    path = pathlib.Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def describe(found: Mapping[str, object]) -> str:
    """`facts` in words."""
    gpus = f', {found["gpus"]} GPUs' if found['gpus'] else ''
    return (
        f'{found["cores"]} cores of {found["processor"]}{gpus}, TensorFlow {found["tensorflow"]}, '
        f'Python {found["python"]}'
    )
