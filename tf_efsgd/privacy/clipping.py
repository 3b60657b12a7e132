"""Per-example gradients and their clipped sums: the private half of a step.

There are two ways to the same sums: `per_example_gradients` works for any loss of one record;
`BatchGradients` needs one backward pass over the batch and layers with a rule in `layer_norms`.

Formal guarantees, for every record, whatever its gradient:
  - it adds a vector of L2 norm at most `l2_norm_clip` to `clipped_grad_sum` and one of at most
    `residual_l2_norm_clip` to `residual_grad_sum`, norms taken over ALL variables together;
  - both point along its gradient;
  - a gradient with a non-finite entry adds exactly zero, by selection: nothing raises, stops or
    skips because of it, and no other record's part changes.

Gradients, norms and clipping are float32; norms are computed after scaling by the largest entry, so
they neither overflow nor underflow. Sums are float32 over a few records (`records_per_part`) and
float64 over these parts. The rounding of float32 is accounted for: `grid.SLACK` is the allowance.
One half of it covers adding up any records, which is proven. The other half covers the error of a
record's norm, which is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow_privacy.privacy.optimizers import dp_optimizer_keras_vectorized

# The most records that are added up in float32, and the largest product of that number and the
# batch size. With n records in a batch and m in a part, adding up in float32 is off by at most
# n m 2^-24 clipping norms, for either of two neighbours. At 2^14 that is half of the allowance for
# a batch of twice the expected size.
_LARGEST_PART, _LARGEST_PRODUCT = 32, 2**14
# A gradient whose largest entry is smaller is treated as if it were this; the inverse is finite.
_TINY = 1e-30
# A sum of squares between these has lost nothing that matters to underflow or overflow.
_SMALLEST_SQUARE, _LARGEST_SQUARE = 1e-20, 1e34


def records_per_part(expected_batch_size: int | None) -> int:
    """How many records are added up in float32.

    Args:
      expected_batch_size: B; None where nothing is claimed.

    Returns:
      An integer from 1 to 32.
    """
    return min(_LARGEST_PART, max(1, _LARGEST_PRODUCT // (expected_batch_size or 1)))


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

    first = tf.convert_to_tensor(tf.nest.flatten(records)[0])
    if first.shape[0]:  # XLA wants one shape, not one for either branch.
        stacked = tf.vectorized_map(gradients_of_record, records)
    else:
        # Over no records at all, the gradients of some convolutions fail.
        stacked = tf.cond(
            tf.shape(first)[0] > 0,
            lambda: tf.vectorized_map(gradients_of_record, records),
            lambda: [tf.zeros([0, *v.shape]) for v, is_used in zip(variables, used) if is_used],
        )
    stacked = iter(stacked)
    return [next(stacked) if is_used else None for is_used in used]


def gradient_norms(gradients: Sequence[tf.Tensor | None]) -> tuple[tf.Tensor, tf.Tensor]:
    """L2 norms over all variables, for diagnostics: PRIVATE.

    Args:
      gradients: as in `clip_and_sum`.

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
        squared_norms: list[tf.Tensor] = []
        for part in self._parts:
            # One after the other, so that the memory they need is needed once, not for all parts.
            with tf.control_dependencies(squared_norms[-1:]):
                squared_norms.append(part.squared_norms())
        squared = tf.add_n(squared_norms)
        in_range = (squared == 0.0) | ((squared > _SMALLEST_SQUARE) & (squared < _LARGEST_SQUARE))
        exact = tf.reduce_all(tf.stack([part.is_exact() for part in self._parts]), axis=0)
        # Each example takes the way that it needs itself. If one of them sent all others the second
        # way, it would move each of these by the error of its norm. An example whose square
        # vanishes counts as zero.
        self._plain = in_range & exact
        # True for almost every batch; the rare exception takes the slower exact path as well.
        self._all_plain = tf.reduce_all(self._plain)
        self.norms = tf.cond(
            self._all_plain,
            lambda: tf.sqrt(squared),
            lambda: tf.where(self._plain, tf.sqrt(squared), self._by_the_second_way()[1]),
        )

    def _by_the_second_way(self):
        """Computes norms from the gradients themselves, as in `clip_and_sum`.

        The factors whose products the gradients are may be so much larger than the gradients that
        scaling by the factors would lose them.

        Returns:
          (flat gradients by variable, zeros for examples that are not finite; norms).
        """
        gradients: dict[Any, tf.Tensor] = {}
        for part in self._parts:
            exact = part.exact()
            gradients.update((v.ref(), _flat(g)) for v, g in zip(exact.variables, exact.gradients))
        _, scale, scaled_norm = _scale(list(gradients.values()))
        norms = scale * scaled_norm
        finite = (scale > 0) & tf.math.is_finite(norms)
        kept = {v: tf.where(finite[:, tf.newaxis], g, 0.0) for v, g in gradients.items()}
        return kept, tf.where(finite, norms, 0.0)

    def weighted_sums(self, weights: tf.Tensor, part_size: int = 1) -> list[tf.Tensor]:
        """Sums over the batch, see `_sum_of_parts`.

        Args:
          weights: float32 [K, batch], K known.
          part_size: how many records are added up in float32, see `records_per_part`.

        Returns:
          Per variable float64 [K, *variable.shape].
        """
        shapes = [[weights.shape[0], *v.shape] for v in self._variables]

        def plain(of_part, take):
            return self._in_order(
                self._by_variable(lambda p: p.weighted_sums(of_part, take)), shapes
            )

        def plain_of_some(of_part, take):
            kept = take(self._plain)

            def take_plain(x):
                # Others may hold numbers that are not finite: no weight would keep these out.
                taken = take(x)
                mask = tf.reshape(kept, [-1, *[1] * (taken.shape.rank - 1)])
                return tf.where(mask, taken, tf.zeros_like(taken))

            return plain(tf.where(kept, of_part, 0.0), take_plain)

        def each_in_its_way():
            gradients, _ = self._by_the_second_way()

            def exact(of_part, take):
                sums = {v: _weighted_sums(of_part, take(g)) for v, g in gradients.items()}
                return self._in_order(sums, shapes)

            others = tf.where(self._plain, 0.0, weights)
            return [
                one + other
                for one, other in zip(
                    _sum_of_parts(weights, plain_of_some, shapes, part_size),
                    _sum_of_parts(others, exact, shapes, part_size),
                )
            ]

        return tf.cond(
            self._all_plain,
            lambda: _sum_of_parts(weights, plain, shapes, part_size),
            each_in_its_way,
        )

    def public_sums(self, weights: tf.Tensor) -> list[tf.Tensor]:
        """`weighted_sums` of images that need no privacy, as fast as TensorFlow adds them up.

        Args:
          weights: float32 [K, batch], K known.

        Returns:
          Per variable float32 [K, *variable.shape].
        """
        shapes = [[weights.shape[0], *v.shape] for v in self._variables]

        def plain():
            return self._in_order(self._by_variable(lambda p: p.public_sums(weights)), shapes)

        def exact():
            gradients, _ = self._by_the_second_way()
            sums = {v: _weighted_sums(weights, g) for v, g in gradients.items()}
            return self._in_order(sums, shapes)

        return tf.cond(self._all_plain, plain, exact)

    def _by_variable(self, sums_of):
        return {
            variable.ref(): total
            for part in self._parts
            for variable, total in zip(part.variables, sums_of(part))
        }

    def _in_order(self, sums, shapes):
        """The sums in the order of the variables; zeros for those that the loss does not use."""
        return [
            tf.reshape(sums[v.ref()], shape) if v.ref() in sums else tf.zeros(shape)
            for v, shape in zip(self._variables, shapes)
        ]


def clip_weights(
    norms: tf.Tensor, l2_norm_clip: float, residual_l2_norm_clip: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """The factors that make c and r of a gradient, see `clip_and_sum`.

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


def clip_and_sum(
    gradients: Sequence[tf.Tensor | None],
    l2_norm_clip: float,
    residual_l2_norm_clip: float,
    part_size: int = 1,
) -> tuple[list[tf.Tensor | None], list[tf.Tensor | None]]:
    """Sums of c = g min(1, C1/|g|) and of r = (g - c) min(1, C2/|g - c|) over a batch.

    Both c and r point along g, so clipping a gradient is clipping its length. TF Privacy's
    `clip_gradients_vmap` does that to one number per record, which saves two passes over all
    per-example gradients; the result is the one it gives on the gradients themselves.

    Args:
      gradients: per variable float32 [batch, *shape], or None for an all-zero gradient.
      l2_norm_clip: C1, in [1e-9, 1e9]: `Mechanism` refuses others.
      residual_l2_norm_clip: C2, in [1e-9, 1e12].
      part_size: how many records are added up in float32, see `records_per_part`.

    Returns:
      (clipped_grad_sum, residual_grad_sum): per variable float64 [*shape] or None. Private.
    """
    present = [g for g in gradients if g is not None]
    scaled, scale, scaled_norm = _scale([_flat(g) for g in present])

    lengths = _clip_lengths(scale * scaled_norm, l2_norm_clip, residual_l2_norm_clip)
    weights = tf.math.divide_no_nan(tf.stack(lengths), scaled_norm)

    sums = _sum_of_parts(
        weights,
        lambda of_part, take: [_weighted_sums(of_part, take(g)) for g in scaled],
        [[2, g.shape[1]] for g in scaled],
        part_size,
    )
    shapes = [g.shape[1:] for g in present]
    clipped = iter([tf.reshape(s[0], shape) for s, shape in zip(sums, shapes)])
    residual = iter([tf.reshape(s[1], shape) for s, shape in zip(sums, shapes)])
    return (
        [None if g is None else next(clipped) for g in gradients],
        [None if g is None else next(residual) for g in gradients],
    )


# Takes the records of a part out of [batch, ...].
Take = Callable[[tf.Tensor], tf.Tensor]


def _sum_of_parts(
    weights: tf.Tensor,
    sums_of: Callable[[tf.Tensor, Take], list[tf.Tensor]],
    shapes: Sequence[Sequence[int]],
    part_size: int,
) -> list[tf.Tensor]:
    """Adds up weighted sums over a few records, float32, in float64.

    Args:
      weights: float32 [K, batch].
      sums_of: maps a part's weights [K, n] and a function that takes its records out of [batch,
        ...] to the float32 sums over that part.
      shapes: of these sums.
      part_size: n, at most.

    Returns:
      float64 tensors.
    """
    batch = weights.shape[1]
    zeros = [tf.zeros(shape, tf.float64) for shape in shapes]
    if batch == 0:  # TensorFlow's convolutions over no images can have another shape.
        return zeros
    if batch is not None and batch <= part_size:
        return [tf.cast(s, tf.float64) for s in sums_of(weights, lambda x: x)]
    batch = tf.shape(weights)[1] if batch is None else batch
    # XLA wants parts of one size: the last one begins earlier, and the records that it takes a
    # second time have weight 0.
    size = tf.minimum(part_size, batch)

    def add_part(number, totals):
        start = tf.minimum(number * part_size, batch - size)

        def take(x):
            rest = [-1 if length is None else length for length in x.shape[1:]]
            return tf.slice(x, [start, *[0] * len(rest)], [size, *rest])

        of_part = tf.transpose(take(tf.transpose(weights)))
        of_part = tf.where(start + tf.range(size) >= number * part_size, of_part, 0.0)
        sums = sums_of(of_part, take)
        return number + 1, [total + tf.cast(s, tf.float64) for total, s in zip(totals, sums)]

    count = -(-batch // part_size)
    _, totals = tf.while_loop(
        lambda number, _: number < count,
        add_part,
        (tf.constant(0), zeros),
        parallel_iterations=1,
    )
    return totals


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
        # TensorFloat-32 rounds the inputs of a matrix product to 10 bits: sums could pass a bound.
        return tf.reduce_sum(weights[:, :, tf.newaxis] * gradients, axis=1)
    return tf.matmul(weights, gradients)


def _clip_length(length: tf.Tensor, l2_norm_clip: float) -> tf.Tensor:
    """min(length, l2_norm_clip), per record: lengths float32 [batch], >= 0."""
    return tf.vectorized_map(
        lambda one: dp_optimizer_keras_vectorized.clip_gradients_vmap([one], l2_norm_clip)[0],
        length,
    )
