"""The rule for `Dense`: norms and sums equal those of single records."""

from helpers.layer_gradients import ACTIVATIONS, BATCHES, KERAS, PROPERTIES, check
from hypothesis import given
from hypothesis import strategies as st


@PROPERTIES
@given(
    shape=st.sampled_from([[1], [6], [3, 2], [2, 3, 4]]),
    units=st.integers(1, 6),
    use_bias=st.booleans(),
    activation=ACTIVATIONS,
    batch=BATCHES,
)
def test_dense(shape, units, use_bias, activation, batch):
    check(KERAS.Dense(units, activation, use_bias), shape, batch)
