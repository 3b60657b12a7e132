"""Writes a synthetic data set with an exported generator.

Only the export, the count and the seed are used, so the images are post-processing of what the run
has released, however many they are.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import pathlib
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tf_efsgd import file_names, files
from tf_efsgd.export import checksums, formats, names, versions
from tf_efsgd.export.generated import ExportedGenerator
from tf_efsgd.progress import Bar

BALANCES = ('auto', 'even', 'released')

# The progress of a data set that is not finished.
_PROGRESS = '.progress.json'
_COUNTS = 'released_class_counts'
# Progress is saved after so many seconds; as much is generated again after an interruption.
_SAVED_EVERY = 5.0


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to generate.

    Attributes:
      count: number of images, at least 1.
      kind: one of `formats.FORMATS`.
      balance: 'even' makes as many images of each class; 'released' follows the noisy class counts
        that the run has released; 'auto' is 'released' if there are such counts, else 'even'.
      seed: seed of latents and injected noise, in [0, 2^31); None draws one.
    """

    count: int = 60_000
    kind: str = 'png'
    balance: str = 'auto'
    seed: int | None = None


def class_counts(
    wanted: Wanted, num_classes: int, statement: dict[str, Any]
) -> tuple[np.ndarray, str]:
    """Decides how many images of each class there will be.

    Args:
      wanted: what to generate.
      num_classes: number of classes.
      statement: the privacy statement of the export.

    Returns:
      (int64 [num_classes], whose sum is the count; 'even' or 'released').

    Raises:
      ExportError: if released counts are wanted and there are none.
    """
    released = statement.get(_COUNTS)
    balance = wanted.balance
    if balance == 'auto':
        balance = 'even' if released is None else 'released'
    shares = np.ones(num_classes)
    if balance == 'released':
        if released is None:
            raise versions.ExportError(
                'The run released no class counts (it had no warm start, or was made by an earlier '
                'version): leave out --balance=released to get as many images of each class.'
            )
        # Noise can make a count negative.
        shares = np.maximum(np.asarray(released, np.float64), 0.0)
        if not shares.any():
            shares = np.ones(num_classes)
    exact = wanted.count * shares / shares.sum()
    counts = np.floor(exact).astype(np.int64)
    # What is left goes to the largest remainders; among equal ones, to the first classes.
    order = np.argsort(-(exact - counts), kind='stable')
    counts[order[: wanted.count - counts.sum()]] += 1
    return counts, balance


def labels_of(counts: Sequence[int] | np.ndarray, seed: int) -> np.ndarray:
    """Returns the labels of all images, int32 [N], in an order that the seed decides."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return np.random.default_rng(seed).permutation(labels)


def write(
    generator: ExportedGenerator,
    output: pathlib.Path,
    wanted: Wanted,
    write_pages: Callable[[pathlib.Path, dict[str, Any], np.ndarray], None],
    *,
    quiet: bool = False,
) -> dict[str, Any]:
    """Writes a data set; continues one that was interrupted.

    The folder appears when it is complete. Until then it is called `.NAME.unfinished`.

    Args:
      generator: the exported generator.
      output: the folder to make, which does not exist yet.
      wanted: what to generate.
      write_pages: writes the README and other pages, given the folder, the contents of
        `file_names.GENERATION` and some images of each class, uint8 [rows * classes, H, W, C].
      quiet: whether to leave out the progress bar.

    Returns:
      The contents of `file_names.GENERATION`.

    Raises:
      ExportError: if the folder exists, or if something else was begun there.
      OSError: for example if the disk is full; the same call continues later.
    """
    if os.path.lexists(output):
        raise versions.ExportError(
            f'--output must not exist yet: choose another folder. Received: {output}.'
        )
    work = output.with_name(f'.{output.name}.unfinished')
    about = _begin(work, generator, wanted)
    labels = labels_of(about['class_counts'], about['seed'])
    inside = {'generator': generator, 'about': about, 'labels': labels}
    writer = formats.make_writer(
        about['format'],
        work,
        about['count'],
        generator.image_shape,
        generator.class_names,
        about['name'],
    )
    _write_images(work, writer, quiet=quiet, **inside)
    if isinstance(writer, formats.Npz):
        writer.set_labels(labels)
    writer.finish()
    _write_labels(work / file_names.LABELS, writer, labels, generator.class_names)
    shutil.copyfile(generator.path / versions.STATEMENT, work / file_names.STATEMENT)
    files.write_atomically(work / file_names.GENERATION, _to_json(about))
    write_pages(work, about, _examples(generator, about['seed']))
    (work / _PROGRESS).unlink()
    checksums.write(work, file_names.CHECKSUMS)
    os.rename(work, output)
    files.sync(output.parent)
    return about


def _begin(work: pathlib.Path, generator: ExportedGenerator, wanted: Wanted) -> dict[str, Any]:
    """Returns what to generate: as asked for, or as an interrupted data set was begun."""
    counts, balance = class_counts(wanted, len(generator.class_names), generator.statement)
    about = {
        'count': wanted.count,
        'format': wanted.kind,
        'balance': balance,
        'class_names': list(generator.class_names),
        'class_counts': [int(count) for count in counts],
        'image_shape': list(generator.image_shape),
        'name': names.dataset_name(f'synthetic_{generator.statement.get("dataset", "images")}'),
        'generator': checksums.sha256_of(generator.path / 'saved_model.pb'),
        'generator_sha256': generator.statement.get('generator_sha256'),
        'privacy_statement_sha256': checksums.sha256_of(generator.path / versions.STATEMENT),
        'is_repeatable': generator.is_repeatable,
        'seed': secrets.randbelow(2**31) if wanted.seed is None else wanted.seed,
    }
    if not work.exists():
        work.mkdir(parents=True)
        files.write_atomically(work / _PROGRESS, _to_json({'about': about, 'done': 0}))
        return about
    begun = _read_progress(work)['about']
    changed = [
        name
        for name, value in about.items()
        if begun.get(name) != value and not (name == 'seed' and wanted.seed is None)
    ]
    if changed:
        raise versions.ExportError(
            f'{work} is an interrupted data set with other settings ({", ".join(changed)}): give '
            'those again to continue it, or another --output.'
        )
    return begun


def _read_progress(work: pathlib.Path) -> dict[str, Any]:
    try:
        progress = json.loads((work / _PROGRESS).read_text(encoding='utf-8'))
        about = dict(progress['about'])
        return {'about': {**about, 'seed': int(about['seed'])}, 'done': int(progress['done'])}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise versions.ExportError(
            f'{work} is in the way: it is not an interrupted data set that can be continued. '
            'Move it to another place, or give another --output.'
        ) from error


def _write_images(work, writer, generator, about, labels, quiet) -> None:
    done, saved = _read_progress(work)['done'], time.monotonic()
    with Bar(
        total=len(labels),
        initial=done,
        desc='generating',
        unit='image',
        disable=quiet,
    ) as bar:
        while done < len(labels):
            last = min(done + writer.unit, len(labels))
            parts = []
            for first in range(done, last, formats.PART):
                part = labels[first : min(first + formats.PART, last)]
                parts.append(generator.generate(part, (about['seed'], first // formats.PART)))
                bar.update(len(part))
            writer.write(done, np.concatenate(parts), labels[done:last])
            done = last
            if done < len(labels) and time.monotonic() - saved < _SAVED_EVERY:
                continue
            # What is recorded as done must still be there after a power cut.
            os.sync()
            saved = time.monotonic()
            files.write_atomically(work / _PROGRESS, _to_json({'about': about, 'done': done}))


def _write_labels(path, writer, labels, class_names) -> None:
    """Writes the label and the class of each image."""
    with open(path, 'w', encoding='utf-8', errors='surrogateescape', newline='') as file:
        rows = csv.writer(file, lineterminator='\n')
        rows.writerow(['file_name', 'label', 'class'])
        for number, label in enumerate(labels):
            own = writer.file_of(number, int(label))
            rows.writerow([number if own is None else own, label, class_names[label]])


def _examples(generator: ExportedGenerator, seed: int) -> np.ndarray:
    """Generates some images of each class, row by row."""
    columns = min(len(generator.class_names), 16)
    labels = np.tile(np.arange(columns, dtype=np.int32), 4)
    return generator.generate(labels, (seed, 2**31 - 1))


def _to_json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2) + '\n'
