"""Compares the account with what an attack can prove: tf-efsgd audit."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from tf_efsgd import rounding
from tf_efsgd.cli import arguments
from tf_efsgd.config import ConfigError

if TYPE_CHECKING:
    from tf_efsgd.audit.findings import Finding
    from tf_efsgd.audit.lattice import Attack
    from tf_efsgd.privacy.mechanism import Mechanism

_ALL = 'all'
_AUDITS = ('mechanism', 'training')
_MODES = ('none', 'private', 'hidden')

# (steps, sampling probability). One step on all records shows the plain mechanism, with the least
# noise in the attack; many sampled steps show amplification, composition and the buffer.
_MECHANISM_SETTINGS = ((1, 1.0), (200, 0.05))
_TRAINING_SETTING = (20, 0.2)
_RUNS = {'mechanism': 10_000, 'training': 200}


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags; those that training has too have the same name and meaning."""
    shared = {'flag_values': flag_values}
    flags.DEFINE_enum(
        'audit',
        'mechanism',
        [*_AUDITS, _ALL],
        'What to attack. mechanism: crafted gradients, the release before the first step and the '
        'lattice attack, about a minute; training: the training of a small GAN, several minutes; '
        'all: both.',
        **shared,
    )
    flags.DEFINE_enum(
        'error_feedback',
        _ALL,
        [*_MODES, _ALL],
        'The mode of error feedback to attack, or all; hidden is attacked by --audit=mechanism '
        'only.',
        **shared,
    )
    flags.DEFINE_float(
        'noise_multiplier',
        1.0,
        'Standard deviation of the noise of one step, divided by its sensitivity. With less noise '
        'a fault shows more clearly. Range: 1e-6 to 1e6.',
        **shared,
    )
    flags.DEFINE_integer(
        'train_steps',
        None,
        'Number of private steps of a run. Default: 1 and 200 for the mechanism, 20 for training. '
        'Range: 1 to 1,000,000.',
        **shared,
    )
    flags.DEFINE_float(
        'sampling_probability',
        None,
        'Probability that a step samples a given record. Default: 1 and 0.05 for the mechanism, '
        '0.2 for training. Range: above 0 and at most 1.',
        **shared,
    )
    flags.DEFINE_float(
        'l2_norm_clip',
        1.0,
        "Length to which each record's gradient is clipped. Range: 1e-9 to 1e9.",
        **shared,
    )
    flags.DEFINE_float(
        'residual_l2_norm_clip',
        1.0,
        'Length to which the part that clipping cut from one gradient is itself clipped. Range: '
        '1e-9 to 1e9.',
        **shared,
    )
    flags.DEFINE_float(
        'residual_share',
        0.1,
        'Share of the budget (in 1/sigma^2) that is spent on releasing what clipping cut. Range: '
        '0, or at least 1e-9 and below 1.',
        **shared,
    )
    flags.DEFINE_float(
        'feedback_decay',
        0.9,
        'Part of the error buffer that each step keeps. At 0 the attack would see only the sum of '
        'the two releases, and would show less than there is. Range: above 0 and below 1.',
        **shared,
    )
    flags.DEFINE_float(
        'feedback_l2_norm_clip',
        None,
        'Largest norm of what one step gives back from the error buffer. Default: no limit. Range: '
        '1e-9 to 1e9.',
        **shared,
    )
    flags.DEFINE_multi_float(
        'target_delta',
        [1e-5, 0.1],
        'Delta at which epsilon is compared; the flag may be given several times. The account '
        'holds at every delta at once: a privacy statement has a small one, and a large one needs '
        'the fewest runs to show a fault. Range: above 0 and below 1.',
        **shared,
    )
    flags.DEFINE_integer(
        'runs',
        None,
        'Number of runs with the record, and of runs without it, that measure a bound; half as '
        'many more choose the attack. n runs prove at most about ln(n / 3.7) at 95%: raise it '
        'to prove more. Default: 10,000 for the mechanism, 200 for training. Range: 10 to '
        '100,000,000.',
        **shared,
    )
    flags.DEFINE_float(
        'confidence',
        0.95,
        'Probability that no bound in the table is above the true epsilon. Range: above 0 and '
        'below 1.',
        **shared,
    )
    flags.DEFINE_integer(
        'logical_devices',
        1,
        'Split the CPU into this many replicas that share the records, and attack what they '
        'release together. It cannot be combined with --error_feedback=hidden. Range: 1 to 64.',
        **shared,
    )
    arguments.define_output_flags(flag_values)


def _check(values: flags.FlagValues) -> None:
    """Checks what needs no TensorFlow and is not checked by the mechanism itself."""

    def require(ok, name, allowed):
        if not ok:
            raise ConfigError(f'--{name} must be {allowed}. Received: {values[name].value}.')

    def is_set(name):
        return values[name].value is not None

    sigma = values.noise_multiplier
    require(1e-6 <= sigma <= 1e6, 'noise_multiplier', 'at least 1e-06 and at most 1e+06')
    steps = values.train_steps if is_set('train_steps') else 1
    require(1 <= steps <= 10**6, 'train_steps', 'at least 1 and at most 1000000')
    q = values.sampling_probability
    require(q is None or 0 < q <= 1, 'sampling_probability', 'in (0, 1]')
    require(0 < values.feedback_decay < 1, 'feedback_decay', 'in (0, 1)')
    require(all(0 < d < 1 for d in values.target_delta), 'target_delta', 'in (0, 1)')
    runs = values.runs if is_set('runs') else 10
    require(10 <= runs <= 10**8, 'runs', 'at least 10 and at most 100000000')
    require(0 < values.confidence < 1, 'confidence', 'in (0, 1)')
    require(1 <= values.logical_devices <= 64, 'logical_devices', 'at least 1 and at most 64')
    is_hidden = values.error_feedback == 'hidden'
    if values.audit == 'training' and is_hidden:
        raise ConfigError('--error_feedback=hidden is audited on the mechanism: --audit=mechanism.')
    if values.logical_devices > 1 and (is_hidden or is_set('feedback_l2_norm_clip')):
        raise ConfigError(
            '--logical_devices above 1 takes neither --error_feedback=hidden nor '
            '--feedback_l2_norm_clip, whose norms would mix the runs. '
            f'Received: --logical_devices={values.logical_devices}.'
        )


def _mechanism(values: flags.FlagValues, error_feedback: str) -> Mechanism:
    from tf_efsgd.privacy.mechanism import Mechanism

    try:
        return Mechanism(
            l2_norm_clip=values.l2_norm_clip,
            noise_multiplier=values.noise_multiplier,
            error_feedback=error_feedback,
            residual_l2_norm_clip=values.residual_l2_norm_clip,
            residual_share=values.residual_share,
            feedback_decay=values.feedback_decay,
            feedback_l2_norm_clip=values.feedback_l2_norm_clip,
        )
    except ValueError as error:
        raise ConfigError(f'--{error}') from error


def _plan(values: flags.FlagValues) -> list[tuple[str, str, int, float]]:
    """Lists what to audit, as (audit, mode, steps, sampling probability), in order."""
    audits = _AUDITS if values.audit == _ALL else (values.audit,)
    modes = _MODES if values.error_feedback == _ALL else (values.error_feedback,)
    plan = []
    for audit in audits:
        settings = _MECHANISM_SETTINGS if audit == 'mechanism' else (_TRAINING_SETTING,)
        if values.train_steps is not None or values.sampling_probability is not None:
            steps, probability = settings[-1]
            settings = ((values.train_steps or steps, values.sampling_probability or probability),)
        for mode in modes:
            if mode == 'hidden':
                if audit == 'training' or values.logical_devices > 1:
                    continue
                # In one step nothing is fed back, so only the last setting, with many, is used.
                plan.append((audit, mode, *settings[-1]))
            else:
                plan += [(audit, mode, *setting) for setting in settings]
    return plan


def _strategy(logical_devices: int):
    """Splits the CPU and returns the strategy over its parts; None for one device."""
    if logical_devices == 1:
        return None
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices('CPU')[0],
        [tf.config.LogicalDeviceConfiguration()] * logical_devices,
    )
    return tf.distribute.MirroredStrategy([f'CPU:{i}' for i in range(logical_devices)])


def run(values: flags.FlagValues) -> tuple[list[Finding], list[Attack]]:
    """Runs the audits that the flags ask for, and prints each finding as it comes.

    Args:
      values: the parsed flags.

    Returns:
      All findings, and what the lattice attack found.

    Raises:
      ConfigError: if a flag is wrong; nothing has been run then.
    """
    _check(values)
    plan = _plan(values)
    mechanisms = {mode: _mechanism(values, mode) for _, mode, *_ in plan}
    from tf_efsgd.audit import class_sums, lattice
    from tf_efsgd.audit import mechanism as mechanism_audit
    from tf_efsgd.audit import training as training_audit

    releases_are_audited = any(audit == 'mechanism' for audit, *_ in plan)
    # The confidence is that of the whole table: honest code fails it no more often than that.
    lines = (len(plan) + releases_are_audited) * len(values.target_delta)
    options = {
        'deltas': values.target_delta,
        'confidence': 1.0 - (1.0 - values.confidence) / lines,
    }
    strategy = _strategy(values.logical_devices)
    _print_header(values)
    findings = []
    for audit, mode, steps, probability in plan:
        mechanism, runs = mechanisms[mode], values.runs or _RUNS[audit]
        if audit == 'mechanism':
            found = mechanism_audit.audit(
                mechanism, probability, steps, runs, strategy=strategy, **options
            )
        else:
            batch = max(1, round(probability * training_audit.DATASET_SIZE))
            found = training_audit.audit(
                mechanism, batch, steps, runs, strategy=strategy, **options
            )
        _print_findings(found)
        findings += found
    attacks = []
    if releases_are_audited:
        found = class_sums.audit(
            values.noise_multiplier,
            values.runs or _RUNS['mechanism'],
            strategy=strategy,
            **options,
        )
        _print_findings(found)
        findings += found
        attacks = lattice.audit(values.noise_multiplier, strategy)
        _print_attacks(attacks)
    return findings, attacks


_COLUMNS = '{:<10} {:<14} {:>8} {:>5} {:>6} {:>6} {:>6} {:>7} {:>7} {:>8}  {}'


def _print_header(values: flags.FlagValues) -> None:
    print(
        f'noise_multiplier {values.noise_multiplier:g}; all bounds together hold with '
        f'{values.confidence:.4g} confidence.'
    )
    titles = ('audit', 'error_feedback', 'replicas', 'steps', 'q', 'δ', 'runs', 'ceiling')
    print(_COLUMNS.format(*titles, 'bound', 'account', 'verdict'), flush=True)


def _print_findings(findings: Sequence[Finding]) -> None:
    for f in findings:
        print(
            _COLUMNS.format(
                f.audit,
                f.error_feedback,
                f.replicas,
                f.steps,
                f'{f.sampling_probability:.3g}',
                f'{f.delta:g}',
                f.runs,
                f'{f.ceiling:.2f}',
                # A bound is rounded down and an account up, so neither claims more than was shown.
                f'{math.floor(100 * f.bound) / 100:.2f}',
                rounding.up(f.account),
                f.verdict,
            ),
            flush=True,
        )


_ATTACK_COLUMNS = '{:<10} {:<10} {:>11} {:>10} {:>12} {:>13} {:>9}  {}'


def _print_attacks(attacks: Sequence[Attack]) -> None:
    print(
        '\nLattice attack: coordinates of a release that no noise value explains, for three '
        'guesses of the\nrecords, and the smallest p-value of a test for a lattice in what is left '
        'as noise.'
    )
    titles = ('release', 'noise from', 'coordinates', 'the truth', 'without one', 'with another')
    print(_ATTACK_COLUMNS.format(*titles, 'p-value', 'verdict'))
    for a in attacks:
        print(
            _ATTACK_COLUMNS.format(
                a.release,
                a.source,
                f'{a.coordinates:,}',
                *a.refuted.values(),
                f'{min(a.lattice.values()):.2g}',
                a.verdict,
            ),
            flush=True,
        )


def result_of(findings: Sequence[Finding], attacks: Sequence[Attack]) -> dict[str, Any]:
    """Turns what was found into JSON values by name.

    Args:
      findings: from `run`.
      attacks: from `run`.
    """
    return {
        'failed': any(f.exceeds for f in findings) or any(a.finds for a in attacks),
        'findings': [
            {**dataclasses.asdict(f), 'exceeds': f.exceeds, 'verdict': f.verdict} for f in findings
        ],
        'attacks': [
            {**dataclasses.asdict(a), 'finds': a.finds, 'verdict': a.verdict} for a in attacks
        ],
    }


def _main() -> None:
    # vectorized_map logs for every norm that it is a loop.
    logging.set_verbosity(logging.ERROR)
    arguments.quieten_tensorflow()
    with arguments.one_line_errors():
        with arguments.only_the_result(flags.FLAGS):
            findings, attacks = run(flags.FLAGS)
        found = result_of(findings, attacks)
        arguments.show(found, None, flags.FLAGS)  # The user has seen each finding as it came.
    sys.exit(1 if found['failed'] else 0)


def main() -> None:
    """Entry point of the command line."""
    arguments.start(
        _main,
        define_flags,
        first=['audit', 'runs', 'error_feedback', 'noise_multiplier', 'train_steps', 'confidence'],
    )
