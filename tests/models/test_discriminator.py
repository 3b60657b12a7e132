"""The discriminator: what it puts out, and no example that sees another."""

import numpy as np
import pytest
import tensorflow as tf

from tf_efsgd.models import discriminator as discriminators


def _build(size=16, channels=1, **settings):
    tf.keras.utils.set_random_seed(5)
    return discriminators.build_discriminator((size, size, channels), 3, width=8, **settings)


def _images(size=16, channels=1, count=3):
    images = np.random.default_rng(2).uniform(-1, 1, size=(count, size, size, channels))
    return images.astype(np.float32)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('size', [4, 6, 7, 8, 10, 28, 32, 64])
def test_outputs_have_the_shapes_of_classes_and_image(size, channels):
    model = _build(size, channels)
    images = _images(size, channels)
    outputs = model(images)
    assert outputs['logits'].shape == (3, 3)
    assert outputs['reconstruction'].shape == images.shape
    assert np.abs(outputs['reconstruction']).max() <= 1
    assert outputs['logits'].dtype == outputs['reconstruction'].dtype == tf.float32


def test_logits_are_not_squashed():
    model = _build()
    layer = model.get_layer('logits')
    layer.set_weights([100 * w for w in layer.get_weights()])
    logits = model(_images())['logits'].numpy()
    assert logits.min() < -1 and logits.max() > 1


def test_without_reconstruction_there_is_neither_output_nor_variable():
    head, none = _build(), _build(reconstruction='none')
    assert set(head.output) == {'logits', 'reconstruction'}
    assert set(none.output) == {'logits'}
    assert len(none.variables) == len(head.variables) - 2


def test_for_a_decoding_generator_it_predicts_moments_of_the_latents():
    model = _build(reconstruction='generator', latent_dim=5)
    outputs = model(_images())
    assert set(outputs) == {'logits', 'posterior'}
    assert outputs['posterior'].shape == (3, 10)
    # 8 features of each of 4x4 positions.
    assert model.get_layer('posterior').kernel.shape == [128, 10]
    assert np.abs(outputs['posterior'][0] - outputs['posterior'][1]).max() > 1e-3


def test_it_has_no_state_that_a_forward_pass_could_write():
    model = _build()
    assert not model.non_trainable_variables


@pytest.mark.parametrize('reconstruction', ['head', 'generator'])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('size', [8, 16])
def test_no_example_sees_another(size, training, reconstruction):
    model = _build(size, reconstruction=reconstruction)
    images = _images(size)
    outputs = model(images, training=training)
    others = np.concatenate([images[:1], 50 * images[1:]])
    for batch in (others, images[:1]):
        after = model(batch, training=training)
        for name, output in outputs.items():
            np.testing.assert_allclose(after[name][0], output[0], atol=1e-5)
    assert not np.allclose(model(others)['logits'][1], outputs['logits'][1])


@pytest.mark.parametrize('size', [8, 28])
def test_each_position_reconstructs_from_the_image(size):
    model = _build(size)
    images = _images(size)
    swapped = model(images[::-1].copy())['reconstruction'][::-1]
    reconstruction = model(images)['reconstruction']
    np.testing.assert_allclose(swapped, reconstruction, atol=1e-5)
    assert np.abs(reconstruction[0] - reconstruction[1]).max() > 1e-3


@pytest.mark.parametrize(
    ('shape', 'settings', 'message'),
    [
        ((8, 16, 1), {}, 'square. Received: 8x16'),
        ((8, 8, 1), {'reconstruction': 'both'}, "'head', 'generator', 'none'.*Received: 'both'"),
    ],
)
def test_what_it_cannot_be_is_refused(shape, settings, message):
    with pytest.raises(ValueError, match=message):
        discriminators.build_discriminator(shape, 3, **settings)
