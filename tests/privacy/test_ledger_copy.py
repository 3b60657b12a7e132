"""The ledger of another worker: it counts as the chief's, and touches no file."""

import dp_accounting
import pytest
from helpers import plans

from tf_efsgd.privacy import ledger_copy
from tf_efsgd.privacy.ledger import Ledger, LedgerError

_WARM = {
    'warm_start_event': dp_accounting.GaussianDpEvent(5.3),
    'warm_start_noise_multiplier': 5.3,
    'learned_features_share': 0.5,
}


@pytest.fixture(params=[{}, _WARM])
def chief(tmp_path, request):
    ledger = Ledger(tmp_path / 'ledger.jsonl', plans.in_ledger(**request.param))
    if request.param:
        ledger.reserve_warm_start('abc', 3)
    yield ledger
    ledger.close()


def _count(ledger):
    if ledger.learned_features_are_due:
        ledger.note_learned_features('def', 2)
    for steps in (30, 30, 30):
        ledger.reserve(steps)
    with pytest.raises(LedgerError, match='pass the budget'):
        ledger.reserve(11)
    return ledger.events, ledger.remaining_steps, ledger.reserved_steps, ledger.plan


def test_a_copy_counts_and_refuses_as_the_ledger_does(chief):
    copy = ledger_copy.LedgerCopy(chief.content)
    assert (copy.run_id, copy.plan) == (chief.run_id, chief.plan)
    assert _count(copy) == _count(chief)


def test_a_copy_touches_no_file(chief, tmp_path):
    before = chief.content
    copy = ledger_copy.LedgerCopy(before)
    _count(copy)
    copy.close()
    ledger_copy.NothingRemembered().store_position(copy.position)
    assert chief.content == before
    assert [path.name for path in tmp_path.iterdir()] == ['ledger.jsonl']


def test_a_torn_line_is_charged_on_the_copy_too(chief):
    if chief.learned_features_are_due:
        chief.note_learned_features('def', 2)
    chief.reserve(7)
    copy = ledger_copy.LedgerCopy(chief.content + b'{"kind": "st')
    assert copy.reserved_steps == 7 + 30
    copy.reserve(11)
    assert copy.remaining_steps == 100 - 48


def test_an_altered_ledger_is_refused(chief):
    with pytest.raises(LedgerError, match='altered'):
        ledger_copy.LedgerCopy(chief.content + b'{}\n')
