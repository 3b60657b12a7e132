"""The generator's own step. It is public: it uses generated images and what was released."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_efsgd import replicas
from tf_efsgd.models.discriminator import LOGITS
from tf_efsgd.training.generated import GeneratedImages
from tf_efsgd.training.private_model import Box, gradient_of_sum, zeros_like
from tf_efsgd.training.schedule import Schedule
from tf_efsgd.training.targets import generate_for_target

# The purpose of a public seed; 0 and 1 are those of the generated images of the two steps.
_TARGET = 2


class GeneratorStep(GeneratedImages, Schedule):
    """The part of `EFSGDGan` that trains the generator; no record enters it."""

    # Attributes of the whole model.
    discriminator: tf.keras.Model
    distribute_strategy: tf.distribute.Strategy
    train_function: Any
    _target: Box
    # Set by `compile`.
    generator_optimizer: tf.keras.optimizers.legacy.Optimizer
    _losses: Any

    def set_target(self, target, weight: float):
        """Adds a public term to the generator's loss; call it before `fit`.

        The generator's own steps then make the images that the target asks for, and use them for
        both terms.

        Args:
          target: has the methods `draw_labels` and `distance` of `training.targets.Target`; on one
            replica `distance` needs no `share`. It must not look at records, only at what was
            released of them.
          weight: of the distance, >= 0; that of the adversarial term is 1, per image.
        """
        self._target.value = target, weight
        self.train_function = None

    def _whole_generator_step(self) -> None:
        self.distribute_strategy.run(self.generator_step)
        self._after_generator_step()

    def generator_step(self) -> None:
        """The public step, in a replica context; no record enters it."""
        variables = self.generator.trainable_variables

        def gradient():
            return gradient_of_sum(self._loss_of_generator, variables)

        if self._target.value is None and self._generated_per_step < replicas.count():
            # TensorFlow's convolutions fail on no images at all.
            gradients = tf.cond(
                tf.shape(self._own_rows())[0] > 0,
                gradient,
                lambda: zeros_like(variables),
            )
        else:
            gradients = gradient()
        self._apply_to_generator(gradients)

    def _apply_to_generator(self, gradients) -> None:
        """Updates the generator by the sum of all replicas' gradients, one for each variable."""
        variables = self.generator.trainable_variables
        self.generator_optimizer.apply_gradients(
            zip(replicas.all_reduce(gradients), variables), experimental_aggregate_gradients=False
        )

    def _loss_of_generator(self) -> tf.Tensor:
        """This replica's part of the loss, []: the gradients of all replicas are added up."""
        if self._target.value is None:
            generated, labels = self._generate_share(for_generator=True)
            return tf.reduce_sum(self._adversarial(generated, labels)) / self._generated_per_step
        target, weight = self._target.value
        made = generate_for_target(
            target, self.generator, self._draw_inputs, self._public_seed(_TARGET)
        )
        adversarial = self._adversarial(made.images, made.own_labels)
        # A user's own target need not know of shares if there is only one replica.
        share = () if made.share is None else (made.share,)
        distance = target.distance(made.images, made.labels, made.seed, *share)
        return replicas.mean_over_images(made.share, adversarial) + weight * distance

    def _adversarial(self, generated, labels) -> tf.Tensor:
        logits = self.discriminator(generated, training=False)[LOGITS]
        return self._losses.generator(self._losses.realness(logits, labels))
