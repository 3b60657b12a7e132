"""Calls whose rows are not the records, and gradients that no call shows."""

import contextlib
import re

import numpy as np
import pytest
import tensorflow as tf
from helpers.layer_gradients import (
    KERAS,
    encoder_and_decoder,
    made_up,
    model_of,
)

from tf_efsgd.privacy import independence, layer_norms
from tf_efsgd.privacy.optimizer import ErrorFeedbackDPKerasSGDOptimizer, why_not_fast


def _views():
    """Sixteen augmented views of a record on the batch axis."""
    model = model_of(KERAS.Dense(4), [3])

    def losses_of(records):
        views = tf.repeat(records, 16, axis=0) * (1.0 + tf.linspace(0.0, 0.1, 3))
        return tf.reduce_sum(tf.reshape(model(views), [-1, 16 * 4]), axis=1)

    return model, losses_of


def _time_distributed():
    steps = tf.keras.Input([9, 3])
    model = tf.keras.Model(steps, KERAS.TimeDistributed(KERAS.Dense(4))(steps))
    return model, lambda records: tf.reduce_sum(model(tf.tile(records[:, None], [1, 9, 1])), [1, 2])


def _constant():
    """One row for all records."""
    model = model_of(KERAS.Dense(3, use_bias=False), [2])

    def losses_of(records):
        return tf.reduce_sum(records * model(tf.ones([1, 2])), axis=1)

    return model, losses_of


_OTHER_ROWS = {'views': _views, 'time steps': _time_distributed, 'constant': _constant}


def _norm_of_sum(model, losses_of, records, mode='eager'):
    """Of what `batch_sums` clips to 0.5, of the records together."""
    optimizer = ErrorFeedbackDPKerasSGDOptimizer(
        l2_norm_clip=0.5, noise_multiplier=1.0, error_feedback='none', learning_rate=1.0
    )

    def norm(records):
        sums, _ = optimizer.batch_sums(model, lambda: losses_of(records), model.trainable_variables)
        return tf.linalg.global_norm(sums)

    if mode != 'eager':
        spec = tf.TensorSpec([None, *records.shape[1:]])
        norm = tf.function(norm, input_signature=[spec], jit_compile=mode == 'xla')
    return float(norm(tf.constant(records)))


@pytest.mark.parametrize('name', sorted(_OTHER_ROWS))
def test_rows_that_are_not_records_are_refused(name):
    model, losses_of = _OTHER_ROWS[name]()
    records = made_up([3])[:2]
    message = r"layer '\w+' \(Dense\) is called on a batch axis that is not that of the losses"
    if name != 'time steps':  # Of a known number of records Keras makes a loop over the steps.
        with pytest.raises(layer_norms.UnsupportedLayerError, match=message):
            _norm_of_sum(model, losses_of, records)
    with pytest.raises(tf.errors.InvalidArgumentError, match='is called on a batch axis'):
        _norm_of_sum(model, losses_of, records, 'graph')
    # XLA leaves out the assertion: nothing is released rather than too much.
    assert _norm_of_sum(model, losses_of, records, 'xla') == 0.0
    reason = why_not_fast(model, losses_of, model.trainable_variables, made_up([3]))
    assert re.match(message, reason)


def test_how_many_rows_there_are_is_in_no_text():
    model, losses_of = _views()
    records = np.ones([11213, 3], np.float32)
    for mode in ('eager', 'graph'):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)) as caught:
            _norm_of_sum(model, losses_of, records, mode)
        for number in ('11213', str(16 * 11213)):
            assert number not in str(caught.value)


def _penalized():
    """R1: the squared norm of the gradient at the record (Mescheder et al. 2018)."""
    model = model_of(KERAS.Dense(1), [3])

    def losses_of(records):
        with tf.GradientTape() as tape:
            tape.watch(records)
            logits = tf.square(model(records))[:, 0]
        at_record = tape.gradient(logits, records)
        return logits + 5.0 * tf.reduce_sum(tf.square(at_record), axis=1)

    return model, losses_of


def _tied():
    """Decodes by the kernel that it encoded with."""
    model = model_of(KERAS.Dense(2, use_bias=False), [3])

    def losses_of(records):
        decoded = tf.matmul(model(records), model.trainable_variables[0], transpose_b=True)
        return tf.reduce_sum(tf.square(decoded - records), axis=1)

    return model, losses_of


def _behind_a_function(is_traced):
    trunk = model_of(KERAS.Dense(4, 'tanh', name='trunk'), [3])
    head = model_of(KERAS.Dense(1), [4])
    compiled = tf.function(trunk, input_signature=[tf.TensorSpec([None, 3])])
    if is_traced:
        compiled.get_concrete_function()
    return [trunk, head], lambda records: head(compiled(records))[:, 0]


@pytest.mark.parametrize(
    'build',
    [_penalized, _tied, lambda: _behind_a_function(True), lambda: _behind_a_function(False)],
    ids=['penalty', 'tied', 'traced', 'not yet traced'],
)
def test_gradients_that_no_call_shows_are_found_by_trying(build):
    models, losses_of = build()
    variables = [v for model in tf.nest.flatten(models) for v in model.trainable_variables]
    before = [variable.numpy() for variable in variables]
    reason = why_not_fast(models, losses_of, variables, made_up([3]))
    assert re.match(
        'one backward pass misses something: the gradient|it fails on this loss', reason
    )
    for variable, value in zip(variables, before):
        np.testing.assert_array_equal(variable, value)


def test_a_penalty_that_is_zero_at_first_is_found_with_random_weights(monkeypatch):
    model = model_of(KERAS.Dense(1, kernel_initializer='zeros', use_bias=False), [3])

    def losses_of(records):
        kernel = model.trainable_variables[0]
        return model(records)[:, 0] + tf.reduce_sum(kernel * kernel) * records[:, 0]

    def tried():
        return why_not_fast(model, losses_of, model.trainable_variables, made_up([3]))

    assert 'misses something' in tried()
    monkeypatch.setattr(independence, 'random_weights', lambda *_, **__: contextlib.nullcontext())
    assert tried() is None


def test_a_loss_that_is_clipped_as_it_should_be_is_not_refused():
    encoder, decoder, losses, records = encoder_and_decoder()
    variables = [*encoder.trainable_variables, *decoder.trainable_variables]
    assert why_not_fast([encoder, decoder], losses, variables, records) is None
