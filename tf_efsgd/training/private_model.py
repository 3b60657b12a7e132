"""One private step for any loss of one record: the base of `EFSGDGan`.

A subclass says which networks see records, what the whole private loss of every record is, and what
records look like. This file tries that loss, clips its gradients by record and adds them up, and
passes the noise of a step straight into the graph.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_efsgd import replicas
from tf_efsgd.data.images import to_float
from tf_efsgd.privacy.features import alone
from tf_efsgd.privacy.optimizer import (
    PrivateOptimizer,
    activations,
    all_layers_shown,
    draw_for_records,
    new_noise,
    why_not_alone,
    why_not_fast,
)
from tf_efsgd.training import padding

# The private loss is tried on so many records: two times three, so that three confirm the others.
_NUM_MADE_UP = 6
# The limits of a made-up batch that is as large as the run's batches: in records, and in pixels.
_SMALLEST_CROWD, _LARGEST_CROWD, _LARGEST_CROWD_PIXELS = 20, 256, 2**20

# How far compiled sums may be off, relatively: XLA adds up in another order.
_COMPILED_TOLERANCE, _TINY = 1e-3, 1e-6

CLIPPINGS = ('auto', 'fast', 'vectorized')
COMPILING = ('auto', 'on', 'off')


class PrivateModel(tf.keras.Model):
    """A model that learns from records only through the clipped sums of private steps.

    A subclass sets, before `_prepare_private_step`: `discriminator_optimizer` (the optimizer of the
    private step), `_expected_batch_size`, `_microbatch_size`, `_noise` and `_measure_records`. It
    defines `_private_models`, `_losses_of_records`, `_drawn_shapes`, `_record_shape`, `num_classes`
    and `_measured_sums_of_share`.

    Formal guarantees:
      - The private loss of a record is tried on made-up records before the first step. It is
        refused if it depends on other records or on layers that keep state, or is random by itself.
      - A step computes its records in padded parts of one size, whose trial shows that what layers
        put out for a record is the same to the last bit wherever it stands, whoever is beside it.
      - The noise of a step is an argument of the graph, never a constant in it.
      - A step without records is a full step with noise.
    """

    train_function: Callable[..., Any] | None  # Keras calls it, and makes a new one after None.
    discriminator_optimizer: Any  # A legacy Keras optimizer, set by `compile`.

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._tried = Box()
        # It is in a box, because Keras might track an attribute that holds tensors.
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
        """The shape of what the discriminator sees of one record."""
        raise NotImplementedError

    def _measured_sums_of_share(self, images, labels, draws) -> dict[str, tf.Tensor]:
        """Sums over records by name for diagnostics, among them 'batch_size': PRIVATE."""
        raise NotImplementedError

    @property
    def private_variables(self) -> list[tf.Variable]:
        """What a private step updates: the discriminator, then a generator that decodes records."""
        return [v for model in self._private_models() for v in model.trainable_variables]

    def _check_networks(self) -> None:
        """Raises ValueError if a layer could carry something past the clip."""
        for model in self._private_models():
            refuse_other_precision(model)
            refuse_layers_with_state(model)

    def _prepare_private_step(self, clipping: str, jit_compile: str = 'off') -> None:
        """Tries the private loss and chooses how it is clipped; `compile` ends with it.

        Args:
          clipping: see `EFSGDGan.compile`.
          jit_compile: see `EFSGDGan.compile`.

        Raises:
          ValueError: if the loss cannot be clipped by record, or not in the way that is asked for.
        """
        if self.is_private:
            self._check_private_loss()
        self.clipping = self._choose_clipping(clipping)
        self.compiles_sums = self._choose_compiling(jit_compile)
        self._rows = self._choose_rows()
        self._tried.value = [variable.ref() for variable in self.private_variables]
        self._measured.value = None

    def _check_private_loss(self) -> None:
        reason = why_not_alone(
            self._losses_of_made_up,
            self.private_variables,
            self._make_up_records(),
            self.run_eagerly,
            self._make_up_crowds(),
        )
        if reason is not None:
            raise ValueError(
                'The private loss of a record may depend only on that record, the weights and what '
                '`draw_for_records` drew for it: clipping one gradient bounds nothing else. '
                'Leave out layers that mix the examples of a batch (GroupNormalization does not) '
                f'and layers that are random. Received: a loss of which {reason}.'
            )

    def _choose_clipping(self, clipping: str) -> str:
        if clipping not in CLIPPINGS:
            raise ValueError(f'clipping must be one of {CLIPPINGS}. Received: {clipping!r}.')
        if clipping == 'vectorized' or not self.is_private:
            return 'vectorized' if self.is_private else 'none'
        reason = why_not_fast(
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

    def _choose_compiling(self, jit_compile: str) -> bool:
        """Whether XLA compiles the sums over records; it is tried before anything is spent."""
        if jit_compile not in COMPILING:
            raise ValueError(f'jit_compile must be one of {COMPILING}. Received: {jit_compile!r}.')
        has_gpu = bool(tf.config.list_physical_devices('GPU'))
        if jit_compile == 'off' or (jit_compile == 'auto' and not has_gpu):
            return False
        reason = self._why_not_compiled()
        if reason is None:
            return True
        if jit_compile == 'on':
            raise ValueError(f"XLA cannot be used here: {reason}. Use jit_compile='off'.")
        print(f'Sums are not compiled by XLA: {reason}.')
        return False

    def _why_not_compiled(self) -> str | None:
        """Tries the compiled sums on made-up records; says why they cannot be used, or None."""
        records = self._make_up_records()
        strategy = self.distribute_strategy

        def sums_of_replica():
            plain = self._sums_by(self._losses_of_records, records)
            compiled = self._padded_sums(records, _NUM_MADE_UP + 1, is_compiled=True)
            return tf.nest.flatten(plain), tf.nest.flatten(compiled)

        try:  # The variables of several replicas can only be read in a replica context.
            found = strategy.experimental_local_results(strategy.run(sums_of_replica))
        except (tf.errors.OpError, ValueError, TypeError) as error:  # In running, or in tracing.
            why = ' '.join(str(error).split())[:200]
            return f'it fails with {type(error).__name__}, {why}'
        plain, compiled = found[0]
        apart = tf.linalg.global_norm([one - two for one, two in zip(plain, compiled)])
        # The comparison is false for NaN too.
        is_near = apart <= _COMPILED_TOLERANCE * tf.linalg.global_norm(plain) + _TINY
        return None if bool(is_near) else 'the sums that it compiles are different'

    def make_train_function(self, force: bool = False):
        """Makes one step of `fit`, whose noise is an argument of the graph, never a constant.

        Args:
          force: whether to make it again; Keras passes it.

        Raises:
          ValueError: if layers were frozen or unfrozen since `compile`.
        """
        self._check_networks()
        if self._tried.value != [variable.ref() for variable in self.private_variables]:
            raise ValueError(
                'Other layers are trainable now than those that `compile` looked at: call '
                '`compile` again.'
            )
        if self.train_function is not None and not force:
            return self.train_function
        self._make_slots()
        noise = self._noise or new_noise()
        shapes = [variable.shape for variable in self.private_variables]

        def step(iterator, step_noise):
            records = next(iterator)
            measured = self._measure(records, step_noise) if self._measure_records else {}
            return self.train_step((records, step_noise)), measured

        if not self.run_eagerly:
            # The step has no Python `if` on a tensor, and the loss was tried without autograph.
            # With autograph, tracing would take 1.5 times as long.
            step = tf.function(step, autograph=False)

        def train_function(iterator):
            # Keras logs what it is given, so it is not given what was measured on records.
            logs, self._measured.value = step(iterator, noise.next(shapes))
            return logs

        self.train_function = train_function
        return self.train_function

    def _make_slots(self) -> None:
        """Makes the optimizers' variables: if a step made them, it would be traced twice."""
        self.discriminator_optimizer._create_all_weights(self.private_variables)

    def nonprivate_diagnostics(self) -> dict[str, tf.Tensor]:
        """What the records of the last step showed before it. Epsilon does NOT cover this.

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
        # The step draws the same from the same key; with `SecureNoise` these draws are others.
        draws = self._draw_for_records(labels, step_noise)
        names: list[str] = []

        def measured():
            sums = self._measured_sums_of_share(images, labels, draws)
            names[:] = sums
            return list(sums.values())

        # TensorFlow's convolutions fail on no images at all.
        sums = tf.cond(tf.shape(labels)[0] > 0, measured, lambda: [tf.zeros([]) for _ in names])
        return dict(zip(names, replicas.all_reduce(sums)))

    def _sums_of_records(self, images, labels, step_noise=None):
        """Clipped sums over this replica's records, in padded parts of `_rows`, see `padding`."""
        labels = tf.convert_to_tensor(labels)
        records = images, labels, self._draw_for_records(labels, step_noise)
        size, count = self._rows, tf.shape(labels)[0]

        def add_part(start, sums):
            images, *rest = tf.nest.map_structure(lambda x: x[start : start + size], records)
            part = self._records_to_float(images), *rest
            more = self._padded_sums(part, size, self.compiles_sums)
            return start + size, tf.nest.map_structure(tf.add, sums, more)

        zeros = [tf.zeros(v.shape, tf.float64) for v in self.private_variables]
        _, sums = tf.while_loop(
            lambda start, _: start < count,
            add_part,
            (tf.constant(0), (zeros, zeros if self.is_private else [])),
            parallel_iterations=1,
        )
        return sums

    def _padded_sums(self, records, size: int, is_compiled: bool):
        """As `_sums_by`, of at most `size` records; compiled by XLA or not."""

        def losses_of_rows(images, labels, draws, is_record):
            return tf.where(is_record, self._losses_of_records(images, labels, draws), 0.0)

        def sums(rows, is_record):
            return self._sums_by(losses_of_rows, (*rows, is_record))

        if is_compiled:
            # It is made again at each trace, because every replica has its own variables.
            sums = tf.function(sums, autograph=False, jit_compile=True)
        return sums(*padding.pad(records, size))

    def _choose_rows(self) -> int:
        """How many records go through the networks at a time, so that each is computed alike.

        A rounding of other size where a network has a kink would change the gradient of a record as
        a whole. So what a layer puts out for a record must not depend, not even in the last bit, on
        how many records a batch holds, or on which ones: that is private.

        Raises:
          ValueError: if it depends on them for any number of rows.
        """
        replicas = self.distribute_strategy.num_replicas_in_sync
        size = padding.padded_size(self._expected_batch_size / replicas, self._microbatch_size)
        has_gpu = bool(tf.config.list_physical_devices('GPU'))
        choices = padding.part_sizes(size, self._microbatch_size, in_one=has_gpu)
        if not self.is_private:
            return choices[0]
        made_up = self._make_up_records()[0].numpy()
        try:
            with self._all_layers_shown(made_up):
                rows = alone.choose_rows(self._activations, made_up, choices)
            self._check_replicas_alike(made_up, rows)
        except alone.NotAlone as error:
            raise ValueError(
                f'The private loss of a record must be computed alike in any batch, but {error}. '
                'Leave out layers that compute otherwise each time, or train on another device.'
            ) from error
        return rows

    def _all_layers_shown(self, images: np.ndarray):
        """While it is entered, every layer shows in what `_activations` returns.

        Without rules for the layers only the loss of a record can be seen, and a kernel of zeros,
        like the last one of many networks, would hide all that lies before it.
        """
        if self.clipping == 'fast':
            return contextlib.nullcontext()
        compute = tf.function(self._activations, autograph=False)
        return all_layers_shown(compute, tf.constant(images))

    def _check_replicas_alike(self, made_up: np.ndarray, rows: int) -> None:
        """Raises NotAlone unless all replicas of this process compute a record alike.

        Which of them a record goes to depends on how many records come before it.
        """
        images = tf.constant(np.resize(made_up, [rows, *made_up.shape[1:]]))
        first, *others = tf.function(self._activations_of_replicas, autograph=False)(images)
        if not all(np.array_equal(first.numpy(), other.numpy()) for other in others):
            raise alone.NotAlone(
                'the devices compute it differently: use devices of one kind '
                '(CUDA_VISIBLE_DEVICES names them), or --strategy=one_device'
            )

    def _activations(self, images: tf.Tensor) -> tf.Tensor:
        """What the layers put out for records, [n, ...], on the first replica of this process.

        Args:
          images: float32 [n, ...], n known.
        """
        return self._activations_of_replicas(images)[0]

    def _activations_of_replicas(self, images: tf.Tensor) -> Sequence[tf.Tensor]:
        """What the layers put out for records, in the graph that clips their gradients."""
        count = images.shape[0]
        # Only the images differ, so that they alone tell the records apart.
        _, labels, draws = tf.nest.map_structure(
            lambda x: tf.repeat(x[:1], count, axis=0), self._make_up_records()
        )

        def of_records(images, labels, draws):
            if self.clipping == 'fast':
                return activations(
                    self._private_models(),
                    lambda: self._losses_of_records(images, labels, draws),
                    self.private_variables,
                )
            return tf.vectorized_map(self._loss_of_record, (images, labels, draws))

        def of_replica(*records):
            if not self.compiles_sums:
                return of_records(*records)
            # It is made for each replica, because every one has its own variables.
            return tf.function(of_records, autograph=False, jit_compile=True)(*records)

        # The variables of several replicas can only be read in a replica context.
        strategy = self.distribute_strategy
        made = strategy.run(of_replica, args=(images, labels, draws))
        return strategy.experimental_local_results(made)

    def _sums_by(self, losses_of_records, records):
        optimizer, variables = self.discriminator_optimizer, self.private_variables

        def losses_of():
            return losses_of_records(*records)

        if self.clipping == 'fast':
            return optimizer.batch_sums(self._private_models(), losses_of, variables)
        if self.clipping == 'vectorized':
            return optimizer.clipped_sums(_of_one(losses_of_records), records, variables)
        gradient = gradient_of_sum(losses_of, variables)
        return [tf.cast(g, tf.float64) for g in gradient], []

    def _draw_for_records(self, labels, step_noise, first=0) -> dict[str, tf.Tensor]:
        """Draws the random inputs of each record's loss: those of a generator that decodes it."""
        return draw_for_records(self._drawn_shapes(), tf.shape(labels)[0], step_noise, first)

    def _records_to_float(self, images: tf.Tensor) -> tf.Tensor:
        """Converts what a batch holds to what the loss takes."""
        return to_float(images)

    def _losses_of_made_up(self, records) -> tf.Tensor:
        return self._losses_of_records(*records)

    def _make_up_records(self, count: int = _NUM_MADE_UP):
        """Makes up random (images, labels, draws) to try the private loss on; no two are alike."""
        draws = np.random.default_rng(0)
        images = draws.uniform(-1.0, 1.0, [count, *self._record_shape()])
        # The contrast differs, so that the extremes of a batch depend on which records are in it.
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
        """Makes up two crowds, as many records as a batch of the run, with four unusual ones last.

        One crowd has images of different contrast, the other the largest images that there are, all
        -1 and 1: a norm over the batch would pass its limit with these.
        """
        mean = self._expected_batch_size
        # Six standard deviations above the mean; the most that a part has; what fits into memory.
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
        return _of_one(self._losses_of_records)(record)


def _of_one(losses_of_records):
    """Makes the loss of one record, [], from the losses of a batch, [n]."""
    return lambda record: losses_of_records(
        *tf.nest.map_structure(lambda x: x[tf.newaxis], record)
    )[0]


class Box:
    """Holds one value that Keras does not track."""

    value: Any = None


def gradient_of_sum(losses_of, variables) -> list[tf.Tensor]:
    """Gradients of the summed losses with respect to variables; not private."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(variables)
        loss = tf.reduce_sum(losses_of())
    gradients = tape.gradient(loss, variables, unconnected_gradients='zero')
    # The gradient of an embedding comes as indexed slices.
    return [tf.convert_to_tensor(gradient) for gradient in gradients]


def zeros_like(variables, dtype=tf.float32) -> list[tf.Tensor]:
    """Zeros, one tensor per variable."""
    return [tf.zeros(variable.shape, dtype) for variable in variables]


def refuse_wrapped(optimizer) -> None:
    """Raises ValueError for a wrapped optimizer: wrappers act before the clip, or hide it."""
    inner = [v for v in vars(optimizer).values() if isinstance(v, PrivateOptimizer)]
    if inner or isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer):
        raise ValueError(
            'Optimizers must not be wrapped: LossScaleOptimizer multiplies the loss before it is '
            "clipped; build everything under the policy 'float32'. "
            f'Received: {type(optimizer).__name__}.'
        )


def refuse_other_precision(
    model: tf.keras.Model, computes_in: Collection[tf.DType] = (tf.float32,)
) -> None:
    """Raises ValueError if a layer computes in another type, or its weights are not float32."""
    for layer in model._flatten_layers(include_self=False):
        others = {tf.as_dtype(weight.dtype) for weight in layer.weights} - {tf.float32}
        # The type of a model itself is that of its inputs or outputs.
        if not isinstance(layer, tf.keras.Model) and layer.compute_dtype is not None:
            others |= {tf.as_dtype(layer.compute_dtype)} - set(computes_in)
        names = [dtype.name for dtype in others if dtype.is_floating]
        if names:
            raise ValueError(
                f'Layer {layer.name!r} ({type(layer).__name__}) computes in {names[0]}. Norms, '
                'clipping and sums are in float32, and so must be the networks that see records: '
                "build them with dtype='float32', under the policy 'float32'. A generator that "
                "decodes no record may be built under 'mixed_bfloat16', see `models.precision`. "
                f'Received: {names[0]}.'
            )


def refuse_layers_with_state(model: tf.keras.Model) -> None:
    """Raises ValueError for a layer that remembers what it saw, which would bypass the clip.

    All batch normalizations do.
    """
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, tf.keras.Model) or not layer.trainable:
            continue
        if layer.non_trainable_weights:
            raise ValueError(
                f'Layer {layer.name!r} ({type(layer).__name__}) keeps statistics of the records or '
                'mixes the examples of a batch, which clipping one gradient does not bound. Use '
                'GroupNormalization instead.'
            )
