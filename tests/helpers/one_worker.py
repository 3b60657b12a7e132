"""One of two workers of tests/run/test_workers.py: what they do together, into FOLDER/INDEX.npz.

Run as a program by that test, with TF_CONFIG; the test does the same on one device.
"""

import os
import pathlib
import sys
import time

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['CUDA_VISIBLE_DEVICES'] = '-1'
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from helpers import tiny_gan, toy_images  # noqa: E402
from tf_efsgd.audit import lattice  # noqa: E402
from tf_efsgd.privacy import class_sums  # noqa: E402
from tf_efsgd.privacy.features import pixels  # noqa: E402
from tf_efsgd.privacy.noise import NoiseKey, SecureNoise  # noqa: E402
from tf_efsgd.run import cluster, workers  # noqa: E402
from tf_efsgd.training import private_model  # noqa: E402

KEY, SIGMA = 1234, 1.5
PARAMETERS = 20_000
SIZES = (5, 0, 3, 1)


def state_of(gan):
    """Returns the weights and buffers of a GAN, one array each."""
    optimizer, variables = gan.discriminator_optimizer, gan.private_variables
    return [*gan.get_weights(), *(e.numpy() for e in optimizer._buffer(variables))]


def train(gan, batches, strategy=None, share=slice(None)):
    """Trains on parts of given samples."""

    def dataset(_=None):
        images = tf.TensorSpec([None, *tiny_gan.SHAPE], tf.uint8)
        parts = [(images[share], labels[share]) for images, labels in batches]
        return tf.data.Dataset.from_generator(
            lambda: iter(parts), output_signature=(images, tf.TensorSpec([None], tf.int32))
        )

    data = dataset() if strategy is None else strategy.distribute_datasets_from_function(dataset)
    gan.fit(data, steps_per_epoch=len(batches), verbose=0)
    return state_of(gan)


def make_gan(key, **settings):
    """Makes one with clips, error feedback and, unless it is 0, noise."""
    return tiny_gan.make(tiny_gan.private(**settings), noise=key)


def release_of_nothing(strategy, key):
    """Releases A of many parameters without records: noise, in units of its deviation."""
    with strategy.scope():
        variable = tf.Variable(tf.zeros([PARAMETERS]))
        optimizer = tiny_gan.private(noise_multiplier=0.7, residual_share=0.0)
        optimizer._create_all_weights([variable])

    @tf.function(autograph=False)
    def step(step_noise):
        def on_replica(step_noise):
            zeros = [tf.zeros([PARAMETERS], tf.float64)]
            return optimizer.release(zeros, zeros, [variable], step_noise=step_noise)[0]

        return strategy.run(on_replica, args=(step_noise,))

    released = strategy.experimental_local_results(step(key.next([variable.shape])))[0]
    return released.numpy() * tiny_gan.BATCH / (0.7 * 0.3)


def release_classes(share, all_reduce, key):
    """Releases F of toy images."""
    records = toy_images.toy(61, 2)
    return class_sums.release(
        records.images[share],
        records.labels[share],
        records.num_classes,
        pixels.FeatureMap(records.image_shape),
        SIGMA,
        key,
        all_reduce=all_reduce,
    )


def main():
    """Does everything on this worker."""
    # What `compile` tries is tried elsewhere.
    for name in ('why_not_alone', 'why_not_fast'):
        setattr(private_model, name, lambda *_, **__: None)
    folder = pathlib.Path(sys.argv[1])
    team = workers.Several(cluster.read())
    share = slice(team.index, None, team.count)
    found = {
        'told': np.frombuffer(team.broadcast(b'the chief' if team.is_chief else b'?'), np.uint8),
        'collected': np.frombuffer(
            b'|'.join(team.all_gather(b'x' * (3 * team.index + 1))), np.uint8
        ),
        'sum': team.all_reduce(np.array([[2**40 + team.index, -5]], np.int64)),
        'largest': np.array(team.all_reduce_max(15 * team.index)),
        'array': team.broadcast_array(np.float32([[1.5], [team.index]])),
        'key': team.noise_of_chief(NoiseKey()).key.numpy(),
    }
    secure = team.noise_of_chief(SecureNoise()).next([tf.TensorShape([2, 3]), tf.TensorShape([4])])
    found |= {
        f'secure_{i}_{j}': d for i, of in enumerate(secure['draws']) for j, d in enumerate(of)
    }
    batches = tiny_gan.samples(SIZES)
    for name, settings in (('noiseless', {'noise_multiplier': 0.0}), ('noisy', {})):
        with team.strategy.scope():
            # The other worker's own key does not count: the chief's does.
            gan = make_gan(team.noise_of_chief(NoiseKey(KEY + team.index)), **settings)
        state = train(gan, batches, team.strategy, share)
        team.check_alike(gan.variables)
        found |= {f'{name}_{i}': value for i, value in enumerate(state)}
    found['noise'] = release_of_nothing(team.strategy, team.noise_of_chief(NoiseKey()))
    source = NoiseKey() if team.is_chief else _NoNoise()
    found['F'] = release_classes(share, team.all_reduce, source)
    for attack in lattice._attack_step(
        1.0, 'Philox', lambda: team.noise_of_chief(NoiseKey()), team.strategy
    ):
        found[f'refuted_{attack.release}'] = np.array(list(attack.refuted.values()))
        found[f'lattice_{attack.release}'] = np.array(list(attack.lattice.values()))
    np.savez(folder / f'{team.index}.npz', **found)
    time.sleep(2 if team.is_chief else 0)
    started = time.monotonic()
    team.leave()
    (folder / f'waited_{team.index}').write_text(str(time.monotonic() - started))


class _NoNoise:
    """Replaces the noise on other workers: they add up the bare sum, so none of them keeps it."""

    def next(self, shapes):
        """Returns zeros."""
        return {'draws': [[tf.zeros(shapes[0], tf.int64)]]}


if __name__ == '__main__':
    main()
