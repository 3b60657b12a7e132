"""Checks that what is shared belongs together: files, checksums, statement and ledger.

It needs no TensorFlow.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import pathlib
from typing import Any

from tf_efsgd import budget, files, rounding
from tf_efsgd.config import ConfigError
from tf_efsgd.export import checksums, versions
from tf_efsgd.file_names import (
    CHECKSUMS,
    FLAGFILE,
    GENERATION,
    LABELS,
    LEDGER,
    PAGE,
    README,
    REPORT,
    STATEMENT,
)
from tf_efsgd.privacy.ledger import Ledger, LedgerError
from tf_efsgd.reporting import report

# What reading other values than the program writes may raise.
_NOT_OURS = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, csv.Error)
# How many faults are named; of further ones only the number is given.
_SHOWN = 10


def verify(path: str | os.PathLike) -> dict[str, Any]:
    """Compares everything in a folder with everything else in it.

    Args:
      path: of a synthetic data set, of an export, or of a run (its ledger and its latest export).

    Returns:
      JSON values by name: `kind` ('data set', 'export' or 'run'), `faults` (a list of lines, empty
      if there are none), and from the statement `private`, `epsilon`, `delta` and
      `unit_of_privacy`.

    Raises:
      ConfigError: if it is none of these, or something in it cannot be read.
    """
    folder = files.expanded(path)
    try:
        if (folder / GENERATION).is_file():
            kind, found = 'data set', _verify_data_set(folder)
        elif (folder / LEDGER).exists() or (folder / FLAGFILE).is_file():
            kind, found = 'run', _verify_run(folder)
        else:
            export = versions.find(folder)
            kind, found = 'export', _verify_export(export)
        faults, statement = found
        faults = [*faults, *_faults_of_claim(statement)]
    except ConfigError:
        raise
    except (versions.ExportError, checksums.ChecksumError, LedgerError, OSError) as error:
        if not folder.is_dir():
            raise ConfigError(f'There is no folder {folder}.') from error
        raise ConfigError(str(error)) from error
    except _NOT_OURS as error:
        raise ConfigError(
            f'{folder} cannot be verified: a file in it does not hold what this program writes '
            f'({type(error).__name__}). It is damaged, or was changed.'
        ) from error
    wanted = ('private', 'epsilon', 'delta', 'unit_of_privacy')
    return {
        'path': str(folder),
        'kind': kind,
        'faults': faults,
        **{name: statement.get(name) for name in wanted},
    }


def describe(found: dict[str, Any]) -> str:
    """Describes what `verify` found, in lines for the user."""
    faults = found['faults']
    if faults:
        shown = [f'  {line}' for line in faults[:_SHOWN]]
        more = len(faults) - _SHOWN
        shown += [f'  and {more} more'] if more > 0 else []
        return '\n'.join([f'What is in {found["path"]} does NOT belong together:', *shown])
    if not found['private']:
        return f'{found["path"]} belongs together, and is NOT PRIVATE: do not share it.'
    return (
        f'{found["path"]} belongs together: files, checksums and statement. '
        f'ε = {rounding.up(float(found["epsilon"]))}, δ = {found["delta"]:g}, for '
        f'{found["unit_of_privacy"]}.'
    )


def _faults_of_claim(statement: dict[str, Any]) -> list[str]:
    """Faults of a statement that says private, but whose numbers do not support that."""
    if not statement['private']:
        return []
    epsilon, delta, target = (
        statement.get(name) for name in ('epsilon', 'delta', 'target_epsilon')
    )
    numbers = all(
        isinstance(n, (int, float)) and math.isfinite(n) and n >= 0 for n in (epsilon, delta)
    )
    if not numbers or not 0 <= delta < 1:
        return ['the privacy statement says private, without an epsilon and a delta that say so']
    if target is not None and epsilon > target:
        return [f'the privacy statement says epsilon {epsilon}, above its target of {target}']
    return []


def _verify_export(export: pathlib.Path) -> tuple[list[str], dict[str, Any]]:
    statement = versions.read_statement(export)
    if not (export / versions.CHECKSUMS).exists():
        if 'generator_sha256' in statement:
            return [f'{versions.CHECKSUMS} is missing'], statement
        raise versions.ExportError(
            f'{export} was made by an earlier version of this program and has no checksums: export '
            'the run again with tf-efsgd export.'
        )
    return checksums.differences(export, versions.CHECKSUMS), statement


def _verify_run(folder: pathlib.Path) -> tuple[list[str], dict[str, Any]]:
    """Compares the ledger with the statement of the latest export."""
    faults, statement = _verify_export(versions.find(folder))
    ledger = Ledger.read(folder / LEDGER)
    if ledger.plan.event is None:
        if statement['private']:
            faults.append('the statement says private, and the ledger says that nothing was paid')
        return faults, statement
    claimed = budget.claimed_epsilon(ledger).headline
    said = statement.get('epsilon')
    if said is not None and said < claimed * (1 - 1e-9):
        faults.append(
            f'by the ledger epsilon is {rounding.up(claimed)}, and the statement of the latest '
            f'export says {rounding.up(said)}'
        )
    faults += _faults_of_report(folder / REPORT, claimed)
    plan = ledger.plan
    promised = {
        'delta': plan.target_delta,
        'unit_of_privacy': plan.unit_of_privacy,
        'dataset': plan.dataset,
        'dataset_size': plan.dataset_size,
    }
    faults += [
        f'the ledger says {name} = {value}, and the statement of the latest export says '
        f'{statement.get(name)}'
        for name, value in promised.items()
        if statement.get(name) != value
    ]
    return faults, statement


def _faults_of_report(page: pathlib.Path, claimed: float) -> list[str]:
    """Faults of the page of a run, if it is there: each ε on it is at least the ledger's."""
    if not page.is_file():
        return []
    said = report.epsilons_of(_read(page).decode('utf-8', 'replace'))
    if not said:
        return [f'{REPORT} does not say what was spent']
    return [
        f'by the ledger epsilon is {rounding.up(claimed)}, and {REPORT} says {text}'
        for text in dict.fromkeys(said)
        if not _is_at_least(text, claimed)
    ]


def _is_at_least(text: str, claimed: float) -> bool:
    if text == rounding.up(claimed):  # Also where no epsilon is proven, which is no number.
        return True
    try:
        return float(text.replace(',', '')) >= claimed * (1 - 1e-9)
    except ValueError:
        return False


def _verify_data_set(folder: pathlib.Path) -> tuple[list[str], dict[str, Any]]:
    faults = checksums.differences(folder, CHECKSUMS)
    about = _read_json(folder / GENERATION)
    content = _read(folder / STATEMENT)
    statement = _read_json(folder / STATEMENT)
    if not isinstance(statement.get('private'), bool):
        raise ConfigError(f'{folder / STATEMENT} is not a privacy statement.')
    if hashlib.sha256(content).hexdigest() != about.get('privacy_statement_sha256'):
        faults.append(f'{STATEMENT} is not the statement of the generator of these images')
    if statement.get('generator_sha256') != about.get('generator_sha256'):
        faults.append(f'{GENERATION} names another generator than {STATEMENT}')
    try:
        faults += _faults_of_labels(folder, about)
    except _NOT_OURS:
        faults.append(f'{LABELS} does not hold what this program writes')
    if statement['private'] and isinstance(statement.get('epsilon'), (int, float)):
        shown = rounding.up(float(statement['epsilon']))
        for name, text in ((PAGE, f'ε = {shown},'), (README, f'epsilon = {shown},')):
            if text not in _read(folder / name).decode('utf-8', 'replace'):
                faults.append(f'{name} does not say the epsilon of {STATEMENT}')
    return faults, statement


def _faults_of_labels(folder: pathlib.Path, about: dict[str, Any]) -> list[str]:
    """Faults of labels.csv: each line must have an image, and there must be as many as promised."""
    text = _read(folder / LABELS).decode('utf-8', 'surrogateescape')
    _, *rows = csv.reader(text.splitlines(keepends=True))
    faults = []
    if len(rows) != about.get('count'):
        faults.append(f'{LABELS} has {len(rows)} images, {GENERATION} {about.get("count")}')
    counts = [0] * len(about.get('class_counts', []))
    for name, label, *_ in rows:  # A line of fewer columns raises ValueError.
        counts[int(label)] += 1
        if about.get('format') == 'png' and not (folder / name).is_file():
            faults.append(f'{name} is missing')
    if counts != about.get('class_counts'):
        faults.append(f'{LABELS} has other numbers of images of the classes than {GENERATION}')
    if about.get('format') == 'png':
        named = {row[0] for row in rows}
        there = (path.relative_to(folder).as_posix() for path in folder.glob('*/*.png'))
        faults += [f'{name} has no line in {LABELS}' for name in there if name not in named]
    return faults


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f'{path} is missing: the data set is not whole.') from error


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        values = json.loads(_read(path).decode('utf-8'))
    except ValueError as error:
        raise ConfigError(f'{path} is damaged.') from error
    if not isinstance(values, dict):
        raise ConfigError(f'{path} is damaged.')
    return values
