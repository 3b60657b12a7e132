"""Patches are made of some examples at a time, and nothing is lost or counted twice."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.layer_gradients import KERAS, MODES, assert_equal, by_layer, draw, model_of, one_by_one

from tf_efsgd.privacy.layer_norms import patches


@pytest.mark.parametrize('mode', MODES)
def test_patches_may_be_made_of_some_examples_at_a_time(monkeypatch, mode):
    # 7 examples in blocks of up to 3: two of the three blocks share an example.
    monkeypatch.setattr(patches, '_BLOCK_BYTES', 3 * 4 * 12 * (4 * 2 + 3))
    taken = []
    original = patches._by_blocks

    def by_blocks(function, like, most):
        taken.append(most)
        return original(function, like, most)

    monkeypatch.setattr(patches, '_by_blocks', by_blocks)
    layer = KERAS.Conv2D(3, 2, 2, 'same', activation='tanh')
    model = model_of(layer, [5, 8, 2])
    records, directions = draw(model, 7)
    wanted = one_by_one(model, records, directions)
    assert len(set(np.round(wanted[0], 3))) == 7
    assert_equal(by_layer(model, records, directions, mode=mode), wanted)
    assert set(taken) == {3}


@pytest.mark.parametrize('batch', [0, 1, 5])
def test_blocks_of_a_batch_whose_size_is_not_known(batch):
    rows = np.arange(2.0 * batch, dtype=np.float32).reshape([batch, 2])
    seen = []

    @tf.function(input_signature=[tf.TensorSpec([None, 2])])
    def by_blocks(rows):
        def of_block(take):
            block = take(rows)
            tf.py_function(lambda size: seen.append(int(size)), [tf.shape(block)[0]], [])
            return [block[:, 1], block[:, 0] > 3]

        return patches._by_blocks(of_block, rows, 2)

    floats, bools = by_blocks(tf.constant(rows))
    np.testing.assert_array_equal(floats, rows[:, 1])
    np.testing.assert_array_equal(bools, rows[:, 0] > 3)
    assert seen == {0: [0], 1: [1], 5: [2, 2, 2]}[batch]
