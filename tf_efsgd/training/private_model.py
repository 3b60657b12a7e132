"""One private step for any loss of one record: what `EFSGDGan` is made on.

A subclass says which networks see records, what the whole private loss of every record is, and what
records look like. Here that loss is tried, clipped by record and added up, and the noise of a step
goes its straight way into the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_efsgd.data.images import to_float
from tf_efsgd.privacy import optimizer as private_optimizer

# The private loss is tried on so many records: two times three, so that three confirm the others.
_NUM_MADE_UP = 6
# The sizes of a made-up batch that is as large as those of the run, in records and in pixels.
_SMALLEST_CROWD, _LARGEST_CROWD, _LARGEST_CROWD_PIXELS = 20, 256, 2**20

CLIPPINGS = ('auto', 'fast', 'vectorized')


class PrivateModel(tf.keras.Model):
    """A model that learns from records through the clipped sums of private steps alone.

    A subclass sets, before `_prepare_private_step`: `discriminator_optimizer` (the optimizer of the
    private step), `_expected_batch_size`, `_microbatch_size`, `_noise` and `_measure_records`. It
    has `_private_models`, `_losses_of_records`, `_drawn_shapes`, `_record_shape`, `num_classes` and
    `_measured_sums_of_share`.

    Formal guarantees:
      - The private loss of a record is tried on made-up records before the first step: where it
        depends on other records, on layers that keep state, or is random by itself, it is refused.
      - The noise of a step is an argument of the graph, never a constant in it.
      - Without records a step is a full step with noise.
    """

    train_function: Callable[..., Any] | None  # Keras calls it, and makes it anew after None.

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._tried = Box()
        # In a box: Keras might track an attribute of plain tensors.
        self._measured = Box()

    def _private_models(self) -> list[tf.keras.Model]:
        """The networks that see records."""
        raise NotImplementedError

    def _losses_of_records(self, images, labels, draws=None) -> tf.Tensor:
        """The WHOLE private loss of every record, float32 [n].

        Args:
          images: float32 [n, H, W, C] in [-1, 1].
          labels: int32 [n].
          draws: from `_draw_for_records`.
        """
        raise NotImplementedError

    def _drawn_shapes(self) -> dict[str, tf.TensorShape]:
        """The shapes, by name and without batch, of the random inputs of each record's loss."""
        raise NotImplementedError

    def _record_shape(self) -> tuple[int, ...]:
        """Of one record's image."""
        raise NotImplementedError

    def _measured_sums_of_share(self, images, labels, draws) -> dict[str, tf.Tensor]:
        """Sums over records for diagnostics, among them 'batch_size': PRIVATE."""
        raise NotImplementedError

    @property
    def private_variables(self) -> list[tf.Variable]:
        """What a private step updates: the discriminator's, then those of a decoding generator."""
        return [v for model in self._private_models() for v in model.trainable_variables]

    def _check_networks(self) -> None:
        """Raises ValueError where a layer could carry something past the clip."""
        for model in self._private_models():
            refuse_other_precision(model)
            refuse_layers_with_state(model)

    def _prepare_private_step(self, clipping: str) -> None:
        """Tries the private loss and chooses how it is clipped; the end of `compile`.

        Args:
          clipping: see `EFSGDGan.compile`.

        Raises:
          ValueError: if the loss cannot be clipped by record, or not in the way that was asked for.
        """
        if self.is_private:
            self._check_private_loss()
        self.clipping = self._choose_clipping(clipping)
        self._tried.value = [variable.ref() for variable in self.private_variables]
        self._measured.value = None

    def _check_private_loss(self) -> None:
        reason = private_optimizer.why_not_alone(
            self._losses_of_made_up,
            self.private_variables,
            self._make_up_records(),
            self.run_eagerly,
            self._make_up_crowds(),
        )
        if reason is not None:
            raise ValueError(
                'The private loss of a record may depend on that record, the weights and what '
                '`draw_for_records` drew for it alone: clipping one gradient bounds nothing else. '
                'Leave out layers that mix the examples of a batch (GroupNormalization does not) '
                f'and layers that are random. Received: a loss of which {reason}.'
            )

    def _choose_clipping(self, clipping: str) -> str:
        if clipping not in CLIPPINGS:
            raise ValueError(f'clipping must be one of {CLIPPINGS}. Received: {clipping!r}.')
        if clipping == 'vectorized' or not self.is_private:
            return 'vectorized' if self.is_private else 'none'
        reason = private_optimizer.why_not_fast(
            self._private_models(),
            self._losses_of_made_up,
            self.private_variables,
            self._make_up_records(),
            self._make_up_crowds(),
        )
        if reason is None:
            return 'fast'
        if clipping == 'fast':
            raise ValueError(f"clipping='fast' is not possible: {reason}. Use 'auto'.")
        print(f'Clipping is vectorized, which is slower: {reason}.')
        return 'vectorized'

    def make_train_function(self, force: bool = False):
        """One step of `fit`: its noise enters the graph as an argument, never as a constant."""
        self._check_networks()
        if self._tried.value != [variable.ref() for variable in self.private_variables]:
            raise ValueError(
                'The layers that are trainable are no longer those that `compile` looked at: call '
                '`compile` again.'
            )
        if self.train_function is not None and not force:
            return self.train_function
        self._make_slots()
        noise = self._noise or private_optimizer.new_noise()
        shapes = [variable.shape for variable in self.private_variables]

        def step(iterator, step_noise):
            records = next(iterator)
            measured = self._measure(records, step_noise) if self._measure_records else {}
            return self.train_step((records, step_noise)), measured

        if not self.run_eagerly:
            # Python's `if` on a tensor is nowhere in it, and the loss was tried without autograph:
            # with it, tracing takes half as long again.
            step = tf.function(step, autograph=False)

        def train_function(iterator):
            # Keras writes down what it is given, so it is not given what was measured on records.
            logs, self._measured.value = step(iterator, noise.next(shapes))
            return logs

        self.train_function = train_function
        return self.train_function

    def _make_slots(self) -> None:
        """Makes the optimizers' variables: a step that made them would be traced twice."""
        self.discriminator_optimizer._create_all_weights(self.private_variables)

    def nonprivate_diagnostics(self) -> dict[str, tf.Tensor]:
        """What the last step's records showed, before it: NOT covered by epsilon.

        Returns:
          Scalars by name; empty without `measure_records`.
        """
        return self._measured.value or {}

    def _measure(self, records, step_noise=None) -> dict[str, tf.Tensor]:
        strategy = self.distribute_strategy
        sums = strategy.run(self._measured_sums, args=(records, step_noise))
        sums = {k: strategy.experimental_local_results(v)[0] for k, v in sums.items()}
        count = sums.pop('batch_size')
        means = {k: tf.math.divide_no_nan(v, count) for k, v in sums.items()}
        return {'batch_size': count, **means}

    def _measured_sums(self, records, step_noise) -> dict[str, tf.Tensor]:
        """Sums over the records of all replicas, in a replica context; PRIVATE."""
        images, labels = self._records_to_float(records[0]), records[1]
        # What the step draws too, read off the same key; with `SecureNoise` others of the same law.
        draws = self._draw_for_records(labels, step_noise)
        names: list[str] = []

        def measured():
            sums = self._measured_sums_of_share(images, labels, draws)
            names[:] = sums
            return list(sums.values())

        # On no images at all, TensorFlow's convolutions fail.
        sums = tf.cond(tf.shape(labels)[0] > 0, measured, lambda: [tf.zeros([]) for _ in names])
        return dict(zip(names, all_reduce(sums)))

    def _sums_of_records(self, records):
        optimizer, variables = self.discriminator_optimizer, self.private_variables

        def losses_of():
            return self._losses_of_records(*records)

        if self.clipping == 'fast':
            return optimizer.batch_sums(self._private_models(), losses_of, variables)
        if self.clipping == 'vectorized':
            return optimizer.clipped_sums(self._loss_of_record, records, variables)
        gradient = gradient_of_sum(losses_of, variables)
        return [tf.cast(g, tf.float64) for g in gradient], []

    def _draw_for_records(self, labels, step_noise, first=0) -> dict[str, tf.Tensor]:
        """Draws the random inputs of each record's loss: those of the decoding generator."""
        return private_optimizer.draw_for_records(
            self._drawn_shapes(), tf.shape(labels)[0], step_noise, first
        )

    def _records_to_float(self, images: tf.Tensor) -> tf.Tensor:
        """What the loss takes, from what a batch holds."""
        return to_float(images)

    def _losses_of_made_up(self, records) -> tf.Tensor:
        return self._losses_of_records(*records)

    def _make_up_records(self, count: int = _NUM_MADE_UP):
        """Random (images, labels, draws), to try the private loss on; no two are alike."""
        draws = np.random.default_rng(0)
        images = draws.uniform(-1.0, 1.0, [count, *self._record_shape()])
        # Of different contrast, so that the extremes of a batch depend on which records are in it.
        contrast = np.resize([1.0, 0.1, 0.4], count)
        images *= contrast.reshape([-1] + [1] * (images.ndim - 1))
        return (
            tf.constant(images, tf.float32),
            tf.constant(np.arange(count) % min(2, self.num_classes), tf.int32),
            {
                name: tf.constant(draws.normal(size=[count, *shape]), tf.float32)
                for name, shape in self._drawn_shapes().items()
            },
        )

    def _make_up_crowds(self):
        """Made-up records as many as a batch of the run, four unusual ones last.

        One crowd is of different contrast, one of the largest images there are, all -1 and 1: a
        norm over the batch passes its limit with these.
        """
        mean = self._expected_batch_size
        # Six standard deviations above the mean; what a part has at most; what memory has.
        limits = [mean + 6 * math.sqrt(mean), _LARGEST_CROWD]
        if self._microbatch_size is not None:
            limits.append(self._microbatch_size)
        pixels = math.prod(self._record_shape())
        limits.append(_LARGEST_CROWD_PIXELS / pixels)
        count = max(_SMALLEST_CROWD, math.ceil(min(limits))) + 4
        images, *rest = self._make_up_records(count)
        light, dark = (tf.fill(images.shape[1:], value) for value in (1.0, -1.0))
        some, others = images[:-4], tf.where(images[:-4] < 0, -1.0, 1.0)
        return [
            (tf.concat([crowd, [light, strange[0], dark, strange[1]]], axis=0), *rest)
            for crowd, strange in ((some, others), (others, some))
        ]

    def _loss_of_record(self, record) -> tf.Tensor:
        return self._losses_of_records(*tf.nest.map_structure(lambda x: x[tf.newaxis], record))[0]


class Box:
    """Holds one value that Keras does not track."""

    value: Any = None


def all_reduce(values):
    """Sums over the replicas, in a replica context."""
    replica = tf.distribute.get_replica_context()
    if replica.num_replicas_in_sync == 1:
        return values
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, values)


def mean_over_replicas(value):
    """The mean over the replicas, in a replica context."""
    return all_reduce(value) / tf.distribute.get_replica_context().num_replicas_in_sync


def gradient_of_sum(losses_of, variables) -> list[tf.Tensor]:
    """Gradients of the summed losses with respect to variables; not private."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(variables)
        loss = tf.reduce_sum(losses_of())
    gradients = tape.gradient(loss, variables, unconnected_gradients='zero')
    # That of an embedding comes as indexed slices.
    return [tf.convert_to_tensor(gradient) for gradient in gradients]


def zeros_like(variables, dtype=tf.float32) -> list[tf.Tensor]:
    """Zeros, one tensor per variable."""
    return [tf.zeros(variable.shape, dtype) for variable in variables]


def refuse_wrapped(optimizer) -> None:
    """Wrappers act before the clip, or hide that there is one."""
    inner = [
        v for v in vars(optimizer).values() if isinstance(v, private_optimizer.PrivateOptimizer)
    ]
    if inner or isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer):
        raise ValueError(
            'Optimizers must not be wrapped: LossScaleOptimizer multiplies the loss before it is '
            "clipped; build everything under the policy 'float32'. "
            f'Received: {type(optimizer).__name__}.'
        )


def refuse_other_precision(model: tf.keras.Model) -> None:
    """Raises ValueError where a layer computes in anything but float32."""
    for layer in model._flatten_layers(include_self=False):
        dtypes = {weight.dtype for weight in layer.weights}
        if not isinstance(layer, tf.keras.Model):  # Whose own is that of its inputs, or outputs.
            dtypes.add(layer.compute_dtype)
        others = [
            dtype.name
            for dtype in map(tf.as_dtype, dtypes - {None})
            if dtype.is_floating and dtype != tf.float32
        ]
        if others:
            raise ValueError(
                f'Layer {layer.name!r} ({type(layer).__name__}) computes in {others[0]}. Norms, '
                'clipping and sums are in float32, and so must be the networks: build them with '
                f"dtype='float32', under the policy 'float32'. Received: {others[0]}."
            )


def refuse_layers_with_state(model: tf.keras.Model) -> None:
    """A layer that remembers what it saw (all batch normalizations do) would bypass the clip."""
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, tf.keras.Model) or not layer.trainable:
            continue
        if layer.non_trainable_weights:
            raise ValueError(
                f'Layer {layer.name!r} ({type(layer).__name__}) keeps statistics of the records or '
                'mixes the examples of a batch, which clipping one gradient does not bound. Use '
                'GroupNormalization instead.'
            )
