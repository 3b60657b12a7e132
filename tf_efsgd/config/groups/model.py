"""The settings of the networks."""

from __future__ import annotations

import dataclasses

from tf_efsgd.config.fields import boolean, integer, number, string


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The networks."""

    latent_dim: int = integer(
        64,
        'Size of the latent vector from which the generator makes an image.',
        at_least=1,
        at_most=4096,
    )
    generator_width: int = integer(
        64,
        'Number of channels at the start of the generator. A wider one costs time but no privacy, '
        'except with --reconstruction=generator.',
        at_least=1,
        at_most=4096,
    )
    discriminator_width: int = integer(
        32,
        'Number of channels of the first layer of the discriminator. Wider networks need more '
        'budget: the noise grows with the number of parameters.',
        at_least=1,
        at_most=4096,
    )
    noise_injection: bool = boolean(
        True, 'Add random noise after each upsampling of the generator, for more varied images.'
    )
    reconstruction: str = string(
        'head',
        'How the private step reconstructs records. head: by a small head of the discriminator; '
        'generator: by the generator, from a latent vector that the discriminator predicts, as in '
        'a variational autoencoder. The generator then learns from records too, but noise is '
        'then added to all of its parameters; with networks of the usual size that is several '
        'times as much noise. none: no reconstruction.',
        choices=('head', 'generator', 'none'),
    )
    reconstruction_weight: float = number(
        0.01,
        "Weight of the squared reconstruction error in a record's loss; with "
        "--reconstruction=generator also of the latent vector's divergence. With "
        '--discriminator=public_heads the default is 0.001.',
        at_least=0,
    )
    generator_ema: float = number(
        0.99,
        "Decay of the moving average of the generator's weights, per generator step. Pictures and "
        'export use the average; 0 uses the last weights.',
        at_least=0,
        below=1.0,
    )

    generator: str = string(
        'auto',
        'How the generator is built. plain: latents and label enter at the lowest resolution. '
        'skip: they enter at every resolution, and each adds to the image, so that colours vary. '
        'auto: skip with --discriminator=public_heads, else plain.',
        choices=('auto', 'skip', 'plain'),
        earlier='plain',
    )
    discriminator: str = string(
        'auto',
        'What the discriminator sees. pixels: images, which it learns from scratch; public_heads: '
        'the feature maps of the frozen network of --public_features, by small heads, so that the '
        'noise is small; auto: public_heads where there are public features, else pixels.',
        choices=('auto', 'public_heads', 'pixels'),
        earlier='pixels',
    )
