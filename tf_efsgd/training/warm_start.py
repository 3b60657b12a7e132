"""The warm start for your own networks: a release of all records, and a generator fitted to it.

A run does the same with a ledger, which is charged before the release is written, see `run`. Here
the caller accounts for it: `tf_efsgd.epsilon(optimizer, ..., warm_start=start)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import dp_accounting
import numpy as np
import tensorflow as tf

from tf_efsgd import progress
from tf_efsgd.models import generator as generators
from tf_efsgd.privacy import class_sums, grid
from tf_efsgd.privacy.features.grouped import GroupedFeatures
from tf_efsgd.privacy.features.pixels import FeatureMap
from tf_efsgd.privacy.optimizer import new_noise
from tf_efsgd.training import fit as fitting
from tf_efsgd.training.targets import Target

# As in a run: less noise protects nothing.
_LEAST_NOISE = 0.25


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """What a warm start has released, and what it has spent; all of it may be shared.

    Attributes:
      dp_event: its event: one Gaussian mechanism, with the noise multiplier to account for. Of two
        neighbours one has one more record.
      draws: how many numbers of noise were drawn.
      sums: the noisy sums, int64 [classes, features], in steps of a public grid.
      class_counts: the noisy numbers of records of the classes, float64 [classes].
      target: for `EFSGDGan.set_target`, with which the release keeps pulling in private steps.
    """

    dp_event: dp_accounting.DpEvent
    draws: int
    sums: np.ndarray
    class_counts: np.ndarray
    target: Target


def warm_start(
    generator: tf.keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    noise_multiplier: float,
    steps: int,
    dataset_size: int | None = None,
    draw_inputs: Callable[..., Any] = generators.draw_inputs,
    features: GroupedFeatures | None = None,
    learning_rate: float = fitting.LEARNING_RATE,
    seed: int = 0,
    secure_noise: bool = False,
    verbose: bool = True,
) -> WarmStart:
    """Releases noisy sums of features of all records by class, and fits a generator to them.

    Call it once, before you make an `EFSGDGan` with the generator. Every call looks at the records
    again and spends its `dp_event` again: give `tf_efsgd.epsilon` everything that the calls
    returned. A call that is interrupted leaves the generator as it was. The fit costs no privacy,
    however long it is.

    Formal guarantees: those of `privacy.class_sums.release`, which is the only look at the records.

    Args:
      generator: as for `EFSGDGan`, made outside any distribution strategy; it is trained.
      images: of all records, uint8 [N, H, W, C]. PRIVATE.
      labels: of all records, integers [N] in [0, num_classes). PRIVATE.
      num_classes: number of classes; public.
      noise_multiplier: standard deviation of the noise divided by how far one record moves the
        sums, at least 0.25; 0 releases the sums as they are, WITHOUT privacy.
      steps: of the fit, at least 1; a thousand show something, ten thousand give good images.
      dataset_size: declared number of records; public. None declares N.
      draw_inputs: as for `EFSGDGan`.
      features: what is summed; None: random features of pixels.
      learning_rate: of Adam in the first step of the fit, above 0.
      seed: of latents; public.
      secure_noise: whether every bit of the noise comes from the operating system's generator.
      verbose: whether to draw a progress bar.

    Returns:
      What was released and spent.

    Raises:
      ValueError: if an argument is wrong; the records were not used then.
    """
    labels = _check(images, labels, num_classes, noise_multiplier, steps)
    if features is None:
        height, width, channels = images.shape[1:]
        features = FeatureMap((height, width, channels))
    sums = class_sums.release(
        images,
        labels,
        num_classes,
        features,
        noise_multiplier,
        new_noise(secure_noise),
    )
    size = len(images) if dataset_size is None else dataset_size
    means = class_sums.class_means(sums, noise_multiplier, size, features.groups)
    target = Target(features, means)
    # A copy is fitted: somebody who interrupts the fit must not keep what this release has taught
    # the generator, since nobody would account for it.
    fitted = tf.keras.models.clone_model(generator)
    fitted.set_weights(generator.get_weights())
    average = fitting.fit(
        fitted,
        draw_inputs,
        [target],
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        progress=_bar if verbose else iter,
    )
    generator.set_weights(average)
    return WarmStart(
        dp_event=_event(noise_multiplier),
        draws=sums.size,
        sums=sums,
        class_counts=class_sums.class_counts(sums, noise_multiplier),
        target=target,
    )


def _bar(numbers: Iterable[int]) -> Iterable[int]:
    return progress.Bar(numbers, desc='warm start', unit='step', builds_graph=True)


def _event(noise_multiplier: float) -> dp_accounting.DpEvent:
    if not noise_multiplier:
        return dp_accounting.NonPrivateDpEvent()
    return dp_accounting.GaussianDpEvent(grid.effective_noise_multiplier(noise_multiplier, None))


def _check(images, labels, num_classes, noise_multiplier, steps) -> np.ndarray:
    """Raises ValueError if an argument is wrong; returns the labels as int32."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4:
        received = getattr(images, 'dtype', type(images).__name__)
        raise ValueError(
            'Images must be uint8 [N, H, W, C] in [0, 255]; for floats in [0, 1] use '
            f"(images * 255).round().astype('uint8'). Received: {received} of shape "
            f'{np.shape(images)}.'
        )
    labels = np.asarray(labels)
    if labels.shape != images.shape[:1] or labels.dtype.kind not in 'iu' or not len(labels):
        raise ValueError(
            f'labels must be one integer for each of the {len(images)} images, at least one. '
            f'Received: {labels.dtype} of shape {labels.shape}.'
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f'labels must be from 0 to num_classes - 1, which is {num_classes - 1}. Received: '
            'other labels.'
        )
    if noise_multiplier and not noise_multiplier >= _LEAST_NOISE:
        raise ValueError(
            f'noise_multiplier must be at least {_LEAST_NOISE}: less noise protects nothing. '
            f'Received: {noise_multiplier}.'
        )
    if steps < 1:
        raise ValueError(f'steps must be at least 1. Received: {steps}.')
    return labels.astype(np.int32)
