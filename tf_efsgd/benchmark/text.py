"""What was measured in words: tables, one line about scaling, JSON."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence

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
    """The images and the size of the networks in words."""
    from tf_efsgd.models.discriminator import build_discriminator

    shape, classes = networks.image_shape, networks.num_classes
    discriminator = build_discriminator(shape, classes, width=networks.width)
    return (
        f'{"x".join(map(str, shape))}, {classes} classes; discriminator '
        f'{discriminator.count_params():,} parameters'
    )


def group_title(base: Variant, scaling: bool = False) -> str:
    """What the steps compared with `base` have in common."""
    if scaling:
        size = base.microbatch_size
        return f'Error feedback, {size} records at a time; × is of the first, time by record'
    half = f'batch {base.batch_size} ({base.records} records)'
    if base.optimizer == 'error_feedback':
        return f'Against TF Privacy, {half}; × is of our fast error feedback'
    if base.with_generator:
        return f'With the generator making its images, {half}; × is of plain'
    return f'Generated images given, {half}; × is of plain'


def format_table(results: Sequence[Result], scaling: bool = False) -> str:
    """The results as a table, one part for each variant that others are compared with."""
    lines = [_COLUMNS.format(*_HEADER)]
    for base, group in groups_of(results):
        lines += ['', group_title(base, scaling)]
        lines += [_format_row(result) for result in group]
    return '\n'.join(lines)


def groups_of(results: Sequence[Result]) -> list[tuple[Variant, list[Result]]]:
    """The variants that others are compared with, each with the results of its group."""
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
    """The cost of a step whatever its batch, that of each record more, and how steady it is.

    Args:
      results: of `scaling_variants`, in growing order, at least two.

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
        f'{line}; from {records[is_full][0]:.0f} records on {between.min():.0f} to '
        f'{between.max():.0f} µs for one more'
    )


def to_json(results: Sequence[Result], **about) -> str:
    """All that was measured, every round of it, for notes and scripts."""
    steps = [
        {**dataclasses.asdict(r), 'milliseconds': 1e3 * statistics.median(r.seconds)}
        for r in results
    ]
    return json.dumps({**about, 'steps': steps}, indent=1) + '\n'


def format_roofline(networks: Networks, results: Sequence[Result], machine: roofline.Work) -> str:
    """The least time that the steps need beside what they took, for those that can be counted."""
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
