"""The form of a rule, and the forms in which a rule gives the per-example gradients of a layer.

Rules are functions of the form that TF Privacy's `LayerRegistry` takes: (layer, args, kwargs, tape,
num_microbatches) -> (base_vars, outputs, squared norm function). The squared norm functions here,
`SquaredNorms`, also know the weighted sums: their `bind` turns the gradient with respect to
base_vars into parts. A part is a `PerExample`, `Products` or `patches.Patches`; it has `variables`,
`squared_norms`, `is_exact`, `exact`, `weighted_sums`, `public_sums`, `by_microbatch` and `join`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

# The Gram form is chosen when it needs fewer products than this times those of the direct form: its
# matrices [T, T] are small, which costs more per product. Measured, see tests/tools.
_GRAM_ADVANTAGE = 1.0
# The Gram form is checked before it is trusted: in float32 it is off by at most (m + p + T + 4)
# 2^-24 (sum_t |a_t| |g_t|)^2. Where the squared norm is at least this times (m + p + T + 4) times
# that square, it is right to 2^-9. Where it is smaller, because positions cancel, norm and sum are
# both computed from the gradient itself.
_LEAST_SHARE = 2.0**-16
# For unrelated positions the squared norm is about 1 / T of that square. Where the share above
# comes near 1 / T, the Gram form is computed in float64.
_FLOAT32_SHARE = 0.25
# The direct form adds before it squares, as the sums do, and tolerates more: the squared norm may
# be as small as this share of |A|^2 |G|^2 T.
_CANCELLED_SUMS = 2.0**-28
# Where |A|^2 or |G|^2 is above this, the other may have lost squares that matter.
_LARGEST_FACTOR = 1e8
# Takes some examples out of [batch, ...].
Take = Callable[[tf.Tensor], tf.Tensor]
RegistryOutput = tuple[Any, tf.Tensor, Callable[[Any], tf.Tensor]]


class UnsupportedLayerError(ValueError):
    """There is no rule for a layer, or for the way it is used."""


class PerExample:
    """Per-example gradients of some variables, given as they are.

    Args:
      variables: the variables.
      gradients: per variable float32 [batch, *variable.shape].
    """

    def __init__(self, variables: Sequence[tf.Variable], gradients: Sequence[tf.Tensor]):
        self.variables = list(variables)
        self.gradients = list(gradients)

    def squared_norms(self) -> tf.Tensor:
        """The squared norms over all variables together, float32 [batch]."""
        return tf.add_n([tf.reduce_sum(tf.square(_flat(g)), axis=1) for g in self.gradients])

    def is_exact(self) -> tf.Tensor:
        """Whether each squared norm is right up to a small relative error, bool [batch]."""
        return tf.ones([tf.shape(self.gradients[0])[0]], tf.bool)

    def exact(self) -> PerExample:
        """The gradients themselves."""
        return self

    def weighted_sums(self, weights: tf.Tensor, take: Take = lambda x: x) -> list[tf.Tensor]:
        """Sums over some records.

        Args:
          weights: float32 [K, n], of these records.
          take: takes them out of [batch, ...].

        Returns:
          Per variable float32 [K, *shape]. Every record's gradient is computed by itself, and only
          then are they added up.
        """
        sums = [tf.matmul(weights, take(_flat(g))) for g in self.gradients]
        return [tf.reshape(s, [-1, *v.shape]) for s, v in zip(sums, self.variables)]

    def public_sums(self, weights: tf.Tensor) -> list[tf.Tensor]:
        """`weighted_sums` of all examples, in any order: for images that need no privacy."""
        return self.weighted_sums(weights)

    def by_microbatch(self, count: tf.Tensor) -> PerExample:
        """The part of `count` microbatches of equal size, each in the place of an example."""
        summed = [
            tf.reduce_sum(tf.reshape(g, tf.concat([[count, -1], tf.shape(g)[1:]], 0)), axis=1)
            for g in self.gradients
        ]
        return PerExample(self.variables, summed)

    @classmethod
    def join(cls, calls: Sequence[PerExample]) -> PerExample:
        """Joins the parts of several calls of one layer: their gradients add."""
        gradients = [tf.add_n(of_variable) for of_variable in zip(*(c.gradients for c in calls))]
        return cls(calls[0].variables, gradients)


class Products:
    """Per-example gradients of one kernel as products A_i^T G_i, and their norms.

    Args:
      variable: the kernel.
      inputs: A, float32 [batch, n, T, m]: n separate groups of channels, T positions.
      gradients: G, float32 [batch, n, T, p].
      to_variable: maps float32 [K, n, m, p] to [K, *variable.shape].
      direct: whether to use the direct form, whatever it costs.
    """

    def __init__(
        self,
        variable: tf.Variable,
        inputs: tf.Tensor,
        gradients: tf.Tensor,
        to_variable: Callable[[tf.Tensor], tf.Tensor],
        direct: bool = False,
    ):
        self.variables = [variable]
        self._inputs = inputs
        self._gradients = gradients
        self._to_variable = to_variable
        self._squared_norms = None
        self._products = None
        if direct or not self._prefers_gram():
            self._products = tf.matmul(inputs, gradients, transpose_a=True)

    def _prefers_gram(self) -> bool:
        positions, fan_in = self._inputs.shape[-2:]
        fan_out = self._gradients.shape[-1]
        if positions is None:
            return False
        gram = positions * positions * (fan_in + fan_out)
        return gram < _GRAM_ADVANTAGE * positions * fan_in * fan_out

    def squared_norms(self) -> tf.Tensor:
        """As in `PerExample`."""
        if self._squared_norms is None:
            self._squared_norms = self._compute_squared_norms()
        return self._squared_norms

    def _compute_squared_norms(self):
        if self._products is not None:
            return tf.reduce_sum(tf.square(self._products), axis=[1, 2, 3])
        if self._positions == 1:  # |a|^2 |g|^2
            return tf.reduce_sum(self._sizes(self._inputs) * self._sizes(self._gradients), axis=1)
        factors = [tf.cast(part, self._gram_dtype()) for part in (self._inputs, self._gradients)]
        self._gram = [tf.matmul(part, part, transpose_b=True) for part in factors]
        of_positions = tf.reduce_sum(self._gram[0] * self._gram[1], axis=3)
        return tf.cast(tf.reduce_sum(tf.cast(of_positions, tf.float64), axis=[1, 2]), tf.float32)

    def _least_share(self) -> float:
        return _LEAST_SHARE * (
            self._inputs.shape[-1] + self._gradients.shape[-1] + self._positions + 4
        )

    def _gram_dtype(self):
        rare = self._least_share() * self._positions <= _FLOAT32_SHARE
        return tf.float32 if rare else tf.float64

    @property
    def _positions(self) -> int | None:
        return self._inputs.shape[-2]

    @staticmethod
    def _sizes(part):
        """Sums of squares over positions and channels, [batch, n]."""
        return tf.reduce_sum(tf.square(part), axis=[2, 3])

    def is_exact(self) -> tf.Tensor:
        """As in `PerExample`."""
        found = self.squared_norms()
        gram = None
        if self._positions == 1 or self._products is not None:
            sizes = [self._sizes(self._inputs), self._sizes(self._gradients)]
        else:
            gram = [tf.cast(tf.linalg.diag_part(of_part), tf.float32) for of_part in self._gram]
            sizes = [tf.reduce_sum(of_positions, axis=2) for of_positions in gram]
        in_range = tf.reduce_all(tf.maximum(*sizes) <= _LARGEST_FACTOR, axis=1)
        if self._positions == 1:
            return in_range
        if gram is not None:
            aligned = tf.reduce_sum(tf.sqrt(gram[0]) * tf.sqrt(gram[1]), axis=2)
            most = tf.reduce_sum(tf.square(aligned), axis=1)
            in_float32 = self._gram_dtype() == tf.float32
            # In float64 the norm is right; the float32 products that are summed set the limit.
            least = self._least_share() if in_float32 else _CANCELLED_SUMS * self._positions**2
        else:
            most = tf.reduce_sum(sizes[0] * sizes[1], axis=1)
            least = _CANCELLED_SUMS * tf.cast(tf.shape(self._inputs)[-2], tf.float32)
        return in_range & (found >= least * most)

    def exact(self) -> PerExample:
        """As in `PerExample`."""
        products = self._products
        if products is None:
            products = tf.matmul(self._inputs, self._gradients, transpose_a=True)
        return PerExample(self.variables, [self._to_variable(products)])

    def weighted_sums(self, weights: tf.Tensor, take: Take = lambda x: x) -> list[tf.Tensor]:
        """As in `PerExample`."""
        if self._positions == 1:
            return self._contracted(weights, take(self._inputs), take(self._gradients))
        # A sum over records and positions at once would round once for each of both.
        if self._products is not None:
            products = take(self._products)
        else:
            products = tf.matmul(take(self._inputs), take(self._gradients), transpose_a=True)
        return self._added_up(weights, products)

    def public_sums(self, weights: tf.Tensor) -> list[tf.Tensor]:
        """As in `PerExample`."""
        if self._products is not None:
            return self._added_up(weights, self._products)
        return self._contracted(weights, self._inputs, self._gradients)

    def _added_up(self, weights, products):
        shape = products.shape[1:]
        flat = tf.reshape(products, [-1, math.prod(shape)])
        return [self._to_variable(tf.reshape(tf.matmul(weights, flat), [-1, *shape]))]

    def _contracted(self, weights, inputs, gradients):
        """Weighted sums over examples and positions at once."""
        _, groups, _, fan_in = inputs.shape
        fan_out = gradients.shape[-1]
        count = weights.shape[0]
        # One matrix product for all weights, the smaller factor weighted: per group
        # [m, n T] x [n T, K p], or [K m, n T] x [n T, p].
        factors = [inputs, gradients]
        lighter = int(fan_out <= fan_in)
        factors[lighter] = _repeat_weighted(factors[lighter], weights)
        sums = tf.matmul(*map(_positions_together, factors), transpose_a=True)
        if lighter:
            sums = tf.transpose(tf.reshape(sums, [groups, fan_in, count, fan_out]), [2, 0, 1, 3])
        else:
            sums = tf.transpose(tf.reshape(sums, [groups, count, fan_in, fan_out]), [1, 0, 2, 3])
        return [self._to_variable(sums)]

    def by_microbatch(self, count: tf.Tensor) -> Products:
        """As in `PerExample`: the examples of a microbatch count as positions of one example."""

        def regroup(x):  # [batch, n, T, m] -> [count, n, batch / count * T, m]
            _, groups, _, size = x.shape
            x = tf.reshape(x, [count, -1, groups, tf.shape(x)[2], size])
            return tf.reshape(tf.transpose(x, [0, 2, 1, 3, 4]), [count, groups, -1, size])

        inputs, gradients = regroup(self._inputs), regroup(self._gradients)
        return Products(self.variables[0], inputs, gradients, self._to_variable)

    @classmethod
    def join(cls, calls: Sequence[Products]) -> Products:
        """Joins several calls of one layer: they are more positions, whose gradients add."""
        first = calls[0]
        inputs = tf.concat([call._inputs for call in calls], axis=2)
        gradients = tf.concat([call._gradients for call in calls], axis=2)
        return cls(first.variables[0], inputs, gradients, first._to_variable)


class SquaredNorms:
    """The squared norm function that our rules return.

    Args:
      bind: maps the gradient with respect to base_vars to parts, see the head of this file.
      num_microbatches: as TF Privacy gives it to a rule.
    """

    def __init__(self, bind: Callable[[Any], list], num_microbatches: tf.Tensor | None):
        self.bind = bind
        self._num_microbatches = num_microbatches

    def __call__(self, base_vars_gradients: tf.Tensor) -> tf.Tensor:
        """Computes squared norms.

        Args:
          base_vars_gradients: the gradient of the losses with respect to base_vars.

        Returns:
          float32 [batch]; with microbatches [num_microbatches], of the sums over each.
        """
        parts = self.bind(base_vars_gradients)
        if self._num_microbatches is not None:
            parts = [part.by_microbatch(self._num_microbatches) for part in parts]
        return tf.add_n([part.squared_norms() for part in parts])


def only_input(input_args: Sequence[Any], input_kwargs: Mapping[str, Any]) -> tf.Tensor:
    """The only input of a call; raises `UnsupportedLayerError` if there are others."""
    if len(input_args) != 1 or any(value is not None for value in input_kwargs.values()):
        raise UnsupportedLayerError('is called with more than its inputs')
    if not isinstance(input_args[0], tf.Tensor):
        raise UnsupportedLayerError('has inputs that are not dense')
    return input_args[0]


def before_activation(
    layer: tf.keras.layers.Layer, inputs: tf.Tensor, tape: tf.GradientTape
) -> tuple[tf.Tensor, tf.Tensor]:
    """Calls a layer so that the tape watches what comes before the activation.

    Args:
      layer: with an activation, or None for it.
      inputs: of the call.
      tape: the tape that records the call.

    Returns:
      (the outputs before the activation, which the tape watches; the outputs).
    """
    activation = layer.activation
    layer.activation = None
    try:
        base_vars = layer.call(inputs)
    finally:
        layer.activation = activation
    tape.watch(base_vars)
    return base_vars, base_vars if activation is None else activation(base_vars)


def bias_parts(layer: tf.keras.layers.Layer, gradients: tf.Tensor) -> list[PerExample]:
    """Makes the part of a layer's bias, if there is one, from the gradient before the activation.

    Args:
      layer: with `use_bias`.
      gradients: float32 [batch, ..., channels].
    """
    if not layer.use_bias:
        return []
    axes = list(range(1, gradients.shape.rank - 1))
    return [PerExample([layer.bias], [tf.reduce_sum(gradients, axis=axes)])]


def _positions_together(x: tf.Tensor) -> tf.Tensor:
    """Reshapes [batch, n, T, m] to [n, batch T, m]."""
    _, groups, _, size = x.shape
    x = tf.transpose(x, [1, 0, 2, 3]) if groups > 1 else x
    return tf.reshape(x, [groups, -1, size])


def _repeat_weighted(x: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Multiplies [batch, n, T, m] by each of the weights [K, batch]: [batch, n, T, K m]."""
    count, size = weights.shape[0], x.shape[-1]
    weighted = x[..., tf.newaxis, :] * tf.reshape(tf.transpose(weights), [-1, 1, 1, count, 1])
    return tf.reshape(weighted, [tf.shape(x)[0], x.shape[1], tf.shape(x)[2], count * size])


def _flat(x: tf.Tensor) -> tf.Tensor:
    return tf.reshape(x, [tf.shape(x)[0], math.prod(x.shape[1:])])
