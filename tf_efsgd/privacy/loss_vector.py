"""The drop-in way into a private step: any Keras model, a loss vector and a tape.

TF Privacy's optimizers work in this way: `compile` and `minimize` do what they do with any Keras
optimizer.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

# A Keras optimizer stands behind the mixin in the bases; a type checker knows nothing of it here.
_Behind: Any = object


class Unapplied:
    """What was released and not yet applied, for each replica of a graph and of eager code.

    A graph whose tracing failed between the two leaves nothing behind.
    """

    def __init__(self):
        self._eager: set[int] = set()
        self._of_graph: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    @tf.autograph.experimental.do_not_convert
    def add(self) -> None:
        """Notes a release; raises ValueError if the one before it was not applied."""
        waiting, replica = self._waiting(), _replica()
        if replica in waiting:
            raise ValueError(
                'A step may call release once, for all variables that it updates, and then '
                'apply_gradients. If a step was interrupted between the two, make a new optimizer '
                'and count that step too. Received: a second release before the first was applied.'
            )
        waiting.add(replica)

    @tf.autograph.experimental.do_not_convert
    def take(self) -> bool:
        """Notes that the release was applied; returns whether there was one."""
        waiting, replica = self._waiting(), _replica()
        was_there = replica in waiting
        waiting.discard(replica)
        return was_there

    def _waiting(self) -> set[int]:
        graph = _outermost_graph()
        return self._eager if graph is None else self._of_graph.setdefault(graph, set())


@tf.autograph.experimental.do_not_convert
def _outermost_graph() -> tf.Graph | None:
    """The graph of the outermost `tf.function` that is being traced; None in eager code."""
    if tf.executing_eagerly():
        return None
    graph = tf.compat.v1.get_default_graph()
    outer = getattr(graph, 'outer_graph', None)
    while outer is not None and outer.building_function:
        graph, outer = outer, getattr(outer, 'outer_graph', None)
    return graph


@tf.autograph.experimental.do_not_convert
def _replica() -> int:
    context = tf.distribute.get_replica_context()
    replica = 0 if context is None else context.replica_id_in_sync_group
    return replica if isinstance(replica, int) else int(tf.get_static_value(replica) or 0)


class LossVector(_Behind):
    """The part of `PrivateOptimizer` that Keras calls: from a loss vector to the update."""

    # Set by `PrivateOptimizer`: what `release` made and nobody has applied yet.
    _unapplied: Unapplied

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
        if not self._unapplied.take():
            raise ValueError(
                'apply_gradients got gradients that did not go through the private mechanism. '
                'Call minimize, or clipped_sums and release, first.'
            )
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
