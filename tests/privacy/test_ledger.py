"""Tests of the write-ahead ledger."""

import builtins
import dataclasses
import json
import os

import pytest

from tf_efsgd.privacy import ledger

_PLAN = ledger.Plan(
    dataset='mnist',
    dataset_size=60_000,
    image_shape=(28, 28, 1),
    num_classes=10,
    sampling_probability=0.3,
    noise_multiplier=0.7,
    train_steps=100,
    target_delta=1e-5,
    target_epsilon=None,
    steps_per_entry=30,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'ledger.jsonl'


@pytest.fixture
def spent(path):
    """A ledger with entries of 7, 11 and 13 steps."""
    book = ledger.Ledger(path, _PLAN)
    for count in (7, 11, 13):
        book.reserve(count)
    return book


def test_spent_is_the_sum_of_all_entries_also_after_reopening(path, spent):
    assert spent.reserved_steps == 31
    for plan in (None, _PLAN):
        again = ledger.Ledger(path, plan)
        assert again.plan == _PLAN
        assert (again.reserved_steps, again.remaining_steps) == (31, 69)
        assert again.position == spent.position
    # The same steps reserved again, after a crash, are charged again.
    again.reserve(13)
    assert ledger.Ledger(path).reserved_steps == 44


def test_an_entry_is_on_disk_before_reserve_returns(path, spent, monkeypatch):
    synced = []

    def fsync(descriptor):
        # Everything written so far is in the file by the time it is synced.
        synced.append((os.fstat(descriptor).st_ino, path.read_bytes()))

    monkeypatch.setattr(os, 'fsync', fsync)
    spent.reserve(5)
    inode, content = synced[-1]
    assert inode == path.stat().st_ino
    assert content == path.read_bytes()
    assert json.loads(content.splitlines()[-1])['count'] == 5


def test_nothing_is_counted_when_the_disk_fails(path, spent, monkeypatch):
    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='disk full'):
        spent.reserve(5)
    monkeypatch.undo()
    # The line reached the file, so whoever reads it charges it.
    assert spent.reserved_steps == 31
    assert ledger.Ledger(path).reserved_steps == 36


@pytest.mark.parametrize('kept', [1, 40, -1])  # bytes of the last line; -1: all but its newline
def test_a_torn_last_line_counts_as_a_full_entry_and_is_repaired(path, spent, kept):
    before = path.read_bytes()
    position = spent.position
    spent.reserve(2)
    line = path.read_bytes()[len(before) :]
    path.write_bytes(before + line[:kept])
    repaired = ledger.Ledger(path, _PLAN)
    assert repaired.reserved_steps == 31 + _PLAN.steps_per_entry
    repaired.check_position(position)
    repaired.reserve(1)
    assert ledger.Ledger(path).reserved_steps == 31 + _PLAN.steps_per_entry + 1


def test_a_torn_plan_is_refused(path):
    path.write_bytes(b'{"kind": "pl')
    with pytest.raises(ledger.LedgerError, match='has no plan'):
        ledger.Ledger(path, _PLAN)


def _edit_count(lines):
    return [lines[0], lines[1].replace(b'"count": 7', b'"count": 1'), *lines[2:]]


def _edit_plan(lines):
    return [lines[0].replace(b'"train_steps": 100', b'"train_steps": 900'), *lines[1:]]


@pytest.mark.parametrize(
    'edit',
    [
        _edit_count,
        _edit_plan,
        lambda lines: [lines[0], lines[2], lines[1], lines[3]],  # reordered
        lambda lines: [lines[0], *lines[2:]],  # shortened in the middle
        lambda lines: [*lines, lines[-1]],  # repeated
        lambda lines: lines[1:],  # no plan
        lambda lines: [*lines[:2], b'', *lines[2:]],
        lambda lines: [*lines[:2], b'[]', *lines[2:]],
    ],
)
def test_an_altered_ledger_is_refused(path, spent, edit):
    lines = path.read_bytes().splitlines()
    path.write_bytes(b'\n'.join(edit(lines)) + b'\n')
    with pytest.raises(ledger.LedgerError, match='altered or out of place'):
        ledger.Ledger(path)


def test_a_checkpoint_sees_what_the_chain_cannot(path, spent):
    before = path.read_bytes()
    position = spent.position
    spent.reserve(3)
    spent.check_position(position)
    ledger.Ledger(path).check_position(position)
    for altered in (
        before[: before.rindex(b'{')],  # the last entry is gone
        before.replace(b'"count": 13', b'"count": 1'),  # the last entry is another
    ):
        path.write_bytes(altered)
        with pytest.raises(ledger.LedgerError, match='does not continue'):
            ledger.Ledger(path).check_position(position)


def test_the_budget_is_never_passed(path, spent):
    for count in (30, 30):
        spent.reserve(count)
    with pytest.raises(ledger.LedgerError, match='10 more steps.* 91 of 100'):
        spent.reserve(10)
    assert ledger.Ledger(path).reserved_steps == 91
    spent.reserve(9)
    assert spent.remaining_steps == 0
    with pytest.raises(ledger.LedgerError, match='budget'):
        spent.reserve(1)


@pytest.mark.parametrize('count', [0, -5, 31])
def test_an_entry_has_bounds(path, spent, count):
    size = path.stat().st_size
    with pytest.raises(ledger.LedgerError, match=f'1 to 30 steps. Received: {count}'):
        spent.reserve(count)
    assert path.stat().st_size == size


def test_another_plan_is_refused_and_named(path, spent):
    other = dataclasses.replace(_PLAN, noise_multiplier=0.6, image_shape=(32, 32, 3))
    with pytest.raises(ledger.LedgerError) as refused:
        ledger.Ledger(path, other)
    assert 'noise_multiplier was 0.7, is 0.6' in str(refused.value)
    assert 'image_shape was (28, 28, 1), is (32, 32, 3)' in str(refused.value)
    assert 'dataset_size' not in str(refused.value)


def test_a_missing_ledger_is_refused_and_not_made(path):
    with pytest.raises(ledger.LedgerError, match='missing'):
        ledger.Ledger(path)
    assert not path.exists()


def test_reading_writes_nothing(path, spent, monkeypatch):
    del spent
    real = builtins.open

    def read_only(file, mode='r', *args, **kwargs):
        assert not set(mode) & set('wax+')
        return real(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, 'open', read_only)
    assert ledger.Ledger(path).reserved_steps == 31


def test_a_second_process_in_the_same_folder_is_noticed(path, spent):
    other = ledger.Ledger(path)
    other.reserve(3)
    with pytest.raises(ledger.LedgerError, match='another process'):
        spent.reserve(2)
    assert ledger.Ledger(path).reserved_steps == 34


@pytest.mark.parametrize('count', [-9, 0, 31, 1.5, True, None])
def test_a_last_entry_that_reserve_cannot_have_written_is_refused(path, spent, count):
    *before, last = path.read_text().splitlines()
    edited = json.dumps({**json.loads(last), 'count': count})
    path.write_text('\n'.join([*before, edited]) + '\n')
    with pytest.raises(ledger.LedgerError, match='line 4'):
        ledger.Ledger(path)


def test_a_torn_line_near_the_end_is_charged_what_was_left(path, spent):
    spent.reserve(30)
    spent.reserve(30)  # 91 of 100
    path.write_bytes(path.read_bytes() + b'{"kind": "st')
    again = ledger.Ledger(path)
    assert (again.reserved_steps, again.remaining_steps) == (100, 0)
    assert ledger.Ledger(path).reserved_steps == 100
    # Nobody reserves from a budget that is spent, so nothing can be torn behind it.
    path.write_bytes(path.read_bytes() + b'{"kind": "st')
    with pytest.raises(ledger.LedgerError, match='altered'):
        ledger.Ledger(path)
