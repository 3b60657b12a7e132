"""Error-feedback DP-SGD as a Keras optimizer: clip, release, feed back, update.

`make_error_feedback_optimizer_class` is the counterpart of TF Privacy's
`make_vectorized_keras_optimizer_class`. `private_optimizer.PrivateOptimizer` is what the classes
have in common, `private_step` is what one step does, and `mechanism.Mechanism` has its numbers.

Formal guarantees:
  - One step is one Gaussian mechanism, `dp_event`, on the sampled records.
  - E holds noisy quantities only; it, the update and all later state are post-processing.
    (Not with error_feedback='hidden', the published variant: see `feed_back_hidden`, and
    `Mechanism.step_event` for what it really spends.)
  - With several replicas the sums are all-reduced first; then every replica computes the same
    noise, once for all of them, and the same update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf

from tf_efsgd.privacy import independence, layer_norms, noise, random_weights
from tf_efsgd.privacy.private_optimizer import PrivateOptimizer

# The docstring of the classes that are made.
_DOC = """Error-feedback DP-SGD over `{base}`.

```python
optimizer = tf_efsgd.{name}(
    l2_norm_clip=1.0, noise_multiplier=1.1, expected_batch_size=256, learning_rate=0.1)
loss = tf.keras.losses.SparseCategoricalCrossentropy(
    from_logits=True, reduction=tf.keras.losses.Reduction.NONE)
model.compile(optimizer=optimizer, loss=loss)
```

Epsilon follows from `dp_event`, the sampling of the batches (Poisson with probability
`expected_batch_size` / N) and the number of steps.

The drop-in way has sharp edges. It presumes that every record's gradient is finite: in the
backward pass of a loss VECTOR one record's NaN or infinity reaches all the others (as in
TF Privacy's optimizers), and then all count as zero. Bound the loss, or use `clipped_sums`
and `release`, where only that record counts as zero. The optimizer cannot see the model
either: it must have no layers that mix examples (BatchNormalization) or whose randomness
depends on a record's place in the batch (Dropout); `why_not_alone` finds them. A batch of
another size may be rounded in another way; where the model has a kink (ReLU), that can change
the whole gradient of a record that stands at the kink. `EFSGDGan` computes records in padded
parts of one tried size; with this optimizer, pad the batches to one size yourself. A Poisson
sample may be empty, and its step is a step like any other: where a layer of the model fails
on no records, use `drop_in.PoissonTraining`.
"""


def new_noise(secure: bool = False) -> noise.NoiseKey | noise.SecureNoise:
    """Makes a source of noise for `release`.

    Args:
      secure: whether every bit comes from the operating system, instead of a fresh Philox key.
    """
    return noise.SecureNoise() if secure else noise.NoiseKey()


def draw_for_records(
    shapes: Mapping[str, tf.TensorShape],
    num_records: tf.Tensor,
    step_noise: noise.StepNoise,
    first_record: tf.Tensor | int = 0,
) -> dict[str, tf.Tensor]:
    """Draws secret standard normals for this replica's records, which their losses may use.

    Call it in a replica context. `noise.normals_of_records` says why the step keeps its
    sensitivity.

    Args:
      shapes: of one record's inputs, static, by name; always in the same order.
      num_records: int32 [], the number of records in this part.
      step_noise: of this step; the noise of `release` is drawn from it too, at other counters.
      first_record: int32 [], how many of the replica's records came before in this step.

    Returns:
      float32 [num_records, *shape] by name.
    """
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return {
        name: noise.normals_of_records(
            num_records,
            shape,
            step_noise=step_noise,
            variable=i,
            replica=replica,
            first_row=first_record,
        )
        for i, (name, shape) in enumerate(shapes.items())
    }


def activations(
    models: layer_norms.Models,
    losses_of: Callable[[], tf.Tensor],
    variables: Sequence[tf.Variable],
) -> tf.Tensor:
    """What the layers put out in the pass of `batch_sums`, see `layer_norms.activations`."""
    return layer_norms.activations(models, losses_of, variables)


def all_layers_shown(compute: Any, images: tf.Tensor) -> AbstractContextManager[None]:
    """Random weights by which every layer shows in a loss, see `random_weights`."""
    return random_weights.all_layers_shown(compute, images)


def why_not_fast(
    models: layer_norms.Models,
    losses_of: independence.LossesOf,
    variables: Sequence[tf.Variable],
    records: Any,
    crowds: Sequence[Any] = (),
) -> str | None:
    """Says why `batch_sums` cannot clip this loss.

    The loss is tried on made-up records, in batches of two sizes, with the weights as they are and
    with random ones: what `batch_sums` computes for each record must be the gradient of its own
    loss. This finds penalties on gradients, tied weights and layers behind a `tf.function`, which
    the calls of the layers do not show.

    Args:
      models: as in `batch_sums`.
      losses_of: maps records [batch, ...] to the WHOLE loss of each, float32 [batch].
      variables: what the step updates.
      records: made up, `independence.NUM_RECORDS` of any kind, all different; at least 3.
      crowds: made up; clipped sums are tried in them, see `independence.why_not_alone`.

    Returns:
      Which layer is in the way and why; None if nothing shows that one is.
    """

    def clipped_sum(batch, weights, lengths):
        return layer_norms.clipped_sum(
            models, lambda: losses_of(batch), variables, weights, lengths
        )

    try:
        layer_norms.check_layers(models, variables)
        reason = independence.why_not_alike(clipped_sum, losses_of, variables, records, crowds)
    except layer_norms.UnsupportedLayerError as error:
        return str(error)
    except tf.errors.InvalidArgumentError as error:
        return layer_norms.reason_of(error) or f'it fails on this loss ({_first_line(error)})'
    except Exception as error:  # TensorFlow may raise anything on calls that no rule expects.
        return f'it fails on this loss ({_first_line(error)})'
    return reason and f'one backward pass misses something: {reason}'


def why_not_alone(
    losses_of: independence.LossesOf,
    variables: Sequence[tf.Variable],
    records: Any,
    run_eagerly: bool = False,
    crowds: Sequence[Any] = (),
) -> str | None:
    """Says why the private loss of a record is not its own, see `independence.why_not_alone`."""
    return independence.why_not_alone(losses_of, variables, records, run_eagerly, crowds)


def _first_line(error: Exception) -> str:
    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    lines = text.strip().splitlines() or ['']
    return f'{type(error).__name__}: {lines[0]}'


def make_error_feedback_optimizer_class(cls: type) -> type:
    """Given a legacy Keras optimizer class, returns its error-feedback DP subclass.

    Args:
      cls: subclass of `tf.keras.optimizers.legacy.Optimizer`, e.g. `legacy.SGD`.

    Returns:
      A subclass of `cls` whose constructor takes the arguments of the mechanism, then those of
      `cls`. It can be used in two ways, with the same mechanism:
        - `compile` / `minimize` with a loss vector [batch] (drop-in for TF Privacy's);
        - `clipped_sums` and `release` with the loss as a function of one record (fast).

    Raises:
      TypeError: if `cls` is no legacy Keras optimizer, or is made by this function.
    """
    is_legacy = isinstance(cls, type) and issubclass(cls, tf.keras.optimizers.legacy.Optimizer)
    if not is_legacy or issubclass(cls, PrivateOptimizer):
        raise TypeError(
            'Give a class from tf.keras.optimizers.legacy that is not private already: the '
            f'mechanism overrides its _compute_gradients. Received: {cls!r}.'
        )
    name = f'ErrorFeedbackDPKeras{cls.__name__}Optimizer'
    doc = _DOC.format(base=f'tf.keras.optimizers.legacy.{cls.__name__}', name=name)
    return type(name, (PrivateOptimizer, cls), {'__doc__': doc, '__module__': __name__})


ErrorFeedbackDPKerasSGDOptimizer = make_error_feedback_optimizer_class(
    tf.keras.optimizers.legacy.SGD
)
ErrorFeedbackDPKerasAdamOptimizer = make_error_feedback_optimizer_class(
    tf.keras.optimizers.legacy.Adam
)
