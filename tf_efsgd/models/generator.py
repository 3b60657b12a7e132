"""The class-conditional generator: it makes images from latents and labels, and injects noise."""

from __future__ import annotations

import tensorflow as tf

from tf_efsgd.models.layers import (
    GroupNormalization,
    NoiseInjection,
    ReturningTanh,
    SmoothColours,
)

LATENTS = 'latents'
LABELS = 'labels'

ARCHITECTURES = ('plain', 'skip')

_EMBEDDING_DIM = 32
_STYLE_DIM, _LEAST_WIDTH = 128, 16
# With skips, at least a quarter of the channels is left up to this size; every doubling beyond it
# halves them, because a step spends most of its time at the highest resolution.
_SIZE_OF_DETAIL = 32
# The standard deviations of the initial weights from the style to scales and shifts.
_SCALE_STDDEV, _SHIFT_STDDEV = 0.02, 0.05
# The standard deviation of the initial embedding of the labels. A GAN from scratch must begin with
# latents that outweigh it, otherwise it makes one image per class. A generator that is fitted to
# feature sums of the classes learns faster if classes begin apart, here twice as far as latents.
EMBEDDING_STDDEV = 0.03
EMBEDDING_STDDEV_FOR_WARM_START = 2.0


def start_size(image_size: int) -> int:
    """The height and width from which doubling reaches `image_size`.

    Args:
      image_size: height and width of the images, in pixels.

    Returns:
      A size of 4 to 7 pixels.

    Raises:
      ValueError: if doubling never reaches `image_size`.
    """
    size = image_size
    while size >= 8 and size % 2 == 0:
        size //= 2
    if not 4 <= size <= 7:
        allowed = sorted({s * 2**k for s in (4, 5, 6, 7) for k in range(image_size.bit_length())})
        nearest = min(allowed, key=lambda a: abs(a - image_size))
        raise ValueError(
            'image_size must be 4, 5, 6 or 7 times a power of two (28, 32, 48, 64, ...). '
            f'Received: {image_size}; the nearest allowed size is {nearest}.'
        )
    return size


def build_generator(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    latent_dim: int = 64,
    width: int = 64,
    noise_injection: bool = True,
    embedding_stddev: float = EMBEDDING_STDDEV,
    architecture: str = 'plain',
) -> tf.keras.Model:
    """Builds the generator.

    No layer mixes examples: it has GroupNormalization, never BatchNormalization.

    Args:
      image_shape: (H, W, C) with H = W as in `start_size`.
      num_classes: number of labels.
      latent_dim: size of the latent vector.
      width: number of channels at the start. They are halved at each upsampling, to no fewer than
        16; with skips, to no fewer than a quarter of `width` up to 32 pixels.
      noise_injection: whether to inject noise after each upsampling.
      embedding_stddev: standard deviation of the initial embedding of the labels, > 0; that of
        latents is 1.
      architecture: 'plain': latents and label enter at the lowest resolution, and the image is made
        at the highest. 'skip': they scale and shift the channels at every resolution (Perez et al.
        2018), and every resolution adds to the image (Karras et al. 2020, An Analysis of StyleGAN,
        section 4.1), so colours and light are learned in few steps and vary within a class.

    Returns:
      A model from a dict to images, float32 [n, H, W, C] in [-1, 1]. The dict, which `draw_inputs`
      draws, has 'latents' float32 [n, latent_dim], 'labels' int32 [n] in [0, num_classes) and,
      with noise injection, 'noise_<size>' float32 [n, size, size, 1].

    Raises:
      ValueError: if `image_shape` cannot be reached, or there is no such architecture.
    """
    height, image_width, channels = image_shape
    if height != image_width:
        raise ValueError(f'Images must be square. Received: {height}x{image_width}.')
    if architecture not in ARCHITECTURES:
        allowed = ' or '.join(ARCHITECTURES)
        raise ValueError(f'architecture must be {allowed}. Received: {architecture}.')
    size = start_size(height)
    latents = tf.keras.Input([latent_dim], name=LATENTS)
    labels = tf.keras.Input([], dtype=tf.int32, name=LABELS)
    inputs = {LATENTS: latents, LABELS: labels}

    classes = tf.keras.layers.Embedding(
        num_classes,
        _EMBEDDING_DIM,
        embeddings_initializer=tf.keras.initializers.RandomNormal(stddev=embedding_stddev),
        name='classes',
    )(labels)
    drawn = tf.keras.layers.Concatenate()([latents, classes])
    has_skips = architecture == 'skip'
    least = max(width // 4, _LEAST_WIDTH) if has_skips else _LEAST_WIDTH
    style = _style(drawn) if has_skips else None
    x = tf.keras.layers.Dense(size * size * width)(drawn)
    x = tf.keras.layers.Reshape([size, size, width])(x)
    x = _normalize_and_activate(x, style)
    images = tf.keras.layers.Conv2D(channels, 1)(x) if has_skips else None
    while size < height:
        size *= 2
        if has_skips and size > _SIZE_OF_DETAIL:
            least = max(least // 2, _LEAST_WIDTH)
        width = max(width // 2, least)
        x = tf.keras.layers.Conv2DTranspose(width, 4, strides=2, padding='same')(x)
        if noise_injection:
            noise = tf.keras.Input([size, size, 1], name=f'noise_{size}')
            inputs[noise.name] = noise
            x = NoiseInjection(name=f'noise_injection_{size}')(x, noise=noise)
        x = _normalize_and_activate(x, style)
        if has_skips:
            enlarged = tf.keras.layers.UpSampling2D(interpolation='bilinear')(images)
            # A kernel of 3 x 3 would take eight times as long, and most of the time of a step.
            images = tf.keras.layers.Add()([enlarged, SmoothColours(channels)(x)])
    if has_skips:
        images = ReturningTanh()(images)
    else:
        images = tf.keras.layers.Conv2D(channels, 3, padding='same', activation='tanh')(x)
    return tf.keras.Model(inputs, images, name='generator')


def _style(drawn):
    """Makes, from latents and label, what scales and shifts the channels at every resolution."""
    return tf.keras.layers.LeakyReLU(0.2)(tf.keras.layers.Dense(_STYLE_DIM)(drawn))


def _normalize_and_activate(x, style=None):
    channels = x.shape[-1]
    x = GroupNormalization(groups=max(1, min(8, channels // 8)))(x)
    if style is not None:
        scale, shift = (
            tf.keras.layers.Reshape([1, 1, channels])(
                tf.keras.layers.Dense(
                    channels,
                    kernel_initializer=tf.keras.initializers.RandomNormal(stddev=stddev),
                    bias_initializer=bias,
                )(style)
            )
            for stddev, bias in ((_SCALE_STDDEV, 'ones'), (_SHIFT_STDDEV, 'zeros'))
        )
        x = tf.keras.layers.Add()([tf.keras.layers.Multiply()([x, scale]), shift])
    return tf.keras.layers.LeakyReLU(0.2)(x)


def draw_inputs(
    generator: tf.keras.Model,
    labels: tf.Tensor,
    seed: tf.Tensor | None = None,
    rows: tf.Tensor | None = None,
) -> dict[str, tf.Tensor]:
    """Draws latents and noise images for given labels; this randomness is public.

    Args:
      generator: from `build_generator`.
      labels: int32 [n].
      seed: int32 [2] for a repeatable draw; None draws new inputs at each call.
      rows: int32 [m], which rows of the draw to return; None returns all.

    Returns:
      All inputs of the generator, [n, ...] or [m, ...].
    """
    drawn = [name for name in generator.input if name != LABELS]
    seeds = [None] * len(drawn)
    if seed is not None:
        seeds = tf.unstack(tf.random.experimental.stateless_split(seed, len(drawn)))
    inputs = {LABELS: labels}
    for name, own_seed in zip(drawn, seeds):
        shape = [tf.shape(labels)[0], *generator.input[name].shape[1:]]
        inputs[name] = (
            tf.random.normal(shape)
            if own_seed is None
            else tf.random.stateless_normal(shape, own_seed)
        )
    if rows is None:
        return inputs
    return {name: tf.gather(value, rows) for name, value in inputs.items()}


def inputs_from_latents(
    generator: tf.keras.Model, labels: tf.Tensor, latents: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Makes all inputs of the generator for latents that the caller gives.

    The injected noise is one fixed draw, the same for every image. So the same latents give the
    same image whatever the other images are, and a path between two latents is smooth.

    Args:
      generator: from `build_generator`.
      labels: int32 [n].
      latents: float32 [n, latent_dim]; standard normal latents give images like `draw_inputs`.

    Returns:
      All inputs of the generator, [n, ...].
    """
    drawn = draw_inputs(generator, labels[:1], tf.zeros([2], tf.int32))
    count = tf.shape(labels)[0]
    inputs = {
        name: tf.broadcast_to(value, [count, *value.shape[1:]]) for name, value in drawn.items()
    }
    return {**inputs, LABELS: labels, LATENTS: latents}
