"""Lists and removes decoded images that are kept for later starts: tf-efsgd cache.

They are PRIVATE, like the images that they were made from. Removing them only costs time: the next
start decodes the images again.
"""

from __future__ import annotations

from typing import Any

from absl import flags

from tf_efsgd import config, files
from tf_efsgd.cli import arguments
from tf_efsgd.data import cache

_ALL = 'all'
_PRIVATE = 'PRIVATE: for the terminal and not for publication'


def run(values: flags.FlagValues) -> str:
    """Does what `find` does, and returns only the lines."""
    return find(values)[1]


def find(values: flags.FlagValues) -> tuple[dict[str, Any], str]:
    """Does what the flags ask for.

    Returns:
      (JSON values by name, the same as lines); both are private.

    Raises:
      ConfigError: if there is no such cache.
      OSError: if the folder cannot be read, or something in it cannot be removed.
    """
    given = values['cache_dir'].value
    folder = files.expanded(given) if given else cache.default_folder()
    items = cache.find_items(folder)
    name = values['remove'].value
    result: dict[str, object] = {'note': _PRIVATE, 'folder': str(folder)}
    if name is None:
        result['items'] = [
            {'name': item.name, 'date': item.date, 'bytes': item.size, 'what': item.what}
            for item in items
        ]
        if not items:
            return result, f'No decoded images are kept in {folder}.'
        lines = [
            f'{item.name}  {item.date:<16}  {files.size_text(item.size):>10}  {item.what}'
            for item in items
        ]
        end = f'In {folder}; PRIVATE. To remove one: --remove=NAME, or --remove={_ALL}.'
        return result, '\n'.join([*lines, '', end])
    chosen = [item for item in items if name in (item.name, _ALL)]
    if not chosen and name != _ALL:
        raise config.ConfigError(
            f'{folder} has no cache of that name: give one that tf-efsgd cache lists, or {_ALL}. '
            f'Received: --remove={name}.'
        )
    removed = cache.remove(chosen)
    result['removed'] = [item.name for item in removed]
    lines = [f'Removed {item.name}: {item.what}.' for item in removed]
    lines += [
        f'{item.name} is being written now and stays.' for item in chosen if item not in removed
    ]
    return result, '\n'.join(lines or ['There was nothing to remove.'])


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Defines the flags and returns their names."""
    names = config.define_flags(flag_values, cache_dir=None)
    flags.DEFINE_string(
        'remove',
        None,
        'What to remove: a name in the list, or all. Default: remove nothing, and list what there '
        'is.',
        flag_values=flag_values,
    )
    return [*names, 'remove', *arguments.define_output_flags(flag_values)]


def _main() -> None:
    with arguments.one_line_errors():
        found, text = find(flags.FLAGS)
        arguments.show(found, text, flags.FLAGS)


def main() -> None:
    """Entry point of the command line."""
    arguments.start(_main, define_flags, first=['remove', 'cache_dir'])
