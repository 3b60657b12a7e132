"""A run on nasty files: what it says and refuses, and what its folder never holds."""

import os

import numpy as np
import pytest
from helpers import nasty, tiny_run

from tf_efsgd import config
from tf_efsgd.config import ConfigError
from tf_efsgd.data import decoding
from tf_efsgd.run import folder as run_folder

_SMALL = {'image_size': 16, 'expected_batch_size': 9, 'target_delta': 1e-3, 'train_steps': 2}


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / 'photos'
    root.mkdir()
    nasty.write(root)
    return root


def _flags(tmp_path, photos, *more, **changes):
    changes = {'dataset': f'folder:{photos}', **_SMALL, **changes}
    return tiny_run.flags(tmp_path / 'run', f'--cache_dir={tmp_path / "cache"}', *more, **changes)


def _settings(*args, **changes):
    return config.from_flagfile('\n'.join(_flags(*args, **changes)))


def test_the_first_unreadable_file_ends_the_start_before_anything_is_made(tmp_path, photos):
    settings = _settings(tmp_path, photos)
    with pytest.raises(ConfigError, match='--skip_unreadable'):
        tiny_run.run(tmp_path / 'run', **{'dataset': f'folder:{photos}', **_SMALL})
    assert not (tmp_path / 'run').exists()
    with pytest.raises(ConfigError, match='cannot be read'):
        run_folder.load_records(settings)


@pytest.mark.parametrize('place', ['run', 'run/cache', 'run/../run/x'])
def test_no_cache_is_made_in_the_run_folder(tmp_path, photos, place):
    run_dir = tmp_path / 'run'
    settings = _settings(tmp_path, photos, f'--cache_dir={tmp_path / place}')
    with pytest.raises(ConfigError, match='--cache_dir must be outside'):
        run_folder.check(run_dir, settings)
    run_folder.check(run_dir, _settings(tmp_path, photos, f'--cache_dir={tmp_path / "runs"}'))
    run_folder.check(run_dir, _settings(tmp_path, photos, '--nocache'))


def test_without_a_cache_nothing_is_written(tmp_path, photos, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    settings = _settings(tmp_path, photos, '--nocache', '--skip_unreadable')
    assert len(run_folder.load_records(settings).train)
    assert not (tmp_path / 'xdg').exists() and not (tmp_path / 'cache').exists()


def test_classes_with_few_records_are_warned_of_on_the_terminal(tmp_path, capsys):
    for name, count in (('many', 60), ('few', 3), ('none', 0)):
        (tmp_path / 'photos' / name).mkdir(parents=True)
        for i in range(count):
            data = nasty.encoded(nasty.picture(1000 * count + i, 8, 8), 'PNG')
            (tmp_path / 'photos' / name / f'{i}.png').write_bytes(data)
    dataset = run_folder.load_records(_settings(tmp_path, tmp_path / 'photos'))
    few = int((dataset.train.labels == dataset.train.class_names.index('few')).sum())
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith('WARNING')]
    assert f'none (0), few ({few})' in line and 'many' not in line


@pytest.mark.acceptance
def test_a_run_on_nasty_files_holds_none_of_their_names(tmp_path, photos, capsys, monkeypatch):
    arguments = ('--skip_unreadable', '--noevaluate', f'--cache_dir={tmp_path / "cache"}')
    changes = {'dataset': f'folder:{photos}', **_SMALL}
    tiny_run.run(tmp_path / 'run', *arguments, **changes)
    said = capsys.readouterr().out
    assert '7 unreadable' in said and 'cut_off.jpg' in said and 'PRIVATE' in said
    assert 'b 10 (' in said  # It has few images.
    assert 'are few for ε = 1:' in said and 'Nothing is spent yet' in said
    assert tiny_run.statement(tmp_path / 'run')['class_names'] == ['b 2', 'b 10']
    names = [os.path.splitext(name)[0] for name in (*nasty.good_files(), *nasty.bad_files())]
    names = [name for name in names if len(name) > 6] + [b'@eaDir', b'Thumbs.db', b'unreadable:']
    for path in (tmp_path / 'run').rglob('*'):
        content = path.read_bytes() if path.is_file() else b''
        for name in names:
            assert name not in content, (path, name)
    # What is cached is used by a second start, and by one that resumes.
    monkeypatch.setattr(decoding, 'decode', lambda *_: pytest.fail('decoded again'))
    tiny_run.run(tmp_path / 'again', *arguments, **changes)
    capsys.readouterr()
    tiny_run.run(tmp_path / 'again', '--resume', *arguments, **changes)
    assert 'Nothing is spent yet' not in capsys.readouterr().out
    # Where the cache is stands beside where the images are: not in what may be shared.
    assert f'--cache_dir={tmp_path / "cache"}' in (tmp_path / 'run/config.flags').read_text()
    for shared in ('report.html', 'export/1/assets.extra/privacy_statement.json'):
        assert str(tmp_path / 'cache') not in (tmp_path / 'run' / shared).read_text()


@pytest.mark.acceptance
def test_a_folder_of_one_class_is_trained_on(tmp_path):
    root = tmp_path / 'faces'
    root.mkdir()
    for i in range(40):
        (root / f'{i}.webp').write_bytes(nasty.encoded(nasty.picture(i, 8, 8), 'WEBP'))
    changes = {'dataset': f'folder:{root}', **_SMALL, 'image_size': 8}
    tiny_run.run(tmp_path / 'run', '--noevaluate', '--nocache', **changes)
    assert tiny_run.statement(tmp_path / 'run')['class_names'] == ['images']
    assert np.any([path.suffix == '.png' for path in (tmp_path / 'run/samples').iterdir()])
