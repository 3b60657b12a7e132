"""Records: what they know of themselves, and what they refuse."""

import numpy as np
import pytest

from tf_efsgd.data.records import DataError, Records


def test_records_knows_its_size_and_shape():
    made = Records(np.zeros([5, 4, 3, 1], np.uint8), np.zeros([5], np.int32), 2, ('a', 'b'))
    assert len(made) == 5
    assert made.image_shape == (4, 3, 1)


@pytest.mark.parametrize(
    ('change', 'word'),
    [
        ({'images': np.zeros([5, 4, 3, 1], np.float32)}, 'float32'),
        ({'labels': np.zeros([5], np.int64)}, 'int64'),
        ({'images': np.zeros([5, 4, 3], np.uint8)}, '(5, 4, 3)'),
        ({'images': np.zeros([5, 4, 3, 2], np.uint8)}, '(5, 4, 3, 2)'),
        ({'labels': np.zeros([4], np.int32)}, '(4,)'),
        ({'labels': np.array([0, 1, 2, 0, 0], np.int32)}, '0 to 2'),
        ({'labels': np.array([0, 1, -1, 0, 0], np.int32)}, '-1 to 1'),
        ({'class_names': ('a',)}, '1 names'),
    ],
)
def test_records_refuses_what_does_not_fit(change, word):
    good = {
        'images': np.zeros([5, 4, 3, 1], np.uint8),
        'labels': np.zeros([5], np.int32),
        'num_classes': 2,
        'class_names': ('a', 'b'),
    }
    Records(**good)
    with pytest.raises(DataError) as caught:
        Records(**{**good, **change})
    assert word in str(caught.value)
