"""The drop-in way into a private step: any Keras model, a loss vector and a tape.

TF Privacy's optimizers work in this way: `compile` and `minimize` do what they do with any Keras
optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

# A Keras optimizer stands behind the mixin in the bases; a type checker knows nothing of it here.
_Behind: Any = object


class LossVector(_Behind):
    """The part of `PrivateOptimizer` that Keras calls: from a loss vector to the update."""

    # Set by `PrivateOptimizer`: whether `release` made the gradients that are applied next.
    _released: bool

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
            # The message does not say the size: that of a Poisson sample is private.
            is_size = tf.equal(tf.shape(loss)[0], self._num_microbatches)
            tf.debugging.Assert(is_size, [message])
        elif size != self._num_microbatches:
            raise ValueError(f'{message[:-1]}, batch size {size}.')

    def apply_gradients(self, grads_and_vars, name=None, experimental_aggregate_gradients=False):
        """Applies released gradients, which are the same on every replica and so never summed.

        Args:
          grads_and_vars: pairs of a gradient that `release` gave, with public terms added, and its
            variable.
          name: as in Keras.
          experimental_aggregate_gradients: ignored.

        Raises:
          ValueError: if no gradient was released since the last call.
        """
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


def check_float32(variables: Sequence[tf.Variable]) -> None:
    """Raises ValueError unless all variables are float32, which norms and sums are computed in."""
    for variable in variables:
        if variable.dtype.base_dtype != tf.float32:
            raise ValueError(
                'The private step updates float32 variables only: norms, clipping and sums are '
                "computed in that. Build the model with dtype='float32'. "
                f'Received: variable {variable.name!r} of {variable.dtype.base_dtype.name}.'
            )


def _jacobian(tape, loss: tf.Tensor, variables: Sequence[tf.Variable]) -> list[tf.Tensor]:
    """The jacobian of a loss vector [batch]: one [batch, *shape] per variable; batch may be 0.

    Over no records the backward pass of most convolutions and of recurrent layers fails.
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
