"""How long a step takes on this machine, to choose how many there are in the minutes given."""

from __future__ import annotations

import time

import tensorflow as tf

from tf_efsgd.config import RunConfig, recipes
from tf_efsgd.data.records import Records
from tf_efsgd.models.generator import draw_inputs
from tf_efsgd.models.public_heads import LOGITS, HeadInputs, build_public_heads
from tf_efsgd.privacy.features import pixels, public
from tf_efsgd.run import build

_IMAGES = 100
_STEPS = 3
# What clipping by record, noise and the update take beside the gradient of the heads: measured.
_OF_PRIVATE_STEP = 2.5


def measure(config: RunConfig, train: Records) -> recipes.Speed:
    """Times a few steps on made-up data; no record is looked at.

    Args:
      config: the settings, none of them 'auto'.
      train: the records, for the shape of the images and the number of classes.

    Returns:
      Seconds a step, the least of three: of the fit, and of a private step with the generator's.
    """
    print('Measuring how long a step takes here ...', flush=True)
    generator = build.untrained_generator(config, train)
    network = build.build_public_network(config, train)
    shape = train.image_shape
    if network is None:
        features = pixels.FeatureMap(shape)
    else:
        features = public.PublicFeatures(network, shape)
    labels = tf.range(_IMAGES) % train.num_classes
    variables = generator.trainable_variables

    def loss_of_images():
        images = generator(draw_inputs(generator, labels), training=True)
        return tf.reduce_sum(tf.reduce_mean(features.group(images, 0), axis=0) ** 2)

    fit = _seconds(loss_of_images, variables)
    if config.model.discriminator != 'public_heads':
        return recipes.Speed(fit, 2.0 * fit)
    inputs = HeadInputs(network, public.public_photographs(shape), pixels=True)
    heads = build_public_heads(inputs.shapes, train.num_classes)
    batch = tf.random.normal([config.privacy.expected_batch_size, inputs.size])
    private = _seconds(lambda: tf.reduce_sum(heads(batch)[LOGITS] ** 2), heads.trainable_variables)
    return recipes.Speed(fit, fit + _OF_PRIVATE_STEP * private)


def _seconds(loss_of, variables) -> float:
    @tf.function
    def step():
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss = loss_of()
        return [tf.reduce_sum(tf.convert_to_tensor(g)) for g in tape.gradient(loss, variables)]

    step()  # Traced.
    seconds = []
    for _ in range(_STEPS):
        started = time.monotonic()
        step()[0].numpy()
        seconds.append(time.monotonic() - started)
    return min(seconds)
