"""The generator: every size, every class, and no example that sees another."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.pairs import pairs

from tf_efsgd.models import generator as generators
from tf_efsgd.models.layers import ReturningTanh, SmoothColours


def _build(size=8, channels=1, **settings):
    tf.keras.utils.set_random_seed(5)
    return generators.build_generator(
        (size, size, channels), 3, **{'latent_dim': 4, 'width': 8, **settings}
    )


def _with_noise(model):
    """Gives noise an influence, which a new generator does not have."""
    for layer in model.layers:
        if layer.name.startswith('noise_injection'):
            layer.set_weights([np.full_like(w, 0.5) for w in layer.get_weights()])
    return model


@pytest.fixture(scope='module', params=generators.ARCHITECTURES)
def generator(request):
    return _with_noise(_build(16, architecture=request.param))


@pytest.fixture
def inputs(generator):
    return generators.draw_inputs(generator, tf.constant([0, 1, 2]), tf.constant([1, 2]))


@pytest.mark.parametrize('architecture', generators.ARCHITECTURES)
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('size', [4, 7, 8, 28, 32, 64])
def test_images_have_the_asked_shape_and_range(size, channels, architecture):
    model = _build(size, channels, architecture=architecture)
    # Far from usual: only a bounded output stays in range.
    for layer in model.layers:
        if isinstance(layer, tf.keras.layers.Conv2D) and layer.filters == channels:
            layer.set_weights([100 * w for w in layer.get_weights()])
    images = model(generators.draw_inputs(model, tf.constant([0, 2]))).numpy()
    assert images.shape == (2, size, size, channels)
    assert images.dtype == np.float32
    assert -1 <= images.min() < -0.9 and 0.9 < images.max() <= 1


def test_latents_outweigh_labels_unless_a_warm_start_follows():
    def spread(stddev):
        model = _build(8, latent_dim=16, width=32, embedding_stddev=stddev)
        labels = tf.repeat(tf.range(3), 200)
        inputs = generators.draw_inputs(model, labels, tf.constant([1, 2]))
        images = model(inputs).numpy().reshape(3, 200, -1)
        means = images.mean(axis=1)
        return means.var(axis=0).sum() / images.var(axis=1).sum(axis=1).mean()

    from_scratch = spread(generators.EMBEDDING_STDDEV)
    fitted = spread(generators.EMBEDDING_STDDEV_FOR_WARM_START)
    assert from_scratch < 0.05 < 0.5 < fitted


@pytest.mark.parametrize('scale', ['lowest', 'highest'])
def test_with_skips_every_resolution_adds_to_the_image(scale):
    model = _build(16, architecture='skip')
    to_image = [
        layer
        for layer in model.layers
        if getattr(layer, 'filters', None) == 1 or isinstance(layer, SmoothColours)
    ]
    assert len(to_image) == 3  # 4, 8 and 16 pixels.
    inputs = generators.draw_inputs(model, tf.constant([0, 1]), tf.constant([1, 2]))
    before = model(inputs).numpy()
    layer = to_image[0 if scale == 'lowest' else -1]
    layer.set_weights([np.zeros_like(weight) for weight in layer.get_weights()])
    assert np.abs(model(inputs).numpy() - before).max() > 1e-3


def test_channels_are_spent_where_they_are_cheap():
    def channels(size, architecture):
        model = _build(size, 3, width=128, architecture=architecture)
        ups = [x for x in model.layers if isinstance(x, tf.keras.layers.Conv2DTranspose)]
        return [layer.filters for layer in ups]

    assert channels(128, 'skip') == [64, 32, 32, 16, 16]
    assert channels(128, 'plain') == [64, 32, 16, 16, 16]
    model = _build(32, 3, architecture='skip')
    to_image = [x.convolution for x in model.layers if isinstance(x, SmoothColours)]
    assert {layer.kernel_size for layer in to_image} == {(1, 1)}


def test_no_weights_of_an_image_with_skips_make_a_checkerboard():
    model = _build(16, architecture='skip')
    assert isinstance(model.layers[-1], ReturningTanh)
    before_tanh = tf.keras.Model(model.inputs, model.layers[-1].input)
    signs = (-1.0) ** np.arange(8)
    for seed in range(5):  # Without the filter its share is 0.66 for one of them.
        rng = np.random.default_rng(seed)
        model.set_weights([rng.normal(size=weight.shape) for weight in model.get_weights()])
        inputs = generators.draw_inputs(model, tf.constant([0, 1]), tf.constant([1, 2]))
        image = before_tanh(inputs).numpy()[:, 4:-4, 4:-4, 0]
        energy = np.sum(image**2, axis=(1, 2))
        for alternating in (signs[:, None], signs[None, :], signs[:, None] * signs):
            share = np.sum(image * alternating, axis=(1, 2)) ** 2 / 64 / energy
            assert np.all(share < 0.05)


def test_an_architecture_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match='plain or skip. Received: other'):
        _build(architecture='other')


def _is_reachable(size):
    while size >= 8 and size % 2 == 0:
        size //= 2
    return 4 <= size <= 7


def test_start_size_doubles_to_every_size_it_accepts():
    sizes = list(filter(_is_reachable, range(1, 1100)))
    assert sizes[:6] == [4, 5, 6, 7, 8, 10] and 1024 in sizes
    for size in sizes:
        start = generators.start_size(size)
        assert start in (4, 5, 6, 7)
        assert size in [start * 2**k for k in range(9)]


def test_refused_sizes_name_the_nearest():
    reachable = [size for size in range(1, 2100) if _is_reachable(size)]
    refused = [size for size in range(1, 1100) if not _is_reachable(size)]
    assert refused[:5] == [1, 2, 3, 9, 11] and 1099 in refused
    for size in refused:
        with pytest.raises(ValueError, match=f'Received: {size}; the nearest') as caught:
            generators.start_size(size)
        nearest = int(str(caught.value).split('size is ')[1].rstrip('.'))
        assert nearest in reachable
        assert abs(nearest - size) == min(abs(r - size) for r in reachable)


@pytest.mark.parametrize(
    ('shape', 'message'), [((30, 30, 1), 'size is 28'), ((8, 16, 1), 'square. Received: 8x16')]
)
def test_images_it_cannot_make_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        generators.build_generator(shape, 3)


@pytest.mark.parametrize('name', ['latents', 'labels', 'noise_8', 'noise_16'])
def test_every_input_decides_the_image(generator, inputs, name):
    before = generator(inputs)
    after = generator({**inputs, name: tf.roll(inputs[name], 1, axis=0)})
    for image, other in pairs(before, after):
        assert np.abs(image - other).max() > 1e-4


@pytest.mark.parametrize('training', [False, True])
def test_no_example_sees_another(generator, inputs, training):
    # The generator that trains and the one that is exported must make the same images.
    wide = {
        name: tf.concat([value[:1], tf.cast(50 * value[1:], value.dtype) % 3], axis=0)
        for name, value in inputs.items()
    }
    alone = {name: value[:1] for name, value in inputs.items()}
    first = generator(inputs, training=training)[0]
    assert first.shape == (16, 16, 1)
    for batch in (wide, alone):
        np.testing.assert_allclose(generator(batch, training=training)[0], first, atol=1e-5)


def test_without_noise_injection_there_is_neither_input_nor_variable():
    noisy, plain = _build(16), _build(16, noise_injection=False)
    assert set(plain.input) == {'latents', 'labels'}
    assert set(noisy.input) == {'latents', 'labels', 'noise_8', 'noise_16'}
    extra = [v for v in noisy.trainable_variables if 'noise_injection' in v.name]
    assert len(extra) == 2
    assert len(plain.variables) == len(noisy.variables) - 2
    assert set(generators.draw_inputs(plain, tf.constant([1]))) == {'latents', 'labels'}


def test_draws_repeat_with_a_seed_and_only_then(generator):
    labels = tf.constant([2, 0, 2])

    def draw(seed):
        return generators.draw_inputs(generator, labels, seed)

    first, again = draw(tf.constant([1, 2])), draw(tf.constant([1, 2]))
    shapes = {name: value.shape.as_list() for name, value in first.items()}
    assert shapes == {
        'labels': [3], 'latents': [3, 4], 'noise_8': [3, 8, 8, 1], 'noise_16': [3, 16, 16, 1]
    }  # fmt: skip
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    np.testing.assert_array_equal(first['labels'], labels)
    for other in (draw(tf.constant([1, 3])), draw(None)):
        for name in ('latents', 'noise_8', 'noise_16'):
            assert not np.isclose(first[name], other[name]).any()
    assert not np.isclose(draw(None)['latents'], draw(None)['latents']).any()


def test_draws_of_different_inputs_are_independent_normals(generator):
    drawn = generators.draw_inputs(generator, tf.zeros([200], tf.int32), tf.constant([4, 4]))
    for name in ('latents', 'noise_8', 'noise_16'):
        values = drawn[name].numpy().ravel()
        assert abs(values.mean()) < 5 / len(values) ** 0.5
        assert abs(values.std() - 1) < 5 / (2 * len(values)) ** 0.5
    one, other = (drawn[name].numpy().ravel()[:800] for name in ('latents', 'noise_8'))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.18


@pytest.mark.parametrize('rows', [[0, 2], [2], []])
def test_rows_are_those_of_the_whole_draw(generator, rows):
    labels, seed = tf.constant([2, 0, 1]), tf.constant([1, 2])
    whole = generators.draw_inputs(generator, labels, seed)
    part = generators.draw_inputs(generator, labels, seed, tf.constant(rows, tf.int32))
    assert set(part) == set(whole)
    for name in whole:
        np.testing.assert_array_equal(part[name], whole[name].numpy()[rows])
