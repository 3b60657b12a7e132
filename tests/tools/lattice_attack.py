"""The lattice attack on the demo's release, before and now: python tests/tools/lattice_attack.py.

Guesses at the 9,000 records of the embedded digits: the truth, the records without one, and with
another one in its place. Counted are the coordinates that no noise value explains.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from helpers import old_sampler

from tf_efsgd import budget, config  # noqa: E402
from tf_efsgd.audit import lattice  # noqa: E402
from tf_efsgd.data import load
from tf_efsgd.privacy import class_sums, noise  # noqa: E402
from tf_efsgd.privacy.features import pixels  # noqa: E402

_CLASSES = 10


def _guesses(count):
    """Record numbers of each guess."""
    everybody = np.arange(count)
    for name, record in (('without one', 5), ('without another', 4321)):
        yield name, np.delete(everybody, record)
    for name, record in (('with another for one', 5), ('with another for another', 4321)):
        yield name, np.where(everybody == record, 77, everybody)


def main():
    """Prints a table."""
    train = load.load('mnist_10k').train
    images, labels, features = train.images, train.labels, pixels.FeatureMap(train.image_shape)
    for epsilon in (10.0, 0.1):
        privacy = config.PrivacyConfig(target_epsilon=epsilon, warm_start_share=1.0)
        facts = {
            'dataset': 'mnist_10k',
            'dataset_size': len(labels),
            'image_shape': train.image_shape,
            'num_classes': _CLASSES,
        }
        plan = budget.make_plan(privacy, facts, 0, steps_per_entry=1, settings_sha256='')
        sigma = plan.warm_start_noise_multiplier
        phi = np.concatenate(
            [
                features(tf.constant(part, tf.float32) / 127.5 - 1.0).numpy()
                for part in np.split(images, range(500, len(images), 500))
            ]
        )
        everybody = np.arange(len(labels))
        guesses = [('the truth', everybody), *_guesses(len(labels))]
        old = {n: old_sampler.sums(phi[g], labels[g], _CLASSES) for n, g in guesses}
        new = {
            n: class_sums.sum_over_records(images[g], labels[g], _CLASSES, features, sigma)
            for n, g in guesses
        }
        release = class_sums.release(images, labels, _CLASSES, features, sigma, noise.NoiseKey())
        print(f'epsilon = {epsilon:g}, sigma = {sigma:.4g}, {release.size:,} coordinates refuted:')
        for title, gaussian in (
            ('before, Philox', old_sampler.gaussian),
            ('before, secure', old_sampler.secure_gaussian),
        ):
            released = old_sampler.release(old['the truth'], sigma, gaussian)
            found = {name: old_sampler.unexplained(released, s) for name, s in old.items()}
            print(f'  {title}: {found}')
        found = {name: lattice.left_as_noise(release, sums)[0] for name, sums in new.items()}
        print(f'  now: {found}', flush=True)


if __name__ == '__main__':
    main()
