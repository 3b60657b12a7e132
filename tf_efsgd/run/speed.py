"""How long a step takes on this machine, to choose how many there are in the minutes given."""

from __future__ import annotations

import time

import tensorflow as tf

from tf_efsgd.config import RunConfig
from tf_efsgd.data.records import Records
from tf_efsgd.models.generator import draw_inputs
from tf_efsgd.privacy.features import pixels, public
from tf_efsgd.run import build

_IMAGES = 100
_STEPS = 3
# A step with heads also has the private step and two optimizers: measured with the product's heads.
_OF_HEADS = 1.4


def seconds_per_step(config: RunConfig, train: Records) -> float:
    """Times a few generator steps on made-up targets; no record is looked at.

    Args:
      config: the settings, none of them 'auto'.
      train: the records, for the shape of the images and the number of classes.

    Returns:
      Seconds, the least of three.
    """
    generator = build.untrained_generator(config, train)
    network = build.build_public_network(config, train)
    if network is None:
        features = pixels.FeatureMap(train.image_shape)
    else:
        features = public.PublicFeatures(network, train.image_shape)
    variables = generator.trainable_variables
    labels = tf.range(_IMAGES) % train.num_classes

    @tf.function
    def step():
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            images = generator(draw_inputs(generator, labels), training=True)
            loss = tf.reduce_sum(tf.reduce_mean(features.group(images, 0), axis=0) ** 2)
        return [tf.reduce_sum(tf.convert_to_tensor(g)) for g in tape.gradient(loss, variables)]

    print('Measuring how long a step takes here ...', flush=True)
    step()  # Traced.
    seconds = []
    for _ in range(_STEPS):
        started = time.monotonic()
        step()[0].numpy()
        seconds.append(time.monotonic() - started)
    return min(seconds) * (_OF_HEADS if config.model.discriminator == 'public_heads' else 1.0)
