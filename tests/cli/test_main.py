"""The console command: its table, its version, its mistakes, and what it does without."""

import os
import pathlib
import re
import resource
import runpy
import sys

import pytest
from helpers import processes

from tf_efsgd.cli import helps
from tf_efsgd.cli import main as console
from tf_efsgd.version import __version__

_REPO = pathlib.Path(__file__).resolve().parents[2]
_TENSORFLOW = ('tensorflow', 'tensorflow_privacy', 'tensorflow_probability', 'keras')


@pytest.fixture
def run(tmp_path):
    """Runs `python -m MODULE ARGUMENTS...` where TensorFlow cannot be imported."""
    without = tmp_path / 'without'
    without.mkdir()
    for name in _TENSORFLOW:
        (without / f'{name}.py').write_text(f'raise ImportError("{name} was imported")\n')

    def run(module, *arguments):
        paths = os.pathsep.join([str(without), str(_REPO)])
        return processes.run_python('-m', module, *arguments, cwd=tmp_path, PYTHONPATH=paths)

    return run


def _call(monkeypatch, *arguments):
    """Calls the console script in this process."""
    monkeypatch.setattr(sys, 'argv', ['/usr/bin/tf-efsgd', *arguments])
    console.main()


def test_tensorflow_cannot_be_imported_here(run):
    finished = run('tf_efsgd.privacy.noise')
    assert finished.returncode == 1 and 'tensorflow was imported' in finished.stderr


@pytest.mark.parametrize(
    'command',
    [
        pytest.param(('tf_efsgd.plan',), marks=pytest.mark.acceptance),
        ('tf_efsgd', 'plan', '--train_steps=50'),
    ],
    ids=' '.join,
)
def test_a_plan_needs_no_tensorflow(command, run):
    finished = run(*command, '--dataset_size=60000', '--target_epsilon=10')
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ''
    assert 'calibrated for ε ≤ 10' in finished.stdout
    assert '128 of 60,000 records expected in a step' in finished.stdout


def test_help_is_short_and_names_every_command(run):
    finished = run('tf_efsgd', '--help')
    assert (finished.returncode, finished.stderr) == (0, '')
    lines = finished.stdout.splitlines()
    assert len(lines) <= 28 and max(map(len, lines)) <= 100
    for command, text in console.COMMANDS.items():
        assert f'  {command:<10}{text}' in lines


@pytest.mark.parametrize('arguments', [[], ['--help=1'], ['--helpfull'], ['-h'], ['help']])
def test_no_arguments_and_every_way_to_ask_print_the_help(arguments, monkeypatch, capsys):
    _call(monkeypatch, '--help')
    shown = capsys.readouterr()
    assert shown.out.startswith('tf-efsgd ') and 'Usage: tf-efsgd COMMAND' in shown.out
    _call(monkeypatch, *arguments)
    assert capsys.readouterr() == shown


@pytest.mark.parametrize(
    ('arguments', 'which'),
    [
        *((['--help'], 'short'), (['--help=1'], 'short'), (['-help=TRUE'], 'short')),
        *((['a', '-h'], 'short'), (['-?'], 'short'), (['--helpshort'], 'short')),
        *((['--helpfull'], 'full'), (['--help', '--helpfull=true'], 'full')),
        *((['--help=0'], None), (['help'], None), (['--output=--help'], None), ([], None)),
    ],
)
def test_help_is_asked_for_in_every_form_that_a_boolean_flag_has(arguments, which):
    assert helps.asked_for(arguments) == which


def test_the_version_is_printed(run):
    assert run('tf_efsgd', '--version').stdout == f'tf_efsgd {__version__}\n'


def test_help_and_version_load_nothing_else_of_ours(monkeypatch, capsys):
    for argument in ('--help', '--version'):
        code = (
            f'import sys; sys.argv = ["tf-efsgd", "{argument}"]\n'
            'from tf_efsgd.cli import main; main.main()\n'
            'print(sorted(n for n in sys.modules if n.partition(".")[0] in '
            '("tf_efsgd", "absl", "numpy", "tensorflow")))'
        )
        shown = processes.run_python('-c', code)
        ours = ['', '.cli', '.cli.main', '.terminal', '.version']
        ours[3:3] = ['.python_312'] if sys.version_info >= (3, 12) else []
        loaded = str([f'tf_efsgd{name}' for name in ours])
        assert shown.stdout.splitlines()[-1] == loaded, shown.stderr


@pytest.mark.parametrize('arguments', [['trian'], ['--flagfile=demo.flags'], ['a b\nc'], ['']])
def test_an_unknown_command_is_one_line_and_exit_code_2(arguments, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exited:
        _call(monkeypatch, *arguments)
    written = capsys.readouterr()
    assert exited.value.code == 2 and written.out == ''
    assert len(written.err.splitlines()) == 1
    assert written.err.startswith('tf_efsgd: ') and ' train, plan, ' in written.err
    received = ' '.join(arguments).replace('\n', ' ') or 'nothing'
    assert written.err.endswith(f'Received: {received}.\n')


@pytest.mark.parametrize('command', console.COMMANDS)
def test_every_command_has_a_short_help_and_a_full_one(command, run):
    started = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = run('tf_efsgd', command, '--help')
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    # None of them loads TensorFlow or an accountant for it. Time of the processor: others work on
    # this machine, too.
    assert ended.ru_utime + ended.ru_stime - started.ru_utime - started.ru_stime < 2
    assert (finished.returncode, finished.stderr) == (0, '')
    lines = finished.stdout.splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 100
    assert any(line.startswith(f'Usage: tf-efsgd {command} ') for line in lines)
    assert lines[-1] == f'tf-efsgd {command} --helpfull explains all of them.'
    # Each heading once; the title calls the command as its user does.
    headings = [line for line in lines if re.fullmatch(r'\w[\w ]*:', line)]
    assert headings and len(set(headings)) == len(headings)
    assert f'tf-efsgd {command}' in lines[0] and 'python -m' not in lines[0]
    full = run('tf_efsgd', command, '--helpfull')
    assert (full.returncode, full.stderr) == (0, '')
    named = set(re.findall(r'--(?:\[no\])?(\w+)', finished.stdout)) - {'flag', 'helpfull'}
    explained = set(re.findall(r'^  --(?:\[no\])?(\w+)$', full.stdout, re.MULTILINE))
    assert explained <= named and len(explained) >= 2


def test_a_mistake_in_a_command_is_one_line_and_exit_code_2(run):
    finished = run('tf_efsgd', 'train', '--no_such_flag=1')
    assert finished.returncode == 2 and finished.stdout == ''
    assert finished.stderr.startswith('tf_efsgd: ') and 'no_such_flag' in finished.stderr
    assert len(finished.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ('door', 'command'),
    [
        *(('launch', 'train'), ('plan', 'plan'), ('evaluate', 'evaluate'), ('state', 'state')),
        *(('audit', 'audit'), ('benchmark', 'bench'), ('results', 'results')),
    ],
)
def test_every_door_leads_to_its_command(door, command, monkeypatch):
    called = []
    monkeypatch.setattr(f'tf_efsgd.cli.{command}.main', lambda: called.append(command))
    monkeypatch.delitem(sys.modules, f'tf_efsgd.{door}', raising=False)
    monkeypatch.delitem(sys.modules, f'tf_efsgd.{door}.__main__', raising=False)
    runpy.run_module(f'tf_efsgd.{door}', run_name='__main__')
    assert called == [command]
