"""What is remembered of a run outside its folder."""

import stat

import numpy as np
import pytest

from tf_efsgd.privacy import run_state

_POSITION = {'bytes': 7, 'sha256': 'abc'}


@pytest.fixture
def records():
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (6, 4, 4, 1)).astype(np.uint8), np.arange(6, dtype=np.int32) % 3


@pytest.fixture
def folder(tmp_path):
    run_state.prepare_folder(tmp_path / 'a' / 'state')
    return tmp_path / 'a' / 'state'


@pytest.fixture
def remembered(folder, records):
    state = run_state.RunState(folder, 'run')
    assert not state.is_known
    state.remember_records(*records, _POSITION)
    state.close()
    return state


def test_the_same_records_are_recognised_in_any_order(folder, remembered, records):
    images, labels = records
    again = run_state.RunState(folder, 'run')
    assert again.is_known and again.position == _POSITION
    again.check_records(images, labels)
    order = [3, 1, 0, 5, 2, 4]
    again.check_records(images[order], labels[order])


def _pixel(images, labels):
    images = images.copy()
    images[2, 1, 3, 0] ^= 1
    return images, labels


@pytest.mark.parametrize(
    'change',
    [
        _pixel,
        lambda images, labels: (images, labels[::-1].copy()),
        lambda images, labels: (images[1:], labels[1:]),
        lambda images, labels: (images[[0, 0, 1, 2, 3, 4, 5]], labels[[0, 0, 1, 2, 3, 4, 5]]),
        lambda images, labels: (images[[0, 0, 2, 3, 4, 5]], labels[[0, 0, 2, 3, 4, 5]]),
        lambda images, labels: (images.reshape(6, 2, 8, 1), labels),
    ],
    ids=['pixel', 'labels', 'one less', 'one more', 'one for another', 'shape'],
)
def test_other_records_are_refused(remembered, records, change):
    with pytest.raises(run_state.RunStateError, match='not the ones'):
        remembered.check_records(*change(*records))


def test_key_and_tag_are_fresh_and_for_the_user_alone(folder, remembered, records):
    other = run_state.RunState(folder, 'other')
    other.remember_records(*records, _POSITION)
    one, two = ((folder / f'{name}.json').read_text() for name in ('run', 'other'))
    assert one != two
    for name in ('run.json', 'run.lock'):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    # Nobody sees them by printing the object.
    for state in (remembered, other):
        assert all(state._state[name] not in repr(state) for name in ('key', 'records'))


def test_a_position_is_kept_and_the_fingerprint_with_it(folder, remembered, records):
    remembered.store_position({'bytes': 9, 'sha256': 'def'})
    again = run_state.RunState(folder, 'run')
    assert again.position['bytes'] == 9
    again.check_records(*records)
    assert sorted(path.name for path in folder.iterdir()) == ['run.json', 'run.lock']


def test_a_run_is_of_one_process_at_a_time(folder, remembered):
    first = run_state.RunState(folder, 'run')
    with pytest.raises(run_state.RunStateError, match='Another process'):
        run_state.RunState(folder, 'run')
    run_state.RunState(folder, 'another').close()
    first.close()
    run_state.RunState(folder, 'run').close()


@pytest.mark.parametrize('content', ['', '{"key": "00"}', '[]', '{"key": 1, "records": 2}'])
def test_a_damaged_state_is_named(folder, content):
    (folder / 'run.json').write_text(content)
    with pytest.raises(run_state.RunStateError, match='run.json is damaged.*--resume_unverified'):
        run_state.RunState(folder, 'run')


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(run_state.RunStateError, match='--state_dir'):
        run_state.prepare_folder(tmp_path / 'file' / 'state')


def test_the_default_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path))
    assert run_state.default_folder() == tmp_path / 'tf_efsgd'
    monkeypatch.delenv('XDG_STATE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert run_state.default_folder() == tmp_path / '.local' / 'state' / 'tf_efsgd'
