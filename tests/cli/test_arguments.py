"""What all commands share: how they end, and the checks of where they write."""

import pathlib
import subprocess
import sys

import pytest

from tf_efsgd.cli import arguments
from tf_efsgd.config import ConfigError

_REPO = pathlib.Path(__file__).resolve().parents[2]


def _end(error, capsys, **how):
    """The exit code and the line of a command that ends over an error."""
    with pytest.raises(SystemExit) as exited, arguments.one_line_errors(**how):
        raise error
    written = capsys.readouterr()
    assert written.out == ''
    return exited.value.code, written.err


@pytest.mark.parametrize(
    ('error', 'how', 'code', 'said'),
    [
        (ConfigError('--a is\n wrong.'), {}, 2, 'tf_efsgd: --a is wrong.\n'),
        (OSError('disk full'), {}, 1, 'tf_efsgd: disk full.\n'),
        (OSError('disk full'), {'hint': 'Go.'}, 1, 'tf_efsgd: disk full. Go.\n'),
        (OSError('no'), {'mistakes': (ConfigError, OSError)}, 2, 'tf_efsgd: no\n'),
        (ValueError('no'), {'mistakes': (ValueError,)}, 2, 'tf_efsgd: no\n'),
        (KeyboardInterrupt(), {'hint': 'Go.'}, 130, '\ntf_efsgd: interrupted. Go.\n'),
        (
            KeyboardInterrupt(),
            {'hint': 'Go.', 'when_interrupted': 'Stay.'},
            130,
            '\ntf_efsgd: interrupted. Stay.\n',
        ),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(error, how, code, said, capsys):
    assert _end(error, capsys, **how) == (code, said)


def test_a_fault_of_the_program_is_not_hidden():
    with pytest.raises(ZeroDivisionError), arguments.one_line_errors():
        1 / 0  # noqa: B018


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('no/such/a.json', '--out: there is no folder .*no/such. Received: '),
        ('a.txt', '--out must be a file that ends in one of json, png. Received: '),
        ('json', '--out must be a file'),
        ('folder.json', '--out must be a file'),
    ],
)
def test_an_output_that_cannot_be_written_is_named(name, said, tmp_path):
    (tmp_path / 'folder.json').mkdir()
    with pytest.raises(ConfigError, match=said):
        arguments.check_output_path('out', str(tmp_path / name), ['json', 'png'])


def test_an_output_that_can_be_written_is_accepted(tmp_path):
    for name in ('a.json', 'b.PNG'):
        arguments.check_output_path('out', str(tmp_path / name), ['json', 'png'])


def test_who_has_read_enough_is_told_nothing():
    """As `tf-efsgd plan ... | head` does."""
    code = (
        'from tf_efsgd.cli import arguments\n'
        'with arguments.one_line_errors(mistakes=(OSError,)):\n'
        '    while True: print("x" * 10_000)\n'
    )
    reading = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    with subprocess.Popen([sys.executable, '-c', code], cwd=_REPO, **reading) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b''
        assert process.wait(300) == 0
