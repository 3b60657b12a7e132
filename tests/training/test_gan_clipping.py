"""Both ways to clip, and any split of a batch, give the same private step."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_gan
from helpers.pairs import pairs
from helpers.tiny_gan import CLASSES, SHAPE

from tf_efsgd.models.discriminator import build_discriminator
from tf_efsgd.models.generator import build_generator
from tf_efsgd.privacy.noise import NoiseKey
from tf_efsgd.training import private_model

_SIZES = (5, 0, 2)  # More records than generated images, none, and fewer.


def _make_gan(
    clipping,
    error_feedback='private',
    discriminator=None,
    shape=SHAPE,
    generator=None,
    **settings,
):
    return tiny_gan.make(
        tiny_gan.private(error_feedback=error_feedback),
        networks={'discriminator': discriminator, 'generator': generator, 'shape': shape},
        # The generator keeps its weights: Adam's first steps go by the sign of a gradient alone.
        discriminator_steps=10,
        clipping=clipping,
        **settings,
    )


def _samples(shape=SHAPE):
    return tiny_gan.samples(_SIZES, shape=shape)


def _after_training(*args, **settings):
    """(weights of the discriminator, its logs of the last step) after a step on every sample."""
    gan = _make_gan(*args, **settings)
    start = gan.discriminator.get_weights()
    signature = (tf.TensorSpec([None, *SHAPE], tf.uint8), tf.TensorSpec([None], tf.int32))
    samples = tf.data.Dataset.from_generator(_samples, output_signature=signature)
    history = gan.fit(samples, steps_per_epoch=len(_SIZES), verbose=0).history
    weights = gan.discriminator.get_weights()
    assert max(np.abs(a - b).max() for a, b in zip(start, weights)) > 1e-2
    return weights, {name: values[-1] for name, values in history.items()}


def _assert_same(one, other):
    for a, b in zip(one[0], other[0]):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    assert one[1].keys() == other[1].keys()
    for name, value in one[1].items():
        assert value == pytest.approx(other[1][name], rel=1e-4), name


@pytest.fixture(scope='module')
def vectorized():
    return _after_training('vectorized')


@pytest.fixture(scope='module')
def fast():
    return _after_training('fast')


def test_fast_is_vectorized(vectorized, fast):
    _assert_same(vectorized, fast)


@pytest.mark.acceptance
@pytest.mark.parametrize(
    ('error_feedback', 'clip_fake'),
    [('none', True), ('hidden', True), ('private', False), ('hidden', False)],
)
def test_fast_is_vectorized_in_every_mode(vectorized, error_feedback, clip_fake):
    results = [
        _after_training(clipping, error_feedback, clip_fake=clip_fake)
        for clipping in ('vectorized', 'fast')
    ]
    _assert_same(*results)
    # The modes differ, so that the same result is no accident.
    pairs = zip(results[0][0], vectorized[0])
    assert max(np.abs(a - b).max() for a, b in pairs) > 1e-3


@pytest.mark.parametrize('clipping', ['vectorized', 'fast'])
def test_microbatches_only_split_memory(request, clipping):
    whole = request.getfixturevalue(clipping)
    _assert_same(_after_training(clipping, microbatch_size=3), whole)


def _odd_discriminator():
    images = tf.keras.Input(SHAPE)
    features = tf.keras.layers.SeparableConv2D(4, 3, 2, name='odd')(images)
    logits = tf.keras.layers.Dense(CLASSES)(tf.keras.layers.Flatten()(features))
    return tf.keras.Model(images, {'logits': logits})


def test_fast_is_refused_for_a_layer_without_a_rule():
    message = "clipping='fast' is not possible: layer 'odd' .SeparableConv2D. has no rule"
    with pytest.raises(ValueError, match=message):
        _make_gan('fast', discriminator=_odd_discriminator())


def test_auto_says_which_layer_is_in_the_way(capsys):
    gan = _make_gan('auto', discriminator=_odd_discriminator())
    assert gan.clipping == 'vectorized'
    assert "layer 'odd' (SeparableConv2D) has no rule" in capsys.readouterr().out
    assert _make_gan('auto').clipping == 'fast'
    assert capsys.readouterr().out == ''


def test_an_unknown_clipping_is_refused():
    with pytest.raises(ValueError, match="clipping must be one of .*Received: 'slow'"):
        _make_gan('slow')


@pytest.mark.acceptance
@pytest.mark.parametrize('clipping', ['vectorized', 'fast'])
def test_convolutions_meet_parts_without_images(clipping):
    # Of no images, oneDNN's convolutions have a wrong shape, and their gradients fail.
    shape = (20, 20, 1)
    steps = []
    for microbatch_size in (None, 3):
        tf.keras.utils.set_random_seed(5)
        discriminator = build_discriminator(shape, CLASSES, width=8)
        assert any(type(layer) is tf.keras.layers.Conv2D for layer in discriminator.layers)
        gan = _make_gan(
            clipping, discriminator=discriminator, shape=shape, microbatch_size=microbatch_size
        )
        signature = [tf.TensorSpec([None, *shape], tf.uint8), tf.TensorSpec([None], tf.int32)]
        sums = tf.function(gan._sums_of_step, input_signature=signature)
        steps.append(tf.nest.flatten([sums(*sample) for sample in _samples(shape)]))
    for one, other in zip(*steps):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_what_is_measured_of_no_records_is_zero():
    shape = (20, 20, 1)
    tf.keras.utils.set_random_seed(5)
    discriminator = build_discriminator(shape, CLASSES, width=8)
    gan = _make_gan('fast', discriminator=discriminator, shape=shape)
    signature = (tf.TensorSpec([None, *shape], tf.uint8), tf.TensorSpec([None], tf.int32))
    measure = tf.function(gan._measure, input_signature=[signature])
    some, none = (
        measure((tf.zeros([count, *shape], tf.uint8), tf.zeros([count], tf.int32)))
        for count in (3, 0)
    )
    assert float(some['batch_size']) == 3 and float(some['gradient_norm']) > 0
    assert set(none) == set(some) and not any(float(value) for value in none.values())


# Both networks in the private step.

_DECODED_SHAPE = (16, 16, 1)


def _make_decoding_gan(clipping, **settings):
    tf.keras.utils.set_random_seed(5)
    discriminator = build_discriminator(
        _DECODED_SHAPE, CLASSES, width=8, reconstruction='generator', latent_dim=4
    )
    gan = _make_gan(
        clipping,
        discriminator=discriminator,
        shape=_DECODED_SHAPE,
        # So that the error outweighs what clipping of the rest would hide.
        reconstruction_weight=0.02,
        **settings,
    )
    for layer in gan.generator.layers:  # Noise acts, which it does not at first.
        if layer.name.startswith('noise_injection'):
            layer.set_weights([np.full_like(w, 0.5) for w in layer.get_weights()])
    return gan


def _sums_of_records(gan, images, labels):
    """(clipped sum, residual sum), each flat; the same draws at each call."""
    clipped, residual, *_ = gan._sums_of_step(images, labels, NoiseKey(9).next())
    return [np.concatenate([s.numpy().ravel() for s in part]) for part in (clipped, residual)]


@pytest.fixture(scope='module')
def decoded():
    """A gan of either clipping, five records, and their sums one record at a time."""
    by_clipping = {clipping: _make_decoding_gan(clipping) for clipping in ('vectorized', 'fast')}
    images, labels = _samples(_DECODED_SHAPE)[0]
    return by_clipping, images, labels, _sums_of_records(by_clipping['vectorized'], images, labels)


def _assert_close(one, other, rtol=1e-5):
    for a, b in pairs(one, other):
        assert 0.05 < np.linalg.norm(b)
        assert np.linalg.norm(a - b) < rtol * np.linalg.norm(b)


@pytest.mark.parametrize('microbatch_size', [None, 3])
def test_fast_is_vectorized_over_both_networks(decoded, microbatch_size, monkeypatch):
    by_clipping, images, labels, wanted = decoded
    gan = by_clipping['fast']
    monkeypatch.setattr(gan, '_microbatch_size', microbatch_size)
    _assert_close(_sums_of_records(gan, images, labels), wanted)
    sizes = [int(tf.size(v)) for v in gan.private_variables]
    assert len(wanted[0]) == sum(sizes)
    # Five records, each at most C1, in one norm over both networks, of which both have a part.
    own = np.split(wanted[0], [sum(sizes[: len(gan.discriminator.trainable_variables)])])
    assert np.linalg.norm(wanted[0]) <= 5 * 0.3 * 1.0001
    assert all(np.linalg.norm(part) > 0.1 for part in own)


@pytest.mark.parametrize('clipping', ['vectorized', 'fast'])
def test_no_records_add_nothing_to_either_network(decoded, clipping):
    by_clipping, images, labels, _ = decoded
    found = _sums_of_records(by_clipping[clipping], images[:0], labels[:0])
    assert len(found) > 0
    for sums in found:
        assert len(sums) and not sums.any()


def test_a_record_that_is_not_finite_adds_nothing_and_touches_no_other(decoded, monkeypatch):
    by_clipping, images, labels, _ = decoded
    gan = by_clipping['fast']
    draw = private_model.draw_for_records
    kept = np.array([0, 2, 3, 4])

    def draw_with(bad, rows):
        def draw_for_records(shapes, count, step_noise, first):
            drawn = draw(shapes, tf.constant(5), step_noise, first)
            drawn['latents'] = tf.tensor_scatter_nd_update(drawn['latents'], [[1, 0]], [bad])
            return {name: tf.gather(value, rows) for name, value in drawn.items()}

        monkeypatch.setattr(private_model, 'draw_for_records', draw_for_records)

    draw_with(np.nan, np.arange(5))
    with_bad = _sums_of_records(gan, images, labels)
    draw_with(0.0, kept)
    _assert_close(with_bad, _sums_of_records(gan, images[kept], labels[kept]))


def test_auto_says_which_layer_of_the_generator_is_in_the_way(capsys):
    plain = build_generator(SHAPE, CLASSES, latent_dim=4, width=8)
    images = tf.keras.layers.SeparableConv2D(1, 3, padding='same', name='odd')(plain.output)
    generator = tf.keras.Model(plain.input, images)
    discriminators = [
        build_discriminator(SHAPE, CLASSES, width=8, reconstruction=form, latent_dim=4)
        for form in ('generator', 'head')
    ]
    gan = _make_gan('auto', discriminator=discriminators[0], generator=generator)
    assert gan.clipping == 'vectorized'
    assert "layer 'odd' (SeparableConv2D) has no rule" in capsys.readouterr().out
    gan = _make_gan('auto', discriminator=discriminators[1], generator=generator)
    assert gan.clipping == 'fast'


def test_what_is_measured_is_of_the_draws_of_the_step(decoded, monkeypatch):
    by_clipping, images, labels, _ = decoded
    gan = by_clipping['fast']
    monkeypatch.setattr(gan.discriminator_optimizer, 'measured_sums', lambda *_: {})
    measured, again, other = (
        gan._measure((images, labels), NoiseKey(key).next()) for key in (9, 9, 10)
    )
    assert float(measured['reconstruction_loss']) == float(again['reconstruction_loss']) > 1
    assert float(measured['reconstruction_loss']) != float(other['reconstruction_loss'])
