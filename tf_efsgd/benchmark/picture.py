"""Draws the ratios."""

from __future__ import annotations

from collections.abc import Sequence

from tf_efsgd.benchmark import text
from tf_efsgd.benchmark.measure import Result


def plot(results: Sequence[Result], path: str, caption: str, scaling: bool = False) -> None:
    """Draws the ratios as bars, with a line from the least to the largest on each.

    Args:
      results: as in `text.format_table`.
      path: where to write the picture.
      caption: the text below the picture.
      scaling: as in `text.format_table`.
    """
    from matplotlib.figure import Figure

    groups = text.groups_of(results)
    heights = [len(group) + 0.8 for _, group in groups]
    figure = Figure(figsize=(9, 1.2 + 0.45 * sum(heights)), layout='constrained')
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (base, group) in zip(panels, groups):
        _plot_group(axes, group, scaling)
        axes.set_title(text.group_title(base, scaling), fontsize=9, loc='left')
    figure.supxlabel(caption, fontsize=8)
    figure.savefig(path, dpi=120)


def _plot_group(axes, group: Sequence[Result], scaling: bool) -> None:
    names = []
    for result in group:
        variant = result.variant
        clipping = text.CLIPPINGS[variant.clipping]
        name = text.TITLES[variant.optimizer] + (f', {clipping}' if clipping else '')
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
        label = f'  {result.ratio.median:.2f}'
        axes.annotate(label, (result.ratio.high, position), va='center', fontsize=9)
    axes.grid(True, axis='x', alpha=0.4)
