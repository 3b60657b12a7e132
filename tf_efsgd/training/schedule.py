"""When the generator's step is due, and its moving average; both depend only on releases."""

from __future__ import annotations

import tensorflow as tf

# Below this accuracy on generated images the discriminator has fallen behind (Bie et al. 2023,
# Private GANs, Revisited, on the update frequency), and the generator waits, up to the maximum.
_FAKE_ACCURACY_TARGET = 0.6
_FAKE_ACCURACY_DECAY = 0.8
MAX_DISCRIMINATOR_STEPS = 64


class Schedule:
    """The part of `EFSGDGan` that counts steps in variables, whose names stand in checkpoints."""

    # Attributes of the whole model.
    generator: tf.keras.Model
    ema_generator: tf.keras.Model
    # Set by `compile`.
    _discriminator_steps: int
    _discriminator_only_steps: int
    _adaptive_discriminator_steps: bool
    _generator_ema: float

    def _make_counters(self) -> None:
        def counter(name):
            return tf.Variable(0, trainable=False, dtype=tf.int64, name=name)

        self.private_steps = counter('private_steps')
        self.generator_steps = counter('generator_steps')
        self.steps_since_generator = counter('steps_since_generator')
        self.discriminator_steps = counter('discriminator_steps')
        self.fake_accuracy = tf.Variable(0.5, trainable=False, name='fake_accuracy')

    def _count_private_step(self, fake_accuracy: tf.Tensor) -> None:
        self.private_steps.assign_add(1)
        self.steps_since_generator.assign_add(1)
        self.fake_accuracy.assign(
            _FAKE_ACCURACY_DECAY * self.fake_accuracy + (1.0 - _FAKE_ACCURACY_DECAY) * fake_accuracy
        )

    def _generator_is_due(self) -> tf.Tensor:
        due = (self.steps_since_generator >= self._discriminator_steps) & (
            self.private_steps > self._discriminator_only_steps
        )
        if not self._adaptive_discriminator_steps:
            return due
        waited = self.steps_since_generator >= MAX_DISCRIMINATOR_STEPS
        return due & ((self.fake_accuracy >= _FAKE_ACCURACY_TARGET) | waited)

    def _after_generator_step(self) -> None:
        self.discriminator_steps.assign(self.steps_since_generator)
        self.steps_since_generator.assign(0)
        self.generator_steps.assign_add(1)
        # At first it averages the last third of the steps, so that random weights are soon gone.
        steps = tf.cast(self.generator_steps, tf.float32)
        decay = tf.minimum(self._generator_ema, (1.0 + steps) / (4.0 + steps))
        for average, variable in zip(self.ema_generator.weights, self.generator.weights):
            average.assign(decay * average + (1.0 - decay) * variable)
