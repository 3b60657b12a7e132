"""Formats what was measured: tables, one line about scaling, JSON values."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from tf_efsgd.benchmark import roofline
from tf_efsgd.benchmark.measure import Result
from tf_efsgd.benchmark.variants import Networks, Variant

_ROOFLINE = '{:<24} {:>7} {:>7} {:>9} {:>9} {:>7}'
TITLES = {
    'plain': 'plain, not private',
    'dp_sgd': 'DP-SGD',
    'error_feedback': 'error feedback',
    'tf_privacy': "TF Privacy's optimizer",
}
CLIPPINGS = {'none': '', 'fast': 'fast', 'vectorized': 'vectorized', 'jacobian': 'jacobian'}
_COLUMNS = '{:<24} {:<12} {:>7} {:>10} {:>10} {:>7} {:>13} {:>8} {:>7}'
_HEADER = ('step', 'clipping', 'batch', 'ms', 'µs/record', '× time', 'min–max', 'MB', '× MB')


def describe_networks(networks: Networks) -> str:
    """Describes the images and the size of the networks in words."""
    from tf_efsgd.models.discriminator import build_discriminator

    shape, classes = networks.image_shape, networks.num_classes
    discriminator = build_discriminator(shape, classes, width=networks.width)
    return (
        f'{"x".join(map(str, shape))}, {classes} classes; discriminator '
        f'{discriminator.count_params():,} parameters'
    )


def group_title(base: Variant, scaling: bool = False) -> str:
    """Says what the steps that are compared with `base` have in common."""
    if scaling:
        size = base.microbatch_size
        return f'Error feedback, {size} records at a time; × compares the time of a record'
    half = f'batch {base.batch_size} ({base.records} records)'
    if base.optimizer == 'error_feedback':
        return f'Compared with TF Privacy, {half}; × our fast error feedback'
    if base.with_generator:
        return f'With the generator making its images, {half}; × the plain step'
    return f'Generated images given, {half}; × the plain step'


def format_table(results: Sequence[Result], scaling: bool = False) -> str:
    """Formats the results as a table, one part for each variant that others are compared with."""
    lines = [_COLUMNS.format(*_HEADER)]
    for base, group in groups_of(results):
        lines += ['', group_title(base, scaling)]
        lines += [_format_row(result) for result in group]
    return '\n'.join(lines)


def groups_of(results: Sequence[Result]) -> list[tuple[Variant, list[Result]]]:
    """Returns the variants that others are compared with, each with the results of its group."""
    bases = [r.variant for r in results if r.variant.name == r.variant.against]
    return [(base, [r for r in results if r.variant.against == base.name]) for base in bases]


def _format_row(result: Result) -> str:
    variant, ratio = result.variant, result.ratio
    seconds = statistics.median(result.seconds)
    is_base = variant.name == variant.against
    return _COLUMNS.format(
        TITLES[variant.optimizer],
        CLIPPINGS[variant.clipping],
        variant.batch_size,
        f'{1e3 * seconds:.1f}',
        f'{1e6 * seconds / variant.records:.0f}',
        f'{ratio.median:.2f}',
        '' if is_base else f'{ratio.low:.2f}–{ratio.high:.2f}',
        '' if result.memory is None else f'{result.memory / 1e6:.0f}',
        '' if result.memory_ratio is None else f'{result.memory_ratio:.2f}',
    ).rstrip()


def describe_scaling(results: Sequence[Result]) -> str:
    """Describes the fixed cost of a step, the cost of each record, and how constant the latter is.

    Args:
      results: at least two results of `scaling_variants`, in growing order.

    Returns:
      One line: least squares of the relative errors of fixed + records * marginal, and the least
      and largest marginal time between neighbouring sizes of full microbatches.
    """
    import numpy as np

    records = np.array([r.variant.records for r in results], float)
    seconds = np.array([statistics.median(r.seconds) for r in results])
    marginal, fixed = np.polyfit(records, seconds, 1, w=1 / seconds)
    line = f'{1e3 * fixed:.1f} ms for every step and {1e6 * marginal:.0f} µs for every record'
    is_full = records >= results[0].variant.microbatch_size
    if sum(is_full) < 2:
        return line
    between = 1e6 * np.diff(seconds[is_full]) / np.diff(records[is_full])
    return (
        f'{line}; with {records[is_full][0]:.0f} records or more, {between.min():.0f} to '
        f'{between.max():.0f} µs for one more'
    )


def values_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Returns all that was measured, in every round, as JSON values: one item for each step."""
    return [
        {**dataclasses.asdict(r), 'milliseconds': 1e3 * statistics.median(r.seconds)}
        for r in results
    ]


def format_roofline(networks: Networks, results: Sequence[Result], machine: roofline.Work) -> str:
    """Formats the least time that steps need beside the time they took, where it is known."""
    lines = [
        f'This machine: {machine.operations / 1e9:.0f} GFLOP/s in a matrix product, '
        f'{machine.bytes / 1e9:.1f} GB/s in a copy, {machine.draws / 1e6:.0f} M numbers of noise/s',
        _ROOFLINE.format('step', 'GFLOP', 'MB', 'draws', 'least ms', 'ms'),
    ]
    for result in results:
        variant = result.variant
        if variant.clipping in ('none', 'fast') and not variant.with_generator:
            work = roofline.count_work(roofline.layers_of(networks), variant)
            lines.append(
                _ROOFLINE.format(
                    TITLES[variant.optimizer],
                    f'{work.operations / 1e9:.2f}',
                    f'{work.bytes / 1e6:.0f}',
                    f'{work.draws:,}',
                    f'{1e3 * work.least_seconds(machine):.1f}',
                    f'{1e3 * statistics.median(result.seconds):.1f}',
                )
            )
    return '\n'.join(lines)
