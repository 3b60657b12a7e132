"""Keras layers of our own."""

from __future__ import annotations

import math

import tensorflow as tf


@tf.keras.utils.register_keras_serializable('tf_efsgd')
class NoiseInjection(tf.keras.layers.Layer):
    """Adds one noise image to all channels, each with its own learned scale.

    x + noise scale, scale a `Dense` with a kernel float32 [1, channels], zeros at first: the
    network learns where randomness helps (Karras et al. 2019, A Style-Based Generator, section 2).
    A `Dense`, because per-example gradients of one are known to every library for them. This noise
    is part of the generator; it has nothing to do with DP noise.
    """

    def build(self, input_shape):
        """Creates the scales for features [batch, H, W, channels]."""
        self.scale = tf.keras.layers.Dense(
            input_shape[-1], use_bias=False, kernel_initializer='zeros', name='scale'
        )
        self.scale.build([*input_shape[:-1], 1])
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, noise: tf.Tensor | None = None) -> tf.Tensor:
        """Injects noise.

        Args:
          inputs: features, float32 [batch, H, W, channels].
          noise: standard normal, float32 [batch, H, W, 1]; None draws it.

        Returns:
          float32 [batch, H, W, channels].
        """
        if noise is None:
            noise = tf.random.normal(tf.concat([tf.shape(inputs)[:-1], [1]], axis=0))
        return inputs + self.scale(noise)


@tf.keras.utils.register_keras_serializable('tf_efsgd')
class GroupNormalization(tf.keras.layers.GroupNormalization):
    """Keras' layer, computed in about half the time on images whose channels are last.

    Keras makes an axis of the groups and lets TensorFlow spread numbers for each of them over the
    pixels, twice. Here means and variances are taken per channel and row first, and what is left is
    one multiplication and one addition along whole rows.
    """

    # For `privacy.layer_norms`: the same function of the same variables.
    computes_as = tf.keras.layers.GroupNormalization

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Normalizes float32 [batch, ..., channels] over each group of channels."""
        _, *rows, channels = inputs.shape
        if not rows or None in rows or self.axis % inputs.shape.rank != inputs.shape.rank - 1:
            return super().call(inputs)
        height, width = rows[0], math.prod(rows[1:])
        x = tf.reshape(inputs, [-1, height, width * channels])

        def mean_of_group(x):  # For each channel, [batch, channels].
            of_channel = tf.reshape(tf.reduce_mean(x, axis=1), [-1, width, channels])
            of_channel = tf.reshape(tf.reduce_mean(of_channel, axis=1), [-1, self.groups, size])
            return tf.repeat(tf.reduce_mean(of_channel, axis=2), size, axis=1)

        def along_row(of_channel):
            return tf.tile(of_channel, [1, width])[:, tf.newaxis]

        size = channels // self.groups
        mean = mean_of_group(x)
        # The gradient of a variance does not depend on that of its mean.
        centered = along_row(tf.stop_gradient(mean))
        scale = tf.math.rsqrt(mean_of_group(tf.math.squared_difference(x, centered)) + self.epsilon)
        scale = scale * self.gamma if self.scale else scale
        shift = -mean * scale + (self.beta if self.center else 0.0)
        return tf.reshape(x * along_row(scale) + along_row(shift), tf.shape(inputs))


@tf.keras.utils.register_keras_serializable('tf_efsgd')
class ImageToPatches(tf.keras.layers.Layer):
    """Cuts images into patches that do not overlap; a Dense after it is a strided convolution.

    Unlike a Conv2D with stride = kernel size, its per-example gradients are one matrix product.

    Args:
      patch_size: height and width of a patch, in pixels; divides height and width of the image.
    """

    def __init__(self, patch_size: int, **kwargs):
        super().__init__(**kwargs)
        self.patch_size = patch_size

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps float32 [batch, H, W, C] to [batch, H / patch, W / patch, patch^2 C]."""
        # TensorFlow's op takes no less than 2.
        return inputs if self.patch_size == 1 else tf.nn.space_to_depth(inputs, self.patch_size)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), 'patch_size': self.patch_size}


@tf.keras.utils.register_keras_serializable('tf_efsgd')
class PatchesToImage(tf.keras.layers.Layer):
    """Lays out one patch per position as an image and crops it centrally.

    Args:
      image_size: height and width of the result, in pixels.
      patch_size: height and width of a patch, in pixels.
    """

    def __init__(self, image_size: int, patch_size: int, **kwargs):
        super().__init__(**kwargs)
        self.image_size = image_size
        self.patch_size = patch_size

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps float32 [batch, h, w, patch_size^2 C] to [batch, image_size, image_size, C]."""
        size = self.patch_size
        image = inputs if size == 1 else tf.nn.depth_to_space(inputs, size)
        margin = (image.shape[1] - self.image_size) // 2
        end = margin + self.image_size
        return image[:, margin:end, margin:end, :]

    def get_config(self) -> dict:
        """The constructor's arguments."""
        sizes = {'image_size': self.image_size, 'patch_size': self.patch_size}
        return {**super().get_config(), **sizes}
