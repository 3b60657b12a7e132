"""Private steps are paid for before they begin, and on disk."""

import pytest
from helpers import plans

from tf_efsgd.privacy.ledger import Ledger, LedgerError
from tf_efsgd.privacy.payments import StepPayments


class _State:
    """Remembers the positions that it was given."""

    def __init__(self):
        self.positions = []

    def store_position(self, position):
        self.positions.append(position)


@pytest.fixture
def open_ledger(tmp_path):
    opened, path = [], tmp_path / 'ledger.jsonl'

    def open_(steps, per_entry):
        opened.append(Ledger(path, plans.in_ledger(train_steps=steps, steps_per_entry=per_entry)))
        return opened[-1]

    yield open_
    for ledger in opened:
        ledger.close()


def _reserved(path):
    """What a reader of the file finds, while the run has it open."""
    return Ledger.read(path).reserved_steps


@pytest.mark.parametrize(
    ('per_entry', 'reserved'),
    [(3, [3, 3, 3, 6, 6, 6, 7]), (1, [1, 2, 3, 4, 5, 6, 7]), (50, [7] * 7)],
)
def test_a_step_begins_when_its_charge_is_on_disk(open_ledger, tmp_path, per_entry, reserved):
    ledger, state = open_ledger(7, per_entry), _State()
    payments = StepPayments(ledger, state, lambda call: call())
    found = []
    for _ in range(7):
        payments.before_step()
        found.append(_reserved(tmp_path / 'ledger.jsonl'))
    assert found == reserved
    assert state.positions[-1] == ledger.position and len(state.positions) == len(set(reserved))
    assert payments.is_used_up
    with pytest.raises(LedgerError):
        payments.before_step()
    assert _reserved(tmp_path / 'ledger.jsonl') == 7


def test_a_resumed_run_pays_only_for_what_is_left(open_ledger, tmp_path):
    ledger = open_ledger(7, 3)
    ledger.reserve(3)
    ledger.reserve(2)
    StepPayments(ledger, _State(), lambda call: call()).before_step()
    assert _reserved(tmp_path / 'ledger.jsonl') == 7


def test_a_step_whose_charge_failed_is_not_paid_for(open_ledger, tmp_path, monkeypatch):
    ledger = open_ledger(7, 3)
    payments = StepPayments(ledger, _State(), lambda call: call())

    def full(_):
        raise OSError('No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(ledger, 'reserve', full)
        with pytest.raises(OSError, match='No space'):
            payments.before_step()
    assert payments.is_used_up and _reserved(tmp_path / 'ledger.jsonl') == 0
    payments.before_step()
    assert _reserved(tmp_path / 'ledger.jsonl') == 3


def test_workers_that_count_otherwise_stop(open_ledger):
    payments = StepPayments(open_ledger(7, 3), _State(), lambda _: 2)
    with pytest.raises(RuntimeError, match='do not count their steps alike'):
        payments.before_step()
    assert payments.is_used_up
