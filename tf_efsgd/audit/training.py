"""The training audit: a small GAN is trained on small images, with and without one record.

It uses the product's Poisson sampler, the GAN's private and public step, and the product's
optimizer. The record under audit is a checkerboard, which is like no other image. The auditor knows
all other records and when they were sampled, sees every released gradient and the public buffer,
and computes the record's gradient at the weights of every step. The audit would not see what
reaches the weights by another way than the release; a test of the GAN shows that nothing does.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_efsgd import progress, replicas
from tf_efsgd.audit.findings import Finding, findings_of, runs_with_held_out
from tf_efsgd.audit.likelihood import Claim, Observations
from tf_efsgd.data import load, poisson, records
from tf_efsgd.data.images import to_float
from tf_efsgd.models.discriminator import build_discriminator
from tf_efsgd.models.generator import build_generator, draw_inputs
from tf_efsgd.models.losses import NonSaturatingLosses
from tf_efsgd.privacy import accounting, clipping, noise
from tf_efsgd.privacy.mechanism import Mechanism
from tf_efsgd.privacy.optimizer import ErrorFeedbackDPKerasAdamOptimizer
from tf_efsgd.training import gan as gans

# N, the declared number of records, including the record under audit.
DATASET_SIZE = 100
_LATENT_DIM = 4
_WIDTH = 4
_LEARNING_RATE = 2e-3
_SEED = 1  # The seed of initial weights and latents, which are public.


def load_records() -> records.Records:
    """Loads N images of digits, and replaces the last of them by a checkerboard."""
    train = load.load('digits').train
    images, labels = train.images[:DATASET_SIZE].copy(), train.labels[:DATASET_SIZE].copy()
    images[-1, ..., 0] = 255 * (np.indices(images.shape[1:3]).sum(axis=0) % 2)
    return dataclasses.replace(train, images=images, labels=labels)


def audit(
    mechanism: Mechanism,
    expected_batch_size: int,
    steps: int,
    runs: int,
    *,
    deltas: Sequence[float],
    confidence: float,
    strategy: tf.distribute.Strategy | None = None,
    noise_key: noise.NoiseKey | None = None,
    seed: int | None = None,
) -> list[Finding]:
    """Audits T private steps of training.

    Args:
      mechanism: a mechanism whose error_feedback is 'private' or 'none'.
      expected_batch_size: B, in [1, `DATASET_SIZE`].
      steps: T >= 1.
      runs: number of runs in each world that measure the bound; half as many more choose the
        attack.
      deltas: the deltas, each in (0, 1).
      confidence: confidence of each single bound.
      strategy: the replicas of this strategy train, each on its share of the records of a step;
        None: one device.
      noise_key: a fixed key, for tests; None draws a fresh one.
      seed: seed of the samples, for tests; None takes a fresh key for each run.

    Returns:
      A finding for each delta.
    """
    strategy = strategy or tf.distribute.get_strategy()
    noise_key = noise_key or noise.NoiseKey()
    with strategy.scope():
        trainer = _Trainer(mechanism, expected_batch_size, noise_key, seed)
    all_runs = runs_with_held_out(runs)
    with progress.Bar(
        total=2 * all_runs, desc=f'training, {mechanism.error_feedback}', unit='run', leave=False
    ) as bar:
        record_in, record_out = (
            trainer.observe(steps, all_runs, with_record, bar) for with_record in (True, False)
        )
    return findings_of(
        trainer.claim,
        record_in,
        record_out,
        deltas,
        confidence,
        audit='training',
        replicas=strategy.num_replicas_in_sync,
    )


class _GanOfShares(gans.EFSGDGan):
    """Every replica takes its share of the records that all of them are given."""

    def discriminator_step(self, records, step_noise):
        first = tf.distribute.get_replica_context().replica_id_in_sync_group
        own = tuple(values[first :: replicas.count()] for values in records)
        return super().discriminator_step(own, step_noise)


class _WatchedOptimizer(ErrorFeedbackDPKerasAdamOptimizer):
    """The product's optimizer, which also computes what the auditor needs of a release.

    Args:
      canary: the record under audit as the loss takes it: (image float32 [H, W, C], label int32).
      **kwargs: arguments of the optimizer.

    Attributes:
      evidence: the evidence of the release that was traced last, for each replica, each float64
        [size] over all variables: v, E before the release, E after it, the sum of the other
        records' clipped gradients, the sum of their residuals, and the record's gradient.
    """

    def __init__(self, canary: tuple[np.ndarray, np.ndarray], **kwargs):
        super().__init__(**kwargs)
        self._canary = canary
        self.evidence: list[list[tf.Tensor]] = []

    def watch(self, loss_of_record, records):
        """Sets the records of the coming step, of all replicas, and their loss."""
        self._private_step = loss_of_record, records
        self.evidence = []

    def release(self, clipped_grad_sum, residual_grad_sum, var_list, **kwargs):
        loss, (images, labels) = self._private_step
        before = self._buffer_values(var_list)
        gradient = super().release(clipped_grad_sum, residual_grad_sum, var_list, **kwargs)
        is_other = tf.reduce_any(images != self._canary[0], axis=[1, 2, 3])
        others = super().clipped_sums(loss, (images[is_other], labels[is_other]), var_list)
        canary = [tf.constant(part)[tf.newaxis] for part in self._canary]
        own = clipping.per_example_gradients(loss, tuple(canary), var_list)
        own = [tf.zeros([1, *v.shape]) if g is None else g for g, v in zip(own, var_list)]
        after = self._buffer_values(var_list)
        seen = (gradient, before, after, *others, own)
        self.evidence.append([_flat(part) for part in seen])
        return gradient

    def _buffer_values(self, var_list):
        if not self.mechanism.has_buffer:
            return [tf.zeros(v.shape) for v in var_list]
        return [tf.convert_to_tensor(e) for e in self._buffer(var_list)]


class _Trainer:
    """A small GAN, which is built once and trained repeatedly from the same initial weights.

    Make it in the scope of the strategy that trains. Replicas that hold different gradients or
    buffers are averaged: whoever sees them all can.

    Args:
      mechanism: a mechanism whose error_feedback is 'private' or 'none'.
      expected_batch_size: B, in [1, `DATASET_SIZE`].
      noise_key: the key of the noise.
      seed: seed of the samples; None takes a fresh key for each run.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        expected_batch_size: int,
        noise_key: noise.NoiseKey,
        seed: int | None,
    ):
        self._records = load_records()
        self._threshold = accounting.sampling_threshold(expected_batch_size, DATASET_SIZE)
        self._divisor = expected_batch_size
        self._noise_key = noise_key
        self._seeds = itertools.repeat(None) if seed is None else itertools.count(seed)
        self._optimizer = _WatchedOptimizer(
            (to_float(self._records.images[-1]).numpy(), self._records.labels[-1]),
            **dataclasses.asdict(mechanism),
            expected_batch_size=expected_batch_size,
            learning_rate=_LEARNING_RATE,
        )
        self._generator_optimizer = tf.keras.optimizers.legacy.Adam(_LEARNING_RATE)
        self._gan = self._build()
        self._sizes = [int(tf.size(v)) for v in self._gan.discriminator.trainable_variables]
        self.claim = Claim(
            mechanism,
            accounting.sampling_probability(expected_batch_size, DATASET_SIZE),
            sum(self._sizes),
        )
        self._initial = [variable.numpy() for variable in self._gan.variables]
        self._step = self._make_step()

    def observe(self, steps: int, runs: int, with_record: bool, bar: progress.Bar) -> Observations:
        """Trains `runs` times in one of the two worlds."""
        seen = []
        for _ in range(runs):
            seen.append(self._train(steps, with_record))
            bar.update()
        releases, shifts = (np.stack(part, axis=1).astype(np.float32) for part in zip(*seen))
        return Observations(releases, shifts)

    def _train(self, steps, with_record):
        """Makes a run; returns what the auditor sees, [T, F], and what the record adds, [T, F]."""
        self._reset()
        number = DATASET_SIZE if with_record else DATASET_SIZE - 1
        samples = poisson.sample_indices(number, self._threshold, next(self._seeds))
        return zip(*[self._observe_step(next(samples)) for _ in range(steps)])

    def _observe_step(self, sample):
        images, labels = self._records.images[sample], self._records.labels[sample]
        gradient, before, after, clipped, residual, own = (
            part.numpy().astype(float)
            for part in self._step(images, labels, self._noise_key.next())
        )
        noisy_sums = self.claim.recover(gradient, before, after, self._divisor)
        return self.claim.observe(noisy_sums, [clipped, residual], own, self._sizes)

    def _build(self):
        tf.keras.utils.set_random_seed(_SEED)
        shape, classes = self._records.image_shape, self._records.num_classes
        gan = _GanOfShares(
            build_generator(shape, classes, latent_dim=_LATENT_DIM, width=_WIDTH),
            build_discriminator(shape, classes, width=_WIDTH),
            draw_inputs,
            seed=_SEED,
        )
        gan.compile(
            generator_optimizer=self._generator_optimizer,
            discriminator_optimizer=self._optimizer,
            losses=NonSaturatingLosses(),
        )
        gan._make_slots()
        return gan

    def _make_step(self):
        shape = self._records.image_shape

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, *shape], tf.uint8),
                tf.TensorSpec([None], tf.int32),
                {'key': tf.TensorSpec([1], tf.uint64), 'step': tf.TensorSpec([], tf.uint64)},
            ]
        )
        def step(images, labels, step_noise):
            self._optimizer.watch(self._gan._loss_of_record, (to_float(images), labels))
            self._gan.train_step(((images, labels), step_noise))
            return [
                tf.reduce_mean(tf.stack(part), axis=0) for part in zip(*self._optimizer.evidence)
            ]

        return step

    def _reset(self):
        for variable, value in zip(self._gan.variables, self._initial):
            variable.assign(value)
        for optimizer in (self._optimizer, self._generator_optimizer):
            for variable in optimizer.variables():
                variable.assign(tf.zeros_like(variable))


def _flat(tensors) -> tf.Tensor:
    return tf.concat([tf.reshape(tf.cast(t, tf.float64), [-1]) for t in tensors], axis=0)
