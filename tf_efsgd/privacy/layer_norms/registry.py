"""The table of all rules: which layer has which. A new rule is entered here."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
from tensorflow_privacy.privacy.fast_gradient_clipping import layer_registry

from tf_efsgd.privacy.layer_norms.convolutions import (
    conv2d_computation,
    conv2d_transpose_computation,
    depthwise_conv2d_computation,
)
from tf_efsgd.privacy.layer_norms.dense import dense_computation
from tf_efsgd.privacy.layer_norms.embedding import embedding_computation
from tf_efsgd.privacy.layer_norms.normalizations import (
    group_normalization_computation,
    layer_normalization_computation,
)

# Layer class -> rule.
_RULES = {
    tf.keras.layers.Dense: dense_computation,
    tf.keras.layers.Conv2D: conv2d_computation,
    tf.keras.layers.Conv2DTranspose: conv2d_transpose_computation,
    tf.keras.layers.DepthwiseConv2D: depthwise_conv2d_computation,
    tf.keras.layers.GroupNormalization: group_normalization_computation,
    tf.keras.layers.LayerNormalization: layer_normalization_computation,
    tf.keras.layers.Embedding: embedding_computation,
}


def rule_of(layer: tf.keras.layers.Layer) -> Callable | None:
    """The rule of a layer's class, or of its `computes_as`. None if there is no rule."""
    kind = type(layer)
    return _RULES.get(vars(kind).get('computes_as', kind))


def make_layer_registry() -> layer_registry.LayerRegistry:
    """Makes a registry of all rules in TF Privacy's form."""
    registry = layer_registry.LayerRegistry()
    for layer_class, rule in _RULES.items():
        registry.insert(layer_class, rule)
    return registry
