"""Starts a command of the package as a user does: in a process of its own."""

import os
import pathlib
import subprocess
import sys

_REPO = pathlib.Path(__file__).resolve().parents[2]


def run_module(name, *arguments, **how):
    """Runs `python -m tf_efsgd.NAME` to its end, see `run_python`."""
    return run_python('-m', f'tf_efsgd.{name}', *arguments, **how)


def run_python(*arguments, cwd=None, timeout=900, **environ):
    """Runs Python to its end; it finds the package, whatever folder it starts in.

    Args:
      *arguments: of the interpreter.
      cwd: the folder it starts in.
      timeout: in seconds.
      **environ: variables that differ from those of this process; None removes one.

    Returns:
      The ended process: its code, and what it has written, as text.
    """
    paths = [str(_REPO), *os.environ.get('PYTHONPATH', '').split(os.pathsep)]
    found = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, paths)), **environ}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={name: value for name, value in found.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
