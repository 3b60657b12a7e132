"""Where a run lies, what is said of it when it ends early, and file systems that lack something."""

import errno
import fcntl
import os
import pathlib
import re
import shlex

import pytest
from helpers import tiny_run

from tf_efsgd import config, files
from tf_efsgd.config import ConfigError
from tf_efsgd.run import context, folder, runner
from tf_efsgd.training import fit as fitting


def _settings(place='', **changes):
    return config.from_flagfile('\n'.join(tiny_run.flags(place, **changes)))


def _chosen(dataset):
    settings = _settings(dataset=dataset)
    return folder.choose(
        config.RunConfig(data=settings.data, privacy=settings.privacy, model=settings.model)
    )


@pytest.mark.parametrize(
    ('name', 'begins'),
    [
        ('photos [2024]', 'folder-photos-2024-'),
        ('a*b?\\c', 'folder-a-b-c-'),
        ('Köln', 'folder-Köln-'),
        ('...', 'folder-'),
        ('[]', 'folder-'),
    ],
)
def test_the_default_folder_is_no_pattern(name, begins, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = _chosen(f'folder:{name}')
    assert chosen.parent == pathlib.Path('runs') and chosen.name.startswith(begins)
    assert not files.has_wildcards(chosen)


@pytest.mark.parametrize(('inside', 'path'), [('', '.'), ('a', '..'), ('', '{}'), ('a/b', '../..')])
def test_runs_on_the_folder_one_is_in_lie_beside_it(inside, path, tmp_path, monkeypatch):
    photos = tmp_path / 'photos'
    (photos / 'a' / 'b').mkdir(parents=True)
    monkeypatch.chdir(photos / inside)
    for scheme in ('folder', 'idx'):
        chosen = _chosen(f'{scheme}:{path.format(photos)}').resolve()
        assert chosen.parent == tmp_path / 'runs'
    folder.check(chosen, _settings(dataset='folder:.'))


def test_elsewhere_runs_lie_in_the_folder_one_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _chosen('folder:photos').resolve().parent == tmp_path / 'runs'


def test_paths_are_kept_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'net.keras').write_text('')
    given = {'data_dir': 'tfds', 'tfds_manual_dir': '~/x', 'public_features': './net.keras'}
    whole = folder.with_whole_paths(_settings(dataset='folder:photos/..', **given))
    assert whole.data.dataset == f'folder:{tmp_path}'
    assert whole.data.data_dir == str(tmp_path / 'tfds')
    assert whole.data.tfds_manual_dir == str(pathlib.Path.home() / 'x')
    assert whole.privacy.public_features == str(tmp_path / 'net.keras')
    for dataset in ('digits', 'idx:', 'folder:'):
        assert folder.with_whole_paths(_settings(dataset=dataset)).data.dataset == dataset
    # Its path is part of the hash of the settings that a resumed run must have.
    resumed = _settings('run', resume=None, public_features='./net.keras')
    assert folder.with_whole_paths(resumed).privacy.public_features == './net.keras'


def test_only_a_run_that_began_can_be_continued(tmp_path):
    place = tmp_path / "it's a run"
    settings = _settings(place, state_dir='my state')
    place.mkdir()
    (place / 'config.flags').write_text('')
    assert folder.how_to_continue(settings, place) is None
    (place / 'ledger.jsonl').write_text('')
    said = folder.how_to_continue(settings, place)
    sentence, command = said.split(': ', 1)
    assert sentence == 'Continue with'
    assert shlex.split(command) == [
        *('python', '-m', 'tf_efsgd.launch'),
        *(f'--flagfile={place}/config.flags', f'--run_dir={place}', '--resume'),
        '--state_dir=my state',
    ]


@pytest.mark.parametrize('error', [OSError(errno.EIO, 'no'), KeyboardInterrupt()])
def test_what_ends_before_the_start_says_nothing_of_continuing(error, tmp_path):
    def load(_):
        raise error

    settings = _settings(tmp_path / 'run')
    with pytest.raises(type(error)) as raised:
        runner.run(settings, context.Sources(load=load))
    assert raised.value.how_to_continue is None


@pytest.mark.parametrize('error', [OSError(errno.ENOSPC, 'no'), KeyboardInterrupt()])
def test_what_ends_in_the_fit_says_the_command(error, tmp_path, monkeypatch):
    def cut(*_, **__):
        raise error

    monkeypatch.setattr(fitting, 'fit', cut)
    with pytest.raises(type(error)) as raised:
        tiny_run.run(tmp_path / 'run', warm_start_share=0.5, warm_start_steps=3)
    assert raised.value.how_to_continue == (
        'Continue with: python -m tf_efsgd.launch '
        f'--flagfile={tmp_path}/run/config.flags --run_dir={tmp_path}/run --resume'
    )


def _without(monkeypatch, module, name, number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, name, fail)


@pytest.mark.acceptance
@pytest.mark.parametrize('number', [errno.EPERM])
def test_a_run_needs_no_hard_links(number, tmp_path, monkeypatch):
    """As on exFAT."""
    _without(monkeypatch, os, 'link', number)
    place, state = tmp_path / 'run', tmp_path / 'state'
    steps = {'train_steps': 2, 'state_dir': state, 'noexport': None, 'noevaluate': None}
    tiny_run.run(place, **steps)
    assert sum(tiny_run.reserved(place)) == 2
    with pytest.raises(ConfigError, match='not empty'):
        tiny_run.run(place, **steps)
    assert not [p for p in (*place.iterdir(), *state.iterdir()) if '.tmp-' in p.name]


@pytest.mark.parametrize('number', [errno.ENOTSUP, errno.ENOLCK])
def test_without_locks_a_run_does_not_start_and_says_so(number, tmp_path, monkeypatch):
    _without(monkeypatch, fcntl, 'flock', number)
    state = tmp_path / 'state'
    with pytest.raises(ConfigError, match='has no locks .*another disk.* is --state_dir'):
        tiny_run.run(tmp_path / 'run', state_dir=state)
    assert not list(state.iterdir()) and not (tmp_path / 'run').exists()


def test_without_locks_for_the_ledger_nothing_is_spent(tmp_path, monkeypatch):
    flock = fcntl.flock

    def only_on_files(file, operation):
        name = os.readlink(f'/proc/self/fd/{file if isinstance(file, int) else file.fileno()}')
        if 'ledger' in name:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        flock(file, operation)

    monkeypatch.setattr(fcntl, 'flock', only_on_files)
    state = tmp_path / 'state'
    with pytest.raises(ConfigError, match='has no locks .* is --run_dir'):
        tiny_run.run(tmp_path / 'run', state_dir=state)
    assert {path.name for path in (tmp_path / 'run').iterdir()} == {'config.flags'}
    assert {path.name for path in state.iterdir()} == {'seen.key', 'seen.lock'}


def test_on_windows_a_run_does_not_start_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'fcntl', None)
    with pytest.raises(ConfigError, match='Use WSL'):
        tiny_run.run(tmp_path / 'run')
    assert not list(tmp_path.iterdir())


def test_the_first_line_says_what_it_trains_on_and_for_how_long(tmp_path, capsys):
    def load(_):
        raise ConfigError('enough')

    def first_line(given, *more):
        settings = config.from_flagfile('\n'.join(tiny_run.flags(tmp_path / 'run', *more)))
        with pytest.raises(ConfigError, match='enough'):
            runner.run(settings, context.Sources(load=load), **given)
        return capsys.readouterr().out.splitlines()[0]

    device = r'Training on (CPU, \d+ cores|.*GPU.*)'
    shown = first_line({}, '--strategy=one_device')
    assert re.fullmatch(f'{device}, for the given number of steps: .*', shown), shown
    shown = first_line({'given': {'target_epsilon'}}, '--minutes=7')
    assert re.fullmatch(f'{device}.*, for about 7 minutes .*', shown), shown
    shown = first_line({'given': {'minutes', 'train_steps'}}, '--minutes=3')
    wanted = f'{device}.*, for the given number of steps: by --minutes, about 3 minutes, .*'
    assert re.fullmatch(wanted, shown), shown
