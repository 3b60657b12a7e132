"""E, the buffer of the error feedback, as slots of a Keras optimizer: it is in every checkpoint."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

_BUFFER = 'error_feedback'

# A Keras optimizer stands behind the mixin in the bases; a type checker knows nothing of it here.
_Behind: Any = object


class FeedbackSlots(_Behind):
    """The part of `PrivateOptimizer` that keeps E, one slot per variable."""

    def _create_slots(self, var_list):
        """Makes the slots of the base class, then those of E, always in the same order.

        An HDF5 file knows slots by their order alone.
        """
        super()._create_slots(var_list)
        # Restoring a checkpoint makes slots before the first step.
        self._count_parameters(var_list)
        if self.mechanism.has_buffer:
            for variable in var_list:
                self.add_slot(variable, _BUFFER)

    def _buffer(self, var_list):
        """E, one slot per variable; zeros at first. Every checkpoint holds it."""
        with tf.init_scope():
            self._create_all_weights(var_list)
            return [self.get_slot(v, _BUFFER) for v in var_list]

    def buffer_norm(self, var_list) -> tf.Tensor | None:
        """The norm of E, which is public: E is a function of earlier releases.

        Args:
          var_list: all variables that a step updates.

        Returns:
          float32 []; None without a buffer, or with a hidden one, which is private.
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
