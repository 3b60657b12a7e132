"""The Keras side of a private step: `PrivateOptimizer`, a mixin for legacy Keras optimizers.

`private_step` is what one step does and `mechanism.Mechanism` the numbers of it; here are its
variables, its replicas and its ways in: `clipped_sums` or `batch_sums` and then `release`, or a
loss vector and a tape, as TF Privacy's optimizers take it. The base optimizer gets v, as if it were
the gradient. `optimizer` has the formal guarantees and makes the classes.
"""

from __future__ import annotations

import dataclasses
import numbers
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import dp_accounting
import tensorflow as tf

from tf_efsgd.privacy import clipping, layer_norms, noise, private_step
from tf_efsgd.privacy.mechanism import ASSUMED_PARAMETERS, Mechanism

_BUFFER = 'error_feedback'

# What stands behind the mixin: a Keras class, of which a type checker knows nothing here.
_Behind: Any = object


class PrivateOptimizer(_Behind):
    """The private step over a legacy Keras optimizer class that stands behind it in the bases.

    Every class made by `optimizer.make_error_feedback_optimizer_class` is a subclass; it is not
    used by itself.
    """

    def __init__(
        self,
        l2_norm_clip: float,
        noise_multiplier: float,
        num_microbatches: int | None = None,
        expected_batch_size: int | None = None,
        error_feedback: str = 'private',
        residual_l2_norm_clip: float = 1.0,
        residual_share: float = 0.1,
        feedback_decay: float = 0.9,
        feedback_l2_norm_clip: float | None = None,
        *args,
        **kwargs,
    ):
        """Initializes the optimizer.

        Args:
          l2_norm_clip: see `Mechanism`.
          noise_multiplier: ratio of the noise to the sensitivity of the stacked release.
          num_microbatches: None or the batch size: clipping is per example.
          expected_batch_size: B, the public constant that the sums are divided by. None:
            divides by the batch's own size, and then `dp_event` claims nothing.
          error_feedback: 'private', 'none' or 'hidden'.
          residual_l2_norm_clip: see `Mechanism`.
          residual_share: see `Mechanism`.
          feedback_decay: see `Mechanism`.
          feedback_l2_norm_clip: see `Mechanism`.
          *args: of the base class.
          **kwargs: of the base class.

        Raises:
          ValueError: if an argument is out of its range.
        """
        super().__init__(*args, **kwargs)
        self.mechanism = Mechanism(
            l2_norm_clip,
            noise_multiplier,
            error_feedback,
            residual_l2_norm_clip,
            residual_share,
            feedback_decay,
            feedback_l2_norm_clip,
        )
        if expected_batch_size is not None and not (
            isinstance(expected_batch_size, numbers.Integral) and expected_batch_size >= 1
        ):
            raise ValueError(
                'expected_batch_size must be an integer of at least 1. '
                f'Received: {expected_batch_size}.'
            )
        self.expected_batch_size = expected_batch_size
        self._num_microbatches = num_microbatches
        self._own_randomness = noise.NoiseKeyVariables()
        self._released = False
        self._parameters = ASSUMED_PARAMETERS
        # How many `dp_event` counted when it was last read.
        self._parameters_claimed: int | None = None

    @property
    def _part_size(self) -> int:
        return clipping.records_per_part(self.expected_batch_size)

    @property
    def _is_wrapped_by_loss_scale_optimizer(self) -> bool:
        """What Keras' `LossScaleOptimizer` marks the optimizer by that it wraps."""
        return False

    @_is_wrapped_by_loss_scale_optimizer.setter
    def _is_wrapped_by_loss_scale_optimizer(self, value):
        if value:
            raise ValueError(
                f'A LossScaleOptimizer multiplies the loss before {type(self).__name__} clips '
                'it, and divides what was released: the run would spend its budget and learn '
                'nothing. Keras wraps every optimizer in one under the policy mixed_float16; '
                "build and compile the model under the policy 'float32'. "
                'Received: LossScaleOptimizer.'
            )

    @property
    def dp_event(self) -> dp_accounting.DpEvent:
        """The `DpEvent` of one step on the sampled records (sampling not included).

        It counts what releasing so many parameters on a grid costs: 2^20 of them, or those of
        the largest step so far, or of the slots so far, where that is more. So before the first
        step it is NOT a bound for a model of more than 2^20 parameters: read it again after
        that (a warning says so), or ask `dp_event_of`.

        `NonPrivateDpEvent` without noise, with a hidden buffer, and when sums are divided by
        the size of the batch, which is private under add-or-remove-one neighbours.
        """
        self._parameters_claimed = self._parameters
        return self._event(self._parameters)

    @property
    def counted_parameters(self) -> int:
        """How many parameters `dp_event` counts: 2^20, or more where a step so far had more."""
        return self._parameters

    def dp_event_of(self, var_list: Sequence[tf.Variable]) -> dp_accounting.DpEvent:
        """`dp_event` of a step that updates these variables, true before the first one too.

        Args:
          var_list: all variables that a step updates.

        Returns:
          As `dp_event`; of 2^20 parameters at least.
        """
        return self._event(max(self._parameters, _num_parameters(var_list)))

    def _event(self, parameters):
        if self.expected_batch_size is None:
            return dp_accounting.NonPrivateDpEvent()
        return self.mechanism.dp_event(parameters)

    def _count_parameters(self, var_list):
        self._parameters = max(self._parameters, _num_parameters(var_list))
        claimed = self._parameters_claimed
        if claimed is not None and claimed < self._parameters:
            warnings.warn(
                f'dp_event was read when it counted {claimed} parameters, but a step updates '
                'more: what follows from it is too small an epsilon. Read dp_event again, or '
                f'use dp_event_of(variables). Received: {self._parameters} parameters.',
                stacklevel=2,
            )
            self._parameters_claimed = None

    def clipped_sums(
        self,
        loss_of_record: Callable[[tf.Tensor], tf.Tensor],
        records: tf.Tensor | tuple[tf.Tensor, ...],
        var_list: Sequence[tf.Variable],
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """The two clipped sums over this replica's share of a batch: PRIVATE if records are.

        Args:
          loss_of_record: the WHOLE loss of one record (no batch axis) -> float32 [].
          records: tensor or structure of tensors [batch, ...]; batch may be 0.
          var_list: variables the step updates.

        Returns:
          (clipped_grad_sum, residual_grad_sum), float64, shaped like `var_list`.
        """
        check_float32(var_list)
        gradients = clipping.per_example_gradients(loss_of_record, records, var_list)
        return self._dense_clipped_sums(gradients, var_list)

    def batch_sums(
        self,
        models: layer_norms.Models,
        losses_of: Callable[[], tf.Tensor],
        var_list: Sequence[tf.Variable],
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """What `clipped_sums` gives, from one backward pass over the batch: PRIVATE.

        Args:
          models: one or several; every layer of theirs that owns one of `var_list` has a rule
            in `layer_norms`.
          losses_of: calls the models on a batch and returns the WHOLE loss of every record,
            float32 [batch]; a record's loss depends on that record alone, and on what
            `draw_for_records` drew for it.
          var_list: variables the step updates.

        Returns:
          (clipped_grad_sum, residual_grad_sum), float64, shaped like `var_list`.

        Raises:
          layer_norms.UnsupportedLayerError: if a layer has no rule.
        """
        check_float32(var_list)
        gradients = _batch_gradients(models, losses_of, var_list)
        return private_step.batch_sums(self.mechanism, gradients, self._part_size)

    def batch_delivered_sum(
        self,
        models: layer_norms.Models,
        losses_of: Callable[[], tf.Tensor],
        var_list: Sequence[tf.Variable],
    ) -> list[tf.Tensor]:
        """The same for generated images, which need no privacy: what of theirs arrives."""
        check_float32(var_list)
        gradients = _batch_gradients(models, losses_of, var_list)
        return private_step.batch_delivered_sum(self.mechanism, gradients)

    def delivered_sums(
        self, clipped_grad_sum: Sequence[tf.Tensor], residual_grad_sum: Sequence[tf.Tensor]
    ) -> list[tf.Tensor]:
        """What of `clipped_sums` of generated images arrives in the end, float32."""
        return private_step.delivered_sums(self.mechanism, clipped_grad_sum, residual_grad_sum)

    def measured_sums(
        self,
        loss_of_record: Callable[[tf.Tensor], tf.Tensor],
        records: tf.Tensor | tuple[tf.Tensor, ...],
        var_list: Sequence[tf.Variable],
    ) -> dict[str, tf.Tensor]:
        """Sums over records of what clipping met, for diagnostics: PRIVATE, never released.

        Args:
          loss_of_record: as in `clipped_sums`.
          records: as in `clipped_sums`.
          var_list: variables the step updates.

        Returns:
          float32 [] each: 'gradient_norm', 'clipped_fraction', 'not_finite_fraction'; divide by
          the number of records for means.
        """
        gradients = clipping.per_example_gradients(loss_of_record, records, var_list)
        norms, finite = clipping.gradient_norms(gradients)
        clipped = norms > self.mechanism.l2_norm_clip
        return {
            'gradient_norm': tf.reduce_sum(norms),
            'clipped_fraction': tf.reduce_sum(tf.cast(clipped, tf.float32)),
            'not_finite_fraction': tf.reduce_sum(tf.cast(~finite, tf.float32)),
        }

    def release(
        self,
        clipped_grad_sum: Sequence[tf.Tensor],
        residual_grad_sum: Sequence[tf.Tensor],
        var_list: Sequence[tf.Variable],
        *,
        step_noise: noise.StepNoise,
        batch_size: tf.Tensor | None = None,
    ) -> list[tf.Tensor]:
        """All-reduces the private sums, adds ONE noise, feeds back: the public gradient.

        Call it in a replica context, by every replica with the same noise.

        Args:
          clipped_grad_sum: float64, of this replica, from `clipped_sums`.
          residual_grad_sum: likewise.
          var_list: the same variables.
          step_noise: `new_noise().next(shapes)`, an argument of the `tf.function`; never used
            before.
          batch_size: float32 [], this replica's number of records; only for a divisor when
            there is no `expected_batch_size`.

        Returns:
          v = A/B + d, float32, shaped like `var_list`, the same on every replica. Add
          gradients of public terms to it, then `apply_gradients`.
        """
        replica = tf.distribute.get_replica_context()
        has_buffer = self.mechanism.has_buffer
        self._count_parameters(var_list)
        if replica.num_replicas_in_sync > 1:
            sums = [list(clipped_grad_sum), *([list(residual_grad_sum)] if has_buffer else [])]
            clipped_grad_sum, *rest = replica.all_reduce(tf.distribute.ReduceOp.SUM, sums)
            residual_grad_sum = rest[0] if rest else None
        buffer: Sequence[tf.Tensor] | None = None
        if has_buffer:
            buffer = [tf.convert_to_tensor(e) for e in self._buffer(var_list)]
        public_gradient, buffer = private_step.release(
            self.mechanism,
            clipped_grad_sum,
            residual_grad_sum,
            buffer,
            self._divisor(batch_size, replica),
            step_noise,
        )
        self._store_buffer(var_list, buffer)
        self._released = True
        return public_gradient

    def _dense_clipped_sums(self, gradients, var_list):
        clipped, residual = clipping.clip_and_sum(gradients, *self.mechanism.clips, self._part_size)

        def dense(sums):
            return [
                tf.zeros(v.shape, tf.float64) if s is None else s for s, v in zip(sums, var_list)
            ]

        return dense(clipped), dense(residual)

    def _divisor(self, batch_size, replica):
        if self.expected_batch_size is not None:
            return float(self.expected_batch_size)
        if batch_size is None:
            raise ValueError('Give expected_batch_size to the optimizer, or batch_size here.')
        if replica.num_replicas_in_sync > 1:
            batch_size = replica.all_reduce(tf.distribute.ReduceOp.SUM, batch_size)
        return tf.maximum(batch_size, 1.0)

    def _create_slots(self, var_list):
        """Makes those of the base class, then E: all at once, always in the same order.

        An HDF5 file knows them by their order alone.
        """
        super()._create_slots(var_list)
        # Restored ones are made before the first step.
        self._count_parameters(var_list)
        if self.mechanism.has_buffer:
            for variable in var_list:
                self.add_slot(variable, _BUFFER)

    def _buffer(self, var_list):
        """E, one slot per variable: zeros at first, in every checkpoint."""
        with tf.init_scope():
            self._create_all_weights(var_list)
            return [self.get_slot(v, _BUFFER) for v in var_list]

    def buffer_norm(self, var_list) -> tf.Tensor | None:
        """The norm of E, float32 []; None without a buffer, or with one that is not noised.

        E is a function of earlier releases, so its norm is public. A hidden buffer is private.
        """
        if not self.mechanism.has_buffer or self.mechanism.hides_buffer:
            return None
        return tf.linalg.global_norm(self._buffer(var_list))

    def _store_buffer(self, var_list, buffer):
        if buffer is None:
            return

        def assign(strategy, slots, values):
            for slot, value in zip(slots, values):
                strategy.extended.update(slot, lambda e, new: e.assign(new), args=(value,))

        tf.distribute.get_replica_context().merge_call(
            assign, args=(self._buffer(var_list), buffer)
        )

    # The drop-in way: any Keras model, a loss vector and a tape.

    def _compute_gradients(self, loss, var_list, grad_loss=None, tape=None):
        """Private gradients of a loss vector [batch], through TF Privacy's jacobian form."""
        if grad_loss is not None:
            raise ValueError('grad_loss would be applied before clipping; it is not allowed.')
        if not callable(loss) and tape is None:
            raise ValueError('`tape` is required when a `Tensor` loss is passed.')
        tape = tape if tape is not None else tf.GradientTape(persistent=True)
        if callable(loss):
            with tape:
                if not callable(var_list):
                    tape.watch(var_list)
                loss = loss()
                if callable(var_list):
                    var_list = var_list()
        self._check_loss(loss)
        var_list = tf.nest.flatten(var_list)
        check_float32(var_list)
        clipped_grad_sum, residual_grad_sum = self._dense_clipped_sums(
            _jacobian(tape, loss, var_list), var_list
        )
        gradients = self.release(
            clipped_grad_sum,
            residual_grad_sum,
            var_list,
            step_noise=self._own_randomness.next(),
            batch_size=tf.cast(tf.shape(loss)[0], tf.float32),
        )
        return list(zip(gradients, var_list))

    def _check_loss(self, loss):
        if loss.shape.rank != 1:
            raise ValueError(
                'The loss must be one value per example, shape [batch]: use '
                f'reduction=tf.keras.losses.Reduction.NONE. Received: shape {loss.shape}.'
            )
        if self._num_microbatches is None:
            return
        size = loss.shape[0]
        message = (
            'num_microbatches must be None or the batch size: averaging a microbatch before '
            f'the clip is not supported. Received: num_microbatches={self._num_microbatches}.'
        )
        if size is None:
            # Without the size in its text: that of a Poisson sample is private.
            is_size = tf.equal(tf.shape(loss)[0], self._num_microbatches)
            tf.debugging.Assert(is_size, [message])
        elif size != self._num_microbatches:
            raise ValueError(f'{message[:-1]}, batch size {size}.')

    def apply_gradients(self, grads_and_vars, name=None, experimental_aggregate_gradients=False):
        """Applies released gradients; they are the same on every replica, so never summed."""
        del experimental_aggregate_gradients
        if not self._released:
            raise ValueError(
                'apply_gradients got gradients that did not go through the private mechanism. '
                'Call minimize, or clipped_sums and release, first.'
            )
        self._released = False
        return super().apply_gradients(
            grads_and_vars, name=name, experimental_aggregate_gradients=False
        )

    def get_gradients(self, loss, params):
        """Not supported: TF1 graphs have no per-example gradients here."""
        raise ValueError('get_gradients would not be private; use minimize.')

    def get_config(self) -> dict:
        """The constructor's arguments."""
        config = super().get_config()
        config.update(dataclasses.asdict(self.mechanism))
        config['num_microbatches'] = self._num_microbatches
        config['expected_batch_size'] = self.expected_batch_size
        return config


def check_float32(variables: Sequence[tf.Variable]) -> None:
    """Raises ValueError unless all variables are float32, which norms and sums are computed in."""
    for variable in variables:
        if variable.dtype.base_dtype != tf.float32:
            raise ValueError(
                'The private step updates float32 variables only: norms, clipping and sums are '
                "computed in that. Build the model with dtype='float32'. "
                f'Received: variable {variable.name!r} of {variable.dtype.base_dtype.name}.'
            )


def _num_parameters(variables: Sequence[tf.Variable]) -> int:
    return sum(variable.shape.num_elements() for variable in variables)


def _jacobian(tape, loss: tf.Tensor, variables: Sequence[tf.Variable]) -> list[tf.Tensor]:
    """Of a loss vector [batch], per variable [batch, *shape]; batch may be 0.

    Over no records the backward pass of some layers fails: of most convolutions and recurrent ones.
    """

    def of_records():
        jacobian = tape.jacobian(
            loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return [tf.convert_to_tensor(j) for j in jacobian]

    def of_no_records():
        return [tf.zeros([0, *v.shape]) for v in variables]

    size = loss.shape[0]
    if size is None:
        return tf.cond(tf.shape(loss)[0] > 0, of_records, of_no_records)
    return of_records() if size else of_no_records()


def _batch_gradients(models, losses_of, variables) -> clipping.BatchGradients:
    parts = layer_norms.gradients_by_layer(models, losses_of, variables)
    return clipping.BatchGradients(parts, variables)
