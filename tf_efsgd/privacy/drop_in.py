"""For Keras models of one's own that are trained on Poisson samples by the drop-in optimizer."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


class PoissonTraining:
    """Makes an empty batch a step like every other, whatever the layers of a model are.

    A Poisson sample may be empty, and its step must run nevertheless: its noise is part of what was
    accounted. The optimizers take a loss vector of no records. But a few layers fail before that,
    on the way forward: `ConvLSTM2D` does, and with `run_eagerly` so does `Flatten`. Name this class
    first, and they never see less than one record:

    ```python
    class Classifier(PoissonTraining, tf.keras.Model):
        ...
    ```
    """

    def train_step(self: tf.keras.Model, data) -> dict[str, tf.Tensor]:
        """As in Keras, but for an empty batch, where a record of zeros takes the way forward.

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
