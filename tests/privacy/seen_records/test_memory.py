"""What is written is for the user alone; what cannot be read counts as not known."""

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import stat

import numpy as np
import pytest
from helpers import yardstick
from helpers.seen import (
    counts_of,
    digests_of,
    persons_of,
    start_run,
    start_run_of_persons,
)

from tf_efsgd import files
from tf_efsgd.privacy import run_state, seen_records
from tf_efsgd.privacy.seen_records import memory


def test_neither_a_rule_nor_a_person_is_in_a_sketch(folder):
    start_run_of_persons(folder, 'one', persons_of(30, b'csv:secret', None))
    content = (folder / 'one.seen.json').read_bytes()
    assert b'secret' not in content
    plain = hashlib.sha256(b'csv:secret').hexdigest().encode()
    assert plain not in content and json.loads(content)['rule'] not in (None, plain.decode())


def _make_key(folder, barrier, results):
    barrier.wait()
    memory._make_key(folder / 'seen.key')
    results.put(memory.read_key(folder))


def test_a_key_is_made_once_even_without_the_lock(folder):
    context = multiprocessing.get_context('fork')
    barrier, results = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_make_key, args=(folder, barrier, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    keys = {results.get(timeout=300) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(keys) == 1 and len(*keys) == 32
    assert [path.name for path in folder.iterdir()] == ['seen.key']
    memory._make_key(folder / 'seen.key')  # By a process that saw none.
    assert keys == {memory.read_key(folder)}


def test_files_are_for_the_user_alone_and_small(folder):
    start_run(folder, 'one', digests_of(0, 1))
    digests = digests_of(0, 60_000)
    with yardstick.measured() as took:
        start_run(folder, 'two', digests)
    assert took.units < 10  # About 1.
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert 90_000 < (folder / 'two.seen.json').stat().st_size < 100_000
    # Neither the key nor what anybody can compute from a picture.
    key = (folder / 'seen.key').read_bytes()
    content = (folder / 'one.seen.json').read_bytes()
    assert key not in content and key.hex().encode() not in content
    raw = digests[:1].astype('>u8').tobytes()
    assert raw.hex()[:14].encode() not in content
    assert seen_records.Sketch.from_json(json.loads(content)).kept[0] != int.from_bytes(raw[:7])


def test_another_key_gives_other_hashes(folder, tmp_path):
    run_state.prepare_folder(tmp_path / 'other')
    kept = []
    for place in (folder, tmp_path / 'other'):
        start_run(place, 'one', digests_of(0, 10))
        kept.append(json.loads((place / 'one.seen.json').read_text())['kept'])
    assert kept[0] != kept[1]


def _cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def _lower_epsilon(path):
    path.write_text(path.read_text().replace('"epsilon": 10.0', '"epsilon": 1.0'))


def _fewer_records(path):
    values = json.loads(path.read_text())
    values['kept'] = values['kept'][28:]
    path.write_text(json.dumps(values))


def _folder_in_its_place(path):
    path.unlink()
    path.mkdir()


def _of_another_run(path):
    path.rename(path.with_name('another.seen.json'))


def _list(path):
    path.write_text('[]')


def _other_key(path):
    path.with_name('seen.key').unlink()


_DAMAGES = [_cut, _lower_epsilon, _fewer_records, _folder_in_its_place, _of_another_run, _list]
_DAMAGES.append(_other_key)


@pytest.mark.parametrize('damage', _DAMAGES)
def test_a_damaged_sketch_is_named_and_only_a_budget_refuses(folder, damage):
    start_run(folder, 'one', digests_of(0, 100))
    start_run(folder, 'fine', digests_of(0, 100))
    damage(folder / 'one.seen.json')
    with pytest.raises(seen_records.SeenRecordsError, match='cannot be kept: .*/(one|another).*'):
        start_run(folder, 'two', digests_of(0, 100), budget=1000.0)
    assert not (folder / 'two.seen.json').exists()
    others = start_run(folder, 'two', digests_of(0, 100))
    warning = next(line for line in others.lines() if '/fine.' not in line)
    assert warning.startswith('WARNING: ') and '--remove=' in warning
    assert others.to_statement()['other_runs_not_known'] == (2 if damage is _other_key else 1)
    assert [use.run_id for use in others.uses] == ([] if damage is _other_key else ['fine'])
    assert (folder / 'two.seen.json').exists()


@pytest.mark.parametrize('content', [b'', b'short', None])
def test_a_damaged_key_is_named_and_only_a_budget_refuses(folder, content):
    path = folder / 'seen.key'
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
        path.chmod(0o600)
    others = start_run(folder, 'one', digests_of(0, 100))
    (line,) = others.lines()
    assert line.startswith(f'WARNING: {path}: ') and '--state_dir' in line
    with pytest.raises(seen_records.SeenRecordsError, match='cannot be kept: .*seen.key'):
        start_run(folder, 'one', digests_of(0, 100), budget=1000.0)
    assert not list(folder.glob('*.seen.json'))


def test_a_full_disk_leaves_what_was_found(folder, monkeypatch):
    start_run(folder, 'one', digests_of(0, 100))

    def full(*_, **__):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(files, 'write_atomically', full)
    others = start_run(folder, 'two', digests_of(0, 100))
    assert counts_of(others) == [('one', 100, True)]
    assert 'No space left on device' in others.lines()[0]
    with pytest.raises(seen_records.SeenRecordsError, match='cannot be kept: .*No space left'):
        start_run(folder, 'two', digests_of(0, 100), budget=1000.0)


def test_a_run_of_which_only_the_fingerprint_is_there_is_not_known(folder):
    images, labels = np.zeros((3, 4, 4, 1), np.uint8), np.zeros(3, np.int32)
    state = run_state.RunState(folder, 'old')
    state.remember_records(images, labels, {'bytes': 7, 'sha256': 'abc'})
    state.close()
    (line,) = start_run(folder, 'two', digests_of(0, 100)).lines()
    assert line.startswith(f'WARNING: {folder} remembers 1 run without a sketch')
    with pytest.raises(seen_records.SeenRecordsError, match='1 run without a sketch'):
        start_run(folder, 'three', digests_of(0, 100), budget=1000.0)
    # When it is resumed it is counted.
    start_run(folder, 'old', digests_of(0, 3), budget=1000.0)
    assert start_run(folder, 'three', digests_of(100, 200), budget=1000.0).lines() == []


def test_a_forgotten_run_counts_no_more(folder):
    start_run(folder, 'one', digests_of(0, 100))
    seen_records.forget(folder, 'one')
    seen_records.forget(folder, 'one')
    assert start_run(folder, 'two', digests_of(0, 100), budget=10.0).uses == ()


@pytest.mark.parametrize('damage', [_cut, _lower_epsilon, _fewer_records, _list])
def test_a_damaged_sketch_of_the_run_itself_is_not_known_and_kept(folder, damage):
    digests = digests_of(0, 100)
    start_run(folder, 'one', digests)
    path, aside = folder / 'one.seen.json', folder / 'one.seen.json.1.damaged'
    damage(path)
    damaged = path.read_bytes()
    with pytest.raises(seen_records.SeenRecordsError, match='cannot be kept: .*one.seen.json, of'):
        start_run(folder, 'one', digests, budget=1000.0)
    assert path.read_bytes() == damaged and not aside.exists()
    others = start_run(folder, 'one', digests)
    assert others.lines()[0].startswith(f'WARNING: {path}, of this run itself, cannot be used')
    assert aside.read_bytes() == damaged and stat.S_IMODE(aside.stat().st_mode) == 0o600
    # From then on every start says so, until it is removed.
    for run_id in ('one', 'two'):
        with pytest.raises(seen_records.SeenRecordsError, match=f'{aside} was damaged'):
            start_run(folder, run_id, digests, budget=1000.0)
        others = start_run(folder, run_id, digests)
        assert f'--remove={aside.name}' in others.lines()[0]
        assert others.to_statement()['other_runs_not_known'] == 1
        assert others.to_statement()['together_with_all']['epsilon'] is None
    damage(path)
    start_run(folder, 'one', digests)
    assert (folder / 'one.seen.json.2.damaged').exists() and aside.read_bytes() == damaged
    for kept in folder.glob('*.damaged'):
        kept.unlink()
    assert start_run(folder, 'two', digests, budget=20.0).not_known == ()


def test_a_sketch_of_the_run_itself_that_cannot_be_read_is_not_known(folder):
    start_run(folder, 'one', digests_of(0, 100))
    _folder_in_its_place(folder / 'one.seen.json')
    with pytest.raises(seen_records.SeenRecordsError, match='cannot be kept: .*one.seen.json'):
        start_run(folder, 'one', digests_of(0, 100), budget=1000.0)
    assert start_run(folder, 'one', digests_of(0, 100)).lines()[0].startswith('WARNING: ')


def test_a_folder_that_cannot_be_listed_is_not_known(folder, monkeypatch):
    """Its mode may be 0300; glob finds nothing there and says nothing."""
    start_run(folder, 'one', digests_of(0, 100))

    def refuse(path='.'):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(os, 'listdir', refuse)
    monkeypatch.setattr(os, 'scandir', refuse)
    others = start_run(folder, 'two', digests_of(0, 100))
    assert f'{folder}: Permission denied' in others.lines()[0] and not others.is_compared
    with pytest.raises(seen_records.SeenRecordsError, match='cannot be kept: .*Permission denied'):
        start_run(folder, 'two', digests_of(0, 100), budget=1000.0)


def test_rights_of_others_are_taken_away_and_said(folder):
    start_run(folder, 'one', digests_of(0, 100))
    for name, mode in (('seen.key', 0o640), ('one.seen.json', 0o602)):
        (folder / name).chmod(mode)
    folder.chmod(0o770)
    first, second, third = start_run(folder, 'two', digests_of(100, 200), budget=10.0).lines()
    assert 'seen.key could be used by other users' in first and 'one.seen.json could' in second
    assert f'chmod 700 {folder}' in third
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    folder.chmod(0o700)
    assert start_run(folder, 'three', digests_of(200, 300)).lines() == []


@pytest.mark.parametrize('which', ['of the folder', 'of a run'])
def test_a_lock_that_is_removed_while_it_is_taken_is_taken_anew(folder, which, monkeypatch):
    flock, removed = fcntl.flock, []

    def flock_and_remove(handle, operation):
        flock(handle, operation)
        if not removed:
            removed.extend(folder.glob('*.lock'))
            removed[0].unlink()

    monkeypatch.setattr(fcntl, 'flock', flock_and_remove)
    with contextlib.ExitStack() as stack:
        if which == 'of a run':
            stack.enter_context(run_state.lock(folder, 'one'))
        else:
            stack.enter_context(seen_records.locked(folder))
        (path,) = removed
        with open(path) as other, pytest.raises(BlockingIOError):
            flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
