"""Writes a data set that may be shared, from a trained run or an export: tf-efsgd generate RUN.

The data set has images with labels, in a form that the next program reads, the privacy statement, a
page that explains it, a datasheet and checksums. The command looks at the exported generator and at
nothing else, so it costs no privacy, however many images are made. If it is interrupted, the same
command continues.

  tf-efsgd generate RUN
  tf-efsgd generate RUN --count=10000 --format=tfds --output=digits
  tf-efsgd generate --export_dir=generator/1 --format=npz --output=synthetic
"""

from __future__ import annotations

from absl import flags, logging

from tf_efsgd import config, files
from tf_efsgd.cli import arguments

_FIRST = ['run_dir', 'output', 'count', 'format', 'balance', 'seed']


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Defines the flags and returns their names."""
    shared = {'flag_values': flag_values}
    flags.DEFINE_string(
        'run_dir', None, 'The folder of the run; its latest export is used.', **shared
    )
    flags.DEFINE_string(
        'export_dir',
        None,
        'The folder of one export, e.g. RUN/export/1, instead of --run_dir. Somebody who was given '
        'only the generator needs nothing else.',
        **shared,
    )
    flags.DEFINE_string(
        'output', 'synthetic', 'The folder to make; it must not exist yet.', **shared
    )
    flags.DEFINE_integer('count', 60_000, 'Number of images. Range: at least 1.', **shared)
    flags.DEFINE_string(
        'format',
        'png',
        '<png|npz|tfrecord|tfds>: How the images are written. png: CLASS/000123.png, which '
        "Hugging Face loads with load_dataset('imagefolder', data_dir=OUT); npz: one images.npz; "
        'tfrecord: shards of tf.train.Example; tfds: a data set that tfds.load(NAME, '
        'data_dir=OUT) reads without any code.',
        **shared,
    )
    flags.DEFINE_string(
        'balance',
        'auto',
        '<auto|even|released>: How many images of each class. even: equally many; released: in '
        'proportion to the noisy class counts that the run has released; auto: released if there '
        'are any, else even.',
        **shared,
    )
    flags.DEFINE_integer(
        'seed',
        None,
        'Seed of the images: the same seed, count and export give the same images. Default: a seed '
        'is drawn and written to generation.json. Range: at least 0 and below 2147483648.',
        **shared,
    )
    names = ['run_dir', 'export_dir', 'output', 'count', 'format', 'balance', 'seed']
    return [*names, *arguments.define_output_flags(flag_values)]


def source_of(flag_values: flags.FlagValues) -> str:
    """The run or the export that the flags name.

    Raises:
      ConfigError: if they name none, or both.
    """
    run_dir, export_dir = flag_values['run_dir'].value, flag_values['export_dir'].value
    if (run_dir is None) == (export_dir is None):
        received = 'neither' if run_dir is None else 'both'
        raise config.ConfigError(
            'Give either a run folder (RUN, or --run_dir) or an export (--export_dir). '
            f'Received: {received}.'
        )
    return run_dir if export_dir is None else export_dir


def run(flag_values: flags.FlagValues) -> None:
    """Generates what the flags ask for.

    Raises:
      ConfigError: if a flag is wrong, or there is no generator.
      OSError: e.g. if the disk is full.
    """
    source, output = source_of(flag_values), flag_values['output'].value
    if not files.expanded(source).is_dir():
        raise config.ConfigError(f'There is no folder {source}.')
    # TensorFlow takes seconds to load, so it is loaded only once the flags are known to be right.
    from tf_efsgd.export import synthetic_data
    from tf_efsgd.run import share

    wanted = synthetic_data.Wanted(
        count=flag_values['count'].value,
        kind=flag_values['format'].value,
        balance=flag_values['balance'].value,
        seed=flag_values['seed'].value,
    )
    made = share.generate(source, output, wanted, quiet=flag_values['quiet'].value)
    arguments.show(made, share.describe(made), flag_values)


def _main() -> None:
    logging.set_verbosity(logging.ERROR)
    arguments.quieten_tensorflow()
    with arguments.one_line_errors(hint='The same command continues.'):
        run(flags.FLAGS)


def main() -> None:
    """Entry point of the command line."""
    arguments.start(_main, define_flags, positional=arguments.RUN, first=_FIRST)
