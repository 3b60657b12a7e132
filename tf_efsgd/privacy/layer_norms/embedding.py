"""The rule for `Embedding`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf_efsgd.privacy.layer_norms.rule import Products, RegistryOutput, SquaredNorms, only_input


def embedding_computation(
    layer_instance: tf.keras.layers.Embedding,
    input_args: Sequence[Any],
    input_kwargs: Mapping[str, Any],
    tape: tf.GradientTape,
    num_microbatches: tf.Tensor | None = None,
) -> RegistryOutput:
    """The rule for `Embedding`: a `Dense` of one-hot vectors.

    TF Privacy's own rule allows only one call in a pass, and no XLA.

    Args:
      layer_instance: the layer.
      input_args: (ids, integers [batch, ...],).
      input_kwargs: empty.
      tape: the tape that records the call.
      num_microbatches: None, or the number of microbatches of equal size.

    Returns:
      (base_vars float32 [batch, ..., p], outputs, `SquaredNorms`).
    """
    ids = only_input(input_args, input_kwargs)
    outputs = layer_instance.call(ids)
    tape.watch(outputs)
    positions = math.prod(ids.shape[1:]) if None not in ids.shape[1:] else -1

    def bind(gradients):
        count, size = layer_instance.embeddings.shape
        a = tf.one_hot(tf.reshape(tf.cast(ids, tf.int32), [-1, 1, positions]), count)
        g = tf.reshape(gradients, [-1, 1, positions, size])
        return [Products(layer_instance.embeddings, a, g, lambda sums: sums[:, 0])]

    return outputs, outputs, SquaredNorms(bind, num_microbatches)
