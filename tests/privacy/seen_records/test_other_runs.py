"""What is said of other runs: the statement, and the budget of all."""

import json
import math

import pytest
from helpers.seen import TEN, digests_of, persons_of, start_run, start_run_of_persons

from tf_efsgd.privacy import seen_records
from tf_efsgd.privacy.seen_records import IMAGE, Promise


def test_of_many_runs_the_newest_are_named_and_all_are_in_the_sums(folder):
    for i in range(8):
        others = start_run(folder, f'run{i}', digests_of(0, 20), budget=80.0)
    first, *named, together = others.lines()
    assert first == '2 earlier runs used these records, and:' and len(named) == 5
    assert 'ε ≤ 80, δ ≤ 8e-5 (sums over all 8 runs)' in together
    assert len(others.to_statement()['other_runs']) == 7


def test_the_statement_says_the_sums_and_no_number_of_records(folder):
    start_run(folder, 'one', digests_of(0, 7321))
    others = start_run(folder, 'two', digests_of(0, 7321))
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
@pytest.mark.parametrize('secret', [digests_of(0, 9000), digests_of(0, 1)], ids=['9000', '1'])
def test_the_statement_is_the_same_whichever_records_are_shared(folder, dataset, secret):
    """Otherwise a run on guessed records is a test of membership in another run."""
    start_run(folder, 'one', secret)
    found = {}
    for name, guess in (('all', secret), ('one', secret[:1]), ('none', digests_of(9000, 9001))):
        others = seen_records.count_run(folder, 'guess', dataset, guess, TEN)
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
    others = start_run(folder, 'one', digests_of(0, 9))
    assert others.not_covered == seen_records.NOT_COVERED_NOT_COMPARED
    statement = others.to_statement()
    assert statement['together']['epsilon'] is statement['together_with_all']['epsilon'] is None
    assert statement['other_runs_not_known'] == 1


def test_whether_two_tables_are_equal_is_not_in_the_statement(folder):
    table = persons_of(30, b'csv:[0]', None)
    start_run_of_persons(folder, 'one', table)
    others = start_run_of_persons(folder, 'two', table)
    assert others.together.epsilon == 4.0
    other_table = start_run_of_persons(folder, 'two, instead', persons_of(30, b'csv:[1]', None))
    for found in (others, other_table):
        assert found.to_statement()['together']['epsilon'] is None


def test_a_budget_holds_to_the_last_bit(folder):
    digests = digests_of(0, 100)
    start_run(folder, 'one', digests, Promise(0.1, 1e-5, IMAGE))
    # In floats 0.1 + 0.2 is above the exact sum, which is above 0.3.
    promise, total = Promise(0.2, 1e-5, IMAGE), 0.1 + 0.2
    with pytest.raises(seen_records.SeenRecordsError, match='would be passed.*one.*ε ≤ 0.3') as at:
        start_run(folder, 'two', digests, promise, budget=math.nextafter(total, 0))
    assert '\n' not in str(at.value) and 'ε = 0.' in str(at.value).partition('runs). ')[2]
    assert not (folder / 'two.seen.json').exists()
    start_run(folder, 'two', digests, promise, budget=total)
    assert (folder / 'two.seen.json').exists()
    with pytest.raises(seen_records.SeenRecordsError, match='Nothing is left'):
        start_run(folder, 'three', digests, promise, budget=total)


def test_a_budget_holds_for_a_single_run_and_not_for_other_records(folder):
    start_run(folder, 'one', digests_of(0, 100))
    start_run(folder, 'two', digests_of(100, 200), budget=10.0)
    with pytest.raises(seen_records.SeenRecordsError, match='this run alone may spend ε = 10,'):
        start_run(folder, 'three', digests_of(200, 300), budget=9.99)
