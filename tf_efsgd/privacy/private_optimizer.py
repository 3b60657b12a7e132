"""The Keras side of a private step: `PrivateOptimizer`, a mixin for legacy Keras optimizers.

`private_step` is what one step does, and `mechanism.Mechanism` has its numbers. Here are the two
ways into a step for code that has the records, `clipped_sums` or `batch_sums`, and then `release`.
`loss_vector` is the drop-in way, and `feedback_slots` keeps the buffer E. The base optimizer gets
v, as if it were the gradient. `optimizer` has the formal guarantees and makes the classes.
"""

from __future__ import annotations

import dataclasses
import numbers
import warnings
from collections.abc import Callable, Sequence

import dp_accounting
import tensorflow as tf

from tf_efsgd import replicas
from tf_efsgd.privacy import clipping, layer_norms, noise, private_step
from tf_efsgd.privacy.feedback_slots import FeedbackSlots
from tf_efsgd.privacy.loss_vector import LossVector, Unapplied, check_float32
from tf_efsgd.privacy.mechanism import ASSUMED_PARAMETERS, Mechanism

# What `get_config` says beside the constructor's arguments.
_STEPS, _PARAMETERS = 'steps_made', 'counted_parameters'


class PrivateOptimizer(LossVector, FeedbackSlots):
    """The private step over a legacy Keras optimizer class, which comes after it in the bases.

    It is not used by itself: `optimizer.make_error_feedback_optimizer_class` makes subclasses.
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
          num_microbatches: None or the batch size, because clipping is per example.
          expected_batch_size: B, the public constant that the sums are divided by. With None they
            are divided by the batch's own size, and then `dp_event` claims nothing.
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
        self._unapplied = Unapplied()
        self._parameters = ASSUMED_PARAMETERS
        # How many parameters `dp_event` counted when it was last read.
        self._parameters_claimed: int | None = None

    @property
    def _part_size(self) -> int:
        return clipping.records_per_part(self.expected_batch_size)

    @property
    def _is_wrapped_by_loss_scale_optimizer(self) -> bool:
        """Keras' `LossScaleOptimizer` sets this on the optimizer that it wraps."""
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

        It includes what releasing parameters on a grid costs. It counts 2^20 of them, or as many
        as the largest step or the slots so far had, if that is more. So before the first step it
        is NOT a bound for a model of more than 2^20 parameters: read it again after that step (a
        warning says so), or ask `dp_event_of`.

        It is `NonPrivateDpEvent` without noise, with a hidden buffer, and when sums are divided by
        the size of the batch, which is private under add-or-remove-one neighbours.
        """
        self._parameters_claimed = self._parameters
        return self._event(self._parameters)

    @property
    def counted_parameters(self) -> int:
        """How many parameters `dp_event` counts: 2^20, or more where a step so far had more."""
        return self._parameters

    def dp_event_of(self, var_list: Sequence[tf.Variable]) -> dp_accounting.DpEvent:
        """The `dp_event` of a step that updates these variables; true before the first step too.

        Args:
          var_list: all variables that a step updates.

        Returns:
          An event as `dp_event`, which counts at least 2^20 parameters.
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
                'more: an epsilon computed from it is too small. Read dp_event again, or '
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
        """The two clipped sums over this replica's share of a batch: PRIVATE if the records are.

        Args:
          loss_of_record: the WHOLE loss of one record (no batch axis) -> float32 [].
          records: tensor or structure of tensors [batch, ...]; batch may be 0.
          var_list: all variables that the step updates, float32.

        Returns:
          (clipped_grad_sum, residual_grad_sum), float64, shaped like `var_list`.

        Raises:
          ValueError: if a variable is not float32, or the loss is not one number.
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
          models: one model or several; each layer that owns one of `var_list` must have a rule
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
        """What the step delivers of the gradients of generated images, which need no privacy.

        Args:
          models: as in `batch_sums`.
          losses_of: as in `batch_sums`, of generated images.
          var_list: all variables that the step updates.

        Returns:
          float32, shaped like `var_list`: the sum of what `delivered_sums` gives.
        """
        check_float32(var_list)
        gradients = _batch_gradients(models, losses_of, var_list)
        return private_step.batch_delivered_sum(self.mechanism, gradients)

    def delivered_sums(
        self, clipped_grad_sum: Sequence[tf.Tensor], residual_grad_sum: Sequence[tf.Tensor]
    ) -> list[tf.Tensor]:
        """What the steps deliver in the end of the `clipped_sums` of generated images, float32."""
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
          float32 [] each: 'gradient_norm', 'clipped_fraction' and 'not_finite_fraction'. Divide
          them by the number of records for means.
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
        """All-reduces the private sums, adds ONE noise and feeds back.

        Call it in a replica context, on every replica with the same noise.

        Args:
          clipped_grad_sum: float64, of this replica, from `clipped_sums`.
          residual_grad_sum: float64, of this replica, from `clipped_sums`.
          var_list: the same variables.
          step_noise: `new_noise().next(shapes)`, an argument of the `tf.function`; never used
            before.
          batch_size: float32 [], this replica's number of records; needed as the divisor only when
            there is no `expected_batch_size`.

        Returns:
          The public gradient v = A/B + d, float32, shaped like `var_list`, the same on every
          replica. Add the gradients of public terms to it, then call `apply_gradients`.

        Raises:
          ValueError: if what was released before was not applied. A step releases once, over all
            variables that it updates: a second release would have the same noise, or be a step
            that nobody counts.
        """
        self._unapplied.add()
        has_buffer = self.mechanism.has_buffer
        self._count_parameters(var_list)
        sums = [list(clipped_grad_sum), *([list(residual_grad_sum)] if has_buffer else [])]
        clipped_grad_sum, *rest = replicas.all_reduce(sums)
        buffer: Sequence[tf.Tensor] | None = None
        if has_buffer:
            buffer = [tf.convert_to_tensor(e) for e in self._buffer(var_list)]
        public_gradient, buffer = private_step.release(
            self.mechanism,
            clipped_grad_sum,
            rest[0] if rest else None,
            buffer,
            self._divisor(batch_size),
            step_noise,
        )
        self._store_buffer(var_list, buffer)
        return public_gradient

    def _dense_clipped_sums(self, gradients, var_list):
        clipped, residual = clipping.clip_and_sum(gradients, *self.mechanism.clips, self._part_size)

        def dense(sums):
            return [
                tf.zeros(v.shape, tf.float64) if s is None else s for s, v in zip(sums, var_list)
            ]

        return dense(clipped), dense(residual)

    def _divisor(self, batch_size):
        if self.expected_batch_size is not None:
            return float(self.expected_batch_size)
        if batch_size is None:
            raise ValueError('Give expected_batch_size to the optimizer, or batch_size here.')
        return tf.maximum(replicas.all_reduce(batch_size), 1.0)

    def get_config(self) -> dict:
        """The constructor's arguments, and what has been spent: steps and their parameters.

        Some of Keras' file formats restore no variables of an optimizer. Without these two, steps
        that were made before a model was saved would be counted nowhere.
        """
        config = super().get_config()
        config.update(dataclasses.asdict(self.mechanism))
        config['num_microbatches'] = self._num_microbatches
        config['expected_batch_size'] = self.expected_batch_size
        config[_STEPS] = self._steps_made()
        config[_PARAMETERS] = self._parameters
        return config

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None):
        """Makes an optimizer that counts on from what `get_config` says."""
        config = dict(config)
        steps, parameters = config.pop(_STEPS, 0), config.pop(_PARAMETERS, ASSUMED_PARAMETERS)
        optimizer = super().from_config(config, custom_objects)
        if steps:
            optimizer.iterations.assign(steps)
        optimizer._parameters = max(optimizer._parameters, parameters)
        return optimizer

    def _steps_made(self) -> int:
        if self._iterations is None:  # Keras makes the variable when it is first asked for.
            return 0
        with tf.init_scope():
            return int(self.iterations.numpy())


def _num_parameters(variables: Sequence[tf.Variable]) -> int:
    return sum(variable.shape.num_elements() for variable in variables)


def _batch_gradients(models, losses_of, variables) -> clipping.BatchGradients:
    parts = layer_norms.gradients_by_layer(models, losses_of, variables)
    return clipping.BatchGradients(parts, variables)
