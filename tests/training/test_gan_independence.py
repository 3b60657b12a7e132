"""What `EFSGDGan` refuses since a record could act past its clip, found out by trying."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_gan
from helpers.pairs import pairs
from helpers.tiny_gan import CLASSES, SHAPE, private

from tf_efsgd.models.discriminator import build_discriminator
from tf_efsgd.models.generator import build_generator
from tf_efsgd.models.losses import NonSaturatingLosses
from tf_efsgd.privacy import independence, layer_norms

pytestmark = pytest.mark.real_trials

_LAYERS = tf.keras.layers


class _MinibatchDeviation(_LAYERS.Layer):
    """One more feature: how far the features of a batch lie apart (Karras et al. 2018)."""

    def call(self, inputs):
        variance = tf.math.reduce_variance(inputs, axis=0)
        deviation = tf.reduce_mean(tf.sqrt(variance + 1e-8))
        return tf.concat([inputs, tf.fill([tf.shape(inputs)[0], 1], deviation)], axis=1)


class _MinusBatchMean(_LAYERS.Layer):
    def call(self, inputs):
        return inputs - tf.reduce_mean(inputs, axis=0, keepdims=True)


class _MixesLater(_LAYERS.Layer):
    """Two factors that are zero at first: neither has a gradient then."""

    def build(self, input_shape):
        self.first = self.add_weight(name='first', shape=[], initializer='zeros')
        self.second = self.add_weight(name='second', shape=[], initializer='zeros')

    def call(self, inputs):
        return inputs + self.first * self.second * tf.reduce_mean(inputs, axis=0)


class _GradientOfOthers(_LAYERS.Layer):
    """Its value is that of the record alone, its gradient is not."""

    def build(self, input_shape):
        self.scale = self.add_weight(name='scale', shape=[input_shape[-1]], initializer='ones')

    def call(self, inputs):
        others = self.scale * tf.roll(inputs, 1, axis=0)
        return inputs * self.scale + others - tf.stop_gradient(others)


class _DividedByBatch(_LAYERS.Layer):
    def call(self, inputs):
        return inputs / tf.cast(tf.shape(inputs)[0], tf.float32)


class _PairsFromSixteen(_LAYERS.Layer):
    """Mixes in larger batches alone."""

    def call(self, inputs):
        mixed = inputs + tf.reduce_mean(inputs, axis=0)
        return tf.where(tf.shape(inputs)[0] >= 16, mixed, inputs)


class _FixedDraws(_LAYERS.Layer):
    """The same numbers in every call, by a record's place."""

    def call(self, inputs):
        return inputs + tf.random.stateless_normal(tf.shape(inputs), [1, 2])


class _NumpyDraws(_LAYERS.Layer):
    def call(self, inputs):
        return inputs + np.random.normal(size=inputs.shape[-1])


class _Counts(_LAYERS.Layer):
    """Remembers something in a variable that Keras does not know of."""

    def call(self, inputs):
        _COUNTER.assign_add(tf.reduce_sum(inputs))
        return inputs


class _Tells(_LAYERS.Layer):
    def call(self, inputs):
        tf.print(tf.shape(inputs))
        return inputs


class _Stops(_LAYERS.Layer):
    """A record with a large value ends the run."""

    def call(self, inputs):
        with tf.control_dependencies([tf.debugging.assert_less(inputs, 1e6)]):
            return tf.identity(inputs)


class _Inverts(_LAYERS.Layer):
    """A record that gives a singular matrix ends the run."""

    def call(self, inputs):
        size = tf.reduce_sum(inputs, axis=1)[:, tf.newaxis, tf.newaxis]
        return inputs * tf.linalg.inv(size)[:, 0]


class _EigenValues(_LAYERS.Layer):
    """A record that is not finite ends the run."""

    def call(self, inputs):
        return inputs + tf.linalg.eigvalsh(inputs[:, :1, tf.newaxis])


_COUNTER = tf.Variable(0.0, trainable=False)


def _discriminator(*layers):
    images = tf.keras.Input(SHAPE)
    x = _LAYERS.Dense(4)(_LAYERS.Flatten()(images))
    for layer in layers:
        x = layer(x)
    logits = _LAYERS.Dense(CLASSES)(x)
    return tf.keras.Model(images, {'logits': logits})


def _compile(gan, **settings):
    defaults = {
        'generator_optimizer': tf.keras.optimizers.legacy.Adam(0.01),
        'discriminator_optimizer': private(),
        'losses': NonSaturatingLosses(),
    }
    gan.compile(**{**defaults, **settings})


@pytest.mark.parametrize('clipping', ['fast', 'vectorized', 'auto'])
@pytest.mark.parametrize(
    'layer', [_MinibatchDeviation, _MinusBatchMean], ids=['deviation', 'minus mean']
)
def test_layers_without_state_that_mix_examples_are_refused(layer, clipping):
    with pytest.raises(ValueError, match='a loss of which the .* of a record.* alone'):
        _compile(tiny_gan.build(_discriminator(layer())), clipping=clipping)


@pytest.mark.parametrize(
    ('layer', 'message'),
    [
        (_GradientOfOthers, 'the gradient of a record, of norm .* is another one in a batch of 2'),
        (_DividedByBatch, 'the loss of a record is .* in a batch of 2'),
        (_PairsFromSixteen, 'the loss of a record is .* in a batch of 17'),
    ],
    ids=['gradient of others', 'divided by batch', 'large batches'],
)
def test_other_ways_to_mix_examples_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        _compile(tiny_gan.build(_discriminator(layer())))


def _seen_through(look):
    """The discriminator, behind a look at the whole batch of images."""
    images = tf.keras.Input(SHAPE)
    return tf.keras.Model(images, _discriminator()(_LAYERS.Lambda(look)(images)))


def test_the_extremes_of_a_batch_are_found():
    # Of so many pixels that images of one contrast all have nearly the same.
    images = tf.keras.Input([32, 32, 3])
    x = _LAYERS.Lambda(lambda x: x / tf.reduce_max(tf.abs(x)))(images)
    logits = _LAYERS.Dense(CLASSES)(_LAYERS.Flatten()(x))
    with pytest.raises(ValueError, match='the loss of a record is .* in a batch of'):
        _compile(tiny_gan.build(tf.keras.Model(images, {'logits': logits}), shape=(32, 32, 3)))


def test_python_that_calls_itself_stateless_is_refused():
    def look(x):
        same = tf.numpy_function(lambda value: value, [x], tf.float32, stateful=False)
        return tf.ensure_shape(same, x.shape) + 0.0 * x

    with pytest.raises(ValueError, match='it calls Python'):
        _compile(tiny_gan.build(_seen_through(look)))


def test_weights_that_are_zero_at_first_hide_nothing_and_are_left_alone(monkeypatch):
    discriminator = _discriminator(_MixesLater())
    gan = tiny_gan.build(discriminator)
    before = discriminator.get_weights()
    with pytest.raises(ValueError, match='the (loss|gradient) of a record'):
        _compile(gan)
    for old, new in pairs(before, discriminator.get_weights()):
        np.testing.assert_array_equal(old, new)
    # With the weights as they are alone, nothing is to be seen of it.
    monkeypatch.setattr(independence, 'random_weights', lambda *_, **__: contextlib.nullcontext())
    _compile(gan)


@pytest.mark.parametrize('seed', [None, 5])
@pytest.mark.parametrize(
    'layer',
    [
        lambda: _LAYERS.Dropout(0.3),
        lambda: _LAYERS.Dropout(0.3, seed=4),
        lambda: _LAYERS.GaussianNoise(0.1),
        lambda: _LAYERS.AlphaDropout(0.3),
        lambda: tf.keras.Sequential([_LAYERS.Dropout(0.3)]),
        _FixedDraws,
    ],
    ids=['dropout', 'seeded dropout', 'noise', 'alpha', 'nested', 'fixed draws'],
)
def test_random_layers_are_refused(layer, seed):
    if seed is not None:
        tf.keras.utils.set_random_seed(seed)
    with pytest.raises(ValueError, match='it draws random numbers of its own'):
        _compile(tiny_gan.build(_discriminator(layer())))


@pytest.mark.parametrize('layer', [_LAYERS.RandomFlip, lambda: _LAYERS.RandomRotation(0.1)])
def test_random_augmentations_are_refused(layer):
    images = tf.keras.Input(SHAPE)
    logits = _LAYERS.Dense(CLASSES)(_LAYERS.Flatten()(layer()(images)))
    with pytest.raises(ValueError, match='it draws random numbers of its own'):
        _compile(tiny_gan.build(tf.keras.Model(images, {'logits': logits})))


def test_random_numbers_that_no_graph_shows_are_found_by_trying():
    with pytest.raises(ValueError, match='when it is computed again'):
        _compile(tiny_gan.build(_discriminator(_NumpyDraws())), run_eagerly=True)


@pytest.mark.parametrize(
    ('layer', 'message'),
    [
        (_Counts, 'it writes a variable'),
        (_Tells, 'it does something besides'),
        (_Stops, 'it may stop the run because of one record'),
        (_Inverts, r'because of one record \(MatrixInverse'),
        (_EigenValues, r'because of one record \(SelfAdjointEig'),
    ],
)
def test_a_forward_pass_leaves_nothing_behind(layer, message):
    before = float(_COUNTER)
    with pytest.raises(ValueError, match=message):
        _compile(tiny_gan.build(_discriminator(layer())))
    assert float(_COUNTER) == before


@pytest.mark.parametrize(
    'layer', [lambda: _LAYERS.Dropout(0.3), _MinusBatchMean], ids=['random', 'mixing']
)
def test_a_generator_that_decodes_records_is_tried_too(layer):
    plain = build_generator(SHAPE, CLASSES, latent_dim=4, width=8)
    # Its own mode is that of inference, where Keras' random layers do nothing.
    layer = layer()
    images = layer(plain.output, training=True) if 'dropout' in layer.name else layer(plain.output)
    generator = tf.keras.Model(plain.input, _LAYERS.Activation('tanh')(images))
    decoded, head = (
        build_discriminator(SHAPE, CLASSES, width=8, reconstruction=form, latent_dim=4)
        for form in ('generator', 'head')
    )
    with pytest.raises(
        ValueError, match='The private loss of a record may depend only on that record'
    ):
        _compile(tiny_gan.build(decoded, generator))
    _compile(tiny_gan.build(head, generator))  # Records never meet it otherwise.


def test_a_normalization_that_was_frozen_for_a_while_is_refused():
    discriminator = _discriminator(_LAYERS.BatchNormalization())
    discriminator.layers[3].trainable = False
    gan = tiny_gan.build(discriminator)
    _compile(gan)
    discriminator.layers[3].trainable = True
    with pytest.raises(ValueError, match='mixes the examples.*GroupNormalization'):
        gan.make_train_function()
    with pytest.raises(ValueError, match='mixes the examples.*GroupNormalization'):
        _compile(gan)


def test_layers_that_are_trained_only_now_are_tried_again():
    gan = tiny_gan.build(_discriminator())
    gan.discriminator.layers[2].trainable = False
    _compile(gan)
    gan.make_train_function()
    gan.discriminator.layers[2].trainable = True
    with pytest.raises(ValueError, match='call `compile` again'):
        gan.make_train_function()
    _compile(gan)
    gan.make_train_function()


@pytest.mark.parametrize('dtype', ['float64', 'float16', 'bfloat16', 'mixed_float16'])
def test_networks_of_other_precision_are_refused(dtype):
    layer = _LAYERS.Dense(4, dtype=dtype, name='other')
    computes_in = 'float16' if dtype == 'mixed_float16' else dtype
    with pytest.raises(ValueError, match=f"Layer 'other' .Dense. computes in {computes_in}"):
        tiny_gan.build(_discriminator(layer))


def test_wrapped_optimizers_are_refused():
    plain = tf.keras.optimizers.legacy.SGD(0.1)
    scaled = tf.keras.mixed_precision.LossScaleOptimizer(plain)
    for which in ('generator_optimizer', 'discriminator_optimizer'):
        with pytest.raises(ValueError, match='LossScaleOptimizer multiplies the loss'):
            _compile(tiny_gan.build(_discriminator()), expected_batch_size=4, **{which: scaled})


class _Mean(NonSaturatingLosses):
    @staticmethod
    def real(realness):
        return tf.reduce_mean(tf.nn.softplus(-realness))


class _Infinite(NonSaturatingLosses):
    @staticmethod
    def real(realness):
        return tf.math.log(tf.zeros_like(realness) * realness)


@pytest.mark.parametrize(
    ('losses', 'message'), [(_Mean, 'not one number for every record'), (_Infinite, 'not finite')]
)
def test_losses_of_which_nothing_can_be_said_are_refused(losses, message):
    with pytest.raises(ValueError, match=message):
        _compile(tiny_gan.build(_discriminator()), losses=losses())


def test_what_is_not_private_may_be_random():
    _compile(
        tiny_gan.build(_discriminator(_LAYERS.Dropout(0.3))),
        discriminator_optimizer=tf.keras.optimizers.legacy.SGD(0.1),
        expected_batch_size=4,
    )


def _patch_discriminator():
    """Judges the patches of an image as images of their own, then adds up."""
    images = tf.keras.Input(SHAPE)
    patches = tf.reshape(tf.nn.space_to_depth(images, 4), [-1, 16])
    features = _LAYERS.LeakyReLU()(_LAYERS.Dense(4, name='of_patch')(patches))
    judged = _LAYERS.Dense(CLASSES)(features)
    logits = tf.reduce_sum(tf.reshape(judged, [-1, 4, CLASSES]), axis=1)
    return tf.keras.Model(images, {'logits': logits})


def test_patches_on_the_batch_axis_are_clipped_as_one_record(capsys):
    gan = tiny_gan.build(_patch_discriminator())
    with pytest.raises(ValueError, match="layer 'of_patch' .Dense. is called on a batch axis"):
        _compile(gan, clipping='fast')
    _compile(gan, clipping='auto')
    assert gan.clipping == 'vectorized'
    assert "layer 'of_patch' (Dense) is called on a batch axis" in capsys.readouterr().out
    images = np.random.default_rng(1).integers(0, 256, [1, *SHAPE]).astype(np.uint8)
    clipped, _ = gan._sums_of_records(tf.constant(images), tf.constant([1]))
    assert float(tf.linalg.global_norm(clipped)) == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize('reconstruction', ['head', 'generator'])
def test_it_is_tried_under_a_strategy_too(strategy, reconstruction):
    def make(*layers):
        tf.keras.utils.set_random_seed(5)
        if layers:
            return tiny_gan.build(_discriminator(*layers))
        return tiny_gan.build(
            build_discriminator(
                SHAPE, CLASSES, width=8, reconstruction=reconstruction, latent_dim=4
            )
        )

    with strategy.scope():
        gan = make()
        before = gan.discriminator.get_weights() + gan.generator.get_weights()
        _compile(gan, clipping='fast')
        with pytest.raises(ValueError, match='of a record.* alone'):
            _compile(make(_MinibatchDeviation()))
    after = gan.discriminator.get_weights() + gan.generator.get_weights()
    for old, new in pairs(before, after):
        np.testing.assert_array_equal(old, new)
    for variable in gan.private_variables:
        first, second = strategy.experimental_local_results(variable)
        np.testing.assert_array_equal(first.numpy(), second.numpy())


@pytest.mark.acceptance
def test_more_replicas_than_images_of_a_batch(strategy, three_replicas):
    # Of one image a third replica's share would begin behind its end.
    samples = [(np.full([size, *SHAPE], 90, np.uint8), np.zeros(size, np.int32)) for size in (1, 0)]

    def train(strategy):
        num_replicas = strategy.num_replicas_in_sync
        with strategy.scope():
            tf.keras.utils.set_random_seed(5)
            gan = tiny_gan.build(build_discriminator(SHAPE, CLASSES, width=8))
            _compile(
                gan,
                # Adam's first steps go by the sign of a gradient alone.
                generator_optimizer=tf.keras.optimizers.legacy.SGD(0.05),
                discriminator_optimizer=private(expected_batch_size=1, noise_multiplier=0.0),
                discriminator_steps=1,
                adaptive_discriminator_steps=False,
            )

        def shares(context=None):
            signature = (tf.TensorSpec([None, *SHAPE], tf.uint8), tf.TensorSpec([None], tf.int32))
            parts = [
                (images[replica::num_replicas], labels[replica::num_replicas])
                for images, labels in samples
                for replica in range(num_replicas)
            ]
            return tf.data.Dataset.from_generator(lambda: iter(parts), output_signature=signature)

        data = strategy.distribute_datasets_from_function(shares) if num_replicas > 1 else shares()
        gan.fit(data, steps_per_epoch=len(samples), verbose=0)
        assert int(gan.generator_steps.numpy()) == 2
        return gan.generator.get_weights() + gan.discriminator.get_weights()

    one = train(tf.distribute.get_strategy())
    for several in (strategy, three_replicas):
        for a, b in pairs(one, train(several)):
            np.testing.assert_allclose(a, b, atol=1e-5)


# Mixers planted in every way that came to mind, behind what they may hide behind.


class _BehindAVariable(_LAYERS.Layer):
    """Adds the mean of the batch as often as a variable says, which is zero at first."""

    def __init__(self, make, act=tf.identity, **kwargs):
        super().__init__(**kwargs)
        factor = make(self)
        # Keras is not told of it: it finds the variables of attributes.
        self._factor = lambda: act(factor)

    def call(self, inputs):
        factor = tf.cast(self._factor(), inputs.dtype)
        return inputs + factor * tf.reduce_mean(inputs, axis=0)


def _of_a_frozen_layer(layer):
    dense = _LAYERS.Dense(1, kernel_initializer='zeros', use_bias=False, trainable=False)
    dense.build([None, 1])
    return dense.kernel


_HIDDEN = {
    'plain': lambda: _BehindAVariable(lambda _: _FACTOR),
    'weight': lambda: _BehindAVariable(
        lambda layer: layer.add_weight(name='w', shape=[], initializer='zeros'), trainable=False
    ),
    'frozen': lambda: _BehindAVariable(_of_a_frozen_layer),
    'vector': lambda: _BehindAVariable(lambda _: _FACTORS),
    'positive': lambda: _BehindAVariable(lambda _: _FACTOR, tf.nn.relu),
    'negative': lambda: _BehindAVariable(lambda _: _FACTOR, lambda x: tf.nn.relu(-x)),
    'large': lambda: _BehindAVariable(lambda _: _FACTORS, lambda x: tf.nn.relu(tf.abs(x) - 3.0)),
    'switch': lambda: _BehindAVariable(lambda _: _SWITCH),
    'counter': lambda: _BehindAVariable(lambda _: _STEP, lambda x: x > 1000),
    'by its handle': lambda: _BehindAVariable(
        lambda _: _FACTOR, lambda x: tf.raw_ops.ReadVariableOp(resource=x.handle, dtype=tf.float32)
    ),
}
_FACTOR = tf.Variable(0.0, trainable=False)
_FACTORS = tf.Variable([0.0, 0.0, 0.0, 0.0], trainable=False)
_SWITCH = tf.Variable(False, trainable=False)
_STEP = tf.Variable(0, trainable=False, dtype=tf.int64)


@pytest.mark.parametrize('clipping', ['fast', 'vectorized'])
@pytest.mark.parametrize('name', _HIDDEN)
def test_mixers_behind_a_variable_are_found_and_leave_it_alone(name, clipping):
    with pytest.raises(ValueError, match='the (loss|gradient) of a record.* in a batch of'):
        _compile(tiny_gan.build(_discriminator(_HIDDEN[name]())), clipping=clipping)
    assert _FACTOR.numpy() == 0.0 and not _FACTORS.numpy().any()
    assert not _SWITCH.numpy() and _STEP.numpy() == 0


def test_what_is_hidden_is_found_under_a_strategy_and_restored_on_every_replica(strategy):
    with strategy.scope():
        factor = tf.Variable([-0.0, 0.1, np.nan, 1e-45], trainable=False)
        before = [v.numpy().tobytes() for v in strategy.experimental_local_results(factor)]
        layer = _BehindAVariable(lambda _: factor, lambda x: tf.where(tf.abs(x) > 0.3, x, 0.0))
        with pytest.raises(ValueError, match='of a record.* in a batch of'):
            _compile(tiny_gan.build(_discriminator(layer)))
    after = [v.numpy().tobytes() for v in strategy.experimental_local_results(factor)]
    assert len(after) == 2 and after == before


def _square(factor):
    def losses_of(records):
        return tf.reduce_sum(records, axis=1) * factor * factor

    return losses_of


def test_variables_are_restored_whatever_is_raised(monkeypatch):
    kept = tf.Variable([-0.0, np.nan, 1e-45, 0.3]), tf.Variable(7), tf.Variable(True)
    before = [variable.numpy().tobytes() for variable in kept]
    trained = tf.Variable(0.3)

    def losses_of(records):
        more = tf.reduce_sum(tf.where(tf.math.is_finite(kept[0]), kept[0], 0.0))
        more += tf.cast(kept[1], tf.float32) + tf.cast(kept[2], tf.float32)
        return _square(trained + more)(records)

    records = tf.constant(np.random.default_rng(0).normal(size=[6, 3]), tf.float32)
    calls = []

    def fails(*_):
        calls.append([variable.numpy().tobytes() for variable in kept] != before)
        if calls[-1]:
            raise KeyboardInterrupt

    monkeypatch.setattr(independence, '_why_different', fails)
    with pytest.raises(KeyboardInterrupt):
        independence.why_not_alone(losses_of, [trained], records)
    assert calls[-1]
    assert [variable.numpy().tobytes() for variable in kept] == before
    assert trained.numpy() == np.float32(0.3)


def test_integers_that_have_no_other_value_and_variances_are_no_reason_to_refuse():
    place = tf.Variable(1, trainable=False)
    variance = tf.Variable([0.3, 1.0, 0.5, 0.2], trainable=False)

    class Innocent(_LAYERS.Layer):
        def call(self, inputs):
            chosen = tf.gather(tf.constant([0.3, 0.7]), place)
            return chosen * inputs / tf.sqrt(variance)

    _compile(tiny_gan.build(_discriminator(Innocent())))
    np.testing.assert_array_equal(variance, np.float32([0.3, 1.0, 0.5, 0.2]))
    assert place.numpy() == 1


def _in_large_batches(mixed, size):
    return lambda x: tf.where(tf.shape(x)[0] >= size, mixed(x), x)


# Each maps a batch of images, or of features, to one of the same shape.
_MIXERS = {
    'min max': lambda x: (x - tf.reduce_min(x)) / (tf.reduce_max(x) - tf.reduce_min(x)),
    'over max': lambda x: x / tf.reduce_max(x),
    'clip_by_norm': lambda x: tf.clip_by_norm(x, 3.0),
    'clip_by_global_norm': lambda x: tf.clip_by_global_norm([x], 3.0)[0][0],
    'l2_normalize': lambda x: tf.math.l2_normalize(x, axis=0),
    'softmax': lambda x: tf.nn.softmax(x, axis=0),
    'log_softmax': lambda x: tf.nn.log_softmax(x, axis=0),
    'sort': lambda x: tf.sort(x, axis=0),
    'cumsum': lambda x: tf.cumsum(x, axis=0),
    'reverse cumsum': lambda x: tf.cumsum(x, axis=0, reverse=True),
    'cumprod': lambda x: tf.math.cumprod(x, axis=0),
    'roll': lambda x: tf.roll(x, 1, axis=0),
    'reverse': lambda x: tf.reverse(x, axis=[0]),
    'moments': lambda x: (
        tf.nn.batch_normalization(x, *tf.nn.moments(x, [0]), None, None, 1e-3)
    ),
    'median': lambda x: x - tf.sort(x, axis=0)[tf.shape(x)[0] // 2],
    'extremes': lambda x: tf.clip_by_value(x, -1.0, tf.reduce_max(x[:1])),
    'place': lambda x: x * tf.reshape(
        tf.range(tf.shape(x)[0], dtype=tf.float32), [-1] + [1] * (x.shape.rank - 1)
    ),
    'rank over the batch': lambda x: x * tf.linalg.norm(x),
}  # fmt: skip


@pytest.mark.parametrize('where', ['images', 'features'])
@pytest.mark.parametrize('name', _MIXERS)
def test_planted_mixers_are_refused(name, where):
    if where == 'images':
        discriminator = _seen_through(_MIXERS[name])
    else:
        discriminator = _discriminator(_LAYERS.Lambda(_MIXERS[name]))
    with pytest.raises(ValueError, match='a loss of which'):
        _compile(tiny_gan.build(discriminator))


_IN_CROWDS = {
    # Far below a thousandth of a gradient, which adds up.
    'little': lambda x: x + 4e-5 * tf.reduce_sum(x, axis=0),
    'little, of one': lambda x: x + 5e-5 * x[:1],
    'from 100 on': _in_large_batches(lambda x: x - tf.reduce_mean(x, axis=0), 100),
    'sorted from 100 on': _in_large_batches(lambda x: tf.sort(x, axis=0), 100),
    # The largest images that there are reach it, 2000 of them.
    'clip_by_norm': lambda x: tf.clip_by_norm(x, 100.0),
    'clip_by_global_norm': lambda x: tf.clip_by_global_norm([x], 100.0)[0][0],
}


@pytest.mark.parametrize('clipping', ['fast', 'vectorized'])
@pytest.mark.parametrize('name', _IN_CROWDS)
def test_mixers_that_only_a_crowd_shows_are_refused(name, clipping):
    gan = tiny_gan.build(_seen_through(_IN_CROWDS[name]))
    with pytest.raises(ValueError, match='two records more move what .* others add to the sum'):
        _compile(
            gan,
            discriminator_optimizer=private(expected_batch_size=256),
            clipping=clipping,
        )


def test_a_crowd_is_no_larger_than_the_parts_of_a_batch():
    gan = tiny_gan.build(_seen_through(_IN_CROWDS['from 100 on']))
    optimizer = private(expected_batch_size=256)
    _compile(gan, discriminator_optimizer=optimizer, microbatch_size=64)
    _compile(gan)  # Of 4 records on average.


def test_what_fast_clipping_adds_up_is_tried_in_crowds():
    model = tf.keras.Sequential([tf.keras.Input([3]), _LAYERS.Dense(2)])
    variables = model.trainable_variables
    records = tf.constant(np.random.default_rng(0).normal(size=[40, 3]), tf.float32)

    def losses_of(batch):
        return tf.reduce_sum(model(batch), axis=1)

    def reason(error):
        def sums(batch, weights, lengths):
            norms, exact, sums = layer_norms.clipped_sum(
                model, lambda: losses_of(batch), variables, weights, lengths
            )
            # Of single rows it is far below what is looked at.
            off = error * tf.reduce_sum(batch) * tf.reduce_sum(weights)
            return norms, exact, [total + off for total in sums]

        return independence.why_not_alike(sums, losses_of, variables, records[:6], [records])

    assert reason(0.0) is None
    assert 'two records more move what 36 others add' in reason(1e-4)


def _attends(x):
    return _LAYERS.MultiHeadAttention(2, 3)(x, x)


_INNOCENT = {
    'layer norm': lambda x: _LAYERS.LayerNormalization()(x),
    'group norm': lambda x: _LAYERS.GroupNormalization(2)(x),
    'dense': lambda x: _LAYERS.Dense(3, 'relu')(x),
    'conv': lambda x: _LAYERS.Conv2D(3, 3, 2, activation='relu')(x),
    'transposed conv': lambda x: _LAYERS.Conv2DTranspose(3, 3, 2)(x),
    'embedding': lambda x: _LAYERS.Embedding(9, 4)(
        _LAYERS.Lambda(lambda x: tf.cast(4.0 * (tf.tanh(x[..., 0]) + 1.0), tf.int32))(x)
    ),
    'resize': lambda x: _LAYERS.Resizing(12, 12)(x),
    'attention': lambda x: _attends(_LAYERS.Reshape([64, 4])(x)),
    'softmax': lambda x: _LAYERS.Softmax(axis=[1, 2])(x),
    'pooling': lambda x: _LAYERS.MaxPool2D()(x),
    'frozen': lambda x: _LAYERS.BatchNormalization(trainable=False)(x),
    'lstm': lambda x: _LAYERS.LSTM(3)(_LAYERS.Reshape([64, 4])(x)),
    'l2': lambda x: _LAYERS.UnitNormalization()(x),
}


@pytest.mark.parametrize('name', _INNOCENT)
def test_innocent_layers_are_accepted(name):
    images = tf.keras.Input(SHAPE)
    x = _INNOCENT[name](_LAYERS.Conv2D(4, 3, padding='same')(images))
    logits = _LAYERS.Dense(CLASSES)(_LAYERS.Flatten()(x))
    gan = tiny_gan.build(tf.keras.Model(images, {'logits': logits}))
    _compile(gan, discriminator_optimizer=private(expected_batch_size=128))


@pytest.mark.parametrize('reconstruction', ['head', 'generator', 'none'])
def test_the_networks_of_this_package_are_accepted(reconstruction):
    discriminator = build_discriminator(
        SHAPE, CLASSES, width=8, reconstruction=reconstruction, latent_dim=4
    )
    gan = tiny_gan.build(discriminator)
    _compile(gan, discriminator_optimizer=private(expected_batch_size=256), clipping='fast')
