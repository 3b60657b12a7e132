"""Whole models, several models and bad records in one backward pass."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.layer_gradients import (
    KERAS,
    MODES,
    assert_equal,
    by_layer,
    draw,
    encoder_and_decoder,
    has_grouped_gradients,
    model_of,
    model_of_images,
    of_gradients,
    one_by_one,
    weights_of,
)
from helpers.pairs import pairs

from tf_efsgd.models.generator import ARCHITECTURES, build_generator, draw_inputs
from tf_efsgd.models.layers import SmoothColours
from tf_efsgd.privacy import clipping, layer_norms
from tf_efsgd.privacy.layer_norms import registry, rule


def _shared():
    """A convolution that is called twice in one pass, and a Dense that is called on its own."""
    images = tf.keras.Input([5, 5, 2])
    convolution, dense = KERAS.Conv2D(2, 3, padding='same', activation='tanh'), KERAS.Dense(2)
    return tf.keras.Model(images, dense(dense(convolution(convolution(images)))))


def _nested():
    """A model inside of another, called on two things."""
    inner = tf.keras.Sequential(
        [KERAS.Conv2D(4, 2, 2, activation='elu'), KERAS.GroupNormalization(2)]
    )
    images = tf.keras.Input([6, 4, 2])
    features = inner(images) * inner(tf.reverse(images, [1]))
    return tf.keras.Model(images, KERAS.Dense(3, 'tanh')(KERAS.Flatten()(features)))


def _chain():
    """All rules."""
    return tf.keras.Sequential(
        [
            tf.keras.Input([16], dtype=tf.int32),
            KERAS.Embedding(5, 4),
            KERAS.Reshape([4, 4, 4]),
            KERAS.Conv2D(
                4,
                3,
                padding='same',
                groups=2 if has_grouped_gradients() else 1,
                activation='relu',
            ),
            KERAS.DepthwiseConv2D(2, depth_multiplier=2),
            KERAS.GroupNormalization(4),
            KERAS.LeakyReLU(0.2),
            KERAS.Conv2DTranspose(3, 3, 2, 'same', activation='tanh'),
            KERAS.LayerNormalization(),
            KERAS.Dense(2, 'softmax'),
            KERAS.Flatten(),
            KERAS.Dense(3),
        ]
    )


def test_the_chain_has_every_rule():
    missing = set(registry._RULES) - {type(layer) for layer in _chain().layers}
    assert not missing, 'Add a layer to _chain above.'


@pytest.mark.parametrize('build', [_shared, _nested, _chain])
def test_models(build):
    model = build()
    drawn = draw(model, 3)
    wanted = one_by_one(model, *drawn)
    assert wanted[0].min() > 0.1
    for mode in MODES:
        assert_equal(by_layer(model, *drawn, mode=mode), wanted)
    # No layer is left as it was called in the pass.
    layers = [layer for layer in model._flatten_layers() if layer._trainable_weights]
    assert layers and not any('call' in vars(layer) for layer in layers)


@pytest.mark.parametrize(
    ('make', 'shape', 'dtype'),
    [
        (lambda: KERAS.Conv2D(2, 3, padding='same'), [4, 4, 2], tf.float32),
        (lambda: KERAS.Dense(3), [3], tf.float32),
        (lambda: KERAS.LayerNormalization(), [3, 2], tf.float32),
        (lambda: KERAS.GroupNormalization(1), [3, 2], tf.float32),
        (lambda: KERAS.Embedding(5, 2), [4], tf.int32),
    ],
    ids=['conv2d', 'dense', 'layer_normalization', 'group_normalization', 'embedding'],
)
def test_two_calls_add_before_they_are_squared(monkeypatch, make, shape, dtype):
    layer, inputs = make(), tf.keras.Input(shape, dtype=dtype)
    # The second call's gradients point along the first one's, in part.
    model = tf.keras.Model(inputs, layer(inputs) + 2 * layer(tf.reverse(inputs, [1])))
    drawn = draw(model, 3)
    wanted = one_by_one(model, *drawn)
    assert_equal(by_layer(model, *drawn), wanted)

    class Apart(layer_norms.PerExample):
        def squared_norms(self):
            return tf.add_n([call.squared_norms() for call in self.calls])

    def join_apart(cls, calls):
        joined = Apart(calls[0].variables, calls[0].exact().gradients)
        joined.calls = calls
        return joined

    for part in (layer_norms.PerExample, layer_norms.Products, layer_norms.Patches):
        monkeypatch.setattr(part, 'join', classmethod(join_apart))
    apart, _ = by_layer(model, *drawn)
    assert np.all(np.abs(apart - wanted[0]) > 1e-2 * wanted[0])


@pytest.mark.parametrize('advantage', [0.0, np.inf])
def test_models_by_either_form(monkeypatch, advantage):
    monkeypatch.setattr(rule, '_GRAM_ADVANTAGE', advantage)
    model = _chain()
    drawn = draw(model, 3)
    # Nearly all of a Gram form's digits may cancel here: what is believed has lost two or three.
    assert_equal(by_layer(model, *drawn), one_by_one(model, *drawn), rtol=1e-5)


def test_some_of_the_variables():
    model = model_of_images()
    model.layers[0].trainable = False
    drawn = draw(model, 3)
    for variables in (model.trainable_variables, model.layers[-1].trainable_variables[:1]):
        assert_equal(
            by_layer(model, *drawn, variables=variables),
            one_by_one(model, *drawn, variables=variables),
        )


def test_a_variable_that_the_loss_does_not_use_adds_nothing():
    images = tf.keras.Input([3])
    model = tf.keras.Model(images, [KERAS.Dense(2)(images), KERAS.Dense(4)(images)])
    x = tf.constant([[0.3, 1.0, -2.0], [1.0, 0.0, 0.7]])

    def losses_of():
        return tf.reduce_sum(tf.square(model(x)[0]), axis=1)

    variables = model.trainable_variables
    gradients = clipping.BatchGradients(
        layer_norms.gradients_by_layer(model, losses_of, variables), variables
    )
    sums = gradients.weighted_sums(tf.ones([1, 2]))
    assert [s.shape for s in sums] == [[1, *v.shape] for v in variables]
    assert [bool(tf.reduce_any(s != 0)) for s in sums] == [True, True, False, False]


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_record_that_is_not_finite_counts_as_zero(bad, mode):
    model = model_of_images()
    records, directions = draw(model, 4)
    good = [0, 2, 3]
    norms, sums, sizes = one_by_one(model, records, directions)
    assert norms[1] > 0.1
    without = _of_gradients_without(model, records, directions, 1)
    records[1, 2, 3, 0] = bad
    actual_norms, actual_sums = by_layer(model, records, directions, mode=mode)
    assert actual_norms[1] == 0
    np.testing.assert_allclose(actual_norms[good], norms[good], rtol=1e-5)
    for one, other, size, whole in zip(actual_sums, without, sizes, sums):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * size)
        assert np.abs(whole - other).max() > 1e-3  # The record had been in it.


def _of_gradients_without(model, records, directions, index):
    scales = np.ones(len(records))
    scales[index] = 0
    return one_by_one(model, records, directions, scales)[1]


class _Reused(KERAS.Layer):
    """A layer that uses another one's variable itself."""

    def __init__(self, dense):
        super().__init__(name='reused')
        self.kernel = dense.kernel

    def call(self, inputs):
        return inputs * tf.reduce_sum(self.kernel)


def _with_a_shared_variable():
    inputs = tf.keras.Input([4, 4, 2])
    dense = KERAS.Dense(2, name='odd')
    features = dense(inputs)
    return tf.keras.Model(inputs, _Reused(dense)(features))


def test_variables_of_no_layer_or_of_two_are_refused():
    model = model_of(KERAS.Dense(2), [3])
    variable = tf.Variable(0.3, name='loose')
    for variables in ([variable], [*model.trainable_variables, variable]):
        with pytest.raises(layer_norms.UnsupportedLayerError, match='loose.* belongs to no layer'):
            by_layer(model, np.ones([1, 3], np.float32), 1.0, variables=variables)
    model = _with_a_shared_variable()
    with pytest.raises(layer_norms.UnsupportedLayerError, match='odd/kernel.* several layers'):
        layer_norms.check_layers(model, model.trainable_variables)


def test_losses_that_are_not_one_for_every_example_are_refused():
    model = model_of(KERAS.Dense(2), [3])
    for loss in (lambda: tf.reduce_sum(model(tf.ones([2, 3]))), lambda: model(tf.ones([2, 3]))):
        with pytest.raises(ValueError, match='one loss for every example'):
            layer_norms.gradients_by_layer(model, loss, model.trainable_variables)
    with pytest.raises(ValueError, match='uses none of the variables'):
        layer_norms.gradients_by_layer(model, lambda: tf.ones([2]), model.trainable_variables)


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_a_loss_may_go_through_several_models(architecture):
    encoder, decoder, losses, records = encoder_and_decoder(architecture)
    variables = [*encoder.trainable_variables, *decoder.trainable_variables]
    gradients = []
    for i in range(5):
        with tf.GradientTape() as tape:
            loss = losses({name: value[i : i + 1] for name, value in records.items()})
        gradients.append(tape.gradient(loss, variables))
    gradients = [np.stack([np.asarray(tf.convert_to_tensor(g)) for g in of_variable])
                 for of_variable in zip(*gradients)]  # fmt: skip
    assert all(np.abs(g).max() > 1e-3 for g in gradients)
    parts = layer_norms.gradients_by_layer([encoder, decoder], lambda: losses(records), variables)
    fast = clipping.BatchGradients(parts, variables)
    actual = fast.norms.numpy(), fast.weighted_sums(tf.constant(weights_of(5)))
    wanted = of_gradients(gradients)
    assert_equal(actual, wanted)
    np.testing.assert_allclose(actual[0], wanted[0], rtol=1e-5)
    # A gradient of the decoder that is left out would show.
    part = of_gradients(gradients[:-1])[0]
    assert not np.allclose(actual[0], part, rtol=1e-3)


def test_a_model_that_is_not_told_of_is_refused():
    encoder, decoder, losses, records = encoder_and_decoder()
    variables = [*encoder.trainable_variables, *decoder.trainable_variables]
    with pytest.raises(layer_norms.UnsupportedLayerError, match='belongs to no layer'):
        layer_norms.gradients_by_layer(encoder, lambda: losses(records), variables)


def test_models_may_share_a_layer():
    dense = KERAS.Dense(3, activation='tanh')
    one, other = model_of(dense, [3]), model_of(dense, [3])
    rows = tf.constant([[0.3, -0.2, 0.5], [1.0, 2.0, -0.7]])
    parts = layer_norms.gradients_by_layer(
        [one, other], lambda: tf.reduce_sum(other(one(rows)), axis=1), dense.trainable_variables
    )
    norms = clipping.BatchGradients(parts, dense.trainable_variables).norms
    for row, norm in pairs(rows, norms):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(other(one(row[tf.newaxis])))
        gradients = tape.gradient(loss, dense.trainable_variables)
        assert float(norm) == pytest.approx(float(tf.linalg.global_norm(gradients)), rel=1e-5)


@pytest.mark.parametrize('bias', [0.0, -30.0], ids=['gray', 'black'])
def test_norms_where_the_gradient_of_a_returning_tanh_depends_on_its_sign(bias):
    """One backward pass for all records must see the sign of each."""
    generator = build_generator(
        (8, 8, 1), 2, latent_dim=3, width=16, noise_injection=False, architecture='skip'
    )
    last = [x for x in generator.layers if isinstance(x, SmoothColours)][-1]
    last.convolution.bias.assign([bias])
    inputs = draw_inputs(generator, tf.constant([0, 1, 1]), tf.constant([1, 2]))
    # Away from black for one record, beyond it for another, both for the third.
    mixed = tf.random.stateless_uniform([8, 8, 1], [1, 2], -2.0, 2.0)
    targets = tf.stack([tf.ones([8, 8, 1]), -2.0 * tf.ones([8, 8, 1]), mixed])

    def losses():
        return tf.reduce_sum((generator(inputs) - targets) ** 2, axis=[1, 2, 3])

    variables = generator.trainable_variables
    parts = layer_norms.gradients_by_layer(generator, losses, variables)
    norms = clipping.BatchGradients(parts, variables).norms.numpy()
    alone = []
    for record in range(3):
        with tf.GradientTape() as tape:
            loss = losses()[record]
        alone.append(float(tf.linalg.global_norm(tape.gradient(loss, variables))))
    np.testing.assert_allclose(norms, alone, rtol=1e-4, atol=1e-6)
    assert norms[0] > 1.0 and (norms[1] == 0.0) == (bias < 0)


def test_the_rounded_products_of_gpus_are_switched_off(monkeypatch):
    layer = tf.keras.layers.Dense(2)
    model = tf.keras.Sequential([tf.keras.Input([3]), layer])
    rows = tf.ones([4, 3])
    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    before = enabled()
    try:
        for devices, wanted in (([], True), (['GPU:0'], False)):
            tf.config.experimental.enable_tensor_float_32_execution(True)
            monkeypatch.setattr(tf.config, 'list_physical_devices', lambda *_, d=devices: d)
            layer_norms.gradients_by_layer(
                model, lambda: tf.reduce_sum(model(rows), axis=1), model.trainable_variables
            )
            assert enabled() is wanted
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)
