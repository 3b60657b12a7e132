"""Both forms of a norm agree, whatever the size of what goes in."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.layer_gradients import (
    KERAS,
    MODES,
    assert_equal,
    by_layer,
    draw,
    losses_along,
    model_of,
    model_of_images,
    of_gradients,
    one_by_one,
    weights_of,
)
from helpers.pairs import pairs

from tf_efsgd.privacy import clipping, layer_norms
from tf_efsgd.privacy.layer_norms import rule


@pytest.mark.parametrize('shape', [(5, 2), (3, 3)])
@pytest.mark.parametrize(('groups', 'positions'), [(1, 1), (1, 3), (2, 1), (3, 4)])
def test_both_forms_agree(monkeypatch, groups, positions, shape):
    monkeypatch.setattr(rule, '_GRAM_ADVANTAGE', np.inf)
    rng = np.random.default_rng(4)
    a, g = (np.float32(rng.normal(size=[3, groups, positions, n])) for n in shape)
    variable = tf.Variable(tf.zeros([groups, *shape]))
    gram, direct = (
        layer_norms.Products(variable, tf.constant(a), tf.constant(g), lambda sums: sums, direct)
        for direct in (False, True)
    )
    assert gram._products is None and direct._products is not None
    wanted = of_gradients([np.einsum('bntm,bntp->bnmp', a, g)])
    for part in (gram, direct, gram.exact(), direct.exact()):
        sums = part.weighted_sums(tf.constant(weights_of(3)))
        assert_equal((np.sqrt(part.squared_norms()), sums), wanted)


@pytest.mark.parametrize('mode', MODES)
def test_gradients_of_any_size(mode):
    model = model_of_images()
    records, directions = draw(model, 3)
    variables = model.trainable_variables
    wanted, _, _ = one_by_one(model, records, directions)

    def norms_of(scales):
        parts = layer_norms.gradients_by_layer(
            model, lambda: losses_along(model, records, directions) * scales, variables
        )
        return clipping.BatchGradients(parts, variables).norms

    norms_of = MODES[mode](norms_of)
    for scales in (
        (1, 0, 1),
        (0, 0, 0),
        (1, 1e-15, 1),
        (1, 1, 1e25),
        (1e-25, 1, 1e25),
        (1e25, 0, 1e-13),
    ):
        norms = norms_of(tf.constant(scales, tf.float32))
        # Below 1e-22 a square vanishes, and the example counts as zero.
        np.testing.assert_allclose(
            norms,
            wanted * np.float64(np.float32(scales)),
            rtol=1e-5,
            atol=1e-22,
            err_msg=str(scales),
        )


@pytest.mark.parametrize('scale', [1e-25, 1e-15, 1e15, 1e25])
def test_clip_and_sum_with_a_record_of_any_size(scale):
    model = model_of_images()
    records, directions = draw(model, 3)
    scales, variables = np.float32([1, scale, 1]), model.trainable_variables

    def losses_of():
        return losses_along(model, records, directions) * scales

    gradients = clipping.BatchGradients(
        layer_norms.gradients_by_layer(model, losses_of, variables), variables
    )
    weights = tf.stack(clipping.clip_weights(gradients.norms, 0.7, 0.3))
    wanted = clipping.clip_and_sum(
        clipping.per_example_gradients(
            lambda record: losses_along(model, record[0][None], record[1][None])[0] * record[2],
            (tf.constant(records), directions, scales),
            variables,
        ),
        0.7,
        0.3,
    )
    for actual, (clipped, residual) in pairs(gradients.weighted_sums(weights), pairs(*wanted)):
        np.testing.assert_allclose(actual[0], clipped, rtol=0, atol=1e-5)
        np.testing.assert_allclose(actual[1], residual, rtol=0, atol=1e-5)


@pytest.mark.parametrize('mode', MODES)
def test_positions_that_cancel(mode):
    # A^T G = a (g - (1 + 2^-13) g)^T: its square is 1e-8 of |A|^2 |G|^2, a tenth of a rounding.
    a = np.float32([1, 0.5, 0.25, 2, 1, 0.5, 1, 0.25])
    inputs = tf.constant(np.stack([[a, a], [a, 2 * a]])[:, np.newaxis])
    gradients = tf.constant(np.stack([[a, -a * np.float32(1 + 2**-13)]] * 2)[:, np.newaxis])
    variable = tf.Variable(tf.zeros([8, 8]))
    wanted = [np.dot(a, a) * 2**-13, np.dot(a, a) * (1 + 2**-12)]

    def norms_of(inputs, gradients):
        part = layer_norms.Products(variable, inputs, gradients, lambda sums: sums[:, 0])
        assert part._products is None
        batch = clipping.BatchGradients([part], [variable])
        sums = batch.weighted_sums(tf.constant([[1.0, 0.0]]))
        return part.squared_norms(), part.is_exact(), batch.norms, sums[0][0]

    _, is_exact, norms, total = MODES[mode](norms_of)(inputs, gradients)
    np.testing.assert_array_equal(is_exact, [False, True])
    np.testing.assert_allclose(norms, wanted, rtol=1e-6)
    np.testing.assert_allclose(total, np.outer(a, a) * -(2.0**-13), rtol=1e-6)


@pytest.mark.parametrize(('positions', 'dtype'), [(16, tf.float32), (49, tf.float64)])
def test_a_gram_form_that_is_trusted_is_right_to_a_share_of_the_slack(positions, dtype):
    # Pairs of positions cancel but for a part that shrinks from record to record.
    draws = np.random.default_rng(4)
    kept = np.float32(2.0 ** -np.linspace(0, 12, 40))[:, np.newaxis, np.newaxis]
    a = np.abs(draws.normal(size=[40, 1, positions, 512])).astype(np.float32)
    g = draws.normal(size=[40, positions, 64]).astype(np.float32)
    half = positions // 2
    a[:, 0, half : 2 * half] = a[:, 0, :half]
    g[:, half : 2 * half] = -g[:, :half] * (1 - kept)
    g[:, 2 * half :] = 0
    g = g[:, np.newaxis]
    part = layer_norms.Products(
        tf.Variable(tf.zeros([512, 64])), tf.constant(a), tf.constant(g), lambda sums: sums[:, 0]
    )
    found, trusted = part.squared_norms().numpy(), part.is_exact().numpy()
    assert part._products is None and part._gram[0].dtype == dtype
    true = np.linalg.norm(
        np.einsum('btm,btp->bmp', a[:, 0].astype(np.float64), g[:, 0].astype(np.float64)),
        axis=(1, 2),
    )
    assert np.abs(np.sqrt(found[trusted]) / true[trusted] - 1).max() < 2**-9
    assert trusted[:5].all()
    if dtype == tf.float32:
        assert not trusted[-5:].any()


@pytest.mark.parametrize('strange', ['cancels', 'is not finite'])
@pytest.mark.parametrize('mode', MODES)
def test_a_record_that_takes_the_second_way_sends_no_other_there(mode, strange):
    # A norm that is trusted may be off by 2e-3: the second way could move each of the others by it.
    draws, positions = np.random.default_rng(4), 16
    kept = np.float32(2.0 ** -np.linspace(0, 1, 40))[:, np.newaxis, np.newaxis]
    a = np.abs(draws.normal(size=[40, 1, positions, 512])).astype(np.float32)
    g = draws.normal(size=[40, positions, 64]).astype(np.float32)
    a[:, 0, 8:] = a[:, 0, :8]
    g[:, 8:] = -g[:, :8] * (1 - kept)
    g = g[:, np.newaxis]
    variable = tf.Variable(tf.zeros([512, 64]))
    weights = tf.concat([tf.ones([1, 39]), [[0.0]]], axis=1)  # The sum is that of the others.

    def found(a, g):
        part = layer_norms.Products(variable, a, g, lambda sums: sums[:, 0])
        batch = clipping.BatchGradients([part], [variable])
        return part.is_exact(), batch.norms, batch.weighted_sums(weights, 32)[0]

    trusted, norms, total = MODES[mode](found)(tf.constant(a), tf.constant(g))
    assert np.all(trusted)
    if strange == 'cancels':
        g[-1, 0, 8:] = -g[-1, 0, :8] * np.float32(1 - 2.0**-13)
    else:
        g[-1, 0, 3] = np.inf
    others, norms_beside, total_beside = MODES[mode](found)(tf.constant(a), tf.constant(g))
    np.testing.assert_array_equal(others, [True] * 39 + [False])
    np.testing.assert_array_equal(norms_beside[:39], norms[:39])
    np.testing.assert_array_equal(total_beside, total)
    assert np.all(np.isfinite(total)) and np.all(np.isfinite(norms_beside))


def test_public_sums_are_weighted_sums():
    # Of a model with every kind of part, for images that need no privacy.
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(4, 4, 2, 'same', 'channels_last', activation='relu'),
            tf.keras.layers.Conv2D(3, 1),
            tf.keras.layers.GroupNormalization(3),
            tf.keras.layers.Conv2DTranspose(2, 3, 2),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(2),
        ]
    )
    model.build([None, 8, 8, 2])
    draws = np.random.default_rng(5)
    images = tf.constant(draws.normal(size=[5, 8, 8, 2]), tf.float32)
    for scale in [1.0, 1e-25]:  # The second way is taken for the other.
        gradients = clipping.BatchGradients(
            layer_norms.gradients_by_layer(
                model,
                lambda scale=scale: tf.reduce_sum(tf.square(model(images)), axis=1) * scale,
                model.trainable_variables,
            ),
            model.trainable_variables,
        )
        weights = tf.constant(draws.uniform(size=[2, 5]), tf.float32)
        wanted = gradients.weighted_sums(weights)
        for actual, exact in pairs(gradients.public_sums(weights), wanted):
            assert actual.dtype == tf.float32
            np.testing.assert_allclose(actual, exact, rtol=1e-4, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize('positions', [1, 2])
@pytest.mark.parametrize('of_input', [1e-20, 1e18])
def test_factors_whose_squares_vanish(of_input, positions):
    # |A|^2 underflows to 0 and so would the norm, while the sums know G = 1e-2 and are not clipped.
    parts = [
        layer_norms.Products(
            tf.Variable(tf.zeros([300, 300])),
            tf.fill([1, 1, positions, 300], of_input),
            tf.fill([1, 1, positions, 300], 1e-2 / of_input),
            lambda sums: sums[:, 0],
        ),
        layer_norms.PerExample([tf.Variable([0.0])], [tf.constant([[1e-3]])]),
    ]
    assert parts[0]._products is None
    gradients = clipping.BatchGradients(parts, [part.variables[0] for part in parts])
    np.testing.assert_allclose(gradients.norms, [300 * 1e-2 * positions], rtol=1e-5)


def test_what_went_in_may_be_far_above_the_gradient():
    # Where the input is huge no gradient arrives; another record asks for the second way.
    model = model_of(KERAS.Dense(4, 'relu', use_bias=False), [3, 4])
    records, directions = draw(model, 2)
    model.set_weights([np.vstack([-np.ones([1, 4]), np.ones([3, 4])])])
    records = np.abs(records)
    records[0, :, 0] = 0
    records[0, 0] = [1e25, 0, 0, 0]
    wanted, _, _ = one_by_one(model, records, directions)
    records[1] = np.nan
    norms, _ = by_layer(model, records, directions)
    assert wanted[0] > 0.1 and norms[1] == 0
    np.testing.assert_allclose(norms[0], wanted[0], rtol=1e-5)
