"""Measured steps as a table, a JSON file and a picture, and the machine in words."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence

from tf_efsgd.benchmark.measure import Result
from tf_efsgd.benchmark.steps import TITLES, Networks, Variant

_CLIPPINGS = {'none': '', 'fast': 'fast', 'vectorized': 'vectorized', 'jacobian': 'jacobian'}
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
    for base, group in _groups(results):
        lines += ['', group_title(base, scaling)]
        lines += [_format_row(result) for result in group]
    return '\n'.join(lines)


def _groups(results: Sequence[Result]) -> list[tuple[Variant, list[Result]]]:
    bases = [r.variant for r in results if r.variant.name == r.variant.against]
    return [(base, [r for r in results if r.variant.against == base.name]) for base in bases]


def _format_row(result: Result) -> str:
    variant, ratio = result.variant, result.ratio
    seconds = statistics.median(result.seconds)
    is_base = variant.name == variant.against
    return _COLUMNS.format(
        TITLES[variant.optimizer],
        _CLIPPINGS[variant.clipping],
        variant.batch_size,
        f'{1e3 * seconds:.1f}',
        f'{1e6 * seconds / variant.records:.0f}',
        f'{ratio.median:.2f}',
        '' if is_base else f'{ratio.low:.2f}–{ratio.high:.2f}',
        '' if result.memory is None else f'{result.memory / 1e6:.0f}',
        '' if result.memory_ratio is None else f'{result.memory_ratio:.2f}',
    ).rstrip()


def describe_scaling(results: Sequence[Result]) -> str:
    """What a step costs whatever its batch, what a record costs more, and how steady that is.

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


def plot(results: Sequence[Result], path: str, caption: str, scaling: bool = False) -> None:
    """Draws the ratios as bars, least to largest as a line on each.

    Args:
      results: as in `format_table`.
      path: of the picture.
      caption: stands below.
      scaling: as in `format_table`.
    """
    from matplotlib.figure import Figure

    groups = _groups(results)
    heights = [len(group) + 0.8 for _, group in groups]
    figure = Figure(figsize=(9, 1.2 + 0.45 * sum(heights)), layout='constrained')
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (base, group) in zip(panels, groups):
        _plot_group(axes, group, scaling)
        axes.set_title(group_title(base, scaling), fontsize=9, loc='left')
    figure.supxlabel(caption, fontsize=8)
    figure.savefig(path, dpi=120)


def _plot_group(axes, group: Sequence[Result], scaling: bool) -> None:
    names = []
    for result in group:
        variant = result.variant
        clipping = _CLIPPINGS[variant.clipping]
        name = TITLES[variant.optimizer] + (f', {clipping}' if clipping else '')
        names.append(f'batch {variant.batch_size}' if scaling else name)
    medians = [r.ratio.median for r in group]
    below = [r.ratio.median - r.ratio.low for r in group]
    above = [r.ratio.high - r.ratio.median for r in group]
    colors = ['gray' if r.variant.name == r.variant.against else 'C0' for r in group]
    axes.barh(range(len(group)), medians, xerr=[below, above], color=colors, capsize=3)
    axes.set_yticks(range(len(group)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(r.ratio.high for r in group))
    for position, result in enumerate(group):
        text = f'  {result.ratio.median:.2f}'
        axes.annotate(text, (result.ratio.high, position), va='center', fontsize=9)
    axes.grid(True, axis='x', alpha=0.4)
