"""The layers of our own: what they compute, and that each survives saving."""

import inspect

import numpy as np
import pytest
import tensorflow as tf

from tf_efsgd.models import layers
from tf_efsgd.models.generator import build_generator, draw_inputs

# Every layer of models/layers.py: its arguments, and the shape of an image it takes.
_CASES = {
    'NoiseInjection': ({}, (4, 4, 3)),
    'GroupNormalization': ({'groups': 2}, (3, 4, 4)),
    'ReturningTanh': ({}, (6, 4, 3)),
    'SmoothColours': ({'channels': 3}, (6, 4, 5)),
    'ImageToPatches': ({'patch_size': 2}, (6, 4, 3)),
    'PatchesToImage': ({'image_size': 6, 'patch_size': 4}, (2, 2, 48)),
}


def _our_layers():
    return {
        name: layer
        for name, layer in inspect.getmembers(layers, inspect.isclass)
        if issubclass(layer, tf.keras.layers.Layer) and layer.__module__ == layers.__name__
    }


def _random(*shape):
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def test_every_layer_has_a_case():
    assert set(_our_layers()) == set(_CASES), 'add each new layer to _CASES'


@pytest.mark.parametrize('name', _CASES)
def test_config_makes_the_same_layer_again(name):
    arguments, shape = _CASES[name]
    layer = _our_layers()[name](name='ours', **arguments)
    config = layer.get_config()
    assert arguments.items() <= config.items()
    again = type(layer).from_config(config)
    assert again.get_config() == config
    assert again(tf.zeros([2, *shape])).shape == layer(tf.zeros([2, *shape])).shape


@pytest.mark.parametrize('name', _CASES)
@pytest.mark.parametrize('suffix', ['.keras', ''])
def test_a_saved_model_comes_back_without_being_told_of_our_layers(name, suffix, tmp_path):
    arguments, shape = _CASES[name]
    inputs = {'x': tf.keras.Input(shape)}
    given = {'x': _random(2, *shape)}
    called_with = {}
    if name == 'NoiseInjection':  # Noise of its own would differ from call to call.
        inputs['noise'] = called_with['noise'] = tf.keras.Input((*shape[:-1], 1))
        given['noise'] = _random(2, *shape[:-1], 1)
    layer = _our_layers()[name](**arguments)
    model = tf.keras.Model(inputs, layer(inputs['x'], **called_with))
    model.set_weights([_random(*w.shape) for w in model.get_weights()])
    path = tmp_path / f'model{suffix}'
    model.save(path)
    loaded = tf.keras.models.load_model(path)
    assert type(loaded.layers[-1]).__name__ == name
    np.testing.assert_array_equal(loaded(given), model(given))
    assert not np.array_equal(model(given), np.zeros_like(model(given)))


def test_a_new_noise_injection_changes_nothing():
    x = _random(2, 4, 4, 3)
    np.testing.assert_array_equal(layers.NoiseInjection()(x), x)


def test_noise_is_scaled_per_channel():
    layer = layers.NoiseInjection()
    layer.build([None, 1, 2, 3])
    assert [v.shape.as_list() for v in layer.trainable_variables] == [[1, 3]]
    layer.set_weights([np.array([[0.0, 2.0, -0.5]])])
    x = np.array([[[[1, 2, 3], [4, 5, 6]]]], np.float32)
    noise = np.array([[[[0.3], [-2.0]]]], np.float32)
    wanted = [[[[1, 2.6, 2.85], [4, 1, 7]]]]
    np.testing.assert_allclose(layer(x, noise=noise), wanted, rtol=1e-6)


def test_noise_is_drawn_anew_when_none_is_given():
    layer = layers.NoiseInjection()
    layer.build([None, 16, 16, 2])
    layer.set_weights([np.array([[1.0, 3.0]])])
    first, second = (layer(tf.zeros([9, 16, 16, 2])).numpy() for _ in range(2))
    assert not np.allclose(first, second)
    assert not np.allclose(first[0], first[1]), 'each example has noise of its own'
    np.testing.assert_allclose(first[..., 1], 3 * first[..., 0], rtol=1e-5)
    # 2304 standard normals: five standard deviations of their mean and of their spread.
    assert abs(first[..., 0].mean()) < 0.104
    assert abs(first[..., 0].std() - 1) < 0.074


def test_patches_are_the_pixels_of_their_place():
    images = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    patches = layers.ImageToPatches(2)(images)
    assert patches.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(patches[1, 1, 2], images[1, 2:4, 4:6].ravel())


@pytest.mark.parametrize('patch_size', [1, 2, 4])
def test_patches_to_image_undoes_image_to_patches(patch_size):
    images = _random(2, 8, 8, 3)
    patches = layers.ImageToPatches(patch_size)(images)
    np.testing.assert_array_equal(layers.PatchesToImage(8, patch_size)(patches), images)


@pytest.mark.parametrize(('size', 'first'), [(6, 1), (5, 1), (2, 3)])
def test_patches_to_image_crops_the_middle(size, first):
    images = _random(2, 8, 8, 3)
    cropped = layers.PatchesToImage(size, 4)(layers.ImageToPatches(4)(images))
    np.testing.assert_array_equal(cropped, images[:, first : first + size, first : first + size])


# Group normalization.


@pytest.mark.parametrize('shape', [(3, 5, 4), (1, 1, 4), (6, 4), (2, 3, 2, 4), (4,), (None, 3, 4)])
@pytest.mark.parametrize(
    'arguments',
    [{'groups': 2}, {'groups': 1, 'scale': False}, {'groups': -1, 'center': False, 'epsilon': 0.1}],
)
def test_group_normalization_is_that_of_keras(shape, arguments):
    ours = layers.GroupNormalization(**arguments)
    keras = tf.keras.layers.GroupNormalization(**arguments)
    inputs = tf.constant(3 * _random(2, *(size or 5 for size in shape)) + 10)
    keras.build([None, *shape]), ours.build([None, *shape])
    weights = [_random(*w.shape) for w in keras.get_weights()]
    for layer in (keras, ours):
        layer.set_weights(weights)
    found = []
    for layer in (keras, ours):

        @tf.function(input_signature=[tf.TensorSpec([None, *shape])])
        def step(x, layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(x)
                outputs = layer(x)
                loss = tf.reduce_sum(tf.sin(outputs))
            return [outputs, *tape.gradient(loss, [x, *layer.trainable_variables])]

        found.append([t.numpy() for t in step(inputs)])
    for one, other in zip(*found):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)
    assert np.abs(found[0][0]).max() > 0.5 or shape == (1, 1, 4) or len(shape) == 1


def test_group_normalization_along_another_axis_is_that_of_keras():
    inputs = _random(2, 4, 3, 5)
    ours, keras = (
        layers.GroupNormalization(2, axis=1),
        tf.keras.layers.GroupNormalization(2, axis=1),
    )
    np.testing.assert_allclose(ours(inputs), keras(inputs), atol=1e-6)


def _smooth(image):
    """An image as SmoothColours leaves it, when its convolution changes nothing."""
    layer = layers.SmoothColours(1)
    layer(image)
    layer.set_weights([np.ones([1, 1, 1, 1]), np.zeros([1])])
    return layer(image).numpy()


@pytest.mark.parametrize(
    ('period', 'kept'), [(2, 0.0), (4, 0.75), (8, (10 + 8 * np.sqrt(0.5)) / 16)]
)
@pytest.mark.parametrize('axis', [1, 2])
def test_smooth_colours_take_what_alternates_from_pixel_to_pixel(period, kept, axis):
    wave = np.cos(2 * np.pi * np.arange(24) / period)
    image = np.broadcast_to(
        wave.reshape([1, -1, 1, 1] if axis == 1 else [1, 1, -1, 1]), [1, 24, 24, 1]
    )
    inside = (slice(None), slice(2, -2), slice(2, -2))
    found = _smooth(image.astype(np.float32))
    np.testing.assert_allclose(found[inside], kept * image[inside], atol=1e-6)


def test_smooth_colours_keep_constants_to_the_border_and_slopes():
    constant = np.full([1, 5, 7, 1], 0.3, np.float32)
    np.testing.assert_allclose(_smooth(constant), constant, rtol=1e-6)
    slope = np.arange(12, dtype=np.float32).reshape(1, 12, 1, 1) * np.ones([1, 1, 6, 1], np.float32)
    np.testing.assert_allclose(_smooth(slope)[:, 2:-2], slope[:, 2:-2], rtol=1e-6)


def test_a_returning_tanh_leads_back_from_where_tanh_is_constant():
    x = tf.constant([-30.0, -30.0, 30.0, 30.0])
    upstream = tf.constant([-2.0, 2.0, -2.0, 2.0])  # Descent moves x against it.
    layer = layers.ReturningTanh()
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(layer(x) * upstream)
    np.testing.assert_array_equal(layer(x), [-1, -1, 1, 1])
    np.testing.assert_allclose(tape.gradient(loss, x), [-0.2, 0.0, 0.0, 0.2])


def test_a_returning_tanh_is_tanh_elsewhere():
    x = tf.linspace(-1.8, 1.8, 19)  # There its slope is more than a tenth.
    layer = layers.ReturningTanh()
    for sign in (-1.0, 1.0):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            ours, keras = sign * layer(x), sign * tf.tanh(x)
        np.testing.assert_array_equal(ours, keras)
        np.testing.assert_allclose(tape.gradient(ours, x), tape.gradient(keras, x), rtol=1e-5)


def test_a_black_generator_learns_again():
    """As a fit that went too far: every image is black, to the last bit."""
    generator = build_generator((8, 8, 1), 2, width=16, architecture='skip')
    inputs = draw_inputs(generator, tf.constant([0, 1]), tf.constant([1, 2]))
    last = [x for x in generator.layers if isinstance(x, layers.SmoothColours)][-1]
    last.convolution.bias.assign([-40.0])
    assert np.all(generator(inputs) == -1)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum((generator(inputs) - 0.5) ** 2)
    assert float(tape.gradient(loss, last.convolution.bias)) < -1
