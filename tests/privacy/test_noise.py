"""Tests of the noise: its law, its independence, its tail, its counters, its secret."""

import copy
import itertools
import pickle
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tf_efsgd.privacy import grid, noise

_KEY = 0x1234_5678_9ABC_DEF1
_SIZE = 20_000
_STDDEV = grid.STDDEV
# Fixed keys make the draws fixed; at this level another key fails one time in a million.
_LEVEL = 1e-6


def _draw(shape=(_SIZE,), key=_KEY, step=3, purpose=0, variable=0):
    return noise.integers(
        list(shape),
        step_noise={'key': noise.NoiseKey(key).key, 'step': tf.constant(step, tf.uint64)},
        purpose=purpose,
        variable=variable,
    ).numpy()


def _scale_p_value(sample, stddev):
    """Two-sided p-value of the variance, were `sample` N(0, stddev^2)."""
    statistic = np.sum(np.square(sample.astype(np.float64))) / stddev**2
    tail = stats.chi2(sample.size)
    return 2 * min(tail.cdf(statistic), tail.sf(statistic))


def _correlation_p_value(a, b):
    r = np.dot(a.astype(np.float64), b) / (np.linalg.norm(a) * np.linalg.norm(b))
    return 2 * stats.norm.sf(abs(r) * np.sqrt(a.size))


def test_law_and_rejection_of_wrong_scales():
    sample = _draw()
    assert sample.dtype == np.int64
    assert _scale_p_value(sample, _STDDEV) > _LEVEL
    assert stats.kstest(sample / _STDDEV, 'norm').pvalue > _LEVEL
    for wrong in (2 / 3, 3 / 2):
        assert _scale_p_value(sample * wrong, _STDDEV) < _LEVEL
        assert stats.kstest(sample * wrong / _STDDEV, 'norm').pvalue < _LEVEL


def _words(size, seed):
    words = np.random.Generator(np.random.Philox(seed)).integers(
        2**64, size=(3, size), dtype=np.uint64
    )
    return tf.constant(words)


def _parts(words):
    """The x_1 of a draw of which the other two parts are 0: words that choose them so."""
    zero = tf.fill([2, words.shape[1]], tf.constant(grid.LARGEST_PART << 52, tf.uint64))
    drawn = noise._discrete_gaussian(tf.concat([words[:1], zero], axis=0), _never)
    return drawn.numpy()


def _never():
    raise AssertionError('second words are not needed')


def _cells(scale=1.0):
    """Cells of one x_i, single values in the middle, and their probabilities at this scale."""
    edges = [-grid.LARGEST_PART - 1, *range(-450, 451, 25), grid.LARGEST_PART]
    edges = sorted({*edges, *range(-13, 14)})
    values = np.arange(-grid.LARGEST_PART, grid.LARGEST_PART + 1)
    weights = np.exp(-(values**2) / (2 * (scale * grid.PART_STDDEV) ** 2))
    cumulative = np.concatenate([[0.0], np.cumsum(weights / weights.sum())])
    at = np.array(edges) + grid.LARGEST_PART + 1
    return np.array(edges), np.diff(cumulative[at])


def _chi_square_p_value(sample, scale=1.0):
    edges, expected = _cells(scale)
    counts, _ = np.histogram(sample, bins=edges + 0.5)
    return stats.chisquare(counts, expected / expected.sum() * len(sample)).pvalue


def test_the_law_of_a_part_by_chi_square():
    sample = _parts(_words(2**21, 1))
    assert len(np.unique(sample)) > 1000
    assert _chi_square_p_value(sample) > _LEVEL
    # A law with a scale that is off by half a percent, one that is off by a value, and one whose
    # tail is cut off at 3.5 standard deviations are seen.
    assert _chi_square_p_value(sample, scale=1.005) < _LEVEL
    assert _chi_square_p_value(sample + 1) < _LEVEL
    assert _chi_square_p_value(np.clip(sample, -448, 448)) < _LEVEL


def test_a_wrong_table_is_seen(monkeypatch):
    first, second, others = grid.alias_table()
    # Columns that two values share keep 10% less of their own.
    wrong = np.where(first < 2**52, (0.9 * first).astype(np.int64), first)
    monkeypatch.setattr(grid, 'alias_table', lambda: (wrong, second, others))
    assert _chi_square_p_value(_parts(_words(2**21, 1))) < _LEVEL


def test_the_law_of_the_whole_by_chi_square():
    """Of n itself: cells of a fifth of a standard deviation, and n modulo 64 and 4096."""
    sample = np.concatenate([_draw([2**20], step=s) for s in range(4)])
    edges = np.array([-np.inf, *np.arange(-4.6, 4.61, 0.2), np.inf]) * _STDDEV
    expected = np.diff(stats.norm.cdf(np.floor(edges) + 0.5, scale=_STDDEV))

    def p_value(sample):
        counts = np.diff([np.sum(sample <= edge) for edge in edges])
        return stats.chisquare(counts, expected / expected.sum() * len(sample)).pvalue

    assert p_value(sample) > _LEVEL
    assert p_value((sample * 1.005).astype(int)) < _LEVEL
    for modulus in (64, 1000):  # Nearly uniform, since s is so large.
        counts = np.bincount(sample % modulus, minlength=modulus)
        assert stats.chisquare(counts).pvalue > _LEVEL
        assert stats.chisquare(np.bincount(2 * sample % modulus, minlength=modulus)).pvalue < _LEVEL


def test_moments():
    sample = np.concatenate([_draw([2**20], step=s) for s in range(4)]).astype(float) / _STDDEV
    # Standard errors of the mean, the skewness and the kurtosis of a normal law.
    assert abs(sample.mean()) < 5 / np.sqrt(sample.size)
    assert abs(stats.skew(sample)) < 5 * np.sqrt(6 / sample.size)
    assert abs(stats.kurtosis(sample)) < 5 * np.sqrt(24 / sample.size)


def test_a_draw_that_the_first_words_leave_open_is_decided_by_the_second():
    first, second, others = grid.alias_table()
    column = next(j for j in range(grid.LARGEST_PART, 4096) if 0 < first[j] < 2**52)
    tie = (column << 52) + int(first[column])
    middle = grid.LARGEST_PART << 52  # Its own value, 0.
    words = tf.constant([[tie, tie, middle], [middle] * 3, [middle] * 3], tf.uint64)
    asked = []

    def second_words():
        asked.append(1)
        last = int(second[column])
        return tf.constant([[last - 1, last, 7], [0] * 3, [0] * 3], tf.uint64)

    drawn = noise._discrete_gaussian(words, second_words).numpy()
    assert drawn.tolist() == [column - grid.LARGEST_PART, others[column], 0]
    assert asked == [1]


def test_second_words_are_drawn_from_counters_of_their_own(monkeypatch):
    asked = []
    real = noise.counter
    monkeypatch.setattr(noise, 'counter', lambda *where: asked.append(where[1:]) or real(*where))
    first, second, others = grid.alias_table()
    # Every first word decides nothing.
    monkeypatch.setattr(noise.tf, 'equal', lambda a, b: tf.ones_like(a, tf.bool))
    _draw([4], purpose=1, variable=5)
    assert asked == [(1, 5), (9, 5)]


def test_independence_over_purposes_variables_and_steps():
    base = {'step': 3, 'purpose': 0, 'variable': 0}
    others = [{'purpose': 1}, {'variable': 1}, {'step': 4}, {'step': 3 + 2**16}, {'key': _KEY + 1}]
    sample = _draw(**base)
    for other in others:
        assert _correlation_p_value(sample, _draw(**{**base, **other})) > _LEVEL
    # Within a draw too: neighbours, which share a block of Philox.
    assert _correlation_p_value(sample[:-1], sample[1:]) > _LEVEL
    squares = (sample / _STDDEV) ** 2 - 1
    assert _correlation_p_value(squares[0::2], squares[1::2]) > _LEVEL
    # The measure does see a shared quarter of the noise, and the same noise.
    assert _correlation_p_value(sample, sample + _draw(step=4) * 3) < _LEVEL
    assert _correlation_p_value(sample, _draw(**base)) < _LEVEL


@pytest.mark.parametrize('beyond', [4.0, 4.5])
def test_the_tail_has_the_mass_of_the_normal_law(beyond):
    size = 2**22
    sample = np.abs(np.concatenate([_draw([size], step=s) for s in range(4)])) / _STDDEV
    expected = 4 * size * 2 * stats.norm.sf(beyond)

    def p_value(count):
        law = stats.poisson(expected)
        return 2 * min(law.cdf(count), law.sf(count - 1))

    assert p_value(np.sum(sample > beyond)) > _LEVEL
    # A scale that is wrong by a tenth, or a tail cut there, would be seen.
    for wrong in (np.sum(0.9 * sample > beyond), np.sum(1.1 * sample > beyond), 0):
        assert p_value(wrong) < _LEVEL


@pytest.mark.parametrize('shape', [(), (0,), (3,), (2, 3, 1)])
def test_shape(shape):
    assert _draw(shape).shape == shape


def test_same_arguments_same_noise_inside_and_outside_a_function():
    compiled = tf.function(
        lambda step_noise: noise.integers([100], step_noise=step_noise, purpose=1, variable=2)
    )
    step_noise = {'key': noise.NoiseKey(_KEY).key, 'step': tf.constant(7, tf.uint64)}
    inside = compiled(step_noise).numpy()
    np.testing.assert_array_equal(inside, _draw([100], step=7, purpose=1, variable=2))


def test_no_counter_repeats_in_a_million():
    steps, purposes, variables = np.meshgrid(
        np.arange(31_250, dtype=np.uint64), [0, 1], np.arange(16), indexing='ij'
    )
    high = (steps << np.uint64(24)) | (purposes.astype(np.uint64) << np.uint64(20))
    high = (high | variables.astype(np.uint64)).ravel()
    assert len(high) == 10**6 == len(np.unique(high))
    for i in [0, 1, 16, 31, 32, 77_777, 999_999]:
        place = np.unravel_index(i, steps.shape)
        step, purpose, variable = (int(a[place]) for a in (steps, purposes, variables))
        counter = noise.counter(tf.constant(step, tf.uint64), purpose, variable).numpy()
        assert counter.tolist() == [0, int(high[i])]


def test_extreme_counters_keep_apart():
    top = (2**noise.STEP_BITS - 1, 2**noise.PURPOSE_BITS - 1, 2**noise.VARIABLE_BITS - 1)
    found = set()
    for i in range(8):
        step, purpose, variable = (t if i >> j & 1 else 0 for j, t in enumerate(top))
        counter = noise.counter(tf.constant(step, tf.uint64), purpose, variable).numpy()
        found.add(tuple(counter.tolist()))
    assert len(found) == 8
    assert (0, 2**64 - 1) in found


@pytest.mark.acceptance
def test_steps_draw_without_repeats():
    # A million steps of one key: four numbers of each, so that a chance repeat is no issue.
    steps = 10**6

    @tf.function
    def draw(key):
        def one(step):
            step_noise = {'key': key, 'step': tf.cast(step, tf.uint64)}
            return noise.integers([4], step_noise=step_noise, purpose=0, variable=0)

        return tf.map_fn(one, tf.range(steps), fn_output_signature=tf.int64, parallel_iterations=64)

    fours = draw(noise.NoiseKey(_KEY).key).numpy()
    assert len(np.unique(fours, axis=0)) == len(fours) == steps


def test_a_key_counts_its_steps():
    taker = noise.NoiseKey(_KEY)
    first = [tuple(_draw_from(taker.next())) for _ in range(50)]
    assert len(set(first)) == 50


@pytest.mark.parametrize('kind', ['key', 'variables', 'variables in a graph'])
def test_threads_never_get_the_same_step(kind):
    taker = noise.NoiseKey(_KEY) if kind == 'key' else noise.NoiseKeyVariables()
    take = tf.function(taker.next) if kind == 'variables in a graph' else taker.next
    take()
    taken = [[] for _ in range(4)]
    start = threading.Barrier(len(taken))

    def run(steps):
        start.wait()
        for _ in range(1000):
            steps.append(int(take()['step']))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # So often that a step without a lock is soon given twice.
    try:
        threads = [threading.Thread(target=run, args=(steps,)) for steps in taken]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert sorted(sum(taken, [])) == list(range(1, 4001))


def _draw_from(step_noise, shape=(4,)):
    return noise.integers(shape, step_noise=step_noise, purpose=0, variable=0).numpy()


@pytest.mark.parametrize('purpose, variable', [(-1, 0), (16, 0), (0, -1), (0, 2**20)])
def test_out_of_range_is_refused(purpose, variable):
    with pytest.raises(ValueError, match=f'purpose={purpose}, variable={variable}'):
        noise.counter(tf.constant(0, tf.uint64), purpose, variable)


def test_a_fork_does_not_repeat_the_noise(monkeypatch):
    taker = noise.NoiseKey(_KEY)
    taker.next()
    monkeypatch.setattr(noise.os, 'getpid', lambda: -1)
    with pytest.raises(RuntimeError, match='one process'):
        taker.next()


def test_a_used_up_key_is_refused():
    taker = noise.NoiseKey(_KEY)
    assert [int(taker.next()['step']) for _ in range(3)] == [0, 1, 2]
    taker._next_step = 2**noise.STEP_BITS
    with pytest.raises(OverflowError, match='new one'):
        taker.next()


def test_keys_are_fresh_and_64_bits():
    keys = [int(noise.NoiseKey().key[0]) for _ in range(64)]
    assert len(set(keys)) == 64
    assert max(keys) >= 2**62  # fails with probability 4^-64


@pytest.mark.parametrize('make', [lambda: noise.NoiseKey(_KEY), noise.NoiseKeyVariables])
@pytest.mark.parametrize('duplicate', [pickle.dumps, copy.copy, copy.deepcopy])
def test_keys_are_not_copied(make, duplicate):
    with pytest.raises(TypeError, match='never pickled or copied'):
        duplicate(make())


def test_repr_hides_the_key():
    for text in (repr(noise.NoiseKey(_KEY)), str(noise.NoiseKey(_KEY))):
        assert str(_KEY) not in text
        assert f'{_KEY:x}' not in text.lower()
    variables = noise.NoiseKeyVariables()
    assert str(int(variables._key)) not in repr(variables)


def test_no_graph_holds_a_key():
    def serialized(function, *args):
        return function.get_concrete_function(*args).graph.as_graph_def().SerializeToString()

    def shows(graph, key):
        value = int(key[0])
        signed = value - 2**64 if value >= 2**63 else value
        texts = [value.to_bytes(8, 'little'), str(value).encode(), str(signed).encode()]
        return any(text in graph for text in texts)

    def draw(step_noise):
        return noise.integers([5], step_noise=step_noise, purpose=0, variable=0)

    taker, variables = noise.NoiseKey(), noise.NoiseKeyVariables()
    as_argument = serialized(tf.function(draw), taker.next())
    assert not shows(as_argument, taker.key)
    as_variable = serialized(tf.function(lambda: draw(variables.next())))
    assert not shows(as_variable, variables.next()['key'])
    # The search finds a key that is in the graph. A list of integers would be rounded: NumPy makes
    # floats of one above 2^63 beside one below.
    value = np.array([int(taker.key[0]), 1], np.uint64)
    as_constant = tf.function(lambda: draw({'key': tf.constant(value)[:1], 'step': tf.constant(0)}))
    assert shows(serialized(as_constant), taker.key)


def test_key_variables_count_steps_and_differ():
    one, other = noise.NoiseKeyVariables(), noise.NoiseKeyVariables()
    take = tf.function(one.next)
    taken = [take() for _ in range(3)] + [one.next()]
    assert [int(t['step']) for t in taken] == [0, 1, 2, 3]
    assert len({int(t['key'][0]) for t in taken}) == 1
    assert int(other.next()['key'][0]) != int(taken[0]['key'][0])
    assert taken[0]['key'].dtype == taken[0]['step'].dtype == tf.uint64


@pytest.fixture(scope='module')
def secure_draws():
    return noise.SecureNoise().next([tf.TensorShape([_SIZE]), tf.TensorShape([2, 3])])


def test_secure_noise_has_the_law_of_the_other(secure_draws):
    for purpose in (noise.CLIPPED_GRAD_SUM, noise.RESIDUAL_GRAD_SUM):
        sample = noise.integers(
            [_SIZE], step_noise=secure_draws, purpose=purpose, variable=0
        ).numpy()
        assert sample.dtype == np.int64
        # Fresh at every run: these hold but for one run in a million, each.
        assert _scale_p_value(sample, _STDDEV) > _LEVEL
        assert stats.kstest(sample, stats.norm(scale=_STDDEV).cdf).pvalue > _LEVEL
        for wrong in (2 / 3, 3 / 2):
            assert _scale_p_value(sample * wrong, _STDDEV) < _LEVEL
        assert _correlation_p_value(sample[0::2], sample[1::2]) > _LEVEL
    shape = noise.integers([2, 3], step_noise=secure_draws, purpose=1, variable=1).shape
    assert shape == (2, 3)


def test_secure_noise_is_fresh_for_every_purpose_and_step(secure_draws):
    again = noise.SecureNoise().next([tf.TensorShape([_SIZE])])
    samples = [of_purpose[0].numpy() for of_purpose in secure_draws['draws'] + again['draws']]
    for one, other in itertools.combinations(samples, 2):
        assert _correlation_p_value(one, other) > _LEVEL


def test_secure_noise_is_all_the_operating_systems_bits(monkeypatch):
    asked = []

    def all_zero(count):
        asked.append(count)
        return bytes(count)

    monkeypatch.setattr(noise.os, 'urandom', all_zero)
    drawn = noise.SecureNoise().next([tf.TensorShape([5])])['draws'][0][0].numpy()
    # Three words of 8 bytes a number, for either purpose. The first 52 bits of column 0's threshold
    # are 0, too, so the second words decide: for the other value.
    assert asked == [3 * 5 * 8] * 4
    assert set(drawn.tolist()) == {int(grid.alias_table()[2][0]) * sum(grid.SCALES)}


def test_rounding_to_the_grid():
    total = tf.constant([0.26, -0.26, 0.1, 1e300, -1e300, float('nan')], tf.float64)
    rounded = noise.to_grid(total, 0.1)
    assert rounded.dtype == tf.int64
    # What leaves the integers is cut off, so that noise still fits; what is no number is nothing.
    assert rounded.numpy().tolist() == [3, -3, 1, 2**62, -(2**62), 0]
    np.testing.assert_array_equal(noise.from_grid(rounded[:2], 0.1), np.float32([0.3, -0.3]))


# Random inputs of records.


def _rows(count=40, shape=(3, 5), key=_KEY, step=3, variable=0, replica=0, first_row=0):
    return noise.normals_of_records(
        tf.constant(count),
        list(shape),
        step_noise={'key': noise.NoiseKey(key).key, 'step': tf.constant(step, tf.uint64)},
        variable=variable,
        replica=replica,
        first_row=first_row,
    ).numpy()


def test_rows_of_records_are_standard_normal_and_independent():
    sample = _rows(_SIZE // 15)
    assert sample.shape == (_SIZE // 15, 3, 5) and sample.dtype == np.float32
    flat = sample.ravel()
    assert _scale_p_value(flat, 1.0) > _LEVEL
    assert stats.kstest(flat, 'norm').pvalue > _LEVEL
    for wrong in (2 / 3, 3 / 2):
        assert _scale_p_value(flat * wrong, 1.0) < _LEVEL
    # From row to row, as every record must have its own.
    assert _correlation_p_value(sample[:-1].ravel(), sample[1:].ravel()) > _LEVEL
    others = [{'step': 4}, {'variable': 1}, {'replica': 1}, {'replica': 2**15}, {'key': _KEY + 1}]
    for other in [*others, {'first_row': len(sample)}]:
        assert _correlation_p_value(flat, _rows(len(sample), **other).ravel()) > _LEVEL
    assert _correlation_p_value(flat, _rows(len(sample)).ravel()) < _LEVEL


@pytest.mark.parametrize('shape', [(), (3,), (4,), (3, 5)])
def test_a_row_does_not_depend_on_how_the_batch_is_split(shape):
    whole = _rows(7, shape)
    parts = [_rows(count, shape, first_row=first) for first, count in ((0, 3), (3, 4), (7, 0))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert len(np.unique(whole)) == whole.size


def test_rows_of_records_share_no_counter_with_the_noise():
    # The DP noise of a step and its rows are read off one key: no block may be read twice.
    drawn = [_rows(5, [8], replica=r, variable=v) for r in (0, 1, 2**16 - 1) for v in (0, 1)]
    key = noise.NoiseKey(_KEY).key
    for purpose in (noise.CLIPPED_GRAD_SUM, noise.RESIDUAL_GRAD_SUM):
        at = noise.counter(tf.constant(3, tf.uint64), purpose, 0)
        drawn.append(
            tf.raw_ops.StatelessRandomNormalV2(shape=[5, 8], key=key, counter=at, alg=1).numpy()
        )
    numbers = np.concatenate([d.ravel() for d in drawn])
    assert len(np.unique(numbers)) == len(numbers) == 320
    assert noise.INPUTS_OF_RECORDS not in (noise.CLIPPED_GRAD_SUM, noise.RESIDUAL_GRAD_SUM)


def test_secure_rows_are_fresh_and_of_the_operating_system(secure_draws, monkeypatch):
    draw = tf.function(
        lambda count: noise.normals_of_records(count, [4], step_noise=secure_draws, variable=0)
    )
    one, other = (draw(tf.constant(3_000)).numpy() for _ in range(2))
    assert one.shape == (3_000, 4) and one.dtype == np.float32
    assert _scale_p_value(one.ravel(), 1.0) > _LEVEL
    assert _correlation_p_value(one.ravel(), other.ravel()) > _LEVEL
    assert draw(tf.constant(0)).shape == (0, 4)
    monkeypatch.setattr(noise.os, 'urandom', bytes)
    np.testing.assert_allclose(draw(tf.constant(2)), 2 * 8.5717, rtol=1e-4)
