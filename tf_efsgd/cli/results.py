"""Runs a grid and writes its table: tf-efsgd results --grid=main."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from tf_efsgd import config, files
from tf_efsgd.cli import arguments
from tf_efsgd.config import ConfigError
from tf_efsgd.results.grids import GRIDS, Row, make_config
from tf_efsgd.results.runs import LAUNCHER, Run, in_turn, run_all

# The data sets of the grids; for each there is a flag that names another place.
_DATA_SETS = ('mnist', 'fashion_mnist')


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags."""
    shared = {'flag_values': flag_values}
    flags.DEFINE_enum(
        'grid',
        'main',
        sorted(GRIDS),
        'Which experiments to run. main: MNIST and Fashion-MNIST at epsilon 10 and 1; ablation: '
        'both at epsilon 10, with and without each idea; error_feedback: MNIST with and without '
        'error feedback, no warm start, 6,000 private steps.',
        **shared,
    )
    flags.DEFINE_string(
        'out',
        'results',
        'The folder of all grids; a run is in OUT/<grid>/<row>/seed_<n>.',
        **shared,
    )
    flags.DEFINE_list(
        'seeds',
        ['1', '2'],
        'Seeds, separated by commas; each row is run once with each. More seeds show the spread.',
        **shared,
    )
    flags.DEFINE_list(
        'rows',
        None,
        'Names of rows, separated by commas: run and show only these. Default: all.',
        **shared,
    )
    config.define_flags(flag_values, data_dir=None, tfds_manual_dir=None)
    for name in _DATA_SETS:
        flags.DEFINE_string(
            name,
            None,
            f'The value of --dataset for the rows on {name}, if the data are elsewhere, e.g. '
            f'idx:PATH. Default: {name}.',
            **shared,
        )
    flags.DEFINE_multi_string(
        'set',
        [],
        'NAME=VALUE: change a setting of all runs, e.g. train_steps=20 for a trial. The flag may '
        'be given several times. Give such runs their own --out.',
        **shared,
    )
    flags.DEFINE_boolean(
        'dry_run', False, 'Print the commands of the runs instead of running them.', **shared
    )
    flags.DEFINE_boolean(
        'table_only', False, 'Write the table of the existing runs, and run nothing.', **shared
    )
    arguments.define_output_flags(flag_values)


def make_runs(flag_values: flags.FlagValues, grid: Sequence[Row]) -> list[Run]:
    """Makes the runs that the flags ask for, in the order of the table.

    Args:
      flag_values: the parsed flags.
      grid: rows to choose from.

    Raises:
      ConfigError: if a flag is wrong, or a run folder holds a run with other settings.
    """
    rows = _chosen(flag_values.rows, grid)
    is_seed = (seed.isdecimal() and len(seed) < 10 for seed in flag_values.seeds)
    if not flag_values.seeds or not all(is_seed):
        raise ConfigError(
            '--seeds must be whole numbers of at most 9 digits, e.g. --seeds=1,2. '
            f'Received: {",".join(flag_values.seeds)}.'
        )
    datasets = {name: flag_values[name].value for name in _DATA_SETS}
    folder = files.expanded(flag_values.out) / flag_values.grid
    runs = []
    for row in rows:
        for seed in dict.fromkeys(map(int, flag_values.seeds)):
            settings = make_config(
                row,
                seed,
                overrides=flag_values['set'].value,
                datasets={name: place for name, place in datasets.items() if place},
                data_dir=flag_values.data_dir,
                tfds_manual_dir=flag_values.tfds_manual_dir,
            )
            runs.append(Run(row, seed, settings, folder / row.name / f'seed_{seed}'))
            runs[-1].check_settings()
    return runs


def _chosen(names: Sequence[str] | None, grid: Sequence[Row]) -> list[Row]:
    known = [row.name for row in grid]
    if names is None:
        return list(grid)
    unknown = [name for name in names or [''] if name not in known]
    if unknown:
        received = unknown[0] or 'an empty name'
        raise ConfigError(f'--rows must be among {", ".join(known)}. Received: {received}.')
    return [row for row in grid if row.name in names]


def answer(
    flag_values: flags.FlagValues,
    *,
    grid: Sequence[Row] | None = None,
    command: Sequence[str] = LAUNCHER,
) -> int:
    """Does what the flags ask for.

    Args:
      flag_values: the parsed flags.
      grid: rows, instead of those that --grid names.
      command: the launcher.

    Returns:
      The exit code: 1 if a run failed, 128 plus the number of the signal that stopped it, else 0.

    Raises:
      ConfigError: if a flag is wrong, or a run folder holds a run with other settings; nothing has
        been run then.
      OSError: if something cannot be written.
    """
    from tf_efsgd.results import tables  # It is loaded only now: --help does not need it.

    runs = make_runs(flag_values, GRIDS[flag_values.grid] if grid is None else grid)
    if flag_values.dry_run:
        for run in in_turn(runs):
            kept = '# finished, kept: ' if run.is_finished else ''
            print(kept + shlex.join([*command, *run.arguments()]))
        return 0
    folder = files.expanded(flag_values.out) / flag_values.grid

    def write() -> str:
        return tables.write(folder, flag_values.grid, runs, flag_values['set'].value)

    code = 0
    if not flag_values.table_only:
        code = run_all([run for run in in_turn(runs) if not run.is_finished], command, write)
    print(f'\n{write()}\n{folder / "results.md"}')
    return code


def _main() -> None:
    logging.set_verbosity(logging.WARNING)  # Matplotlib logs messages about its fonts.
    with arguments.one_line_errors():
        with arguments.only_the_result(flags.FLAGS):
            code = answer(flags.FLAGS)
        # The user has seen it as it came.
        arguments.show(_result(flags.FLAGS), None, flags.FLAGS)
    sys.exit(code)


def _result(flag_values: flags.FlagValues) -> dict[str, Any]:
    """The content of OUT/<grid>/results.json; with --dry_run the commands."""
    if flag_values.dry_run:
        runs = in_turn(make_runs(flag_values, GRIDS[flag_values.grid]))
        return {
            'runs': [
                {'command': [*LAUNCHER, *run.arguments()], 'is_finished': run.is_finished}
                for run in runs
            ]
        }
    path = files.expanded(flag_values.out) / flag_values.grid / 'results.json'
    return {'file': str(path), **json.loads(path.read_text('utf-8'))}


def main() -> None:
    """Entry point of the command line."""
    arguments.start(
        _main, define_flags, first=['grid', 'out', 'seeds', 'rows', 'dry_run', 'table_only']
    )
