"""Two and three replicas make together what one device makes: shares, the fit, both GANs."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_gan, tiny_heads, tiny_run
from helpers.pairs import pairs
from helpers.small_images import CLASSES, SHAPE, PixelFeatures

from tf_efsgd import replicas
from tf_efsgd.models import public_heads
from tf_efsgd.models.generator import build_generator, draw_inputs
from tf_efsgd.privacy.noise import NoiseKey
from tf_efsgd.training import fit as fitting
from tf_efsgd.training import targets as fit_targets


@pytest.fixture(scope='module')
def inputs():
    return tiny_heads.head_inputs(tiny_heads.small_network())


def _copies(strategy, value):
    return [copy.numpy() for copy in strategy.experimental_local_results(value)]


def _assert_same_everywhere(strategy, variables):
    for variable in variables:
        first, *others = _copies(strategy, variable)
        assert len(others) == strategy.num_replicas_in_sync - 1
        for other in others:
            np.testing.assert_array_equal(first, other)


def _assert_near(states, others, atol=1e-5):
    for one, other in pairs(states, others):
        np.testing.assert_allclose(one, other, atol=atol)


# Shares of what a step makes.


@pytest.mark.parametrize('total', [1, 2, 3, 7])
def test_every_image_is_in_one_share_and_none_is_empty(several, total):
    @tf.function
    def shares():
        return several.run(lambda: tuple(vars(replicas.Share.of(tf.constant(total))).values()))

    rows, weights, totals = (_copies(several, value) for value in shares())
    assert len({len(r) for r in rows}) == 1 and len(rows[0]) >= 1
    counted = np.concatenate([r[w > 0] for r, w in zip(rows, weights)])
    assert sorted(counted) == list(range(total))
    assert set(np.concatenate(weights)) <= {0.0, 1.0} and set(map(int, totals)) == {total}


def test_sums_of_all_types_and_shapes_come_back_in_place(several):
    def add():
        own = tf.distribute.get_replica_context().replica_id_in_sync_group + 1
        values = [tf.ones([2, 3]), tf.constant([0.5, 2.0], tf.float64), tf.fill([4], 7)]
        values = [values[0], {'a': values[1], 'b': [values[2], tf.constant(2.0)]}]
        return tf.nest.map_structure(lambda v: v * tf.cast(own, v.dtype), values)

    found = tf.function(lambda: several.run(lambda: replicas.all_reduce(add())))()
    total = sum(range(several.num_replicas_in_sync + 1))
    for copy in range(several.num_replicas_in_sync):
        ones, named = tf.nest.map_structure(lambda v, i=copy: _copies(several, v)[i], found)
        np.testing.assert_array_equal(ones, np.full([2, 3], total))
        np.testing.assert_array_equal(named['a'], [0.5 * total, 2.0 * total])
        np.testing.assert_array_equal(named['b'][0], [7 * total] * 4)
        assert named['b'][1] == 2 * total


def test_all_tensors_of_a_type_are_added_up_by_one_collective(strategy):
    tensors = [tf.ones([3]), tf.ones([2, 2]), tf.ones([5], tf.float64), tf.ones([], tf.float64)]
    step = tf.function(lambda: strategy.run(lambda: replicas.all_reduce(list(tensors))))
    graph = step.get_concrete_function().graph
    collectives = [op for op in graph.get_operations() if op.type.startswith('CollectiveReduce')]
    assert len(collectives) == 2 * strategy.num_replicas_in_sync


# Targets.


def _target(kind, classes=CLASSES):
    rng = np.random.default_rng(4)
    target, other = (
        fit_targets.Target(PixelFeatures(), rng.normal(size=[1, classes, 4]).astype(np.float32))
        for _ in range(2)
    )
    if kind == 'averaged':
        return fit_targets.AveragedTarget(target)
    return fit_targets.SumOfTargets([target, other]) if kind == 'sum' else target


def _gradients(strategy, kind, num_images):
    """Of the images of three steps one after the other; and what is remembered then."""
    with strategy.scope():
        target = _target(kind)
    loss_of = target.loss if kind == 'averaged' else target.distance
    rng = np.random.default_rng(3)
    found, losses = [], []

    def of_replica(images, labels):
        share = replicas.Share.of(tf.size(labels))
        own = replicas.own_rows(share, images)
        with tf.GradientTape() as tape:
            tape.watch(own)
            loss = loss_of(own, labels, tf.constant([1, 2]), share)
        gradient = tape.gradient(loss, own)
        if share is not None:
            gradient = tf.scatter_nd(share.rows[:, tf.newaxis], gradient, tf.shape(images))
        return replicas.all_reduce(tf.ensure_shape(gradient, [num_images, 2, 2, 1])), loss

    step = tf.function(lambda *args: strategy.run(of_replica, args=args))
    for classes in ([2, 0, 1], [0, 1, 2], [1, 2, 0]):
        images = tf.constant(rng.normal(size=[num_images, 2, 2, 1]), tf.float32)
        labels = tf.repeat(tf.constant(classes), num_images // CLASSES)
        gradient, loss = step(images, labels)
        found.append(_copies(strategy, gradient)[0])
        losses += _copies(strategy, loss)
    variables = [] if kind != 'averaged' else target.variables
    _assert_same_everywhere(strategy, variables)
    return [*found, *(v.numpy() for v in variables)], losses[:: strategy.num_replicas_in_sync]


@pytest.mark.parametrize('kind', ['plain', 'averaged', 'sum'])
def test_shares_of_the_images_have_the_gradient_of_all(several, kind):
    ours = 99
    one = _gradients(tf.distribute.get_strategy(), kind, ours)
    found = _gradients(several, kind, ours)
    for a, b in pairs(one, found):
        _assert_near(a, b)


# The fit.


def _fit(strategy, folder=None, cut_after=None):
    means = np.random.default_rng(5).normal(size=[1, CLASSES, 64]).astype(np.float32)
    tf.keras.utils.set_random_seed(1)
    with strategy.scope():
        generator = build_generator(SHAPE, CLASSES, latent_dim=4, width=8)

    def numbers(steps):
        for number in steps:
            if number == cut_after:
                raise tiny_run.PowerCut
            yield number

    return fitting.fit(
        generator,
        draw_inputs,
        [fit_targets.Target(PixelFeatures(), means)],
        steps=6,
        # Small steps: where a gradient is next to nothing, Adam's go by its sign.
        learning_rate=4e-4,
        seed=3,
        checkpoint_dir=folder,
        checkpoint_steps=2,
        progress=numbers,
        strategy=strategy,
    )


@pytest.fixture(scope='module')
def fitted_by_one():
    return _fit(tf.distribute.get_strategy())


def test_a_fit_by_several_is_that_of_one_device(several, fitted_by_one):
    _assert_near(_fit(several), fitted_by_one)
    tf.keras.utils.set_random_seed(1)
    before = build_generator(SHAPE, CLASSES, latent_dim=4, width=8).get_weights()
    moved = max(np.abs(a - b).max() for a, b in pairs(fitted_by_one, before))
    assert moved > 1e-3


@pytest.mark.parametrize('first_by', ['one', 'two'])
def test_a_fit_continues_on_another_number_of_replicas(strategy, fitted_by_one, tmp_path, first_by):
    strategies = [tf.distribute.get_strategy(), strategy]
    first, second = strategies if first_by == 'one' else strategies[::-1]
    with pytest.raises(tiny_run.PowerCut):
        _fit(first, tmp_path, cut_after=3)
    assert list(tmp_path.glob('*/*.index'))
    _assert_near(_fit(second, tmp_path), fitted_by_one)


# The GANs.


def _shares(strategy, samples):
    """Of every sample each replica gets a part of its own, some of them none."""
    count = strategy.num_replicas_in_sync
    signature = tuple(
        tf.TensorSpec([None, *values.shape[1:]], values.dtype) for values in samples[0]
    )

    def parts():
        for records, labels in samples:
            for replica in range(count):
                own = np.arange(len(labels)) % (count + 1) % count == replica  # 0 has more.
                yield records[own], labels[own]

    def dataset(_=None):
        return tf.data.Dataset.from_generator(parts, output_signature=signature)

    return strategy.distribute_datasets_from_function(dataset) if count > 1 else dataset()


def _trained(strategy, make, samples):
    """The state of a GAN after as many steps as there are samples."""
    with strategy.scope():
        gan = make()
    gan.fit(_shares(strategy, samples), steps_per_epoch=len(samples), verbose=0)
    assert int(gan.generator_steps.numpy()) == len(samples)
    variables = [*gan.private_variables, *gan.generator.trainable_variables]
    _assert_same_everywhere(strategy, variables)
    slots = gan.discriminator_optimizer.variables()
    return [v.numpy() for v in [*variables, *gan.ema_generator.weights, *slots]]


def _sgd():
    # Adam's first steps go by the sign of a gradient alone.
    return tf.keras.optimizers.legacy.SGD(0.05)


@pytest.mark.parametrize('total', [1, 5])
def test_shares_of_generated_images_are_those_of_one_device(three_replicas, inputs, total):
    """Of one, two replicas make none; no network may be run on none."""

    def shares(strategy):
        with strategy.scope():
            gan = tiny_heads.build(inputs, shape=tiny_heads.SMALL_SHAPE)
        gan._generated_per_step = total
        made = tf.function(lambda: strategy.run(gan._generate_share))()
        return [_copies(strategy, values) for values in made]

    (seen,), (labels,) = shares(tf.distribute.get_strategy())
    parts, labels_of_parts = shares(three_replicas)
    for replica in range(3):
        assert parts[replica].shape == seen[replica::3].shape
        np.testing.assert_allclose(parts[replica], seen[replica::3], atol=1e-5)
        np.testing.assert_array_equal(labels_of_parts[replica], labels[replica::3])


def _compare_heads(strategy, inputs, noise_multiplier, generated):
    images, labels = tiny_heads.records(40, shape=tiny_heads.SMALL_SHAPE)
    seen = public_heads.record_features(inputs, images)
    samples = [(seen[:size], labels[:size]) for size in (25, 0, 1, 31)]
    shape = [1, tiny_heads.CLASSES, tiny_heads.SmallFeatures.size]
    means = np.random.default_rng(5).normal(size=shape).astype(np.float32)

    def make():
        gan = tiny_heads.make(
            inputs,
            noise_multiplier,
            'private',
            shape=tiny_heads.SMALL_SHAPE,
            generator_optimizer=_sgd(),
            generated=generated,
            noise=NoiseKey(7),
        )
        gan.follow(tiny_heads.averaged_target(tiny_heads.SmallFeatures(), means), 0.5)
        return gan

    one = _trained(tf.distribute.get_strategy(), make, samples)
    _assert_near(one, _trained(strategy, make, samples))
    start = make()
    before = [v.numpy() for v in [*start.private_variables, *start.generator.trainable_variables]]
    assert max(np.abs(a - b).max() for a, b in zip(before, one)) > 1e-2


@pytest.mark.acceptance
def test_two_replicas_train_heads_as_one_device_with_the_noise_of_one(strategy, inputs):
    _compare_heads(strategy, inputs, noise_multiplier=0.4, generated=5)


@pytest.mark.acceptance
def test_three_replicas_train_heads_as_one_device_with_fewer_images_than_replicas(
    three_replicas, inputs
):
    _compare_heads(three_replicas, inputs, noise_multiplier=0.0, generated=1)


@pytest.mark.acceptance
def test_three_replicas_train_pixels_as_one_device(three_replicas):
    def make():
        gan = tiny_gan.make(
            tiny_gan.private(noise_multiplier=0.0),
            discriminator_steps=1,
            generator_optimizer=_sgd(),
        )
        means = np.random.default_rng(5).normal(size=[1, CLASSES, 64]).astype(np.float32)
        gan.set_target(fit_targets.Target(PixelFeatures(), means), 0.3)
        return gan

    samples = tiny_gan.samples((5, 0, 1))
    one = _trained(tf.distribute.get_strategy(), make, samples)
    _assert_near(one, _trained(three_replicas, make, samples))


# Looking at records once.


@pytest.mark.parametrize(
    'make_strategy',
    [
        tf.distribute.get_strategy,
        lambda: tf.distribute.OneDeviceStrategy('CPU:0'),
        lambda: tf.distribute.MirroredStrategy(['CPU:0']),
    ],
)
def test_one_replica_is_one_device(make_strategy):
    alone = make_strategy()
    with alone.scope():
        variable = tf.Variable(tf.zeros([2, 3]), trainable=False)

    def step():
        assert replicas.Share.of(tf.constant(3)) is None
        replicas.scatter_update(variable, tf.constant([[1]]), tf.ones([1, 3]))
        return replicas.all_reduce(tf.ones([2]))

    found = tf.function(lambda: alone.run(step), autograph=False)()
    np.testing.assert_array_equal(alone.experimental_local_results(found)[0], [1, 1])
    np.testing.assert_array_equal(variable.numpy(), [[0, 0, 0], [1, 1, 1]])
    part = (np.ones([2], np.float32),)
    np.testing.assert_array_equal(
        list(replicas.map_parts(lambda x: 2 * x, [part], part, alone)), [[2, 2]]
    )


@pytest.mark.parametrize('differ', [False, True])
def test_parts_are_spread_over_replicas_that_make_the_same_of_them(several, differ):
    """Else what is made of a record would depend on how many stand before it."""
    parts = [(np.full([2], float(number), np.float32),) for number in range(7)]

    def function(values):
        in_replica = tf.distribute.get_strategy().num_replicas_in_sync > 1
        own = tf.distribute.get_replica_context().replica_id_in_sync_group
        off = 1e-6 * tf.cast(own, tf.float32) if in_replica and differ else 0.0
        spread.append(in_replica)
        return values * 3.0 + off

    spread = []
    found = list(replicas.map_parts(function, iter(parts), parts[1], several))
    np.testing.assert_array_equal(found, [3.0 * part for (part,) in parts])
    # The first call is the trial.
    assert spread[0] and spread[-1] == (not differ)


@pytest.mark.parametrize('n', [1, 5, 600])
def test_features_of_records_are_the_same_on_several(several, inputs, n):
    images, _ = tiny_heads.records(n, shape=tiny_heads.SMALL_SHAPE)
    one = public_heads.record_features(inputs, images)
    found = public_heads.record_features(inputs, images, strategy=several)
    np.testing.assert_array_equal(one, found)
