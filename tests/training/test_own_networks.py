"""Networks of one's own: what is refused, in words, and what Keras' users do with a GAN."""

import re

import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_gan
from helpers.pairs import pairs
from helpers.tiny_gan import BATCH, CLASSES, SHAPE

import tf_efsgd
from tf_efsgd.training.own_networks import check_batches

_LAYERS = tf.keras.layers


def _generator(classes=CLASSES, shape=SHAPE, activation='tanh', labels_name='labels'):
    """Of one's own: other layers and other names than those of `build_generator`."""
    code = tf.keras.Input([5], name='code')
    labels = tf.keras.Input([], dtype=tf.int32, name=labels_name)
    x = _LAYERS.Concatenate()([code, _LAYERS.Embedding(classes, 6)(labels)])
    x = _LAYERS.Dense(shape[0] * shape[1] * 4, activation='relu')(x)
    x = _LAYERS.Reshape([*shape[:2], 4])(x)
    images = _LAYERS.Conv2D(shape[2], 3, padding='same', activation=activation)(x)
    return tf.keras.Model({'code': code, labels_name: labels}, images)


def _sequential_discriminator(classes=CLASSES, activation=None):
    return tf.keras.Sequential(
        [
            tf.keras.Input(SHAPE),
            _LAYERS.Conv2D(6, 3, strides=2, activation='relu'),
            _LAYERS.Flatten(),
            _LAYERS.Dense(classes, activation=activation),
        ]
    )


def _records(count=200):
    draws = np.random.default_rng(5)
    images = draws.integers(0, 256, [count, *SHAPE]).astype(np.uint8)
    return images, draws.integers(0, CLASSES, count)


@pytest.fixture(scope='module')
def trained():
    tf.keras.utils.set_random_seed(5)
    gan = tiny_gan.make(
        networks={'generator': _generator(), 'discriminator': _sequential_discriminator()}
    )
    batches = tf_efsgd.poisson_batches(*_records(), expected_batch_size=BATCH)
    before = gan.generator.get_weights(), gan.discriminator.get_weights()
    gan.fit(batches, steps_per_epoch=4, verbose=0)
    return gan, before


def test_a_sequential_discriminator_and_a_generator_of_one_s_own_are_trained(trained):
    gan, before = trained
    assert gan.clipping == 'fast' and gan.num_classes == CLASSES
    after = gan.generator.get_weights(), gan.discriminator.get_weights()
    for old, new in zip(before, after):
        assert all(np.any(a != b) for a, b in pairs(old, new))
    spent = tf_efsgd.epsilon(gan.discriminator_optimizer, dataset_size=200, target_delta=1e-4)
    assert 0 < spent < 40


def test_a_wrapped_discriminator_gives_the_same_logits_as_before():
    tf.keras.utils.set_random_seed(5)
    own = _sequential_discriminator()
    gan = tiny_gan.build(discriminator=own)
    images = tf.random.stateless_uniform([3, *SHAPE], [1, 2], -1, 1)
    np.testing.assert_array_equal(gan.discriminator(images)['logits'], own(images))
    assert [v.ref() for v in gan.discriminator.variables] == [v.ref() for v in own.variables]


def test_predict_makes_images_from_labels(trained):
    gan, _ = trained
    labels = np.array([2, 0, 1, 2, 2])
    images = gan.predict(labels, seed=3)
    assert images.shape == (5, *SHAPE) and images.dtype == np.uint8 and images.std() > 0
    np.testing.assert_array_equal(images, gan.predict(labels, seed=3))
    assert np.any(images != gan.predict(labels, seed=4))
    assert np.any(gan.predict(labels) != gan.predict(labels))
    assert gan.predict(list(labels), batch_size=2, verbose=0).shape == (5, *SHAPE)
    for seed in (-1, 2**31):
        with pytest.raises(ValueError, match='seed must be in'):
            gan.predict(labels, seed=seed)
    # Of the averaged weights, like `generate`.
    expected = gan.generate(tf.constant(labels, tf.int32), tf.constant([3, 0]))
    assert np.abs(images - (expected.numpy() * 127.5 + 127.5)).max() < 0.51


@pytest.mark.parametrize('name', ['generator.keras', 'generator'])
def test_save_keeps_the_averaged_generator(trained, tmp_path, name):
    gan, _ = trained
    gan.save(tmp_path / name)
    loaded = tf.keras.models.load_model(tmp_path / name, compile=False)
    labels, seed = tf.constant([2, 0, 1]), tf.constant([3, 0])
    images = loaded(tf_efsgd.draw_inputs(loaded, labels, seed))
    np.testing.assert_allclose(images, gan.generate(labels, seed), atol=1e-6)
    assert np.any(gan.generator.get_weights()[0] != gan.ema_generator.get_weights()[0])


@pytest.mark.parametrize('labels', [[0.5, 1.0], [[0], [1]], [], [-1, 0], [0, CLASSES]])
def test_predict_refuses_what_are_no_labels(trained, labels):
    with pytest.raises(ValueError, match='Received'):
        trained[0].predict(labels)


def _subclassed():
    class Own(tf.keras.Model):
        def call(self, images):
            return images

    return Own()


_UNNAMED = tf.keras.Sequential([tf.keras.Input([5]), _LAYERS.Dense(64), _LAYERS.Reshape(SHAPE)])


@pytest.mark.parametrize(
    ('generator', 'discriminator', 'message'),
    [
        (_UNNAMED, None, "inputs by name, among them 'labels'.*Sequential of an input of shape"),
        (lambda: _generator(labels_name='y'), None, "Received: inputs 'code', 'y'"),
        (_subclassed, None, 'Own without an input'),
        (lambda: _generator(classes=CLASSES - 1), None, 'label from 0 to 2.*InvalidArgument'),
        (lambda: _generator(shape=(6, 6, 1)), None, r'shape .*\(8, 8, 1\). Received: \(6, 6, 1\)'),
        (lambda: _generator(activation='sigmoid'), None, "activation='tanh'. Received: sigmoid"),
        (lambda: _generator(activation='exponential'), None, r'in \[-1, 1\].* Received: numbers'),
        (None, lambda: tf.keras.Sequential([_LAYERS.Dense(3)]), 'begin a Sequential with'),
        (None, _subclassed, 'Own without an input'),
        (None, lambda: _sequential_discriminator(activation='sigmoid'), 'Received: sigmoid'),
        (
            None,
            lambda: tf.keras.Sequential([tf.keras.Input(SHAPE), _LAYERS.Conv2D(1, 3)]),
            r'one logit per class.*shape \(None, 6, 6, 1\)',
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else '',
)
def test_networks_that_do_not_fit_are_refused_in_words(generator, discriminator, message):
    made = [
        make() if callable(make) and not isinstance(make, tf.keras.Model) else make
        for make in (generator or _generator, discriminator or _sequential_discriminator)
    ]
    with pytest.raises(ValueError, match=f'(?s){message}'):
        tf_efsgd.EFSGDGan(*made, tf_efsgd.draw_inputs)


def test_other_outputs_are_named():
    images = tf.keras.Input(SHAPE)
    flat = _LAYERS.Flatten()(images)
    outputs = {'realness': _LAYERS.Dense(1)(flat)}
    with pytest.raises(ValueError, match="'logits'.* Received: outputs 'realness'"):
        tf_efsgd.EFSGDGan(_generator(), tf.keras.Model(images, outputs), tf_efsgd.draw_inputs)


def test_a_way_of_one_s_own_to_draw_inputs_needs_no_names():
    tf.keras.utils.set_random_seed(5)

    def draw(generator, labels, seed=None, rows=None):
        drawn = tf.random.stateless_normal([tf.shape(labels)[0], 5], seed)
        return drawn if rows is None else tf.gather(drawn, rows)

    gan = tf_efsgd.EFSGDGan(_scaled(_UNNAMED), _sequential_discriminator(), draw)
    assert gan.predict([0, 1], seed=1).shape == (2, *SHAPE)


def _scaled(network):
    return tf.keras.Model(network.inputs, _LAYERS.Activation('tanh')(network.output))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda x, y: (tf.cast(x, tf.float32) / 255.0, y), 'uint8.*astype.*Received: float32'),
        (lambda x, y: (x[:, :4], y), re.escape('(8, 8, 1). Received: (4, 8, 1)')),
        (lambda x, y: (x, tf.cast(y, tf.float32)), 'Labels must be integers.*float32'),
        (lambda x, y: (x, tf.one_hot(y, CLASSES, dtype=tf.int32)), 'Labels must be integers'),
        (lambda x, y: x, r'must be \(images, labels\)'),
    ],
)
def test_batches_of_another_kind_are_refused_before_a_step(trained, change, message):
    gan, _ = trained
    steps = int(gan.private_steps)
    batches = tf_efsgd.poisson_batches(*_records(), expected_batch_size=BATCH).map(change)
    with pytest.raises(ValueError, match=message):
        gan.fit(batches, steps_per_epoch=1, verbose=0)
    assert int(gan.private_steps) == steps


def test_arrays_are_no_poisson_samples(trained):
    with pytest.raises(ValueError, match=r'poisson_batches\(.* Received: ndarray'):
        trained[0].fit(*_records(), batch_size=4, verbose=0)


def test_batches_that_are_no_samples_of_this_optimizer_are_refused(trained):
    gan, _ = trained
    images, labels = _records()
    in_turn = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(9).batch(4)
    with pytest.raises(ValueError, match='Poisson samples.* of a known length'):
        gan.fit(in_turn, verbose=0)
    larger = tf_efsgd.poisson_batches(images, labels, expected_batch_size=BATCH + 1)
    with pytest.raises(ValueError, match=f'Received: {BATCH + 1} and {BATCH}'):
        gan.fit(larger, steps_per_epoch=1, verbose=0)
    from_one = tf_efsgd.poisson_batches(images, labels + 1, expected_batch_size=BATCH)
    with pytest.raises(ValueError, match=f'from 0 to {CLASSES - 1}. Received: 1 to {CLASSES}'):
        gan.fit(from_one, steps_per_epoch=1, verbose=0)


def test_steps_are_counted_whose_weights_were_loaded_without_the_optimizer(trained):
    gan = tiny_gan.make(tiny_gan.private())
    gan.private_steps.assign(3)
    batches = tf_efsgd.poisson_batches(*_records(), expected_batch_size=BATCH)
    with pytest.warns(UserWarning, match='3 private steps with another optimizer'):
        gan.fit(batches, steps_per_epoch=1, verbose=0)
    assert int(gan.discriminator_optimizer.iterations) == int(gan.private_steps) == 4


@pytest.mark.parametrize('compiled', ['before', 'after'])
def test_weights_in_hdf5_bring_their_steps_along(tmp_path, compiled):
    trained = tiny_gan.build()
    trained.private_steps.assign(3)
    trained.save_weights(tmp_path / 'weights.h5')
    gan = tiny_gan.build()

    def load():
        gan.load_weights(tmp_path / 'weights.h5')

    if compiled == 'after':
        load()
    optimizer = tiny_gan.private()
    with pytest.warns(UserWarning, match='3 private steps with another optimizer, or its weights'):
        gan.compile(
            generator_optimizer=tf.keras.optimizers.legacy.Adam(0.01),
            discriminator_optimizer=optimizer,
            losses=tf_efsgd.NonSaturatingLosses(),
        )
        if compiled == 'before':
            load()
    assert int(optimizer.iterations) == 3
    given = {'dataset_size': 50 * BATCH, 'target_delta': 1e-5, 'variables': gan.private_variables}
    assert tf_efsgd.epsilon(optimizer, **given) == tf_efsgd.epsilon(optimizer, steps=3, **given) > 0


def test_features_are_no_images():
    spec = (tf.TensorSpec([None, 7], tf.float16), tf.TensorSpec([None], tf.int32))
    batches = tf.data.Dataset.from_generator(lambda: iter(()), output_signature=spec)
    check_batches(batches, (7,))
    with pytest.raises(ValueError, match='Received'):
        check_batches(batches, (9,))


def test_another_optimizer_does_not_count_the_steps_of_the_first():
    gan = tiny_gan.make(tiny_gan.private())
    gan.private_steps.assign(3)
    with pytest.warns(
        UserWarning, match='3 private steps with another optimizer.*as steps of the new one'
    ):
        gan.compile(
            generator_optimizer=tf.keras.optimizers.legacy.Adam(0.01),
            discriminator_optimizer=tiny_gan.private(),
            losses=tf_efsgd.NonSaturatingLosses(),
        )
