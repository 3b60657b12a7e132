"""Where the files of a run are, and how a run is read back from its folder."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import re
import shlex
from collections.abc import Collection
from typing import Any

import numpy as np

from tf_efsgd import file_names, files
from tf_efsgd.config import (
    PLACED_DATASETS,
    ConfigError,
    DataConfig,
    RunConfig,
    forbidden_changes,
    from_flagfile,
    join_classes,
    lasting_changes,
    recipes,
)
from tf_efsgd.data import arrays, cache, load, records
from tf_efsgd.privacy import run_state

# A warning names classes with fewer records than this, at most so many of them.
_FEW_RECORDS, _SHOWN = 20, 10

_NOT_COVERED_NOTE = """\
What is in this folder was measured on real records. It is NOT covered by the privacy guarantee of
the run: do not share it with anyone who may not see the records.
"""


def choose(config: RunConfig) -> pathlib.Path:
    """The run folder that the settings name; by default runs/<data set>-<time>."""
    if config.run.run_dir is not None:
        return files.expanded(config.run.run_dir)
    # Whatever the data set is called: no pattern for TensorFlow, and no path of several levels.
    name = re.sub(r'[^\w.+-]+', '-', public_name(config.data.dataset)).strip('-.')
    name = f'{name or "data"}-{datetime.datetime.now():%Y%m%d-%H%M%S}'
    data, runs = _folder_of_records(config.data), pathlib.Path('runs')
    if data is not None and runs.resolve().is_relative_to(data):
        runs = data.parent / 'runs'
    return runs / name


def _folder_of_records(data: DataConfig) -> pathlib.Path | None:
    """The folder that a data set NAME:PATH names; None for other data sets."""
    scheme, _, path = data.dataset.partition(':')
    if scheme not in PLACED_DATASETS or not path:
        return None
    return files.expanded(path).resolve()


def folder_of_images(data: DataConfig) -> pathlib.Path | None:
    """The folder of a folder: data set; None for other data sets.

    Args:
      data: the settings of the data set.
    """
    return _folder_of_records(data) if data.dataset.startswith('folder:') else None


def with_whole_paths(config: RunConfig) -> RunConfig:
    """Makes paths in the settings absolute, so that a run can be continued from any folder.

    Args:
      config: the settings. If the run is resumed, the path of --public_features stays as it is,
        because the hash of the settings holds it.
    """
    data, privacy = config.data, config.privacy
    places = {name: getattr(data, name) for name in ('data_dir', 'tfds_manual_dir', 'cache_dir')}
    whole: dict[str, Any] = {
        name: _whole(path) for name, path in places.items() if path is not None
    }
    scheme, _, path = data.dataset.partition(':')
    if _folder_of_records(config.data) is not None:
        whole['dataset'] = f'{scheme}:{_whole(path)}'
    if recipes.is_path(privacy.public_features) and not config.run.resume:
        privacy = dataclasses.replace(privacy, public_features=_whole(privacy.public_features))
    return dataclasses.replace(config, data=dataclasses.replace(data, **whole), privacy=privacy)


def _whole(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def how_to_continue(config: RunConfig, run_dir: pathlib.Path) -> str | None:
    """Says, in a sentence, which command continues a run; None if no run began in the folder.

    Args:
      config: the settings of the start that ended.
      run_dir: the run folder.
    """
    if not (run_dir / file_names.LEDGER).exists():
        return None
    if config.data.dataset == arrays.NAME:
        at = repr(str(run_dir))
        return f'Continue with: Synthesizer(run_dir={at}, resume=True).fit(the same arrays)'
    arguments = [f'--flagfile={run_dir / file_names.FLAGFILE}', f'--run_dir={run_dir}', '--resume']
    if config.run.state_dir:
        arguments.append(f'--state_dir={config.run.state_dir}')
    return f'Continue with: python -m tf_efsgd.launch {shlex.join(arguments)}'


def public_name(dataset: str) -> str:
    """The data set's name without where it is on this machine."""
    scheme, colon, path = dataset.partition(':')
    return f'{scheme}:{pathlib.Path(path).resolve().name}' if colon else dataset


def public_rule(person: str | None) -> str | None:
    """The value of --person or --label without where a table is on this machine."""
    if person is None or not person.startswith('csv:'):
        return person
    return f'csv:{pathlib.Path(person.removeprefix("csv:")).name}'


def check(run_dir: pathlib.Path, config: RunConfig, given: Collection[str] = ()) -> RunConfig:
    """Checks that a run can start, or continue, in a folder.

    Args:
      run_dir: the run folder; it need not exist.
      config: the settings.
      given: names of the settings that somebody gave; on resume the others stay what they were.

    Returns:
      The settings. Those of a run to resume have the public facts that its first start declared or
      read off the records.

    Raises:
      ConfigError: if the run cannot start or continue there.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f'--run_dir must be a folder. Received: {run_dir}.')
    cached = cache_dir(config.data)
    if cached is not None and cached.resolve().is_relative_to(run_dir.resolve()):
        raise ConfigError(
            '--cache_dir must be outside the run folder: somebody who has the run must not have '
            f'the images. Received: {cached}.'
        )
    if not config.run.resume:
        _check_place(run_dir, config)
    found = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else set()
    # A start that ended before it wrote the ledger leaves only these files.
    early = (file_names.FLAGFILE, file_names.NOT_PRIVATE)
    has_files = any(name not in early and '.tmp-' not in name for name in found)
    if config.run.resume:
        return _check_resume(run_dir, config, given, has_files)
    if has_files:
        raise ConfigError(
            f'The run folder {run_dir} is not empty: give --resume to continue the run in it, or '
            'another --run_dir.'
        )
    return config


def _check_place(run_dir: pathlib.Path, config: RunConfig) -> None:
    """Raises ConfigError if a new run could not be made there, or not be used after it was paid."""
    place, data = run_dir.resolve(), folder_of_images(config.data)
    if files.has_wildcards(place):
        raise ConfigError(
            'TensorFlow mistakes *, ?, [, ] and \\ in a path for a pattern, and would not find the '
            f'SavedModel of the run again: give a --run_dir without them. Received: {place}.'
        )
    if data is not None and place.is_relative_to(data):
        raise ConfigError(
            'The run folder must be outside the folder of the images: the next start would mistake '
            f'its pictures for images. Give another --run_dir. Received: {place}.'
        )
    parent = next(folder for folder in (place, *place.parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f'{parent} {"cannot be written to" if parent.is_dir() else "is not a folder"}: give a '
            f'--run_dir that can be made. Received: {place}.'
        )


def _check_resume(run_dir, config, given, has_files) -> RunConfig:
    flagfile = run_dir / file_names.FLAGFILE
    if not flagfile.is_file():
        raise ConfigError(f'Nothing to resume: there is no {flagfile}.')
    if not has_files:
        raise ConfigError(f'Nothing to resume: {run_dir} was never trained in. Leave out --resume.')
    # They are read as settings of a resume: those of a changed run cannot start a new run.
    before = read_settings(run_dir)
    config = recipes.as_before(config.with_public_facts_of(before), given, before)
    changed = forbidden_changes(before, config)
    if changed:
        raise ConfigError(
            f'{run_dir} was started with other settings: {"; ".join(changed)}. Resume with '
            f'--flagfile={flagfile}, or start a new run folder.'
        )
    return config


def note_settings(run_dir: pathlib.Path, config: RunConfig) -> None:
    """Writes to RUN/config.flags what a resumed run changed.

    That is where the records are now, if they were moved, and the settings that stay changed from
    then on; with --change_mechanism it is everything.

    Args:
      run_dir: the run folder.
      config: the settings that it is resumed with.
    """
    if config.run.change_mechanism:
        files.write_atomically(run_dir / file_names.FLAGFILE, config.to_flags())
        return
    before = read_settings(run_dir)
    changed = lasting_changes(before, config)
    if changed:
        files.write_atomically(run_dir / file_names.FLAGFILE, before.to_flags(**changed))


def read_settings(run_dir: pathlib.Path, *more: str) -> RunConfig:
    """Reads the settings of a run as they are when the run continues.

    Args:
      run_dir: the run folder.
      *more: flags that override those of the run.

    Raises:
      ConfigError: if a flag is wrong, or there is no such run.
    """
    flagfile = run_dir / file_names.FLAGFILE
    if not flagfile.is_file():
        raise ConfigError(f'{run_dir} is not a run folder: there is no {flagfile}.')
    try:
        text = files.read_text(flagfile)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    lines = [text, '--resume', f'--run_dir={run_dir}', *more]
    return recipes.without_new(from_flagfile('\n'.join(lines)))


def nonprivate_dir(run_dir: pathlib.Path) -> pathlib.Path:
    """Returns RUN/nonprivate; makes it, and a note that says what it is, when it is missing."""
    folder = run_dir / file_names.NONPRIVATE
    folder.mkdir(exist_ok=True)
    (folder / 'NOT_COVERED.txt').write_text(_NOT_COVERED_NOTE, encoding='utf-8')
    return folder


def state_dir(config: RunConfig, run_dir: pathlib.Path) -> pathlib.Path:
    """Returns the state folder, which is outside the run folder; makes it when it is missing.

    Raises:
      ConfigError: if it is inside the run folder or among the records, or cannot be written to.
    """
    given = config.run.state_dir
    folder = files.expanded(given) if given else run_state.default_folder()
    data = _folder_of_records(config.data)
    if data is not None and folder.resolve().is_relative_to(data):
        raise ConfigError(
            f'--state_dir must be outside the folder of the data set. Received: {folder}.'
        )
    if folder.resolve().is_relative_to(run_dir.resolve()):
        raise ConfigError(
            '--state_dir must be outside the run folder: somebody who has the run must not have '
            f'its secrets. Received: {folder}.'
        )
    try:
        run_state.prepare_folder(folder)
    except run_state.RunStateError as error:
        raise ConfigError(str(error)) from error
    return folder


def cache_dir(data: DataConfig) -> pathlib.Path | None:
    """The folder where decoded images are kept; None with --nocache."""
    if not data.cache:
        return None
    return files.expanded(data.cache_dir) if data.cache_dir else cache.default_folder()


class _Remembered(run_state.RunState):
    """What is remembered of a run, for reading: without the lock, which training may hold."""

    def __init__(self, folder: pathlib.Path, run_id: str):
        path = folder / f'{run_id}.json'
        self._state = json.loads(path.read_text(encoding='utf-8')) if path.exists() else None


def check_records(folder: pathlib.Path, run_id: str, train: records.Records) -> bool:
    """Checks that records are those of a run, if anything is remembered of it here.

    It writes nothing and takes no lock, so the run may be training meanwhile.

    Args:
      folder: the state folder.
      run_id: of the run's ledger.
      train: the records.

    Returns:
      Whether anything is remembered.

    Raises:
      ConfigError: if they are other records, or what is remembered is damaged.
    """
    try:
        remembered = _Remembered(folder, run_id)
        if remembered.is_known:
            remembered.check_records(train.images, train.labels)
    except run_state.RunStateError as error:
        raise ConfigError(
            'The records are not the ones that the run was started with (their fingerprint '
            'differs): give the --dataset or --data_dir where the right ones are.'
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f'{folder / run_id}.json is damaged: whether the records are those of the run cannot '
            'be checked.'
        ) from error
    return remembered.is_known


def _check_no_runs(data: DataConfig) -> None:
    """Raises ConfigError if run folders lie among the images: their pictures are not records."""
    root = _folder_of_records(data)
    if folder_of_images(data) is None:
        return
    for pattern in (file_names.LEDGER, f'*/{file_names.LEDGER}', f'*/*/{file_names.LEDGER}'):
        found = next(root.glob(pattern), None)
        if found is not None:
            raise ConfigError(
                f'{found.parent} is a run folder, and it lies in the folder of the images: move it '
                'elsewhere. Do not delete it: its ledger says what was spent on the records. '
                f'Received: --dataset={data.dataset}.'
            )


def load_records(config: RunConfig) -> records.Dataset:
    """Loads the records that the settings ask for.

    Raises:
      ConfigError: if they cannot be loaded.
    """
    data = config.data
    _check_no_runs(data)
    # Whether there is any such image is private, so both lines are printed without looking.
    if data.channels == 1:
        print('Images with colours, if there are any, are turned to gray (--channels=1).')
    if data.images_per_person is not None:
        print(
            f'At most {data.images_per_person} images of a person are kept. If a person is in both '
            'parts of a data set that has a test set, only those in the training part are kept.'
        )
    try:
        dataset = load.load(
            data.dataset,
            data_dir=data.data_dir,
            manual_dir=data.tfds_manual_dir,
            image_size=data.image_size,
            channels=data.channels,
            classes=data.class_names,
            label=data.label,
            limit_records=data.limit_records,
            dataset_size=data.dataset_size,
            size_was_counted=size_was_counted(config),
            person=data.person,
            images_per_person=data.images_per_person,
            dataset_persons=data.dataset_persons,
            bits=data.bits,
            skip_unreadable=data.skip_unreadable,
            cache_dir=cache_dir(data),
        )
    except records.DataError as error:
        raise ConfigError(str(error)) from error
    # What the files hold is shown only on the terminal.
    for note in (*dataset.notes, *_small_classes(dataset.train)):
        print(note)
    return marked_as_read(dataset, data)


def size_was_counted(config: RunConfig) -> bool:
    """Whether the declared number of records is what an earlier start of this run counted.

    Then another number is refused when records are compared with the ledger. A new run with the
    settings of another one declares what that one counted, and a limit hides the number.
    """
    is_whole = config.data.limit_records is None
    return config.run.resume and is_whole and 'dataset_size' in config.data.read_off


def marked_as_read(dataset: records.Dataset, data: DataConfig) -> records.Dataset:
    """Marks the facts that an earlier start read off the records, which by now are declared.

    Args:
      dataset: as it was loaded now.
      data: the settings.
    """
    names = {*data.read_off, *dataset.read_off}
    read_off = tuple(name for name in records.READ_OFF if name in names)
    return dataclasses.replace(dataset, read_off=read_off)


def _small_classes(train: records.Records) -> list[str]:
    """Warns of classes with so few records that noise hides them."""
    counts = np.bincount(train.labels, minlength=train.num_classes)
    few = sorted(np.flatnonzero(counts < _FEW_RECORDS), key=lambda label: counts[label])
    if not len(few):
        return []
    listed = ', '.join(f'{train.class_names[i]} ({counts[i]})' for i in few[:_SHOWN])
    more = f' and {len(few) - _SHOWN} more' if len(few) > _SHOWN else ''
    return [
        f'WARNING: classes with fewer than {_FEW_RECORDS} images to train on: {listed}{more}. '
        'Their images will look like noise or like other classes; more images, or fewer and larger '
        'classes, help.'
    ]


def declare(config: RunConfig, dataset: records.Dataset) -> RunConfig:
    """Declares every public fact of the records in the settings of a run.

    Args:
      config: the settings that the records were loaded with.
      dataset: the records.

    Returns:
      The settings with what the data set or its records said, and with the names of those that
      were read off the records. Loading with them reads no public fact off the records again.

    Raises:
      ConfigError: if what was read is out of the setting's range.
    """
    found = dict(dataset.found)
    if 'classes' in found:
        found['classes'] = join_classes(found['classes'])
    read_off = ','.join(dataset.read_off) or None
    data = dataclasses.replace(config.data, **found, read_off_records=read_off)
    return dataclasses.replace(config, data=data)
