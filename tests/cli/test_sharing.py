"""generate, export, report and verify: mistakes, JSON, silence, and arguments without a name."""

import json
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from tf_efsgd.cli import arguments, export, generate, report, verify
from tf_efsgd.config import ConfigError


def _values(command, *given):
    values = flags.FlagValues()
    define = getattr(command, 'define_flags', arguments.define_run_flags)
    define(values)
    values(['tf-efsgd', *map(str, given)])
    return values


@pytest.mark.parametrize(
    ('command', 'given', 'message'),
    [
        (generate, [], 'Give either a run folder .* Received: neither'),
        (generate, ['--run_dir=a', '--export_dir=b'], 'Received: both'),
        (generate, ['--run_dir=a'], 'There is no folder a'),
        (generate, ['--run_dir=none', '--output=x'], 'There is no folder none'),
        (generate, ['--run_dir=EMPTY', '--output=x'], 'holds no exported generator'),
        (export, [], 'Give the folder of the run'),
        (export, ['--run_dir=none'], 'There is no folder none'),
        (report, [], 'Give the folder of the run'),
        (report, ['--run_dir=none'], 'There is no folder none'),
        (verify, [], 'Give the folder to verify'),
        (verify, ['--path=none'], 'There is no folder none'),
        (verify, ['--path=EMPTY'], 'holds no exported generator'),
    ],
)
def test_a_mistake_is_said_and_nothing_is_made(command, given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'EMPTY').mkdir()
    with pytest.raises(ConfigError, match=message):
        command.run(_values(command, *given))
    assert [path.name for path in tmp_path.iterdir()] == ['EMPTY']


def test_results_are_shown_as_asked_for(capsys):
    result, text = {'epsilon': 3.1}, 'ε = 3.1'
    for given, shown in (([], f'{text}\n'), (['--quiet'], '')):
        arguments.show(result, text, _values(verify, *given))
        assert capsys.readouterr().out == shown
    arguments.show(result, text, _values(verify, '--json', '--quiet'))
    assert json.loads(capsys.readouterr().out) == result


_MODULE = """
import sys
from absl import flags
from tf_efsgd.cli import arguments

def define_flags():
    flags.DEFINE_string('dataset', 'digits', 'Which. More.')
    flags.DEFINE_integer('count', 7, 'How many, e.g. 9. More.')
    return ['dataset', 'count']

def main():
    print(flags.FLAGS.dataset, flags.FLAGS.count)

positional = {positional}
arguments.start(main, define_flags, positional=positional, first=['count'])
"""


def _start(tmp_path, *given, positional='arguments.PATH'):
    path = tmp_path / 'command.py'
    path.write_text(_MODULE.format(positional=positional))
    repo = str(pathlib.Path(__file__).resolve().parents[2])
    return subprocess.run(
        [sys.executable, str(path), *given],
        capture_output=True,
        text=True,
        env={'PYTHONPATH': repo},
    )


@pytest.mark.parametrize(
    ('given', 'shown'),
    [
        (['photos/', '--count=3'], 'folder:photos/ 3'),
        (['--count=3', 'my photos'], 'folder:my photos 3'),
        (['--count', '3', 'photos'], 'folder:photos 3'),
        (['--dataset=mnist'], 'mnist 7'),
        (['--', '-x'], 'folder:-x 7'),
    ],
)
def test_an_argument_without_a_name_is_a_path(given, shown, tmp_path):
    finished = _start(tmp_path, *given)
    assert (finished.stdout, finished.returncode) == (f'{shown}\n', 0), finished.stderr


@pytest.mark.parametrize(
    ('given', 'how', 'said'),
    [
        (['a', '--dataset=mnist'], {}, 'PATH and --dataset say the same'),
        (['a', 'b'], {}, 'Settings are flags, --name=value. Received: b'),
        (['a'], {'positional': 'None'}, 'Settings are flags, --name=value. Received: a'),
        (['--cuont=3'], {}, 'cuont'),
    ],
)
def test_other_arguments_are_a_mistake_in_one_line(given, how, said, tmp_path):
    finished = _start(tmp_path, *given, **how)
    assert finished.returncode == 2 and finished.stdout == ''
    assert len(finished.stderr.splitlines()) == 1 and said in finished.stderr


def test_a_path_overrides_what_a_file_of_flags_says(tmp_path):
    (tmp_path / 'some.flags').write_text('--dataset=folder:images\n--count=3\n')
    finished = _start(tmp_path, 'photos/', f'--flagfile={tmp_path}/some.flags')
    assert (finished.stdout, finished.returncode) == ('folder:photos/ 3\n', 0), finished.stderr


def test_the_help_begins_with_what_most_need(tmp_path):
    lines = _start(tmp_path, '--help').stdout.splitlines()
    assert lines[:2] == [
        'Usage: python -m tf_efsgd.command [PATH] [--flag=value ...]',
        'PATH is --dataset=folder:PATH.',
    ]
    assert lines[2:6] == ['', 'Most used:', '  --count', '      How many, e.g. 9. (default 7)']
    assert 'Data:' in lines and '      Which. (default digits)' in lines
    full = _start(tmp_path, '--count=x', '--helpfull')
    assert full.returncode == 0 and '      Which. More. (default digits)' in full.stdout
