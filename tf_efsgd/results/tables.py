"""Writes the results of a grid: figures, mean and spread over seeds, the table, the pictures."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import pathlib
import shutil
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from tf_efsgd import files, rounding
from tf_efsgd.results import grids
from tf_efsgd.results.runs import Run

_DASH = '–'
# A difference is called noise unless Welch's test rejects that at this level.
_LEVEL = 0.05

# Figure -> (its place in metrics.json, heading, factor, digits).
_MEASURED = {
    'gen2real_cnn': ('gen2real_cnn.accuracy', 'gen2real CNN %', 100, 1),
    'gen2real_mlp': ('gen2real_mlp.accuracy', 'gen2real MLP %', 100, 1),
    'real2gen_cnn': ('real2gen_cnn.accuracy', 'real2gen CNN %', 100, 1),
    'domain_fid_test': ('domain_fid.test', 'domain FID, test', 1, 1),
    'domain_fid_train': ('domain_fid.train', 'domain FID, train', 1, 1),
    'precision': ('precision_recall.precision', 'precision', 1, 2),
    'recall': ('precision_recall.recall', 'recall', 1, 2),
}
# Entries of a privacy statement that the table uses.
_STATED = (
    'unit_of_privacy',
    'epsilon',
    'epsilon_unproven',
    'delta',
    'delta_times_units',
    'accountant',
    'steps',
    'applied_steps',
)
_COMPARED = 'gen2real_cnn'
# Exit codes of a launcher that was stopped by SIGINT or SIGTERM, with a checkpoint and without.
_STOPPED = (130, 143, -2, -15)

_NOTE = (
    'Mean ± sample standard deviation over the seeds; accuracies, FID, precision and recall were '
    'measured on real images and are NOT covered by ε. Steps: private steps applied. Minutes: from '
    'the start of the process to the exported generator, all starts added up, without the '
    'evaluation; ≥ where the end of a start was not seen.'
)
_COMPARED_NOTE = (
    ' Difference: of the mean gen2real CNN accuracy to that of the baseline of the same data set '
    "({}), in points, ± its standard error; within noise: Welch's t-test, one comparison at a "
    'time, does not reject 0 at 5%.'
)
_REAL_NOTE = (
    ' Real images, by data set: accuracies are those of classifiers that learned from the training '
    'split, on the test split; the others are of half of the training split.'
)


@dataclasses.dataclass(frozen=True)
class Mean:
    """The mean of one figure over seeds.

    Attributes:
      mean: arithmetic mean.
      std: sample standard deviation (n - 1); None for one seed.
      n: number of seeds.
    """

    mean: float
    std: float | None
    n: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of two means of independent runs.

    Attributes:
      difference: the first mean less the second.
      standard_error: Welch's standard error, sqrt(s1^2/n1 + s2^2/n2).
      p_value: the p-value of Welch's two-sided t-test of 'the true means are equal'; None if no
        figure varies over its seeds, which says nothing about noise.
    """

    difference: float
    standard_error: float
    p_value: float | None


def average(values: Sequence[float]) -> Mean | None:
    """Returns mean and spread, or None for no values."""
    if not values:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Mean(statistics.mean(values), spread, len(values))


def compare(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    """Compares two samples with Welch's t-test.

    Args:
      first: one value for each seed.
      second: the same for the baseline.

    Returns:
      The difference of their means; None if a side has fewer than two values.
    """
    if min(len(first), len(second)) < 2:
        return None
    error = math.sqrt(sum(statistics.variance(side) / len(side) for side in (first, second)))
    p_value = float(stats.ttest_ind(first, second, equal_var=False).pvalue) if error else None
    return Difference(statistics.mean(first) - statistics.mean(second), error, p_value)


def read_run(run: Run) -> dict:
    """Reads every figure of one run.

    Args:
      run: the run, started or not.

    Returns:
      JSON values by name: 'seed', 'state' (finished, unfinished, failed, not started), the 'reason'
      of a failure, and 'minutes'. A finished run also has the measured figures, or None for one
      that was not measured, 'real' (the same figures for real images), and what its privacy
      statement says.

    Raises:
      config.ConfigError: if a file cannot be read.
    """
    starts = run.starts()
    minutes = [start['minutes'] for start in starts]
    figures = {'seed': run.seed, **_state(run, starts)}
    figures['minutes'] = sum(filter(None, minutes)) if starts else None
    figures['minutes_are_at_least'] = None in minutes
    if not run.is_finished:
        return figures
    metrics, statement = run.metrics(), run.statement()
    for name, (path, *_) in _MEASURED.items():
        figures[name] = _number_at(metrics, path)
    figures['real'] = {
        name: _number_at(metrics, path.replace('.', '.real.'))
        for name, (path, *_) in _MEASURED.items()
    }
    figures['private'], figures['dataset'] = statement['private'], statement.get('dataset')
    for name in _STATED:
        figures[name] = statement.get(name)
    return figures


def _state(run: Run, starts: Sequence[dict]) -> dict:
    if run.is_finished:
        return {'state': 'finished'}
    code = starts[-1].get('exit_code') if starts else None
    if code is None or code in _STOPPED:
        return {'state': 'unfinished' if run.is_started else 'not started'}
    reason = f'exit code {code}; it said: {run.last_words() or "nothing"}'
    return {'state': 'failed', 'reason': reason}


def _number_at(values: Mapping, path: str) -> float | None:
    found: Any = values
    for name in path.split('.'):
        found = found.get(name) if isinstance(found, Mapping) else None
    is_number = isinstance(found, (int, float)) and math.isfinite(found)
    return float(found) if is_number else None


def summarize(runs: Sequence[Run], overrides: Sequence[str] = ()) -> list[dict]:
    """Makes the rows of the table.

    Args:
      runs: the runs of one grid.
      overrides: the overrides that `grids.make_config` was given.

    Returns:
      For each row, in order, JSON values: 'name', 'title', 'command', 'baseline' (name of the row
      that it is compared with, or None), 'runs' (see `read_run`), 'summary' (a `Mean` by figure)
      and 'difference' (to the baseline; None without one, or if it was measured on other images).

    Raises:
      config.ConfigError: if a file cannot be read.
    """
    by_row: dict[str, list[Run]] = {}
    for run in runs:
        by_row.setdefault(run.row.name, []).append(run)
    figures = {name: [read_run(run) for run in its] for name, its in by_row.items()}
    rows = []
    for name, its in by_row.items():
        row = its[0].row
        of_baseline = by_row.get(row.baseline, [])
        is_comparable = of_baseline and _images_of(of_baseline[0]) == _images_of(its[0])
        baseline = figures[row.baseline] if is_comparable else []
        means = {key: average(_values(figures[name], key)) for key in [*_MEASURED, 'minutes']}
        difference = compare(_values(figures[name], _COMPARED), _values(baseline, _COMPARED))
        rows.append(
            {
                'name': name,
                'title': row.title,
                'command': grids.show_command(row, its[0].settings, overrides),
                'target_epsilon': its[0].settings.privacy.target_epsilon,
                'baseline': row.baseline,
                'runs': figures[name],
                'summary': {k: mean and dataclasses.asdict(mean) for k, mean in means.items()},
                'difference': difference and dataclasses.asdict(difference),
            }
        )
    return rows


def _images_of(run: Run) -> tuple:
    """Identifies the real images that the figures of a run are measured on."""
    data = run.settings.data
    return data.dataset, data.image_size, data.label


def _values(runs: Sequence[dict], name: str) -> list[float]:
    values = [run.get(name) for run in runs if run['state'] == 'finished']
    return [value for value in values if value is not None]


# What is printed.


def format_table(grid: str, rows: Sequence[dict]) -> str:
    """Formats the table as Markdown.

    Args:
      grid: the name of the grid.
      rows: the rows of `summarize`.

    Returns:
      A note, the table with real images as its last lines, and a line for each run that is
      missing from it.
    """
    compared = [row['baseline'] for row in rows if row['difference']]
    baselines = '; '.join(row['title'] for row in rows if row['name'] in compared)
    real = _real_images(rows)
    note = _NOTE + (_REAL_NOTE if real else '')
    note += _COMPARED_NOTE.format(baselines) if compared else ''
    headings = ['row', 'runs', 'ε', 'steps', 'minutes', *(m[1] for m in _MEASURED.values())]
    headings += [*(['difference'] if compared else []), 'command']
    lines = [f'# Results: {grid}', '', note, '']
    lines += [_line(headings), _line(['---'] * len(headings))]
    for row in rows:
        finished = [run for run in row['runs'] if run['state'] == 'finished']
        cells = [row['title'], f'{len(finished)} of {len(row["runs"])}', _epsilon(finished)]
        cells += [_steps(finished), _minutes(finished, row['summary']['minutes'])]
        cells += [
            _mean(row['summary'][name], factor, digits)
            for name, (_, _, factor, digits) in _MEASURED.items()
        ]
        cells += [_difference(row['difference'])] if compared else []
        lines.append(_line([*cells, f'`{row["command"]}`']))
    for title, values in real:
        cells = [title, *[_DASH] * 4, *values]
        lines.append(_line([*cells, *[_DASH] * (len(headings) - len(cells))]))
    seeds = ', '.join(str(run['seed']) for run in rows[0]['runs']) if rows else ''
    at = _promise([run for row in rows for run in row['runs'] if run.get('delta') is not None])
    lines += ['', f'Each command with `--seed=` {seeds}.{at}', *_missing(rows)]
    return '\n'.join(lines) + '\n'


def _promise(runs: Sequence[dict]) -> str:
    """Says for which unit of privacy the epsilons of private runs hold, and at which delta."""
    if not runs:
        return ''
    deltas = ', '.join(f'{delta:g}' for delta in sorted({run['delta'] for run in runs}))
    units = dict.fromkeys(run['unit_of_privacy'] for run in runs)
    times_units = max(run['delta_times_units'] for run in runs)
    return (
        f' Unit of privacy: {"; ".join(units)}. δ = {deltas}; times the number of units it is '
        f'{rounding.up(times_units, 2)} at most.'
    )


def _real_images(rows: Sequence[dict]) -> list[tuple[str, list[str]]]:
    """Returns how real images score: a title for each data set, and the figures.

    The runs on a data set share the classifiers of real images, so there is no spread to show.
    """
    by_dataset: dict[str, list[dict]] = {}
    for run in (run for row in rows for run in row['runs']):
        if any(value is not None for value in run.get('real', {}).values()):
            by_dataset.setdefault(run['dataset'], []).append(run['real'])
    found = []
    for dataset, ends in by_dataset.items():
        cells = []
        for name, (_, _, factor, digits) in _MEASURED.items():
            values = [end[name] for end in ends if end[name] is not None]
            cells.append(f'{factor * statistics.mean(values):.{digits}f}' if values else _DASH)
        found.append((f'real images of {dataset}', cells))
    return found


def _line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cell.replace("|", "/") for cell in cells)} |'


def _missing(rows: Sequence[dict]) -> list[str]:
    found = [
        f'- {row["name"]}, seed {run["seed"]}: {run["state"]}'
        + (f' ({run["reason"]})' if 'reason' in run else '')
        for row in rows
        for run in row['runs']
        if run['state'] != 'finished'
    ]
    return ['', 'Not in the table:', *found] if found else []


def _mean(mean: Mapping | None, factor: float = 1, digits: int = 1) -> str:
    if mean is None:
        return _DASH
    text = f'{factor * mean["mean"]:.{digits}f}'
    if mean['std'] is None:
        return f'{text} (one seed)'
    return f'{text} ± {factor * mean["std"]:.{digits}f}'


def _difference(difference: Mapping | None) -> str:
    if difference is None:
        return _DASH
    text = f'{100 * difference["difference"]:+.1f} ± {100 * difference["standard_error"]:.1f}'
    if difference['p_value'] is None:
        return f'{text}, no spread to judge it by'
    return text if difference['p_value'] < _LEVEL else f'{text}, within noise'


def _epsilon(runs: Sequence[dict]) -> str:
    """Returns the largest epsilon of the runs, rounded up, and says what is not private."""
    if not runs:
        return _DASH
    if any(run['delta'] is None for run in runs):
        return 'none: NOT PRIVATE'
    text = _up([run['epsilon'] for run in runs])
    unproven = [run['epsilon_unproven'] for run in runs]
    notes = [] if all(run['private'] for run in runs) else ['NOT PRIVATE']
    notes += [f'{_up(unproven)} unproven'] if any(value is not None for value in unproven) else []
    return ', '.join([text, *notes])


def _up(values: Sequence[float | None]) -> str:
    if None in values:  # The statement writes infinity as None.
        return 'none'
    return rounding.up(max(values))


def _steps(runs: Sequence[dict]) -> str:
    steps = sorted({run['applied_steps'] for run in runs})
    return ' to '.join(f'{n:,}' for n in dict.fromkeys([*steps[:1], *steps[-1:]])) or _DASH


def _minutes(runs: Sequence[dict], mean: Mapping | None) -> str:
    at_least = '≥ ' if any(run['minutes_are_at_least'] for run in runs) else ''
    return at_least + _mean(mean)


# What is written.


def write(folder: pathlib.Path, grid: str, runs: Sequence[Run], overrides: Sequence[str]) -> str:
    """Writes results.json, results.md and the pictures.

    Args:
      folder: the folder of the grid; made if it is missing.
      grid: the name of the grid.
      runs: its runs, in the order of the table.
      overrides: the overrides that `grids.make_config` was given.

    Returns:
      The table.

    Raises:
      config.ConfigError: if a file of a run cannot be read.
      OSError: if one cannot be written.
    """
    rows = summarize(runs, overrides)
    table = format_table(grid, rows)
    folder.mkdir(parents=True, exist_ok=True)
    values = {'grid': grid, 'note': _NOTE, 'rows': rows}
    text = json.dumps(values, indent=2, ensure_ascii=False) + '\n'
    files.write_atomically(folder / 'results.json', text)
    files.write_atomically(folder / 'results.md', table)
    pictures = {}
    for run in runs:  # The first finished seed represents its row.
        picture = run.picture() if run.is_finished and run.row.name not in pictures else None
        if picture is not None:
            pictures[run.row.name] = folder / f'{run.row.name}.png'
            shutil.copyfile(picture, pictures[run.row.name])
    _draw_contact_sheet(folder / 'contact_sheet.png', rows, pictures)
    return table


def _draw_contact_sheet(path: pathlib.Path, rows: Sequence[dict], pictures: Mapping) -> None:
    shown = [row for row in rows if row['name'] in pictures]
    if not shown or importlib.util.find_spec('matplotlib') is None:
        return
    from matplotlib import image
    from matplotlib.figure import Figure

    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(4.2 * columns, 4.2 * lines), layout='constrained')
    for axes, row in zip(figure.subplots(lines, columns, squeeze=False).flat, shown):
        axes.imshow(image.imread(pictures[row['name']]), cmap='gray', vmin=0, vmax=1)
        accuracy = _mean(row['summary'][_COMPARED], 100)
        title = textwrap.fill(row['title'], 48)
        axes.set_title(f'{title}\ngen2real CNN {accuracy} %', fontsize=9)
    for axes in figure.axes:
        axes.axis('off')
    figure.savefig(path, dpi=110)
