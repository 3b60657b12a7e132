"""Kills one worker of a run with several at random moments, and resumes the run to its end.

    python tests/tools/kill_a_worker.py --kills=10 --flagfile=demo.flags --discriminator=pixels

Every start kills another of the workers with SIGKILL, worker 1 first, then the chief, and so on,
at a random moment from the first import on, or with --in_training from the moment on when the steps
of its first reservation were run. All others must then end by themselves, with an error, within two
minutes. The last start runs to its end. What is not a flag of this script goes to tf_efsgd.launch.
It fails unless every reservation stayed in the ledger, nothing passed the budget, the statement
charges what was reserved, no start was refused, none hung, and the last one ended with its export.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import kill_and_resume  # noqa: E402
from helpers import worker_processes  # noqa: E402

# Seconds after a kill in which the others must have ended: those that still wait for the one that
# was killed to come take --worker_timeout, those that TensorFlow connects just then a minute.
_GRACE = 130.0
# Seconds of the last start, at the most.
_LONGEST_RUN = 1800.0


def main() -> None:
    """Parses the command line, kills, resumes, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--kills', type=int, default=10)
    parser.add_argument('--longest', type=float, default=60.0, help='seconds before a kill')
    parser.add_argument('--in_training', action='store_true', help='count from a step on')
    parser.add_argument('--seed', type=int, default=1, help='of the moments')
    arguments, launch_flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as base:
        figures = kill_and_resume_workers(pathlib.Path(base), launch_flags, **vars(arguments))
    kill_and_resume.print_result(figures)


def kill_and_resume_workers(
    base: pathlib.Path,
    launch_flags: list[str],
    *,
    workers: int,
    kills: int,
    longest: float,
    in_training: bool,
    seed: int,
) -> dict:
    """Runs, kills and resumes.

    Args:
      base: an empty folder, for the run and what is remembered of it.
      launch_flags: of tf_efsgd.launch; not --run_dir, --state_dir, --resume, --strategy.
      workers: how many.
      kills: how many starts to kill a worker of.
      longest: seconds before a kill, at the most.
      in_training: whether they count from the moment when the steps of a start's first reservation
        were run, not from its beginning.
      seed: of the moments.

    Returns:
      The figures of the run by name.
    """
    moments, run = random.Random(seed), base / 'run'
    killed, refused, waits, charges = 0, [], [], [[]]
    while True:
        delay = moments.uniform(0.0, longest) if killed < kills else None
        victim = (1, 0)[killed % 2]
        was_killed, codes, waited, said = _start(
            base, launch_flags, workers, delay, victim, in_training
        )
        charges.append(kill_and_resume.charges(run))
        reserved = sum(charges[-1]) - sum(charges[-2])
        if was_killed:
            killed += 1
            waits.append(waited)
            print(
                f'kill {killed}: {"the chief" if victim == 0 else f"worker {victim}"} after '
                f'{delay:.1f} s, {reserved} steps reserved by this start, at '
                f'{kill_and_resume.progress_of(said[0])!r}; '
                f'exit codes {codes} {waited:.1f} s later',
                flush=True,
            )
            others = [code for index, code in enumerate(codes) if index != victim]
            if 0 in others or codes[victim] != -signal.SIGKILL:
                refused.append(f'exit codes {codes}')
        elif any(codes):
            refused += [text[-500:] for text in said]
            break
        elif delay is None:
            break
    for before, after in zip(charges, charges[1:]):
        assert after[: len(before)] == before, 'an entry of the ledger was lost'
    return kill_and_resume.figures_of(run, killed, refused, charges) | {
        'longest wait for the others to end, s': round(max(waits, default=0.0), 1)
    }


def _start(
    base, launch_flags, workers, delay, victim, in_training
) -> tuple[bool, list[int], float, list[str]]:
    """One start: (whether the victim was killed, exit codes, seconds until all ended, outputs)."""
    run, addresses = base / 'run', worker_processes.free_addresses(workers)
    more = [f'--run_dir={run}', f'--state_dir={base / "state"}', '--strategy=multi_worker']
    if (run / 'ledger.jsonl').exists():
        more.append('--resume')
    command = [sys.executable, '-m', 'tf_efsgd.launch', *launch_flags, *more]
    logs = [base / f'worker_{index}.log' for index in range(workers)]
    processes = [
        subprocess.Popen(
            command,
            stdout=log.open('w'),
            stderr=subprocess.STDOUT,
            env={**os.environ, 'TF_CONFIG': worker_processes.tf_config(addresses, index)},
        )
        for index, log in enumerate(logs)
    ]
    was_killed, ended = False, time.monotonic()
    try:
        if in_training and delay is not None:
            before = len(kill_and_resume.charges(run))
            # The second reservation of a start comes when the steps of its first one were run.
            while len(kill_and_resume.charges(run)) < before + 2 and processes[0].poll() is None:
                time.sleep(0.05)
        deadline = time.monotonic() + (_LONGEST_RUN if delay is None else delay)
        while time.monotonic() < deadline and any(p.poll() is None for p in processes):
            time.sleep(0.05)
        ended = time.monotonic()
        if delay is not None and processes[victim].poll() is None:
            processes[victim].kill()
            was_killed = True
        for index, process in enumerate(processes):
            try:
                process.wait(timeout=max(1.0, ended + _GRACE - time.monotonic()))
            except subprocess.TimeoutExpired:
                print(f'worker {index} hangs: {logs[index].read_text(errors="replace")[-2000:]}')
                raise
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = [log.read_text(errors='replace') for log in logs]
    return was_killed, [p.returncode for p in processes], time.monotonic() - ended, said


if __name__ == '__main__':
    main()
