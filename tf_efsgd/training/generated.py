"""The generated images of one step: drawn from public seeds, shared out among the replicas."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tf_efsgd import replicas


class GeneratedImages:
    """The part of `EFSGDGan` that makes a step's generated images; it sees no record."""

    # Attributes of the whole model.
    generator: tf.keras.Model
    private_steps: tf.Variable
    num_classes: int
    _draw_inputs: Callable[..., dict[str, tf.Tensor]]
    _seed: int
    # Set by `compile`.
    _generated_per_step: int

    def _generate_share(
        self, for_generator: bool = False, part: slice = slice(None)
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Makes this replica's part of the step's generated images.

        Every replica draws all inputs from the same public seed and takes its own rows, so the
        images of a step do not depend on the number of replicas.

        Args:
          for_generator: whether the images are for the generator's step, which has its own seed.
          part: which of this replica's images to make, for microbatches.

        Returns:
          (what the networks see of the images, labels int32 [n]).
        """
        seed = self._public_seed(int(for_generator))
        labels = tf.random.stateless_uniform(
            [self._generated_per_step], seed, 0, self.num_classes, tf.int32
        )
        own = self._own_rows()[part]
        made = own
        if not own.shape[0]:  # 0, or not known while the graph is traced.
            # TensorFlow's convolutions fail on no images, or lose the number of channels.
            missing = tf.cast(tf.equal(tf.size(own), 0), tf.int32)
            made = tf.concat([own, tf.zeros([missing], tf.int32)], axis=0)
        inputs = self._draw_inputs(self.generator, labels, seed, made)
        images = self._look_at_generated(self.generator(inputs, training=False), for_generator)
        return images if made is own else images[: tf.size(own)], tf.gather(labels, own)

    def _look_at_generated(self, images: tf.Tensor, for_generator: bool) -> tf.Tensor:
        """What the discriminator's step or the generator's step is given of generated images."""
        del for_generator
        return images

    def _own_rows(self) -> tf.Tensor:
        """Which of a step's generated images this replica makes; none if there are too few."""
        first = tf.distribute.get_replica_context().replica_id_in_sync_group
        size = self._generated_per_step
        return tf.range(tf.minimum(first, size), size, replicas.count())

    def _public_seed(self, purpose: int) -> tf.Tensor:
        """The seed of this step's public draws for one purpose, int32 [2]."""
        return tf.random.experimental.stateless_fold_in(
            tf.constant([self._seed, purpose], tf.int32), self.private_steps
        )
