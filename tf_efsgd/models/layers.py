"""Keras layers of our own."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

# The slope of `ReturningTanh` where a step leads back towards 0; tanh itself has it at 1.8.
_LEAST_SLOPE = 0.1


@tf.keras.utils.register_keras_serializable('tf_efsgd')
class NoiseInjection(tf.keras.layers.Layer):
    """Adds one noise image to all channels, each with its own learned scale.

    It computes x + scale(noise). The scale is a `Dense` with a kernel float32 [1, channels], which
    is zero at first: the network learns where randomness helps (Karras et al. 2019, A Style-Based
    Generator, section 2). It is a `Dense` because every library for per-example gradients knows
    that layer. This noise is part of the generator and has nothing to do with DP noise.
    """

    def build(self, input_shape):
        """Creates the scales for features [batch, H, W, channels]."""
        self.scale = tf.keras.layers.Dense(
            input_shape[-1],
            use_bias=False,
            kernel_initializer='zeros',
            name='scale',
            dtype=self.dtype_policy,
        )
        self.scale.build([*input_shape[:-1], 1])
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, noise: tf.Tensor | None = None) -> tf.Tensor:
        """Injects noise.

        Args:
          inputs: features, float32 [batch, H, W, channels].
          noise: standard normal, float32 [batch, H, W, 1]; None draws it here.

        Returns:
          float32 [batch, H, W, channels].
        """
        if noise is None:
            noise = tf.random.normal(tf.concat([tf.shape(inputs)[:-1], [1]], axis=0))
        return inputs + self.scale(noise)


@tf.keras.utils.register_keras_serializable('tf_efsgd')
class GroupNormalization(tf.keras.layers.GroupNormalization):
    """Keras' layer, but about twice as fast on images whose channels are last.

    Keras makes an axis of the groups, and TensorFlow spreads the numbers of each group over the
    pixels, twice. Here means and variances are taken per channel and row first, and only one
    multiplication and one addition along whole rows are left.
    """

    # For `privacy.layer_norms`: the layer is the same function of the same variables as this one.
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
        # The gradient of a variance does not depend on the gradient of the mean.
        centered = along_row(tf.stop_gradient(mean))
        scale = tf.math.rsqrt(mean_of_group(tf.math.squared_difference(x, centered)) + self.epsilon)
        scale = scale * self.gamma if self.scale else scale
        shift = -mean * scale + (self.beta if self.center else 0.0)
        return tf.reshape(x * along_row(scale) + along_row(shift), tf.shape(inputs))


@tf.keras.utils.register_keras_serializable('tf_efsgd')
class SmoothColours(tf.keras.layers.Layer):
    """A 1 x 1 convolution from features to colours, then a low-pass filter of the image.

    A transposed convolution leaves patterns that alternate from pixel to pixel (Odena et al. 2016,
    Deconvolution and Checkerboard Artifacts). Rows and columns are filtered by
    (-1, 4, 10, 4, -1) / 16: such patterns go, those with a period of four pixels keep three
    quarters, constants and slopes stay. Beyond its border the image is mirrored.

    Args:
      channels: of the image, 1 or 3.
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels

    def build(self, input_shape):
        """Creates the convolution for features [batch, H, W, channels], H and W at least 2."""
        # In bfloat16 its bias would be lost in sums over all pixels; so few channels cost nothing.
        self.convolution = tf.keras.layers.Conv2D(
            self.channels, 1, name='convolution', dtype='float32'
        )
        self.convolution.build(input_shape)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps float32 [batch, H, W, features] to [batch, H, W, channels]."""
        image = self.convolution(tf.cast(inputs, tf.float32))
        rows, columns = (tf.constant(_low_pass(n), image.dtype) for n in image.shape[1:3])
        image = tf.einsum('ij,bjwc->biwc', rows, image)
        return tf.cast(tf.einsum('ij,bhjc->bhic', columns, image), inputs.dtype)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), 'channels': self.channels}


def _low_pass(size):
    """The filter of `SmoothColours` for `size` pixels, as a matrix float64 [size, size]."""
    mirrored = np.pad(np.eye(size), ((2, 2), (0, 0)), mode='symmetric')
    taps = enumerate(np.array([-1, 4, 10, 4, -1]) / 16)
    return sum(weight * mirrored[start : start + size] for start, weight in taps)


@tf.keras.utils.register_keras_serializable('tf_efsgd')
class ReturningTanh(tf.keras.layers.Layer):
    """tanh with a gradient that leads back from where tanh itself is constant.

    In float32 tanh is constant beyond about 9. A generator that made only black or only white there
    would never learn again, and its whole budget would be lost. So what a step would move back
    towards 0 has at least a tenth of the gradient.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps float32 of any shape to [-1, 1]."""
        return _returning_tanh(inputs)


@tf.custom_gradient
def _returning_tanh(x):
    y = tf.tanh(x)

    def gradient(upstream):
        slope = 1.0 - y * y
        leads_back = tf.cast(upstream * y > 0, y.dtype)
        return upstream * tf.maximum(slope, _LEAST_SLOPE * leads_back)

    return y, gradient


@tf.keras.utils.register_keras_serializable('tf_efsgd')
class ImageToPatches(tf.keras.layers.Layer):
    """Cuts images into patches that do not overlap; with a Dense after it, a strided convolution.

    Unlike those of a Conv2D with stride = kernel size, its per-example gradients are one matrix
    product.

    Args:
      patch_size: height and width of a patch, in pixels; divides height and width of the image.
    """

    def __init__(self, patch_size: int, **kwargs):
        super().__init__(**kwargs)
        self.patch_size = patch_size

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps float32 [batch, H, W, C] to [batch, H / patch, W / patch, patch^2 C]."""
        # TensorFlow's op needs a block size of at least 2.
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
