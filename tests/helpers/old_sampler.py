"""The release of earlier versions, kept to show what the lattice attack finds: float32 noise.

The sum was float64, the noise float32, and so was the file.
"""

import numpy as np
import tensorflow as tf

from tf_efsgd.privacy import noise

_KEY = 0x1234_5678_9ABC_DEF1


def gaussian(shape, stddev, step_noise):
    """Adds up and halves four float32 normals, as `noise.gaussian` drew them."""
    draws = tf.raw_ops.StatelessRandomNormalV2(
        shape=[4, *shape],
        key=step_noise['key'],
        counter=noise.counter(step_noise['step'], noise.CLIPPED_GRAD_SUM, 0),
        alg=1,
    )
    return (tf.reduce_sum(draws, axis=0) * (stddev / 2)).numpy()


def secure_gaussian(shape, stddev, _):
    """Draws from the operating system, in float64, and casts to float32 like the other."""
    return (noise._secure_normals(tf.TensorShape(shape)).astype(np.float32)) * np.float32(stddev)


def sums(phi, labels, classes):
    sums = np.zeros([classes, phi.shape[1]])
    np.add.at(sums, labels, phi.astype(np.float64))
    return sums


def release(sums, stddev, gaussian):
    step_noise = noise.NoiseKey(_KEY).next()
    return (sums + gaussian(sums.shape, stddev, step_noise)).astype(np.float32)


def unexplained(released, guessed):
    """Finds coordinates where no float32 n is the noise: released is not fl(guessed + n)."""
    nearest = (released.astype(np.float64) - guessed).astype(np.float32)
    explained = np.zeros(released.shape, bool)
    for ulps in range(-2, 3):
        n = nearest
        for _ in range(abs(ulps)):
            n = np.nextafter(n, np.float32(np.copysign(np.inf, ulps)))
        explained |= (guessed + n.astype(np.float64)).astype(np.float32) == released
    return int(np.sum(~explained))
