"""The rules in TF Privacy, and the layers that have none."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.layer_gradients import (
    KERAS,
    by_layer,
    check,
    draw,
    losses_along,
    made_up,
    model_of_images,
    of_gradients,
)
from tensorflow_privacy.privacy.fast_gradient_clipping import clip_grads

from tf_efsgd.models import layers
from tf_efsgd.models.discriminator import build_discriminator
from tf_efsgd.privacy import clipping, layer_norms
from tf_efsgd.privacy.optimizer import why_not_fast


@pytest.mark.parametrize('num_microbatches', [None, 2])
def test_the_registry_serves_tf_privacy(num_microbatches):
    inputs = tf.keras.Input([6, 6, 2])
    outputs = inputs
    for layer in model_of_images().layers:
        outputs = layer(outputs)
    model = tf.keras.Model(inputs, outputs)
    records, directions = draw(model, 4)

    def losses(labels, outputs, weights=None):
        assert weights is None
        return tf.reduce_sum(labels * outputs, axis=1)

    norms = clip_grads.compute_gradient_norms(
        model,
        layer_norms.make_layer_registry(),
        tf.constant(records),
        directions,
        per_example_loss_fn=losses,
        num_microbatches=num_microbatches,
    )
    gradients = clipping.per_example_gradients(
        lambda record: losses(record[1][None], model(record[0][None]))[0],
        (tf.constant(records), directions),
        model.trainable_variables,
    )
    if num_microbatches is not None:
        gradients = [
            np.mean(np.reshape(g, [num_microbatches, -1, *g.shape[1:]]), axis=1) for g in gradients
        ]
    np.testing.assert_allclose(norms, of_gradients(gradients)[0], rtol=1e-5)


def test_the_registry_serves_tf_privacy_with_an_embedding():
    ids = tf.keras.Input([4], dtype=tf.int32)
    features = KERAS.LayerNormalization()(KERAS.Embedding(5, 3)(ids))
    model = tf.keras.Model(ids, features)
    records, directions = draw(model, 4)
    for num_microbatches in (None, 2):
        norms = clip_grads.compute_gradient_norms(
            model,
            layer_norms.make_layer_registry(),
            tf.constant(records),
            directions,
            per_example_loss_fn=lambda y, outputs, _: tf.reduce_sum(y * outputs, axis=[1, 2]),
            num_microbatches=num_microbatches,
        )
        gradients = clipping.per_example_gradients(
            lambda record: losses_along(model, record[0][None], record[1][None])[0],
            (tf.constant(records), directions),
            model.trainable_variables,
        )
        size = 1 if num_microbatches is None else 4 // num_microbatches
        gradients = [np.mean(np.reshape(g, [-1, size, *g.shape[1:]]), axis=1) for g in gradients]
        np.testing.assert_allclose(norms, of_gradients(gradients)[0], rtol=1e-5)


class _Scale(KERAS.Layer):
    def build(self, input_shape):
        self.scale = self.add_weight('scale', [input_shape[-1]], initializer='ones')

    def call(self, inputs):
        return inputs * self.scale


class _OddDense(KERAS.Dense):
    def call(self, inputs):
        return super().call(inputs) + tf.reduce_sum(self.kernel)


class _SameDense(KERAS.Dense):
    """Says what it computes; a class made from it has said nothing."""

    computes_as = KERAS.Dense

    def call(self, inputs):
        return super().call(tf.identity(inputs))


class _OddAgain(_SameDense):
    def call(self, inputs):
        return super().call(inputs) + tf.reduce_sum(self.kernel)


# If one of these layers gets a rule, put another layer without a rule in its place.
_REFUSED = {
    'separable': (KERAS.SeparableConv2D(2, 3, name='odd'), "'odd' .SeparableConv2D. has no rule"),
    'custom': (_Scale(name='odd'), "'odd' ._Scale. has no rule"),
    'subclass': (_OddDense(2, name='odd'), "'odd' ._OddDense. has no rule"),
    'its_subclass': (_OddAgain(2, name='odd'), "'odd' ._OddAgain. has no rule"),
    'activation': (
        KERAS.Dense(2, activation=_Scale(name='odd')),
        "'odd' ._Scale. has no rule",
    ),
    'float16': (KERAS.Dense(2, name='odd', dtype='mixed_float16'), "'odd' .* in float16"),
    'channels_first': (
        KERAS.Conv2D(2, 3, data_format='channels_first', padding='same', name='odd'),
        "'odd' .Conv2D. has its channels first",
    ),
    'output_padding': (
        KERAS.Conv2DTranspose(2, 3, 2, output_padding=1, name='odd'),
        "'odd' .Conv2DTranspose. has output_padding",
    ),
    'over_the_batch': (
        KERAS.LayerNormalization([0, -1], name='odd'),
        "'odd' .LayerNormalization. mixes the examples",
    ),
}


@pytest.mark.parametrize('name', _REFUSED)
def test_layers_without_a_rule_are_refused(name):
    layer, message = _REFUSED[name]
    inputs = tf.keras.Input([4, 4, 2], batch_size=1)
    model = tf.keras.Model(inputs, layer(inputs))
    with pytest.raises(layer_norms.UnsupportedLayerError, match=message):
        by_layer(model, np.ones([1, 4, 4, 2], np.float32), 1.0)
    reason = why_not_fast(
        model,
        lambda records: losses_along(model, records, 1.0),
        model.trainable_variables,
        made_up([4, 4, 2]),
    )
    assert 'odd' in reason
    assert 'call' not in vars(layer)


def test_a_layer_may_say_whose_rule_it_has():
    check(_SameDense(2, 'tanh'), [3], 3)
    check(layers.GroupNormalization(2), [3, 4, 4], 3)


@pytest.mark.parametrize('shape', [(28, 28, 1), (32, 32, 3)])
@pytest.mark.parametrize('reconstruction', ['head', 'generator', 'none'])
def test_the_discriminator_of_this_package_has_all_rules(shape, reconstruction):
    model = build_discriminator(shape, 10, width=8, reconstruction=reconstruction)

    def losses_of(images):
        outputs = tf.nest.flatten(model(images))
        return tf.add_n([tf.reduce_sum(o, axis=list(range(1, o.shape.rank))) for o in outputs])

    assert why_not_fast(model, losses_of, model.trainable_variables, made_up(shape)) is None
