"""Per-example gradient norms, and weighted gradient sums, from one backward pass over a batch.

The gradient of one example's loss with respect to a kernel is a sum over positions t of products of
what went in, a_t, and the gradient with respect to what came out, g_t: G = sum_t a_t g_t^T. So its
norm needs neither a backward pass per example nor, where T is small, G itself (Goodfellow 2015,
arXiv 1510.01799; Rochette et al. 2019, arXiv 1912.06015):

    |G|^2 = sum_{t,s} <a_t, a_s> <g_t, g_s>        the Gram form, about T^2 (m + p) products
    |G|^2 = |A^T G'|^2                              the direct form, T m p products

and sum_i w_i G_i comes from the same a and g, for any weights w known only afterwards
(book-keeping, Bu et al. 2022, arXiv 2210.00038).

Rules are functions of the form that TF Privacy's `LayerRegistry` takes: (layer, args, kwargs, tape,
num_microbatches) -> (base_vars, outputs, squared norm function); `make_layer_registry` is one to
hand to TF Privacy. The squared norm functions here also know the weighted sums.

Formal guarantees:
  - A rule's squared norm is that of the whole gradient with respect to all trainable variables of
    its layer; a layer that is called several times in a pass has the norm of the SUM of its
    gradients (`join`).
  - An example's numbers depend on that example's rows alone; on the others at most in how they are
    rounded. A call of a layer has as many rows as there are losses: one whose batch axis holds
    views, patches or time steps, or nothing of the examples, is refused.
  - What a rule does not cover is refused by `UnsupportedLayerError`, never left out.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

import tensorflow as tf
from tensorflow_privacy.privacy.fast_gradient_clipping import layer_registry

# The Gram form is taken when it needs fewer products than the direct one times this: its matrices
# [T, T] are small, which costs more per product. Measured, see tests/tools.
_GRAM_ADVANTAGE = 1.0
# The Gram form in float32 is off by at most (m + p + T + 4) 2^-24 (sum_t |a_t| |g_t|)^2. At this
# times (m + p + T + 4) of that square, the norm is right to 2^-9; below it, where positions cancel,
# norm and sum are both made of the gradient itself.
_LEAST_SHARE = 2.0**-16
# Positions that have nothing to do with each other leave 1 / T of that square. Where the share
# above comes near it, the Gram form is computed in float64.
_FLOAT32_SHARE = 0.25
# The direct form adds before it squares, as the sums do, and bears more: this share of
# |A|^2 |G|^2 T.
_CANCELLED_SUMS = 2.0**-28
# And where |A|^2 or |G|^2 is above this, the other may have lost squares that count.
_LARGEST_FACTOR = 1e8
# Bytes of patches to make at a time. Measured: smaller blocks take longer, larger ones more memory.
_BLOCK_BYTES = 2**21

_OTHER_ROWS = (
    'is called on a batch axis that is not that of the losses: views, patches or time steps of a '
    'record are on it, or what does not depend on the records'
)


# Takes some examples out of [batch, ...].
Take = Callable[[tf.Tensor], tf.Tensor]


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
        """Over all variables together, float32 [batch]."""
        return tf.add_n([tf.reduce_sum(tf.square(_flat(g)), axis=1) for g in self.gradients])

    def is_exact(self) -> tf.Tensor:
        """Whether each squared norm is right up to rounding of its own size, bool [batch]."""
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
          then they are added up.
        """
        sums = [tf.matmul(weights, take(_flat(g))) for g in self.gradients]
        return [tf.reshape(s, [-1, *v.shape]) for s, v in zip(sums, self.variables)]

    def public_sums(self, weights: tf.Tensor) -> list[tf.Tensor]:
        """`weighted_sums` of all examples, in any order: for images that need no privacy."""
        return self.weighted_sums(weights)

    @classmethod
    def join(cls, calls: Sequence[PerExample]) -> PerExample:
        """Of several calls of one layer: gradients add."""
        gradients = [tf.add_n(of_variable) for of_variable in zip(*(c.gradients for c in calls))]
        return cls(calls[0].variables, gradients)


class Products:
    """Per-example gradients of one kernel as products A_i^T G_i, and their norms.

    Args:
      variable: the kernel.
      inputs: A, float32 [batch, n, T, m]: n groups of channels that do not meet, T positions.
      gradients: G, float32 [batch, n, T, p].
      to_variable: from float32 [K, n, m, p] to [K, *variable.shape].
      direct: takes the direct form, whatever it costs.
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
        """Float32 [batch]."""
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
        """Squares added up over positions and channels, [batch, n]."""
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
            # In float64 the norm is right, and the products that are summed set the limit.
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
        # Not over records and positions at once: float32 would round as often as there are both.
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
        """Over examples and positions at once."""
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

    @classmethod
    def join(cls, calls: Sequence[Products]) -> Products:
        """Of several calls of one layer: more positions, so norms add before squaring."""
        first = calls[0]
        inputs = tf.concat([call._inputs for call in calls], axis=2)
        gradients = tf.concat([call._gradients for call in calls], axis=2)
        return cls(first.variables[0], inputs, gradients, first._to_variable)


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One call of a convolution, from images to positions.

    Attributes:
      layer: whose.
      kernel: of that.
      images: what it goes over, float32 [batch, H, W, C].
      positions: what it has there, float32 [batch, h, w, ...].
      factors: from any examples of these two to A and G as `Products` takes them.
      public_sum: from weights [batch] to the sum of weighted gradients, shaped like the kernel, as
        TensorFlow adds it up: over examples and positions at once.
    """

    layer: tf.keras.layers.Layer
    kernel: tf.Variable
    images: tf.Tensor
    positions: tf.Tensor
    factors: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    public_sum: Callable[[tf.Tensor], tf.Tensor]

    @property
    def bytes_of_example(self) -> int | None:
        """Of its A and G; None if that is not known."""
        height, width, fan_out = self.positions.shape[1:]
        if height is None or width is None:
            return None
        fan_in = math.prod(self.layer.kernel_size) * self.images.shape[-1]
        return 4 * height * width * (fan_in + fan_out)


class Patches:
    """`Products` of convolutions, whose A is many times larger than the images it is cut out of.

    A is made of some examples at a time, for the norms and once more for the sums. Norm and sum are
    of the same products: a convolution's own gradient adds up in another order, and where positions
    cancel, what clipping takes for nothing could come out of it.

    Args:
      calls: of one layer.
      to_variable: as in `Products`.
    """

    def __init__(self, calls: Sequence[Convolution], to_variable: Callable[[tf.Tensor], tf.Tensor]):
        self.variables = [calls[0].kernel]
        self._calls = list(calls)
        self._to_variable = to_variable
        self._found = None

    def products(self, take: Callable[[tf.Tensor], tf.Tensor] = lambda x: x) -> Products:
        """Of the examples that `take` takes out of [batch, ...]."""
        factors = [call.factors(take(call.images), take(call.positions)) for call in self._calls]
        inputs, gradients = (tf.concat(of_calls, axis=2) for of_calls in zip(*factors))
        return Products(self.variables[0], inputs, gradients, self._to_variable)

    def _find(self) -> list[tf.Tensor]:
        """[squared norms, whether they are exact]."""
        if self._found is None:

            def of_block(take):
                products = self.products(take)
                return [products.squared_norms(), products.is_exact()]

            sizes = [call.bytes_of_example for call in self._calls]
            most = None if None in sizes else max(1, _BLOCK_BYTES // sum(sizes))
            self._found = _by_blocks(of_block, self._calls[0].images, most)
        return self._found

    def squared_norms(self) -> tf.Tensor:
        """As in `PerExample`."""
        return self._find()[0]

    def is_exact(self) -> tf.Tensor:
        """As in `PerExample`."""
        return self._find()[1]

    def exact(self) -> PerExample:
        """As in `PerExample`."""
        return self.products().exact()

    def weighted_sums(self, weights: tf.Tensor, take: Take = lambda x: x) -> list[tf.Tensor]:
        """As in `PerExample`."""
        return self.products(take).weighted_sums(weights)

    def public_sums(self, weights: tf.Tensor) -> list[tf.Tensor]:
        """As in `PerExample`."""
        return [
            tf.stack(
                [
                    tf.add_n([call.public_sum(one) for call in self._calls])
                    for one in tf.unstack(weights)
                ]
            )
        ]

    @classmethod
    def join(cls, parts: Sequence[Patches]) -> Patches:
        """As in `Products`."""
        return cls([call for part in parts for call in part._calls], parts[0]._to_variable)


def _by_blocks(function, like: tf.Tensor, most: int | None) -> list[tf.Tensor]:
    """Applies a function to blocks of examples, one after the other.

    Args:
      function: from a function that takes the examples of a block out of [batch, ...] to tensors
        float32 or bool [examples of the block].
      like: [batch, ...].
      most: examples in a block at most; None: all.

    Returns:
      Its tensors, [batch].
    """
    if most is None or (like.shape[0] is not None and like.shape[0] <= most):
        return function(lambda x: x)
    batch = tf.shape(like)[0]
    count = tf.maximum(1, -(-batch // most))
    # All of one size, as XLA wants it: the last ones overlap by less than there are blocks.
    size = -(-batch // count)

    def start_of(block):
        return tf.minimum(block * size, batch - size)

    def add_block(block, found):
        def take(x):
            begin = tf.stack([start_of(block), *[0] * (x.shape.rank - 1)])
            return tf.slice(x, begin, tf.stack([size, *x.shape[1:]]))

        return block + 1, [array.write(block, f) for array, f in zip(found, function(take))]

    found = [tf.TensorArray(dtype, count, element_shape=[None]) for dtype in (tf.float32, tf.bool)]
    _, found = tf.while_loop(
        lambda block, _: block < count, add_block, (0, found), parallel_iterations=1
    )
    rows = tf.range(batch)
    blocks = rows // tf.maximum(size, 1)
    places = blocks * size + rows - start_of(blocks)
    return [tf.gather(tf.reshape(array.stack(), [-1]), places) for array in found]


class SquaredNorms:
    """What a rule of ours returns as its squared norm function.

    Args:
      bind: from the gradient with respect to base_vars to parts (`PerExample`, `Products`,
        `Patches`).
      num_microbatches: as TF Privacy hands it to a rule.
    """

    def __init__(self, bind: Callable[[Any], list], num_microbatches: tf.Tensor | None):
        self.bind = bind
        self._num_microbatches = num_microbatches

    def __call__(self, base_vars_gradients: tf.Tensor) -> tf.Tensor:
        """Squared norms, float32 [batch], or [num_microbatches] of the sums over microbatches."""
        parts = self.bind(base_vars_gradients)
        if self._num_microbatches is not None:
            parts = [_by_microbatch(part, self._num_microbatches) for part in parts]
        return tf.add_n([part.squared_norms() for part in parts])


def _by_microbatch(part, count):
    """Examples of a microbatch as further positions of one: gradients add before squaring."""
    if isinstance(part, Patches):
        part = part.products()
    if isinstance(part, PerExample):
        summed = [
            tf.reduce_sum(tf.reshape(g, tf.concat([[count, -1], tf.shape(g)[1:]], 0)), axis=1)
            for g in part.gradients
        ]
        return PerExample(part.variables, summed)

    def regroup(x):  # [batch, n, T, m] -> [count, n, batch / count * T, m]
        _, groups, _, size = x.shape
        x = tf.reshape(x, [count, -1, groups, tf.shape(x)[2], size])
        return tf.reshape(tf.transpose(x, [0, 2, 1, 3, 4]), [count, groups, -1, size])

    inputs, gradients = regroup(part._inputs), regroup(part._gradients)
    return Products(part.variables[0], inputs, gradients, part._to_variable)


# Rules.

_RegistryOutput = tuple[Any, tf.Tensor, Callable[[Any], tf.Tensor]]


def dense_computation(
    layer_instance: tf.keras.layers.Dense,
    input_args: Sequence[Any],
    input_kwargs: Mapping[str, Any],
    tape: tf.GradientTape,
    num_microbatches: tf.Tensor | None = None,
) -> _RegistryOutput:
    """Rule for `Dense`, in TF Privacy's form.

    TF Privacy has one too, in the Gram form alone.

    Args:
      layer_instance: the layer.
      input_args: (inputs float32 [batch, ..., m],).
      input_kwargs: empty.
      tape: which is to record the call.
      num_microbatches: None, or the number of microbatches of equal size.

    Returns:
      (base_vars float32 [batch, ..., p] before the activation, outputs, `SquaredNorms`).

    Raises:
      UnsupportedLayerError: if the call is of another kind.
    """
    inputs = _only_input(input_args, input_kwargs)
    base_vars, outputs = _before_activation(layer_instance, inputs, tape)
    positions = math.prod(inputs.shape[1:-1]) if None not in inputs.shape[1:-1] else -1

    def bind(gradients):
        fan_in, fan_out = layer_instance.kernel.shape
        g = tf.reshape(gradients, [-1, 1, positions, fan_out])
        a = tf.reshape(inputs, [-1, 1, positions, fan_in])
        kernel = Products(layer_instance.kernel, a, g, lambda sums: sums[:, 0])
        return [kernel, *_bias(layer_instance, gradients)]

    return base_vars, outputs, SquaredNorms(bind, num_microbatches)


def conv2d_computation(
    layer_instance: tf.keras.layers.Conv2D,
    input_args: Sequence[Any],
    input_kwargs: Mapping[str, Any],
    tape: tf.GradientTape,
    num_microbatches: tf.Tensor | None = None,
) -> _RegistryOutput:
    """Rule for `Conv2D`: any strides, dilation, groups and padding, channels last.

    Args:
      layer_instance: the layer.
      input_args: (inputs float32 [batch, H, W, C],).
      input_kwargs: see `dense_computation`, as the next ones.
      tape: which is to record the call.
      num_microbatches: None, or the number of microbatches of equal size.

    Returns:
      (base_vars float32 [batch, h, w, filters] before the activation, outputs, `SquaredNorms`).

    Raises:
      UnsupportedLayerError: if channels come first.
    """
    inputs = _only_input(input_args, input_kwargs)
    _check_channels_last(layer_instance)
    base_vars, outputs = _before_activation(layer_instance, inputs, tape)

    def bind(gradients):
        kernel, groups = layer_instance.kernel, layer_instance.groups
        size, in_group = kernel.shape[0] * kernel.shape[1], kernel.shape[2]

        def factors(inputs, gradients):
            a = _patches(inputs, layer_instance)
            a = tf.reshape(a, [-1, _positions(gradients), size, groups, in_group])
            a = tf.transpose(a, [0, 3, 1, 2, 4]) if groups > 1 else a
            a = tf.reshape(a, [-1, groups, _positions(gradients), size * in_group])
            return a, _split_groups(gradients, groups)

        def to_kernel(sums):  # [K, n, m, p] -> [K, kh, kw, C / n, n p]
            sums = _in_kernel_order(tf.transpose(sums, [0, 2, 1, 3]), inputs, layer_instance)
            return tf.reshape(sums, [-1, *kernel.shape])

        public_sum = _kernel_gradient(layer_instance, kernel, inputs, gradients)
        call = Convolution(layer_instance, kernel, inputs, gradients, factors, public_sum)
        return [_part_of(call, to_kernel), *_bias(layer_instance, gradients)]

    return base_vars, outputs, SquaredNorms(bind, num_microbatches)


def conv2d_transpose_computation(
    layer_instance: tf.keras.layers.Conv2DTranspose,
    input_args: Sequence[Any],
    input_kwargs: Mapping[str, Any],
    tape: tf.GradientTape,
    num_microbatches: tf.Tensor | None = None,
) -> _RegistryOutput:
    """Rule for `Conv2DTranspose`: a convolution from its output to its input.

    Args:
      layer_instance: the layer.
      input_args: (inputs float32 [batch, h, w, C],).
      input_kwargs: see `dense_computation`, as the next ones.
      tape: which is to record the call.
      num_microbatches: None, or the number of microbatches of equal size.

    Returns:
      (base_vars float32 [batch, H, W, filters] before the activation, outputs, `SquaredNorms`).

    Raises:
      UnsupportedLayerError: if channels come first, or the size of the output has been forced.
    """
    inputs = _only_input(input_args, input_kwargs)
    _check_channels_last(layer_instance)
    if layer_instance.output_padding is not None:
        raise UnsupportedLayerError('has output_padding')
    base_vars, outputs = _before_activation(layer_instance, inputs, tape)

    def bind(gradients):
        kernel = layer_instance.kernel  # [kh, kw, filters, C]

        def factors(gradients, inputs):
            a = _patches(gradients, layer_instance)
            a = tf.reshape(a, [-1, 1, _positions(inputs), math.prod(kernel.shape[:3])])
            return a, tf.reshape(inputs, [-1, 1, _positions(inputs), kernel.shape[3]])

        def to_kernel(sums):  # [K, 1, m, p] -> [K, kh, kw, filters, C]
            sums = _in_kernel_order(sums[:, 0], gradients, layer_instance)
            return tf.reshape(sums, [-1, *kernel.shape])

        public_sum = _kernel_gradient(layer_instance, kernel, inputs, gradients)
        call = Convolution(layer_instance, kernel, gradients, inputs, factors, public_sum)
        return [_part_of(call, to_kernel), *_bias(layer_instance, gradients)]

    return base_vars, outputs, SquaredNorms(bind, num_microbatches)


def depthwise_conv2d_computation(
    layer_instance: tf.keras.layers.DepthwiseConv2D,
    input_args: Sequence[Any],
    input_kwargs: Mapping[str, Any],
    tape: tf.GradientTape,
    num_microbatches: tf.Tensor | None = None,
) -> _RegistryOutput:
    """Rule for `DepthwiseConv2D`: every channel is a group of its own.

    Args:
      layer_instance: the layer.
      input_args: (inputs float32 [batch, H, W, C],).
      input_kwargs: see `dense_computation`, as the next ones.
      tape: which is to record the call.
      num_microbatches: None, or the number of microbatches of equal size.

    Returns:
      (base_vars float32 [batch, h, w, C depth_multiplier], outputs, `SquaredNorms`).

    Raises:
      UnsupportedLayerError: if channels come first.
    """
    inputs = _only_input(input_args, input_kwargs)
    _check_channels_last(layer_instance)
    base_vars, outputs = _before_activation(layer_instance, inputs, tape)

    def bind(gradients):
        kernel = layer_instance.depthwise_kernel  # [kh, kw, C, depth_multiplier]
        size, channels = kernel.shape[0] * kernel.shape[1], kernel.shape[2]

        def factors(inputs, gradients):
            a = _patches(inputs, layer_instance)
            a = tf.reshape(a, [-1, _positions(gradients), size, channels])
            return tf.transpose(a, [0, 3, 1, 2]), _split_groups(gradients, channels)

        def to_kernel(sums):  # [K, C, kh kw, multiplier] -> [K, kh, kw, C, multiplier]
            sums = _in_kernel_order(tf.transpose(sums, [0, 2, 1, 3]), inputs, layer_instance)
            return tf.reshape(sums, [-1, *kernel.shape])

        public_sum = _kernel_gradient(layer_instance, kernel, inputs, gradients)
        call = Convolution(layer_instance, kernel, inputs, gradients, factors, public_sum)
        return [_part_of(call, to_kernel), *_bias(layer_instance, gradients)]

    return base_vars, outputs, SquaredNorms(bind, num_microbatches)


def group_normalization_computation(
    layer_instance: tf.keras.layers.GroupNormalization,
    input_args: Sequence[Any],
    input_kwargs: Mapping[str, Any],
    tape: tf.GradientTape,
    num_microbatches: tf.Tensor | None = None,
) -> _RegistryOutput:
    """Rule for `GroupNormalization`, whose statistics are of one example.

    Args:
      layer_instance: the layer.
      input_args: (inputs float32 [batch, ..., C],).
      input_kwargs: see `dense_computation`, as the next ones.
      tape: which is to record the call.
      num_microbatches: None, or the number of microbatches of equal size.

    Returns:
      (base_vars float32 [batch, ..., C], outputs, `SquaredNorms`).
    """
    inputs = _only_input(input_args, input_kwargs)
    axis = layer_instance.axis % inputs.shape.rank
    shape = [1] * inputs.shape.rank
    shape[axis] = inputs.shape[axis]
    scale, center = layer_instance.scale, layer_instance.center
    layer_instance.scale = layer_instance.center = False
    try:
        normalized = layer_instance.call(inputs)
    finally:
        layer_instance.scale, layer_instance.center = scale, center
    outputs = normalized
    if scale:
        outputs = outputs * tf.reshape(layer_instance.gamma, shape)
    if center:
        outputs = outputs + tf.reshape(layer_instance.beta, shape)
    tape.watch(outputs)
    others = [i for i in range(1, inputs.shape.rank) if i != axis]

    def bind(gradients):
        variables, of_example = [], []
        if scale:
            variables.append(layer_instance.gamma)
            of_example.append(tf.reduce_sum(gradients * normalized, axis=others))
        if center:
            variables.append(layer_instance.beta)
            of_example.append(tf.reduce_sum(gradients, axis=others))
        return [PerExample(variables, of_example)]

    return outputs, outputs, SquaredNorms(bind, num_microbatches)


def layer_normalization_computation(
    layer_instance: tf.keras.layers.LayerNormalization,
    input_args: Sequence[Any],
    input_kwargs: Mapping[str, Any],
    tape: tf.GradientTape,
    num_microbatches: tf.Tensor | None = None,
) -> _RegistryOutput:
    """Rule for `LayerNormalization`.

    TF Privacy has one too, for one call in a pass and with both scale and center.

    Args:
      layer_instance: the layer.
      input_args: (inputs float32 [batch, ..., C],).
      input_kwargs: see `dense_computation`, as the next ones.
      tape: which is to record the call.
      num_microbatches: None, or the number of microbatches of equal size.

    Returns:
      (base_vars float32 [batch, ..., C], outputs, `SquaredNorms`).

    Raises:
      UnsupportedLayerError: if the statistics are over the batch.
    """
    inputs = _only_input(input_args, input_kwargs)
    axes = list(layer_instance.axis)
    if 0 in axes:
        raise UnsupportedLayerError('mixes the examples of a batch')
    shape = [inputs.shape[i] if i in axes else 1 for i in range(inputs.shape.rank)]
    gamma, beta = layer_instance.gamma, layer_instance.beta
    # Not by assignment, with which Keras would untrack them.
    layer_instance.__dict__.update(gamma=None, beta=None)
    try:
        normalized = layer_instance.call(inputs)
    finally:
        layer_instance.__dict__.update(gamma=gamma, beta=beta)
    outputs = normalized
    if gamma is not None:
        outputs = outputs * tf.reshape(gamma, shape)
    if beta is not None:
        outputs = outputs + tf.reshape(beta, shape)
    tape.watch(outputs)
    others = [i for i in range(1, inputs.shape.rank) if i not in axes]

    def bind(gradients):
        variables, of_example = [], []
        if gamma is not None:
            variables.append(gamma)
            of_example.append(tf.reduce_sum(gradients * normalized, axis=others))
        if beta is not None:
            variables.append(beta)
            of_example.append(tf.reduce_sum(gradients, axis=others))
        return [PerExample(variables, of_example)]

    return outputs, outputs, SquaredNorms(bind, num_microbatches)


def embedding_computation(
    layer_instance: tf.keras.layers.Embedding,
    input_args: Sequence[Any],
    input_kwargs: Mapping[str, Any],
    tape: tf.GradientTape,
    num_microbatches: tf.Tensor | None = None,
) -> _RegistryOutput:
    """Rule for `Embedding`: a `Dense` of one-hot vectors.

    TF Privacy has one too, for one call in a pass and without XLA.

    Args:
      layer_instance: the layer.
      input_args: (ids, integers [batch, ...],).
      input_kwargs: see `dense_computation`, as the next ones.
      tape: which is to record the call.
      num_microbatches: None, or the number of microbatches of equal size.

    Returns:
      (base_vars float32 [batch, ..., p], outputs, `SquaredNorms`).
    """
    ids = _only_input(input_args, input_kwargs)
    outputs = layer_instance.call(ids)
    tape.watch(outputs)
    positions = math.prod(ids.shape[1:]) if None not in ids.shape[1:] else -1

    def bind(gradients):
        count, size = layer_instance.embeddings.shape
        a = tf.one_hot(tf.reshape(tf.cast(ids, tf.int32), [-1, 1, positions]), count)
        g = tf.reshape(gradients, [-1, 1, positions, size])
        return [Products(layer_instance.embeddings, a, g, lambda sums: sums[:, 0])]

    return outputs, outputs, SquaredNorms(bind, num_microbatches)


_RULES = {
    tf.keras.layers.Dense: dense_computation,
    tf.keras.layers.Conv2D: conv2d_computation,
    tf.keras.layers.Conv2DTranspose: conv2d_transpose_computation,
    tf.keras.layers.DepthwiseConv2D: depthwise_conv2d_computation,
    tf.keras.layers.GroupNormalization: group_normalization_computation,
    tf.keras.layers.LayerNormalization: layer_normalization_computation,
    tf.keras.layers.Embedding: embedding_computation,
}


def _rule_of(layer: tf.keras.layers.Layer) -> Callable | None:
    """The rule of a layer's class, or of the one that this very class says it computes."""
    kind = type(layer)
    return _RULES.get(vars(kind).get('computes_as', kind))


def make_layer_registry() -> layer_registry.LayerRegistry:
    """A TF Privacy registry of all rules."""
    registry = layer_registry.LayerRegistry()
    for layer_class, rule in _RULES.items():
        registry.insert(layer_class, rule)
    return registry


# Parts of rules.


def _only_input(input_args, input_kwargs) -> tf.Tensor:
    if len(input_args) != 1 or any(value is not None for value in input_kwargs.values()):
        raise UnsupportedLayerError('is called with more than its inputs')
    if not isinstance(input_args[0], tf.Tensor):
        raise UnsupportedLayerError('has inputs that are not dense')
    return input_args[0]


def _check_channels_last(layer) -> None:
    if layer.data_format != 'channels_last':
        raise UnsupportedLayerError('has its channels first')


def _before_activation(layer, inputs, tape):
    """(outputs before the activation, watched; outputs)."""
    activation = layer.activation
    layer.activation = None
    try:
        base_vars = layer.call(inputs)
    finally:
        layer.activation = activation
    tape.watch(base_vars)
    return base_vars, base_vars if activation is None else activation(base_vars)


def _bias(layer, gradients) -> list[PerExample]:
    if not layer.use_bias:
        return []
    axes = list(range(1, gradients.shape.rank - 1))
    return [PerExample([layer.bias], [tf.reduce_sum(gradients, axis=axes)])]


def _positions(features: tf.Tensor) -> int:
    """H W of [batch, H, W, C]; -1 when it is not known."""
    height, width = features.shape[1:3]
    return -1 if height is None or width is None else height * width


def _split_groups(features: tf.Tensor, groups: int) -> tf.Tensor:
    """[batch, H, W, n p] as [batch, n, H W, p]."""
    fan_out = features.shape[-1] // groups
    split = tf.reshape(features, [-1, _positions(features), groups, fan_out])
    if groups == 1:
        return tf.reshape(split, [-1, 1, _positions(features), fan_out])
    return tf.transpose(split, [0, 2, 1, 3])


def _part_of(call: Convolution, to_kernel) -> Products | Patches:
    if call.layer.kernel_size == call.layer.strides == (1, 1):
        factors = call.factors(call.images, call.positions)
        return Products(call.kernel, *factors, to_kernel)
    return Patches([call], to_kernel)


def _kernel_gradient(layer, kernel, inputs, gradients) -> Callable[[tf.Tensor], tf.Tensor]:
    """From weights [batch] to the sum of weighted gradients of a layer's kernel."""

    def weighted_sum(weights):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(kernel)
            # Its value is not used, so a graph does not compute it.
            base_vars, _ = _before_activation(layer, inputs, tape)
        return tape.gradient(base_vars, kernel, gradients * tf.reshape(weights, [-1, 1, 1, 1]))

    return weighted_sum


def _patches(images: tf.Tensor, layer) -> tf.Tensor:
    """What a convolution sees at each of its positions.

    Args:
      images: what it goes over, float32 [batch, H, W, C].
      layer: a Keras convolution, channels last.

    Returns:
      [batch, h, w, kh kw C]; see `_in_kernel_order`.
    """
    (height, width), strides, rates = layer.kernel_size, layer.strides, layer.dilation_rate
    if (height, width) == strides == (1, 1):
        return images
    stride = _block_size(images, layer)
    if stride is not None:
        return _block_patches(images, layer, stride)
    return tf.image.extract_patches(
        images, [1, height, width, 1], [1, *strides, 1], [1, *rates, 1], layer.padding.upper()
    )


def _block_size(images, layer) -> int | None:
    """Height and width of the blocks of which `_patches` consists; None: pixels."""
    (height, width), strides = layer.kernel_size, layer.strides
    stride = strides[0]
    in_blocks = strides == (stride, stride) and stride > 1 and layer.dilation_rate == (1, 1)
    if in_blocks and height % stride == width % stride == 0 and None not in images.shape[1:3]:
        return stride
    return None


def _in_kernel_order(sums, images, layer):
    """Brings axis 1 of [K, kh kw ..., ...] from the order of `_patches` into that of a kernel."""
    stride = _block_size(images, layer)
    if stride is None:
        return sums  # Row, column, channel.
    # Block row, block column, row, column, channel.
    blocks = [size // stride for size in layer.kernel_size]
    rest = sums.shape[1] // math.prod(layer.kernel_size)
    split = tf.reshape(sums, [-1, *blocks, stride, stride, rest, *sums.shape[2:]])
    others = list(range(5, split.shape.rank))
    return tf.transpose(split, [0, 1, 3, 2, 4, *others])


def _block_patches(images, layer, stride):
    """`_patches` of blocks as large as the stride: whole rows of memory are moved, not pixels."""
    margins, counts = zip(
        *[
            _margin(size, kernel, stride, layer.padding)
            for size, kernel in zip(images.shape[1:3], layer.kernel_size)
        ]
    )
    blocks = [size // stride for size in layer.kernel_size]
    needed = [(count + block - 1) * stride for count, block in zip(counts, blocks)]
    padded = tf.pad(images, [[0, 0], *margins, [0, 0]])[:, : needed[0], : needed[1]]
    wide = tf.nn.space_to_depth(padded, stride)
    parts = [
        wide[:, row : row + counts[0], column : column + counts[1]]
        for row in range(blocks[0])
        for column in range(blocks[1])
    ]
    return tf.concat(parts, axis=-1) if len(parts) > 1 else parts[0]


def _margin(size: int, kernel: int, stride: int, padding: str) -> tuple[list[int], int]:
    """([zeros before, zeros behind], number of positions) along one axis, as TensorFlow has it."""
    if padding == 'valid':
        return [0, 0], (size - kernel) // stride + 1
    count = -(-size // stride)
    total = max((count - 1) * stride + kernel - size, 0)
    return [total // 2, total - total // 2], count


def _positions_together(x: tf.Tensor) -> tf.Tensor:
    """[batch, n, T, m] as [n, batch T, m]."""
    _, groups, _, size = x.shape
    x = tf.transpose(x, [1, 0, 2, 3]) if groups > 1 else x
    return tf.reshape(x, [groups, -1, size])


def _repeat_weighted(x: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """[batch, n, T, m] for weights [K, batch] as [batch, n, T, K m]."""
    count, size = weights.shape[0], x.shape[-1]
    weighted = x[..., tf.newaxis, :] * tf.reshape(tf.transpose(weights), [-1, 1, 1, count, 1])
    return tf.reshape(weighted, [tf.shape(x)[0], x.shape[1], tf.shape(x)[2], count * size])


def _flat(x: tf.Tensor) -> tf.Tensor:
    return tf.reshape(x, [tf.shape(x)[0], math.prod(x.shape[1:])])


# One pass over a batch.


Models = Union[tf.keras.Model, Sequence[tf.keras.Model]]


def check_layers(models: Models, variables: Sequence[tf.Variable]) -> None:
    """Checks that every variable belongs to a layer with a rule.

    Args:
      models: the model, or several, built.
      variables: what the step updates.

    Raises:
      UnsupportedLayerError: naming the layer that has none, or the variable of no layer.
    """
    owners = {}
    for layer in _layers_with_variables(models):
        for variable in layer._trainable_weights:
            owners.setdefault(variable.ref(), []).append(layer)
    for variable in variables:
        layers = owners.get(variable.ref(), [])
        if len(layers) != 1:
            what = 'no layer' if not layers else 'several layers'
            raise UnsupportedLayerError(f'variable {variable.name} belongs to {what} of the model')
        if _rule_of(layers[0]) is None:
            raise UnsupportedLayerError(
                f'layer {layers[0].name!r} ({type(layers[0]).__name__}) has no rule'
            )
        if layers[0].compute_dtype != 'float32':
            raise UnsupportedLayerError(
                f'layer {layers[0].name!r} ({type(layers[0]).__name__}) computes in '
                f'{layers[0].compute_dtype}'
            )


def _layers_with_variables(models: Models) -> list[tf.keras.layers.Layer]:
    layers = {
        id(layer): layer
        for model in tf.nest.flatten(models)
        for layer in model._flatten_layers()
        if layer._trainable_weights
    }
    return list(layers.values())


def gradients_by_layer(
    models: Models,
    losses_of: Callable[[], tf.Tensor],
    variables: Sequence[tf.Variable],
) -> list:
    """Per-example gradients of a batch, by layer, in the form of `PerExample`.

    One forward pass, and one backward pass with respect to what the layers put out. Layers may be
    nested in other models, and may be called several times.

    Args:
      models: one or several, whose layers are called by `losses_of`; no layer mixes examples.
      losses_of: calls the models on a batch and returns the loss of every example, float32 [batch].
      variables: what the step updates; every one belongs to one layer.

    Returns:
      Parts (`PerExample`, `Products`, `Patches`), together over all variables that were used.

    Raises:
      UnsupportedLayerError: if a layer has no rule, or none for the way it is called.
      ValueError: if there is not one loss for every example.
      tf.errors.InvalidArgumentError: when it is run, if only then a batch axis turns out not to be
        that of the examples.
    """
    check_layers(models, variables)
    _switch_off_tensor_float_32()
    tape = tf.GradientTape(watch_accessed_variables=False)
    with tape, _Recorder(models, tape) as calls:
        tape.watch(variables)
        losses = losses_of()
    if losses.shape.rank != 1:
        raise ValueError(
            f'There must be one loss for every example, shape [batch]. Received: {losses.shape}.'
        )
    if not calls:
        raise ValueError('The loss uses none of the variables to update.')
    ones = _ones_if_rows_are_examples(calls, losses)
    with tf.control_dependencies([ones]):
        gradients = tape.gradient(
            losses,
            [call.base_vars for call in calls],
            output_gradients=ones,
            unconnected_gradients='zero',
        )
    by_layer = {}
    for call, gradient in zip(calls, gradients):
        by_layer.setdefault(id(call.layer), []).append(call.bind(gradient))
    wanted = {variable.ref() for variable in variables}
    parts = []
    for of_calls in by_layer.values():
        for of_part in zip(*of_calls):
            if any(variable.ref() in wanted for variable in of_part[0].variables):
                parts.append(of_part[0] if len(of_part) == 1 else type(of_part[0]).join(of_part))
    return parts


def clipped_sum(
    models: Models,
    losses_of: Callable[[], tf.Tensor],
    variables: Sequence[tf.Variable],
    weights: tf.Tensor,
    lengths: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    """A sum of what `gradients_by_layer` makes of examples, the short way: to try, not to release.

    Args:
      models: as in `gradients_by_layer`, as the next ones.
      losses_of: of the batch.
      variables: what the step updates.
      weights: float32 [batch], >= 0, what gradients are multiplied with.
      lengths: float32 [batch], the norms that they have after that at most.

    Returns:
      (their norms, float32 [batch]; bool [batch], whether that is what is used for clipping, or
      the norm of the gradient itself; the sum, per variable float32 [*variable.shape]).
    """
    parts = gradients_by_layer(models, losses_of, variables)
    norms = tf.sqrt(tf.add_n([part.squared_norms() for part in parts]))
    exact = tf.reduce_all(tf.stack([part.is_exact() for part in parts]), axis=0)
    weights = tf.where(weights * norms > lengths, lengths / norms, weights)[tf.newaxis]
    found = {}
    for part in parts:
        for variable, total in zip(part.variables, part.weighted_sums(weights)):
            found[variable.ref()] = tf.reshape(total, variable.shape)
    return norms, exact, [found.get(v.ref(), tf.zeros(v.shape)) for v in variables]


def reason_of(error: tf.errors.InvalidArgumentError) -> str | None:
    """Which layer `gradients_by_layer` refused when it was run, and why; None: it was not that."""
    text = error.message.replace('\\', '')  # TensorFlow escapes the quotes.
    found = re.search(r"layer '[^']*' \(\w+\) " + re.escape(_OTHER_ROWS), text)
    return found and found[0]


def _ones_if_rows_are_examples(calls: Sequence[_Call], losses: tf.Tensor) -> tf.Tensor:
    """Ones, [batch], to begin the backward pass with.

    Rules clip rows of what a layer puts out. Where views or patches of one example are rows of
    their own, it would move a sum by a clip for each of them; where all examples share one row,
    they would be clipped as one. No text says how many rows there are: with Poisson samples that is
    private.
    """
    batch = losses.shape[0]
    are_examples = []
    for call in calls:
        reason = f'layer {call.layer.name!r} ({type(call.layer).__name__}) {_OTHER_ROWS}'
        if call.base_vars.shape.rank < 2:
            raise UnsupportedLayerError(reason)
        rows = call.base_vars.shape[0]
        if rows is not None and batch is not None:
            if rows != batch:
                raise UnsupportedLayerError(reason)
            continue
        is_example = tf.equal(tf.shape(call.base_vars)[0], tf.shape(losses)[0])
        with tf.control_dependencies([tf.debugging.Assert(is_example, [reason])]):
            are_examples.append(tf.identity(is_example))
    ones = tf.ones_like(losses)
    if not are_examples:
        return ones
    # XLA leaves out assertions. A gradient that is not a number counts as zero.
    return tf.where(tf.reduce_all(tf.stack(are_examples)), ones, math.nan)


def _switch_off_tensor_float_32() -> None:
    """With it a GPU's products round to 10 bits: norms too small, and clips that do not bound."""
    if tf.config.list_physical_devices('GPU'):
        tf.config.experimental.enable_tensor_float_32_execution(False)


class _Call:
    """One call of a layer, as its rule saw it."""

    def __init__(self, layer, base_vars, bind):
        self.layer = layer
        self.base_vars = base_vars
        self.bind = bind


class _Recorder:
    """While it is open, layers with variables are called through their rules.

    Args:
      models: whose layers.
      tape: which records the calls.
    """

    def __init__(self, models: Models, tape: tf.GradientTape):
        self._layers = _layers_with_variables(models)
        self._tape = tape
        self._calls: list[_Call] = []

    def __enter__(self) -> list[_Call]:
        for layer in self._layers:
            if _rule_of(layer) is not None:
                layer.call = self._recorded(layer)
        return self._calls

    def __exit__(self, *_):
        for layer in self._layers:
            layer.__dict__.pop('call', None)

    def _recorded(self, layer):
        rule = _rule_of(layer)

        @tf.autograph.experimental.do_not_convert
        def call(*args, **kwargs):
            del layer.call  # The rule calls the layer itself.
            try:
                base_vars, outputs, sqr_norm_fn = rule(layer, args, kwargs, self._tape)
            except UnsupportedLayerError as error:
                raise UnsupportedLayerError(
                    f'layer {layer.name!r} ({type(layer).__name__}) {error}'
                ) from error
            finally:
                layer.call = call
            self._calls.append(_Call(layer, base_vars, sqr_norm_fn.bind))
            return outputs

        return call
