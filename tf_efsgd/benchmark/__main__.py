"""Times the steps and compares their memory, on this machine: python -m tf_efsgd.benchmark.

  python -m tf_efsgd.benchmark --model=mnist --batch_size=512 --plot=bench.png
  python -m tf_efsgd.benchmark --scaling
  python -m tf_efsgd.benchmark --only=plain,dp_sgd,error_feedback --roofline

A step is one discriminator step as training runs it, without the input pipeline: forward, backward,
clipping, noise, error feedback and update, on records and as many generated images. The content of
the images has no influence; they are random.

How it measures:
  - Everything is built and traced first. Then, in each round, each kind of step is run for at least
    0.2 seconds, forwards in one round and backwards in the next.
  - A ratio is taken within a round, so that what slows the machine down for a while slows both
    sides; shown are the median over the rounds, the least and the largest.
  - Memory is what a step's batch takes: the most that a process of its own had in RAM at any time,
    without what it had after TensorFlow was loaded and the data made, less the same for a step on
    two images. So tracing, weights and optimizer are not in it; what a GPU holds is not either.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags, logging

from tf_efsgd.benchmark import measure, picture, roofline, text, variants
from tf_efsgd.cli.arguments import exit_with, parse_arguments
from tf_efsgd.config import ConfigError
from tf_efsgd.machine import describe_machine, machine


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags."""
    shared = {'flag_values': flag_values}
    flags.DEFINE_enum(
        'model',
        'mnist',
        list(variants.MODELS),
        'The networks of these flagfiles; demo is mnist.',
        **shared,
    )
    flags.DEFINE_integer(
        'batch_size',
        512,
        'Examples in a step, even: half are records, half generated images. Not for --scaling.',
        **shared,
    )
    flags.DEFINE_integer(
        'tf_privacy_batch_size',
        64,
        "The same for the comparison with TF Privacy's optimizer, which needs much memory.",
        **shared,
    )
    flags.DEFINE_integer(
        'microbatch_size',
        None,
        'Records, and generated images beside them, that go through the networks at a time, at '
        f'least 1. Default: all; {variants.SCALING_MICROBATCH_SIZE} with --scaling.',
        **shared,
    )
    flags.DEFINE_integer('rounds', 7, 'Rounds to measure, at least 1.', **shared)
    flags.DEFINE_boolean(
        'memory', True, 'Measure memory too; takes some ten seconds for each step.', **shared
    )
    flags.DEFINE_boolean(
        'scaling',
        False,
        'Measure the time of a record in the error-feedback step as the batch grows from '
        f'{variants.SCALING_BATCH_SIZES[0]} to {variants.SCALING_BATCH_SIZES[-1]} instead.',
        **shared,
    )
    flags.DEFINE_boolean(
        'roofline',
        False,
        'Also count the operations and bytes of the steps, and print the least time that this '
        'machine needs for them.',
        **shared,
    )
    flags.DEFINE_list(
        'only', None, 'Steps to measure, by their names in the JSON file. Default: all.', **shared
    )
    flags.DEFINE_string('plot', None, 'Picture to write, e.g. bench.png.', **shared)
    flags.DEFINE_string('json', None, 'File to write all figures to, e.g. bench.json.', **shared)


def _check(values: flags.FlagValues) -> None:
    """Whatever can be checked without TensorFlow."""

    def require(ok, name, allowed):
        if not ok:
            raise ConfigError(f'--{name} must be {allowed}. Received: {values[name].value}.')

    for name in ('batch_size', 'tf_privacy_batch_size'):
        size = values[name].value
        require(size >= 2 and size % 2 == 0, name, 'even and at least 2')
    size = values.microbatch_size
    require(size is None or size >= 1, 'microbatch_size', 'at least 1')
    require(values.rounds >= 1, 'rounds', 'at least 1')
    if values.plot is not None:
        _check_plot_path(values.plot)
    if values.json is not None:
        _check_target('json', values.json, ['json'])


def _check_plot_path(path: str) -> None:
    if importlib.util.find_spec('matplotlib') is None:
        raise ConfigError('--plot needs matplotlib: pip install tf_efsgd[report]')
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    _check_target('plot', path, sorted(FigureCanvasAgg.get_supported_filetypes()))


def _check_target(flag: str, path: str, endings: Sequence[str]) -> None:
    target = pathlib.Path(path)
    if not target.parent.is_dir():
        raise ConfigError(f'--{flag}: there is no folder {target.parent}. Received: {path}.')
    if target.is_dir() or target.suffix[1:].lower() not in endings:
        raise ConfigError(
            f'--{flag} must be a file that ends in one of {", ".join(endings)}. Received: {path}.'
        )


def _choose_variants(values: flags.FlagValues) -> list[variants.Variant]:
    """What the flags ask for, and what that is compared with."""
    if values.scaling:
        size = values.microbatch_size or variants.SCALING_MICROBATCH_SIZE
        chosen = variants.scaling_variants(variants.SCALING_BATCH_SIZES, size)
    else:
        chosen = variants.step_variants(
            values.batch_size, values.tf_privacy_batch_size, values.microbatch_size
        )
    if values.only is None:
        return chosen
    known = {variant.name: variant for variant in chosen}
    for name in values.only:
        if name not in known:
            raise ConfigError(f'--only takes {", ".join(known)}. Received: {name or "nothing"}.')
    wanted = {*values.only, *(known[name].against for name in values.only)}
    return [variant for variant in chosen if variant.name in wanted]


def run(values: flags.FlagValues) -> list[measure.Result]:
    """Measures what the flags ask for, prints it and writes the files.

    Args:
      values: parsed flags.

    Returns:
      One result for each step.

    Raises:
      ConfigError: if a flag is wrong; nothing has been measured then.
    """
    _check(values)
    chosen = _choose_variants(values)
    networks = variants.MODELS[values.model]
    facts = machine()
    about_machine = describe_machine(facts)
    about_networks = f'{values.model}: {text.describe_networks(networks)}; {values.rounds} rounds'
    print(f'{about_machine}\n{about_networks}', flush=True)
    results = measure.measure(networks, chosen, values.rounds, values.memory)
    print('\n' + text.format_table(results, values.scaling), flush=True)
    if values.scaling and len(results) > 1:
        print('\n' + text.describe_scaling(results), flush=True)
    if values.roofline:
        print(
            '\n' + text.format_roofline(networks, results, roofline.measure_machine()), flush=True
        )
    if values.json is not None:
        about = {'machine': facts, 'model': values.model, 'rounds': values.rounds}
        content = text.to_json(results, **about, networks=dataclasses.asdict(networks))
        pathlib.Path(values.json).write_text(content, encoding='utf-8')
    if values.plot is not None:
        picture.plot(results, values.plot, f'{about_networks}\n{about_machine}', values.scaling)
    return results


def _main(arguments: list[str]) -> None:
    del arguments
    # Below 3 TensorFlow greets with three errors about GPU plug-ins; real ones are raised. And
    # vectorized_map says of every norm that it is a loop.
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    logging.set_verbosity(logging.ERROR)
    try:
        run(flags.FLAGS)
    except (ConfigError, OSError) as error:
        exit_with(error)
    except KeyboardInterrupt:
        print('\ntf_efsgd: interrupted.', file=sys.stderr)
        sys.exit(130)


def main() -> None:
    """Entry point of the command line."""
    define_flags()
    app.run(_main, flags_parser=parse_arguments)


if __name__ == '__main__':
    main()
