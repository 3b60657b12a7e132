"""The discriminator: a trunk with one realness logit per class and, if wanted, a reconstruction."""

from __future__ import annotations

import math

import tensorflow as tf

from tf_efsgd.models.layers import ImageToPatches, PatchesToImage

LOGITS = 'logits'
RECONSTRUCTION = 'reconstruction'
POSTERIOR = 'posterior'

RECONSTRUCTIONS = ('head', 'generator', 'none')

_PATCH_SIZE = 4
# The posterior sees each position through only so many channels, so it has few parameters.
_POSTERIOR_CHANNELS = 8


def build_discriminator(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int = 32,
    reconstruction: str = 'head',
    latent_dim: int = 64,
) -> tf.keras.Model:
    """Builds the discriminator.

    It has one realness logit per class, and a record's label picks one of them. Under clipping that
    learns far faster than a label at the input. No layer mixes examples or has state, as the
    private step requires.

    Args:
      image_shape: (H, W, C) with H = W.
      num_classes: number of labels.
      width: number of channels after the first layer, which sees patches of 4x4 pixels (2x2 or 1x1
        if 4 does not divide the height); they double at each halving of the size after it.
      reconstruction: 'head' decodes the input from the last features of the trunk, where each
        position decodes its own patch; 'generator' predicts the latent vector from which the
        generator decodes the input; 'none' has no reconstruction.
      latent_dim: of that generator, at least 1.

    Returns:
      A model from images float32 [n, H, W, C] in [-1, 1] to a dict: 'logits' float32 [n,
      num_classes], above 0 for real; with 'head' also 'reconstruction' float32 [n, H, W, C] in
      [-1, 1]; with 'generator' also 'posterior' float32 [n, 2 latent_dim], see
      `losses.NonSaturatingLosses`.

    Raises:
      ValueError: if the images are not square or `reconstruction` is unknown.
    """
    height, image_width, channels = image_shape
    if height != image_width:
        raise ValueError(f'Images must be square. Received: {height}x{image_width}.')
    if reconstruction not in RECONSTRUCTIONS:
        raise ValueError(
            f'reconstruction must be one of {RECONSTRUCTIONS}. Received: {reconstruction!r}.'
        )
    images = tf.keras.Input(image_shape, name='images')
    # Patches come first: they leave a quarter of the height and width, and cheap gradients.
    stride = math.gcd(height, _PATCH_SIZE)
    x = tf.keras.layers.Dense(width)(ImageToPatches(stride)(images))
    x = tf.keras.layers.LeakyReLU(0.2)(x)
    while x.shape[1] > 4:
        width, stride = 2 * width, 2 * stride
        x = tf.keras.layers.Conv2D(width, 4, strides=2, padding='same')(x)
        x = tf.keras.layers.LeakyReLU(0.2)(x)
    features = tf.keras.layers.Flatten()(x)
    outputs = {LOGITS: tf.keras.layers.Dense(num_classes, name=LOGITS)(features)}
    if reconstruction == 'head':
        patches = tf.keras.layers.Dense(stride * stride * channels, activation='tanh')(x)
        outputs[RECONSTRUCTION] = PatchesToImage(height, stride, name=RECONSTRUCTION)(patches)
    if reconstruction == 'generator':
        seen = tf.keras.layers.LeakyReLU(0.2)(tf.keras.layers.Dense(_POSTERIOR_CHANNELS)(x))
        seen = tf.keras.layers.Flatten()(seen)
        outputs[POSTERIOR] = tf.keras.layers.Dense(2 * latent_dim, name=POSTERIOR)(seen)
    return tf.keras.Model(images, outputs, name='discriminator')
