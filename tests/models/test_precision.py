"""Copies of networks in another precision: the same weights and names, nearly the same function."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.pairs import pairs

from tf_efsgd.models import precision
from tf_efsgd.models.generator import build_generator, draw_inputs
from tf_efsgd.models.public_network import MAPS, build_public_network

_SHAPE = (16, 16, 3)


def _generator(architecture='skip'):
    tf.keras.utils.set_random_seed(3)
    return build_generator(_SHAPE, 3, latent_dim=4, width=16, architecture=architecture)


def _computes_in(model):
    layers = model._flatten_layers(include_self=False)
    return {layer.name: layer.compute_dtype for layer in layers if layer.name != 'labels'}


@pytest.mark.parametrize('architecture', ['plain', 'skip'])
def test_a_generator_in_bfloat16(architecture, tmp_path):
    generator = _generator(architecture)
    copy = precision.copy_in(generator, 'mixed_bfloat16')
    inputs = draw_inputs(generator, tf.constant([0, 1, 2, 0]), tf.constant([1, 2]))

    images, expected = copy(inputs), generator(inputs)

    assert images.dtype == tf.float32
    # Of so many bits, and not the same numbers by chance.
    assert 1e-4 < np.abs(images - expected).max() < 0.1
    assert {variable.dtype for variable in copy.variables} == {tf.float32}
    for one, two in pairs(copy.get_weights(), generator.get_weights()):
        np.testing.assert_array_equal(one, two)
    computes_in = _computes_in(copy)
    assert list(computes_in) == list(_computes_in(generator))
    convolutions = [n for n in computes_in if n.startswith('conv2d_transpose')]
    assert {computes_in[name] for name in convolutions} == {'bfloat16'}
    norms = [name for name in computes_in if name.startswith('group_norm')]
    assert {computes_in[name] for name in (*norms, generator.layers[-1].name)} == {'float32'}

    # And back: checkpoints do not show what they were made in.
    path = tf.train.Checkpoint(model=copy).write(str(tmp_path / 'checkpoint'))
    other = precision.copy_in(_generator(architecture), 'float32')
    other.set_weights([w + 1.0 for w in other.get_weights()])
    tf.train.Checkpoint(model=other).read(path).assert_consumed()
    assert set(_computes_in(other).values()) == {'float32'}
    np.testing.assert_array_equal(other(inputs), expected)


def test_gradients_are_near_those_in_float32_and_reach_every_weight():
    generator = _generator()
    copy = precision.copy_in(generator, 'mixed_bfloat16')
    inputs = draw_inputs(generator, tf.constant([0, 1, 2, 0]), tf.constant([1, 2]))
    gradients = []
    for model in (generator, copy):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(inputs, training=True) ** 2)
        gradients.append(
            [tf.convert_to_tensor(g) for g in tape.gradient(loss, model.trainable_variables)]
        )
    assert {g.dtype for g in gradients[1]} == {tf.float32}
    for one, two in pairs(*gradients):
        assert float(tf.norm(two - one)) <= 0.2 * float(tf.norm(one))


def test_the_public_network_in_bfloat16():
    network = build_public_network(_SHAPE)
    copy = precision.copy_in(network, 'mixed_bfloat16')
    images = tf.random.stateless_uniform([4, *_SHAPE], [1, 2], -1.0, 1.0)

    maps, expected = copy(images), network(images)

    assert not copy.trainable_variables
    for name in MAPS:
        assert maps[name].dtype == tf.float32
        assert 1e-4 < tf.norm(maps[name] - expected[name]) / tf.norm(expected[name]) < 0.1


def test_models_within_a_model_are_copied_too():
    images = tf.keras.Input(_SHAPE)
    outputs = build_public_network(_SHAPE)(images)
    network = tf.keras.Model(images, {name: outputs[name] for name in MAPS})

    computes_in = _computes_in(precision.copy_in(network, 'mixed_bfloat16'))

    assert sum(dtype == 'bfloat16' for dtype in computes_in.values()) > 20
