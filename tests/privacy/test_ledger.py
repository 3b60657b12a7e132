"""Tests of the write-ahead ledger.

A ledger is open in one place at a time; `Ledger.read` looks without opening it.
"""

import builtins
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

import dp_accounting
import pytest
from helpers import plans

import tf_efsgd
from tf_efsgd.privacy.ledger import START_POSITION, Ledger, LedgerError

# As they stand in the file.
_EVENT = {'class_name': 'GaussianDpEvent', 'noise_multiplier': 0.7}
_WARM_EVENT = {'class_name': 'GaussianDpEvent', 'noise_multiplier': 5.3}
_PLAN = plans.in_ledger()


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'ledger.jsonl'


@pytest.fixture
def ledger(path):
    """A ledger with entries of 7, 11 and 13 steps."""
    ledger = Ledger(path, _PLAN)
    for count in (7, 11, 13):
        ledger.reserve(count)
    yield ledger
    ledger.close()


def _reopen(path, ledger=None):
    if ledger is not None:
        ledger.close()
    return Ledger(path)


def test_spent_is_the_sum_of_all_entries_also_after_reopening(path, ledger):
    assert ledger.reserved_steps == 31
    again = _reopen(path, ledger)
    assert again.plan == again.first_plan == _PLAN
    assert (again.reserved_steps, again.remaining_steps) == (31, 69)
    assert (again.position, again.run_id) == (ledger.position, ledger.run_id)
    # The same steps reserved again, after a crash, are charged again.
    again.reserve(13)
    assert Ledger.read(path).reserved_steps == 44


def test_entries_hold_count_event_data_set_and_time(path, ledger):
    for line, count in zip(path.read_text().splitlines()[1:], (7, 11, 13)):
        entry = json.loads(line)
        assert (entry['count'], entry['event'], entry['dataset']) == (count, _EVENT, 'mnist')
        assert entry['time'].endswith('+00:00')
    assert [entry.count for entry in ledger.entries] == [7, 11, 13]
    assert ledger.events == [(_PLAN.event, 31)]


def test_an_entry_is_on_disk_before_reserve_returns(path, ledger, monkeypatch):
    synced = []

    def fsync(descriptor):
        # Everything written so far is in the file by the time it is synced.
        synced.append((os.fstat(descriptor).st_ino, path.read_bytes()))

    monkeypatch.setattr(os, 'fsync', fsync)
    ledger.reserve(5)
    inode, content = synced[-1]
    assert inode == path.stat().st_ino
    assert content == path.read_bytes()
    assert json.loads(content.splitlines()[-1])['count'] == 5


def test_nothing_is_counted_when_the_disk_fails(path, ledger, monkeypatch):
    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='disk full'):
        ledger.reserve(5)
    monkeypatch.undo()
    # The line reached the file, so whoever reads it charges it.
    assert ledger.reserved_steps == 31
    assert Ledger.read(path).reserved_steps == 36
    # Whether it is on disk is not known, so nothing more is written behind it.
    with pytest.raises(LedgerError, match='changed'):
        ledger.reserve(5)


def test_a_full_disk_stops_before_the_step_and_costs_a_torn_line(path, ledger, monkeypatch):
    real = ledger._file

    class FullDisk:
        def __getattr__(self, name):
            return getattr(real, name)

        def write(self, line):
            return real.write(line[:20])

    monkeypatch.setattr(ledger, '_file', FullDisk())
    with pytest.raises(OSError, match='No space left'):
        ledger.reserve(5)
    monkeypatch.undo()
    assert ledger.reserved_steps == 31
    assert _reopen(path, ledger).reserved_steps == 31 + _PLAN.steps_per_entry


@pytest.mark.parametrize('kept', [1, 40, -1])  # bytes of the last line; -1: all but its newline
def test_a_torn_last_line_counts_as_a_full_entry_and_is_repaired(path, ledger, kept):
    before = path.read_bytes()
    position = ledger.position
    ledger.reserve(2)
    line = path.read_bytes()[len(before) :]
    path.write_bytes(before + line[:kept])
    seen = Ledger.read(path)
    assert seen.reserved_steps == 31 + _PLAN.steps_per_entry
    assert [entry.torn for entry in seen.entries] == [False, False, False, True]
    assert path.read_bytes() == before + line[:kept]
    repaired = _reopen(path, ledger)
    assert repaired.reserved_steps == 31 + _PLAN.steps_per_entry
    repaired.check_position(position)
    repaired.reserve(1)
    assert Ledger.read(path).reserved_steps == 31 + _PLAN.steps_per_entry + 1


def test_a_torn_plan_is_refused(path):
    path.write_bytes(b'{"kind": "pl')
    with pytest.raises(LedgerError, match='has no plan'):
        Ledger(path)


def test_a_ledger_appears_with_its_plan_or_not_at_all(path, monkeypatch):
    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='disk full'):
        Ledger(path, _PLAN)
    assert list(path.parent.iterdir()) == []


def test_a_ledger_is_not_overwritten(path, ledger):
    before = path.read_bytes()
    with pytest.raises(LedgerError, match='exists already'):
        Ledger(path, _PLAN)
    assert path.read_bytes() == before


@pytest.mark.parametrize('number', [None, 3, 4, 6])
def test_another_format_is_named(path, number):
    Ledger(path, _PLAN).close()
    first = json.loads(path.read_text()) | {'format': number}
    path.write_text(json.dumps(first) + '\n')
    with pytest.raises(LedgerError, match='another version'):
        Ledger(path)


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
def test_an_altered_ledger_is_refused(path, ledger, edit):
    lines = path.read_bytes().splitlines()
    path.write_bytes(b'\n'.join(edit(lines)) + b'\n')
    ledger.close()
    for look in (Ledger, Ledger.read):
        with pytest.raises(LedgerError, match='altered or out of place'):
            look(path)


def test_a_checkpoint_sees_what_the_chain_cannot(path, ledger):
    before = path.read_bytes()
    position = ledger.position
    ledger.reserve(3)
    ledger.check_position(position)
    ledger.check_position(START_POSITION)
    Ledger.read(path).check_position(position)
    for altered in (
        before[: before.rindex(b'{')],  # the last entry is gone
        before.replace(b'"count": 13', b'"count": 1'),  # the last entry is another
    ):
        path.write_bytes(altered)
        with pytest.raises(LedgerError, match='does not continue'):
            Ledger.read(path).check_position(position)


def test_the_budget_is_never_passed(path, ledger):
    for count in (30, 30):
        ledger.reserve(count)
    with pytest.raises(LedgerError, match='10 more steps.* 91 of 100'):
        ledger.reserve(10)
    assert Ledger.read(path).reserved_steps == 91
    ledger.reserve(9)
    assert ledger.remaining_steps == 0
    with pytest.raises(LedgerError, match='budget'):
        ledger.reserve(1)


@pytest.mark.parametrize('count', [0, -5, 31])
def test_an_entry_has_bounds(path, ledger, count):
    size = path.stat().st_size
    with pytest.raises(LedgerError, match=f'1 to 30 steps. Received: {count}'):
        ledger.reserve(count)
    assert path.stat().st_size == size


def test_a_change_of_the_plan_is_an_entry_and_later_steps_follow_it(path, ledger):
    other = dp_accounting.GaussianDpEvent(0.9)
    changed = dataclasses.replace(
        _PLAN, event=other, mechanism={'noise_multiplier': 0.9}, train_steps=50, steps_per_entry=10
    )
    ledger.change_plan(changed)
    ledger.reserve(10)
    again = _reopen(path, ledger)
    for one in (ledger, again):
        assert (one.plan, one.first_plan, one.changes) == (changed, _PLAN, 1)
        assert one.events == [(_PLAN.event, 31), (other, 10)]
        assert (one.reserved_steps, one.remaining_steps) == (41, 9)
    with pytest.raises(LedgerError, match='1 to 10 steps'):
        again.reserve(11)


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('dataset', 'digits'),
        ('dataset_size', 60_001),
        ('image_shape', (32, 32, 3)),
        ('num_classes', 11),
        ('images_per_person', 2),
        ('persons', 20_000),
        ('private_parameters', 1_233),
        ('target_delta', 1e-4),
        ('warm_start_event', dp_accounting.GaussianDpEvent(5.3)),
        ('warm_start_noise_multiplier', 5.4),
        ('learned_features_share', 0.3),
    ],
)
def test_a_change_is_for_the_same_records_and_the_same_promise(path, ledger, name, value):
    size, other = path.stat().st_size, dataclasses.replace(_PLAN, **{name: value})
    was = re.escape(f'{name} was {getattr(_PLAN, name)}, is {value}')
    with pytest.raises(LedgerError, match=was):
        ledger.change_plan(other)
    assert path.stat().st_size == size


_PERSONS = dataclasses.replace(_PLAN, images_per_person=3, persons=21_000)


@pytest.mark.parametrize(
    ('plan', 'said'),
    [
        (_PLAN, ('one image with its label', 1, 60_000, 'one image', 'images')),
        (
            _PERSONS,
            *[
                (
                    'one person, with up to 3 images and their labels',
                    *(3, 21_000, 'one person', 'persons'),
                )
            ],
        ),
    ],
    ids=['image', 'person'],
)
def test_the_unit_of_privacy_is_in_the_first_line(path, plan, said):
    Ledger(path, plan).close()
    first = json.loads(path.read_text().splitlines()[0])
    assert list(first)[:2] == ['kind', 'unit_of_privacy']
    assert first['unit_of_privacy'] == said[0] and first['format'] == 5
    again = Ledger.read(path).plan
    assert again == plan
    assert said == (
        *(again.unit_of_privacy, again.images_per_unit, again.units),
        *(again.one_unit, again.name_of_units),
    )


def test_an_entry_of_another_event_than_the_plans_is_refused(path, ledger):
    *before, last = path.read_text().splitlines()
    cheaper = {'class_name': 'GaussianDpEvent', 'noise_multiplier': 7.0}
    path.write_text('\n'.join([*before, json.dumps({**json.loads(last), 'event': cheaper})]) + '\n')
    with pytest.raises(LedgerError, match='line 4'):
        Ledger.read(path)


def test_a_missing_ledger_is_refused_and_not_made(path):
    with pytest.raises(LedgerError, match='missing'):
        Ledger(path)
    assert not path.exists()


def test_reading_writes_nothing(path, ledger, monkeypatch):
    del ledger
    real = builtins.open

    def read_only(file, mode='r', *args, **kwargs):
        assert not set(mode) & set('wax+')
        return real(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, 'open', read_only)
    seen = Ledger.read(path)
    assert seen.reserved_steps == 31
    with pytest.raises(LedgerError, match='not open for writing'):
        seen.reserve(1)


def test_a_second_process_is_refused_until_the_first_ends(path):
    hold = (
        'import sys; from tf_efsgd.privacy.ledger import Ledger; ledger = Ledger(sys.argv[1]); '
        'print("open", flush=True); sys.stdin.read()'
    )
    Ledger(path, _PLAN).close()
    with subprocess.Popen(
        [sys.executable, '-c', hold, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=pathlib.Path(tf_efsgd.__file__).parents[1],
    ) as other:
        assert other.stdout.readline() == b'open\n'
        with pytest.raises(LedgerError, match='in use: another process'):
            Ledger(path)
        assert Ledger.read(path).reserved_steps == 0
        other.kill()
        other.wait()
    _reopen(path).close()


def test_a_ledger_that_changes_while_it_is_open_is_refused(path, ledger):
    content = path.read_bytes()
    with open(path, 'ab') as file:
        file.write(b'x')
    with pytest.raises(LedgerError, match='another process'):
        ledger.reserve(2)
    # Neither is another file in its place.
    os.unlink(path)
    path.write_bytes(content)
    with pytest.raises(LedgerError, match='another process'):
        ledger.reserve(2)
    assert Ledger.read(path).reserved_steps == 31


@pytest.mark.parametrize('count', [-9, 0, 31, 1.5, True, None])
def test_a_last_entry_that_reserve_cannot_have_written_is_refused(path, ledger, count):
    *before, last = path.read_text().splitlines()
    edited = json.dumps({**json.loads(last), 'count': count})
    path.write_text('\n'.join([*before, edited]) + '\n')
    with pytest.raises(LedgerError, match='line 4'):
        Ledger.read(path)


def test_a_torn_line_near_the_end_is_charged_what_was_left(path, ledger):
    ledger.reserve(30)
    ledger.reserve(30)  # 91 of 100
    path.write_bytes(path.read_bytes() + b'{"kind": "st')
    again = _reopen(path, ledger)
    assert (again.reserved_steps, again.remaining_steps) == (100, 0)
    assert Ledger.read(path).reserved_steps == 100
    # With nothing left it cannot have been steps; what is written next takes its place.
    again.note_unverified_resume()
    path.write_bytes(path.read_bytes() + b'{"kind": "ch')
    again = _reopen(path, again)
    assert again.reserved_steps == 100
    again.note_unverified_resume()
    assert Ledger.read(path).reserved_steps == 100
    again.change_plan(dataclasses.replace(_PLAN, train_steps=120))
    again.reserve(20)
    assert Ledger.read(path).reserved_steps == 120


_WARM_PLAN = dataclasses.replace(
    _PLAN,
    warm_start_event=dp_accounting.GaussianDpEvent(5.3),
    warm_start_noise_multiplier=5.4,
)


def test_a_planned_warm_start_is_charged_once_and_before_the_first_step(path):
    ledger = Ledger(path, _WARM_PLAN)
    with pytest.raises(LedgerError, match='before the first step'):
        ledger.reserve(5)
    ledger.reserve_warm_start('e3b0', 1)
    with pytest.raises(LedgerError, match='charged already'):
        ledger.reserve_warm_start('e3b0', 1)
    ledger.reserve(5)
    again = _reopen(path, ledger)
    assert again.warm_start_reserved and not again.warm_start_is_due
    assert again.warm_start == {'sha256': 'e3b0', 'version': 1}
    assert (again.reserved_steps, again.position) == (5, ledger.position)
    assert json.loads(path.read_text().splitlines()[1])['event'] == _WARM_EVENT


def test_no_warm_start_is_charged_that_was_not_planned(ledger):
    assert not ledger.warm_start_is_due
    with pytest.raises(LedgerError, match='No warm start is planned'):
        ledger.reserve_warm_start('e3b0', 1)


def test_a_torn_line_before_the_first_step_is_charged_as_the_warm_start(path):
    Ledger(path, _WARM_PLAN).close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "warm_st')
    assert Ledger.read(path).warm_start_reserved
    ledger = Ledger(path)
    assert ledger.warm_start_reserved and ledger.reserved_steps == 0
    ledger.reserve(7)
    ledger = _reopen(path, ledger)
    assert (ledger.warm_start, ledger.reserved_steps) == ({'sha256': None, 'version': None}, 7)
    assert json.loads(path.read_text().splitlines()[1])['torn']


def test_a_torn_line_after_the_warm_start_is_not_a_second_one(path):
    ledger = Ledger(path, dataclasses.replace(_WARM_PLAN, train_steps=0))
    ledger.reserve_warm_start('e3b0', 1)
    ledger.close()
    path.write_bytes(path.read_bytes() + b'{"kind"')
    ledger = Ledger(path)
    ledger.note_unverified_resume()
    assert _reopen(path, ledger).unverified_resumes == 1


_TWO_PLAN = dataclasses.replace(_WARM_PLAN, learned_features_share=0.3)
_LOST = {'sha256': None, 'version': None}


def test_a_second_release_is_noted_once_between_the_charge_and_the_first_step(path):
    ledger = Ledger(path, _TWO_PLAN)
    with pytest.raises(LedgerError, match='not the time for it'):
        ledger.note_learned_features('4c1f', 1)  # Nothing is charged yet.
    ledger.reserve_warm_start('e3b0', 1)
    with pytest.raises(LedgerError, match='before the first step'):
        ledger.reserve(5)
    assert ledger.learned_features_are_due
    ledger.note_learned_features('4c1f', 1)
    with pytest.raises(LedgerError, match='not the time for it'):
        ledger.note_learned_features('4c1f', 1)
    ledger.reserve(5)
    again = _reopen(path, ledger)
    assert again.learned_features == {'sha256': '4c1f', 'version': 1}
    assert not again.learned_features_are_due
    assert (again.reserved_steps, again.position) == (5, ledger.position)
    # The charge is that of both, in the first entry.
    events = [json.loads(line).get('event') for line in path.read_text().splitlines()]
    assert events[1:3] == [_WARM_EVENT, None]


@pytest.mark.parametrize('plan', [_PLAN, _WARM_PLAN])
def test_no_second_release_is_noted_that_was_not_planned(path, plan):
    ledger = Ledger(path, plan)
    if plan is _WARM_PLAN:
        ledger.reserve_warm_start('e3b0', 1)
    assert not ledger.learned_features_are_due
    with pytest.raises(LedgerError, match='No second release is planned'):
        ledger.note_learned_features('4c1f', 1)


@pytest.mark.parametrize('line', [b'{"kind": "lear', b'{"kind": "st', b'\x00'])
def test_a_torn_line_where_a_second_release_is_due_counts_as_it(path, line):
    ledger = Ledger(path, _TWO_PLAN)
    ledger.reserve_warm_start('e3b0', 1)
    ledger.close()
    path.write_bytes(path.read_bytes() + line)
    assert Ledger.read(path).learned_features == _LOST
    ledger = Ledger(path)
    assert not ledger.learned_features_are_due and ledger.reserved_steps == 0
    with pytest.raises(LedgerError, match='not the time for it'):
        ledger.note_learned_features('4c1f', 1)
    ledger.reserve(7)
    ledger = _reopen(path, ledger)
    assert (ledger.learned_features, ledger.reserved_steps) == (_LOST, 7)
    assert json.loads(path.read_text().splitlines()[2])['torn']


def test_a_torn_first_release_leaves_the_second_to_be_given_up(path):
    Ledger(path, _TWO_PLAN).close()
    path.write_bytes(path.read_bytes() + b'{"kind": "warm_st')
    ledger = Ledger(path)
    assert ledger.warm_start_reserved and ledger.learned_features_are_due
    ledger.note_learned_features(None, None)
    ledger.reserve(7)
    ledger = _reopen(path, ledger)
    assert (ledger.warm_start, ledger.learned_features, ledger.reserved_steps) == (_LOST, _LOST, 7)


def test_a_torn_line_after_both_releases_is_charged_as_steps(path):
    ledger = Ledger(path, _TWO_PLAN)
    ledger.reserve_warm_start('e3b0', 1)
    ledger.note_learned_features('4c1f', 1)
    ledger.close()
    path.write_bytes(path.read_bytes() + b'{"kind"')
    assert Ledger(path).reserved_steps == _TWO_PLAN.steps_per_entry


def test_the_share_of_the_second_release_cannot_change(path):
    ledger = Ledger(path, _TWO_PLAN)
    with pytest.raises(LedgerError, match='learned_features_share was 0.3'):
        ledger.change_plan(dataclasses.replace(_TWO_PLAN, learned_features_share=0.5))


@pytest.mark.parametrize('change', ['too early', 'twice', 'after a step', 'left out'])
def test_a_second_release_out_of_place_is_refused(path, change):
    ledger = Ledger(path, _TWO_PLAN)
    ledger.reserve_warm_start('e3b0', 1)
    ledger.note_learned_features('4c1f', 1)
    ledger.reserve(3)
    ledger.close()
    plan, warm, learned, steps = path.read_bytes().splitlines(keepends=True)
    lines = {
        'too early': [plan, learned, warm],
        'twice': [plan, warm, learned, learned],
        'after a step': [plan, warm, steps, learned],
        'left out': [plan, warm, steps],
    }[change]
    _write_with_hashes_that_fit(path, lines)
    with pytest.raises(LedgerError, match='altered or out of place'):
        Ledger.read(path)


def _write_with_hashes_that_fit(path, lines):
    """Only the order of things is wrong then."""
    fixed = hashlib.sha256()
    for number, line in enumerate(lines):
        entry = json.loads(line) | {'sha256_before': fixed.hexdigest()}
        lines[number] = json.dumps(entry).encode() + b'\n'
        fixed.update(lines[number])
    path.write_bytes(b''.join(lines))


@pytest.mark.parametrize('change', ['left out', 'twice', 'another event'])
def test_an_altered_warm_start_is_refused(path, change):
    ledger = Ledger(path, _WARM_PLAN)
    ledger.reserve_warm_start('e3b0', 1)
    ledger.reserve(3)
    ledger.close()
    plan, warm, steps = path.read_bytes().splitlines(keepends=True)
    lines = {
        'left out': [plan, steps],
        'twice': [plan, warm, warm],
        'another event': [plan, warm.replace(b'5.3', b'9.9')],
    }[change]
    _write_with_hashes_that_fit(path, lines)
    with pytest.raises(LedgerError, match='altered or out of place'):
        Ledger.read(path)


def test_the_file_is_what_earlier_versions_wrote_byte_for_byte(path, monkeypatch):
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    def sampled(noise_multiplier):
        return dp_accounting.PoissonSampledDpEvent(
            0.02, dp_accounting.GaussianDpEvent(noise_multiplier)
        )

    monkeypatch.setattr('tf_efsgd.privacy.ledger.datetime.datetime', Clock)
    planned = dataclasses.replace(
        _PLAN,
        event=sampled(0.7),
        unproven_event=sampled(1.4),
        mechanism={'noise_multiplier': 0.7},
        warm_start_event=dp_accounting.GaussianDpEvent(5.3),
        warm_start_noise_multiplier=5.4,
        learned_features_share=0.2,
    )
    ledger = Ledger(path, planned, '00ff')
    ledger.reserve_warm_start('e3b0', 1)
    ledger.note_learned_features('4c1f', 2)
    ledger.reserve(30)
    ledger.change_plan(dataclasses.replace(planned, event=sampled(0.9), unproven_event=None))
    ledger.reserve(7)
    ledger.close()
    with open(path, 'ab') as file:
        file.write(b'{"torn')
    ledger = Ledger(path)
    ledger.note_unverified_resume()  # Writes the torn line down, too.
    ledger.close()
    # Of the file that the version with events as dictionaries wrote.
    written = hashlib.sha256(path.read_bytes()).hexdigest()
    assert written == 'dcf7fbc636ceeef3718d6f5e3d8ce7d98097cd7400f939f1769d7428e6ade304'
    again = Ledger.read(path)
    assert again.first_plan == planned
    assert again.events == [(sampled(0.7), 30), (sampled(0.9), 37)]


def test_an_event_that_is_none_of_a_step_is_refused(path):
    Ledger(path, _PLAN).close()
    plan = json.loads(path.read_text())
    plan['event'] = {'class_name': 'NoOpDpEvent'}
    _write_with_hashes_that_fit(path, [json.dumps(plan).encode() + b'\n'])
    with pytest.raises(LedgerError, match='altered or out of place'):
        Ledger.read(path)
