"""Per-example gradients of a batch from one forward and one backward pass."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Union

import tensorflow as tf

from tf_efsgd.privacy.layer_norms.registry import rule_of
from tf_efsgd.privacy.layer_norms.rule import PerExample, UnsupportedLayerError

_OTHER_ROWS = (
    'is called on a batch axis that is not that of the losses: it holds views, patches or time '
    'steps of a record, or something that does not depend on the records'
)
Models = Union[tf.keras.Model, Sequence[tf.keras.Model]]


def check_layers(models: Models, variables: Sequence[tf.Variable]) -> None:
    """Checks that every variable belongs to a layer with a rule.

    Args:
      models: the built model, or several.
      variables: what the step updates.

    Raises:
      UnsupportedLayerError: if not; it names the layer without a rule, or the variable without a
        layer.
    """
    owners: dict[Any, list[tf.keras.layers.Layer]] = {}
    for layer in _layers_with_variables(models):
        for variable in layer._trainable_weights:
            owners.setdefault(variable.ref(), []).append(layer)
    for variable in variables:
        layers = owners.get(variable.ref(), [])
        if len(layers) != 1:
            what = 'no layer' if not layers else 'several layers'
            raise UnsupportedLayerError(f'variable {variable.name} belongs to {what} of the model')
        if rule_of(layers[0]) is None:
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

    It takes one forward pass, and one backward pass with respect to the outputs of the layers.
    Layers may be nested in other models, and may be called several times.

    Args:
      models: one model or several, whose layers `losses_of` calls; no layer may mix examples.
      losses_of: calls the models on a batch and returns the loss of every example, float32 [batch].
      variables: what the step updates; each belongs to one layer.

    Returns:
      Parts, see `rule`: together they cover all variables that the loss uses.

    Raises:
      UnsupportedLayerError: if a layer has no rule, or none for the way it is called.
      ValueError: if there is not one loss for every example.
      tf.errors.InvalidArgumentError: while the graph runs, if a batch axis only then turns out not
        to be that of the examples.
    """
    check_layers(models, variables)
    switch_off_tensor_float_32()
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
    by_layer: dict[int, list[PerExample]] = {}
    for call, gradient in zip(calls, gradients):
        by_layer.setdefault(id(call.layer), []).append(call.bind(gradient))
    wanted = {variable.ref() for variable in variables}
    parts = []
    for of_calls in by_layer.values():
        for of_part in zip(*of_calls):
            if any(variable.ref() in wanted for variable in of_part[0].variables):
                parts.append(of_part[0] if len(of_part) == 1 else type(of_part[0]).join(of_part))
    return parts


def activations(
    models: Models,
    losses_of: Callable[[], tf.Tensor],
    variables: Sequence[tf.Variable],
) -> tf.Tensor:
    """What the layers put out in the pass that `gradients_by_layer` makes: PRIVATE for records.

    Args:
      models: as in `gradients_by_layer`.
      losses_of: as in `gradients_by_layer`.
      variables: what the step updates.

    Returns:
      float32 [batch, ...]: for every example its loss, and what each call of a layer that owns one
      of the variables puts out, before its activation.
    """
    tape = tf.GradientTape(watch_accessed_variables=False)
    with tape, _Recorder(models, tape) as calls:
        tape.watch(variables)
        losses = losses_of()
    outputs = [call.base_vars for call in calls]
    gradients = tape.gradient(losses, outputs, unconnected_gradients='zero')
    count = tf.shape(losses)[0]
    with tf.control_dependencies(gradients):  # Without them the graph would be another one.
        flat = [tf.reshape(values, [count, -1]) for values in (losses, *outputs)]
    return tf.concat(flat, axis=1)


def clipped_sum(
    models: Models,
    losses_of: Callable[[], tf.Tensor],
    variables: Sequence[tf.Variable],
    weights: tf.Tensor,
    lengths: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    """A clipped sum of the gradients of `gradients_by_layer`: to try them, never to release it.

    Args:
      models: as in `gradients_by_layer`.
      losses_of: as in `gradients_by_layer`.
      variables: what the step updates.
      weights: float32 [batch], >= 0, the factors of the gradients.
      lengths: float32 [batch], the largest norms that the weighted gradients may have.

    Returns:
      (the norms of the gradients, float32 [batch]; bool [batch], whether clipping would use this
      norm, or that of the gradient itself; the sum, per variable float32 [*variable.shape]).
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
    """Reads from an error which layer `gradients_by_layer` refused in a running graph, and why.

    Args:
      error: that a graph raised while it ran.

    Returns:
      The layer and the reason; None if the error is about something else.
    """
    text = error.message.replace('\\', '')  # TensorFlow escapes the quotes.
    found = re.search(r"layer '[^']*' \(\w+\) " + re.escape(_OTHER_ROWS), text)
    return found[0] if found else None


def _ones_if_rows_are_examples(calls: Sequence[_Call], losses: tf.Tensor) -> tf.Tensor:
    """Ones, [batch], with which the backward pass begins.

    Rules clip rows of a layer's output. If views or patches of one example were rows of their own,
    that example would move a sum by one clipping norm for each of them. If all examples shared one
    row, they would be clipped as one. No message says how many rows there are: for a Poisson sample
    that is private.
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
    # XLA drops assertions, so NaN takes their place: a gradient that is NaN counts as zero.
    return tf.where(tf.reduce_all(tf.stack(are_examples)), ones, math.nan)


def switch_off_tensor_float_32() -> None:
    """With it a GPU rounds products to 10 bits: norms could be too small, and clips too weak."""
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
      models: the models that the layers belong to.
      tape: the tape that records the calls.
    """

    def __init__(self, models: Models, tape: tf.GradientTape):
        self._layers = _layers_with_variables(models)
        self._tape = tape
        self._calls: list[_Call] = []

    def __enter__(self) -> list[_Call]:
        for layer in self._layers:
            if rule_of(layer) is not None:
                layer.call = self._recorded(layer)
        return self._calls

    def __exit__(self, *_):
        for layer in self._layers:
            layer.__dict__.pop('call', None)

    def _recorded(self, layer):
        rule = rule_of(layer)

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
