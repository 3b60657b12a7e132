"""Fits a generator to released class means: post-processing, which sees no record."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from tf_efsgd import files
from tf_efsgd.training.targets import AveragedTarget, Target

# Of Adam in the first step of a fit: to one release, and to both.
LEARNING_RATE, LEARNING_RATE_OF_BOTH = 4e-3, 2e-3
_LAST_LEARNING_RATE = 0.05
_ADAM_BETA_1 = 0.5
_AVERAGE = 0.99


def fit(
    generator: tf.keras.Model,
    draw_inputs: Callable[..., dict[str, tf.Tensor]],
    targets: Sequence[Target],
    *,
    steps: int,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    first_step: int = 0,
    checkpoint_dir: str | os.PathLike | None = None,
    checkpoint_steps: int = 500,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    show: Callable[[int, float], None] | None = None,
    show_steps: int = 50,
) -> list[np.ndarray]:
    """Fits a generator to released class means; this costs no privacy.

    A fit that was cut short continues from its last checkpoint, as if it had not been.

    Args:
      generator: as for `EFSGDGan`, outside any distribution strategy; it is trained.
      draw_inputs: as for `EFSGDGan`.
      targets: the released class means; the loss is the sum of the distances to them.
      steps: generator steps, >= 1; the learning rate falls over them.
      learning_rate: of Adam in the first step, > 0.
      seed: of latents; public.
      first_step: number of steps before these with this seed: latents of their own.
      checkpoint_dir: of the checkpoints of any fits, made when missing; None for none. They are
        functions of `targets` and public settings, and as public.
      checkpoint_steps: between two checkpoints, >= 1; the last step is followed by one, too.
      progress: wraps the iterable of step numbers, e.g. `tqdm.tqdm`.
      show: called with the number of steps done and the distance to the released means, which is
        public.
      show_steps: between two calls, >= 1.

    Returns:
      The moving average of the generator's weights over the last steps, as `get_weights`.

    Raises:
      tf.errors.OpError: if a checkpoint cannot be written.
    """
    rate = tf.keras.optimizers.schedules.CosineDecay(learning_rate, steps, _LAST_LEARNING_RATE)
    optimizer = tf.keras.optimizers.legacy.Adam(rate, beta_1=_ADAM_BETA_1)
    # Shorter at first, so that random weights are soon forgotten.
    average = tf.train.ExponentialMovingAverage(_AVERAGE, optimizer.iterations)
    variables = generator.trainable_variables
    averaged = [AveragedTarget(target) for target in targets]

    # If the first step made its variables, it would be traced twice.
    optimizer._create_all_weights(variables)

    @tf.function(autograph=False)
    def step(number):
        seeds = tf.random.experimental.stateless_split(tf.stack([seed, number]), 3)
        labels = averaged[0].draw_labels(seeds[0])
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            images = generator(draw_inputs(generator, labels, seeds[1]), training=True)
            loss = tf.add_n([target.loss(images, labels, seeds[2]) for target in averaged])
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        average.apply(variables)

    average.apply(variables)  # Makes its variables, and so far nothing else.
    checkpoints = None
    if checkpoint_dir is not None:
        checkpoints = tf.train.CheckpointManager(
            tf.train.Checkpoint(
                generator=generator,
                optimizer=optimizer,
                averages=[average.average(v) for v in variables],
                targets=[target.variables for target in averaged],
            ),
            files.without_wildcards(checkpoint_dir)
            / _digest(targets, first_step, steps, learning_rate, seed),
            max_to_keep=1,
            step_counter=optimizer.iterations,
            checkpoint_interval=checkpoint_steps,
        )
        _restore(checkpoints)
    done = int(optimizer.iterations.numpy())
    for number in progress(range(first_step + done, first_step + steps)):
        step(tf.constant(number))
        if show is not None and (number + 1) % show_steps == 0:
            show(number + 1, float(tf.add_n([target.distance_so_far() for target in averaged])))
        if checkpoints is not None:
            is_last = number == first_step + steps - 1
            checkpoints.save(optimizer.iterations, check_interval=not is_last)
    averages = {v.ref(): average.average(v).numpy() for v in variables}
    return [averages.get(v.ref(), v.numpy()) for v in generator.weights]


def _digest(targets: Sequence[Target], *settings) -> str:
    """The name of the checkpoints of this very fit."""
    digest = hashlib.sha256(repr(settings).encode())
    for target in targets:
        digest.update(target.means.numpy().tobytes())
    return digest.hexdigest()[:16]


def _restore(checkpoints: tf.train.CheckpointManager) -> None:
    """Continues from the last checkpoint if there is one and it is whole."""
    path = checkpoints.latest_checkpoint
    if path is None:
        return
    try:  # Damage by a crash or a bad disk must be found before anything is restored.
        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except (tf.errors.OpError, ValueError, IndexError):  # Of the reader: a file that ends early.
        print(f'WARNING: checkpoint {path} is damaged: the fit starts anew.')
        return
    # A fit that is done takes no step, so Adam never asks for its moments; no warning of that.
    checkpoints.checkpoint.restore(path).expect_partial()
