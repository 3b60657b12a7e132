"""One of several workers ends at once: TensorFlow's end of a process may wait for the others."""

import os
import sys

import pytest

from tf_efsgd.cli import train
from tf_efsgd.run import workers


class _Ended(BaseException):
    """In place of the end of the process."""


@pytest.fixture
def ends(monkeypatch):
    """The codes that the process was ended with at once."""
    codes = []

    def end(code):
        codes.append(code)
        raise _Ended

    monkeypatch.setattr(os, '_exit', end)
    return codes


@pytest.mark.parametrize(
    ('does', 'code', 'said'),
    [
        (lambda: None, 0, ''),
        (lambda: sys.exit(2), 2, ''),
        (lambda: sys.exit(143), 143, ''),
        (lambda: [][1], 1, 'IndexError'),
    ],
)
def test_one_of_several_ends_at_once_with_its_code(ends, does, code, said, monkeypatch, capsys):
    monkeypatch.setattr(workers.Several, 'is_connected', True)
    monkeypatch.setattr(train, '_train', does)
    with pytest.raises(_Ended):
        train._main()
    assert ends == [code] and said in capsys.readouterr().err


def test_a_worker_alone_ends_as_usual(ends, monkeypatch):
    monkeypatch.setattr(train, '_train', lambda: sys.exit(3))
    with pytest.raises(SystemExit) as ended:
        train._main()
    assert ended.value.code == 3 and ends == []
