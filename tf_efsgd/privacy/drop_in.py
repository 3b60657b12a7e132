"""A mixin for your own Keras models that the drop-in optimizer trains on Poisson samples."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


class PoissonTraining:
    """Makes an empty batch a step like any other, whatever layers a model has.

    A Poisson sample may be empty, and its step must run nevertheless: its noise is part of what was
    accounted for. The optimizers accept a loss vector of no records, but a few layers already fail
    in the forward pass: `ConvLSTM2D` does, and with `run_eagerly` so does `Flatten`. Name this
    class first among the bases, and the layers never see less than one record:

    ```python
    class Classifier(PoissonTraining, tf.keras.Model):
        ...
    ```
    """

    def train_step(self: tf.keras.Model, data) -> dict[str, tf.Tensor]:
        """Trains as Keras does; for an empty batch one record of zeros takes the forward pass.

        That record has no loss, so nothing of it reaches the sums.

        Args:
          data: (x, y) or (x, y, sample_weight), x dense, [batch, ...]; batch may be 0.

        Returns:
          The metrics by name.
        """
        x, y, sample_weight = tf.keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            padded = self(_pad(x), training=True)
            count = tf.shape(tf.nest.flatten(x)[0])[0]
            y_pred = tf.nest.map_structure(lambda part: part[:count], padded)
            loss = self.compute_loss(x, y, y_pred, sample_weight)
        self._validate_target_and_loss(y, loss)
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return self.compute_metrics(x, y, y_pred, sample_weight)


def _pad(x: Any) -> Any:
    """The records, or one of zeros if there are none."""
    first = tf.nest.flatten(x)[0]
    if first.shape[0]:
        return x

    def one_of_zeros():
        return tf.nest.map_structure(lambda part: tf.zeros([1, *part.shape[1:]], part.dtype), x)

    return tf.cond(tf.shape(first)[0] > 0, lambda: x, one_of_zeros)
