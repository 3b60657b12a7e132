"""Writes the page of a run that may NOT be shared: what was measured against real images."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from tf_efsgd.reporting import pages
from tf_efsgd.reporting.verdict import verdict

_LABELS = {
    'unit_of_privacy': 'Unit of privacy',
    'private': 'Private training',
    'epsilon': 'ε spent',
    'epsilon_pld': 'ε by privacy loss distributions',
    'delta': 'δ',
    'delta_times_units': 'δ times the number of images, or of persons',
    'steps': 'Private steps charged',
    'checkpoint_step': 'Step of the generator',
    'dataset': 'Data set',
    'num_images': 'Images measured',
    'training_minutes': 'Minutes of training, pauses included',
    'evaluation_minutes': 'Minutes of evaluation',
    'public_images': 'Public images used beside the records (†)',
    'machine': 'Machine of the evaluation',
    'tf_efsgd': 'Version',
}

# The width of a scale and its ends, which leave some room on both sides.
_WIDTH, _LEFT, _RIGHT = 200, 12, 188
_MOST_CLASSES = 50


class _Row(NamedTuple):
    """One figure with both ends of its scale; None for what does not exist."""

    name: str
    value: float | None
    untrained: float | None
    real: float | None
    is_share: bool = False
    spread: float | None = None


def write_metrics_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    metrics: Mapping[str, Any],
    pictures: Mapping[str, bytes],
) -> None:
    """Writes the page of what was measured against real images; it shows some of them.

    Args:
      path: the file to write, in RUN/nonprivate; an existing one is replaced.
      title: the heading.
      metrics: the metrics of `protocol.measure`, and `provenance`: values by name.
      pictures: PNGs by what they show: a row of images above their nearest training images.

    Raises:
      ValueError: if a picture is not a PNG.
    """
    parts = [
        pages.banner(
            'Do NOT share this page',
            'Its figures were measured on real images, and it shows some of them: it is not '
            "covered by the run's ε. Show it only to those who may see the images. Choosing a run "
            'by these figures spends privacy that no ε counts.',
            may_be_shared=False,
        ),
        pages.section('Verdict', f'<p><b>{html.escape(verdict(metrics))}</b></p>'),
        pages.section(
            'Usefulness',
            _table(_usefulness(metrics)) + _usefulness_notes(metrics) + _by_class(metrics),
        ),
        pages.section('Likeness', _table(_likeness(metrics)) + _likeness_notes(metrics)),
        pages.section('Copies of training images', _copies(metrics, pictures)),
        pages.section('How it was measured', pages.facts(metrics['provenance'], _LABELS)),
    ]
    pages.write_page(path, title, parts)


def _usefulness(metrics: Mapping[str, Any]) -> list[_Row]:
    names = {
        'gen2real_cnn': 'gen2real, CNN',
        'gen2real_mlp': 'gen2real, MLP',
        'gen2real_resnet': 'gen2real, ResNet',
        'gen2real_wide_resnet': 'gen2real, WideResNet',
        'gen2real_resnext': 'gen2real, ResNeXt',
        'gen2real_benchmark': 'gen2real, mean of these three',
        'real2gen_cnn': 'real2gen, CNN',
    }
    rows = []
    for key, name in names.items():
        if key in metrics:
            found = metrics[key]
            ends = [(found[end] or {}).get('accuracy') for end in ('untrained', 'real')]
            untrained = found.get('guessing') if ends[0] is None else ends[0]
            row = _Row(name, found['accuracy'], untrained, ends[1], True, found['spread'])
            rows.append(row)
    return rows


def _usefulness_notes(metrics: Mapping[str, Any]) -> str:
    if 'gen2real_cnn' not in metrics:
        return '<p>No gen2real: it needs at least two classes and 10 real images to test on.</p>'
    found = metrics['gen2real_cnn']
    runs = len(found['accuracies'])
    spread = (
        ' and their sample standard deviation' if runs > 1 else '; a single run shows no spread'
    )
    left = '' if found['untrained'] else ' (here the accuracy of guessing; none was trained)'
    return f"""
<p><b>gen2real:</b> a classifier learns from {found['num_generated']:,} generated images only and is
measured once on {found['num_test']:,} real test images; its epoch is chosen on held-out generated
ones. <b>real2gen:</b> a classifier that learned from real training images is measured on generated
ones. The figures are the mean of {runs} classifier{'' if runs == 1 else 's'}{spread}. The left end
of the scale is the same figure for the untrained generator{left}, the right end that of a
classifier that learned from real training images, on real test images.</p>"""


def _by_class(metrics: Mapping[str, Any]) -> str:
    """Shows gen2real of the CNN for each class, the weakest first."""
    found = metrics.get('gen2real_cnn', {})
    if 'by_class' not in found:  # Measured by an earlier version.
        return ''
    guessing = found['guessing']
    rows = [
        _Row(name, value, guessing, real, True)
        for name, value, real in zip(
            metrics['class_names'], found['by_class'], found['real_by_class']
        )
        if value is not None
    ]
    shown = sorted(rows, key=lambda row: row.value)[:_MOST_CLASSES]
    left = len(rows) - len(shown)
    note = f'<p>{left:,} more classes are right more often.</p>' if left else ''
    return (
        '<h3>gen2real of the CNN by class: share of real images of the class that it recognises'
        f'</h3>{_table(shown, first="guessing")}{note}'
    )


def _likeness(metrics: Mapping[str, Any]) -> list[_Row]:
    rows = []
    if 'domain_is' in metrics:
        found = metrics['domain_is']
        rows.append(_Row('domain IS', found['value'], found['untrained'], found['real']))
    names = {
        'domain_fid': 'domain FID',
        'domain_kid': 'domain KID',
        'public_fid': 'public FID',
        'fid': 'FID (Inception 2015)',
        'kid': 'KID (Inception 2015)',
    }
    for key, name in names.items():
        for split in ('test', 'train'):
            if split in metrics.get(key, {}):
                found = metrics[key]
                ends = found['untrained'][split], found['real'][split]
                rows.append(_Row(f'{name} to the {split} split', found[split], *ends))
    found = metrics['precision_recall']
    for name in ('precision', 'recall'):
        ends = found['untrained'][name], found['real'][name]
        rows.append(_Row(name, found[name], *ends, True))
    return rows


def _likeness_notes(metrics: Mapping[str, Any]) -> str:
    features = (
        'pixels, averaged down, because no classifier can be trained with one class'
        if metrics['features'] == 'pixels'
        else 'the last hidden layer of a CNN that was trained on the real training split'
    )
    fid = (
        ''
        if 'fid' in metrics
        else ' FID itself needs the 2015 Inception network: see <code>--inception_weights</code>.'
    )
    public = (
        ' The public FID uses the features of the public network of the package and is the '
        'same measure for all data sets of this image size; it flatters a generator that was '
        'trained with the same network.'
        if 'public_fid' in metrics
        else ''
    )
    return f"""
<p>Features: {features}. Figures called <b>domain</b> use these features and must not be compared
with a published FID, KID or IS, nor with those of another data set.{public}{fid}
For FID and KID smaller is better; for IS, precision and recall larger is better. Precision and
recall use k nearest neighbours, k = 3, among {metrics['precision_recall']['num_images']:,} images
of each set. The left end of the scale is the untrained generator. The right end is half of the real
training split, compared with the test split, or with the other half where training images are the
reference; for IS it is that of real images.</p>"""


def _copies(metrics: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    found = metrics['duplicates']
    rows = [
        _Row(
            'images closer to a training image than 1 in 100 test images is',
            found['generated']['close_share'],
            found['untrained']['close_share'],
            found.get('test', {}).get('close_share'),
            True,
        ),
        _Row(
            'median distance to the nearest training image',
            found['generated']['median_distance'],
            found['untrained']['median_distance'],
            found.get('test', {}).get('median_distance'),
        ),
        _Row(
            'images that are a training image, pixel by pixel',
            found['generated']['identical_pixels'],
            found['untrained']['identical_pixels'],
            found.get('test', {}).get('identical_pixels'),
        ),
    ]
    note = f"""
<p>{found['generated']['num_images']:,} generated images are compared, in feature space, with all
training images. Real test images, which training never saw, are the scale: images of a generator
that repeats training images are closer to them than test images are. Test images that repeat a
training image are left out of that scale; whatever repeats one always counts as close.</p>"""
    shown = [
        pages.picture(
            png,
            f'{name} images above their nearest training images',
            f'Upper row: {name} images, those closest to a training image. Below each: its nearest '
            'training image.',
        )
        for name, png in pictures.items()
    ]
    return _table(rows, scales=False) + note + '\n'.join(shown)


def _table(rows: list[_Row], scales: bool = True, first: str = 'untrained') -> str:
    if not rows:
        return ''
    head = _tr('', ['value', first, 'real', *(['scale'] if scales else [])])
    lines = [_tr(html.escape(row.name), _cells(row, scales)) for row in rows]
    rows_of_table = '\n'.join([head, *lines])
    return f'<div class="wide"><table class="figures">\n{rows_of_table}\n</table></div>'


def _tr(name: str, cells: list[str]) -> str:
    # The fourth cell is the scale, which a narrow window leaves out.
    kinds = ['<td>'] * 3 + ['<td class="of-scale">']
    shown = ''.join(f'{kind}{cell}</td>' for kind, cell in zip(kinds, cells))
    return f'<tr><th>{name}</th>{shown}</tr>'


def _cells(row: _Row, scales: bool) -> list[str]:
    text = _number(row.value, row.is_share)
    if row.spread is not None:
        text += f' ± {_number(row.spread, row.is_share)}'
    ends = (_number(end, row.is_share) for end in (row.untrained, row.real))
    return [f'<b>{text}</b>', *ends, *([_scale(row)] if scales else [])]


def _number(value: float | None, is_share: bool) -> str:
    if value is None:
        return 'none'
    if is_share:
        return f'{value:.1%}'
    return f'{value:,}' if isinstance(value, int) else f'{value:,.4g}'


def _scale(row: _Row) -> str:
    """Draws a line from the untrained to the real end, with a mark at the value."""
    ends = row.untrained, row.real
    if not all(map(pages.is_number, (row.value, *ends))) or ends[0] == ends[1]:
        return ''
    share = (row.value - row.untrained) / (row.real - row.untrained)
    x = _LEFT + min(max(share, 0.0), 1.0) * (_RIGHT - _LEFT)
    return (
        f'<svg class="scale" viewBox="0 0 {_WIDTH} 20" role="img" '
        f'aria-label="{share:.0%} of the way from untrained to real">'
        f'<path d="M{_LEFT} 10H{_RIGHT}" stroke="#b8c2cc" stroke-width="4"/>'
        f'<path d="M{_LEFT} 10H{x:.1f}" stroke="#1f5fa8" stroke-width="4"/>'
        f'<circle cx="{x:.1f}" cy="10" r="6" fill="#1f5fa8"/></svg>'
    )
