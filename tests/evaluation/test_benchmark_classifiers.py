"""The classifiers of the field's benchmark: their shapes, their seeds, and that they learn."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.toy_images import toy

from tf_efsgd.evaluation import benchmark_classifiers, classifiers

_BUILDERS = list(benchmark_classifiers.BUILDERS.values())


@pytest.mark.parametrize('build', _BUILDERS)
def test_weights_follow_from_the_seed_alone(build):
    tf.keras.utils.set_random_seed(1)
    one = build((16, 16, 3), 4, seed=2)
    tf.keras.utils.set_random_seed(5)
    same, other = build((16, 16, 3), 4, seed=2), build((16, 16, 3), 4, seed=3)

    assert one.output_shape == (None, 4)
    for a, b in zip(one.get_weights(), same.get_weights()):
        np.testing.assert_array_equal(a, b)
    kernels = [w for w in one.trainable_weights if w.shape.rank == 4]
    # No two layers of a shape begin alike, and no seed is like another.
    flat = [np.ravel(k)[:20] for k in kernels if k.shape[2] > 3]
    assert len({tuple(f) for f in flat}) == len(flat)
    assert np.any(one.get_weights()[0] != other.get_weights()[0])


def test_they_have_the_blocks_of_their_papers():
    sizes = {b.__name__: b((32, 32, 3), 10).count_params() for b in _BUILDERS}
    assert sizes['build_wide_resnet'] > 3 * sizes['build_resnet']
    resnext = benchmark_classifiers.build_resnext((32, 32, 3), 10)
    # Narrow paths: fewer weights than a WideResNet of the same channels.
    assert resnext.count_params() < 0.5 * sizes['build_wide_resnet']
    assert sum(isinstance(layer, tf.keras.layers.Concatenate) for layer in resnext.layers) == 3


@pytest.mark.parametrize('build', _BUILDERS)
def test_small_images_and_no_classes_are_refused(build):
    for shape, classes in [((4, 4, 1), 3), ((8, 8, 1), 0)]:
        with pytest.raises(ValueError, match='at least 8 x 8 pixels.*Received'):
            build(shape, classes)


def test_they_learn():
    trained = classifiers.train(
        toy(600, 0), build=benchmark_classifiers.build_resnet, epochs=6, batch_size=32
    )
    assert classifiers.accuracy(trained.model, toy(200, 1)) > 0.8
