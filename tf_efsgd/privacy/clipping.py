"""Per-example gradients and their clipped sums: the private half of a step.

Two ways to the same sums: `per_example_gradients`, for any loss of one record, and
`BatchGradients`, from one backward pass over the batch, for layers with a rule in `layer_norms`.

Formal guarantees, for every record, whatever its gradient:
  - it adds a vector of L2 norm at most `l2_norm_clip` to `clipped_grad_sum` and one of at most
    `residual_l2_norm_clip` to `residual_grad_sum`, norms taken over ALL variables together;
  - both point along its gradient;
  - a gradient with a non-finite entry adds exactly zero, by selection: nothing raises, stops or
    skips because of it, and no other record's part changes.

Norms, clipping and the sums over at most `PART` records are float32, the sums of these parts
float64; norms are computed after scaling by the largest entry, so they neither overflow nor
underflow. What float32 rounds is not proven but tested: `grid.SLACK` is an allowance for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf
from tensorflow_privacy.privacy.optimizers import dp_optimizer_keras_vectorized

# Records that are added up in float32.
PART = 256
# Below this, gradients are treated as if their largest entry were this: 1 / it is still finite.
_TINY = 1e-30
# Between these a sum of squares has lost nothing to underflow or overflow that matters.
_SMALLEST_SQUARE, _LARGEST_SQUARE = 1e-20, 1e34


def per_example_gradients(
    loss_of_record: Callable[[tf.Tensor], tf.Tensor],
    records: tf.Tensor | tuple[tf.Tensor, ...],
    variables: Sequence[tf.Variable],
) -> list[tf.Tensor | None]:
    """Gradients of the loss of one record, for every record.

    `tf.vectorized_map` over a one-example tape: on convolutions about 40 times faster than the
    jacobian of a loss vector.

    Args:
      loss_of_record: maps one record (no batch axis) to its loss, float32 [].
      records: tensor or structure of tensors [batch, ...]; batch may be 0.
      variables: what the step updates, float32.

    Returns:
      One float32 [batch, *variable.shape] per variable; None where the loss does not use it.

    Raises:
      ValueError: if the loss of one record is not one number, or uses none of the variables.
    """
    used = [True] * len(variables)

    def gradients_of_record(record):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss = loss_of_record(record)
        if loss.shape.rank != 0:
            raise ValueError(
                'The loss of one record must be one number, shape []; sum or average it over '
                f'everything but the batch. Received: shape {loss.shape}.'
            )
        gradients = tape.gradient(loss, variables)
        if all(gradient is None for gradient in gradients):
            raise ValueError('The loss of one record uses none of the variables to update.')
        used[:] = [gradient is not None for gradient in gradients]
        return [tf.convert_to_tensor(g) for g in gradients if g is not None]

    # Over no records at all, the gradients of some convolutions fail.
    stacked = tf.cond(
        tf.shape(tf.nest.flatten(records)[0])[0] > 0,
        lambda: tf.vectorized_map(gradients_of_record, records),
        lambda: [tf.zeros([0, *v.shape]) for v, is_used in zip(variables, used) if is_used],
    )
    stacked = iter(stacked)
    return [next(stacked) if is_used else None for is_used in used]


def gradient_norms(gradients: Sequence[tf.Tensor | None]) -> tuple[tf.Tensor, tf.Tensor]:
    """L2 norms over all variables, for diagnostics: PRIVATE.

    Args:
      gradients: as in `clipped_sums`.

    Returns:
      (float32 [batch], 0 where a gradient is not finite; bool [batch], whether it is finite).
    """
    _, scale, scaled_norm = _scale([_flat(g) for g in gradients if g is not None])
    return scale * scaled_norm, scale > 0


class BatchGradients:
    """Per-example gradients of a batch by layer, their norms and weighted sums.

    Args:
      parts: of `layer_norms.gradients_by_layer`: each has `variables`, `squared_norms`,
        `is_exact`, `exact` and `weighted_sums`.
      variables: in the order that sums are given in.
    """

    def __init__(self, parts: Sequence, variables: Sequence[tf.Variable]):
        self._parts = list(parts)
        self._variables = list(variables)
        squared = []
        for part in self._parts:
            # One after the other: what they need for it is there once, not for all at a time.
            with tf.control_dependencies(squared[-1:]):
                squared.append(part.squared_norms())
        squared = tf.add_n(squared)
        in_range = (squared == 0.0) | ((squared > _SMALLEST_SQUARE) & (squared < _LARGEST_SQUARE))
        exact = tf.reduce_all(tf.stack([part.is_exact() for part in self._parts]), axis=0)
        # Not so for nearly every batch; then a second way takes the time it needs.
        self._is_plain = tf.reduce_all(in_range & exact)
        self.norms = tf.cond(
            self._is_plain, lambda: tf.sqrt(squared), lambda: self._by_the_second_way()[1]
        )

    def _by_the_second_way(self):
        """(gradients by variable, flat, with zeros for examples that are not finite; norms).

        From the gradients themselves, as in `clipped_sums`. What they are products of may be so far
        above them that to scale by it would lose them.
        """
        gradients = {}
        for part in self._parts:
            exact = part.exact()
            gradients.update((v.ref(), _flat(g)) for v, g in zip(exact.variables, exact.gradients))
        _, scale, scaled_norm = _scale(list(gradients.values()))
        norms = scale * scaled_norm
        finite = (scale > 0) & tf.math.is_finite(norms)
        kept = {v: tf.where(finite[:, tf.newaxis], g, 0.0) for v, g in gradients.items()}
        return kept, tf.where(finite, norms, 0.0)

    def weighted_sums(self, weights: tf.Tensor) -> list[tf.Tensor]:
        """Sums over the batch, see `_sum_of_parts`.

        Args:
          weights: float32 [K, batch], K known.

        Returns:
          Per variable float64 [K, *variable.shape].
        """
        shapes = [[weights.shape[0], *v.shape] for v in self._variables]

        def in_order(sums):
            return [
                tf.reshape(sums[v.ref()], shape) if v.ref() in sums else tf.zeros(shape)
                for v, shape in zip(self._variables, shapes)
            ]

        def plain(records):
            return in_order(
                {
                    variable.ref(): total
                    for part in self._parts
                    for variable, total in zip(
                        part.variables, part.weighted_sums(weights[:, records], records)
                    )
                }
            )

        def exact():
            gradients, _ = self._by_the_second_way()
            return _sum_of_parts(
                batch,
                lambda records: in_order(
                    {
                        v: _weighted_sums(weights[:, records], g[records])
                        for v, g in gradients.items()
                    }
                ),
                shapes,
            )

        batch = _batch_size(weights, axis=1)
        return tf.cond(self._is_plain, lambda: _sum_of_parts(batch, plain, shapes), exact)


def clip_weights(
    norms: tf.Tensor, l2_norm_clip: float, residual_l2_norm_clip: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """What to multiply gradients with for c and for r, see `clipped_sums`.

    Args:
      norms: float32 [batch], finite.
      l2_norm_clip: C1.
      residual_l2_norm_clip: C2.

    Returns:
      (min(1, C1/|g|), its complement times min(1, C2/|g - c|)), float32 [batch]; 0 for |g| = 0.
    """
    clipped, residual = _clip_lengths(norms, l2_norm_clip, residual_l2_norm_clip)
    return tf.math.divide_no_nan(clipped, norms), tf.math.divide_no_nan(residual, norms)


def _clip_lengths(length, l2_norm_clip, residual_l2_norm_clip):
    # Beyond C1 + C2 a longer gradient acts the same, and its length may overflow.
    length = tf.minimum(length, l2_norm_clip + residual_l2_norm_clip)
    clipped_length = _clip_length(length, l2_norm_clip)
    return clipped_length, _clip_length(length - clipped_length, residual_l2_norm_clip)


def clipped_sums(
    gradients: Sequence[tf.Tensor | None],
    l2_norm_clip: float,
    residual_l2_norm_clip: float,
) -> tuple[list[tf.Tensor | None], list[tf.Tensor | None]]:
    """Sums of c = g min(1, C1/|g|) and of r = (g - c) min(1, C2/|g - c|) over a batch.

    Both c and r point along g, so clipping a gradient is clipping its length. TF Privacy's
    `clip_gradients_vmap` does that to one number per record, which saves two passes over all
    per-example gradients; the result is the one it gives on the gradients themselves.

    Args:
      gradients: per variable float32 [batch, *shape], or None for an all-zero gradient.
      l2_norm_clip: C1, in [1e-9, 1e9]: `Mechanism` refuses others.
      residual_l2_norm_clip: C2, likewise (up to 1e12).

    Returns:
      (clipped_grad_sum, residual_grad_sum): per variable float64 [*shape] or None. Private.
    """
    present = [g for g in gradients if g is not None]
    scaled, scale, scaled_norm = _scale([_flat(g) for g in present])

    lengths = _clip_lengths(scale * scaled_norm, l2_norm_clip, residual_l2_norm_clip)
    weights = tf.math.divide_no_nan(tf.stack(lengths), scaled_norm)

    sums = _sum_of_parts(
        _batch_size(scaled[0]),
        lambda records: [_weighted_sums(weights[:, records], g[records]) for g in scaled],
        [[2, g.shape[1]] for g in scaled],
    )
    shapes = [g.shape[1:] for g in present]
    clipped = iter([tf.reshape(s[0], shape) for s, shape in zip(sums, shapes)])
    residual = iter([tf.reshape(s[1], shape) for s, shape in zip(sums, shapes)])
    return (
        [None if g is None else next(clipped) for g in gradients],
        [None if g is None else next(residual) for g in gradients],
    )


def _sum_of_parts(
    batch: int | tf.Tensor,
    sums_of: Callable[[slice], list[tf.Tensor]],
    shapes: Sequence[Sequence[int]],
) -> list[tf.Tensor]:
    """Adds up float32 sums over parts of at most `PART` records in float64.

    Args:
      batch: number of records; a tensor where it is not known.
      sums_of: the float32 sums over the records of one part.
      shapes: of these sums.

    Returns:
      float64 tensors.
    """

    def add_part(start, totals):
        sums = sums_of(slice(start, start + PART))
        return start + PART, [total + tf.cast(s, tf.float64) for total, s in zip(totals, sums)]

    if isinstance(batch, int) and batch <= PART:
        return [tf.cast(s, tf.float64) for s in sums_of(slice(None))]
    start, totals = 0, [tf.zeros(shape, tf.float64) for shape in shapes]
    if isinstance(batch, int):  # XLA wants slices whose size is known.
        while start < batch:
            start, totals = add_part(start, totals)
        return totals
    _, totals = tf.while_loop(
        lambda start, _: start < batch,
        add_part,
        (tf.constant(start), totals),
        parallel_iterations=1,
    )
    return totals


def _batch_size(x: tf.Tensor, axis: int = 0) -> int | tf.Tensor:
    size = x.shape[axis]
    return tf.shape(x)[axis] if size is None else size


def _flat(gradients: tf.Tensor) -> tf.Tensor:
    """[batch, *shape] as [batch, size]."""
    return tf.reshape(gradients, [tf.shape(gradients)[0], gradients.shape[1:].num_elements()])


def _scale(flat: list[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
    """Splits gradients [batch, size] into (scaled, scale, norm of scaled): g = scale * scaled.

    Rows with a non-finite entry come back as zeros.
    """
    # max |g| as max(max g, -min g): two reads instead of a copy of all gradients.
    extremes = [e for g in flat for e in (tf.reduce_max(g, axis=1), -tf.reduce_min(g, axis=1))]
    scale = tf.maximum(tf.reduce_max(tf.stack(extremes), axis=0), _TINY)
    scaled = [g / scale[:, tf.newaxis] for g in flat]
    # Any NaN or infinity in g makes this sum NaN: inf / inf is NaN.
    norm = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(g), axis=1) for g in scaled]))
    finite = tf.math.is_finite(norm)
    scaled = tf.cond(
        tf.reduce_all(finite),
        lambda: scaled,
        lambda: [tf.where(finite[:, tf.newaxis], g, 0.0) for g in scaled],
    )
    return scaled, tf.where(finite, scale, 0.0), tf.where(finite, norm, 0.0)


def _weighted_sums(weights: tf.Tensor, gradients: tf.Tensor) -> tf.Tensor:
    """The product of [2, batch] and [batch, size], in full float32."""
    if (
        tf.config.list_physical_devices('GPU')
        and tf.config.experimental.tensor_float_32_execution_enabled()
    ):
        # There a matrix product rounds its inputs to 10 bits: the sums could pass their bounds.
        return tf.reduce_sum(weights[:, :, tf.newaxis] * gradients, axis=1)
    return tf.matmul(weights, gradients)


def _clip_length(length: tf.Tensor, l2_norm_clip: float) -> tf.Tensor:
    """min(length, l2_norm_clip), per record: lengths float32 [batch], >= 0."""
    return tf.vectorized_map(
        lambda one: dp_optimizer_keras_vectorized.clip_gradients_vmap([one], l2_norm_clip)[0],
        length,
    )
