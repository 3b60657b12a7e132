"""Which runs used the same records of the same persons, also when they start together."""

import dataclasses
import json
import multiprocessing

import numpy as np
import pytest
from helpers.seen import TEN, counts_of, digests_of, persons_of, start_run, start_run_of_persons
from PIL import Image

from tf_efsgd.data import load as loading
from tf_efsgd.privacy import seen_records
from tf_efsgd.privacy.seen_records import IMAGE, PERSON, Promise, memory


def test_a_second_run_on_the_same_records_is_told_of_the_first(folder):
    assert start_run(folder, 'one', digests_of(0, 9000)).lines() == []
    others = start_run(folder, 'two', digests_of(0, 9000), Promise(5.0, 1e-6, IMAGE))
    first, together = others.lines()
    assert first.startswith('9,000 of these records were used by run one (folder:faces, 20')
    assert first.endswith('with ε = 10, δ = 1e-5.')
    assert together == 'Together with this run: ε ≤ 15, δ ≤ 1.1e-5 (sums over all 2 runs).'
    third = start_run(folder, 'three', digests_of(0, 9000))
    assert third.together.epsilon == 25.0 and len(third.uses) == 2


def test_other_records_are_not_taken_for_the_same(folder):
    start_run(folder, 'one', digests_of(0, 3000))
    start_run(folder, 'large', digests_of(3000, 33_000))
    assert start_run(folder, 'two', digests_of(33_000, 93_000)).uses == ()


def test_a_record_that_is_there_twice_is_one_record_of_the_other_run(folder):
    start_run(folder, 'one', digests_of(0, 5))
    twice = np.concatenate([digests_of(3, 6), digests_of(4, 5)])
    assert counts_of(start_run(folder, 'two', twice)) == [('one', 3, True)]


@pytest.fixture
def pictures(tmp_path):
    """Class folders of noise images 20x20, and how to load them at a size."""
    rng = np.random.default_rng(1)
    for i in range(40):
        path = tmp_path / 'faces' / f'class_{i % 2}' / f'{i:02d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20), np.uint8)).save(path)

    def load(image_size):
        dataset = loading.load(f'folder:{tmp_path}/faces', image_size=image_size)
        assert dataset.digests.shape == (len(dataset.train), 2)
        return dataset.digests

    return tmp_path / 'faces', load


def test_images_are_recognised_at_another_size_one_less_one_more_renamed_relabelled(
    folder, pictures
):
    root, load = pictures
    before = load(16)
    start_run(folder, 'one', before)
    assert counts_of(start_run(folder, 'two', load(8))) == [('one', len(before), True)]
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
    uses = start_run(folder, 'three', after).uses
    assert [use.count for use in uses] == [common, common]


@pytest.mark.parametrize('count', [30, 20_000])
def test_of_the_same_persons_the_sums_hold(folder, count):
    start_run_of_persons(folder, 'one', persons_of(count))
    others = start_run_of_persons(folder, 'two', persons_of(count), budget=4.0)
    assert others.together == Promise(4.0, 2e-6, PERSON)
    assert others.to_statement()['together']['epsilon'] == 4.0
    # Records that came with other persons change nothing.
    more = persons_of(count + 30)
    assert start_run_of_persons(folder, 'three', more).together.epsilon == 6.0


_OTHER_PERSONS = {
    'rule': persons_of(30, b'name:^(.)', 'name:^(.)'),
    'table': persons_of(30, b'csv:[1]', None),
    'names': persons_of(30, shift=1),
    'one record': None,
    'not known': None,
}


@pytest.mark.parametrize('how', _OTHER_PERSONS)
def test_of_other_persons_nothing_is_claimed_together(folder, how):
    first, second = persons_of(30), _OTHER_PERSONS[how] or persons_of(30)
    if how == 'table':
        first = persons_of(30, b'csv:[0]', None)
    elif how == 'one record':
        second.names[17] = second.names[0]
    start_run_of_persons(folder, 'one', first)
    if how == 'not known':
        _write_format_1(folder / 'one.seen.json')
    before = (folder / 'one.seen.json').read_bytes()
    with pytest.raises(
        seen_records.SeenRecordsError, match=r'another rule or table.*\(one\)'
    ) as at:
        start_run_of_persons(folder, 'two', second, budget=1000.0)
    assert '\n' not in str(at.value) and '(one)' in str(at.value)
    assert str(at.value).endswith('Received: --dataset_budget=1000.0.')
    assert not (folder / 'two.seen.json').exists()
    others = start_run_of_persons(folder, 'two', second)
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
    images = start_run(folder, 'three', digests_of(0, 30), Promise(1.0, 1e-6, IMAGE))
    assert images.together.epsilon == 9.0


def _write_format_1(path):
    """As the version before this one wrote it."""
    values = json.loads(path.read_text())
    values = {k: v for k, v in values.items() if k not in ('tag', 'rule', 'public_rule', 'persons')}
    values['format'] = 1
    values['tag'] = memory._tag(path.with_name('seen.key').read_bytes(), values)
    path.write_text(json.dumps(values))


def test_a_run_is_not_resumed_with_other_persons(folder):
    start_run_of_persons(folder, 'one', persons_of(30))
    before = (folder / 'one.seen.json').read_bytes()
    for persons in (persons_of(30, shift=1), persons_of(30, b'csv:[0]', None)):
        with pytest.raises(seen_records.SeenRecordsError, match='persons of this run are not'):
            start_run_of_persons(folder, 'one', persons)
    assert (folder / 'one.seen.json').read_bytes() == before
    # What an earlier version wrote says nothing of them, and does from now on.
    _write_format_1(folder / 'one.seen.json')
    assert start_run_of_persons(folder, 'one', persons_of(30)).lines() == []
    assert (folder / 'one.seen.json').read_bytes() == before


def test_a_resumed_run_counts_once_and_may_be_raised(folder):
    digests = digests_of(0, 100)
    start_run(folder, 'one', digests, budget=10.0)
    before = (folder / 'one.seen.json').read_bytes()
    assert start_run(folder, 'one', digests, budget=10.0).uses == ()
    assert (folder / 'one.seen.json').read_bytes() == before
    raised = dataclasses.replace(TEN, epsilon=12.0)
    with pytest.raises(seen_records.SeenRecordsError):
        start_run(folder, 'one', digests, raised, budget=11.0)
    assert (folder / 'one.seen.json').read_bytes() == before
    start_run(folder, 'one', digests, raised)
    start_run(folder, 'one', digests, TEN)  # Never lowered.
    (use,) = start_run(folder, 'two', digests).uses
    assert use.promise == raised and use.date == json.loads(before)['date']


def test_a_run_that_was_resumed_with_other_records_used_both(folder):
    start_run(folder, 'one', digests_of(0, 20_000))
    start_run(folder, 'one', digests_of(20_000, 40_000))
    for first in (0, 20_000):
        (use,) = start_run(folder, f'two-{first}', digests_of(first, first + 20_000)).uses[:1]
        assert use.run_id == 'one' and 18_000 <= use.count <= 20_000


def _start_together(folder, run_id, budget, barrier, results):
    barrier.wait()
    try:
        start_run(folder, run_id, digests_of(0, 500), budget=budget)
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
    found = dict(results.get(timeout=300) for _ in workers)
    for worker in workers:
        worker.join()
    assert sorted(found.values()) == [False, False, False, True]
    (path,) = folder.glob('*.seen.json')
    assert found[path.name.split('.')[0]]
    assert sorted(p.name for p in folder.iterdir()) == sorted(['seen.key', 'seen.lock', path.name])
