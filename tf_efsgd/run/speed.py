"""Measures how long a step takes on this machine, to choose how many fit into --minutes."""

from __future__ import annotations

import time

import tensorflow as tf

from tf_efsgd import replicas
from tf_efsgd.config import RunConfig, recipes
from tf_efsgd.data.records import Records
from tf_efsgd.models.classifier import build_classifier
from tf_efsgd.models.generator import draw_inputs
from tf_efsgd.models.public_heads import HeadInputs, build_public_heads
from tf_efsgd.privacy.features import learned, pixels, public
from tf_efsgd.run import build
from tf_efsgd.run.errors import as_config_error
from tf_efsgd.training import learn_features
from tf_efsgd.training.public_heads_gan import OnNetwork
from tf_efsgd.training.targets import Grouped

_IMAGES = 100
_STEPS = 3
# A private step takes this many times as long as the gradient of the heads, because it also clips
# by record, adds noise and updates. Measured.
_OF_PRIVATE_STEP = 2.5


def measure(
    config: RunConfig, train: Records, strategy: tf.distribute.Strategy, is_alone: bool = True
) -> recipes.Speed:
    """Times a few steps on made-up data; no record is looked at.

    Args:
      config: the settings, none of them 'auto'.
      train: the records, for the shape of the images and the number of classes.
      strategy: that will train.
      is_alone: whether the strategy belongs to this process alone. Otherwise only the work of one
        replica is timed; the other workers and the network between them are not included.

    Returns:
      Seconds per step, the least of three: of the fit to the first release, of a private step
      together with the generator's step, and of the fit to two releases, if there are two.
    """
    print('Measuring how long a step takes here ...', flush=True)
    shares = strategy.num_replicas_in_sync
    timed = strategy if is_alone else tf.distribute.get_strategy()
    with timed.scope():
        return _measure(config, train, timed, shares)


def _measure(config, train, strategy, shares) -> recipes.Speed:
    network = build.build_public_network(config.privacy, train)
    build.check_network(config.model, config.privacy, network)
    generator = as_config_error(lambda: build.untrained_generator(config, train), ValueError)
    generator = build.for_generated_images(generator, config.training)
    shape = train.image_shape
    features: Grouped = pixels.FeatureMap(shape)
    if network is not None:
        of_network = public.PublicFeatures(network, shape)
        features = OnNetwork(of_network, build.for_generated_images(network, config.training))
    labels = tf.range(-(-_IMAGES // shares)) % train.num_classes
    variables = generator.trainable_variables

    def loss_of_images():
        images = generator(draw_inputs(generator, labels), training=True)
        return tf.reduce_sum(tf.reduce_mean(features.group(images, 0), axis=0) ** 2)

    fit = _seconds(strategy, loss_of_images, variables)
    both = learning = 0.0
    if config.privacy.learned_features_share:
        second, learning = _of_second_release(strategy, train, labels)
        both = fit + second
    if config.model.discriminator != 'public_heads':
        return recipes.Speed(fit, 2.0 * fit, both, learning)
    inputs = HeadInputs(network, public.public_photographs(shape), pixels=True)
    heads = build_public_heads(
        inputs.shapes,
        train.num_classes,
        reconstruction=config.model.reconstruction == 'head',
    )
    batch = tf.random.normal([-(-config.privacy.expected_batch_size // shares), inputs.size])

    def loss_of_heads():
        return tf.add_n([tf.reduce_sum(value**2) for value in heads(batch).values()])

    private = _seconds(strategy, loss_of_heads, heads.trainable_variables)
    return recipes.Speed(fit, fit + _OF_PRIVATE_STEP * private, both, learning)


def _of_second_release(strategy, train, labels) -> tuple[float, float]:
    """Times what the second release adds to a step of the fit, and the learning of its features."""
    classifier = build_classifier(train.image_shape, train.num_classes)
    features = learned.LearnedFeatures(classifier, [1.0] * len(learned.LAYERS), train.image_shape)
    images = tf.Variable(tf.random.normal([len(labels), *train.image_shape]))

    def loss_of_features():
        return tf.reduce_sum(tf.reduce_mean(features.group(images, 0), axis=0) ** 2)

    batch = tf.random.normal([learn_features.BATCH, *train.image_shape])

    def loss_of_classifier():
        return tf.reduce_sum(classifier(batch, training=True)['logits'] ** 2)

    added = _seconds(strategy, loss_of_features, [images])
    step = _seconds(strategy, loss_of_classifier, classifier.trainable_variables)
    return added, step * learn_features.steps(train.image_shape, train.num_classes)


def _seconds(strategy, loss_of, variables) -> float:
    def of_replica():
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss = loss_of()
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]
        return tf.add_n([tf.reduce_sum(g) for g in replicas.all_reduce(gradients)])

    @tf.function(autograph=False)
    def step():
        return strategy.run(of_replica)

    def run():
        for of_replica in strategy.experimental_local_results(step()):
            of_replica.numpy()

    run()  # The first call traces it.
    seconds = []
    for _ in range(_STEPS):
        started = time.monotonic()
        run()
        seconds.append(time.monotonic() - started)
    return min(seconds)
