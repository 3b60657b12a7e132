"""The audit of the warm start: many releases of the class sums, with and without one record.

Each class of the release serves as a run, because its sums have their own records, one or two, and
their own noise. So one call of the product's `release`, with as many classes as runs, makes all
runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_efsgd.audit.findings import Finding, findings_of, runs_with_held_out
from tf_efsgd.audit.likelihood import Claim, Observations
from tf_efsgd.privacy import class_sums, grid, noise
from tf_efsgd.privacy.features import grouped
from tf_efsgd.privacy.mechanism import Mechanism

_SHAPE = (2, 2, 1)
_CANARY = np.array([[255, 0], [0, 255]], np.uint8)[..., np.newaxis]
_OTHER = np.array([[0, 255], [0, 255]], np.uint8)[..., np.newaxis]
_FREQUENCIES = ((1.3, -0.7, 0.4, 2.1), (-0.6, 1.9, 1.1, -0.2))


class _SmallFeatures(grouped.GroupedFeatures):
    """So few features that tens of thousands of releases fit into memory."""

    def __init__(self):
        super().__init__(name='small_features')
        self._measure(_SHAPE)

    def group(self, images: tf.Tensor, group: tf.Tensor | int) -> tf.Tensor:
        """Computes cosines and sines of two projections; together they have norm 1."""
        pixels = tf.reshape(images, [-1, int(np.prod(_SHAPE))])
        scale = 1.0 + tf.cast(group, tf.float32)
        angles = scale * pixels @ tf.transpose(tf.constant(_FREQUENCIES))
        return tf.concat([tf.cos(angles), tf.sin(angles)], axis=1) / len(_FREQUENCIES) ** 0.5


def audit(
    noise_multiplier: float,
    runs: int,
    *,
    deltas: Sequence[float],
    confidence: float,
    strategy: tf.distribute.Strategy | None = None,
    noise_key: noise.NoiseKey | None = None,
) -> list[Finding]:
    """Audits the release before the first step.

    Args:
      noise_multiplier: sigma_w > 0.
      runs: number of runs in each world that measure the bound; half as many more choose the
        attack.
      deltas: the deltas, each in (0, 1).
      confidence: confidence of each single bound.
      strategy: the replicas of this strategy look at a part of the records each; None: one device.
      noise_key: a fixed key, for tests; None draws a fresh one.

    Returns:
      A finding for each delta.
    """
    features, noise_key = _SmallFeatures(), noise_key or noise.NoiseKey()
    all_runs = runs_with_held_out(runs)
    # The documented mechanism: contributions of norm 1 at most, without sampling.
    claim = Claim(Mechanism(1.0, noise_multiplier, 'none'), 1.0, None)
    step = noise_multiplier / grid.STDDEV
    other, canary = features(_float([_OTHER, _CANARY])).numpy().astype(float)

    def observe(with_record):
        images = [_OTHER, _CANARY] if with_record else [_OTHER]
        released = class_sums.release(
            np.tile(np.array(images), (all_runs, 1, 1, 1)),
            np.repeat(np.arange(all_runs, dtype=np.int32), len(images)),
            all_runs,
            features,
            noise_multiplier,
            noise_key,
            strategy,
        )
        seen = (released * step - other) @ canary / np.linalg.norm(canary)
        shift = np.linalg.norm(canary)
        return Observations(
            seen[np.newaxis, :, np.newaxis].astype(np.float32), np.array([[[shift]]])
        )

    record_in, record_out = observe(True), observe(False)
    return findings_of(
        claim,
        record_in,
        record_out,
        deltas,
        confidence,
        audit='warm start',
        replicas=strategy.num_replicas_in_sync if strategy else 1,
    )


def _float(images) -> tf.Tensor:
    return tf.constant(np.array(images) / 127.5 - 1.0, tf.float32)
