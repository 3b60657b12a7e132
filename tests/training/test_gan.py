"""The GAN: its private and its public step, the schedule, and what leaves a step."""

import contextlib
import inspect
import math

import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_gan
from helpers.pairs import pairs
from helpers.tiny_gan import BATCH, CLASSES, SHAPE, private

from tf_efsgd import replicas as replicas_
from tf_efsgd.data.images import to_float, to_uint8
from tf_efsgd.models.discriminator import build_discriminator
from tf_efsgd.models.generator import build_generator, draw_inputs
from tf_efsgd.privacy.noise import NoiseKey
from tf_efsgd.privacy.optimizer import (
    ErrorFeedbackDPKerasAdamOptimizer,
    ErrorFeedbackDPKerasSGDOptimizer,
)
from tf_efsgd.training import gan as gans
from tf_efsgd.training import private_model, schedule

_LOGS = {
    'fake_accuracy',
    'fake_loss',
    'released_gradient_norm',
    'fake_accuracy_average',
    'discriminator_steps',
    'generator_steps',
}


class _DeafOptimizer(ErrorFeedbackDPKerasSGDOptimizer):
    """Releases zeros: whatever still depends on records does not go through the release."""

    def release(self, *args, **kwargs):
        return [tf.zeros_like(gradient) for gradient in super().release(*args, **kwargs)]


def _dataset(samples, num_replicas=1):
    """The samples; several replicas get disjoint shares of each, one after the other."""

    def shares():
        for images, labels in samples:
            for replica in range(num_replicas):
                yield images[replica::num_replicas], labels[replica::num_replicas]

    signature = (tf.TensorSpec([None, *SHAPE], tf.uint8), tf.TensorSpec([None], tf.int32))
    return tf.data.Dataset.from_generator(shares, output_signature=signature)


class _Recorder(tf.keras.callbacks.Callback):
    """Keeps logs and weights of every step."""

    def __init__(self):
        super().__init__()
        self.logs, self.generator = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append(dict(logs))
        self.generator.append(self.model.generator.get_weights())


def _fit(gan, samples):
    recorder = _Recorder()
    gan.fit(_dataset(samples), steps_per_epoch=len(samples), callbacks=[recorder], verbose=0)
    return recorder


def _state(gan):
    """Everything that training changes, as arrays."""
    optimizer = gan.discriminator_optimizer
    return {
        'generator': gan.generator.get_weights(),
        'average': gan.ema_generator.get_weights(),
        'discriminator': gan.discriminator.get_weights(),
        'slots': [variable.numpy() for variable in optimizer.variables()],
        'buffer': [optimizer.get_slot(v, 'error_feedback').numpy() for v in gan.private_variables],
    }


def _largest_difference(one, other):
    assert {k: len(v) for k, v in one.items()} == {k: len(v) for k, v in other.items()}
    return max(np.abs(a - b).max() for name in one for a, b in zip(one[name], other[name]))


# What is refused.


@pytest.mark.parametrize(
    'layer',
    [
        tf.keras.layers.BatchNormalization,
        lambda: tf.keras.layers.BatchNormalization(synchronized=True),
        tf.compat.v1.keras.layers.BatchNormalization,
        tf.keras.layers.experimental.SyncBatchNormalization,
        tf.keras.layers.Normalization,
        lambda: tf.keras.Sequential([tf.keras.layers.BatchNormalization()]),
    ],
    ids=['plain', 'synchronized', 'v1', 'sync', 'normalization', 'nested'],
)
def test_a_discriminator_that_mixes_examples_is_refused(layer):
    images = tf.keras.Input(SHAPE)
    features = tf.keras.layers.Flatten()(layer()(images))
    logits = {'logits': tf.keras.layers.Dense(CLASSES)(features)}
    generator = build_generator(SHAPE, CLASSES, latent_dim=4, width=8)
    with pytest.raises(ValueError, match='mixes the examples.*GroupNormalization'):
        gans.EFSGDGan(generator, tf.keras.Model(images, logits), draw_inputs)


def test_a_generator_that_decodes_records_must_not_mix_them():
    plain = build_generator(SHAPE, CLASSES, latent_dim=4, width=8)
    images = tf.keras.layers.BatchNormalization()(plain.output)
    generator = tf.keras.Model(plain.input, images)
    decoded, head = (
        build_discriminator(SHAPE, CLASSES, width=8, reconstruction=form, latent_dim=4)
        for form in ('generator', 'head')
    )
    with pytest.raises(ValueError, match='mixes the examples.*GroupNormalization'):
        gans.EFSGDGan(generator, decoded, draw_inputs)
    # Records never meet it otherwise.
    gans.EFSGDGan(generator, head, draw_inputs)


def test_a_posterior_of_other_latents_is_refused():
    discriminator = build_discriminator(
        SHAPE, CLASSES, width=8, reconstruction='generator', latent_dim=5
    )
    generator = build_generator(SHAPE, CLASSES, latent_dim=4, width=8)
    with pytest.raises(ValueError, match='the 4 latents .* so 8 numbers. Received: 10'):
        gans.EFSGDGan(generator, discriminator, draw_inputs)


@pytest.mark.parametrize(
    'optimizer',
    [lambda: private(expected_batch_size=None), tf.keras.optimizers.legacy.SGD],
    ids=['private', 'plain'],
)
def test_an_expected_batch_size_is_demanded(optimizer):
    with pytest.raises(ValueError, match='Give expected_batch_size'):
        tiny_gan.make(optimizer())


def test_two_expected_batch_sizes_are_refused():
    with pytest.raises(ValueError, match='the same expected_batch_size'):
        tiny_gan.make(private(), expected_batch_size=BATCH + 1)


# The private loss.


def _record():
    images, labels = tiny_gan.samples((1,))[0]
    return to_float(tf.constant(images[0])), tf.constant(labels[0])


def test_the_loss_of_a_record_is_the_whole_private_loss():
    gan = tiny_gan.make(reconstruction_weight=0.3)
    image, label = _record()
    outputs = gan.discriminator(image[tf.newaxis])
    logit = float(outputs['logits'][0, label])
    error = float(tf.reduce_sum((image - outputs['reconstruction'][0]) ** 2))
    assert error > 1
    wanted = math.log1p(math.exp(-logit)) + 0.3 * error
    assert float(gan._loss_of_record((image, label))) == pytest.approx(wanted, rel=1e-5)


def _draws(count, seed=4):
    """What a decoding generator is given for each record, without noise in its images."""
    latents = np.random.default_rng(seed).normal(size=[count, 4]).astype(np.float32)
    return {'latents': tf.constant(latents), 'noise_8': tf.ones([count, *SHAPE[:2], 1])}


@pytest.mark.acceptance
def test_the_loss_of_a_record_that_the_generator_decodes():
    gan = tiny_gan.make(reconstruction='generator', reconstruction_weight=0.3)
    image, label = _record()
    draws = _draws(1)
    outputs = gan.discriminator(image[tf.newaxis])
    mean, log_variance = np.split(outputs['posterior'].numpy()[0].astype(float), 2)
    log_variance = 6 * np.tanh(log_variance / 6)
    latents = mean + np.exp(log_variance / 2) * draws['latents'][0].numpy()
    decoded = gan.generator({
        **draws,
        'latents': tf.constant(latents[np.newaxis], tf.float32),
        'labels': label[tf.newaxis],
    })  # fmt: skip
    error = float(tf.reduce_sum((image - decoded[0]) ** 2))
    divergence = (mean**2 + np.exp(log_variance) - 1 - log_variance).sum() / 2
    assert error > 1 and divergence > 1e-3
    logit = float(outputs['logits'][0, label])
    wanted = math.log1p(math.exp(-logit)) + 0.3 * (error + divergence)
    row = {name: value[0] for name, value in draws.items()}
    assert float(gan._loss_of_record((image, label, row))) == pytest.approx(wanted, rel=1e-5)


def test_every_variable_of_both_networks_gets_a_gradient():
    gan = tiny_gan.make(reconstruction='generator')
    row = {name: value[0] for name, value in _draws(1).items()}
    with tf.GradientTape() as tape:
        loss = gan._loss_of_record((*_record(), row))
    variables = gan.private_variables
    networks = [gan.discriminator, gan.generator]
    assert len(variables) == sum(len(network.trainable_variables) for network in networks)
    for variable, gradient in zip(variables, tape.gradient(loss, variables)):
        assert float(tf.reduce_max(tf.abs(tf.convert_to_tensor(gradient)))) > 0, variable.name


@pytest.mark.parametrize('weight', [0.0, 0.3])
def test_every_variable_of_the_discriminator_gets_a_gradient(weight):
    gan = tiny_gan.make(reconstruction_weight=weight)
    with tf.GradientTape() as tape:
        loss = gan._loss_of_record(_record())
    variables = gan.discriminator.trainable_variables
    gradients = tape.gradient(loss, variables, unconnected_gradients='zero')
    for variable, gradient in zip(variables, gradients):
        # Without weight nothing reaches the reconstruction head, and with it everything.
        is_head = variable.shape[-1] == 16
        assert bool(tf.reduce_any(gradient != 0)) == (weight > 0 or not is_head), variable.name
    assert sum(v.shape[-1] == 16 for v in variables) == 2


def test_generated_images_are_clipped_like_records():
    gan = tiny_gan.make(private(l2_norm_clip=1e-3, error_feedback='none'))
    images, labels = tiny_gan.samples((0,))[0]

    def norm_of_mean():
        _, _, public, _ = gan._sums_of_step(tf.constant(images), tf.constant(labels))
        return float(tf.linalg.global_norm(public)) / BATCH

    # Each image at most C1, and BATCH of them over BATCH.
    assert 5e-4 < norm_of_mean() <= 1.001e-3
    gan._clip_fake = False
    assert norm_of_mean() > 0.01


# Steps and schedule.


@pytest.fixture(scope='module')
def fixed_schedule():
    """Seven steps, a generator step at every third."""
    gan = tiny_gan.make(discriminator_steps=3, generator_ema=0.45)
    start = gan.generator.get_weights()
    recorder = _fit(gan, tiny_gan.samples((3, 0, 4, 2, 5, 3, 1)))
    return gan, start, recorder


def test_steps_are_counted(fixed_schedule):
    gan, _, recorder = fixed_schedule
    assert int(gan.private_steps) == 7
    assert int(gan.steps_since_generator) == 1
    assert [int(log['generator_steps']) for log in recorder.logs] == [0, 0, 1, 1, 1, 2, 2]
    assert [int(log['discriminator_steps']) for log in recorder.logs] == [0, 0, 3, 3, 3, 3, 3]


def test_the_generator_moves_every_discriminator_steps_and_only_then(fixed_schedule):
    _, start, recorder = fixed_schedule
    weights = [start, *recorder.generator]
    moved = [
        any((a != b).any() for a, b in zip(before, after))
        for before, after in zip(weights, weights[1:])
    ]
    assert moved == [False, False, True, False, False, True, False]


def test_the_discriminator_can_have_the_first_steps_alone():
    gan = tiny_gan.make(discriminator_steps=1, discriminator_only_steps=3, run_eagerly=True)
    recorder = _fit(gan, tiny_gan.samples())
    assert [int(logs['generator_steps']) for logs in recorder.logs] == [0, 0, 0, 1, 2]


class _Target:
    """Pulls generated images towards a gray value, and keeps the seeds that it is given."""

    def __init__(self, gray):
        self.gray = gray
        self.seeds = []

    def draw_labels(self, seed):
        tf.py_function(lambda value: self.seeds.append(tuple(value.numpy())), [seed], [])
        return tf.constant([0, 1, 0])

    def distance(self, images, labels, seed):
        del seed
        tf.debugging.assert_equal(labels, [0, 1, 0])
        return tf.reduce_mean((images - self.gray) ** 2)


class _SharedTarget(_Target):
    """The same of images that several replicas have made together."""

    def distance(self, images, labels, seed, share=None):
        tf.debugging.assert_equal(labels, [0, 1, 0])
        of_image = tf.reduce_mean((images - self.gray) ** 2, axis=[1, 2, 3])
        return replicas_.mean_over_images(share, of_image)


def test_a_target_pulls_the_generator_and_sees_public_seeds():
    def mean(gray):
        gan, target = tiny_gan.make(discriminator_steps=1, run_eagerly=True), _Target(gray)
        gan.set_target(target, 1e3)
        _fit(gan, tiny_gan.samples())
        assert len(set(target.seeds)) == len(target.seeds) == 5  # A new one at each step.
        return np.mean(gan.generate(tf.zeros([20], tf.int32), tf.constant([1, 2])))

    assert mean(0.9) > mean(-0.9) + 0.05


def test_a_target_leaves_the_adversarial_term():
    gan = tiny_gan.make(discriminator_steps=1, run_eagerly=True)
    gan.set_target(_Target(0.0), 0.0)
    before = gan.generator.get_weights()
    _fit(gan, tiny_gan.samples())
    assert any(np.any(a != b) for a, b in zip(before, gan.generator.get_weights()))


def test_the_moving_average_follows_the_generator(fixed_schedule):
    gan, start, recorder = fixed_schedule
    # Decays 2/5 and then min(0.45, 3/6).
    fitted = pairs(recorder.generator[2], recorder.generator[5])
    for (average, zero), (one, two) in pairs(pairs(gan.ema_generator.get_weights(), start), fitted):
        first = 2 / 5 * zero + 3 / 5 * one
        np.testing.assert_allclose(average, 0.45 * first + 0.55 * two, atol=1e-6)


def test_what_a_step_logs_is_fixed(fixed_schedule):
    # Each is a function of releases or of generated images; a new one needs that argument too.
    assert len(fixed_schedule[2].logs) > 3
    for log in fixed_schedule[2].logs:
        assert set(log) == _LOGS
        assert all(np.ndim(value) == 0 and np.isfinite(value) for value in log.values())


@pytest.mark.acceptance
def test_a_decoding_generator_learns_of_records_in_between():
    gan = tiny_gan.make(
        reconstruction='generator',
        discriminator_steps=3,
        generator_ema=0.45,
        generator_optimizer=tf.keras.optimizers.legacy.SGD(0.0),
        run_eagerly=True,
    )
    start = gan.generator.get_weights()
    recorder = _fit(gan, tiny_gan.samples((3, 0, 4, 2)))
    weights = [start, *recorder.generator]
    for before, after in zip(weights, weights[1:]):
        assert all((a != b).any() for a, b in pairs(before, after))
    # The average follows at the generator's own step, the third.
    averages = gan.ema_generator.get_weights()
    for average, (zero, third) in pairs(averages, pairs(start, weights[3])):
        np.testing.assert_allclose(average, 2 / 5 * zero + 3 / 5 * third, atol=1e-6)


def test_weights_in_hdf5_keep_the_generator_and_its_average_apart(tmp_path):
    gan = tiny_gan.build()
    for number, weight in enumerate(gan.weights):
        weight.assign(tf.fill(weight.shape, tf.cast(number, weight.dtype)))
    gan.save_weights(tmp_path / 'weights.h5')
    other = tiny_gan.build()
    other.load_weights(tmp_path / 'weights.h5')
    assert len(other.weights) == len(gan.weights) > 0
    for number, weight in enumerate(other.weights):
        np.testing.assert_array_equal(weight, np.full(weight.shape, number))


def test_generated_images_come_from_the_moving_average(fixed_schedule):
    gan = fixed_schedule[0]
    labels, seed = tf.constant([0, 1, 2, 2]), tf.constant([1, 2])
    images = gan.generate(labels, seed)
    assert images.shape == (4, *SHAPE)
    np.testing.assert_array_equal(images, gan.generate(labels, seed))
    assert not np.allclose(images, gan.generate(labels))
    inputs = draw_inputs(gan.generator, labels, seed)
    np.testing.assert_array_equal(images, gan.ema_generator(inputs))
    assert not np.allclose(images, gan.generator(inputs))


def test_the_generator_waits_while_the_discriminator_is_behind():
    gan = tiny_gan.make(
        private(noise_multiplier=0.0, learning_rate=0.0), adaptive_discriminator_steps=True
    )
    bias = gan.discriminator.get_layer('logits').bias
    samples = tiny_gan.samples((1,) * 70)

    def generator_steps_over(count):
        before = int(gan.generator_steps)
        recorder = _fit(gan, samples[:count])
        return [int(log['generator_steps']) - before for log in recorder.logs]

    # All generated images are called real: the average goes 0.5 -> 0.5 * 0.8^4 = 0.2048.
    bias.assign(50 * tf.ones_like(bias))
    assert generator_steps_over(4) == [0] * 4
    assert float(gan.fake_accuracy) == pytest.approx(0.2048, abs=1e-6)
    # All are called generated: 0.364, 0.491, 0.593, 0.674 and so above 0.6.
    bias.assign(-50 * tf.ones_like(bias))
    assert generator_steps_over(8) == [0, 0, 0, 1, 1, 2, 2, 3]
    assert int(gan.discriminator_steps) == 2
    # Behind for good: no longer than the maximum.
    bias.assign(50 * tf.ones_like(bias))
    gan.fake_accuracy.assign(0.0)
    assert generator_steps_over(65) == [0] * 63 + [1, 1]
    assert int(gan.discriminator_steps) == schedule.MAX_DISCRIMINATOR_STEPS == 64


@pytest.mark.parametrize(
    ('optimizer', 'reconstruction'),
    [
        (_DeafOptimizer, 'head'),
        (ErrorFeedbackDPKerasSGDOptimizer, 'head'),
        (_DeafOptimizer, 'generator'),
    ],
)
def test_records_act_through_the_release_alone(optimizer, reconstruction):
    # Sizes, images and labels differ. The discriminator learns from generated images all the same,
    # so the schedule is at work.
    runs = []
    for seed, sizes in ((1, (3, 0, 4)), (2, (0, 6, 1))):
        samples = tiny_gan.samples(sizes, seed)
        gan = tiny_gan.make(
            private(optimizer),
            reconstruction,
            adaptive_discriminator_steps=True,
            run_eagerly=optimizer is _DeafOptimizer,
        )
        recorder = _fit(gan, samples)
        runs.append({
            'generator': recorder.generator[-1],
            'discriminator': gan.discriminator.get_weights(),
            'logs': [np.array([log[name] for name in sorted(_LOGS)]) for log in recorder.logs],
        })  # fmt: skip
    assert runs[0]['logs'][-1].tolist() != runs[0]['logs'][0].tolist()
    difference = _largest_difference(*runs)
    assert difference == 0 if optimizer is _DeafOptimizer else difference > 1e-3


# Randomness.


@pytest.fixture(scope='module')
def one_device():
    """The state after some steps, one of them empty, with Adam and noise."""
    gan = tiny_gan.make(private(ErrorFeedbackDPKerasAdamOptimizer, learning_rate=0.01))
    _fit(gan, tiny_gan.samples())
    return gan, _state(gan)


@pytest.mark.parametrize(('key', 'is_same'), [(7, True), (8, False)])
def test_the_noise_key_is_all_that_is_secret(one_device, key, is_same):
    gan = tiny_gan.make(
        private(ErrorFeedbackDPKerasAdamOptimizer, learning_rate=0.01), noise=NoiseKey(key)
    )
    _fit(gan, tiny_gan.samples())
    difference = _largest_difference(_state(gan), one_device[1])
    # TensorFlow's threads add some gradients in the order in which they end.
    assert difference < 1e-6 if is_same else difference > 1e-3


def test_two_devices_give_the_weights_of_one(one_device, strategy):
    # With noise: the sums come together first, and one noise is added, the same on both.
    with strategy.scope():
        gan = tiny_gan.make(private(ErrorFeedbackDPKerasAdamOptimizer, learning_rate=0.01))
    samples = tiny_gan.samples()
    shares = strategy.distribute_datasets_from_function(lambda context: _dataset(samples, 2))
    gan.fit(shares, steps_per_epoch=len(samples), verbose=0)
    assert gan.private_steps.numpy() == len(samples)
    assert gan.generator_steps.numpy() == 2
    wanted = one_device[1]
    assert _largest_difference(_state(gan), wanted) < 1e-5
    assert max(np.abs(e).max() for e in wanted['buffer']) > 1e-3
    for variable in gan.discriminator.trainable_variables:
        one, two = (v.numpy() for v in variable.values)
        np.testing.assert_array_equal(one, two)


@pytest.mark.acceptance
def test_two_devices_are_pulled_to_a_target_as_one(strategy):
    samples, states = tiny_gan.samples((2, 3)), []
    for replicas in (1, 2):
        with strategy.scope() if replicas == 2 else contextlib.nullcontext():
            gan = tiny_gan.make(  # SGD: for Adam twice the gradient would be the same.
                discriminator_steps=1, generator_optimizer=tf.keras.optimizers.legacy.SGD(0.1)
            )
            gan.set_target(_SharedTarget(0.9), 2.0)
        shares = strategy.distribute_datasets_from_function(lambda _: _dataset(samples, 2))
        gan.fit(shares if replicas == 2 else _dataset(samples), steps_per_epoch=2, verbose=0)
        states.append(_state(gan))
    assert _largest_difference(*states) < 1e-5
    moved = zip(tiny_gan.make().generator.get_weights(), gan.generator.get_weights())
    assert max(np.abs(a - b).max() for a, b in moved) > 1e-3


@pytest.mark.acceptance
def test_two_devices_clip_and_release_both_networks_together(strategy, monkeypatch):
    # A record's own draw depends on its place: here all are the same.
    monkeypatch.setattr(
        private_model,
        'draw_for_records',
        lambda shapes, count, *_: {k: tf.fill([count, *s], 0.3) for k, s in shapes.items()},
    )
    samples = tiny_gan.samples((5, 0))
    states = []
    for replicas in (1, 2):
        with strategy.scope() if replicas == 2 else contextlib.nullcontext():
            gan = tiny_gan.make(
                reconstruction='generator', discriminator_steps=10, run_eagerly=True
            )
        if replicas == 2:
            shares = strategy.distribute_datasets_from_function(lambda _: _dataset(samples, 2))
            gan.fit(shares, steps_per_epoch=len(samples), verbose=0)
        else:
            _fit(gan, samples)
        states.append(_state(gan))
    assert _largest_difference(*states) < 1e-5
    for variable in gan.private_variables:
        np.testing.assert_array_equal(*(v.numpy() for v in variable.values))


def test_the_noise_key_is_no_constant_of_the_graph():
    value = 0xFEDCBA9876543210
    key = NoiseKey(value)
    gan = tiny_gan.make(noise=key)
    iterator = iter(_dataset(tiny_gan.samples((2, 3))))
    gan.make_train_function()(iterator)
    step = inspect.getclosurevars(gan.train_function).nonlocals['step']
    arguments = (iterator, key.next())
    concrete = step.get_concrete_function(*arguments)
    graph = str(concrete.graph.as_graph_def())
    assert 'StatelessRandomNormalV2' in graph
    assert str(value) not in graph
    # The same search finds a key that was captured.
    captured = tf.function(lambda iterator: step(iterator, *arguments[1:]))
    assert str(value) in str(captured.get_concrete_function(iterator).graph.as_graph_def())


def test_a_new_key_is_drawn_when_none_is_given(monkeypatch):
    drawn = []
    monkeypatch.setattr(private_model, 'new_noise', lambda: drawn.append(NoiseKey()) or drawn[-1])
    gan = tiny_gan.make(noise=None, run_eagerly=True)
    _fit(gan, tiny_gan.samples((1, 1)))
    assert len(drawn) == 1
    # Both steps were drawn under it, and neither number will come again.
    assert int(drawn[0].next()['step']) == 2


# Without privacy.


def test_it_trains_without_privacy():
    gan = tiny_gan.make(tf.keras.optimizers.legacy.Adam(0.01), expected_batch_size=BATCH)
    assert not gan.is_private
    before = gan.discriminator.get_weights()
    recorder = _fit(gan, tiny_gan.samples((3, 0, 4)))
    assert set(recorder.logs[-1]) == _LOGS
    for old, new in zip(before, gan.discriminator.get_weights()):
        assert np.isfinite(new).all() and (old != new).any()


@pytest.mark.parametrize('reconstruction', ['head', 'generator'])
def test_no_clip_and_no_noise_is_plain_training(reconstruction):
    states = []
    for optimizer in (
        private(l2_norm_clip=1e6, noise_multiplier=0.0, learning_rate=0.02),
        tf.keras.optimizers.legacy.SGD(0.02),
    ):
        gan = tiny_gan.make(
            optimizer,
            reconstruction,
            expected_batch_size=BATCH,
            run_eagerly=reconstruction == 'generator',
        )
        _fit(gan, tiny_gan.samples((5, 3, 4)))
        states.append({'g': gan.generator.get_weights(), 'd': gan.discriminator.get_weights()})
    assert _largest_difference(*states) < 1e-5


# Pixels.


def test_pixels_go_there_and_back():
    pixels = tf.constant(np.arange(256, dtype=np.uint8))
    floats = to_float(pixels)
    assert (float(floats[0]), float(floats[-1])) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_uint8(floats), pixels)
    np.testing.assert_array_equal(to_uint8(tf.constant([-9.0, 9.0])), [0, 255])
