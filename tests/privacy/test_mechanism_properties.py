"""Properties of clipped sums and error feedback that hold for any records, however extreme.

Drawn: one to four variables, batches of 0 to 9 records, magnitudes from 1e-30 to 1e30, mixed within
a record, and records with a NaN or an infinity anywhere.

In tolerances, u = 2^-24 is the rounding of one float32 operation.
"""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.properties import PROPERTIES
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tf_efsgd.privacy import clipping, error_feedback, noise, private_step
from tf_efsgd.privacy.mechanism import Mechanism

_U = 2.0**-24
# The same examples every time, and a failure is shown as it is: shrinking takes minutes.
_PROPERTIES = settings(PROPERTIES, phases=[Phase.explicit, Phase.generate])

# Few, because each is traced once. One to four variables of 1 to 60 numbers in all.
_SHAPES = (
    ((),),
    ((7,),),
    ((), ()),
    ((3,), (2, 2)),
    ((1, 1, 2), (5,), ()),
    ((3, 2, 2), (4,), (), (1, 6)),
    ((20,), (4, 5), (2, 2, 2, 2), (4,)),
)
_BAD = (np.nan, np.inf, -np.inf)


@functools.cache
def _traced(shapes):
    """clip_and_sum as the training step traces it: any number of records, these variables.

    The clips are tensors, so that drawn ones need no new trace.
    """
    gradients = [tf.TensorSpec([None, *shape]) for shape in shapes]
    clips = [tf.TensorSpec([]), tf.TensorSpec([])]
    return tf.function(clipping.clip_and_sum, input_signature=[gradients, *clips])


def _sums(gradients, c1, c2):
    """(sum of c, sum of r), each one float64 vector over all variables."""
    shapes = tuple(g.shape[1:] for g in gradients)
    clips = [tf.constant(clip, tf.float32) for clip in (c1, c2)]
    both = _traced(shapes)([tf.constant(g) for g in gradients], *clips)
    return [_flat(sums) for sums in both]


def _flat(tensors):
    return np.concatenate([np.float64(t).ravel() for t in tensors])


def _rows(gradients, chosen):
    return [g[chosen] for g in gradients]


def _exponents(rng, batch, size, spread):
    """Logarithms: uniform from -30 to 30 between records, by `spread` more inside each."""
    record = rng.uniform(-30, 30, size=[batch, 1])
    return np.clip(record + rng.uniform(-spread, spread, size=[batch, size]), -30, 30)


@st.composite
def _batches(draw, min_records=0, max_records=9, may_be_bad=True):
    """Per-example gradients: per variable float32 [batch, *shape]; and which records are finite."""
    shapes = draw(st.sampled_from(_SHAPES))
    batch = draw(st.integers(min_records, max_records))
    spread = draw(st.sampled_from([0, 2, 60]))
    sizes = [math.prod(shape) for shape in shapes]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    numbers = 10 ** _exponents(rng, batch, sum(sizes), spread)
    # Of one sign, records add up; a tenth are zeros, now and then a whole record.
    signs = draw(st.sampled_from([(1,), (-1, 1)]))
    numbers *= rng.choice(signs, size=numbers.shape)
    numbers[rng.random(numbers.shape) < 0.1] = 0
    is_finite = np.full(batch, True)
    if may_be_bad and batch:
        for record in draw(st.sets(st.integers(0, batch - 1), max_size=3)):
            numbers[record, rng.integers(sum(sizes))] = draw(st.sampled_from(_BAD))
            is_finite[record] = False
    parts = np.split(numbers, np.cumsum(sizes)[:-1], axis=1)
    return [np.float32(p).reshape([batch, *s]) for p, s in zip(parts, shapes)], is_finite


# Clips of different sizes, the one larger or the other.
_CLIPS = st.floats(-3, 3).map(lambda exponent: float(np.float32(10**exponent)))


@st.composite
def _mechanisms(draw):
    return Mechanism(
        l2_norm_clip=draw(_CLIPS),
        noise_multiplier=10 ** draw(st.floats(-2, 2)),
        residual_l2_norm_clip=draw(_CLIPS),
        residual_share=draw(st.floats(0.001, 0.999)),
    )


# Sensitivity.


def _moved(mechanism, gradients, sums=_sums):
    """By how much the last record moves the stacked, scaled sums, times sigma: at most 1."""
    c1, c2 = mechanism.l2_norm_clip, mechanism.residual_l2_norm_clip
    with_it, without = sums(gradients, c1, c2), sums(_rows(gradients, slice(0, -1)), c1, c2)
    stddevs = mechanism.clipped_noise_stddev, mechanism.residual_noise_stddev
    stacked = [np.linalg.norm(a - b) / s for a, b, s in zip(with_it, without, stddevs)]
    return np.hypot(*stacked) * mechanism.noise_multiplier


def _sensitivity_tolerance(records):
    """What rounding adds to `_moved`, relative to its bound.

    A sum of n vectors of norm C rounds in each number by at most n u times the sum of absolute
    values there, so by at most n u times n C in norm. Two such sums are compared, and each of the
    weights and gradients in them carries some 16 roundings of its own at most.
    """
    return (2 * records**2 + 16) * _U


@settings(_PROPERTIES, max_examples=300)
@given(mechanism=_mechanisms(), batch=_batches(min_records=1, max_records=10))
def test_one_record_moves_the_scaled_sums_by_at_most_one_over_sigma(mechanism, batch):
    gradients, _ = batch
    assert _moved(mechanism, gradients) <= 1 + _sensitivity_tolerance(len(gradients[0]))


@pytest.mark.parametrize('c1, c2', [(1e-25, 1.0), (1.0, 1e-21), (1e20, 1.0), (1.0, 1e20)])
def test_clips_whose_squares_leave_float32_are_refused(c1, c2):
    # Clipping squares lengths: below 1e-19 they would pass unclipped, above 1e19 vanish.
    with pytest.raises(ValueError, match='l2_norm_clip must be between 1e-09 and 1e\\+09'):
        Mechanism(c1, 1.3, residual_l2_norm_clip=c2, residual_share=0.3)


@pytest.mark.parametrize('c1, c2', [(1e-9, 1e-9), (1e-9, 1e9), (1e9, 1e-9), (1e9, 1e9)])
@pytest.mark.parametrize('length', [1e-30, 1e-20, 1e-9, 5.0, 3e19, 1e30])
def test_the_smallest_and_largest_clips_hold(c1, c2, length):
    clipped, residual = _sums([np.float32([[length]])], c1, c2)
    np.testing.assert_allclose(clipped, [min(length, c1)], rtol=1e-5)
    assert 0 <= residual <= c2 * (1 + 1e-6)


def test_a_huge_record_uses_the_whole_sensitivity():
    # So the bound is not met by doing nothing, and the scales of the noise are right on both sides.
    gradients = [np.float32([[0.3, 0], [1e25, -2e25]]), np.float32([[0.1], [3e25]])]
    for rho in (0.001, 0.3, 0.9):
        mechanism = Mechanism(0.7, 1.3, residual_l2_norm_clip=5.0, residual_share=rho)
        assert _moved(mechanism, gradients) == pytest.approx(1.0, abs=_sensitivity_tolerance(2))


def _clipped_per_variable(gradients, c1, c2):
    parts = [_sums([g], c1, c2) for g in gradients]
    return [np.concatenate([p[i] for p in parts]) for i in range(2)]


def _averaged_before_the_clip(gradients, c1, c2):
    # As one microbatch: whose clip an extra record turns around altogether.
    mean = [g.sum(axis=0, keepdims=True) for g in gradients]
    return _sums(mean, c1, c2)


def _not_clipped_residual(gradients, c1, c2):
    clipped, _ = _sums(gradients, c1, c2)
    return clipped, _flat([g.sum(axis=0) for g in gradients]) - clipped


def _residual_clipped_to_both(gradients, c1, c2):
    return _sums(gradients, c1, c2)[0], _sums(gradients, c1, c1 + c2)[1]


@pytest.mark.parametrize(
    'wrong',
    [
        _clipped_per_variable,
        _averaged_before_the_clip,
        _not_clipped_residual,
        _residual_clipped_to_both,
    ],
)
def test_wrong_sums_exceed_the_sensitivity(wrong):
    gradients = [np.float32([[-5, 1], [30, 2]]), np.float32([[0.3], [-40]])]
    mechanism = Mechanism(0.7, 1.3, residual_l2_norm_clip=0.9, residual_share=0.3)
    assert _moved(mechanism, gradients, wrong) > 1.1
    assert _moved(mechanism, gradients) <= 1 + _sensitivity_tolerance(2)


@pytest.mark.parametrize('wrong', [0.9, 1.1])
def test_a_wrong_split_of_the_noise_would_be_seen(wrong):
    # Less noise on either sum than its share demands exceeds the bound; more of it wastes some.
    class Skewed(Mechanism):
        clipped_noise_stddev = property(lambda self: wrong * super().clipped_noise_stddev)

    gradients = [np.float32([[3e5, -4e5]])]
    skewed = Skewed(0.7, 1.3, residual_l2_norm_clip=0.9, residual_share=0.3)
    assert abs(_moved(skewed, gradients) - 1) > 0.05


# The definition.


def _by_definition(record, c1, c2):
    """c and r of privacy.md 2.3, in float64 and after scaling: of one record, a float64 vector."""
    largest = np.max(np.abs(record))
    if not np.isfinite(largest) or largest == 0:
        return np.zeros_like(record), np.zeros_like(record)
    scaled = record / largest
    c = scaled * min(largest, c1 / np.linalg.norm(scaled))
    cut = record - c
    largest_cut = np.max(np.abs(cut))
    if largest_cut <= 1e-15 * largest:  # nothing was cut: the rest is rounding
        return c, np.zeros_like(record)
    scaled = cut / largest_cut
    return c, scaled * min(largest_cut, c2 / np.linalg.norm(scaled))


def _definition_tolerance(record, c1, c2):
    """A few roundings of the length that is clipped; g - c cancels, so r rounds as g does.

    Norms of up to 60 numbers, a division, two products: 32 u bounds them. Where nothing is clipped,
    c is g but for the rounding of its scale. Below 1e-37 numbers are subnormal and may be flushed.
    """
    length = min(np.linalg.norm(record / 1e30) * 1e30, c1 + c2)
    return 32 * _U * min(length, c1) + 1e-37, 32 * _U * length + 1e-37


def _off(parts, record, c1, c2):
    """Errors of c and of r, each over its tolerance: at most 1."""
    expected = _by_definition(record, c1, c2)
    errors = [np.linalg.norm(p - e) for p, e in zip(parts, expected)]
    return [e / t for e, t in zip(errors, _definition_tolerance(record, c1, c2))]


@settings(_PROPERTIES, max_examples=300)
@given(batch=_batches(min_records=1, max_records=1, may_be_bad=False), c1=_CLIPS, c2=_CLIPS)
def test_a_record_is_clipped_as_defined(batch, c1, c2):
    gradients, _ = batch
    record = _flat(gradients)
    assert max(_off(_sums(gradients, c1, c2), record, c1, c2)) <= 1
    # Of a record that is near its clips, where most bugs would be.
    near = (c1 + c2) / max(np.linalg.norm(record), 1e-30)
    for factor in (0.3, 0.9, 1.2):
        if np.max(np.abs(record)) * near * factor > 1e30:
            continue
        scaled = [(g.astype(np.float64) * near * factor).astype(np.float32) for g in gradients]
        assert max(_off(_sums(scaled, c1, c2), _flat(scaled), c1, c2)) <= 1


@pytest.mark.parametrize('exponent', range(-18, 19, 6))
def test_wrong_clips_are_told_from_the_definition(exponent):
    row = np.float32([[0.3, -4.0]]) * np.float32(10.0**exponent)
    gradients = [row, np.zeros([1, 2], np.float32)]
    record = _flat(gradients)
    # Clips of the size of the record, else nothing is clipped.
    c1, c2 = 0.5 * np.linalg.norm(record), 0.3 * np.linalg.norm(record)
    assert max(_off(_sums(gradients, c1, c2), record, c1, c2)) <= 1
    assert _off(_sums(gradients, 1.0001 * c1, c2), record, c1, c2)[0] > 1
    assert _off(_sums(gradients, c1, 0.9999 * c2), record, c1, c2)[1] > 1


# Batches.


def _addition_tolerance(gradients, clip):
    """Two ways to add n vectors of norm `clip` at most: each is off by n u times n clip."""
    return 2 * max(len(gradients[0]), 1) ** 2 * _U * clip


def _difference(gradients, others, c1, c2):
    """How far the sums are from the added sums of several batches, over the tolerance."""
    whole = _sums(gradients, c1, c2)
    parts = [_sums(other, c1, c2) for other in others]
    errors = [np.linalg.norm(w - np.sum(p, axis=0)) for w, p in zip(whole, zip(*parts))]
    return [e / _addition_tolerance(gradients, c) for e, c in zip(errors, (c1, c2))]


@settings(_PROPERTIES, max_examples=150)
@given(batch=_batches(), c1=_CLIPS, c2=_CLIPS, data=st.data())
def test_microbatches_and_the_order_of_records_change_nothing(batch, c1, c2, data):
    gradients, _ = batch
    records = len(gradients[0])
    at = data.draw(st.integers(0, records))
    parts = [_rows(gradients, slice(0, at)), _rows(gradients, slice(at, None))]
    assert max(_difference(gradients, parts, c1, c2)) <= 1
    order = data.draw(st.permutations(range(records)))
    assert max(_difference(gradients, [_rows(gradients, list(order))], c1, c2)) <= 1


def test_a_lost_record_and_a_record_counted_twice_would_be_seen():
    gradients = [np.float32(np.linspace(1, 27, 27)).reshape(9, 3)]
    for at, again in ((4, 5), (4, 3)):
        parts = [_rows(gradients, slice(0, at)), _rows(gradients, slice(again, None))]
        assert min(_difference(gradients, parts, 0.7, 0.3)) > 1000


@settings(_PROPERTIES, max_examples=150)
@given(batch=_batches(min_records=1), c1=_CLIPS, c2=_CLIPS, bad=st.sampled_from(_BAD))
def test_a_record_that_is_not_finite_adds_zero_and_moves_no_other(batch, c1, c2, bad):
    gradients, is_finite = batch
    # At least the first.
    is_finite[0] = False
    gradients[-1].reshape(len(is_finite), -1)[0, -1] = bad
    sums = _sums(gradients, c1, c2)
    # Exactly those of a batch in which it is zero.
    zeroed = [g.copy() for g in gradients]
    for g in zeroed:
        g[~is_finite] = 0
    for actual, expected in zip(sums, _sums(zeroed, c1, c2)):
        np.testing.assert_array_equal(actual, expected)
    # Without it records are added in another order: the same but for rounding.
    assert max(_difference(gradients, [_rows(gradients, is_finite)], c1, c2)) <= 1
    for s in _sums(_rows(gradients, ~is_finite), c1, c2):
        np.testing.assert_array_equal(s, np.zeros_like(s))


def test_multiplying_a_bad_record_by_zero_would_be_seen():
    def multiplied(gradients):
        ok = np.all([np.isfinite(g).all(axis=1) for g in gradients], axis=0)
        return [g * np.float32(ok[:, None]) for g in gradients]

    gradients = [np.float32([[1.0, 2.0], [np.inf, 3.0]])]
    with np.errstate(invalid='ignore'):
        assert np.isnan(multiplied(gradients)[0].sum(axis=0)).any()
    assert np.all(np.isfinite(_sums(gradients, 0.7, 0.3)))


# Error feedback.

_STEPS = 50


@functools.cache
def _feed_back(shapes, with_clip):
    spec = [tf.TensorSpec(shape) for shape in shapes]
    number = tf.TensorSpec([])
    return tf.function(
        error_feedback.feed_back,
        input_signature=[spec, spec, number, *([number] if with_clip else [])],
    )


def _run(residuals, decay, clip, step):
    """50 steps from an empty buffer: (sum of all delivered, last buffer, largest |u| of a step)."""
    buffer = [np.zeros_like(r) for r in residuals[0]]
    delivered, largest = 0.0, 0.0
    for residual in residuals:
        largest = max(largest, np.max(np.abs(_flat(buffer) + _flat(residual))))
        given_back, buffer = step(buffer, residual, decay, *([] if clip is None else [clip]))
        delivered = delivered + _flat(given_back)
    return delivered, _flat(buffer), largest


def _lost(residuals, decay, clip, step):
    """What is neither delivered nor in the buffer, over what rounding may lose: at most 1.

    A step rounds E + R/B once and u - d once in every number, each by at most u times the largest
    |E + R/B| of the run (d lies between 0 and u). The test adds in float64.
    """
    delivered, buffer, largest = _run(residuals, decay, clip, step)
    owed = np.sum([_flat(r) for r in residuals], axis=0)
    return np.max(np.abs(delivered + buffer - owed)) / (2 * _STEPS * _U * largest)


def _noise_like(seed, shapes, exponent, drift):
    rng = np.random.default_rng(seed)
    scale = 10.0**exponent
    return [
        [np.float32(scale * (rng.normal(size=shape) + drift)) for shape in shapes]
        for _ in range(_STEPS)
    ]


@settings(_PROPERTIES, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    shapes=st.sampled_from(_SHAPES),
    exponent=st.floats(-12, 12),
    drift=st.sampled_from([0.0, 0.3, -5.0]),
    decay=st.floats(0, 0.999),
    relative_clip=st.none() | st.floats(-4, 4),
)
def test_nothing_is_lost_over_fifty_steps(seed, shapes, exponent, drift, decay, relative_clip):
    residuals = _noise_like(seed, shapes, exponent, drift)
    clip = None if relative_clip is None else 10.0 ** (exponent + relative_clip)
    step = _feed_back(shapes, clip is not None)
    assert _lost(residuals, decay, clip, step) <= 1


def _forgets(buffer, residual, decay, clip=None):
    """Keeps beta E instead of u - d: what Ce cut is lost."""
    delivered, _ = error_feedback.feed_back(buffer, residual, decay, clip)
    return delivered, [decay * (e + r) for e, r in zip(buffer, residual)]


def _keeps_back_too_much(buffer, residual, decay, clip=None):
    delivered, kept = error_feedback.feed_back(buffer, residual, decay, clip)
    return delivered, [np.float32(1 + 1e-5) * k for k in kept]


@pytest.mark.parametrize(
    'wrong, clip', [(_forgets, 0.3), (_keeps_back_too_much, None), (_keeps_back_too_much, 0.3)]
)
def test_a_buffer_that_loses_something_would_be_seen(wrong, clip):
    residuals = _noise_like(3, _SHAPES[3], 0, 0.3)
    assert _lost(residuals, 0.7, clip, error_feedback.feed_back) <= 1
    assert _lost(residuals, 0.7, clip, wrong) > 1


# The release is a function of the sums, the key and the step.


def _released(mechanism, sums, key, step, same_noise=False):
    """(A, R) from the public v and buffer of a first step: v = A/B + (1 - beta) R/B, E = beta R/B.

    B = 1 here. With `same_noise`, the mutant whose R gets the noise that A got.
    """
    step_noise = {'key': noise.NoiseKey(key).key, 'step': tf.constant(step, tf.uint64)}
    purposes = {'RESIDUAL_GRAD_SUM': noise.CLIPPED_GRAD_SUM} if same_noise else {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in purposes.items():
            patch.setattr(noise, name, value)
        sums = [[tf.constant(part, tf.float64)] for part in sums]
        buffer = [tf.zeros(sums[0][0].shape)]
        v, kept = private_step.release(mechanism, *sums, buffer, 1.0, step_noise)
    beta = mechanism.feedback_decay
    residual = np.float64(kept[0]) / beta
    return np.float64(v[0]) - (1 - beta) * residual, residual


def _correlation(one, other):
    return abs(np.dot(one, other)) / (np.linalg.norm(one) * np.linalg.norm(other))


@settings(_PROPERTIES, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    mechanism=_mechanisms(),
    key=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**40 - 1),
    bit=st.integers(0, 63),
)
def test_a_release_is_determined_by_sums_key_and_step(seed, mechanism, key, step, bit):
    # Sums of the size of the noise, so that neither hides the other.
    rng, size = np.random.default_rng(seed), 400
    stddevs = mechanism.clipped_noise_stddev, mechanism.residual_noise_stddev
    sums = [stddev * rng.normal(size=size) for stddev in stddevs]
    once = _released(mechanism, sums, key, step)
    np.testing.assert_array_equal(once, _released(mechanism, sums, key, step))
    drawn = [once[i] - sums[i] for i in range(2)]
    # Other sums, the same noise: it does not look at the records.
    other_sums = [-3 * part for part in sums]
    for a, b, moved, stddev in zip(
        _released(mechanism, other_sums, key, step), drawn, other_sums, stddevs
    ):
        np.testing.assert_allclose(a - moved, b, atol=1e-3 * (stddev + max(stddevs)))
    # Another key, whichever bit differs, or another step: another noise. Of the two sums too.
    independent = [drawn]
    for other_key, other_step in ((key ^ (1 << bit), step), (key, (step + 1) % 2**40)):
        other = _released(mechanism, sums, other_key, other_step)
        independent.append([other[i] - sums[i] for i in range(2)])
    draws = [draw for pair in independent for draw in pair]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            assert _correlation(one, other) < 0.35  # 7 standard deviations
    same = _released(mechanism, sums, key, step, same_noise=True)
    assert _correlation(same[0] - sums[0], same[1] - sums[1]) > 0.9
