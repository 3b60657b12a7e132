"""tf-efsgd cache: lists and removes decoded images."""

import json

import pytest
from absl import flags
from helpers.data_sets import gray_files, write_folder

from tf_efsgd import config
from tf_efsgd.cli import cache
from tf_efsgd.data import load


def _ask(*arguments):
    values = flags.FlagValues()
    cache.define_flags(values)
    values(['x', *arguments])
    return cache.run(values)


def test_caches_are_listed_and_removed(tmp_path):
    here = f'--cache_dir={tmp_path / "cache"}'
    assert _ask(here).startswith('No decoded images are kept')
    assert _ask(here, '--remove=all') == 'There was nothing to remove.'
    for name, count in (('cats', 3), ('dogs', 4)):
        dataset = write_folder(tmp_path / name, {'a': gray_files(count, 0)})
        load.load(dataset, cache_dir=tmp_path / 'cache')
    (tmp_path / 'cache' / 'own.txt').write_text('of somebody else')
    listed = _ask(here)
    assert 'PRIVATE' in listed
    (cats,) = [line for line in listed.splitlines() if 'cats, all: 3 images' in line]
    values = flags.FlagValues()
    cache.define_flags(values)
    values(['x', here, '--json'])
    found = json.loads(json.dumps(cache.find(values)[0]))
    assert found['note'].startswith('PRIVATE') and found['folder'] == str(tmp_path / 'cache')
    (item,) = [item for item in found['items'] if item['name'] == cats.split()[0]]
    assert item['bytes'] > 0 and item['what'] in cats and item['date'] in cats
    with pytest.raises(config.ConfigError, match='no cache of that name'):
        _ask(here, '--remove=cats')
    removed = _ask(here, f'--remove={cats.split()[0]}')
    assert removed.startswith('Removed ') and 'cats' in removed
    assert 'cats' not in _ask(here) and 'dogs, all: 4 images' in _ask(here)
    (tmp_path / 'cache' / 'half.images').write_bytes(b'torn')
    assert 'not whole' in _ask(here)
    _ask(here, '--remove=all')
    assert [path.name for path in (tmp_path / 'cache').iterdir()] == ['own.txt']
