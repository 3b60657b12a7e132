"""Lists and removes what the state folder remembers: tf-efsgd state.

What is there outlives the run folders: fingerprints of records, sketches that tell later runs which
records were used with what epsilon, and classifiers that learned from real images.
"""

from __future__ import annotations

from typing import Any

from absl import flags

from tf_efsgd import config, files
from tf_efsgd.cli import arguments
from tf_efsgd.privacy import run_state, seen_records
from tf_efsgd.run import state_folder

_PRIVATE = 'PRIVATE: for the terminal and not for publication'
_NOT_COUNTED = (
    'WARNING: the epsilon of this run is not counted any more: runs on its records will not '
    'mention it, and no --dataset_budget includes it. Its folder can only be resumed with '
    '--resume_unverified.'
)
_KEY_IS_GONE = (
    'WARNING: the remaining sketches were made with this key and cannot be used any more: remove '
    'them too.'
)


def run(values: flags.FlagValues) -> None:
    """Does what the flags ask for, and prints what they ask for."""
    found, text = find(values)
    arguments.show(found, text, values)


def find(values: flags.FlagValues) -> tuple[dict[str, Any], str]:
    """Does what the flags ask for.

    Returns:
      (JSON values by name, the same as lines); both are private.

    Raises:
      ConfigError: if a flag is wrong.
      OSError: if the state folder cannot be read, or something in it cannot be removed.
    """
    given = values['state_dir'].value
    folder = files.expanded(given) if given else run_state.default_folder()
    name = values['remove'].value
    result: dict[str, Any] = {'note': _PRIVATE, 'folder': str(folder)}
    if name is None:
        items = state_folder.find_items(folder)
        result['items'] = [
            {
                **{'name': item.name, 'what': item.what, 'date': item.date.isoformat()},
                **{'bytes': item.size, 'is_run': item.is_run, 'is_ours': item.is_ours},
            }
            for item in items
        ]
        if not items:
            return result, f'Nothing is remembered in {folder}.'
        how = f'To remove something: --remove=NAME, or --remove={state_folder.ALL}.'
        return result, f'{state_folder.table(items)}\n\n{folder}. {how}'
    removed = state_folder.remove(folder, name)
    lines, warnings = [], []
    for item in removed:
        lines.append(f'Removed {item.name}: {item.what}.')
        warning = _NOT_COUNTED if item.is_run else None
        if item.name == seen_records.KEY:
            warning = _KEY_IS_GONE
        if warning is not None:
            warnings.append(f'{item.name}: {warning}')
            lines.append(warning)
    result.update(removed=[item.name for item in removed], warnings=warnings)
    return result, '\n'.join(lines or ['There was nothing to remove.'])


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
    return [*names, 'remove', *arguments.define_output_flags(flag_values)]


def _main() -> None:
    with arguments.one_line_errors():
        run(flags.FLAGS)


def main() -> None:
    """Entry point of the command line."""
    arguments.start(_main, define_flags)
