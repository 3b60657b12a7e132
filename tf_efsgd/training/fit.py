"""Fits a generator to released class means: post-processing, which sees no record."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from tf_efsgd import files, replicas
from tf_efsgd.training.targets import AveragedTarget, Target, generate_for_target

# Adam's learning rate in the first step of a fit: to one release, and to both.
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
    draw: Callable[[int], None] | None = None,
    draw_steps: int = 500,
    strategy: tf.distribute.Strategy | None = None,
    broadcast_variables: Callable[[Sequence[tf.Variable]], None] = lambda variables: None,
) -> list[np.ndarray]:
    """Fits a generator to released class means; this costs no privacy.

    A fit that was interrupted continues from its last checkpoint as if nothing had happened, on any
    number of replicas: together they make the images of a step.

    Args:
      generator: as for `EFSGDGan`, made in the scope of `strategy`; it is trained.
      draw_inputs: as for `EFSGDGan`.
      targets: the released class means; the loss is the sum of the distances to them.
      steps: generator steps, >= 1; the learning rate falls over them.
      learning_rate: of Adam in the first step, > 0.
      seed: of latents; public.
      first_step: how many steps were made before with this seed, so that latents are new.
      checkpoint_dir: the folder of the checkpoints of all fits, made when missing; None: no
        checkpoints. They are functions of `targets` and public settings, and as public as these.
      checkpoint_steps: steps between two checkpoints, >= 1; the last step also has one.
      progress: wraps the iterable of step numbers, e.g. `tqdm.tqdm`.
      show: called with the number of steps done and the distance to the released means, which is
        public.
      show_steps: steps between two calls of `show`, >= 1.
      draw: called with the number of steps done, to show images of the generator as it is then.
      draw_steps: steps between two calls of `draw`, >= 1.
      strategy: its replicas make the images of a step; None: the caller's strategy.
      broadcast_variables: called before the first step with all variables of the fit. With several
        processes it makes the variables equal, so that all continue from the same place.

    Returns:
      The moving average of the generator's weights over the last steps, as `get_weights`.

    Raises:
      tf.errors.OpError: if a checkpoint cannot be written.
    """
    strategy = strategy or tf.distribute.get_strategy()
    rate = tf.keras.optimizers.schedules.CosineDecay(learning_rate, steps, _LAST_LEARNING_RATE)
    variables = generator.trainable_variables
    with strategy.scope():
        optimizer = tf.keras.optimizers.legacy.Adam(rate, beta_1=_ADAM_BETA_1)
        # If the first step made its variables, it would be traced twice.
        optimizer._create_all_weights(variables)
        averaged = [AveragedTarget(target) for target in targets]
        averages = [tf.Variable(v.read_value(), trainable=False) for v in variables]

    def step_of_replica(number):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            seed_of_step = tf.stack([seed, number])
            made = generate_for_target(averaged[0], generator, draw_inputs, seed_of_step)
            loss = tf.add_n(
                [
                    target.loss(made.images, made.labels, made.seed, made.share)
                    for target in averaged
                ]
            )
        gradients = replicas.all_reduce(tape.gradient(loss, variables))
        optimizer.apply_gradients(zip(gradients, variables), experimental_aggregate_gradients=False)

    @tf.function(autograph=False)
    def step(number):
        strategy.run(step_of_replica, args=(number,))
        # Shorter at first, so that random weights are soon forgotten.
        done = tf.cast(optimizer.iterations, tf.float32)
        pulled = 1.0 - tf.minimum(_AVERAGE, (1.0 + done) / (10.0 + done))
        for average, variable in zip(averages, variables):
            strategy.extended.update(
                average, lambda a, v: a.assign_sub((a - v) * pulled), args=(variable,)
            )

    checkpoints = None
    if checkpoint_dir is not None:
        checkpoints = tf.train.CheckpointManager(
            tf.train.Checkpoint(
                generator=generator,
                optimizer=optimizer,
                averages=averages,
                targets=[target.variables for target in averaged],
            ),
            files.without_wildcards(checkpoint_dir)
            / _digest(targets, first_step, steps, learning_rate, seed),
            max_to_keep=1,
            step_counter=optimizer.iterations,
            checkpoint_interval=checkpoint_steps,
        )
        _restore(checkpoints)
    of_targets = [variable for target in averaged for variable in target.variables]
    broadcast_variables([*generator.weights, *optimizer.variables(), *averages, *of_targets])
    done = int(optimizer.iterations.numpy())
    for number in progress(range(first_step + done, first_step + steps)):
        step(tf.constant(number))
        if show is not None and (number + 1) % show_steps == 0:
            show(number + 1, float(tf.add_n([target.distance_so_far() for target in averaged])))
        if draw is not None and (number + 1) % draw_steps == 0:
            draw(number + 1)
        if checkpoints is not None:
            is_last = number == first_step + steps - 1
            checkpoints.save(optimizer.iterations, check_interval=not is_last)
    averaged_weights = {v.ref(): a.numpy() for v, a in zip(variables, averages)}
    return [averaged_weights.get(v.ref(), v.numpy()) for v in generator.weights]


def _digest(targets: Sequence[Target], *settings) -> str:
    """The name of the folder with the checkpoints of exactly this fit."""
    digest = hashlib.sha256(repr(settings).encode())
    for target in targets:
        digest.update(target.means.numpy().tobytes())
    return digest.hexdigest()[:16]


def _restore(checkpoints: tf.train.CheckpointManager) -> None:
    """Continues from the last checkpoint if there is one and it is whole."""
    path = checkpoints.latest_checkpoint
    if path is None:
        return
    try:  # Damage, e.g. by a crash, must be found before anything is restored.
        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except (tf.errors.OpError, ValueError, IndexError):  # The reader raises these on a torn file.
        print(f'WARNING: checkpoint {path} is damaged, so the fit starts again.')
        return
    # A finished fit makes no step, so Adam never asks for its moments: that deserves no warning.
    checkpoints.checkpoint.restore(path).expect_partial()
