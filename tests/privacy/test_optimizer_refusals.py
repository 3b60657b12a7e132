"""What the optimizer claims of itself, and what it refuses."""

import dataclasses
import math
import pickle

import dp_accounting
import numpy as np
import pytest
import tensorflow as tf
from helpers.small_step import (
    ADAM,
    SGD,
    X,
    Y,
    drop_in_step,
    fast_step,
    fitted_classifier,
    flat,
    loss_vector,
    make,
    make_variables,
    make_weights,
    release,
)

from tf_efsgd.privacy import grid
from tf_efsgd.privacy import optimizer as optimizers


def test_dp_event():
    non_private = dp_accounting.NonPrivateDpEvent()
    optimizer = make(noise_multiplier=1.3)
    # Before a step 2^20 parameters are counted, each in both sums.
    effective = grid.effective_noise_multiplier(1.3, 2**21)
    assert optimizer.dp_event == dp_accounting.GaussianDpEvent(effective)
    assert 1.27 < effective < 1.3 / (1 + 2**-7)
    few = make_variables()
    release(optimizer, few, [np.zeros([1, *v.shape]) for v in few])
    assert optimizer.dp_event == dp_accounting.GaussianDpEvent(effective)
    many = [tf.Variable(tf.zeros([2**20 + 5]))]
    with pytest.warns(UserWarning, match='read when it counted 1048576 .* Received: 1048581'):
        release(optimizer, many, [np.zeros([1, 2**20 + 5])])
    effective = grid.effective_noise_multiplier(1.3, 2**21 + 10)
    assert optimizer.dp_event == dp_accounting.GaussianDpEvent(effective)
    assert optimizer.dp_event_of(few) == dp_accounting.GaussianDpEvent(effective)
    assert make(noise_multiplier=1.3).dp_event_of(many) == optimizer.dp_event
    assert make(noise_multiplier=0.0).dp_event == non_private
    assert make(noise_multiplier=0.0).dp_event_of(many) == non_private
    assert make(noise_multiplier=1.3, expected_batch_size=None).dp_event == non_private
    assert make(noise_multiplier=1.3, error_feedback='hidden').dp_event == non_private


@pytest.mark.parametrize('in_a_graph', [False, True])
def test_a_step_releases_once(in_a_graph):
    """Twice it would have the same noise, and one step would be counted."""
    optimizer, variables = make(), make_variables()
    sums = [[tf.zeros(v.shape, tf.float64) for v in variables] for _ in range(2)]
    noise = optimizers.new_noise()
    shapes = [v.shape for v in variables]

    def step(step_noise, times):
        for _ in range(times):
            v = optimizer.release(*sums, variables, step_noise=step_noise)
        optimizer.apply_gradients(zip(v, variables))

    if in_a_graph:
        step = tf.function(step)
    for _ in range(2):
        step(noise.next(shapes), 1)
    with pytest.raises(ValueError, match='release once.*second release before the first'):
        step(noise.next(shapes), 2)
    if in_a_graph:  # The graph that failed leaves nothing behind.
        step(noise.next(shapes), 1)
        assert optimizer.iterations == 3


def test_slots_that_are_restored_say_how_many_parameters_there_are():
    many = [tf.Variable(tf.zeros([2**20 + 5]))]
    optimizer = make(noise_multiplier=1.3)
    # As Keras does when it loads a model, before any step.
    optimizer._create_all_weights(many)
    assert optimizer.dp_event == make(noise_multiplier=1.3).dp_event_of(many)
    assert optimizer.dp_event != make(noise_multiplier=1.3).dp_event


@pytest.mark.parametrize(
    'name, values',
    [
        ('l2_norm_clip', [0.0, -0.3, math.inf, math.nan]),
        ('noise_multiplier', [-0.3, math.inf, math.nan]),
        ('error_feedback', ['published', '', None]),
        ('residual_l2_norm_clip', [0.0, -0.3, math.inf, math.nan]),
        ('residual_share', [-0.1, 1.0, 1.3, math.nan]),
        ('feedback_decay', [-0.1, 1.0, 1.3, math.nan]),
        ('feedback_l2_norm_clip', [0.0, -0.3, math.inf, math.nan]),
        ('expected_batch_size', [0, -4]),
    ],
)
def test_impossible_settings_are_refused_by_name(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f'^{name} must be .*Received: {value!r}'):
            make(**{name: value})


def test_the_classes_are_found_by_their_names():
    for cls, base in ((SGD, 'SGD'), (ADAM, 'Adam')):
        assert pickle.loads(pickle.dumps(cls)) is cls
        assert cls.__name__ == cls.__qualname__ == f'ErrorFeedbackDPKeras{base}Optimizer'
        assert issubclass(cls, getattr(tf.keras.optimizers.legacy, base))
        assert cls.__doc__.startswith(
            f'Error-feedback DP-SGD over `tf.keras.optimizers.legacy.{base}`'
        )
        assert f'tf_efsgd.{cls.__name__}(' in cls.__doc__


def test_the_mechanism_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().mechanism.l2_norm_clip = 7.0


def test_microbatches_are_refused_unless_of_one_record():
    for allowed in (None, 6):
        drop_in_step(make(num_microbatches=allowed), make_weights())
    for refused in (1, 2, 3, 12):
        with pytest.raises(ValueError, match=f'num_microbatches={refused}, batch size 6'):
            drop_in_step(make(num_microbatches=refused), make_weights())


def test_losses_and_calls_that_bypass_the_mechanism_are_refused():
    weights = make_weights()
    tape = tf.GradientTape(persistent=True)
    optimizer = make()
    with pytest.raises(ValueError, match=r'one value per example.*Received: shape \(\)'):
        optimizer.minimize(lambda: tf.reduce_mean(loss_vector(weights)()), weights, tape=tape)
    with pytest.raises(ValueError, match='one number'):
        optimizer.clipped_sums(lambda r: r[0][:2] * weights[1], (X, Y), weights)
    with pytest.raises(ValueError, match='tape'):
        optimizer.minimize(loss_vector(weights)(), weights)
    with pytest.raises(ValueError, match='grad_loss'):
        optimizer.minimize(loss_vector(weights), weights, grad_loss=tf.ones(6), tape=tape)
    with pytest.raises(ValueError, match='get_gradients'):
        optimizer.get_gradients(loss_vector(weights), weights)
    with pytest.raises(ValueError, match='private mechanism'):
        optimizer.apply_gradients([(tf.zeros_like(w), w) for w in weights])
    np.testing.assert_array_equal(flat(weights), flat(make_weights()))


def test_one_release_pays_for_one_update():
    weights, optimizer = make_weights(), make()
    optimizer.minimize(loss_vector(weights), weights)
    with pytest.raises(ValueError, match='private mechanism'):
        optimizer.apply_gradients([(tf.ones_like(w), w) for w in weights])


@pytest.mark.parametrize('cls', [tf.keras.optimizers.SGD, object, 'SGD', SGD])
def test_other_base_classes_are_refused(cls):
    with pytest.raises(TypeError, match='legacy'):
        optimizers.make_error_feedback_optimizer_class(cls)


@pytest.mark.parametrize(
    'way',
    [
        fast_step,
        pytest.param(
            drop_in_step,
            marks=pytest.mark.xfail(
                strict=True,
                reason='the jacobian of a loss vector multiplies the other records by 0, and '
                '0 * NaN is NaN: one record that is not finite empties the whole batch',
            ),
        ),
    ],
)
@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_a_record_that_is_not_finite_touches_no_other(way, bad):
    x, y = np.r_[X, np.float32([[bad] * 3])], np.r_[Y, np.float32([[1.0, 2.0]])]
    weights, clean = make_weights(), make_weights()
    way(make(), weights, x, y)
    way(make(), clean)
    np.testing.assert_allclose(flat(weights), flat(clean), rtol=1e-5)


def test_keras_loss_scaling_is_refused_by_name():
    message = 'LossScaleOptimizer multiplies the loss before .* clips it.*mixed_float16'
    with pytest.raises(ValueError, match=message):
        tf.keras.mixed_precision.LossScaleOptimizer(make())
    tf.keras.mixed_precision.set_global_policy('mixed_float16')
    try:
        with pytest.raises(ValueError, match=message):
            fitted_classifier(make())
    finally:
        tf.keras.mixed_precision.set_global_policy('float32')
    # Other models take no notice.
    fitted_classifier(make())


@pytest.mark.parametrize('dtype', [tf.float64, tf.float16, tf.bfloat16])
def test_variables_of_other_precision_are_refused(dtype):
    optimizer, weights = make(), [tf.Variable(tf.ones([3], dtype))]
    x = tf.ones([2, 3], dtype)
    message = f"float32 variables only.*Received: variable 'Variable:0' of {dtype.name}"

    def losses_of():
        return tf.reduce_sum(x * weights[0], axis=1)

    for call in (
        lambda: optimizer.minimize(losses_of, weights),
        lambda: optimizer.clipped_sums(lambda r: tf.reduce_sum(r * weights[0]), x, weights),
        lambda: optimizer.batch_sums([], losses_of, weights),
        lambda: optimizer.batch_delivered_sum([], losses_of, weights),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_size_of_a_batch_is_in_no_text():
    optimizer, weights = make(num_microbatches=7), make_weights()
    step = tf.function(
        lambda x, y: drop_in_step(optimizer, weights, x, y),
        input_signature=[tf.TensorSpec([None, 3]), tf.TensorSpec([None, 2])],
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match='num_microbatches=7') as caught:
        step(np.repeat(X, 2000, axis=0)[:11213], np.repeat(Y, 2000, axis=0)[:11213])
    assert '11213' not in caught.value.message
    step(np.repeat(X, 2, axis=0)[:7], np.repeat(Y, 2, axis=0)[:7])
