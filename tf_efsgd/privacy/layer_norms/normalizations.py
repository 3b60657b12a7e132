"""The rules for normalizations whose statistics come from one example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf_efsgd.privacy.layer_norms.rule import (
    PerExample,
    RegistryOutput,
    SquaredNorms,
    UnsupportedLayerError,
    only_input,
)


def group_normalization_computation(
    layer_instance: tf.keras.layers.GroupNormalization,
    input_args: Sequence[Any],
    input_kwargs: Mapping[str, Any],
    tape: tf.GradientTape,
    num_microbatches: tf.Tensor | None = None,
) -> RegistryOutput:
    """The rule for `GroupNormalization`, whose statistics come from one example.

    Args:
      layer_instance: the layer.
      input_args: (inputs float32 [batch, ..., C],).
      input_kwargs: empty.
      tape: the tape that records the call.
      num_microbatches: None, or the number of microbatches of equal size.

    Returns:
      (base_vars float32 [batch, ..., C], outputs, `SquaredNorms`).
    """
    inputs = only_input(input_args, input_kwargs)
    axis = layer_instance.axis % inputs.shape.rank
    scale, center = layer_instance.scale, layer_instance.center
    layer_instance.scale = layer_instance.center = False
    try:
        normalized = layer_instance.call(inputs)
    finally:
        layer_instance.scale, layer_instance.center = scale, center
    gamma = layer_instance.gamma if scale else None
    beta = layer_instance.beta if center else None
    return _scale_and_center(normalized, gamma, beta, [axis], tape, num_microbatches)


def layer_normalization_computation(
    layer_instance: tf.keras.layers.LayerNormalization,
    input_args: Sequence[Any],
    input_kwargs: Mapping[str, Any],
    tape: tf.GradientTape,
    num_microbatches: tf.Tensor | None = None,
) -> RegistryOutput:
    """The rule for `LayerNormalization`.

    TF Privacy's own rule allows only one call in a pass, and needs both scale and center.

    Args:
      layer_instance: the layer.
      input_args: (inputs float32 [batch, ..., C],).
      input_kwargs: empty.
      tape: the tape that records the call.
      num_microbatches: None, or the number of microbatches of equal size.

    Returns:
      (base_vars float32 [batch, ..., C], outputs, `SquaredNorms`).

    Raises:
      UnsupportedLayerError: if the statistics are over the batch.
    """
    inputs = only_input(input_args, input_kwargs)
    axes = list(layer_instance.axis)
    if 0 in axes:
        raise UnsupportedLayerError('mixes the examples of a batch')
    gamma, beta = layer_instance.gamma, layer_instance.beta
    # A plain assignment would make Keras untrack the two variables.
    layer_instance.__dict__.update(gamma=None, beta=None)
    try:
        normalized = layer_instance.call(inputs)
    finally:
        layer_instance.__dict__.update(gamma=gamma, beta=beta)
    return _scale_and_center(normalized, gamma, beta, axes, tape, num_microbatches)


def _scale_and_center(
    normalized: tf.Tensor,
    gamma: tf.Variable | None,
    beta: tf.Variable | None,
    axes: Sequence[int],
    tape: tf.GradientTape,
    num_microbatches: tf.Tensor | None,
) -> RegistryOutput:
    """What a rule returns for a layer that multiplies by gamma and adds beta, along these axes."""
    rank = normalized.shape.rank
    shape = [normalized.shape[i] if i in axes else 1 for i in range(rank)]
    others = [i for i in range(1, rank) if i not in axes]
    outputs = normalized
    if gamma is not None:
        outputs = outputs * tf.reshape(gamma, shape)
    if beta is not None:
        outputs = outputs + tf.reshape(beta, shape)
    tape.watch(outputs)

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
