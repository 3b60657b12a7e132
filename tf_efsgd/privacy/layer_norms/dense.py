"""The rule for `Dense`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf_efsgd.privacy.layer_norms.rule import (
    Products,
    RegistryOutput,
    SquaredNorms,
    before_activation,
    bias_parts,
    only_input,
)


def dense_computation(
    layer_instance: tf.keras.layers.Dense,
    input_args: Sequence[Any],
    input_kwargs: Mapping[str, Any],
    tape: tf.GradientTape,
    num_microbatches: tf.Tensor | None = None,
) -> RegistryOutput:
    """The rule for `Dense`.

    TF Privacy's own rule uses only the Gram form.

    Args:
      layer_instance: the layer.
      input_args: (inputs float32 [batch, ..., m],).
      input_kwargs: empty.
      tape: the tape that records the call.
      num_microbatches: None, or the number of microbatches of equal size.

    Returns:
      (base_vars float32 [batch, ..., p] before the activation, outputs, `SquaredNorms`).

    Raises:
      UnsupportedLayerError: if the call is of another kind.
    """
    inputs = only_input(input_args, input_kwargs)
    base_vars, outputs = before_activation(layer_instance, inputs, tape)
    positions = math.prod(inputs.shape[1:-1]) if None not in inputs.shape[1:-1] else -1

    def bind(gradients):
        fan_in, fan_out = layer_instance.kernel.shape
        g = tf.reshape(gradients, [-1, 1, positions, fan_out])
        a = tf.reshape(inputs, [-1, 1, positions, fan_in])
        kernel = Products(layer_instance.kernel, a, g, lambda sums: sums[:, 0])
        return [kernel, *bias_parts(layer_instance, gradients)]

    return base_vars, outputs, SquaredNorms(bind, num_microbatches)
