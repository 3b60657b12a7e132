"""Keras models of one's own on Poisson samples, the empty one included."""

import numpy as np
import pytest
import tensorflow as tf

from tf_efsgd.privacy.drop_in import PoissonTraining
from tf_efsgd.privacy.optimizer import ErrorFeedbackDPKerasSGDOptimizer

_LAYERS = tf.keras.layers
_SIGMA, _BATCH = 0.7, 4


class _Model(PoissonTraining, tf.keras.Sequential):
    """For batches of any size."""


def _make(layer, shape, model_class=tf.keras.Sequential, sigma=_SIGMA, **settings):
    tf.keras.utils.set_random_seed(3)
    model = model_class([_LAYERS.Input(shape), layer(), _LAYERS.Flatten(), _LAYERS.Dense(1)])
    optimizer = ErrorFeedbackDPKerasSGDOptimizer(
        l2_norm_clip=0.3,
        noise_multiplier=sigma,
        expected_batch_size=_BATCH,
        error_feedback='none',
        learning_rate=1.0,
    )
    loss = tf.keras.losses.MeanSquaredError(reduction=tf.keras.losses.Reduction.NONE)
    model.compile(optimizer, loss, **settings)
    return model


def _batches(shape, sizes):
    draws = np.random.default_rng(1)
    arrays = [
        (draws.normal(size=[size, *shape]).astype(np.float32), np.ones([size, 1], np.float32))
        for size in sizes
    ]
    signature = (tf.TensorSpec([None, *shape]), tf.TensorSpec([None, 1]))
    return tf.data.Dataset.from_generator(lambda: iter(arrays), output_signature=signature)


def _moved(model, shape, sizes):
    """How far the weights went, as one vector."""
    before = model.get_weights()
    model.fit(_batches(shape, sizes), verbose=0)
    return np.concatenate([(a - b).ravel() for a, b in zip(model.get_weights(), before)])


_CASES = {
    'Conv2D': (lambda: _LAYERS.Conv2D(8, 3), (6, 6, 2)),
    'Conv2DTranspose': (lambda: _LAYERS.Conv2DTranspose(8, 3), (4, 4, 2)),
    'DepthwiseConv2D': (lambda: _LAYERS.DepthwiseConv2D(3, depth_multiplier=8), (6, 6, 2)),
    'LSTM': (lambda: _LAYERS.LSTM(6), (3, 2)),
    'UpSampling2D': (
        lambda: tf.keras.Sequential([_LAYERS.Conv2D(8, 3), _LAYERS.UpSampling2D()]),
        (6, 6, 2),
    ),
    'ConvLSTM2D': (lambda: _LAYERS.ConvLSTM2D(3, 3), (3, 4, 4, 2)),
}


@pytest.mark.parametrize('name', ['Conv2D', 'Conv2DTranspose', 'DepthwiseConv2D', 'LSTM'])
def test_an_empty_batch_is_a_full_step_of_the_optimizer_alone(name):
    layer, shape = _CASES[name]
    model = _make(layer, shape)
    moved = _moved(model, shape, [0])
    assert int(model.optimizer.iterations) == 1
    # Nothing but noise, in every coordinate: sigma C1 / B.
    assert np.all(moved != 0)
    assert np.std(moved) == pytest.approx(_SIGMA * 0.3 / _BATCH, rel=0.4)


@pytest.mark.acceptance
@pytest.mark.parametrize('run_eagerly', [False, True])
@pytest.mark.parametrize('name', sorted(_CASES))
def test_an_empty_batch_is_a_full_step_of_every_model(name, run_eagerly):
    layer, shape = _CASES[name]
    model = _make(layer, shape, _Model, run_eagerly=run_eagerly)
    moved = _moved(model, shape, [0])
    assert int(model.optimizer.iterations) == 1
    assert np.all(moved != 0)
    assert np.std(moved) == pytest.approx(_SIGMA * 0.3 / _BATCH, rel=0.4)


@pytest.mark.parametrize('run_eagerly', [False, True])
def test_the_record_of_zeros_leaves_nothing(run_eagerly):
    layer, shape = _CASES['Conv2D']
    model = _make(layer, shape, _Model, sigma=0.0, run_eagerly=run_eagerly)
    assert np.all(_moved(model, shape, [0]) == 0)
    # Other batches are what they are in Keras.
    plain = _make(layer, shape, sigma=0.0, run_eagerly=run_eagerly)
    moved = [_moved(m, shape, [3, 0, 2] if m is model else [3, 2]) for m in (model, plain)]
    assert np.abs(moved[0]).max() > 1e-2
    np.testing.assert_allclose(*moved, atol=1e-6)
