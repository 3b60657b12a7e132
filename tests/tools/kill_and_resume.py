"""Kills a run at random moments, resumes it to the end, and holds its ledger against it.

    python tests/tools/kill_and_resume.py --kills=20 --flagfile=demo.flags --checkpoint_steps=20

Every start is killed with SIGKILL at a random moment, from the first import on, until it has been
killed often enough; the last one runs to its end. What is not a flag of this script goes to
tf_efsgd.launch. It fails unless every reservation stayed in the ledger, nothing passed the budget,
no start was refused, and the last one ended with its export.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time


def main() -> None:
    """Parses the command line, kills, resumes, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--longest', type=float, default=30.0, help='seconds before a kill')
    parser.add_argument('--seed', type=int, default=1, help='of the moments')
    arguments, launch_flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as base:
        print_result(kill_and_resume(pathlib.Path(base), launch_flags, **vars(arguments)))


def kill_and_resume(
    base: pathlib.Path, launch_flags: list[str], *, kills: int, longest: float, seed: int
) -> dict:
    """Runs, kills and resumes.

    Args:
      base: an empty folder, for the run and what is remembered of it.
      launch_flags: of tf_efsgd.launch; not --run_dir, --state_dir, --resume.
      kills: how many starts to kill.
      longest: seconds before a kill, at the most.
      seed: of the moments.

    Returns:
      The figures of the run by name.
    """
    moments, run = random.Random(seed), base / 'run'
    killed, refused, ledgers = [], [], []
    while True:
        delay = moments.uniform(0.0, longest) if len(killed) < kills else None
        code, seconds, said = _start(base, launch_flags, delay)
        ledgers.append(charges(run))
        if code == -signal.SIGKILL:
            killed.append(progress_of(said))
            print(f'kill {len(killed)} after {seconds:.1f} s: {killed[-1]}', flush=True)
        elif code != 0:
            refused.append(said[-500:])
            break
        elif delay is None:
            break
        # A start that ended before its moment came is no kill; a finished run is started again.
    for before, after in zip(ledgers, ledgers[1:]):
        assert after[: len(before)] == before, 'an entry of the ledger was lost'
    return figures_of(run, len(killed), refused, ledgers)


def figures_of(
    run: pathlib.Path, kills: int, refused: list[str], charges_of_starts: list[list[int]]
) -> dict:
    """What a run that was killed and resumed has come to; fails if that is not as it should be.

    Args:
      run: the run folder.
      kills: how many starts were killed.
      refused: what starts said that should not have ended as they did.
      charges_of_starts: the ledger's counts after each start.

    Returns:
      The figures of the run by name.
    """
    assert not refused, refused
    statement_path = run / 'export/1/assets.extra/privacy_statement.json'
    statement = json.loads(statement_path.read_text()) if statement_path.exists() else {}
    figures = {
        'kills': kills,
        'starts refused': refused,
        'planned steps': json.loads((run / 'ledger.jsonl').open().readline())['train_steps'],
        'reserved steps': sum(charges_of_starts[-1]),
        'steps in the privacy statement': statement.get('steps'),
        'applied steps in the exported generator': statement.get('applied_steps'),
        'epsilon': statement.get('epsilon'),
        'target epsilon': statement.get('target_epsilon'),
    }
    _check(figures)
    return figures


def _check(figures: dict) -> None:
    assert not figures['starts refused'], figures
    assert figures['applied steps in the exported generator'], figures
    assert figures['applied steps in the exported generator'] <= figures['reserved steps'], figures
    assert figures['reserved steps'] == figures['planned steps'], figures
    assert figures['steps in the privacy statement'] == figures['reserved steps'], figures
    if figures['target epsilon'] is not None:
        assert figures['epsilon'] <= figures['target epsilon'], figures


def _start(base, launch_flags, delay) -> tuple[int, float, str]:
    """One start, killed after `delay` seconds: (exit code, seconds, what it said)."""
    run = base / 'run'
    more = [f'--run_dir={run}', f'--state_dir={base / "state"}']
    if (run / 'ledger.jsonl').exists():
        more.append('--resume')
    command = [sys.executable, '-m', 'tf_efsgd.launch', *launch_flags, *more]
    started = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace'
    ) as process:
        try:
            said, _ = process.communicate(timeout=delay)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
    return process.returncode, time.monotonic() - started, said


def charges(run: pathlib.Path) -> list[int]:
    """Counts of the whole entries; a torn one is charged by the next start."""
    path = run / 'ledger.jsonl'
    if not path.exists():
        return []
    lines = path.read_bytes().split(b'\n')[:-1]
    return [entry['count'] for entry in map(json.loads, lines) if entry['kind'] == 'steps']


def progress_of(said: str) -> str:
    """The last thing that a killed start said it was at."""
    bars = re.findall(r'Training:.*?\| (\d+/\d+)', said)
    last = [line for line in re.split(r'[\r\n]', said) if line.strip()][-1:] or ['(nothing)']
    return f'step {bars[-1]}' if bars and 'Training' in last[0] else last[0][:70]


def print_result(figures: dict) -> None:
    """Prints the figures, one a line."""
    for name, value in figures.items():
        print(f'{name + ":":<42}{value}')


if __name__ == '__main__':
    main()
