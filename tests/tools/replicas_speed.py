"""Steps on one logical device and on several, in turns in one process: python FILE --help.

All of them share the cores of this machine, so several cannot be faster by more than one device
leaves idle; what they take longer is what distribution costs.
"""

import argparse
import statistics
import threading
import time

import numpy as np
import tensorflow as tf

from tf_efsgd.data import poisson
from tf_efsgd.models import public_heads
from tf_efsgd.models.discriminator import build_discriminator
from tf_efsgd.models.generator import build_generator, draw_inputs
from tf_efsgd.models.losses import NonSaturatingLosses
from tf_efsgd.models.public_network import build_public_network
from tf_efsgd.privacy.features import pixels, public
from tf_efsgd.privacy.optimizer import ErrorFeedbackDPKerasAdamOptimizer
from tf_efsgd.training import fit, targets
from tf_efsgd.training.gan import EFSGDGan
from tf_efsgd.training.public_heads_gan import OfMaps, PublicHeadsGan

_CLASSES, _RECORDS = 10, 20_000


class Turns:
    """Lets one of several threads work at a time, in turns."""

    def __init__(self, count):
        self._count, self._turn, self._changed = count, 0, threading.Condition()

    def wait(self, number):
        with self._changed:
            self._changed.wait_for(lambda: self._turn % self._count == number)

    def pass_on(self):
        with self._changed:
            self._turn += 1
            self._changed.notify_all()


def _optimizers(batch):
    adam = tf.keras.optimizers.legacy.Adam
    return {
        'generator_optimizer': adam(1e-3, beta_1=0.5),
        'discriminator_optimizer': ErrorFeedbackDPKerasAdamOptimizer(
            1.0, 1.0, expected_batch_size=batch, learning_rate=1e-3
        ),
    }


def make_step(kind, strategy, shape, width, batch):
    """A function of nothing that takes one step of the GAN, with the generator's."""
    inputs = network = None
    if kind == 'heads':
        with strategy.scope():
            network = build_public_network(shape)
        inputs = public_heads.HeadInputs(network, public.public_photographs(shape), pixels=True)
    with strategy.scope():
        generator = build_generator(shape, _CLASSES, width=width)
        if kind == 'heads':
            heads = public_heads.build_public_heads(inputs.shapes, _CLASSES)
            gan = PublicHeadsGan(generator, heads, draw_inputs, inputs)
            losses, more = public_heads.HingeLosses(), {}
        else:
            gan = EFSGDGan(generator, build_discriminator(shape, _CLASSES), draw_inputs)
            losses = NonSaturatingLosses()
            more = {'discriminator_steps': 1, 'adaptive_discriminator_steps': False}
        gan.compile(**_optimizers(batch), losses=losses, **more)
        if kind == 'heads':
            features = public.PublicFeatures(network, shape)
            means = np.zeros([1, _CLASSES, features.group_size], np.float32)
            target = targets.Target(OfMaps(features), means)
            gan.follow(targets.AveragedTarget(target), 1.0)
    draws = np.random.default_rng(1)
    records = (
        draws.normal(size=[_RECORDS, inputs.size]).astype(np.float16)
        if kind == 'heads'
        else draws.integers(0, 256, [_RECORDS, *shape]).astype(np.uint8)
    )
    labels = np.arange(_RECORDS) % _CLASSES

    def batches(part):
        return poisson.poisson_batches(
            records,
            labels,
            expected_batch_size=batch,
            num_replicas=part.num_replicas_in_sync if part else 1,
        )

    if strategy.num_replicas_in_sync == 1:
        iterator = iter(batches(None))
    else:
        iterator = iter(strategy.distribute_datasets_from_function(batches))
    train = gan.make_train_function()
    return lambda: float(train(iterator)['fake_accuracy'])


def time_steps(kind, strategies, args):
    """Seconds a step, [strategies][rounds]."""
    shape = (args.size, args.size, 1 if kind == 'pixels' else 3)
    steps = [make_step(kind, s, shape, args.width, args.batch) for s in strategies]
    for step in steps:
        for _ in range(3):
            step()
    seconds = [[] for _ in steps]
    for _ in range(args.rounds):
        for step, of_step in zip(steps, seconds):
            started = time.perf_counter()
            for _ in range(args.steps):
                step()
            of_step.append((time.perf_counter() - started) / args.steps)
    return seconds


def time_fits(strategies, args):
    """Seconds a step of the fit, [strategies][rounds]."""
    shape = (args.size, args.size, 3 if args.public else 1)
    turns, seconds = Turns(len(strategies)), [[] for _ in strategies]

    def run(number, strategy):
        with strategy.scope():
            network = build_public_network(shape) if args.public else None
            generator = build_generator(shape, _CLASSES, width=args.width)
        features = (
            public.PublicFeatures(network, shape) if args.public else pixels.FeatureMap(shape)
        )
        means = np.zeros([features.groups, _CLASSES, features.group_size], np.float32)

        def in_turns(numbers):
            for done, step in enumerate(numbers):
                if done % args.steps == 0:
                    turns.wait(number)
                    started = time.perf_counter()
                yield step
                if done % args.steps == args.steps - 1:
                    seconds[number].append((time.perf_counter() - started) / args.steps)
                    turns.pass_on()

        fit.fit(
            generator,
            draw_inputs,
            [targets.Target(features, means)],
            steps=args.steps * (args.rounds + 1),
            progress=in_turns,
            strategy=strategy,
        )

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(strategies)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [of_fit[1:] for of_fit in seconds]  # The first one was traced.


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('what', choices=['pixels', 'heads', 'fit'])
    parser.add_argument('--devices', type=int, default=2)
    parser.add_argument('--size', type=int, default=28, help='height and width of the images')
    parser.add_argument('--width', type=int, default=64, help='of the generator')
    parser.add_argument('--batch', type=int, default=256, help='expected records in a step')
    parser.add_argument('--steps', type=int, default=10, help='in a round')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--public', action='store_true', help='fit to features of the network')
    args = parser.parse_args()
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices('CPU')[0],
        [tf.config.LogicalDeviceConfiguration()] * args.devices,
    )
    several = tf.distribute.MirroredStrategy([f'CPU:{i}' for i in range(args.devices)])
    strategies = [tf.distribute.get_strategy(), several]
    seconds = (
        time_fits(strategies, args)
        if args.what == 'fit'
        else time_steps(args.what, strategies, args)
    )
    for strategy, of_steps in zip(strategies, seconds):
        median = statistics.median(of_steps)
        print(
            f'{strategy.num_replicas_in_sync} device(s): {1000 * median:.1f} ms a step, '
            f'{1 / median:.2f} steps a second ({1000 * min(of_steps):.1f} to '
            f'{1000 * max(of_steps):.1f} ms)'
        )
    ratios = sorted(b / a for a, b in zip(*seconds))
    print(
        f'{args.devices} to 1, in pairs: median {statistics.median(ratios):.3f}, '
        f'{ratios[0]:.3f} to {ratios[-1]:.3f}'
    )


if __name__ == '__main__':
    main()
