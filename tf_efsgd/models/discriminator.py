"""The discriminator: one trunk, one realness logit per class, what reconstruction needs."""

from __future__ import annotations

import math

import tensorflow as tf

from tf_efsgd.models.layers import ImageToPatches, PatchesToImage

LOGITS = 'logits'
RECONSTRUCTION = 'reconstruction'
POSTERIOR = 'posterior'

RECONSTRUCTIONS = ('head', 'generator', 'none')

_PATCH_SIZE = 4
# The posterior sees each position through so many channels, which keeps its parameters few.
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

    One realness logit per class, of which a record's label picks one, learns far faster under
    clipping than a label at the input. No layer mixes examples and none has state: the private
    step needs both.

    Args:
      image_shape: (H, W, C) with H = W.
      num_classes: number of labels.
      width: channels after the first layer, which sees patches of 4x4 pixels (2x2 or 1x1 where 4
        does not divide the height); doubled at each halving after it.
      reconstruction: 'head' decodes the input from the trunk's last features, each position its
        own patch; 'generator' says what latent vector the generator is to decode it from; 'none'
        leaves that out.
      latent_dim: of that generator, at least 1.

    Returns:
      A model from images float32 [n, H, W, C] in [-1, 1] to {'logits': float32 [n, num_classes],
      above 0 for real; with 'head' 'reconstruction': float32 [n, H, W, C] in [-1, 1]; with
      'generator' 'posterior': float32 [n, 2 latent_dim], see `losses.NonSaturatingLosses`}.

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
    # Patches first: a quarter of the positions at once, and per-example gradients that are cheap.
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
