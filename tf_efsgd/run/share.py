"""Makes a data set to share from a trained run: images, statement, datasheet, checksums."""

from __future__ import annotations

import datetime
import os
import pathlib
import shlex
from typing import Any

import numpy as np
import tensorflow as tf

from tf_efsgd import file_names, files
from tf_efsgd.config import ConfigError
from tf_efsgd.export import checksums, generated, synthetic_data, versions
from tf_efsgd.export.formats import FORMATS
from tf_efsgd.reporting import data_card, report
from tf_efsgd.run import folder as run_folder
from tf_efsgd.training import samples

# The examples of the page, while it is written.
_PICTURE = 'PRIVACY.png'
# File systems allow 255 bytes; a data set that is being written has more before and after its name.
_LONGEST_NAME = 240
_LARGEST_COUNT = 100_000_000
# What a statement of an earlier version of this program may lack.
_NOT_SAID = ['not said by the version of the program that made the generator']


def generate(
    source: str | os.PathLike,
    output: str | os.PathLike,
    wanted: synthetic_data.Wanted,
    *,
    quiet: bool = False,
) -> dict[str, Any]:
    """Writes a synthetic data set from a run or an export; see `synthetic_data.write`.

    Args:
      source: a run folder, its folder of exports, or one export.
      output: the folder to make.
      wanted: what is to be generated.
      quiet: whether to draw no progress bar.

    Returns:
      How it was generated, and the privacy statement: JSON values by name.

    Raises:
      ConfigError: if a setting is wrong, or there is no generator that can be read.
      OSError: e.g. if the disk is full; the same call continues then.
    """
    check(wanted)
    output = pathlib.Path(os.path.abspath(files.expanded(output)))
    try:
        generator = generated.ExportedGenerator(versions.find(source))
        _check_output(output, pathlib.Path(os.path.abspath(generator.path)))
        _check_apart(output, pathlib.Path(generator.path))
        about = synthetic_data.write(generator, output, wanted, _pages_of(generator), quiet=quiet)
    except versions.ExportError as error:
        raise ConfigError(str(error)) from error
    return {'output': str(output), **about, 'privacy_statement': generator.statement}


def _check_output(output: pathlib.Path, export: pathlib.Path) -> None:
    """Raises ConfigError if a data set cannot stand at a place, or would change an export there."""
    parent = next(folder for folder in output.parents if os.path.lexists(folder))
    why = None
    if not parent.is_dir():
        why = f'{parent} is a file'
    elif not os.access(parent, os.W_OK):
        why = f'nothing may be written in {parent}'
    elif len(os.fsencode(output.name)) > _LONGEST_NAME:
        why = 'its name is too long'
    elif export in output.parents or (output.parent == export.parent and output.name.isdigit()):
        why = f'it would change the exports in {export.parent}'
    if why is not None:
        raise ConfigError(f'--output must be another folder: {why}. Received: {output}.')


def _check_apart(output: pathlib.Path, export: pathlib.Path) -> None:
    """Raises ConfigError if a data set would stand among the images that its run trained on."""
    of_run = export.resolve().parent.parent  # RUN/export/1
    if not (of_run / file_names.FLAGFILE).is_file():
        return
    try:
        records = run_folder.folder_of_images(run_folder.read_settings(of_run).data)
    except ConfigError:
        return  # The export says all that is needed.
    if records is not None and output.resolve().is_relative_to(records):
        raise ConfigError(
            '--output must be outside the folder of the images: the next training would take '
            f'generated images for real ones. Received: {output}.'
        )


def check(wanted: synthetic_data.Wanted) -> None:
    """Raises ConfigError if a setting is wrong by itself."""
    if not 1 <= wanted.count <= _LARGEST_COUNT:
        received = wanted.count if abs(wanted.count) < 10**12 else 'a larger number'
        raise ConfigError(
            f'--count must be at least 1 and at most {_LARGEST_COUNT}. Received: {received}.'
        )
    if wanted.seed is not None and not 0 <= wanted.seed < 2**31:
        raise ConfigError(f'--seed must be in [0, 2147483648). Received: {wanted.seed}.')
    choices = {
        'format': (wanted.kind, FORMATS),
        'balance': (wanted.balance, synthetic_data.BALANCES),
    }
    for flag, (value, allowed) in choices.items():
        if value not in allowed:
            raise ConfigError(f'--{flag} must be one of {", ".join(allowed)}. Received: {value}.')


def _pages_of(generator: generated.ExportedGenerator):
    """Makes the function that writes the pages of a data set from this generator."""
    statement = generator.statement
    complete = {
        **dict.fromkeys(('proven', 'tested_not_proven', 'not_covered'), _NOT_SAID),
        # An old export does not say its unit of privacy, which was an image.
        'delta_times_units': statement.get('delta', 0.0) * statement.get('dataset_size', 1),
        'unit_of_privacy': 'one image with its label',
        **statement,
    }

    def write(folder: pathlib.Path, about: dict[str, Any], images: np.ndarray) -> None:
        columns = min(len(about['class_names']), 16)
        picture = folder / _PICTURE
        grid = samples.image_grid(images, columns)
        files.write_atomically(picture, tf.io.encode_png(grid).numpy())
        report.write_privacy_page(
            folder / file_names.PAGE,
            title=f'{statement.get("dataset", "Images")}: synthetic images',
            statement=complete,
            about={name: value for name, value in about.items() if name != 'class_names'},
            samples_png=str(picture),
            sample_caption=samples.SampleGrid.caption(about['class_names']),
        )
        picture.unlink()
        files.write_atomically(folder / file_names.README, data_card.readme(about, statement))
        files.write_atomically(
            folder / file_names.CROISSANT,
            data_card.croissant(
                about,
                statement,
                date=datetime.date.today().isoformat(),
                sha256_of_labels=checksums.sha256_of(folder / file_names.LABELS),
                files=_image_files(folder, about['format']),
            ),
        )
        if not statement['private']:
            files.write_atomically(
                folder / file_names.NOT_PRIVATE,
                data_card.guarantee(statement) + ' Do not share them.\n',
            )

    return write


def _image_files(folder: pathlib.Path, kind: str) -> list[dict[str, str]]:
    """The files that hold images, unless every image has a file of its own."""
    endings = {'npz': ['*.npz'], 'tfrecord': ['*.tfrecord'], 'tfds': ['*/*/*.tfrecord-*']}
    return [
        {
            'name': path.relative_to(folder).as_posix(),
            'sha256': checksums.sha256_of(path),
            'encoding': 'application/octet-stream',
        }
        for pattern in endings.get(kind, [])
        for path in sorted(folder.glob(pattern))
    ]


def describe(made: dict[str, Any]) -> str:
    """Describes what `generate` made, in lines for the user."""
    output, kind = made['output'], made['format']
    how = {
        'png': f"datasets.load_dataset('imagefolder', data_dir='{output}')",
        'npz': f"numpy.load('{output}/images.npz')",
        'tfrecord': f"tf.data.TFRecordDataset(tf.io.gfile.glob('{output}/*.tfrecord'))",
        'tfds': f"tfds.load('{made['name']}', data_dir='{output}')",
    }
    return '\n'.join(
        [
            f'{made["count"]:,} images of {len(made["class_names"])} classes in {output} '
            f'(seed {made["seed"]}).',
            data_card.guarantee(made['privacy_statement']),
            f'  load:   {how[kind]}',
            f'  read:   {output}/{file_names.PAGE}',
            f'  check:  tf-efsgd verify {shlex.quote(output)}',
        ]
    )
