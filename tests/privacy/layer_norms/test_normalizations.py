"""The rules for normalizations: norms and sums equal those of single records."""

from helpers.layer_gradients import BATCHES, KERAS, PROPERTIES, check
from hypothesis import given
from hypothesis import strategies as st


@PROPERTIES
@given(
    groups=st.sampled_from([1, 2, 4, -1]),
    axis=st.sampled_from([-1, 1, 3]),
    parts=st.sampled_from([(True, True), (True, False), (False, True)]),
    size=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    batch=BATCHES,
)
def test_group_normalization(groups, axis, parts, size, batch):
    shape = [4, *size] if axis == 1 else [*size, 4]
    layer = KERAS.GroupNormalization(groups, axis=axis, scale=parts[0], center=parts[1])
    check(layer, shape, batch)


@PROPERTIES
@given(
    axis=st.sampled_from([-1, [1, 2], [2, 3], 1]),
    parts=st.sampled_from([(True, True), (True, False), (False, True)]),
    epsilon=st.sampled_from([1e-3, 1e-6]),
    batch=BATCHES,
)
def test_layer_normalization(axis, parts, epsilon, batch):
    layer = KERAS.LayerNormalization(axis, epsilon, scale=parts[0], center=parts[1])
    check(layer, [3, 4, 5], batch)
    # What it took away for the pass is back.
    assert [layer.gamma is not None, layer.beta is not None] == list(parts)
    assert len(layer.trainable_variables) == sum(parts)
