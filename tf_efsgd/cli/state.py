"""Lists and removes what the state folder remembers: python -m tf_efsgd.state.

What is there outlives the run folders: fingerprints of records, sketches that tell later runs which
records were used with what epsilon, and classifiers that learned from real images.
"""

from __future__ import annotations

from absl import flags

from tf_efsgd import config, files
from tf_efsgd.cli import arguments
from tf_efsgd.privacy import run_state, seen_records
from tf_efsgd.run import state_folder


def run(values: flags.FlagValues) -> None:
    """Does what the flags ask for.

    Raises:
      ConfigError: if a flag is wrong.
      OSError: if the state folder cannot be read, or something in it cannot be removed.
    """
    given = values['state_dir'].value
    folder = files.expanded(given) if given else run_state.default_folder()
    name = values['remove'].value
    if name is None:
        items = state_folder.find_items(folder)
        print(state_folder.table(items) if items else f'Nothing is remembered in {folder}.')
        if items:
            print(
                f'\n{folder}. To remove something: --remove=NAME, or --remove={state_folder.ALL}.'
            )
        return
    removed = state_folder.remove(folder, name)
    if not removed:
        print('There was nothing to remove.')
    for item in removed:
        print(f'Removed {item.name}: {item.what}.')
        if item.is_run:
            print(
                'WARNING: the epsilon of this run is not counted any more: runs on its records '
                'will not mention it, and no --dataset_budget includes it. Its folder can only be '
                'resumed with --resume_unverified.'
            )
        elif item.name == seen_records.KEY:
            print(
                'WARNING: the remaining sketches were made with this key and cannot be used any '
                'more: remove them too.'
            )


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Defines the flags and returns their names."""
    names = config.define_flags(flag_values, state_dir=None)
    flags.DEFINE_string(
        'remove',
        None,
        'What to remove: the id of a run, another name in the table, or all. The epsilon of a run '
        'that is removed is not counted any more, and the run can only be resumed with '
        '--resume_unverified. Default: remove nothing, and list what there is.',
        flag_values=flag_values,
    )
    return [*names, 'remove']


def _main() -> None:
    with arguments.one_line_errors():
        run(flags.FLAGS)


def main() -> None:
    """Entry point of the command line."""
    arguments.start(_main, define_flags)
