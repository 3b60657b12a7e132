"""Differentially private image generation with error-feedback SGD.

The public names are loaded when they are first used, because accounting, plans and flags need no
TensorFlow.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING

from tf_efsgd.version import __version__

if sys.version_info >= (3, 12):  # It must come before anything loads TensorFlow or TF Privacy.
    from tf_efsgd import python_312  # noqa: F401
elif importlib.util.find_spec('tf_keras') is None:
    # TensorFlow 2.15 has no other Keras than Keras 2, and would look for `tf_keras` in vain.
    os.environ.pop('TF_USE_LEGACY_KERAS', None)

if TYPE_CHECKING:
    from tf_efsgd.budget.optimizer import epsilon
    from tf_efsgd.config.fields import ConfigError
    from tf_efsgd.data.poisson import poisson_batches
    from tf_efsgd.models.discriminator import build_discriminator
    from tf_efsgd.models.generator import build_generator, draw_inputs
    from tf_efsgd.models.layers import NoiseInjection
    from tf_efsgd.models.losses import NonSaturatingLosses
    from tf_efsgd.privacy.drop_in import PoissonTraining
    from tf_efsgd.privacy.optimizer import (
        ErrorFeedbackDPKerasAdamOptimizer,
        ErrorFeedbackDPKerasSGDOptimizer,
        make_error_feedback_optimizer_class,
    )
    from tf_efsgd.run.errors import Interrupted, TensorFlowError
    from tf_efsgd.synthesizer import Synthesizer
    from tf_efsgd.training.gan import EFSGDGan
    from tf_efsgd.training.warm_start import warm_start

_MODULES = {
    'ConfigError': 'config.fields',
    'EFSGDGan': 'training.gan',
    'ErrorFeedbackDPKerasAdamOptimizer': 'privacy.optimizer',
    'ErrorFeedbackDPKerasSGDOptimizer': 'privacy.optimizer',
    'Interrupted': 'run.errors',
    'NoiseInjection': 'models.layers',
    'NonSaturatingLosses': 'models.losses',
    'PoissonTraining': 'privacy.drop_in',
    'Synthesizer': 'synthesizer',
    'TensorFlowError': 'run.errors',
    'build_discriminator': 'models.discriminator',
    'build_generator': 'models.generator',
    'draw_inputs': 'models.generator',
    'epsilon': 'budget.optimizer',
    'make_error_feedback_optimizer_class': 'privacy.optimizer',
    'poisson_batches': 'data.poisson',
    'warm_start': 'training.warm_start',
}

__all__ = [
    'ConfigError',
    'EFSGDGan',
    'ErrorFeedbackDPKerasAdamOptimizer',
    'ErrorFeedbackDPKerasSGDOptimizer',
    'Interrupted',
    'NoiseInjection',
    'NonSaturatingLosses',
    'PoissonTraining',
    'Synthesizer',
    'TensorFlowError',
    '__version__',
    'build_discriminator',
    'build_generator',
    'draw_inputs',
    'epsilon',
    'make_error_feedback_optimizer_class',
    'poisson_batches',
    'warm_start',
]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)
