"""Makes the runs of a grid: each has a folder, a process that trains in it, and its times."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import datetime
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import cast

from tf_efsgd import config, file_names, files
from tf_efsgd.results.grids import Row

LAUNCHER = (sys.executable, '-m', 'tf_efsgd.launch')

_METRICS = pathlib.Path(file_names.NONPRIVATE, file_names.METRICS)
_EXPORT = pathlib.Path(file_names.EXPORT, '1')
_MODEL = _EXPORT / 'saved_model.pb'
_STATEMENT = _EXPORT / file_names.EXTRA / file_names.STATEMENT
_TAIL_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Run:
    """A row of a grid with one seed.

    Attributes:
      row: the row of the grid.
      seed: seed of public randomness.
      settings: the settings that the grid gives now.
      folder: the run folder. Beside it, with its name and another extension, are the output of the
        launcher (.log) and the times of its starts (.starts.json).
    """

    row: Row
    seed: int
    settings: config.RunConfig
    folder: pathlib.Path

    @property
    def is_started(self) -> bool:
        """Whether privacy was spent on it; a start that ended before that left no ledger."""
        return (self.folder / file_names.LEDGER).exists()

    @property
    def is_finished(self) -> bool:
        """Whether it was trained, exported and evaluated."""
        return all((self.folder / path).exists() for path in (_METRICS, _MODEL, _STATEMENT))

    @property
    def log(self) -> pathlib.Path:
        """The file with the output of the launcher over all starts."""
        return self.folder.with_name(self.folder.name + '.log')

    @property
    def _starts(self) -> pathlib.Path:
        return self.folder.with_name(self.folder.name + '.starts.json')

    def check_settings(self) -> None:
        """Checks that a run that was started has the settings that the grid gives now.

        Raises:
          config.ConfigError: if it has others, or if they cannot be read.
        """
        if not self.is_started:
            return
        path = self.folder / file_names.FLAGFILE
        try:
            before = config.from_flagfile(path.read_text(encoding='utf-8'))
        except (OSError, config.ConfigError) as error:
            raise config.ConfigError(f'{path} cannot be read: {error}') from error
        changed = _differences(before, self.settings.with_public_facts_of(before))
        if changed:
            raise config.ConfigError(
                f'{self.folder} was run with other settings: {"; ".join(changed)}. Move it away, '
                'or give another --out.'
            )

    def arguments(self) -> list[str]:
        """The launcher's arguments: every setting, so that no file or default can change one."""
        resume = ['--resume'] if self.is_started else []
        return [*self.settings.to_flags().splitlines(), f'--run_dir={self.folder}', *resume]

    def start(self, command: Sequence[str], signals: Signals) -> int:
        """Trains or continues until the launcher ends, and shows its output.

        Args:
          command: the launcher, to which `arguments` are added.
          signals: passes signals on to the launcher.

        Returns:
          Its exit code, or minus the number of the signal that killed it.

        Raises:
          OSError: if the log cannot be written.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        started, starts = time.time(), self.starts()
        when = datetime.datetime.fromtimestamp(started, datetime.timezone.utc)
        # Written at once: if the machine dies, at least the start is known.
        starts.append({'started': when.isoformat(timespec='seconds'), 'minutes': None})
        self._write_starts(starts)
        decoder = codecs.getincrementaldecoder('utf-8')('replace')
        with self.log.open('ab') as log:
            # It has its own session, so that a Ctrl-C reaches it through `signals` alone: a second
            # one, from the terminal, would end it without a checkpoint.
            with (
                subprocess.Popen(
                    [*command, *self.arguments()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**os.environ, 'PYTHONUNBUFFERED': '1'},  # Keeps lines and bar in order.
                ) as process,
                signals.passed_on_to(process),
            ):
                output = cast(io.BufferedReader, process.stdout)
                for said in iter(lambda: output.read1(65536), b''):
                    log.write(said)
                    log.flush()
                    sys.stdout.write(decoder.decode(said))
                    sys.stdout.flush()
        ended = _modified(self.folder / _MODEL) or time.time()
        # A start that found the model already exported only evaluated it.
        starts[-1]['minutes'] = round(max(0.0, ended - started) / 60, 3)
        starts[-1]['exit_code'] = process.returncode
        self._write_starts(starts)
        return process.returncode

    def starts(self) -> list[dict]:
        """Returns what is known of the starts so far.

        Returns:
          For each start 'started' (UTC), 'minutes' until the model was exported or the process
          ended (None if its end was not seen), and, once it has ended, 'exit_code'.

        Raises:
          config.ConfigError: if they cannot be read.
        """
        return _read_json(self._starts) if self._starts.exists() else []

    def _write_starts(self, starts: list[dict]) -> None:
        files.write_atomically(self._starts, json.dumps(starts, indent=2) + '\n')

    def metrics(self) -> dict:
        """Returns what the evaluation measured, which is NOT covered by epsilon.

        Raises:
          config.ConfigError: if it cannot be read.
        """
        return _read_json(self.folder / _METRICS)

    def statement(self) -> dict:
        """Returns the privacy statement of the exported generator.

        Raises:
          config.ConfigError: if it cannot be read.
        """
        return _read_json(self.folder / _STATEMENT)

    def picture(self) -> pathlib.Path | None:
        """Returns the path of the last sample grid; None if there is none yet."""
        pictures = sorted((self.folder / file_names.SAMPLES).glob('step_*.png'))
        return pictures[-1] if pictures else None

    def last_words(self) -> str:
        """Returns the last line that the launcher printed, or ''."""
        if not self.log.exists():
            return ''
        with self.log.open('rb') as log:
            log.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            tail = log.read().decode('utf-8', errors='replace')
        lines = [line.strip() for line in re.split(r'[\r\n]', tail) if line.strip()]
        return lines[-1] if lines else ''


class Signals:
    """Passes each SIGINT (Ctrl-C), SIGTERM and SIGHUP on to the running process once.

    Attributes:
      received: the last signal; None if none was received.
    """

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._process: subprocess.Popen | None = None

    @contextlib.contextmanager
    def handled(self):
        """Handles the signals inside the context, and restores the handlers afterwards."""
        before = {number: signal.signal(number, self._on_signal) for number in self._NUMBERS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def passed_on_to(self, process: subprocess.Popen):
        """Passes on the signals that come inside the context, and one that came before it."""
        self._process = process
        if self.received is not None:
            self._pass_on()
        try:
            yield
        finally:
            self._process = None

    def _on_signal(self, number, frame):
        del frame
        self.received = signal.Signals(number)
        self._pass_on()

    def _pass_on(self):
        # The launcher saves a checkpoint at SIGINT and SIGTERM.
        number = signal.SIGINT if self.received == signal.SIGINT else signal.SIGTERM
        if self._process is not None:
            self._process.send_signal(number)


def _differences(before: config.RunConfig, now: config.RunConfig) -> list[str]:
    """Lists the settings that differ, as '--name was this, is that'."""
    found = []
    for group in dataclasses.fields(now):
        old, new = getattr(before, group.name), getattr(now, group.name)
        for field in dataclasses.fields(new):
            was, value = getattr(old, field.name), getattr(new, field.name)
            if was != value and field.name not in config.OWN_PLACES:
                found.append(f'--{field.name} was {was}, is {value}')
    return found


def _read_json(path: pathlib.Path):
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise config.ConfigError(f'{path} cannot be read: {error}') from error


def _modified(path: pathlib.Path) -> float | None:
    """Returns when the file was written, in seconds since 1970; None if there is no file."""
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return None


def in_turn(runs: Sequence[Run]) -> list[Run]:
    """Sorts the runs seed by seed, so that the first round shows every row."""
    seeds = list(dict.fromkeys(run.seed for run in runs))
    return sorted(runs, key=lambda run: seeds.index(run.seed))


def run_all(runs: Sequence[Run], command: Sequence[str], write: Callable[[], str]) -> int:
    """Makes one run after the other, and writes the table after each.

    Args:
      runs: runs that are not finished.
      command: the launcher.
      write: writes the table.

    Returns:
      The exit code: 1 if a run failed, 128 plus the number of the signal that stopped it, else 0.
    """
    code, began = 0, time.monotonic()
    with Signals().handled() as signals:
        for done, run in enumerate(runs):
            left = ''
            if done:
                minutes = (time.monotonic() - began) / 60 * (len(runs) - done) / done
                left = f', about {minutes:.0f} minutes left'
            verb = 'continues' if run.is_started else 'starts'
            print(f'\n[{done + 1}/{len(runs)}] {run.row.name}, seed {run.seed} {verb}{left}')
            exit_code = run.start(command, signals)
            write()
            if signals.received is not None:
                print(f'Stopped by {signals.received.name}; the same command continues.')
                return 128 + signals.received
            if not run.is_finished:
                code = 1
                print(f'{run.row.name}, seed {run.seed} failed with exit code {exit_code}.')
    return code
