"""The GAN whose discriminator is small heads on a frozen public network.

The generator follows the heads and a release at once.

Formal guarantees: those of `EFSGDGan`, whose private step this is. A record's loss depends on its
features, its label and the weights, and its gradient is clipped over all heads together. As there,
the generator's step sees only generated images and releases.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from tf_efsgd import replicas
from tf_efsgd.data.images import to_uint8
from tf_efsgd.models.public_heads import LOGITS, RECONSTRUCTION, HeadInputs, Maps
from tf_efsgd.training.gan import EFSGDGan
from tf_efsgd.training.targets import Made, generate_for_target

_IMAGES_PER_PART = 256
# The purpose of the joint step's public seed; `EFSGDGan` has 0 to 2.
_JOINT = 3
# The balance of the two gradients is measured after so many steps, and averaged with this decay.
_BALANCE_EVERY, _BALANCE_MEMORY = 10, 0.7
_LARGEST_BALANCE = 1e4


class PublicHeadsGan(EFSGDGan):
    """`EFSGDGan` whose discriminator is heads on a frozen public network.

    Batches of `fit` are Poisson samples (features float16 [n, size] from `record_features`, labels
    int32 [n]).

    Args:
      generator: as for `EFSGDGan`.
      heads: from `build_public_heads`, for the shapes of `inputs`.
      draw_inputs: as for `EFSGDGan`.
      inputs: computes what the heads see of a generated image; its network may be in bfloat16.
      **kwargs: of `EFSGDGan`.
    """

    def __init__(self, generator, heads: tf.keras.Model, draw_inputs, inputs: HeadInputs, **kwargs):
        super().__init__(generator, heads, draw_inputs, **kwargs)
        # Keras must not track it: the weights of the public network are not part of a checkpoint.
        self._get_inputs = lambda: inputs
        self._wrong_class_weight = 0.0
        self.balance = tf.Variable(0.0, trainable=False, name='balance')

    def compile(self, *args, wrong_class_weight: float = 1.0, generated: int = 100, **kwargs):
        """Configures training, as `EFSGDGan.compile` does.

        Args:
          *args: of `EFSGDGan.compile`.
          wrong_class_weight: the weight of `HingeLosses.wrong_class` in a record's loss, >= 0. With
            it the heads also learn to tell the classes apart. On CIFAR-10 nothing else improved
            results as much.
          generated: how many generated images the heads see in a step, at least 1, a public
            constant; together they weigh as much as the expected number of records.
          **kwargs: of `EFSGDGan.compile`.
        """
        self._wrong_class_weight = wrong_class_weight
        kwargs = {'adaptive_discriminator_steps': False, 'discriminator_steps': 1, **kwargs}
        super().compile(*args, generated_per_step=generated, **kwargs)

    def _records_to_float(self, records: tf.Tensor) -> tf.Tensor:
        return tf.cast(records, tf.float32)

    def _losses_of_records(self, features, labels, draws=None) -> tf.Tensor:
        outputs = self.discriminator(features, training=True)
        logits = outputs[LOGITS]
        losses = self._losses.real(self._losses.realness(logits, labels))
        if self._wrong_class_weight:
            losses += self._wrong_class_weight * self._losses.wrong_class(logits, labels)
        errors = self._reconstruction_losses(outputs, features, labels, draws)
        return losses if errors is None else losses + self._reconstruction_weight * errors

    def _reconstruction_losses(self, outputs, features, labels, draws) -> tf.Tensor | None:
        if RECONSTRUCTION not in outputs:
            return None
        pixels = self._get_inputs().patches(features)
        return self._losses.reconstruction(pixels, outputs[RECONSTRUCTION])

    def _measured_sums_of_share(self, images, labels, draws):
        sums = super()._measured_sums_of_share(images, labels, draws)
        heads = self.discriminator.output[LOGITS].shape[1]
        return {**sums, 'real_accuracy': sums['real_accuracy'] / heads}

    def _losses_of_generated(self, features, labels) -> tuple[tf.Tensor, tf.Tensor]:
        logits = self.discriminator(features, training=True)[LOGITS]
        realness = self._losses.realness(logits, labels)
        return self._losses.fake(realness), tf.reduce_mean(realness, axis=1)

    def _look_at_generated(self, images, for_generator):
        # In the private step only the heads learn; the generator learns in its own step.
        return images if for_generator else tf.stop_gradient(self._get_inputs()(images))

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
          float32 [n]. They are public for generated images, because the heads are released.
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

        This is post-processing of what was released. On CIFAR-10 a classifier that learned from the
        best two thirds was right on 1 to 2 percent more of the real images.

        Args:
          labels: int32 [n].
          seed: of latents; public.
          candidates: how many images are made for each one that is kept, at least 1.

        Returns:
          uint8 [n, H, W, C], with these labels, in an order that does not depend on the margins.
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
          target: has the methods `draw_labels` and `loss`, which takes (images, maps), labels, a
            seed and a share; e.g. `training.targets.AveragedTarget` of `OfMaps`. It must not look
            at records, only at what was released of them.
          weight: of the heads, >= 0; that of the release is 1.
        """
        self.set_target(target, weight)

    def generator_step(self) -> None:
        """The public step, in a replica context; it sees no record."""
        if self._target.value is None:
            super().generator_step()
            return
        variables = self.generator.trainable_variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            by_release, by_heads = self._joint_losses(self._joint_images())
            loss = by_release + self._target.value[1] * self.balance * by_heads
        self._apply_to_generator([tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)])

    def _whole_generator_step(self) -> None:
        if self._target.value is not None:
            due = tf.equal(self.private_steps % _BALANCE_EVERY, 0) | tf.equal(self.balance, 0.0)
            tf.cond(due, self._measure_balance, lambda: tf.constant(0.0))
        super()._whole_generator_step()

    def _joint_images(self) -> Made:
        seed = self._public_seed(_JOINT)
        return generate_for_target(self._target.value[0], self.generator, self._draw_inputs, seed)

    def _joint_losses(self, made: Made) -> tuple[tf.Tensor, tf.Tensor]:
        """This replica's part of the two losses; only its gradients are exact, not its value."""
        maps = self._get_inputs().maps(made.images)
        by_release = self._target.value[0].loss(
            (made.images, maps), made.labels, made.seed, made.share
        )
        by_heads = self._of_heads(made.images, maps, made.own_labels)
        return by_release, replicas.mean_over_images(made.share, by_heads)

    def _measure_balance(self) -> tf.Tensor:
        """Measures, on generated images, how many times longer the release's gradient is."""
        strategy = self.distribute_strategy
        found = strategy.run(self._ratio_of_gradients)
        # It is the same on every replica.
        found = tf.minimum(strategy.experimental_local_results(found)[0], _LARGEST_BALANCE)
        memory = tf.where(self.balance > 0.0, _BALANCE_MEMORY, 0.0)
        return self.balance.assign(memory * self.balance + (1.0 - memory) * found)

    def _ratio_of_gradients(self) -> tf.Tensor:
        """The ratio of the lengths of the gradients by all images; call it in a replica context."""
        made = self._joint_images()
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
            tape.watch(made.images)
            losses = self._joint_losses(made)
        squares = [tf.reduce_sum(tape.gradient(loss, made.images) ** 2) for loss in losses]
        return tf.math.divide_no_nan(*map(tf.sqrt, replicas.all_reduce(squares)))


class OfMaps:
    """Features of (images, maps), for a target that is given both.

    Args:
      features: has `of_maps`, like `privacy.features.public.PublicFeatures`.
    """

    def __init__(self, features):
        self._features = features

    def group(self, images_and_maps, group) -> tf.Tensor:
        """As `GroupedFeatures.group`."""
        del group
        return self._features.of_maps(*images_and_maps)


class OnNetwork:
    """Features of generated images from the maps of another network than that of the release.

    Args:
      features: as for `OfMaps`.
      network: nearly the same function as the network of `features`, e.g. a copy in another
        precision.
    """

    def __init__(self, features, network: tf.keras.Model):
        self._features = features
        self._get_network = lambda: network

    def group(self, images, group) -> tf.Tensor:
        """As `GroupedFeatures.group`."""
        del group
        return self._features.of_maps(images, self._get_network()(images, training=False))
