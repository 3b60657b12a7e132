"""The GAN whose discriminator is small heads on a frozen public network.

The generator follows the heads and a release at once.

Formal guarantees: those of `EFSGDGan`, whose private step this is: a record's loss depends on its
features, its label and the weights, and what it adds is clipped over all heads together. Here as
there, generated images and releases are all that the generator's step sees.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from tf_efsgd.data.images import to_uint8
from tf_efsgd.models.public_heads import LOGITS, HeadInputs, Maps
from tf_efsgd.training.gan import EFSGDGan

_IMAGES_PER_PART = 256
# Public seeds of the joint step; `gan` has 0 to 2.
_JOINT = 3
# The balance of the two gradients is measured every so many steps and averaged like this.
_BALANCE_EVERY, _BALANCE_MEMORY = 10, 0.7
_LARGEST_BALANCE = 1e4


class PublicHeadsGan(EFSGDGan):
    """`EFSGDGan` with heads on a frozen public network for a discriminator.

    Batches of `fit` are (features float16 [n, size] from `record_features`, labels int32 [n]),
    Poisson samples.

    Args:
      generator: as for `EFSGDGan`.
      heads: from `build_public_heads`; its input is that of `inputs`.
      draw_inputs: as for `EFSGDGan`.
      inputs: what the heads see of a generated image.
      **kwargs: of `EFSGDGan`.
    """

    def __init__(self, generator, heads: tf.keras.Model, draw_inputs, inputs: HeadInputs, **kwargs):
        super().__init__(generator, heads, draw_inputs, **kwargs)
        # Not an attribute of Keras: the network's weights are no part of a checkpoint.
        self._get_inputs = lambda: inputs
        self._wrong_class_weight = 0.0
        self.balance = tf.Variable(0.0, trainable=False, name='balance')

    def compile(self, *args, wrong_class_weight: float = 1.0, generated: int = 100, **kwargs):
        """Configures training, as `EFSGDGan.compile`.

        Args:
          *args: of `EFSGDGan.compile`.
          wrong_class_weight: of `HingeLosses.wrong_class` in a record's loss, >= 0: heads that
            tell the classes apart, not only what is generated from what is not. On CIFAR-10 it was
            worth more than anything else.
          generated: how many generated images the heads see in a step, at least 1, a public
            constant; they weigh as much as the expected number of records.
          **kwargs: of `EFSGDGan.compile`.
        """
        self._wrong_class_weight = wrong_class_weight
        kwargs = {'adaptive_discriminator_steps': False, 'discriminator_steps': 1, **kwargs}
        super().compile(*args, generated_per_step=generated, **kwargs)

    def _records_to_float(self, records: tf.Tensor) -> tf.Tensor:
        return tf.cast(records, tf.float32)

    def _losses_of_records(self, features, labels, draws=None) -> tf.Tensor:
        logits = self.discriminator(features, training=True)[LOGITS]
        losses = self._losses.real(self._losses.realness(logits, labels))
        if self._wrong_class_weight:
            losses += self._wrong_class_weight * self._losses.wrong_class(logits, labels)
        return losses

    def _measured_sums_of_share(self, images, labels, draws):
        sums = super()._measured_sums_of_share(images, labels, draws)
        heads = self.discriminator.output[LOGITS].shape[1]
        return {**sums, 'real_accuracy': sums['real_accuracy'] / heads}

    def _losses_of_generated(self, features, labels) -> tuple[tf.Tensor, tf.Tensor]:
        logits = self.discriminator(features, training=True)[LOGITS]
        realness = self._losses.realness(logits, labels)
        return self._losses.fake(realness), tf.reduce_mean(realness, axis=1)

    def _generate_share(self, for_generator=False, part=slice(None)):
        images, labels = super()._generate_share(for_generator, part)
        # The heads alone learn in the private step; the generator has its own.
        return images if for_generator else tf.stop_gradient(self._get_inputs()(images)), labels

    def _adversarial(self, generated, labels) -> tf.Tensor:
        return self._of_heads(generated, self._get_inputs().maps(generated), labels)

    def _of_heads(self, images: tf.Tensor, maps: Maps, labels: tf.Tensor) -> tf.Tensor:
        seen = self._get_inputs().of_maps(images, maps)
        logits = self.discriminator(seen, training=False)[LOGITS]
        return self._losses.generator(self._losses.realness(logits, labels))

    def class_margins(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """How much more the heads take images for their own class than for any other.

        Args:
          images: generated ones, float32 [n, H, W, C] in [-1, 1].
          labels: int32 [n].

        Returns:
          float32 [n]. Public for generated images: the heads are released.
        """
        logits = self.discriminator(self._get_inputs()(images), training=False)[LOGITS]
        logits = tf.reduce_mean(logits, axis=1)
        own = tf.one_hot(labels, self.num_classes)
        others = tf.reduce_max(logits - _LARGEST_BALANCE * own, axis=1)
        return tf.reduce_sum(logits * own, axis=1) - others

    def generate_consistent(
        self, labels: np.ndarray, seed: int = 0, candidates: float = 1.5
    ) -> np.ndarray:
        """Generates more images than asked for and keeps those most like their class.

        Post-processing of what was released. On CIFAR-10 a classifier that learned from the best
        two thirds was right on 1 to 2 percent more real images.

        Args:
          labels: int32 [n].
          seed: of latents; public.
          candidates: how many images are made for each that is kept, at least 1.

        Returns:
          uint8 [n, H, W, C], of these labels, in an order that their margins do not show in.
        """
        labels = np.asarray(labels, np.int32)
        made = np.empty([len(labels), *self.generator.output_shape[1:]], np.uint8)
        for label in np.unique(labels):
            at = np.flatnonzero(labels == label)
            count = math.ceil(candidates * len(at))
            images, margins = [], []
            for start in range(0, count, _IMAGES_PER_PART):
                part = np.full(min(_IMAGES_PER_PART, count - start), label, np.int32)
                draw = tf.random.experimental.stateless_fold_in(
                    tf.constant([seed, int(label)], tf.int32), start
                )
                generated = self.generate(tf.constant(part), draw)
                images.append(to_uint8(generated).numpy())
                margins.append(self.class_margins(generated, part).numpy())
            best = np.argsort(-np.concatenate(margins), kind='stable')[: len(at)]
            made[at] = np.concatenate(images)[np.sort(best)]
        return made

    def follow(self, target, weight: float = 1.0) -> None:
        """Lets the generator follow a release and the heads at once; call it before `fit`.

        The gradients of both with respect to the images are brought to the same norm, the heads'
        times the weight.

        Args:
          target: has `draw_labels` and, from (images, maps), labels and a seed, `loss`, e.g.
            `training.targets.AveragedTarget` of `OfMaps`; it may look at no record, but at what was
            released of them.
          weight: of the heads, >= 0; that of the release is 1.
        """
        self.set_target(target, weight)

    def generator_step(self) -> None:
        """The public step, in a replica context: no record is near it."""
        if self._target.value is None:
            super().generator_step()
            return
        due = tf.equal(self.private_steps % _BALANCE_EVERY, 0) | tf.equal(self.balance, 0.0)
        tf.cond(due, self._measure_balance, lambda: tf.constant(0.0))
        variables = self.generator.trainable_variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            by_release, by_heads = self._joint_losses(self._joint_images()[1:])
            loss = by_release + self._target.value[1] * self.balance * by_heads
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync
        gradients = [tf.convert_to_tensor(g) / replicas for g in tape.gradient(loss, variables)]
        self.generator_optimizer.apply_gradients(zip(gradients, variables))

    def _joint_images(self):
        seeds = tf.random.experimental.stateless_split(self._public_seed(_JOINT), 3)
        labels = self._target.value[0].draw_labels(seeds[0])
        inputs = self._draw_inputs(self.generator, labels, seeds[1])
        images = self.generator(inputs, training=True)
        return None, images, labels, seeds[2]

    def _joint_losses(self, drawn):
        images, labels, seed = drawn
        maps = self._get_inputs().maps(images)
        by_release = self._target.value[0].loss((images, maps), labels, seed)
        return by_release, tf.reduce_mean(self._of_heads(images, maps, labels))

    def _measure_balance(self) -> tf.Tensor:
        """Of generated images only: how much longer the release's gradient is than the heads'."""
        drawn = self._joint_images()[1:]
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
            tape.watch(drawn[0])
            by_release, by_heads = self._joint_losses(drawn)
        norms = [tf.norm(tape.gradient(loss, drawn[0])) for loss in (by_release, by_heads)]
        found = tf.minimum(tf.math.divide_no_nan(*norms), _LARGEST_BALANCE)
        memory = tf.where(self.balance > 0.0, _BALANCE_MEMORY, 0.0)
        return self.balance.assign(memory * self.balance + (1.0 - memory) * found)


class OfMaps:
    """Features of (images, maps), for a target that is to be held against both.

    Args:
      features: has `of_maps`, as `privacy.features.public.PublicFeatures`.
    """

    def __init__(self, features):
        self._features = features

    def group(self, images_and_maps, group) -> tf.Tensor:
        """As `GroupedFeatures.group`."""
        del group
        return self._features.of_maps(*images_and_maps)
