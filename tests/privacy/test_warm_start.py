"""Tests of the warm start: what one record can move, the noise, the fit."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from tf_efsgd.data import load
from tf_efsgd.models.generator import build_generator, draw_inputs
from tf_efsgd.privacy import grid, noise, warm_start

_SHAPE = (8, 8, 1)
_CLASSES = 3


@pytest.fixture(scope='module')
def features():
    return warm_start.FeatureMap(_SHAPE)


def _release(images, labels, features, noise_multiplier=0.0, source=None):
    """F in its own unit, from the released integers."""
    labels = np.asarray(labels, np.int32)
    source = source or noise.NoiseKey()
    sums = warm_start.release(images, labels, _CLASSES, features, noise_multiplier, source)
    assert sums.dtype == np.int64
    return sums * grid.class_sum_step(noise_multiplier)


def _exact(images, labels, features, noise_multiplier):
    """The sum before its noise, in steps."""
    labels = np.asarray(labels, np.int32)
    return warm_start.sum_over_records(images, labels, _CLASSES, features, noise_multiplier)


def _images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, [n, *_SHAPE]).astype(np.uint8)


@pytest.mark.parametrize('shape', [_SHAPE, (28, 28, 1), (64, 64, 3), (4, 4, 1)])
def test_features_have_norm_one_at_most_whatever_the_image(shape):
    drawn = np.random.default_rng(1).uniform(-1, 1, [3, *shape])
    extreme = np.stack([np.full(shape, v) for v in (-1.0, 1.0, 1e3, -1e3)])
    images = tf.constant(np.concatenate([drawn, extreme]), tf.float32)
    features = warm_start.FeatureMap(shape)
    norms = np.linalg.norm(features(images).numpy().astype(np.float64), axis=1)
    assert features(images).shape == [7, features.size]
    assert np.all(norms <= 1.0)
    assert norms[:3] == pytest.approx(1.0, abs=1e-3)  # Nor is room wasted.


def test_features_longer_than_one_are_cut():
    long = tf.constant([[3.0, 4.0], [0.3, 0.4]])
    assert warm_start._bounded(long).numpy() == pytest.approx(
        np.array([[0.6, 0.8], [0.3, 0.4]]), rel=2e-5
    )


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_record_that_is_not_finite_counts_as_zero_alone(features, bad):
    images = np.zeros([3, *_SHAPE], np.float32)
    good = features(tf.constant(images)).numpy()
    images[1, 2, 3] = bad
    found = features(tf.constant(images)).numpy()
    assert np.all(found[1] == 0)
    np.testing.assert_array_equal(found[[0, 2]], good[[0, 2]])


@hypothesis.given(
    seed=st.integers(0, 1000),
    label=st.integers(0, _CLASSES - 1),
    place=st.integers(0, 5),
    value=st.sampled_from(['noise', 'black', 'white']),
)
@hypothesis.settings(max_examples=15, deadline=None)
def test_one_record_moves_its_class_alone_and_by_one_at_most(features, seed, label, place, value):
    images, labels = _images(5, seed), np.arange(5, dtype=np.int32) % _CLASSES
    one = _images(1, seed + 1) if value == 'noise' else np.zeros([1, *_SHAPE], np.uint8)
    one = np.full_like(one, 255) if value == 'white' else one
    more = np.insert(images, place, one[0], axis=0), np.insert(labels, place, label)
    for sigma in (0.3, 7.0):
        moved = _exact(*more, features, sigma) - _exact(images, labels, features, sigma)
        # Exact: integers, and the bound on their squares without any rounding.
        square = int(np.sum(moved[label].astype(object) ** 2))
        assert 0.99 * (grid.STDDEV / sigma) ** 2 < square <= grid.largest_squared_norm(sigma)
        assert not np.delete(moved, label, axis=0).any()


@hypothesis.given(
    seed=st.integers(0, 1000),
    sigma=st.floats(0.25, 3000),
    length=st.floats(0.5, 3),
    one=st.booleans(),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_contributions_are_integers_within_the_bound(seed, sigma, length, one):
    # Also of features that are longer than 1, and of a single number, that rounding makes longer.
    rng = np.random.default_rng(seed)
    phi = np.eye(1, 40) if one else rng.normal(size=[5, 40])
    phi = (length * phi / np.linalg.norm(phi, axis=1, keepdims=True)).astype(np.float32)
    step, most = grid.class_sum_step(sigma), grid.largest_squared_norm(sigma)
    found = warm_start.on_grid(
        tf.constant(phi), tf.constant(step, tf.float64), tf.constant(most, tf.int64)
    ).numpy()
    squares = np.sum(found.astype(object) ** 2, axis=1)
    assert all(square <= most for square in squares)
    # No more is taken away than rounding asks for.
    wanted = np.minimum(1.0, np.linalg.norm(phi.astype(float), axis=1)) / step
    assert np.all(np.sqrt(squares.astype(float)) >= wanted * (1 - 1e-4) - 4)
    # A bound of which rounding up alone takes a record beyond it is kept too.
    tight = np.full([1, 64], 0.125, np.float32)
    step = tf.constant(0.25 - 1e-9, tf.float64)
    kept = warm_start.on_grid(tf.constant(tight), step, tf.constant(16, tf.int64)).numpy()
    assert np.sum(kept**2) <= 16


def test_more_features_than_are_accounted_are_refused(features, monkeypatch):
    monkeypatch.setattr(grid, 'LARGEST_FEATURES', features.size - 1)
    with pytest.raises(ValueError, match=f'Received: {features.size}'):
        _release(_images(2), [0, 1], features, 0.7)


def test_a_record_does_not_depend_on_its_place_or_its_neighbours(features):
    """Tested, not proven: a row's features are the same to the last bit wherever it stands."""
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, [512, *_SHAPE]).astype(np.uint8)
    compute = tf.function(lambda pixels: features(tf.cast(pixels, tf.float32) / 127.5 - 1.0))
    whole = compute(tf.constant(images)).numpy()
    order = rng.permutation(512)
    np.testing.assert_array_equal(compute(tf.constant(images[order])).numpy(), whole[order])
    others = images.copy()
    others[::2] = 255 - others[::2]
    np.testing.assert_array_equal(compute(tf.constant(others)).numpy()[1::2], whole[1::2])
    padded = images.copy()
    padded[100:] = 0
    np.testing.assert_array_equal(compute(tf.constant(padded)).numpy()[:100], whole[:100])


def test_the_map_is_fixed_before_it_sees_a_record(features):
    images = tf.constant(_images(4), tf.float32) / 127.5 - 1.0
    before = features(images).numpy()
    tf.random.set_seed(4711)
    np.testing.assert_array_equal(warm_start.FeatureMap(_SHAPE)(images).numpy(), before)


@pytest.mark.parametrize('make_source', [noise.NoiseKey, noise.SecureNoise])
def test_noise_has_its_scale_also_without_records(features, make_source):
    none = np.zeros([0, *_SHAPE], np.uint8)
    sums = _release(none, [], features, 0.7, make_source())
    assert sums.shape == (_CLASSES, features.size)
    n = sums.size
    error = 4 / np.sqrt(2 * n)  # Four standard deviations of a standard deviation.
    assert abs(sums.std() / 0.7 - 1) < error
    assert abs(sums.mean()) < 4 * 0.7 / np.sqrt(n)
    for wrong in (2 / 3, 3 / 2):
        assert abs(wrong * sums.std() / 0.7 - 1) > error
    other = _release(none, [], features, 0.7, make_source())
    assert abs(np.corrcoef(sums.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(n)


def test_noise_is_added_to_the_sums(features):
    images, labels = _images(6), [0, 0, 1, 1, 1, 1]

    def release(*records):
        return warm_start.release(*records, _CLASSES, features, 0.7, noise.NoiseKey(3))

    labels = np.asarray(labels, np.int32)
    moved = release(images, labels) - release(images[:0], labels[:0])
    np.testing.assert_array_equal(moved, _exact(images, labels, features, 0.7))


@pytest.mark.parametrize('n', [511, 512, 513])
def test_every_record_counts_whatever_the_parts(features, n):
    images, labels = _images(n), np.arange(n, dtype=np.int32) % _CLASSES
    true = np.zeros([_CLASSES, features.size])
    for start in range(0, n, 100):
        pixels = tf.constant(images[start : start + 100], tf.float32) / 127.5 - 1.0
        np.add.at(true, labels[start : start + 100], features(pixels).numpy().astype(np.float64))
    np.testing.assert_allclose(_release(images, labels, features), true, atol=1e-3)


def test_a_record_is_seen_alike_in_a_full_part_and_in_the_last_one(features):
    images, labels = _images(513), np.zeros(513, np.int32)
    whole = _exact(images, labels, features, 0.7)
    parts = [
        _exact(images[part], labels[part], features, 0.7) for part in (slice(512), slice(512, 513))
    ]
    np.testing.assert_array_equal(whole, sum(parts))


def test_class_means_are_means_whatever_the_size_of_a_class(features):
    images = _images(9)
    sums = _exact(images, [0, 0, 0, 0, 0, 0, 0, 1, 1], features, 0.7)
    means = warm_start.class_means(sums, 0.7, 9)
    for group in (0, 3):
        phi = features.group(tf.constant(images, tf.float32) / 127.5 - 1.0, group).numpy()
        np.testing.assert_allclose(means[group, 0], phi[:7].mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(means[group, 1], phi[7:].mean(axis=0), atol=1e-5)
    # An empty class, and one whose count noise has made negative, stay finite.
    assert np.all(means[:, 2] == 0)
    assert np.all(np.isfinite(warm_start.class_means(-sums, 0.7, 9)))


def test_mmd_loss_is_its_formula():
    # Two classes with n = 2: |m - F|^2 - sum_i |phi_i - m|^2 / (n (n - 1)), by hand:
    # class 0: m = (2, 0), F = (1, 1): 2 - (1 + 1) / 2 = 1; class 1: m = F = (0, 3): 0 - 0 = 0.
    features = tf.constant([[[1.0, 0.0], [3.0, 0.0]], [[0.0, 3.0], [0.0, 3.0]]])
    means = tf.constant([[1.0, 1.0], [0.0, 3.0]])
    assert float(warm_start.mmd_loss(features, means)) == pytest.approx(1.0)


def test_mmd_loss_is_unbiased():
    rng = np.random.default_rng(5)
    drawn = rng.normal([0.3, -0.2], 1.0, [2000, 4, 2]).astype(np.float32)
    losses = [
        float(warm_start.mmd_loss(tf.constant(d[np.newaxis]), tf.zeros([1, 2]))) for d in drawn
    ]
    expected = 0.3**2 + 0.2**2
    error = 4 * np.std(losses) / np.sqrt(len(losses))
    assert abs(np.mean(losses) - expected) < error
    # With the bias, the variance 2 / n, it would be found out.
    assert abs(np.mean(losses) + 2 / 4 - expected) > error


@pytest.mark.parametrize('num_classes, classes', [(1, 1), (2, 2), (10, 10), (25, 25), (1000, 25)])
def test_a_step_makes_about_as_many_images_whatever_the_classes(num_classes, classes):
    target = warm_start.Target(None, np.zeros([8, num_classes, 1], np.float32))
    labels = target.draw_labels(tf.constant([1, 2])).numpy()
    found, counts = np.unique(labels, return_counts=True)
    assert len(found) == classes and set(found) <= set(range(num_classes))
    assert len(set(counts)) == 1 and counts[0] >= 2
    assert len(labels) <= 100


def test_images_are_held_against_the_means_of_their_own_class(features):
    images = tf.constant(_images(_CLASSES, 5) / 127.5 - 1.0, tf.float32)
    # Of each class all images are the same, so the distance of means is that of images.
    means = np.stack([features.group(images, g).numpy() for g in range(8)])
    target = warm_start.Target(features, means)
    labels = target.draw_labels(tf.constant([1, 2]))
    right = target.distance(tf.gather(images, labels), labels, tf.constant([3, 4]))
    wrong = target.distance(tf.gather(images, (labels + 1) % 3), labels, tf.constant([3, 4]))
    assert float(right) == pytest.approx(0.0, abs=1e-5)
    assert float(wrong) > 0.1


class _Pixels:
    """Features that are the pixels, the same in every group."""

    def group(self, images, group):
        return tf.reshape(images, [tf.shape(images)[0], -1])


def _gradient(target, images, labels, seed=(1, 2)):
    images = tf.constant(images, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = target.loss(images, tf.constant(labels, tf.int32), tf.constant(seed))
    return tape.gradient(loss, images).numpy().reshape(len(labels), -1)


def _averaged(means):
    return warm_start.AveragedTarget(warm_start.Target(_Pixels(), np.asarray(means, np.float32)))


def test_the_first_step_has_the_gradient_of_the_unbiased_distance():
    means = np.random.default_rng(2).normal(size=[1, 3, 4]).astype(np.float32)
    images = tf.constant(np.random.default_rng(3).normal(size=[6, 2, 2, 1]), tf.float32)
    found = _gradient(_averaged(means), images, [2, 2, 2, 0, 0, 0])
    with tf.GradientTape() as tape:
        tape.watch(images)
        made = tf.reshape(images, [2, 3, 4])
        loss = warm_start.mmd_loss(made, tf.gather(means[0], [2, 0]))
    wanted = tape.gradient(loss, images).numpy().reshape(6, 4)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize('classes, memory', [(2, 0.8), (6, 0.8**3)])
def test_the_difference_is_an_average_over_the_steps_of_each_class(classes, memory):
    # Two of the classes have part in a step: the fewer of all, the longer ago was the last time.
    target, ones = _averaged(np.full([1, classes, 4], 0.5)), np.ones([4, 2, 2, 1])
    other = np.array([1, 1, 7, 7]).reshape(4, 1, 1, 1)
    first = _gradient(target, 3 * ones * other, [1, 1, 0, 0])
    np.testing.assert_allclose(first[:2], 2.5, rtol=1e-5)
    second = _gradient(target, 5 * ones, [1, 1, 0, 0])
    average = (memory * 2.5 + 4.5) / (memory + 1)
    np.testing.assert_allclose(second[:2], average, rtol=1e-5)
    np.testing.assert_allclose(second[2:], (memory * 20.5 + 4.5) / (memory + 1), rtol=1e-5)


def test_a_class_that_had_no_part_begins_with_its_own_difference():
    target, ones = _averaged(np.full([1, 6, 4], 0.5)), np.ones([4, 2, 2, 1])
    _gradient(target, 3 * ones, [1, 1, 0, 0])
    np.testing.assert_allclose(_gradient(target, 9 * ones, [5, 5, 2, 2]), 8.5, rtol=1e-5)


def test_a_step_counts_once_however_surely_it_is_remembered():
    """Means of many steps that stand still: the distance alone is left, no variance within it."""
    drawn = np.random.default_rng(5).normal(size=[400, 4, 2, 2, 1])
    target = _averaged(np.zeros([1, 1, 4]))
    scale = tf.Variable(1.0)  # Scales the images, whose true mean is 0: nothing should be gained.
    gradients = []
    for images in drawn:
        with tf.GradientTape() as tape:
            made = scale * tf.constant(images, tf.float32)
            loss = target.loss(made, tf.zeros([4], tf.int32), tf.constant([1, 2]))
        gradients.append(float(tape.gradient(loss, scale)))
    error = np.std(gradients) / 20
    assert abs(np.mean(gradients)) < 4 * error
    # With the variance of the mean in it, 0.2 of 2 times 4 / 4, it would be found out.
    assert abs(np.mean(gradients) + 0.4) > 4 * error


def test_a_sum_of_targets_is_the_sum_of_their_distances():
    rng = np.random.default_rng(4)
    targets = [
        warm_start.Target(_Pixels(), rng.normal(size=[1, 3, 4]).astype(np.float32))
        for _ in range(2)
    ]
    both = warm_start.SumOfTargets(targets)
    labels, seed = both.draw_labels(tf.constant([1, 2])), tf.constant([3, 4])
    images = tf.constant(rng.normal(size=[len(labels), 2, 2, 1]), tf.float32)
    parts = [float(target.distance(images, labels, seed)) for target in targets]
    assert float(both.distance(images, labels, seed)) == pytest.approx(sum(parts), rel=1e-5)
    assert min(map(abs, parts)) > 0.01 * max(map(abs, parts))  # Both count.


def test_a_fit_to_two_targets_comes_near_both():
    """Two targets that look at one half of the pixels each: none alone says all."""

    class Half(_Pixels):
        def __init__(self, first):
            self._first = first

        def group(self, images, group):
            height = images.shape[1] // 2
            half = images[:, :height] if self._first else images[:, height:]
            return super().group(half, group)

    means = [np.full([1, _CLASSES, 32], value, np.float32) for value in (0.6, -0.4)]
    targets = [warm_start.Target(Half(i == 0), m) for i, m in enumerate(means)]
    generator = build_generator(_SHAPE, _CLASSES, latent_dim=4, width=8)
    generator.set_weights(warm_start.fit(generator, draw_inputs, targets, steps=120))
    drawn = draw_inputs(generator, tf.constant([0, 1, 2] * 20), tf.constant([1, 2]))
    made = generator(drawn).numpy()
    assert made[:, :4].mean() == pytest.approx(0.6, abs=0.1)
    assert made[:, 4:].mean() == pytest.approx(-0.4, abs=0.1)


def test_every_group_has_means_and_differences_of_its_own():
    target = _averaged(np.stack([np.zeros([1, 4]), np.full([1, 4], 8.0)]))
    ones = np.ones([2, 2, 2, 1])
    found = {round(float(_gradient(target, ones, [0, 0], (1, n))[0, 0]), 3) for n in range(12)}
    assert found == {1.0, -7.0}


def test_a_generator_learns_the_classes():
    train = load.load('digits').train
    features = warm_start.FeatureMap(train.image_shape)
    sums = warm_start.release(train.images, train.labels, 10, features, 1.0, noise.NoiseKey(7))
    means = warm_start.class_means(sums, 1.0, len(train.images))
    generator = build_generator(train.image_shape, 10, latent_dim=8, width=16)
    labels = np.repeat(np.arange(10, dtype=np.int32), 20)

    def distances():
        """Of mean images, made from true: [made class, true class]."""
        drawn = draw_inputs(generator, tf.constant(labels), tf.constant([1, 2]))
        made = generator(drawn).numpy().reshape(10, 20, -1).mean(axis=1)
        pixels = train.images.reshape(len(train.images), -1) / 127.5 - 1.0
        true = np.stack([pixels[train.labels == k].mean(axis=0) for k in range(10)])
        return np.linalg.norm(made[:, np.newaxis] - true, axis=-1)

    before = np.diag(distances()).mean()
    average = warm_start.fit(
        generator, draw_inputs, [warm_start.Target(features, means)], steps=150
    )
    generator.set_weights(average)
    after = distances()
    assert np.diag(after).mean() < 0.5 * before
    assert np.mean(after.argmin(axis=1) == np.arange(10)) >= 0.9


def test_the_fit_is_repeatable(features):
    target = warm_start.Target(features, np.zeros([8, _CLASSES, features.group_size], np.float32))

    def fitted(seed):
        tf.keras.utils.set_random_seed(1)
        generator = build_generator(_SHAPE, _CLASSES, latent_dim=4, width=8)
        return warm_start.fit(generator, draw_inputs, [target], steps=3, seed=seed)

    first, again, other = fitted(2), fitted(2), fitted(3)
    for a, b in zip(first, again):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert any(np.max(np.abs(a - b)) > 1e-4 for a, b in zip(first, other))


class _PowerCut(Exception):
    pass


def _fitted(folder, *, cut_after=None, **how):
    """Six steps, with a checkpoint after every second; returns the weights and which ran."""
    means = np.random.default_rng(5).normal(size=[1, _CLASSES, 64]).astype(np.float32)
    tf.keras.utils.set_random_seed(1)
    generator = build_generator(_SHAPE, _CLASSES, latent_dim=4, width=8)
    ran = []

    def numbers(steps):
        for number in steps:
            if len(ran) == cut_after:
                raise _PowerCut
            ran.append(number)
            yield number

    how = {'steps': 6, 'checkpoint_steps': 2, 'checkpoint_dir': folder, **how}
    targets, weights = [warm_start.Target(_Pixels(), means)], None
    try:
        weights = warm_start.fit(generator, draw_inputs, targets, progress=numbers, **how)
    except _PowerCut:
        pass
    return weights, ran


@pytest.fixture(scope='module')
def whole_fit():
    weights, ran = _fitted(None)
    assert ran == [0, 1, 2, 3, 4, 5]
    return weights


def _assert_same(weights, others):
    for a, b in zip(weights, others):
        np.testing.assert_allclose(a, b, atol=1e-6)


# Checkpoints follow steps 0, 2, 4 and the last, 5.
@pytest.mark.parametrize('cut_after, goes_on_at', [(2, 1), (5, 5)])
def test_a_fit_that_was_cut_short_goes_on_as_if_it_had_not_been(
    whole_fit, tmp_path, cut_after, goes_on_at
):
    weights, ran = _fitted(tmp_path, cut_after=cut_after)
    assert weights is None and len(ran) == cut_after
    weights, ran = _fitted(tmp_path)
    assert ran == list(range(goes_on_at, 6))
    _assert_same(weights, whole_fit)
    weights, ran = _fitted(tmp_path)  # Once more: it is done.
    assert ran == []
    _assert_same(weights, whole_fit)


def test_a_fit_goes_on_from_no_other_fits_checkpoint(tmp_path):
    _fitted(tmp_path)
    for other in ({'steps': 5}, {'seed': 3}, {'first_step': 6}, {'learning_rate': 1e-3}):
        _, ran = _fitted(tmp_path, cut_after=1, **other)
        assert ran == [other.get('first_step', 0)]


@pytest.mark.parametrize('what', ['*.index', '*.data-*', 'checkpoint'])
def test_a_damaged_checkpoint_of_a_fit_is_not_used(whole_fit, tmp_path, capfd, what):
    _fitted(tmp_path, cut_after=5)
    (path,) = tmp_path.glob(f'*/{what}')
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    weights, ran = _fitted(tmp_path)
    assert ran == [0, 1, 2, 3, 4, 5]
    assert ('is damaged: the fit starts anew' in capfd.readouterr().out) == (what != 'checkpoint')
    _assert_same(weights, whole_fit)


def test_groups_stand_for_the_kernels(features):
    # exp(-|a - b|^2 / (2 bandwidth^2)) on pixels in [0, 1], whole and, the mean, in windows.
    images = _images(2, 8).astype(np.float32) / 255
    images = images[:1] + 0.6 * (images - images[:1])  # Near each other, as images of a class.

    def kernel(a, b):
        return np.exp(-np.sum((a - b) ** 2) / (2 * 0.18**2 * a.size))

    corners = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)]
    windows = [images[:, y : y + 4, x : x + 4] for y, x in corners]
    wanted = (kernel(*images) + np.mean([kernel(*w) for w in windows])) / 2
    assert 0.05 < wanted < 0.8
    found = []
    for group in range(8):
        phi = features.group(tf.constant(2 * images - 1), group).numpy()
        found.append(phi[0] @ phi[1])
    assert np.mean(found) == pytest.approx(wanted, abs=0.02)
    assert np.mean(found) != pytest.approx(1.2 * wanted, abs=0.02)


def test_the_features_are_those_of_their_version(features):
    # What a run has released is of use to these features only: with others, count VERSION up.
    images = tf.reshape(tf.linspace(-1.0, 1.0, 64), [1, *_SHAPE])
    phi = features(images).numpy()[0]
    found = [*phi[[0, 1000, 2000, -2, -1]], phi.sum()]
    golden = [-7.24404e-3, 3.06552e-3, 4.55121e-3, 2.93692e-3, 0.099999, 12.48481]
    assert warm_start.VERSION == 3
    np.testing.assert_allclose(found, golden, rtol=1e-3)
