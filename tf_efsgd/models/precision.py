"""Copies networks to another precision, for generated images alone and never for records.

What sees a record or enters a release stays in float32, float64 and integers, so the sensitivity of
a private step is the same as without this. Weights are float32 in either case.
"""

from __future__ import annotations

import tensorflow as tf

# They compute means and variances over thousands of numbers: 8 bits would not hold the sums.
_NORMALIZATIONS = (
    tf.keras.layers.BatchNormalization,
    tf.keras.layers.GroupNormalization,
    tf.keras.layers.LayerNormalization,
)


def copy_in(model: tf.keras.Model, policy: str) -> tf.keras.Model:
    """Copies a network; the copy has the same weights in variables of its own.

    Args:
      model: a functional model, e.g. from `build_generator`; models within it are functional too. A
        model of another kind can only be copied to 'float32'.
      policy: the precision of the copy's layers, 'float32' or 'mixed_bfloat16'. Normalizations and
        the output layers compute in float32 in either case.

    Returns:
      A model with the same inputs and outputs, float32, and the same names of layers.

    Raises:
      ValueError: if Keras cannot copy it, or not to this policy.
    """
    if model._is_graph_network:
        copy = _clone(model, policy)
    elif policy == 'float32':
        copy = tf.keras.models.clone_model(model)
    else:
        raise ValueError(
            f'Only a functional model can be copied into {policy}. Received: {model.name!r}.'
        )
    copy.set_weights(model.get_weights())
    return copy


def _clone(model: tf.keras.Model, policy: str) -> tf.keras.Model:
    put_out = {id(output._keras_history.layer) for output in tf.nest.flatten(model.output)}

    def clone(layer):
        if isinstance(layer, tf.keras.Model) and layer._is_graph_network:
            return _clone(layer, policy)
        stays = id(layer) in put_out or isinstance(layer, _NORMALIZATIONS)
        wanted = 'float32' if stays else policy
        config, computes_in = layer.get_config(), layer.compute_dtype
        is_floating = computes_in is not None and tf.as_dtype(computes_in).is_floating
        if is_floating and layer.dtype_policy.name != wanted:
            config['dtype'] = wanted
        return type(layer).from_config(config)

    return tf.keras.models.clone_model(model, clone_function=clone)
