"""A discriminator of small heads on a frozen public network, and the GAN that it is part of.

In the line of Projected GANs (Sauer et al. 2021). A record's features, a function of this record
and public constants, are computed once (`record_features`); the private step sees these alone, and
never runs the network on a record. Generated images go through the network, and
the generator follows the heads and a release at once.

Formal guarantees: those of `gan.EFSGDGan`, whose private step this is: a record's loss depends on
its features, its label and the weights, and what it adds is clipped over all heads together. Here
as there, generated images and releases are all that the generator's step sees.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tf_efsgd.models import gan

LOGITS = gan.LOGITS

STAGES = ('stage_2', 'stage_3', 'stage_4', 'stage_5')
_POOLED_SIZE = 8
_LARGEST_ACTIVATION = 5.0
_LEAST_DEVIATION = 1e-2
_RECORDS_PER_PART = 256

# Public seeds of the joint step; `gan` has 0 to 2.
_JOINT = 3
# The balance of the two gradients is measured every so many steps and averaged like this.
_BALANCE_EVERY, _BALANCE_MEMORY = 10, 0.7
_LARGEST_BALANCE = 1e4

Maps = Mapping[str, tf.Tensor]


class HeadInputs(tf.Module):
    """What the heads see of an image: pooled, standardized feature maps, as one vector.

    Args:
      network: frozen, from images, float32 [n, H, W, C] in [-1, 1], to a dict of feature maps with
        the names in `STAGES`.
      photographs: public ones, float32 [m, H, W, C] in [-1, 1], which channels are standardized by.
      pixels: a part more, patches of the image itself: a network with strides is blind to a pattern
        of their size, and generators learn to draw it.

    Attributes:
      shapes: (height, width, channels) of each part, in order.
      size: of the vector.
    """

    def __init__(self, network: tf.keras.Model, photographs: np.ndarray, *, pixels: bool = False):
        super().__init__(name='head_inputs')
        self._network = network
        self._patch = _patch_size(photographs.shape[1]) if pixels else None
        pooled = [
            np.concatenate(parts)
            for parts in zip(
                *(
                    [value.numpy() for value in self._parts(tf.constant(part), self.maps(part))]
                    for part in np.array_split(photographs, max(1, len(photographs) // 64))
                )
            )
        ]
        self.shapes = [values.shape[1:] for values in pooled]
        self.size = sum(math.prod(shape) for shape in self.shapes)
        self._means = [values.mean(axis=(0, 1, 2)) for values in pooled]
        self._deviations = [values.std(axis=(0, 1, 2)) + _LEAST_DEVIATION for values in pooled]

    def maps(self, images: tf.Tensor) -> Maps:
        """What the network makes of images, float32 [n, H, W, C] in [-1, 1]."""
        return self._network(images, training=False)

    def of_maps(self, images: tf.Tensor, maps: Maps) -> tf.Tensor:
        """The heads' input, float32 [n, size] in [-5, 5], of images whose maps are known."""
        parts = zip(self._parts(images, maps), self._means, self._deviations, self.shapes)
        flat = [
            tf.reshape((values - mean) / deviation, [-1, math.prod(shape)])
            for values, mean, deviation, shape in parts
        ]
        values = tf.concat(flat, axis=1)
        return tf.clip_by_value(values, -_LARGEST_ACTIVATION, _LARGEST_ACTIVATION)

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """The heads' input of images, float32 [n, H, W, C] in [-1, 1]: float32 [n, size]."""
        return self.of_maps(images, self.maps(images))

    def _parts(self, images: tf.Tensor, maps: Maps) -> list[tf.Tensor]:
        pooled = []
        for stage in STAGES:
            pooling = -(-maps[stage].shape[1] // _POOLED_SIZE)
            values = maps[stage]
            if pooling > 1:
                values = tf.nn.avg_pool2d(values, pooling, pooling, 'SAME')
            pooled.append(values)
        if self._patch is not None:
            pooled.append(tf.nn.space_to_depth(images, self._patch) if self._patch > 1 else images)
        return pooled


def _patch_size(height: int) -> int:
    """The smallest that leaves at most 8 patches to a side."""
    return next(p for p in range(1, height + 1) if height % p == 0 and height // p <= _POOLED_SIZE)


def record_features(
    inputs: HeadInputs, images: np.ndarray, path: str | os.PathLike | None = None
) -> np.ndarray:
    """What the heads see of all records: PRIVATE, as the records are.

    Every part has the same number of images, the last one with images that count nowhere, so that a
    record's features do not depend on how many others there are.

    Args:
      inputs: of the heads.
      images: uint8 [N, H, W, C].
      path: of a file to keep them in, mapped into memory and readable for its owner alone, outside
        the run folder; None keeps them in memory.

    Returns:
      float16 [N, inputs.size].

    Raises:
      OSError: if the file cannot be written.
    """
    shape = (len(images), inputs.size)
    if path is None:
        features = np.zeros(shape, np.float16)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        os.chmod(path, 0o600)
        features = np.lib.format.open_memmap(path, 'w+', np.float16, shape)
    compute = tf.function(lambda part: tf.cast(inputs(gan.to_float(part)), tf.float16))
    for start in range(0, len(images), _RECORDS_PER_PART):
        part = images[start : start + _RECORDS_PER_PART]
        padded = np.pad(part, [(0, _RECORDS_PER_PART - len(part)), (0, 0), (0, 0), (0, 0)])
        features[start : start + len(part)] = compute(tf.constant(padded)).numpy()[: len(part)]
    return features


def build_public_heads(
    shapes: Sequence[tuple[int, int, int]], num_classes: int, *, channels: int = 32
) -> tf.keras.Model:
    """Builds the heads: for each part a 1x1 convolution, and one logit per class.

    Args:
      shapes: `HeadInputs.shapes`.
      num_classes: number of labels.
      channels: of each head.

    Returns:
      A model from float32 [n, size], as `HeadInputs` makes it, to {'logits': float32 [n, heads,
      num_classes], above 0 for real}.
    """
    sizes = [math.prod(shape) for shape in shapes]
    inputs = tf.keras.Input([sum(sizes)], name='features')
    logits, start = [], 0
    for shape, size in zip(shapes, sizes):
        x = tf.keras.layers.Reshape(shape)(inputs[:, start : start + size])
        x = tf.keras.layers.Conv2D(channels, 1)(x)
        x = tf.keras.layers.Flatten()(tf.keras.layers.LeakyReLU(0.2)(x))
        x = tf.keras.layers.Dense(num_classes)(x)
        logits.append(tf.keras.layers.Reshape([1, num_classes])(x))
        start += size
    outputs = {LOGITS: tf.keras.layers.Concatenate(axis=1, name=LOGITS)(logits)}
    return tf.keras.Model(inputs, outputs, name='public_heads')


class HingeLosses:
    """Hinge losses of several heads (Lim and Ye 2017), the mean over heads; per example."""

    @staticmethod
    def realness(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Each head's logit of the example's own class: float32 [n, heads] from [n, heads, K]."""
        return tf.reduce_sum(logits * tf.one_hot(labels, logits.shape[-1])[:, tf.newaxis], axis=-1)

    @staticmethod
    def real(realness: tf.Tensor) -> tf.Tensor:
        """For the heads on records; float32 [n] from [n, heads]."""
        return tf.reduce_mean(tf.nn.relu(1.0 - realness), axis=1)

    @staticmethod
    def wrong_class(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """For the heads on records under the other labels (Reed et al. 2016, section 4.2).

        Args:
          logits: float32 [n, heads, K].
          labels: int32 [n], the right ones.

        Returns:
          float32 [n], the mean over heads and wrong labels.
        """
        num_classes = logits.shape[-1]
        others = 1.0 - tf.one_hot(labels, num_classes)
        of_class = tf.reduce_mean(tf.nn.relu(1.0 + logits), axis=1)
        return tf.reduce_sum(of_class * others, axis=1) / max(1, num_classes - 1)

    @staticmethod
    def fake(realness: tf.Tensor) -> tf.Tensor:
        """For the heads on generated images; float32 [n] from [n, heads]."""
        return tf.reduce_mean(tf.nn.relu(1.0 + realness), axis=1)

    @staticmethod
    def generator(realness: tf.Tensor) -> tf.Tensor:
        """For the generator on its images; float32 [n] from [n, heads]."""
        return -tf.reduce_mean(realness, axis=1)


class PublicHeadsGan(gan.EFSGDGan):
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
        # Variables that the first step would make would have it traced twice, at 10 s each.
        self.generator_optimizer._create_all_weights(self.generator.trainable_variables)
        self.discriminator_optimizer._create_all_weights(self.private_variables)

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
            for start in range(0, count, _RECORDS_PER_PART):
                part = np.full(min(_RECORDS_PER_PART, count - start), label, np.int32)
                draw = tf.random.experimental.stateless_fold_in(
                    tf.constant([seed, int(label)], tf.int32), start
                )
                generated = self.generate(tf.constant(part), draw)
                images.append(gan.to_uint8(generated).numpy())
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
            `warm_start.AveragedTarget` of `OfMaps`; it may look at no record, but at what was
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
        """As `warm_start.GroupedFeatures.group`."""
        del group
        return self._features.of_maps(*images_and_maps)
