"""One private step as tensors: clip, add up, release on the grid, feed back. Pure functions.

`mechanism` has its numbers. With A and R the two released sums and B the divisor:

    clipped_grad_sum = sum_i clip(g_i, C1)                   residual_grad_sum = sum_i r_i
    A = clipped_grad_sum + N(0, sigma^2 C1^2 / (1 - rho))    R = residual_grad_sum + N(0, ...)
    u = E + R / B;  d = clip((1 - beta) u, Ce);  E <- u - d;  v = A / B + d

Formal guarantees:
  - A and R are integers on the grids of `Mechanism.clipped_step` and `residual_step`: each sum is
    rounded once, over all replicas and parts, and gets integers of noise (`noise.integers`).
    Everything else is computed from these integers.
  - Nothing but the noisy integers leaves `release`, except with a hidden buffer.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_efsgd.privacy import clipping, noise
from tf_efsgd.privacy import error_feedback as feedback
from tf_efsgd.privacy.mechanism import Mechanism

# The noise of so many numbers is drawn at once, or of more if one variable alone has more.
_GROUP = 2**18


def batch_sums(
    mechanism: Mechanism, gradients: clipping.BatchGradients, part_size: int = 1
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Computes what `clipping.clip_and_sum` gives from one backward pass over a batch.

    Args:
      mechanism: of the step.
      gradients: of the records of the batch. PRIVATE.
      part_size: how many records are added up in float32, see `clipping.records_per_part`.

    Returns:
      (clipped_grad_sum, residual_grad_sum), float64, one tensor per variable. PRIVATE.
    """
    weights = _weights(mechanism, gradients.norms)
    if not mechanism.has_buffer:
        clipped = [s[0] for s in gradients.weighted_sums(weights[:1], part_size)]
        return clipped, [tf.zeros_like(s) for s in clipped]
    sums = gradients.weighted_sums(weights, part_size)
    return [s[0] for s in sums], [s[1] for s in sums]


def batch_delivered_sum(
    mechanism: Mechanism, gradients: clipping.BatchGradients
) -> list[tf.Tensor]:
    """Computes `delivered_sums` of `batch_sums`, faster, for images that need no privacy.

    Args:
      mechanism: of the step.
      gradients: of generated images.

    Returns:
      float32, one tensor per variable.
    """
    weights = _weights(mechanism, gradients.norms)
    if mechanism.hides_buffer:
        sums = gradients.public_sums(weights)
        return delivered_sums(mechanism, [s[0] for s in sums], [s[1] for s in sums])
    arrives = tf.reduce_sum(weights if mechanism.feeds_back else weights[:1], axis=0, keepdims=True)
    return [s[0] for s in gradients.public_sums(arrives)]


def _weights(mechanism, norms):
    """The factors that make c and r of the gradients, [2, batch]."""
    return tf.stack(clipping.clip_weights(norms, *mechanism.clips))


def _to_float32(sums):
    return [tf.cast(s, tf.float32) for s in sums]


def delivered_sums(
    mechanism: Mechanism,
    clipped_grad_sum: Sequence[tf.Tensor],
    residual_grad_sum: Sequence[tf.Tensor],
) -> list[tf.Tensor]:
    """What the steps deliver in the end of two clipped sums that need no privacy.

    Args:
      mechanism: of the step.
      clipped_grad_sum: of generated images, from `clipping.clip_and_sum`.
      residual_grad_sum: of generated images, from `clipping.clip_and_sum`.

    Returns:
      float32 sums: without the residual where nothing feeds it back; with a hidden buffer the
      residual is clipped to C2.
    """
    clipped, residual = _to_float32(clipped_grad_sum), _to_float32(residual_grad_sum)
    if not mechanism.has_buffer:
        return clipped
    if mechanism.hides_buffer:
        residual, _ = tf.clip_by_global_norm(residual, mechanism.residual_l2_norm_clip)
    return [c + r for c, r in zip(clipped, residual)]


def release(
    mechanism: Mechanism,
    clipped_grad_sum: Sequence[tf.Tensor],
    residual_grad_sum: Sequence[tf.Tensor] | None,
    buffer: Sequence[tf.Tensor] | None,
    divisor: tf.Tensor | float,
    step_noise: noise.StepNoise,
) -> tuple[list[tf.Tensor], Sequence[tf.Tensor] | None]:
    """Adds the noise of one step to the sums over ALL replicas and parts, and feeds back.

    Args:
      mechanism: of the step.
      clipped_grad_sum: float64, one per variable. PRIVATE.
      residual_grad_sum: float64, one per variable; None where nothing is fed back. PRIVATE.
      buffer: E, float32; None if there is none (`Mechanism.has_buffer`).
      divisor: B.
      step_noise: of this step, see `noise.integers`.

    Returns:
      (v = A/B + d, the new buffer or None), float32. Public, but for the hidden buffer.
    """
    if mechanism.hides_buffer:
        residual = _to_float32(residual_grad_sum)
        delivered, buffer = feedback.feed_back_hidden(
            buffer, residual, mechanism.residual_l2_norm_clip
        )
        clipped_grad_sum = [s + tf.cast(d, tf.float64) for s, d in zip(clipped_grad_sum, delivered)]
    step = mechanism.clipped_step
    noisy = noisy_integers(
        clipped_grad_sum, step, mechanism.noise_multiplier, step_noise, noise.CLIPPED_GRAD_SUM
    )
    gradient = [noise.from_grid(a, step) / divisor for a in noisy]
    if not mechanism.feeds_back:
        return gradient, buffer if mechanism.hides_buffer else None
    step = mechanism.residual_step
    noisy = noisy_integers(
        residual_grad_sum, step, mechanism.noise_multiplier, step_noise, noise.RESIDUAL_GRAD_SUM
    )
    delivered, buffer = feedback.feed_back(
        buffer,
        [noise.from_grid(r, step) / divisor for r in noisy],
        mechanism.feedback_decay,
        mechanism.feedback_l2_norm_clip,
    )
    return [g + d for g, d in zip(gradient, delivered)], buffer


def noisy_integers(
    sums: Sequence[tf.Tensor],
    step: float,
    noise_multiplier: float,
    step_noise: noise.StepNoise,
    purpose: int,
) -> list[tf.Tensor]:
    """What a step releases of a sum: the sum on the grid with its noise added.

    Args:
      sums: float64, one per variable. PRIVATE.
      step: size of a step of the grid.
      noise_multiplier: 0 adds no noise.
      step_noise: of this step.
      purpose: `noise.CLIPPED_GRAD_SUM` or `noise.RESIDUAL_GRAD_SUM`.

    Returns:
      int64, one per variable. Public where there is noise.
    """
    noisy: list[tf.Tensor] = []
    sums = [tf.convert_to_tensor(s) for s in sums]
    for group in _groups(sums, step_noise):
        first, shapes = len(noisy), [s.shape for s in group]
        total = tf.concat([tf.reshape(s, [-1]) for s in group], axis=0)
        total = noise.to_grid(total, step)
        if noise_multiplier:
            total += tf.reshape(
                noise.integers(
                    total.shape if len(group) > 1 else shapes[0],
                    step_noise=step_noise,
                    purpose=purpose,
                    variable=first,
                ),
                [-1],
            )
        parts = tf.split(total, [shape.num_elements() for shape in shapes])
        noisy += [tf.reshape(part, shape) for part, shape in zip(parts, shapes)]
    return noisy


def _groups(sums, step_noise):
    """Groups small variables, because thirty operations on each took longer than the arithmetic.

    The operating system's noise is drawn outside, per variable, so there each is a group.
    """
    groups: list[list[tf.Tensor]] = []
    for s in sums:
        fits = groups and sum(x.shape.num_elements() for x in [*groups[-1], s]) <= _GROUP
        if fits and 'draws' not in step_noise:
            groups[-1].append(s)
        else:
            groups.append([s])
    return groups
