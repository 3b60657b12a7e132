"""The mechanism audit: feeds crafted gradients through the product's clipping, release and buffer.

The record under audit has a gradient that is huge in every variable. The other records point in the
opposite direction, each just within C1, so that a bug that clips sums, or each variable by itself,
would show as well. The auditor knows everything except the noise and whether a step sampled the
record, and sees what is released: the gradient v and the public buffer E.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tf_efsgd import progress
from tf_efsgd.audit.findings import Finding, findings_of, runs_with_held_out
from tf_efsgd.audit.likelihood import Claim, Observations
from tf_efsgd.privacy import clipping, noise, private_step
from tf_efsgd.privacy.mechanism import Mechanism
from tf_efsgd.privacy.optimizer import ErrorFeedbackDPKerasSGDOptimizer

_SHAPES = ((2,), (1, 2), (1,))
_SIZES = [int(np.prod(shape)) for shape in _SHAPES]
# The direction of the record's gradient, and its norm in units of C1 + C2. With this norm the
# hidden buffer never runs dry, and float32 still distinguishes the norm from itself plus C2.
_DIRECTION = np.array([0.6, -0.3, 0.5, 0.4, -0.38]) / np.linalg.norm([0.6, -0.3, 0.5, 0.4, -0.38])
_GRADIENT_NORM = 1e5
_OTHERS = 2
_OTHERS_NORM = 0.9  # In units of C1.
_DIVISOR = 3  # B, any public constant.

_SLOT = 'error_feedback'


def audit(
    mechanism: Mechanism,
    sampling_probability: float,
    steps: int,
    runs: int,
    *,
    deltas: Sequence[float],
    confidence: float,
    strategy: tf.distribute.Strategy | None = None,
    noise_key: noise.NoiseKey | None = None,
    seed: int | None = None,
) -> list[Finding]:
    """Audits T steps of a mechanism.

    Args:
      mechanism: the mechanism; `clipping.clip_and_sum` and `private_step.release` are audited with
        it.
      sampling_probability: q in (0, 1], with which a step samples the record under audit.
      steps: T >= 1.
      runs: number of runs in each world that measure the bound; half as many more choose the
        attack.
      deltas: the deltas, each in (0, 1).
      confidence: confidence of each single bound.
      strategy: if given, the Keras optimizer's `release` is audited under it instead, with the
        records spread over the replicas. This is possible if `shares_variables` says so.
      noise_key: a fixed key, for tests; None draws a fresh one.
      seed: seed of the coins that sample the record, for tests; None takes a fresh one.

    Returns:
      A finding for each delta.
    """
    noise_key, coins = noise_key or noise.NoiseKey(), np.random.default_rng(seed)
    claim = Claim(mechanism, sampling_probability, sum(_SIZES))
    all_runs = runs_with_held_out(runs)
    record_in, record_out = (
        _observe(claim, steps, all_runs, with_record, noise_key, coins, strategy)
        for with_record in (True, False)
    )
    replicas = strategy.num_replicas_in_sync if strategy else 1
    return findings_of(
        claim, record_in, record_out, deltas, confidence, audit='mechanism', replicas=replicas
    )


def _observe(
    claim: Claim,
    steps: int,
    runs: int,
    with_record: bool,
    noise_key: noise.NoiseKey,
    coins: np.random.Generator,
    strategy: tf.distribute.Strategy | None,
) -> Observations:
    """Runs the mechanism in one world; the record is sampled, the others are always in."""
    mechanism = claim.mechanism
    if strategy is None:
        releases = _releases(mechanism, runs)
    else:
        releases = _replicated_releases(mechanism, runs, strategy)
    gradient_of_others = -_OTHERS_NORM * mechanism.l2_norm_clip * _DIRECTION
    others = [_OTHERS * gradient_of_others, np.zeros_like(_DIRECTION)]  # No residual: below C1.
    own = _gradient_norm(mechanism) * _DIRECTION
    seen, before = [], np.zeros([runs, sum(_SIZES)])
    for _ in progress.Bar(range(steps), desc=mechanism.error_feedback, leave=False, disable=None):
        is_sampled = with_record & (coins.random(runs) < claim.sampling_probability)
        gradient, after = releases(is_sampled, noise_key.next(_SHAPES))
        noisy_sums = claim.recover(gradient, before, after, _DIVISOR)
        released, shifts = claim.observe(noisy_sums, others, own, _SIZES)
        seen.append(released.astype(np.float32))
        before = after
    return Observations(np.stack(seen), np.broadcast_to(shifts, [steps, 1, len(shifts)]))


def shares_variables(mechanism: Mechanism) -> bool:
    """Whether a release treats every number by itself, so that rows of a variable can be runs."""
    return not mechanism.hides_buffer and mechanism.feedback_l2_norm_clip is None


# Maps (whether this step samples the record, bool [runs]; the step's noise) to the released
# gradient and the buffer after it, each float64 [runs, size].
_Releases = Callable[[np.ndarray, noise.StepNoise], tuple[np.ndarray, np.ndarray]]


def _gradient_norm(mechanism: Mechanism) -> float:
    return _GRADIENT_NORM * (mechanism.l2_norm_clip + mechanism.residual_l2_norm_clip)


def _gradients(mechanism: Mechanism, with_record: bool) -> list[tf.Tensor]:
    """Returns per-example gradients, the record's last: float32 [batch, *shape] per variable."""
    rows = [-_OTHERS_NORM * mechanism.l2_norm_clip * _DIRECTION] * _OTHERS
    if with_record:
        rows.append(_gradient_norm(mechanism) * _DIRECTION)
    parts = np.split(np.array(rows, np.float32), np.cumsum(_SIZES)[:-1], axis=1)
    return [tf.reshape(part, [-1, *shape]) for part, shape in zip(parts, _SHAPES)]


def _sums_of_both_worlds(mechanism, share=slice(None)):
    """Computes the private sums without and with the record: [purpose][variable] [2, *shape]."""
    worlds = [
        clipping.clip_and_sum(
            [g[share] for g in _gradients(mechanism, with_record)], *mechanism.clips
        )
        for with_record in (False, True)
    ]
    return [[tf.stack(pair) for pair in zip(*sums)] for sums in zip(*worlds)]


def _flat(tensors) -> np.ndarray:
    """Joins tensors [runs, *shape], one for each variable, into one float64 [runs, size]."""
    return np.concatenate([np.reshape(t, [len(t), -1]) for t in tensors], axis=1).astype(float)


def _releases(mechanism: Mechanism, runs: int) -> _Releases:
    """Makes a function that passes all runs at once through `private_step.release`."""
    purposes = (noise.CLIPPED_GRAD_SUM, noise.RESIDUAL_GRAD_SUM)[: 1 + mechanism.feeds_back]
    buffer = [tf.zeros([runs, *shape]) for shape in _SHAPES] if mechanism.has_buffer else []

    @tf.function
    def draw(step_noise):
        return [
            [
                noise.integers([runs, *shape], step_noise=step_noise, purpose=purpose, variable=i)
                for i, shape in enumerate(_SHAPES)
            ]
            for purpose in purposes
        ]

    # vectorized_map turns a norm over all variables into a loop over the runs, which is ten times
    # slower unless it is compiled.
    @tf.function(jit_compile=not shares_variables(mechanism))
    def step(is_sampled, buffer, draws):
        sums = _sums_of_both_worlds(mechanism)

        def release(run):
            is_sampled, buffer, draws = run
            clipped, residual = tf.nest.map_structure(lambda s: tf.gather(s, is_sampled), sums)
            gradient, buffer = private_step.release(
                mechanism, clipped, residual, buffer or None, float(_DIVISOR), {'draws': draws}
            )
            return gradient, buffer or []

        return tf.vectorized_map(release, (is_sampled, buffer, draws))

    def releases(is_sampled, step_noise):
        nonlocal buffer
        gradient, buffer = step(tf.constant(is_sampled, tf.int32), buffer, draw(step_noise))
        return _flat(gradient), _flat(buffer) if buffer else None

    return releases


def _replicated_releases(
    mechanism: Mechanism, runs: int, strategy: tf.distribute.Strategy
) -> _Releases:
    """Makes a function that passes all runs at once through the optimizer's `release`.

    Each run is a row of every variable. If replicas hold different gradients or buffers, these are
    averaged, as anyone could who sees them all.
    """
    replicas = strategy.num_replicas_in_sync
    with strategy.scope():
        optimizer = ErrorFeedbackDPKerasSGDOptimizer(
            **dataclasses.asdict(mechanism), expected_batch_size=_DIVISOR
        )
        variables = [tf.Variable(tf.zeros([runs, *shape])) for shape in _SHAPES]

    def replica_step(is_sampled, step_noise):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        shares = [
            _sums_of_both_worlds(optimizer.mechanism, slice(i, None, replicas))
            for i in range(replicas)
        ]
        own = tf.nest.map_structure(lambda *s: tf.gather(tf.stack(s), replica), *shares)
        clipped, residual = tf.nest.map_structure(lambda s: tf.gather(s, is_sampled), own)
        return optimizer.release(clipped, residual, variables, step_noise=step_noise)

    step = tf.function(lambda *args: strategy.run(replica_step, args=args))

    def mean(values):
        return [np.mean(strategy.experimental_local_results(v), axis=0) for v in values]

    def releases(is_sampled, step_noise):
        gradient = step(tf.constant(is_sampled, tf.int32), step_noise)
        if not mechanism.has_buffer:
            return _flat(mean(gradient)), None
        buffer = [optimizer.get_slot(variable, _SLOT) for variable in variables]
        return _flat(mean(gradient)), _flat(mean(buffer))

    return releases
