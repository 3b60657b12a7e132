"""Convolutions as products of patches, which are made for one block of examples at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_efsgd.privacy.layer_norms.rule import (
    PerExample,
    Products,
    Take,
    UnsupportedLayerError,
    before_activation,
)

# The bytes of patches that are made at a time. It was measured that smaller blocks take longer, and
# larger ones more memory.
_BLOCK_BYTES = 2**21


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One call of a convolution, from images to positions.

    Attributes:
      layer: the convolution.
      kernel: its kernel.
      images: what the kernel moves over, float32 [batch, H, W, C].
      positions: the values at its positions, float32 [batch, h, w, ...].
      factors: maps these two, of any examples, to A and G as `Products` takes them.
      public_sum: maps weights [batch] to the sum of weighted gradients, shaped like the kernel, as
        TensorFlow computes it: over examples and positions at once.
    """

    layer: tf.keras.layers.Layer
    kernel: tf.Variable
    images: tf.Tensor
    positions: tf.Tensor
    factors: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    public_sum: Callable[[tf.Tensor], tf.Tensor]

    @property
    def bytes_of_example(self) -> int | None:
        """The size of A and G of one example; None if that is not known."""
        height, width, fan_out = self.positions.shape[1:]
        if height is None or width is None:
            return None
        fan_in = math.prod(self.layer.kernel_size) * self.images.shape[-1]
        return 4 * height * width * (fan_in + fan_out)


class Patches:
    """`Products` of convolutions, whose A is many times larger than the images it is cut from.

    A is made for some examples at a time, first for the norms and again for the sums. Norms and
    sums use the same products. A convolution's own gradient adds up in another order: where
    positions cancel, it could release something whose norm clipping takes for zero.

    Args:
      calls: all calls of one layer.
      to_variable: as in `Products`.
    """

    def __init__(self, calls: Sequence[Convolution], to_variable: Callable[[tf.Tensor], tf.Tensor]):
        self.variables = [calls[0].kernel]
        self._calls = list(calls)
        self._to_variable = to_variable
        self._found: list[tf.Tensor] | None = None

    def products(self, take: Callable[[tf.Tensor], tf.Tensor] = lambda x: x) -> Products:
        """The `Products` of the examples that `take` takes out of [batch, ...]."""
        factors = [call.factors(take(call.images), take(call.positions)) for call in self._calls]
        inputs, gradients = (tf.concat(of_calls, axis=2) for of_calls in zip(*factors))
        return Products(self.variables[0], inputs, gradients, self._to_variable)

    def _find(self) -> list[tf.Tensor]:
        """Computes [squared norms, whether they are exact], once."""
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

    def by_microbatch(self, count: tf.Tensor) -> Products:
        """As in `PerExample`."""
        return self.products().by_microbatch(count)

    @classmethod
    def join(cls, parts: Sequence[Patches]) -> Patches:
        """As in `Products`."""
        return cls([call for part in parts for call in part._calls], parts[0]._to_variable)


def _by_blocks(function, like: tf.Tensor, most: int | None) -> list[tf.Tensor]:
    """Applies a function to blocks of examples, one after the other.

    Args:
      function: gets a function that takes the examples of a block out of [batch, ...], and returns
        [float32, bool] tensors [examples of the block].
      like: any tensor [batch, ...].
      most: the largest number of examples in a block; None: all of them.

    Returns:
      The tensors of all examples, [batch].
    """
    if most is None or (like.shape[0] is not None and like.shape[0] <= most):
        return function(lambda x: x)
    batch = tf.shape(like)[0]
    count = tf.maximum(1, -(-batch // most))
    # XLA wants blocks of one size, so the last one begins earlier and overlaps the one before it.
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


def part_of(call: Convolution, to_kernel: Callable[[tf.Tensor], tf.Tensor]) -> Products | Patches:
    """Makes the part of a convolution's kernel: `Products` if patches are pixels, else `Patches`.

    Args:
      call: of the convolution.
      to_kernel: as `to_variable` in `Products`.

    Returns:
      The part.
    """
    if call.layer.kernel_size == call.layer.strides == (1, 1):
        factors = call.factors(call.images, call.positions)
        return Products(call.kernel, *factors, to_kernel)
    return Patches([call], to_kernel)


def kernel_gradient(
    layer: tf.keras.layers.Layer, kernel: tf.Variable, inputs: tf.Tensor, gradients: tf.Tensor
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Makes the function from weights [batch] to the weighted sum of a kernel's gradients."""

    def weighted_sum(weights):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(kernel)
            # The value of the call is not used, so a graph does not compute it.
            base_vars, _ = before_activation(layer, inputs, tape)
        return tape.gradient(base_vars, kernel, gradients * tf.reshape(weights, [-1, 1, 1, 1]))

    return weighted_sum


def check_channels_last(layer: tf.keras.layers.Layer) -> None:
    """Raises `UnsupportedLayerError` if a layer has its channels first."""
    if layer.data_format != 'channels_last':
        raise UnsupportedLayerError('has its channels first')


def count_positions(features: tf.Tensor) -> int:
    """H W of [batch, H, W, C]; -1 when it is not known."""
    height, width = features.shape[1:3]
    return -1 if height is None or width is None else height * width


def split_groups(features: tf.Tensor, groups: int) -> tf.Tensor:
    """Reshapes [batch, H, W, n p] to [batch, n, H W, p]."""
    fan_out = features.shape[-1] // groups
    split = tf.reshape(features, [-1, count_positions(features), groups, fan_out])
    if groups == 1:
        return tf.reshape(split, [-1, 1, count_positions(features), fan_out])
    return tf.transpose(split, [0, 2, 1, 3])


def patches_of(images: tf.Tensor, layer: tf.keras.layers.Layer) -> tf.Tensor:
    """Cuts out what a convolution sees at each of its positions.

    Args:
      images: what the kernel moves over, float32 [batch, H, W, C].
      layer: a Keras convolution, channels last.

    Returns:
      [batch, h, w, kh kw C]; see `in_kernel_order`.
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
    """The side of the blocks of pixels that `patches_of` puts together; None: single pixels."""
    (height, width), strides = layer.kernel_size, layer.strides
    stride = strides[0]
    in_blocks = strides == (stride, stride) and stride > 1 and layer.dilation_rate == (1, 1)
    if in_blocks and height % stride == width % stride == 0 and None not in images.shape[1:3]:
        return stride
    return None


def in_kernel_order(sums: tf.Tensor, images: tf.Tensor, layer: tf.keras.layers.Layer) -> tf.Tensor:
    """Brings axis 1 of [K, kh kw ..., ...] from the order of `patches_of` to that of a kernel."""
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
    """`patches_of` from blocks as large as the stride: it moves rows of memory, not pixels."""
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
    """Computes ([zeros before, zeros behind], positions) along one axis, as TensorFlow does."""
    if padding == 'valid':
        return [0, 0], (size - kernel) // stride + 1
    count = -(-size // stride)
    total = max((count - 1) * stride + kernel - size, 0)
    return [total // 2, total - total // 2], count
