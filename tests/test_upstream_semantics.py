"""Behaviour of dp_accounting, TF Privacy, Keras, TensorFlow and NumPy that the package relies on.

Each test names the file, and where it helps the function, that relies on what it holds fast.
"""

import inspect
import math

import attr
import dp_accounting
import numpy as np
import pytest
import tensorflow as tf
from dp_accounting import pld, rdp
from scipy import special, stats
from tensorboard.backend.event_processing import event_accumulator
from tensorflow_privacy.privacy.optimizers import dp_optimizer_keras_vectorized

_PHILOX = 1
_KEY = 0x1234_5678_9ABC_DEF1
_BOTH_ACCOUNTANTS = pytest.mark.parametrize('accountant', [pld.PLDAccountant, rdp.RdpAccountant])
# Box-Muller takes sqrt(-2 ln u) of a uniform u that is never below 1e-7: 5.678.
_NORMAL_LIMIT = math.sqrt(-2 * math.log(1e-7))


def _normal(shape, low=0, high=7, key=_KEY):
    return tf.raw_ops.StatelessRandomNormalV2(
        shape=shape,
        key=tf.constant([key], tf.uint64),
        counter=tf.constant([low, high], tf.uint64),
        alg=_PHILOX,
    ).numpy()


def _event(steps=10, q=0.03, sigma=0.7):
    step = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
    return dp_accounting.SelfComposedDpEvent(step, steps)


def _renyi(event, order):
    return rdp.RdpAccountant(orders=[order]).compose(event)._rdp[0]


def _copies(strategy, value):
    return [copy.numpy() for copy in strategy.experimental_local_results(value)]


# privacy/accounting/: events and what they spend.


@_BOTH_ACCOUNTANTS
def test_poisson_sampling_is_accounted_under_add_or_remove_one_only(accountant):
    # All of accounting/ makes accountants without naming the neighbours.
    relation = dp_accounting.NeighboringRelation
    assert accountant()._neighboring_relation == relation.ADD_OR_REMOVE_ONE
    assert accountant(neighboring_relation=relation.ADD_OR_REMOVE_ONE).supports(_event())
    assert not accountant(neighboring_relation=relation.REPLACE_SPECIAL).supports(_event())


@_BOTH_ACCOUNTANTS
@pytest.mark.parametrize(
    'event',
    [
        dp_accounting.NonPrivateDpEvent(),
        dp_accounting.GaussianDpEvent(0.0),
        dp_accounting.PoissonSampledDpEvent(0.3, dp_accounting.GaussianDpEvent(0.0)),
        dp_accounting.ComposedDpEvent(
            [dp_accounting.GaussianDpEvent(9.0), dp_accounting.NonPrivateDpEvent()]
        ),
    ],
    ids=str,
)
def test_an_event_without_noise_has_infinite_epsilon(accountant, event):
    # Mechanism.dp_event and compute_epsilon leave sigma = 0 to the accountants.
    assert accountant().compose(event).get_epsilon(1e-5) == math.inf


@_BOTH_ACCOUNTANTS
def test_no_repetitions_are_no_event(accountant):
    # compute_epsilon answers 0 steps itself.
    with pytest.raises(ValueError, match='positive'):
        accountant().compose(_event(steps=0))


def test_events_are_values_with_named_fields():
    # event_to_dict and event_from_dict: the ledger's lines; compute_spent compares with ==.
    gaussian = dp_accounting.GaussianDpEvent(0.7)
    sampled = dp_accounting.PoissonSampledDpEvent(0.03, gaussian)
    assert attr.asdict(gaussian, recurse=False) == {'noise_multiplier': 0.7}
    fields = attr.asdict(sampled, recurse=False)
    assert fields == {'sampling_probability': 0.03, 'event': gaussian}
    assert fields['event'] is gaussian
    assert type(sampled)(**fields) == sampled
    assert dp_accounting.PoissonSampledDpEvent(0.04, gaussian) != sampled
    with pytest.raises(TypeError):
        dp_accounting.GaussianDpEvent(sigma=0.7)


@pytest.mark.parametrize('order', [1.3, 2, 7.5, 64])
def test_renyi_divergences_add_up(order):
    # _divergence reads the private name; RenyiFilter adds and multiplies what it reads.
    gaussian = dp_accounting.GaussianDpEvent(0.7)
    assert _renyi(gaussian, order) == pytest.approx(order / (2 * 0.7**2), rel=1e-12)
    one, ten, other = _event(1), _event(10), _event(3, 0.02, 0.9)
    assert _renyi(ten, order) == pytest.approx(10 * _renyi(one, order), rel=1e-12)
    both = dp_accounting.ComposedDpEvent([ten, other])
    total = _renyi(ten, order) + _renyi(other, order)
    assert _renyi(both, order) == pytest.approx(total, rel=1e-12)
    # Sampling everybody is not sampling, and sampling fewer spends less.
    assert _renyi(_event(1, q=1.0), order) == pytest.approx(_renyi(gaussian, order), rel=1e-9)
    assert 0 < _renyi(one, order) < 0.97 * _renyi(gaussian, order)


@pytest.mark.parametrize(
    'event', [_event(), dp_accounting.ComposedDpEvent([_event(), _event(700, 0.01, 1.1)])], ids=str
)
def test_the_optimal_order_alone_gives_the_epsilon(event):
    # RenyiFilter.of_plan fixes the order and claims the epsilon of all orders.
    accountant = rdp.RdpAccountant().compose(event)
    epsilon, order = accountant.get_epsilon_and_optimal_order(1e-5)
    assert epsilon == accountant.get_epsilon(1e-5) > 0
    assert order in accountant._orders
    alone = rdp.RdpAccountant(orders=[order]).compose(event).get_epsilon(1e-5)
    assert alone == pytest.approx(epsilon, rel=1e-12)
    # By hand (Canonne, Kamath and Steinke 2020, proposition 12).
    by_hand = _renyi(event, order) + math.log1p(-1 / order) - math.log(1e-5 * order) / (order - 1)
    assert epsilon == pytest.approx(by_hand, rel=1e-12)


def _gaussian_delta(mu, epsilon):
    first = stats.norm.cdf(mu / 2 - epsilon / mu)
    return first - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize('interval', [1e-4, 1e-3])
@pytest.mark.parametrize('sigma, steps', [(8.0, 1), (1.3, 1), (3.0, 30), (0.4, 1)])
def test_pld_of_the_gaussian_is_just_above_its_closed_form(sigma, steps, interval):
    # Epsilon.headline takes minima of upper bounds; calibration starts on the coarse grid.
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(sigma), steps)
    epsilon = (
        pld.PLDAccountant(value_discretization_interval=interval).compose(event).get_epsilon(1e-5)
    )
    mu = math.sqrt(steps) / sigma
    # Upper bound, but for rounding: at mu = 10 it is 6e-12 of epsilon below.
    assert _gaussian_delta(mu, epsilon) <= 1e-5 * (1 + 1e-9)
    assert _gaussian_delta(mu, epsilon - interval) > 1e-5
    assert _gaussian_delta(mu, 0.999 * epsilon) > 1e-5 * (1 + 1e-9)


def _sampled_delta(q, sigma, epsilon):
    """Of one sampled Gaussian, by integration: (record removed, record added)."""
    null, other = stats.norm(0, sigma), stats.norm(1, sigma)
    # Densities (1 - q) N(0) + q N(1) and N(0): where does their ratio pass e^eps, and e^-eps?
    removed = added = 0.0
    at = 0.5 + sigma**2 * math.log((math.exp(epsilon) - 1 + q) / q)
    removed = (1 - q - math.exp(epsilon)) * null.sf(at) + q * other.sf(at)
    if math.exp(-epsilon) > 1 - q:
        at = 0.5 + sigma**2 * math.log((math.exp(-epsilon) - 1 + q) / q)
        mixture = (1 - q) * null.cdf(at) + q * other.cdf(at)
        added = null.cdf(at) - math.exp(epsilon) * mixture
    return removed, added


@pytest.mark.parametrize('q', [0.03, 0.3, 0.97])
def test_pld_of_one_sampled_step_covers_adding_and_removing(q):
    # step_event: neither direction alone is the account.
    epsilon = pld.PLDAccountant().compose(_event(1, q)).get_epsilon(1e-3)
    assert max(_sampled_delta(q, 0.7, epsilon)) <= 1e-3 * (1 + 1e-9)
    assert max(_sampled_delta(q, 0.7, epsilon - 2e-4)) > 1e-3
    # Which one is larger is not close, so the wrong one would be seen.
    assert min(_sampled_delta(q, 0.7, epsilon)) < 0.5e-3


def test_pld_rounds_up():
    # calibrate_noise_multiplier: what the coarse grid allows, the fine one allows.
    epsilons = [
        pld.PLDAccountant(value_discretization_interval=grain).compose(_event()).get_epsilon(1e-5)
        for grain in (1e-4, 1e-3, 1e-2)
    ]
    assert epsilons[0] < epsilons[1] < epsilons[2]
    assert pld.PLDAccountant()._value_discretization_interval == 1e-4


def test_pld_is_infinite_below_the_tail_that_it_cuts_off():
    # Epsilon.headline then falls back on RDP, which goes on.
    assert pld.PLDAccountant().compose(_event()).get_epsilon(1e-15) == math.inf
    assert rdp.RdpAccountant().compose(_event()).get_epsilon(1e-15) < 12


def test_calibration_stays_within_the_target_and_searches_upwards_only():
    # calibrate_noise_multiplier lowers the lower end itself, and promises "at most the target".
    def calibrate(low, guess):
        bracket = dp_accounting.LowerEndpointAndGuess(low, guess)
        return dp_accounting.calibrate_dp_mechanism(
            rdp.RdpAccountant, dp_accounting.GaussianDpEvent, 2.0, 1e-5, bracket, tol=1e-3
        )

    def epsilon(sigma):
        return rdp.RdpAccountant().compose(dp_accounting.GaussianDpEvent(sigma)).get_epsilon(1e-5)

    # From a guess above, and from one far below.
    for low, guess in ((0.3, 3.0), (0.3, 0.4)):
        sigma = calibrate(low, guess)
        assert epsilon(sigma) <= 2.0 < epsilon(sigma - 2e-3)
    # A lower end that spends less already: no bracket, and the error is no ValueError.
    error = dp_accounting.mechanism_calibration.NoBracketIntervalFoundError
    with pytest.raises(error):
        calibrate(9.0, 10.0)
    assert not issubclass(error, (ValueError, ArithmeticError))


def test_normal_tails_in_logs_neither_vanish_nor_overflow():
    # gaussian_epsilon and _gaussian_log_delta. Far out, log Phi(-z) = -z^2/2 - log(z sqrt(2 pi))
    # up to 1/z^2, and erfcx(x) = 1 / (x sqrt pi) up to 1/(2 x^2).
    for z in (1e2, 1e4):
        expected = -(z**2) / 2 - math.log(z * math.sqrt(2 * math.pi)) + math.log1p(-(z**-2))
        assert special.log_ndtr(-z) == pytest.approx(expected, abs=4 * z**-4 + 1e-15 * z**2)
        assert special.ndtri_exp(special.log_ndtr(-z)) == pytest.approx(-z, rel=1e-12)
        assert special.erfcx(z) * z * math.sqrt(math.pi) == pytest.approx(
            1 - z**-2 / 2, abs=z**-4 + 1e-15
        )
    for delta in (0.3, 1e-5, 1e-15):
        expected = stats.norm.ppf(delta)
        assert special.ndtri_exp(math.log(delta)) == pytest.approx(expected, rel=1e-10)


# privacy/noise.py: Philox, key variables.


def test_one_draw_of_normals_stops_at_5_678():
    # Why gaussian sums four draws.
    # The block in which this key draws the smallest u there is: the pair's length IS the limit.
    pair = _normal([4], low=33428459)[:2].astype(np.float64)
    assert np.hypot(*pair) == pytest.approx(_NORMAL_LIMIT, rel=1e-5)
    assert np.abs(_normal([2**22])).max() <= _NORMAL_LIMIT * (1 + 1e-6)
    assert _NORMAL_LIMIT == pytest.approx(5.678, abs=1e-3)


def test_philox_counts_blocks_of_four_numbers_in_the_low_word():
    # counter leaves the low word to the draw.
    numbers = _normal([100])
    for k in (1, 2, 13):
        np.testing.assert_array_equal(_normal([60], low=k)[:40], numbers[4 * k : 4 * k + 40])
    # A longer draw begins like a shorter one, and its shape does not matter.
    np.testing.assert_array_equal(_normal([4, 5, 5]).ravel(), numbers)


def test_philox_high_words_are_disjoint_streams():
    # counter puts step, purpose and variable there.
    rows = np.stack([_normal([1000], high=h) for h in (0, 1, 2, 2**24, 2**63)])
    # Neither at the same place nor anywhere else: 5,000 floats, no row's block in another row.
    blocks = rows.reshape(-1, 4)
    assert len(np.unique(blocks, axis=0)) == len(blocks)


def test_every_bit_of_key_and_high_word_counts():
    # No part of either may be dropped on the way to the kernel, as int32 seeds drop half of it.
    keys = [_normal([4], key=_KEY ^ (1 << bit)) for bit in range(64)]
    words = [_normal([4], high=7 ^ (1 << bit)) for bit in range(64)]
    draws = np.stack([_normal([4]), *keys, *words])
    assert len(np.unique(draws)) == draws.size == 129 * 4


def test_a_draw_is_the_same_in_eager_code_in_a_function_and_on_every_replica(strategy):
    # PrivateOptimizer.release: every replica computes the one noise for itself.
    key, counter = tf.constant([_KEY], tf.uint64), tf.constant([0, 7], tf.uint64)

    def draw(key, counter):
        return tf.raw_ops.StatelessRandomNormalV2(
            shape=[4, 9], key=key, counter=counter, alg=_PHILOX
        )

    in_function = tf.function(draw)
    on_replicas = tf.function(lambda k, c: strategy.run(draw, args=(k, c)))
    expected = _normal([4, 9])
    np.testing.assert_array_equal(in_function(key, counter), expected)
    copies = _copies(strategy, on_replicas(key, counter))
    assert len(copies) == 2
    for copy in copies:
        np.testing.assert_array_equal(copy, expected)
    assert not np.array_equal(in_function(key, counter + 1), expected)


def test_public_draws_are_the_same_in_eager_code_in_a_function_and_on_every_replica(strategy):
    # training/generated.py, _generate_share: each replica takes its rows of what all have drawn.
    def draw(step):
        seed = tf.random.experimental.stateless_fold_in(tf.constant([3, 1], tf.int32), step)
        return tf.random.stateless_uniform([50], seed, 0, 3, tf.int32)

    step = tf.constant(2**33 + 5, tf.int64)
    expected = draw(step).numpy()
    assert set(expected) == {0, 1, 2}
    on_replicas = tf.function(lambda s: strategy.run(draw, args=(s,)))
    for drawn in (tf.function(draw)(step).numpy(), *_copies(strategy, on_replicas(step))):
        np.testing.assert_array_equal(drawn, expected)
    assert not np.array_equal(draw(step + 1), expected)


def test_uint64_shifts_and_bitcasts_keep_all_bits():
    # counter shifts steps below 2^40 by 24; NoiseKeyVariables holds keys as int64.
    step = 2**40 - 3
    shifted = tf.bitwise.left_shift(tf.constant(step, tf.uint64), tf.constant(24, tf.uint64))
    assert int(shifted) == step << 24 > 2**63
    assert int(tf.bitwise.bitwise_or(shifted, tf.constant(5, tf.uint64))) == (step << 24) | 5
    key = tf.constant([2**63 + 1, 2**64 - 1, 7], tf.uint64)
    signed = tf.bitcast(key, tf.int64)
    assert signed.numpy().tolist() == [1 - 2**63, -1, 7]
    np.testing.assert_array_equal(tf.bitcast(signed, tf.uint64), key)


def test_a_generators_state_counts_by_256_on_every_replica_alike(strategy):
    # NoiseKeyVariables.next: every replica counts on its own copy, and all read the same step.
    with strategy.scope():
        state = tf.Variable([512, 0, 0], trainable=False, dtype=tf.int64)

    def take():
        return tf.raw_ops.RngReadAndSkip(
            resource=state.handle, alg=tf.constant(1), delta=tf.constant(1, tf.uint64)
        )

    run = tf.function(lambda: strategy.run(take))
    assert [list(copy) for copy in _copies(strategy, run())] == [[512, 0, 0]] * 2
    assert [list(copy) for copy in _copies(strategy, state)] == [[768, 0, 0]] * 2
    assert strategy.extended.variable_created_in_scope(state)
    assert not strategy.extended.variable_created_in_scope(tf.Variable(0))


def test_a_graph_holds_captured_tensors_by_value_and_variables_by_handle():
    # NoiseKeyVariables keeps keys in variables because a drop-in caller can pass no argument.
    value = np.uint64(_KEY)

    def serialized(captured):
        graph = tf.function(lambda: tf.identity(captured)).get_concrete_function().graph
        return graph.as_graph_def().SerializeToString()

    # Two numbers, because a constant of one is written as a varint.
    assert value.tobytes() in serialized(tf.constant([value, 5]))
    assert value.tobytes() not in serialized(tf.Variable([value, 5]))


def test_a_graph_does_not_hold_arguments_and_is_traced_once_for_all_their_values():
    # NoiseKey.key and next_step go into EFSGDGan's training function as arguments.
    traced = []

    @tf.function
    def add(key, step):
        traced.append(step)
        return key + step

    keys = [tf.constant([value, 5], tf.uint64) for value in (_KEY, 3)]
    for key in keys:
        for step in range(3):
            assert int(add(key, tf.constant(step, tf.uint64))[1]) == 5 + step
    assert len(traced) == 1
    graph = add.get_concrete_function(keys[0], tf.constant(0, tf.uint64)).graph.as_graph_def()
    assert np.uint64(_KEY).tobytes() not in graph.SerializeToString()
    assert len(traced) == 1
    # A Python number is part of the signature: traced again, and in the graph.
    add(keys[0], 1)
    add(keys[0], 2)
    assert len(traced) == 3


# privacy/clipping.py and privacy/error_feedback.py: arithmetic.


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
    # per_example_gradients and clip_and_sum of an empty batch, in eager code and in a graph.
    def mapped(x):
        return tf.vectorized_map(lambda row: [2.0 * row, tf.reduce_sum(row)], x)

    assert [m.shape.as_list() for m in mapped(tf.zeros([0, 3]))] == [[0, 3], [0]]
    traced = tf.function(mapped, input_signature=[tf.TensorSpec([None, 3])])
    assert [m.shape.as_list() for m in traced(tf.zeros([0, 3]))] == [[0, 3], [0]]


def test_vectorized_map_watches_variables_per_row():
    # per_example_gradients: the tape inside the map gives a variable one gradient per row.
    variable, unused = tf.Variable(3.0), tf.Variable(1.0)
    missing = []

    def gradient(x):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable, unused])
            loss = x * variable**2
        first, second = tape.gradient(loss, [variable, unused])
        missing.append(second)
        return first

    rows = tf.vectorized_map(gradient, tf.constant([1.0, 0.0, -2.0]))
    np.testing.assert_array_equal(rows, [6.0, 0.0, -12.0])
    assert missing == [None] * len(missing) != []


def test_reductions_of_zero_rows():
    # clip_and_sum of an empty batch: lengths [0], sums that are zeros and not absent.
    empty = tf.zeros([0, 3])
    assert tf.reduce_max(empty, axis=1).shape == [0]
    assert tf.reduce_all(tf.math.is_finite(tf.reduce_max(empty, axis=1))).numpy()
    np.testing.assert_array_equal(tf.matmul(tf.zeros([2, 0]), empty), np.zeros([2, 3]))
    np.testing.assert_array_equal(tf.reduce_sum(empty, axis=0), np.zeros(3))
    # And of a zero gradient: 0 / 0 is 0.
    assert tf.math.divide_no_nan(0.0, 0.0) == 0.0 and tf.math.divide_no_nan(0.3, 0.0) == 0.0


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_row_with_a_bad_entry_divided_by_its_extreme_has_a_nan_norm(bad):
    # clipping._scale finds bad rows by that; tf.where drops them whatever they hold.
    rows = tf.constant([[1.0, -5.0, 2.0], [1.0, bad, 1e30]])
    extremes = tf.stack([tf.reduce_max(rows, axis=1), -tf.reduce_min(rows, axis=1)])
    scale = tf.maximum(tf.reduce_max(extremes, axis=0), 1e-30)
    norm = tf.sqrt(tf.reduce_sum(tf.square(rows / scale[:, None]), axis=1))
    np.testing.assert_array_equal(tf.math.is_nan(norm), [False, True])
    kept = tf.where(tf.math.is_finite(norm)[:, None], rows, 0.0)
    np.testing.assert_array_equal(kept, [[1.0, -5.0, 2.0], [0.0, 0.0, 0.0]])


def test_matrix_products_on_the_cpu_keep_all_24_bits():
    # clipping._weighted_sums: what is lost there is not in the sensitivity.
    fine = np.float32(1 + 2.0**-23)
    many = tf.constant(np.full([2, 9], fine) * np.float32([[1], [0]]))
    product = tf.matmul(many, tf.eye(9) * np.float32([3.0] * 9))
    np.testing.assert_array_equal(product[0], np.full(9, np.float32(3 * fine)))
    assert np.float32(3 * fine) != 3.0


def test_clip_by_global_norm_clips_over_all_tensors_and_leaves_zero():
    # error_feedback.feed_back.
    clipped, norm = tf.clip_by_global_norm([tf.constant([3.0, 4.0]), tf.constant(12.0)], 6.5)
    assert norm == 13.0
    np.testing.assert_allclose(np.r_[clipped[0], clipped[1]], [1.5, 2.0, 6.0], rtol=1e-6)
    below, _ = tf.clip_by_global_norm([tf.constant([3.0, 4.0])], 7.0)
    np.testing.assert_allclose(below[0], [3.0, 4.0], rtol=1e-6)
    zero, _ = tf.clip_by_global_norm([tf.zeros([2])], 0.3)
    np.testing.assert_array_equal(zero[0], [0.0, 0.0])


# privacy/private_optimizer.py: legacy Keras optimizers, replicas.


@pytest.mark.parametrize(
    'arguments, change',
    [
        ({'experimental_aggregate_gradients': False}, 0.3),
        ({'experimental_aggregate_gradients': True}, 0.6),
        ({}, 0.6),
    ],
    ids=str,
)
def test_legacy_apply_gradients_sums_over_replicas_unless_told_not_to(arguments, change, strategy):
    # Released gradients are all-reduced already; the generator's (models/gan.py) are not, and it
    # divides by the size of the whole batch.
    with strategy.scope():
        variable = tf.Variable(1.0)
        optimizer = tf.keras.optimizers.legacy.SGD(1.0)

    def apply():
        optimizer.apply_gradients([(tf.constant(0.3), variable)], **arguments)

    tf.function(lambda: strategy.run(apply))()
    assert _copies(strategy, variable) == pytest.approx([1.0 - change] * 2)


class _Recording(tf.keras.optimizers.legacy.SGD):
    """Keeps what it is called with, and applies 0.3 to every variable."""

    calls = ()

    def _compute_gradients(self, loss, var_list, grad_loss=None, tape=None):
        self.calls += (('compute', loss.shape, tape is not None),)
        return [(tf.fill(v.shape, 0.3), v) for v in var_list]

    def apply_gradients(self, grads_and_vars, name=None, experimental_aggregate_gradients=True):
        self.calls += (('apply', [g.shape.as_list() for g, _ in grads_and_vars]),)
        return super().apply_gradients(grads_and_vars, name, experimental_aggregate_gradients)


def test_fit_gives_minimize_the_loss_vector_and_the_tape():
    # The drop-in way overrides _compute_gradients and apply_gradients, and needs one loss per row.
    model = tf.keras.Sequential([tf.keras.layers.Dense(1, use_bias=False, input_shape=[2])])
    before = model.get_weights()[0]
    optimizer = _Recording(1.0)
    loss = tf.keras.losses.MeanSquaredError(reduction=tf.keras.losses.Reduction.NONE)
    model.compile(optimizer, loss, run_eagerly=True)
    assert model.optimizer is optimizer
    model.fit(np.ones([5, 2]), np.ones([5, 1]), batch_size=5, verbose=0)
    assert optimizer.calls == (('compute', [5], True), ('apply', [[2, 1]]))
    np.testing.assert_allclose(model.get_weights()[0], before - 0.3, rtol=1e-6)


def test_jacobian_of_a_loss_vector_is_zero_for_what_it_does_not_use():
    # The drop-in way: an unused variable counts as zero and is in every list.
    used, unused = tf.Variable([2.0, 3.0]), tf.Variable([[1.0]])
    with tf.GradientTape() as tape:
        loss = tf.linalg.matvec([[1.0, 0.0], [0.0, -1.0], [5.0, 5.0]], used)
    first, second = tape.jacobian(
        loss, [used, unused], unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    np.testing.assert_array_equal(first, [[1.0, 0.0], [0.0, -1.0], [5.0, 5.0]])
    np.testing.assert_array_equal(second, np.zeros([3, 1, 1]))


def test_all_reduce_sums_nested_lists(strategy):
    # release all-reduces [clipped sums, residual sums] in one call.
    def reduce():
        replica = tf.distribute.get_replica_context()
        i = tf.cast(replica.replica_id_in_sync_group, tf.float32)
        values = [[tf.fill([2], 1.0 + i), 10.0 + i], [tf.fill([1, 2], 100.0 * i)]]
        return replica.all_reduce(tf.distribute.ReduceOp.SUM, values)

    (first, second), (third,) = tf.function(lambda: strategy.run(reduce))()
    for value, expected in ((first, [3.0, 3.0]), (second, 21.0), (third, [[100.0, 100.0]])):
        for copy in _copies(strategy, value):
            np.testing.assert_array_equal(copy, expected)


def test_update_in_a_merge_call_gives_each_replica_its_own_value(strategy):
    # _store_buffer. A plain assign in a replica context would want an aggregation.
    with strategy.scope():
        slot = tf.Variable([0.0, 0.0], trainable=False)

    def store():
        replica = tf.distribute.get_replica_context()
        value = tf.fill([2], 0.3 + tf.cast(replica.replica_id_in_sync_group, tf.float32))

        def assign(strategy, slot, value):
            strategy.extended.update(slot, lambda e, new: e.assign(new), args=(value,))

        replica.merge_call(assign, args=(slot, value))

    tf.function(lambda: strategy.run(store))()
    np.testing.assert_allclose(_copies(strategy, slot), [[0.3, 0.3], [1.3, 1.3]], rtol=1e-6)


@pytest.mark.parametrize('replicas', [1, 2])
def test_slots_are_saved_and_restored_when_they_are_made(replicas, strategy, tmp_path):
    # The error feedback buffer, and checkpoints.py: slots appear at the first step.
    strategy = strategy if replicas == 2 else tf.distribute.get_strategy()

    def make():
        with strategy.scope():
            variable = tf.Variable([1.0, 2.0])
            optimizer = tf.keras.optimizers.legacy.SGD(1.0)
        return optimizer, variable, tf.train.Checkpoint(optimizer=optimizer, variable=variable)

    optimizer, variable, checkpoint = make()
    with strategy.scope():
        slot = optimizer.add_slot(variable, 'buffer')
        np.testing.assert_array_equal(slot.numpy(), [0.0, 0.0])
        slot.assign([0.3, -0.7])
        # Made once: asking again neither resets nor replaces it.
        assert optimizer.add_slot(variable, 'buffer') is slot
    path = checkpoint.save(str(tmp_path / 'checkpoint'))

    optimizer, variable, checkpoint = make()
    checkpoint.restore(path).assert_existing_objects_matched().expect_partial()

    @tf.function
    def read():
        with tf.init_scope():
            slot = optimizer.add_slot(variable, 'buffer')
        return tf.identity(slot)

    for copy in _copies(strategy, strategy.run(read)):
        np.testing.assert_array_equal(copy, np.float32([0.3, -0.7]))


# checkpoints.py.


def test_a_checkpoint_does_not_hold_what_plain_objects_hold(tmp_path):
    # NoiseKey hangs on the model, NoiseKeyVariables on the optimizer: plain objects both.
    class Plain:
        def __init__(self):
            self.variable, self.tensor = tf.Variable(7.0), tf.constant(7.0)

    model = tf.keras.Sequential([tf.keras.layers.Dense(1, input_shape=[1])])
    optimizer = tf.keras.optimizers.legacy.SGD(1.0)
    model.plain, model.function, optimizer.plain = Plain(), lambda: model.plain, Plain()
    model.tensor = tf.constant(7.0)

    def names():
        checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
        path = checkpoint.save(str(tmp_path / 'checkpoint'))
        return '\n'.join(name for name, _ in tf.train.list_variables(path))

    assert 'kernel' in names() and 'plain' not in names() and 'tensor' not in names()
    # A variable of a model's own is held, under whatever name it has.
    model.plainly = tf.Variable(7.0)
    assert 'plainly' in names()


def test_restoring_refuses_objects_that_the_checkpoint_lacks(tmp_path):
    # RunCheckpoints.restore_latest: a changed model, in its variables or their shapes.
    text = tf.Variable('{"steps": 3}', trainable=False)
    path = tf.train.Checkpoint(text=text, a=tf.Variable([1.0])).save(str(tmp_path / 'checkpoint'))
    text.assign('')
    same = tf.train.Checkpoint(text=text, a=tf.Variable([0.0]))
    same.restore(path).assert_existing_objects_matched()
    assert text.numpy() == b'{"steps": 3}'
    more = tf.train.Checkpoint(text=text, a=tf.Variable([0.0]), b=tf.Variable(0.0))
    with pytest.raises(AssertionError):
        more.restore(path).assert_existing_objects_matched()
    with pytest.raises(ValueError, match='shape'):
        tf.train.Checkpoint(a=tf.Variable([0.0, 0.0])).restore(path)
    # The other way round nothing is said: the checkpoint may hold more, such as slots to come.
    tf.train.Checkpoint(text=text).restore(path).assert_existing_objects_matched().expect_partial()


def test_the_manager_numbers_as_told_and_keeps_the_last(tmp_path):
    variable = tf.Variable(0)
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(variable=variable), str(tmp_path), max_to_keep=2
    )
    assert manager.latest_checkpoint is None
    paths = [manager.save(checkpoint_number=number) for number in (30, 100, 101)]
    assert [path.rsplit('-')[-1] for path in paths] == ['30', '100', '101']
    again = tf.train.CheckpointManager(
        tf.train.Checkpoint(variable=variable), str(tmp_path), max_to_keep=2
    )
    assert again.latest_checkpoint == paths[-1] and again.checkpoints == paths[1:]


# data/poisson.py: NumPy's Philox, data sets.


@pytest.mark.parametrize('sizes', [(1000,), (1, 7, 992), (333, 333, 334)], ids=str)
def test_numpy_integers_of_32_bits_are_the_raw_stream(sizes):
    # sample_indices: P(draw < threshold) is exactly threshold / 2^32, and no number is used twice,
    # also when N is odd: the other half of a 64-bit word waits for the next call.
    raw = np.random.Philox(key=_KEY).random_raw(500).view(np.uint32)
    draws = np.random.Generator(np.random.Philox(key=_KEY))
    drawn = [draws.integers(0, 2**32, size=size, dtype=np.uint32) for size in sizes]
    np.testing.assert_array_equal(np.concatenate(drawn), raw)
    # Any other range would be rejected or reduced: not the raw bits.
    other = np.random.Generator(np.random.Philox(key=_KEY))
    assert not np.array_equal(other.integers(0, 2**31 + 1, size=1000, dtype=np.uint32), raw)
    # Compared as unsigned with a Python integer of 33 bits: everybody is sampled.
    assert np.all(raw < 2**32) and not np.all(raw < 2**31)


def test_every_bit_of_a_numpy_philox_key_counts():
    # poisson_batches draws 128 bits from the operating system.
    keys = [0, *(1 << bit for bit in range(128))]
    draws = np.stack([np.random.Philox(key=key).random_raw(4) for key in keys])
    assert len(np.unique(draws)) == draws.size
    with pytest.raises(ValueError):
        np.random.Philox(key=2**128)


def _shares(iterations):
    """Elements of 0 to 3 rows, numbered; counts how often it is iterated."""

    def generate():
        iterations.append(len(iterations))
        i = 0
        while True:
            yield np.full([i % 4, 2], i, np.int32), np.full([i % 4], i, np.int32)
            i += 1

    dataset = tf.data.Dataset.from_generator(
        generate,
        output_signature=(tf.TensorSpec([None, 2], tf.int32), tf.TensorSpec([None], tf.int32)),
    )
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(4).with_options(options)


def test_a_data_set_calls_its_generator_anew_and_keeps_order_and_empty_elements():
    # poisson_batches: every iterator gets a key of its own.
    iterations = []
    dataset = _shares(iterations)
    assert not iterations
    for count in (1, 2):
        elements = [labels.numpy().tolist() for _, labels in dataset.take(7)]
        assert elements == [[], [1], [2] * 2, [3] * 3, [], [5], [6] * 2]
        assert len(iterations) == count


def test_each_replica_gets_consecutive_elements_even_without_rows(strategy):
    # poisson_batches hands out a step as one element per replica. Sizes differ, and may be 0.
    iterations = []
    batches = iter(strategy.distribute_datasets_from_function(lambda context: _shares(iterations)))

    @tf.function
    def step(iterator):
        return strategy.run(lambda e: (tf.shape(e[0])[0], e[1]), args=(next(iterator),))

    for i in range(6):
        sizes, labels = step(batches)
        numbers = [2 * i, 2 * i + 1]
        assert _copies(strategy, sizes) == [n % 4 for n in numbers]
        assert [x.tolist() for x in _copies(strategy, labels)] == [[n] * (n % 4) for n in numbers]
    assert len(iterations) == 1


# models/gan.py and monitoring.py: Keras' training loop.


class _Model(tf.keras.Model):
    """Its training function is its own, like EFSGDGan's."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def make_train_function(self, force=False):
        if self.train_function is None or force:
            self.seen.append('made')

            def step(iterator):
                self.seen.append(int(next(iterator)[1].shape[0]))
                return {'number': tf.constant(0.3)}

            self.train_function = step
        return self.train_function


class _Watching(tf.keras.callbacks.Callback):
    def __init__(self, stop_at=None):
        super().__init__()
        self.stop_at = stop_at

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.stop_at:
            raise RuntimeError('the budget is spent')
        self.model.seen.append('begin')

    def on_train_batch_end(self, batch, logs=None):
        self.model.seen.append(float(logs['number']))


def test_fit_asks_before_every_step_and_takes_one_iterator_for_all():
    # Budget.on_train_batch_begin: paid for before it runs; one step per call of train_function.
    iterations, model = [], _Model()
    model.compile()
    end = pytest.approx(0.3)
    dataset = _shares(iterations)
    model.fit(dataset, steps_per_epoch=2, epochs=2, verbose=0, callbacks=[_Watching()])
    steps = [x for size in (0, 1, 2, 3) for x in ('begin', size, end)]
    assert model.seen == ['made', *steps]
    assert len(iterations) == 1
    # What a callback raises before a step ends the training, and the step does not run.
    model.seen.clear()
    with pytest.raises(RuntimeError, match='spent'):
        model.fit(dataset, steps_per_epoch=9, verbose=0, callbacks=[_Watching(stop_at=1)])
    assert model.seen == ['begin', 0, end]
    # Compiling again drops the training function, and with it the key that it holds.
    model.compile()
    assert model.train_function is None


def test_a_cloned_model_has_variables_of_its_own():
    # The generator's moving average.
    model = tf.keras.Sequential([tf.keras.layers.Dense(2, input_shape=[3])])
    clone = tf.keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    model.weights[0].assign_add(tf.ones([3, 2]))
    assert [w.shape for w in clone.weights] == [w.shape for w in model.weights]
    np.testing.assert_allclose(model.weights[0] - clone.weights[0], np.ones([3, 2]), rtol=1e-5)


@pytest.mark.parametrize('affine', [True, False])
def test_batch_normalization_keeps_statistics_unless_frozen(affine):
    # _refuse_layers_with_state looks for these weights, in nested models too, and lets frozen
    # layers pass: they use what they have, whatever `training` says, and write nothing.
    norm = tf.keras.layers.BatchNormalization(center=affine, scale=affine)
    inner = tf.keras.Sequential([tf.keras.layers.InputLayer([3]), norm])
    model = tf.keras.Sequential([tf.keras.layers.InputLayer([3]), inner])
    assert norm in model._flatten_layers(include_self=False)
    assert len(norm.non_trainable_weights) == 2
    inputs = tf.constant([[1.0, 2.0, 3.0], [5.0, -3.0, 0.0]])
    norm.trainable = False
    frozen = model(inputs, training=True)
    np.testing.assert_allclose(frozen, inputs / math.sqrt(1 + norm.epsilon), rtol=1e-6)
    np.testing.assert_array_equal(norm.moving_mean, np.zeros(3))
    norm.trainable = True
    assert not np.allclose(model(inputs, training=True), frozen)
    assert np.all(norm.moving_mean.numpy() != 0)


def test_event_files_keep_every_step_of_every_run_in_order(tmp_path):
    # monitoring.read_scalars: the default keeps ten; steps done again come last and count.
    for run, steps in enumerate((range(1, 31), range(21, 41))):
        with tf.summary.create_file_writer(str(tmp_path), filename_suffix=f'.{run}').as_default():
            for step in steps:
                tf.summary.scalar('dp/loss', 0.3 + run, step=step)

    def read(**kwargs):
        events = event_accumulator.EventAccumulator(str(tmp_path), **kwargs)
        events.Reload()
        assert events.Tags()['tensors'] == ['dp/loss'] and not events.Tags()['scalars']
        return [(e.step, float(tf.make_ndarray(e.tensor_proto))) for e in events.Tensors('dp/loss')]

    everything = [(s, 0.3) for s in range(1, 31)] + [(s, 1.3) for s in range(21, 41)]
    assert read(size_guidance={'tensors': 0}) == [(s, pytest.approx(v)) for s, v in everything]
    assert len(read()) == 10


# export.py.


def test_a_functions_captures_list_small_tensors_too():
    # _check_captures: whatever is in the graph by value is in this list, variables as resources.
    small, large, variable = tf.constant(0.3), tf.zeros([200]), tf.Variable(0.3)
    concrete = tf.function(lambda: (small + 1, large + 1, variable + 1)).get_concrete_function()
    assert sorted(t.dtype.name for t in concrete.captured_inputs) == [
        'float32',
        'float32',
        'resource',
    ]
    assert tf.function(lambda: tf.constant(0.3)).get_concrete_function().captured_inputs == []


@pytest.mark.parametrize(
    'global_seed, reset, seeded', [(None, False, 0), (5, False, 1), (5, True, 0)]
)
def test_a_global_seed_is_written_into_a_graph_unless_the_graph_forgets_it(
    global_seed, reset, seeded
):
    # _trace_signature and _check_unseeded.
    def draw():
        if reset:
            tf.compat.v1.get_default_graph().seed = None
        return tf.random.normal([3])

    tf.random.set_seed(global_seed)
    try:
        concrete = tf.function(draw).get_concrete_function()
    finally:
        tf.random.set_seed(None)
    nodes = concrete.graph.as_graph_def().node
    assert sum(bool(n.attr['seed'].i or n.attr['seed2'].i) for n in nodes) == seeded
    assert not np.array_equal(concrete(), concrete())


def test_saving_a_model_refuses_a_variable_that_it_does_not_track(tmp_path):
    # _save turns this very class of error into its own.
    variable, module = tf.Variable(0.3), tf.Module()
    signature = tf.function(lambda: {'x': variable + 1.0}).get_concrete_function()
    with pytest.raises(AssertionError, match='untracked'):
        tf.saved_model.save(module, str(tmp_path / 'a'), signatures=signature)
    module.variables_to_save = [variable]
    tf.saved_model.save(module, str(tmp_path / 'b'), signatures=signature)
    names = [n for n, _ in tf.train.list_variables(str(tmp_path / 'b/variables/variables'))]
    assert [n for n in names if not n.startswith('_')] == [
        'variables_to_save/0/.ATTRIBUTES/VARIABLE_VALUE'
    ]


def test_the_time_after_which_a_worker_is_lost_can_be_set():
    # `run.workers` needs both; they are no public API, and their modules move between versions.
    from tensorflow.python.eager import context

    taken = inspect.signature(context.Context.configure_coordination_service).parameters
    assert {
        *('service_type', 'service_leader', 'heartbeat_timeout_in_ms', 'coordinated_jobs')
    } <= set(taken)
    job = context.coordination_config_pb2.CoordinatedJob(name='worker', num_tasks=2)
    assert (job.name, job.num_tasks) == ('worker', 2)
