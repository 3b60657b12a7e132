"""The rule for `Embedding`: norms and sums equal those of single records."""

import pytest
import tensorflow as tf
from helpers.layer_gradients import KERAS, check


@pytest.mark.parametrize('shape', [[], [1], [7], [2, 3]], ids=str)
@pytest.mark.parametrize('batch', [0, 3])
def test_embedding(shape, batch):
    # Seven of five numbers: one comes twice in a record.
    check(KERAS.Embedding(5, 3), shape, batch, tf.int32)
