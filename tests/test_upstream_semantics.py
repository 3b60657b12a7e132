"""Behaviour of dp_accounting, TF Privacy, Keras and TensorFlow that the package relies on."""

import math

import dp_accounting
import numpy as np
import pytest
import tensorflow as tf
from dp_accounting import pld, rdp
from tensorflow_privacy.privacy.optimizers import dp_optimizer_keras_vectorized

_PHILOX = 1
_KEY = 0x1234_5678_9ABC_DEF1
# Box-Muller takes sqrt(-2 ln u) of a uniform u that is never below 1e-7: 5.678.
_NORMAL_LIMIT = math.sqrt(-2 * math.log(1e-7))


def _normal(shape, low=0, high=7):
    return tf.raw_ops.StatelessRandomNormalV2(
        shape=shape,
        key=tf.constant([_KEY], tf.uint64),
        counter=tf.constant([low, high], tf.uint64),
        alg=_PHILOX,
    ).numpy()


def _event(steps=10):
    step = dp_accounting.PoissonSampledDpEvent(0.03, dp_accounting.GaussianDpEvent(0.7))
    return dp_accounting.SelfComposedDpEvent(step, steps)


@pytest.mark.parametrize('accountant', [pld.PLDAccountant, rdp.RdpAccountant])
def test_poisson_sampling_is_accounted_under_add_or_remove_one_only(accountant):
    relation = dp_accounting.NeighboringRelation
    assert accountant()._neighboring_relation == relation.ADD_OR_REMOVE_ONE
    assert accountant(neighboring_relation=relation.ADD_OR_REMOVE_ONE).supports(_event())
    assert not accountant(neighboring_relation=relation.REPLACE_SPECIAL).supports(_event())


@pytest.mark.parametrize('accountant', [pld.PLDAccountant, rdp.RdpAccountant])
def test_a_non_private_event_has_infinite_epsilon(accountant):
    spent = accountant().compose(dp_accounting.NonPrivateDpEvent())
    assert spent.get_epsilon(1e-5) == math.inf


def test_pld_rounds_up():
    epsilons = [
        pld.PLDAccountant(value_discretization_interval=grain).compose(_event()).get_epsilon(1e-5)
        for grain in (1e-4, 1e-3, 1e-2)
    ]
    assert epsilons[0] < epsilons[1] < epsilons[2]


def test_one_draw_of_normals_stops_at_5_678():
    # The block in which this key draws the smallest u there is: the pair's length IS the limit.
    pair = _normal([4], low=33428459)[:2].astype(np.float64)
    assert np.hypot(*pair) == pytest.approx(_NORMAL_LIMIT, rel=1e-5)
    assert np.abs(_normal([2**22])).max() <= _NORMAL_LIMIT * (1 + 1e-6)
    assert _NORMAL_LIMIT == pytest.approx(5.678, abs=1e-3)


def test_philox_counts_blocks_of_four_numbers_in_the_low_word():
    numbers = _normal([100])
    for k in (1, 2, 13):
        np.testing.assert_array_equal(_normal([60], low=k)[:40], numbers[4 * k : 4 * k + 40])
    # A longer draw begins like a shorter one, and its shape does not matter.
    np.testing.assert_array_equal(_normal([4, 5, 5]).ravel(), numbers)


def test_philox_high_words_are_disjoint_streams():
    rows = np.stack([_normal([1000], high=h) for h in (0, 1, 2, 2**24, 2**63)])
    # Neither at the same place nor anywhere else: 5,000 floats, no row's block in another row.
    blocks = rows.reshape(-1, 4)
    assert len(np.unique(blocks, axis=0)) == len(blocks)


def test_clip_gradients_vmap_clips_the_norm_over_all_variables():
    clip = dp_optimizer_keras_vectorized.clip_gradients_vmap
    # |(3, 4; 12)| = 13, clipped to 6.5: halved. Below the clip: unchanged. Zero: zero.
    a, b = clip([tf.constant([3.0, 4.0]), tf.constant(12.0)], 6.5)
    np.testing.assert_allclose(np.r_[a, b], [1.5, 2.0, 6.0], rtol=1e-6)
    np.testing.assert_array_equal(clip([tf.constant([3.0, 4.0])], 13.0)[0], [3.0, 4.0])
    np.testing.assert_array_equal(clip([tf.zeros([2])], 0.3)[0], [0.0, 0.0])
    # Why clipping scales first: this norm overflows, and TF Privacy's result is all zeros.
    np.testing.assert_array_equal(clip([tf.constant([1e20, 0.0])], 0.3)[0], [0.0, 0.0])


def test_vectorized_map_takes_zero_rows():
    mapped = tf.vectorized_map(lambda x: [2.0 * x, tf.reduce_sum(x)], tf.zeros([0, 3]))
    assert [m.shape.as_list() for m in mapped] == [[0, 3], [0]]


@pytest.mark.parametrize('aggregate, change', [(False, 0.3), (True, 0.6)])
def test_legacy_apply_gradients_sums_over_replicas_only_when_asked(aggregate, change, strategy):
    with strategy.scope():
        variable = tf.Variable(1.0)
        optimizer = tf.keras.optimizers.legacy.SGD(1.0)

    @tf.function
    def step():
        strategy.run(
            lambda: optimizer.apply_gradients(
                [(tf.constant(0.3), variable)], experimental_aggregate_gradients=aggregate
            )
        )

    step()
    for copy in strategy.experimental_local_results(variable):
        assert copy.numpy() == pytest.approx(1.0 - change)


def test_a_graph_holds_captured_tensors_by_value_and_variables_by_handle():
    value = np.uint64(_KEY)

    def serialized(captured):
        graph = tf.function(lambda: tf.identity(captured)).get_concrete_function().graph
        return graph.as_graph_def().SerializeToString()

    # Two numbers, because a constant of one is written as a varint.
    assert value.tobytes() in serialized(tf.constant([value, 5]))
    assert value.tobytes() not in serialized(tf.Variable([value, 5]))
