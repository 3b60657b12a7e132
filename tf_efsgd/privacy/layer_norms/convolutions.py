"""The rules for convolutions: plain, transposed and depthwise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf_efsgd.privacy.layer_norms.patches import (
    Convolution,
    check_channels_last,
    count_positions,
    in_kernel_order,
    kernel_gradient,
    part_of,
    patches_of,
    split_groups,
)
from tf_efsgd.privacy.layer_norms.rule import (
    RegistryOutput,
    SquaredNorms,
    UnsupportedLayerError,
    before_activation,
    bias_parts,
    only_input,
)


def conv2d_computation(
    layer_instance: tf.keras.layers.Conv2D,
    input_args: Sequence[Any],
    input_kwargs: Mapping[str, Any],
    tape: tf.GradientTape,
    num_microbatches: tf.Tensor | None = None,
) -> RegistryOutput:
    """The rule for `Conv2D`: any strides, dilation, groups and padding, channels last.

    Args:
      layer_instance: the layer.
      input_args: (inputs float32 [batch, H, W, C],).
      input_kwargs: empty.
      tape: the tape that records the call.
      num_microbatches: None, or the number of microbatches of equal size.

    Returns:
      (base_vars float32 [batch, h, w, filters] before the activation, outputs, `SquaredNorms`).

    Raises:
      UnsupportedLayerError: if channels come first.
    """
    inputs = only_input(input_args, input_kwargs)
    check_channels_last(layer_instance)
    base_vars, outputs = before_activation(layer_instance, inputs, tape)

    def bind(gradients):
        kernel, groups = layer_instance.kernel, layer_instance.groups
        size, in_group = kernel.shape[0] * kernel.shape[1], kernel.shape[2]

        def factors(inputs, gradients):
            a = patches_of(inputs, layer_instance)
            a = tf.reshape(a, [-1, count_positions(gradients), size, groups, in_group])
            a = tf.transpose(a, [0, 3, 1, 2, 4]) if groups > 1 else a
            a = tf.reshape(a, [-1, groups, count_positions(gradients), size * in_group])
            return a, split_groups(gradients, groups)

        def to_kernel(sums):  # [K, n, m, p] -> [K, kh, kw, C / n, n p]
            return _kernel_of_groups(sums, kernel, inputs, layer_instance)

        public_sum = kernel_gradient(layer_instance, kernel, inputs, gradients)
        call = Convolution(layer_instance, kernel, inputs, gradients, factors, public_sum)
        return [part_of(call, to_kernel), *bias_parts(layer_instance, gradients)]

    return base_vars, outputs, SquaredNorms(bind, num_microbatches)


def conv2d_transpose_computation(
    layer_instance: tf.keras.layers.Conv2DTranspose,
    input_args: Sequence[Any],
    input_kwargs: Mapping[str, Any],
    tape: tf.GradientTape,
    num_microbatches: tf.Tensor | None = None,
) -> RegistryOutput:
    """The rule for `Conv2DTranspose`: a convolution from its output to its input.

    Args:
      layer_instance: the layer.
      input_args: (inputs float32 [batch, h, w, C],).
      input_kwargs: empty.
      tape: the tape that records the call.
      num_microbatches: None, or the number of microbatches of equal size.

    Returns:
      (base_vars float32 [batch, H, W, filters] before the activation, outputs, `SquaredNorms`).

    Raises:
      UnsupportedLayerError: if channels come first, or the size of the output has been forced.
    """
    inputs = only_input(input_args, input_kwargs)
    check_channels_last(layer_instance)
    if layer_instance.output_padding is not None:
        raise UnsupportedLayerError('has output_padding')
    base_vars, outputs = before_activation(layer_instance, inputs, tape)

    def bind(gradients):
        kernel = layer_instance.kernel  # [kh, kw, filters, C]

        def factors(gradients, inputs):
            a = patches_of(gradients, layer_instance)
            a = tf.reshape(a, [-1, 1, count_positions(inputs), math.prod(kernel.shape[:3])])
            return a, tf.reshape(inputs, [-1, 1, count_positions(inputs), kernel.shape[3]])

        def to_kernel(sums):  # [K, 1, m, p] -> [K, kh, kw, filters, C]
            sums = in_kernel_order(sums[:, 0], gradients, layer_instance)
            return tf.reshape(sums, [-1, *kernel.shape])

        public_sum = kernel_gradient(layer_instance, kernel, inputs, gradients)
        call = Convolution(layer_instance, kernel, gradients, inputs, factors, public_sum)
        return [part_of(call, to_kernel), *bias_parts(layer_instance, gradients)]

    return base_vars, outputs, SquaredNorms(bind, num_microbatches)


def depthwise_conv2d_computation(
    layer_instance: tf.keras.layers.DepthwiseConv2D,
    input_args: Sequence[Any],
    input_kwargs: Mapping[str, Any],
    tape: tf.GradientTape,
    num_microbatches: tf.Tensor | None = None,
) -> RegistryOutput:
    """The rule for `DepthwiseConv2D`: every channel is a group of its own.

    Args:
      layer_instance: the layer.
      input_args: (inputs float32 [batch, H, W, C],).
      input_kwargs: empty.
      tape: the tape that records the call.
      num_microbatches: None, or the number of microbatches of equal size.

    Returns:
      (base_vars float32 [batch, h, w, C depth_multiplier], outputs, `SquaredNorms`).

    Raises:
      UnsupportedLayerError: if channels come first.
    """
    inputs = only_input(input_args, input_kwargs)
    check_channels_last(layer_instance)
    base_vars, outputs = before_activation(layer_instance, inputs, tape)

    def bind(gradients):
        kernel = layer_instance.depthwise_kernel  # [kh, kw, C, depth_multiplier]
        size, channels = kernel.shape[0] * kernel.shape[1], kernel.shape[2]

        def factors(inputs, gradients):
            a = patches_of(inputs, layer_instance)
            a = tf.reshape(a, [-1, count_positions(gradients), size, channels])
            return tf.transpose(a, [0, 3, 1, 2]), split_groups(gradients, channels)

        def to_kernel(sums):  # [K, C, kh kw, multiplier] -> [K, kh, kw, C, multiplier]
            return _kernel_of_groups(sums, kernel, inputs, layer_instance)

        public_sum = kernel_gradient(layer_instance, kernel, inputs, gradients)
        call = Convolution(layer_instance, kernel, inputs, gradients, factors, public_sum)
        return [part_of(call, to_kernel), *bias_parts(layer_instance, gradients)]

    return base_vars, outputs, SquaredNorms(bind, num_microbatches)


def _kernel_of_groups(sums, kernel, inputs, layer):
    """Lays out sums [K, groups, positions, outputs of a group] as kernels [K, *kernel.shape]."""
    sums = in_kernel_order(tf.transpose(sums, [0, 2, 1, 3]), inputs, layer)
    return tf.reshape(sums, [-1, *kernel.shape])
