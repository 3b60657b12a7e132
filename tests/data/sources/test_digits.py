"""The handwritten digits of scikit-learn."""

import numpy as np

from tf_efsgd.data import load


def test_digits():
    loaded = load.load('digits')
    assert len(loaded.train) + len(loaded.test) == 1797
    assert 130 < len(loaded.test) < 230
    assert loaded.train.image_shape == (8, 8, 1)
    # 0..16 became 0..255: 8 is 127.5, rounded to even.
    assert {0, 16, 128, 239, 255} <= set(np.unique(loaded.train.images))
    assert len(np.unique(loaded.train.images)) == 17
    assert load.load('digits', image_size=12).test.image_shape == (12, 12, 1)
