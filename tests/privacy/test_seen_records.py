"""Which runs used the same records, and what they may spend together."""

import contextlib
import dataclasses
import fcntl
import fractions
import hashlib
import json
import math
import multiprocessing
import os
import stat
import time

import numpy as np
import pytest
from PIL import Image

from tf_efsgd.privacy import run_state, seen_records
from tf_efsgd.privacy.seen_records import IMAGE, PERSON, Promise

_TEN = Promise(10.0, 1e-5, IMAGE)
_NONE = Promise(math.inf, 0.0, IMAGE)


@pytest.fixture
def folder(tmp_path):
    run_state.prepare_folder(tmp_path / 'state')
    return tmp_path / 'state'


def _digests(first, last):
    """Digests of the records with these numbers."""
    hashes = b''.join(hashlib.sha256(b'%d' % i).digest()[:16] for i in range(first, last))
    return np.frombuffer(hashes, '>u8').astype(np.uint64).reshape(-1, 2)


def _count(folder, run_id, digests, promise=_TEN, budget=None):
    return seen_records.count_run(folder, run_id, 'folder:faces', digests, promise, budget)


def _counts(others):
    return [(use.run_id, use.count, use.is_exact) for use in others.uses]


# What is recognised.


def test_a_second_run_on_the_same_records_is_told_of_the_first(folder):
    assert _count(folder, 'one', _digests(0, 9000)).lines() == []
    others = _count(folder, 'two', _digests(0, 9000), Promise(5.0, 1e-6, IMAGE))
    first, together = others.lines()
    assert first.startswith('9,000 of these records were used by run one (folder:faces, 20')
    assert first.endswith('with ε = 10, δ = 1e-5.')
    assert together == 'Together with this run: ε ≤ 15, δ ≤ 1.1e-5 (sums over all 2 runs).'
    third = _count(folder, 'three', _digests(0, 9000))
    assert third.together.epsilon == 25.0 and len(third.uses) == 2


def test_of_many_runs_the_newest_are_named_and_all_are_in_the_sums(folder):
    for i in range(8):
        others = _count(folder, f'run{i}', _digests(0, 20), budget=80.0)
    first, *named, together = others.lines()
    assert first == '2 earlier runs used these records, and:' and len(named) == 5
    assert 'ε ≤ 80, δ ≤ 8e-5 (sums over all 8 runs)' in together
    assert len(others.to_statement()['other_runs']) == 7


def test_other_records_are_not_taken_for_the_same(folder):
    _count(folder, 'one', _digests(0, 3000))
    _count(folder, 'large', _digests(3000, 33_000))
    assert _count(folder, 'two', _digests(33_000, 93_000)).uses == ()


def test_up_to_ten_thousand_records_a_single_common_one_is_found(folder):
    _count(folder, 'one', _digests(0, 10_000))
    others = _count(folder, 'two', _digests(9999, 70_000))
    assert _counts(others) == [('one', 1, True)]
    assert others.lines()[0].startswith('1 of these records was used by run one')


def test_one_record_above_is_no_longer_exact(folder):
    _count(folder, 'one', _digests(0, 10_001))
    others = _count(folder, 'two', _digests(0, 10_001))
    assert _counts(others) == [('one', 10_000, False)]
    assert others.lines()[0].startswith('about 10,000 of these records were used')


@pytest.mark.parametrize(
    ('common', 'size'), [(600, 60_000), (600, 700), (54_321, 60_000), (60_000, 60_000)]
)
def test_the_number_of_common_records_of_large_sets_is_estimated(folder, common, size):
    """Also when one set is much smaller than the other; to five standard deviations."""
    _count(folder, 'one', _digests(0, 60_000))
    others = _count(folder, 'two', _digests(60_000 - common, 60_000 - common + size))
    ((_, count, is_exact),) = _counts(others)
    rate = 10_000 / 60_000
    # And half of the second digit.
    margin = 5 * math.sqrt(common * (1 - rate) / rate) + 0.05 * common
    assert not is_exact and abs(count - common) < margin
    assert margin < common, 'the test must be able to fail'


def test_the_estimate_is_not_biased_and_misses_as_often_as_documented():
    """600 of 60,000 have a mean of 600 and a deviation of 55; 10 of them are missed 1 time in 6."""
    rng, means, missed = np.random.default_rng(3), [], 0
    for _ in range(60):
        hashes = rng.integers(0, 2**56, 60_000).astype(np.uint64)
        sketch = seen_records.Sketch.of(hashes)
        others = rng.integers(0, 2**56, 5000).astype(np.uint64)
        means.append(sketch.count(np.concatenate([hashes[:600], others])))
        missed += sum(not sketch.count(hashes[i : i + 10]) for i in range(600, 1600, 10))
    assert abs(np.mean(means) - 600) < 5 * 55 / math.sqrt(60)
    assert 40 < np.std(means) < 75
    assert 0.13 < missed / 6000 < 0.19


def test_a_record_that_is_there_twice_is_one_record_of_the_other_run(folder):
    _count(folder, 'one', _digests(0, 5))
    twice = np.concatenate([_digests(3, 6), _digests(4, 5)])
    assert _counts(_count(folder, 'two', twice)) == [('one', 3, True)]


@pytest.fixture
def pictures(tmp_path):
    """Class folders of noise images 20x20, and how to load them at a size."""
    rng = np.random.default_rng(1)
    for i in range(40):
        path = tmp_path / 'faces' / f'class_{i % 2}' / f'{i:02d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20), np.uint8)).save(path)

    def load(image_size):
        dataset = load.load(f'folder:{tmp_path}/faces', image_size=image_size)
        assert dataset.digests.shape == (len(dataset.train), 2)
        return dataset.digests

    return tmp_path / 'faces', load


def test_images_are_recognised_at_another_size_one_less_one_more_renamed_relabelled(
    folder, pictures
):
    root, load = pictures
    before = load(16)
    _count(folder, 'one', before)
    assert _counts(_count(folder, 'two', load(8))) == [('one', len(before), True)]
    paths = sorted(root.rglob('*.png'))
    for path in paths[:3]:
        path.unlink()
    for path in paths[5:30]:  # To the other class, and to another place in the order.
        path.rename(root / f'class_{1 - int(path.parent.name[-1])}' / f'a{path.name}')
    noise = np.random.default_rng(2).integers(0, 256, (20, 20), np.uint8)
    Image.fromarray(noise).save(root / 'class_0' / 'new.png')
    after = load(8)
    common = len({tuple(d) for d in before} & {tuple(d) for d in after})
    # A record that moved to the other class may have moved between train and test.
    assert len(before) - 3 - common < 15 and common > 15
    uses = _count(folder, 'three', after).uses
    assert [use.count for use in uses] == [common, common]


# Sums.


def test_sums_are_never_below_the_exact_ones():
    rng = np.random.default_rng(7)
    for values in rng.random((200, 5)) * 10.0 ** rng.integers(-9, 3, (200, 5)):
        total = seen_records._sum_up(values)
        exact = sum(map(fractions.Fraction, values))
        assert fractions.Fraction(total) >= exact
        assert fractions.Fraction(math.nextafter(total, 0)) < exact


@pytest.mark.parametrize(
    ('value', 'shown'),
    [(9.99983, '10'), (20.0, '20'), (1.10004, '1.101'), (3e-5, '3e-5'), (12345.1, '12,350')],
)
def test_a_bound_is_shown_rounded_up(value, shown):
    assert seen_records._rounded_up(value) == shown


def test_a_run_without_a_proven_epsilon_leaves_none_together(folder):
    _count(folder, 'one', _digests(0, 50), _NONE)
    others = _count(folder, 'two', _digests(0, 50))
    first, together = others.lines()
    assert 'with no proven ε. If nothing of that run' in first and '--remove=one' in first
    assert together == 'Together with this run: no ε holds.'
    assert others.to_statement()['together']['epsilon'] is None
    with pytest.raises(seen_records.SeenRecordsError, match='no ε holds. Nothing is left'):
        _count(folder, 'three', _digests(0, 50), budget=1e9)
    with pytest.raises(seen_records.SeenRecordsError, match='this run alone may spend no proven ε'):
        _count(folder, 'four', _digests(50, 60), _NONE, budget=1e9)


def test_deltas_that_add_up_to_one_leave_nothing():
    use = seen_records.Use('one', 'x', '', Promise(1.0, 0.6, IMAGE), 1, True)
    others = seen_records.OtherRuns(Promise(1.0, 0.5, IMAGE), (use,))
    assert not others.together.is_proven
    with pytest.raises(seen_records.SeenRecordsError):
        others.check_budget(100.0)


def test_units_of_privacy_are_not_mixed_up(folder):
    """A person's ε says something of one image, by two steps; an image's nothing of a person."""
    digests = _digests(0, 30)
    _count(folder, 'people', digests, Promise(2.0, 1e-6, PERSON))
    image = _count(folder, 'images', digests, Promise(1.0, 1e-5, IMAGE))
    assert image.together.epsilon == 5.0 and image.together.unit == IMAGE
    delta = 1e-5 + (1 + math.exp(2.0)) * 1e-6
    assert delta <= image.together.delta < delta * (1 + 1e-9)
    assert 'for one person; for one image, as in this run: ε = 4, δ = 8.39e-6' in image.lines()[0]
    person = _count(folder, 'more people', digests, Promise(1.0, 1e-6, PERSON))
    assert not person.together.is_proven
    assert 'for one image; for one person, as in this run: no proven ε' in '\n'.join(person.lines())
    with pytest.raises(seen_records.SeenRecordsError):
        _count(folder, 'last', digests, Promise(1.0, 1e-6, PERSON), budget=1000.0)
    assert Promise(900.0, 1e-5, PERSON).in_unit(IMAGE).is_proven is False


def test_the_statement_says_the_sums_and_no_number_of_records(folder):
    _count(folder, 'one', _digests(0, 7321))
    others = _count(folder, 'two', _digests(0, 7321))
    statement = others.to_statement()
    assert statement['other_runs'] == [
        {'run': 'one', 'epsilon': 10.0, 'delta': 1e-5, 'record': 'image'}
    ]
    together = statement['together']
    assert (together['epsilon'], together['delta'], together['record']) == (20.0, 2e-5, 'image')
    assert together['runs'] == 2
    assert 'not by comparing records' in together['found_by']
    assert 'sums of ε and δ' in together['rule']
    assert '7321' not in json.dumps(statement) and '7,321' not in json.dumps(statement)
    (found,) = others.to_nonprivate()['other_runs']
    assert (found['run'], found['shared_records'], found['is_exact']) == ('one', 7321, True)


@pytest.mark.parametrize('dataset', ['folder:faces', 'folder:guesses'])
@pytest.mark.parametrize('secret', [_digests(0, 9000), _digests(0, 1)], ids=['9000', '1'])
def test_the_statement_is_the_same_whichever_records_are_shared(folder, dataset, secret):
    """Otherwise a run on guessed records is a test of membership in another run."""
    _count(folder, 'one', secret)
    found = {}
    for name, guess in (('all', secret), ('one', secret[:1]), ('none', _digests(9000, 9001))):
        others = seen_records.count_run(folder, 'guess', dataset, guess, _TEN)
        found[name] = others.to_statement(), others.not_covered
        # The terminal and nonprivate/ say it.
        assert bool(others.uses) == (name != 'none') == bool(others.to_nonprivate()['other_runs'])
        (folder / 'guess.seen.json').unlink()
    assert found['all'] == found['one'] == found['none']
    statement, line = found['all']
    assert len(statement['other_runs']) == (dataset == 'folder:faces')
    assert statement['together']['epsilon'] == (20.0 if dataset == 'folder:faces' else 10.0)
    # The sum that holds whatever the records.
    assert statement['together_with_all']['epsilon'] == 20.0
    assert statement['together_with_all']['runs'] == 2
    assert line == seen_records.NOT_COVERED_COMPARED


def test_where_nothing_could_be_compared_the_statement_says_that(folder):
    (folder / 'seen.key').mkdir()
    others = _count(folder, 'one', _digests(0, 9))
    assert others.not_covered == seen_records.NOT_COVERED_NOT_COMPARED
    statement = others.to_statement()
    assert statement['together']['epsilon'] is statement['together_with_all']['epsilon'] is None
    assert statement['other_runs_not_known'] == 1


# Persons.


_PERSON = Promise(2.0, 1e-6, PERSON)


def _persons(count, rule=b'folder', public_rule='folder', shift=0, images=3):
    """Every three records are of one person."""
    codes = [(i + shift) // images for i in range(count)]
    names = np.array([[code, code + 7] for code in codes], np.uint64)
    return seen_records.Persons(rule, names, public_rule)


def _count_persons(folder, run_id, persons, budget=None):
    digests = _digests(0, len(persons.names))
    return seen_records.count_run(folder, run_id, 'folder:faces', digests, _PERSON, budget, persons)


@pytest.mark.parametrize('count', [30, 20_000])
def test_of_the_same_persons_the_sums_hold(folder, count):
    _count_persons(folder, 'one', _persons(count))
    others = _count_persons(folder, 'two', _persons(count), budget=4.0)
    assert others.together == Promise(4.0, 2e-6, PERSON)
    assert others.to_statement()['together']['epsilon'] == 4.0
    # Records that came with other persons change nothing.
    more = _persons(count + 30)
    assert _count_persons(folder, 'three', more).together.epsilon == 6.0


_OTHER_PERSONS = {
    'rule': _persons(30, b'name:^(.)', 'name:^(.)'),
    'table': _persons(30, b'csv:[1]', None),
    'names': _persons(30, shift=1),
    'one record': None,
    'not known': None,
}


@pytest.mark.parametrize('how', _OTHER_PERSONS)
def test_of_other_persons_nothing_is_claimed_together(folder, how):
    first, second = _persons(30), _OTHER_PERSONS[how] or _persons(30)
    if how == 'table':
        first = _persons(30, b'csv:[0]', None)
    elif how == 'one record':
        second.names[17] = second.names[0]
    _count_persons(folder, 'one', first)
    if how == 'not known':
        _write_format_1(folder / 'one.seen.json')
    before = (folder / 'one.seen.json').read_bytes()
    with pytest.raises(
        seen_records.SeenRecordsError, match=r'another rule or table.*\(one\)'
    ) as at:
        _count_persons(folder, 'two', second, budget=1000.0)
    assert '\n' not in str(at.value) and '(one)' in str(at.value)
    assert str(at.value).endswith('Received: --dataset_budget=1000.0.')
    assert not (folder / 'two.seen.json').exists()
    others = _count_persons(folder, 'two', second)
    assert not others.together.is_proven and others.to_nonprivate()['together']['epsilon'] is None
    line, together = others.lines()
    assert 'by another rule or table of persons' in line and 'ε is proven for both' in line
    assert together == 'Together with this run: no ε holds.'
    assert others.to_nonprivate()['other_runs'][0]['same_persons'] is False
    # The statement goes by public facts: the text of the rule, and nothing of a table.
    public = others.to_statement()['together']['epsilon']
    assert public == (4.0 if how in ('names', 'one record') else None)
    assert before == (folder / 'one.seen.json').read_bytes()
    # For one image both hold, whoever is a person.
    images = _count(folder, 'three', _digests(0, 30), Promise(1.0, 1e-6, IMAGE))
    assert images.together.epsilon == 9.0


def _write_format_1(path):
    """As the version before this one wrote it."""
    values = json.loads(path.read_text())
    values = {k: v for k, v in values.items() if k not in ('tag', 'rule', 'public_rule', 'persons')}
    values['format'] = 1
    values['tag'] = seen_records._tag(path.with_name('seen.key').read_bytes(), values)
    path.write_text(json.dumps(values))


def test_whether_two_tables_are_equal_is_not_in_the_statement(folder):
    table = _persons(30, b'csv:[0]', None)
    _count_persons(folder, 'one', table)
    others = _count_persons(folder, 'two', table)
    assert others.together.epsilon == 4.0
    other_table = _count_persons(folder, 'two, instead', _persons(30, b'csv:[1]', None))
    for found in (others, other_table):
        assert found.to_statement()['together']['epsilon'] is None


def test_a_run_is_not_resumed_with_other_persons(folder):
    _count_persons(folder, 'one', _persons(30))
    before = (folder / 'one.seen.json').read_bytes()
    for persons in (_persons(30, shift=1), _persons(30, b'csv:[0]', None)):
        with pytest.raises(seen_records.SeenRecordsError, match='persons of this run are not'):
            _count_persons(folder, 'one', persons)
    assert (folder / 'one.seen.json').read_bytes() == before
    # What an earlier version wrote says nothing of them, and does from now on.
    _write_format_1(folder / 'one.seen.json')
    assert _count_persons(folder, 'one', _persons(30)).lines() == []
    assert (folder / 'one.seen.json').read_bytes() == before


def test_neither_a_rule_nor_a_person_is_in_a_sketch(folder):
    _count_persons(folder, 'one', _persons(30, b'csv:secret', None))
    content = (folder / 'one.seen.json').read_bytes()
    assert b'secret' not in content
    plain = hashlib.sha256(b'csv:secret').hexdigest().encode()
    assert plain not in content and json.loads(content)['rule'] not in (None, plain.decode())


# The budget.


def test_a_budget_holds_to_the_last_bit(folder):
    digests = _digests(0, 100)
    _count(folder, 'one', digests, Promise(0.1, 1e-5, IMAGE))
    # In floats 0.1 + 0.2 is above the exact sum, which is above 0.3.
    promise, total = Promise(0.2, 1e-5, IMAGE), 0.1 + 0.2
    with pytest.raises(seen_records.SeenRecordsError, match='would be passed.*one.*ε ≤ 0.3') as at:
        _count(folder, 'two', digests, promise, budget=math.nextafter(total, 0))
    assert '\n' not in str(at.value) and 'Left is ε = 0.' in str(at.value)
    assert not (folder / 'two.seen.json').exists()
    _count(folder, 'two', digests, promise, budget=total)
    assert (folder / 'two.seen.json').exists()
    with pytest.raises(seen_records.SeenRecordsError, match='Nothing is left'):
        _count(folder, 'three', digests, promise, budget=total)


def test_a_budget_holds_for_a_single_run_and_not_for_other_records(folder):
    _count(folder, 'one', _digests(0, 100))
    _count(folder, 'two', _digests(100, 200), budget=10.0)
    with pytest.raises(seen_records.SeenRecordsError, match='this run alone may spend ε = 10,'):
        _count(folder, 'three', _digests(200, 300), budget=9.99)


def test_a_resumed_run_counts_once_and_may_be_raised(folder):
    digests = _digests(0, 100)
    _count(folder, 'one', digests, budget=10.0)
    before = (folder / 'one.seen.json').read_bytes()
    assert _count(folder, 'one', digests, budget=10.0).uses == ()
    assert (folder / 'one.seen.json').read_bytes() == before
    raised = dataclasses.replace(_TEN, epsilon=12.0)
    with pytest.raises(seen_records.SeenRecordsError):
        _count(folder, 'one', digests, raised, budget=11.0)
    assert (folder / 'one.seen.json').read_bytes() == before
    _count(folder, 'one', digests, raised)
    _count(folder, 'one', digests, _TEN)  # Never lowered.
    (use,) = _count(folder, 'two', digests).uses
    assert use.promise == raised and use.date == json.loads(before)['date']


def test_a_run_that_was_resumed_with_other_records_used_both(folder):
    _count(folder, 'one', _digests(0, 20_000))
    _count(folder, 'one', _digests(20_000, 40_000))
    for first in (0, 20_000):
        (use,) = _count(folder, f'two-{first}', _digests(first, first + 20_000)).uses[:1]
        assert use.run_id == 'one' and 18_000 <= use.count <= 20_000


def test_a_whole_sketch_within_another_makes_that_no_whole_one():
    hashes = np.random.default_rng(1).integers(0, 2**56, 60_000).astype(np.uint64)
    large = seen_records.Sketch.of(hashes)
    small = seen_records.Sketch.of(large.kept[:100])
    assert small.is_whole
    for union in (large.union(small), small.union(large)):
        assert union.below == large.below and union.count(hashes) == 60_000


def _start_together(folder, run_id, budget, barrier, results):
    barrier.wait()
    try:
        _count(folder, run_id, _digests(0, 500), budget=budget)
        results.put((run_id, True))
    except seen_records.SeenRecordsError:
        results.put((run_id, False))


@pytest.mark.parametrize('turn', range(3))
def test_of_runs_that_start_together_only_one_gets_what_is_left(folder, turn):
    """Also the key is made once: with two keys they would not see each other."""
    context = multiprocessing.get_context('fork')
    barrier, results = context.Barrier(4), context.Queue()
    workers = [
        context.Process(target=_start_together, args=(folder, f'run{i}', 15.0, barrier, results))
        for i in range(4)
    ]
    for worker in workers:
        worker.start()
    found = dict(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert sorted(found.values()) == [False, False, False, True]
    (path,) = folder.glob('*.seen.json')
    assert found[path.name.split('.')[0]]
    assert sorted(p.name for p in folder.iterdir()) == sorted(['seen.key', 'seen.lock', path.name])


def _make_key(folder, barrier, results):
    barrier.wait()
    seen_records._make_key(folder / 'seen.key')
    results.put(seen_records._key(folder))


def test_a_key_is_made_once_even_without_the_lock(folder):
    context = multiprocessing.get_context('fork')
    barrier, results = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_make_key, args=(folder, barrier, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    keys = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(keys) == 1 and len(*keys) == 32
    assert [path.name for path in folder.iterdir()] == ['seen.key']
    seen_records._make_key(folder / 'seen.key')  # By a process that saw none.
    assert keys == {seen_records._key(folder)}


# What is written.


def test_files_are_for_the_user_alone_and_small(folder):
    started = time.perf_counter()
    _count(folder, 'one', _digests(0, 1))
    digests = _digests(0, 60_000)
    started = time.perf_counter()
    _count(folder, 'two', digests)
    assert time.perf_counter() - started < 3, 'about 0.2 s on a machine that does nothing else'
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
        _count(place, 'one', _digests(0, 10))
        kept.append(json.loads((place / 'one.seen.json').read_text())['kept'])
    assert kept[0] != kept[1]


def test_a_sketch_is_read_as_it_was_written():
    hashes = np.unique(np.random.default_rng(1).integers(0, 2**56, 12_000).astype(np.uint64))
    hashes[0], hashes[-1] = 0, 2**56 - 1
    for part in (hashes, hashes[:1], hashes[[0, -1]]):
        sketch = seen_records.Sketch.of(part)
        again = seen_records.Sketch.from_json(json.loads(json.dumps(sketch.to_json())))
        np.testing.assert_array_equal(again.kept, part[:10_000])
        assert again.kept.dtype == np.uint64 and again.below == sketch.below
    assert not seen_records.Sketch.of(hashes).is_whole


# What cannot be read.


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
    _count(folder, 'one', _digests(0, 100))
    _count(folder, 'fine', _digests(0, 100))
    damage(folder / 'one.seen.json')
    with pytest.raises(seen_records.SeenRecordsError, match='cannot be kept: .*/(one|another).*'):
        _count(folder, 'two', _digests(0, 100), budget=1000.0)
    assert not (folder / 'two.seen.json').exists()
    others = _count(folder, 'two', _digests(0, 100))
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
    others = _count(folder, 'one', _digests(0, 100))
    (line,) = others.lines()
    assert line.startswith(f'WARNING: {path}: ') and '--state_dir' in line
    with pytest.raises(seen_records.SeenRecordsError, match='cannot be kept: .*seen.key'):
        _count(folder, 'one', _digests(0, 100), budget=1000.0)
    assert not list(folder.glob('*.seen.json'))


def test_a_full_disk_leaves_what_was_found(folder, monkeypatch):
    _count(folder, 'one', _digests(0, 100))

    def full(*_, **__):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(seen_records.files, 'write_atomically', full)
    others = _count(folder, 'two', _digests(0, 100))
    assert _counts(others) == [('one', 100, True)]
    assert 'No space left on device' in others.lines()[0]
    with pytest.raises(seen_records.SeenRecordsError, match='cannot be kept: .*No space left'):
        _count(folder, 'two', _digests(0, 100), budget=1000.0)


def test_a_run_of_which_only_the_fingerprint_is_there_is_not_known(folder):
    images, labels = np.zeros((3, 4, 4, 1), np.uint8), np.zeros(3, np.int32)
    state = run_state.RunState(folder, 'old')
    state.remember_records(images, labels, {'bytes': 7, 'sha256': 'abc'})
    state.close()
    (line,) = _count(folder, 'two', _digests(0, 100)).lines()
    assert line.startswith(f'WARNING: {folder} remembers 1 run without a sketch')
    with pytest.raises(seen_records.SeenRecordsError, match='1 run without a sketch'):
        _count(folder, 'three', _digests(0, 100), budget=1000.0)
    # When it is resumed it is counted.
    _count(folder, 'old', _digests(0, 3), budget=1000.0)
    assert _count(folder, 'three', _digests(100, 200), budget=1000.0).lines() == []


def test_a_forgotten_run_counts_no_more(folder):
    _count(folder, 'one', _digests(0, 100))
    seen_records.forget(folder, 'one')
    seen_records.forget(folder, 'one')
    assert _count(folder, 'two', _digests(0, 100), budget=10.0).uses == ()


@pytest.mark.parametrize('damage', [_cut, _lower_epsilon, _fewer_records, _list])
def test_a_damaged_sketch_of_the_run_itself_is_not_known_and_kept(folder, damage):
    digests = _digests(0, 100)
    _count(folder, 'one', digests)
    path, aside = folder / 'one.seen.json', folder / 'one.seen.json.1.damaged'
    damage(path)
    damaged = path.read_bytes()
    with pytest.raises(seen_records.SeenRecordsError, match='cannot be kept: .*one.seen.json, of'):
        _count(folder, 'one', digests, budget=1000.0)
    assert path.read_bytes() == damaged and not aside.exists()
    others = _count(folder, 'one', digests)
    assert others.lines()[0].startswith(f'WARNING: {path}, of this run itself, cannot be used')
    assert aside.read_bytes() == damaged and stat.S_IMODE(aside.stat().st_mode) == 0o600
    # From then on every start says so, until it is removed.
    for run_id in ('one', 'two'):
        with pytest.raises(seen_records.SeenRecordsError, match=f'{aside} was damaged'):
            _count(folder, run_id, digests, budget=1000.0)
        others = _count(folder, run_id, digests)
        assert f'--remove={aside.name}' in others.lines()[0]
        assert others.to_statement()['other_runs_not_known'] == 1
        assert others.to_statement()['together_with_all']['epsilon'] is None
    damage(path)
    _count(folder, 'one', digests)
    assert (folder / 'one.seen.json.2.damaged').exists() and aside.read_bytes() == damaged
    for kept in folder.glob('*.damaged'):
        kept.unlink()
    assert _count(folder, 'two', digests, budget=20.0).not_known == ()


def test_a_sketch_of_the_run_itself_that_cannot_be_read_is_not_known(folder):
    _count(folder, 'one', _digests(0, 100))
    _folder_in_its_place(folder / 'one.seen.json')
    with pytest.raises(seen_records.SeenRecordsError, match='cannot be kept: .*one.seen.json'):
        _count(folder, 'one', _digests(0, 100), budget=1000.0)
    assert _count(folder, 'one', _digests(0, 100)).lines()[0].startswith('WARNING: ')


def test_a_folder_that_cannot_be_listed_is_not_known(folder, monkeypatch):
    """Its mode may be 0300; glob finds nothing there and says nothing."""
    _count(folder, 'one', _digests(0, 100))

    def refuse(path='.'):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(os, 'listdir', refuse)
    monkeypatch.setattr(os, 'scandir', refuse)
    others = _count(folder, 'two', _digests(0, 100))
    assert f'{folder}: Permission denied' in others.lines()[0] and not others.is_compared
    with pytest.raises(seen_records.SeenRecordsError, match='cannot be kept: .*Permission denied'):
        _count(folder, 'two', _digests(0, 100), budget=1000.0)


def test_rights_of_others_are_taken_away_and_said(folder):
    _count(folder, 'one', _digests(0, 100))
    for name, mode in (('seen.key', 0o640), ('one.seen.json', 0o602)):
        (folder / name).chmod(mode)
    folder.chmod(0o770)
    first, second, third = _count(folder, 'two', _digests(100, 200), budget=10.0).lines()
    assert 'seen.key could be used by other users' in first and 'one.seen.json could' in second
    assert f'chmod 700 {folder}' in third
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    folder.chmod(0o700)
    assert _count(folder, 'three', _digests(200, 300)).lines() == []


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
