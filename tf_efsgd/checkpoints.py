"""Save and restore a run: everything that training goes on with, and nothing secret.

A checkpoint is for going on, not for sharing: `export.py` ships the generator.
"""

from __future__ import annotations

import json

import tensorflow as tf


class RunCheckpoints:
    """Checkpoints of one run: networks, optimizers with their error buffers, counters, schedule.

    Noise keys and their counters are in no variable that this tracks: a resumed run draws new ones.

    Args:
      folder: RUN/checkpoints.
      gan: the compiled model.
    """

    def __init__(self, folder: str, gan: tf.keras.Model):
        self._ledger_position = tf.Variable('', trainable=False, name='ledger_position')
        self._checkpoint = tf.train.Checkpoint(gan=gan, ledger_position=self._ledger_position)
        self._manager = tf.train.CheckpointManager(self._checkpoint, folder, max_to_keep=2)

    def save(self, step: int, ledger_position: dict) -> str:
        """Saves, with the ledger's position at this moment; returns the checkpoint's path."""
        self._ledger_position.assign(json.dumps(ledger_position))
        return self._manager.save(checkpoint_number=step)

    def restore_latest(self) -> dict | None:
        """Restores the last checkpoint.

        Returns:
          The ledger's position that it was saved with; None when there is no checkpoint.
        """
        path = self._manager.latest_checkpoint
        if path is None:
            return None
        status = self._checkpoint.restore(path).assert_existing_objects_matched()
        # Optimizers take their slots when they make them; a run that trains no more makes none,
        # and is not to be warned of that.
        status.expect_partial()
        return json.loads(self._ledger_position.numpy().decode())
