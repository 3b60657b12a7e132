"""Times the steps and compares their memory, on this machine: tf-efsgd bench.

tf-efsgd bench --model=mnist --batch_size=512 --plot=bench.png
tf-efsgd bench --scaling
tf-efsgd bench --only=plain,dp_sgd,error_feedback --roofline
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from tf_efsgd.benchmark import measure, picture, roofline, text, variants
from tf_efsgd.cli import arguments
from tf_efsgd.config import ConfigError
from tf_efsgd.machine import describe_machine, machine


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags."""
    shared = {'flag_values': flag_values}
    flags.DEFINE_enum(
        'model',
        'mnist',
        list(variants.MODELS),
        'Which networks to measure: those of the flagfile of this name.',
        **shared,
    )
    flags.DEFINE_integer(
        'batch_size',
        512,
        'Number of examples in a step: half are records, half generated images. It cannot '
        'be combined with --scaling. Range: even and at least 2.',
        **shared,
    )
    flags.DEFINE_integer(
        'tf_privacy_batch_size',
        64,
        "Number of examples in a step of the comparison with TF Privacy's optimizer, which needs "
        'far more memory. Range: even and at least 2.',
        **shared,
    )
    flags.DEFINE_integer(
        'microbatch_size',
        None,
        'The largest number of records, and of generated images, that go through the networks at a '
        f'time. Default: as in training; {variants.SCALING_MICROBATCH_SIZE} with --scaling. '
        'Range: at least 1.',
        **shared,
    )
    flags.DEFINE_integer(
        'rounds',
        7,
        'Number of rounds to measure; raise it on a busy machine. Range: at least 1.',
        **shared,
    )
    flags.DEFINE_boolean(
        'memory',
        True,
        'Measure memory too, in a process for each step, which takes about ten seconds.',
        **shared,
    )
    flags.DEFINE_boolean(
        'scaling',
        False,
        'Instead of comparing steps, measure the time per record of the error-feedback step '
        f'while the batch grows from {variants.SCALING_BATCH_SIZES[0]} to '
        f'{variants.SCALING_BATCH_SIZES[-1]} examples.',
        **shared,
    )
    flags.DEFINE_boolean(
        'roofline',
        False,
        'Also count the operations and bytes of the steps, and print the least time in which this '
        'machine can do them.',
        **shared,
    )
    flags.DEFINE_list(
        'only',
        None,
        'Names of steps, as in the JSON file, separated by commas: measure only these and the '
        'steps that they are compared with. Default: all.',
        **shared,
    )
    flags.DEFINE_string('plot', None, 'Draw the ratios to this file, e.g. bench.png.', **shared)
    flags.DEFINE_string(
        'json_file', None, 'Write all figures to this file, e.g. bench.json.', **shared
    )
    arguments.define_output_flags(flag_values)


def _check(values: flags.FlagValues) -> None:
    """Checks what needs no TensorFlow."""

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
        arguments.check_picture_path('plot', values.plot)
    if values.json_file is not None:
        arguments.check_output_path('json_file', values.json_file, ['json'])


def _choose_variants(values: flags.FlagValues) -> list[variants.Variant]:
    """Chooses what the flags ask for, and what that is compared with."""
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
      values: the parsed flags.

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
    if values.json_file is not None:
        content = json.dumps(figures(values, results), indent=1) + '\n'
        pathlib.Path(values.json_file).write_text(content, encoding='utf-8')
    if values.plot is not None:
        picture.plot(results, values.plot, f'{about_networks}\n{about_machine}', values.scaling)
    return results


def figures(values: flags.FlagValues, results: Sequence[measure.Result]) -> dict[str, Any]:
    """Everything that was measured, with every round, as JSON values by name.

    Args:
      values: the parsed flags.
      results: from `run`.
    """
    return {
        'machine': machine(),
        'model': values.model,
        'rounds': values.rounds,
        'networks': dataclasses.asdict(variants.MODELS[values.model]),
        'steps': text.values_of(results),
    }


def _main() -> None:
    # vectorized_map logs for every norm that it is a loop.
    logging.set_verbosity(logging.ERROR)
    arguments.quieten_tensorflow()
    with arguments.one_line_errors(mistakes=(ConfigError, OSError)):
        with arguments.only_the_result(flags.FLAGS):
            results = run(flags.FLAGS)
        # The user has seen the table.
        arguments.show(figures(flags.FLAGS, results), None, flags.FLAGS)


def main() -> None:
    """Entry point of the command line."""
    arguments.start(
        _main,
        define_flags,
        first=['model', 'batch_size', 'rounds', 'memory', 'only', 'plot'],
    )
