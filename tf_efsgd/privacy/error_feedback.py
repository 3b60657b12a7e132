"""The error-feedback buffer: it gives back later what clipping cut. Pure functions.

Formal guarantees:
  - `feed_back` sees only the noisy residual mean and earlier outputs of itself, so whatever it
    returns is post-processing of the private releases.
  - Conservation: over any number of steps, sum(delivered) + buffer = sum(noisy_residual_mean),
    with or without `feedback_l2_norm_clip`.
  - `feed_back_hidden`, the published variant, guarantees neither: its buffer is PRIVATE state, and
    what it delivers depends on every record that was ever sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def feed_back(
    buffer: Sequence[tf.Tensor],
    noisy_residual_mean: Sequence[tf.Tensor],
    feedback_decay: float,
    feedback_l2_norm_clip: float | None = None,
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """One step of u = E + R/B;  d = clip((1 - beta) u, Ce);  E <- u - d.

    Delivering the fraction 1 - beta is a contractive compressor in the sense of Karimireddy et al.
    2019, Error Feedback Fixes SignSGD.

    Args:
      buffer: E, one float32 tensor per variable; zeros before the first step.
      noisy_residual_mean: R/B, same shapes.
      feedback_decay: beta in [0, 1): the part of the buffer that is kept back.
      feedback_l2_norm_clip: Ce > 0, the largest L2 norm of d over all variables; None: no limit.

    Returns:
      (delivered, new_buffer): d and E, lists of tensors in the order of `buffer`.
    """
    owed = [e + r for e, r in zip(buffer, noisy_residual_mean)]
    delivered = [(1.0 - feedback_decay) * u for u in owed]
    if feedback_l2_norm_clip is not None:
        delivered, _ = tf.clip_by_global_norm(delivered, feedback_l2_norm_clip)
    return list(delivered), [u - d for u, d in zip(owed, delivered)]


def feed_back_hidden(
    buffer: Sequence[tf.Tensor],
    residual_grad_sum: Sequence[tf.Tensor],
    residual_l2_norm_clip: float,
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """One step of the published error feedback: d = clip(e, C2);  e <- e + sum(g - c) - d.

    With v B = sum(c) + d + noise this is e <- e + sum(g) - (v B - noise): DiceSGD (Zhang et al.
    2024, arXiv 2311.14632), in units of the sum.

    Args:
      buffer: e, one float32 tensor per variable; zeros before the first step. PRIVATE.
      residual_grad_sum: sum of g - c over the sampled records, not clipped, not noised. PRIVATE.
      residual_l2_norm_clip: C2 > 0, the largest L2 norm of d over all variables.

    Returns:
      (delivered, new_buffer): d and e, lists of tensors in the order of `buffer`. PRIVATE.
    """
    # Scaled first: the square of a large buffer would overflow, and nothing would bound it.
    scale = tf.maximum(1.0, tf.reduce_max(tf.stack([tf.reduce_max(tf.abs(e)) for e in buffer])))
    scaled = [e / scale for e in buffer]
    length = tf.minimum(
        scale, tf.math.divide_no_nan(residual_l2_norm_clip, tf.linalg.global_norm(scaled))
    )
    delivered = [e * length for e in scaled]
    return delivered, [e + r - d for e, r, d in zip(buffer, residual_grad_sum, delivered)]
