"""A second run on the same records says what both may spend, and keeps a budget over all runs."""

import contextlib
import fcntl
import json
import math
import stat

import numpy as np
import pytest
from helpers import processes, tiny_run

from tf_efsgd import config
from tf_efsgd.privacy import run_state, seen_records
from tf_efsgd.privacy.ledger import START_POSITION, Ledger, LedgerError
from tf_efsgd.run import evaluate, private_steps, state_folder
from tf_efsgd.run import folder as run_folder
from tf_efsgd.run import start as start_parts


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    """Two finished runs with one state folder: 'one' and 'two'; what they printed."""
    base = tmp_path_factory.mktemp('two')
    with pytest.MonkeyPatch.context() as patch:
        printed = {}
        for name in ('one', 'two'):
            lines = []
            patch.setattr('builtins.print', lambda *text, lines=lines, **_: lines.append(*text))
            _run(base / name)
            printed[name] = '\n'.join(map(str, lines))
    return base, printed


def _run(folder, *more, **changes):
    changes = {'state_dir': folder.parent / 'state', **changes}
    tiny_run.run(folder, '--noevaluate', *more, **changes)


@pytest.fixture
def start(monkeypatch):
    """Starts a run that a power cut ends when it is ready to train."""
    monkeypatch.setattr(private_steps, 'restore', tiny_run.cut)

    def start(folder, *more, **changes):
        with pytest.raises(tiny_run.PowerCut):
            _run(folder, *more, **changes)

    return start


def _refusal(folder, *more, **changes):
    remembered = _names(folder.parent / 'state')
    with pytest.raises(config.ConfigError) as caught:
        _run(folder, *more, **changes)
    assert not folder.exists() and _names(folder.parent / 'state') == remembered
    assert '\n' not in str(caught.value)
    return str(caught.value)


def _names(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def _run_id(folder):
    return Ledger.read(folder / 'ledger.jsonl').run_id


def _sketch(base, run_id):
    return json.loads((base / 'state' / f'{run_id}.seen.json').read_text())


@pytest.mark.acceptance
def test_the_second_run_says_so_at_the_start_and_in_its_statement(two):
    base, printed = two
    one = _run_id(base / 'one')
    assert 'of these records' not in printed['one']
    count = _sketch(base, one)['records']
    (line,) = (line for line in printed['two'].splitlines() if 'of these records' in line)
    assert line.startswith(f'{count:,} of these records were used by run {one} (digits, 20')
    assert line.endswith('with ε = 1, δ = 1e-5.')
    assert 'Together with this run: ε ≤ 2, δ ≤ 2e-5 (sums over all 2 runs).' in printed['two']

    assert tiny_run.statement(base / 'one')['other_runs'] == []
    statement = tiny_run.statement(base / 'two')
    (other,) = statement['other_runs']
    epsilon = _sketch(base, one)['epsilon']
    assert other == {'run': one, 'epsilon': epsilon, 'delta': 1e-5, 'record': 'image'}
    assert statement['together']['epsilon'] == pytest.approx(2 * epsilon, rel=1e-15)
    assert 0.99 * tiny_run.TARGET < epsilon <= tiny_run.TARGET
    report = (base / 'two' / 'report.html').read_text()
    assert 'Other runs on a data set of the same name' in report and one in report
    for name, shared in (('one', []), ('two', [count])):
        # Unconditional, and what was found is apart.
        lines = [line for line in tiny_run.statement(base / name)['not_covered']]
        assert lines[-1] == seen_records.NOT_COVERED_COMPARED
        assert lines[-1] in (base / name / 'report.html').read_text()
        path = base / name / 'nonprivate' / 'other_runs.json'
        found = json.loads(path.read_text())['other_runs']
        assert [entry['shared_records'] for entry in found] == shared
        assert (path.parent / 'NOT_COVERED.txt').exists()


def test_what_a_run_may_spend_is_what_its_statement_says_it_spent(two):
    base, _ = two
    for name in ('one', 'two'):
        spent = tiny_run.statement(base / name)['epsilon']
        assert _sketch(base, _run_id(base / name))['epsilon'] == pytest.approx(spent, rel=1e-9)


def test_neither_key_nor_a_record_s_hash_nor_their_number_is_in_a_run_folder(two):
    base, _ = two
    digests = run_folder.load_records(config.from_flagfile('\n'.join(tiny_run.flags(base)))).digests
    key = (base / 'state' / 'seen.key').read_bytes()
    raw = digests.astype('>u8').tobytes()
    plain = [raw[at : at + 16] for at in range(0, len(raw), 16)]
    sketch = seen_records.Sketch.from_json(_sketch(base, _run_id(base / 'two')))
    keyed = [int(value).to_bytes(7, 'big') for value in sketch.kept]
    assert len(keyed) > 1000
    secrets = [key, *plain, *keyed, *(p[::-1] for p in plain), *(k[::-1] for k in keyed)]
    texts = [secret.hex().encode() for secret in secrets]
    files = [path for path in (base / 'two').rglob('*') if path.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        windows = {size: _windows(content, size) for size in (7, 16, 32)}
        assert not any(secret in windows[len(secret)] for secret in secrets), path
        assert not any(text in content.lower() for text in texts[: 1 + len(plain)]), path
    for path in (base / 'state').iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((base / 'state').stat().st_mode) == 0o700


def _windows(content, size):
    return {content[at : at + size] for at in range(len(content) - size + 1)}


def test_a_resumed_run_does_not_count_itself(two, capsys):
    base, _ = two
    _run(base / 'two', '--resume', '--noexport', dataset_budget=2)
    printed = capsys.readouterr().out
    assert _run_id(base / 'one') in printed and _run_id(base / 'two') not in printed
    assert 'ε ≤ 2, δ ≤ 2e-5 (sums over all 2 runs)' in printed
    before = (base / 'two' / 'ledger.jsonl').read_bytes()
    with pytest.raises(config.ConfigError, match='budget of these records would be passed'):
        _run(base / 'two', '--resume', '--noexport', dataset_budget=1.9)
    assert (base / 'two' / 'ledger.jsonl').read_bytes() == before


def test_a_budget_allows_what_reaches_it_and_refuses_what_passes_it(tmp_path, start):
    start(tmp_path / 'one', dataset_budget=1)
    epsilon = _sketch(tmp_path, _run_id(tmp_path / 'one'))['epsilon']
    below = math.nextafter(2 * epsilon, 0)
    message = _refusal(tmp_path / 'two', dataset_budget=repr(below))
    assert _run_id(tmp_path / 'one') in message and f'dataset_budget={below!r}' in message
    start(tmp_path / 'two', dataset_budget=repr(2 * epsilon))
    # On records that are not the same it is not spent.
    start(tmp_path / 'three', dataset='mnist_10k', dataset_budget=1.01)
    assert 'this run alone may spend no proven ε' in _refusal(
        tmp_path / 'four', '--noprivate', dataset_budget=1000
    )


def test_after_a_run_without_privacy_no_epsilon_holds(tmp_path, start, capsys):
    start(tmp_path / 'one', '--noprivate')
    start(tmp_path / 'two')
    assert 'Together with this run: no ε holds.' in capsys.readouterr().out
    assert 'Nothing is left' in _refusal(tmp_path / 'three', dataset_budget=1000)


def test_a_damaged_memory_stops_no_training_but_no_budget_is_kept_then(tmp_path, start, capsys):
    start(tmp_path / 'one')
    path = tmp_path / 'state' / f'{_run_id(tmp_path / "one")}.seen.json'
    path.write_bytes(path.read_bytes()[:-9])
    assert f'cannot be kept: {path}' in _refusal(tmp_path / 'two', dataset_budget=1000)
    start(tmp_path / 'two')
    assert f'WARNING: {path} cannot be used' in capsys.readouterr().out


def test_a_start_that_fails_is_not_counted(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise LedgerError('no ledger')

    monkeypatch.setattr(start_parts, 'Ledger', fail)
    with pytest.raises(config.ConfigError, match='no ledger'):
        _run(tmp_path / 'one')
    assert _names(tmp_path / 'state') == ['seen.key', 'seen.lock']


@pytest.mark.parametrize('how', ['has started', 'is starting'])
def test_of_two_starts_in_one_folder_the_second_changes_nothing(tmp_path, monkeypatch, how):
    count = start_parts.count_run
    other = contextlib.ExitStack()
    folder = tmp_path / 'one'

    def meanwhile(*args):
        folder.mkdir()
        if how == 'is starting':
            other.enter_context(start_parts._started_alone(folder))
        else:
            (folder / 'ledger.jsonl').write_text('of another run')
        return count(*args)

    monkeypatch.setattr(start_parts, 'count_run', meanwhile)
    with other, pytest.raises(config.ConfigError, match='Another run started in .*one in the mean'):
        _run(folder)
    assert not (folder / 'config.flags').exists()
    assert _names(tmp_path / 'state') == ['seen.key', 'seen.lock']


def test_a_run_is_counted_before_there_is_a_ledger(tmp_path, monkeypatch):
    def check(path, plan, run_id):
        assert (tmp_path / 'state' / f'{run_id}.seen.json').exists()
        return Ledger(path, plan, run_id)

    monkeypatch.setattr(start_parts, 'Ledger', check)
    monkeypatch.setattr(private_steps, 'restore', tiny_run.cut)
    with pytest.raises(tiny_run.PowerCut):
        _run(tmp_path / 'one')


@pytest.mark.parametrize('when', ['new', 'resumed'])
def test_what_is_remembered_of_a_run_is_not_removed_while_it_starts(
    tmp_path, start, monkeypatch, when
):
    """Between being counted and having its ledger, when `--remove` comes from another process."""
    if when == 'resumed':
        start(tmp_path / 'one')
    count_run, messages = seen_records.count_run, []

    def count_and_remove(folder, run_id, *rest):
        others = count_run(folder, run_id, *rest)
        for name in (run_id, 'all'):
            with pytest.raises(config.ConfigError, match='is trained by a process now') as caught:
                state_folder.remove(folder, name)
            messages.append(str(caught.value))
        return others

    monkeypatch.setattr(seen_records, 'count_run', count_and_remove)
    start(tmp_path / 'one', *(['--resume'] if when == 'resumed' else []))
    run_id = _run_id(tmp_path / 'one')
    assert len(messages) == 2 and all(run_id in message for message in messages)
    assert {'seen.key', f'{run_id}.seen.json', f'{run_id}.json'} < set(_names(tmp_path / 'state'))


def test_a_change_of_the_mechanism_raises_what_a_run_counts_for(tmp_path, start, monkeypatch):
    start(tmp_path / 'one')
    one = _run_id(tmp_path / 'one')
    before = _sketch(tmp_path, one)['epsilon']
    more = {'feedback_decay': 0.5, 'target_epsilon': 2.0}
    with pytest.raises(config.ConfigError, match='budget of these records would be passed'):
        _run(tmp_path / 'one', '--resume', '--change_mechanism', dataset_budget=1, **more)
    assert _sketch(tmp_path, one)['epsilon'] == before
    assert tiny_run.kinds(tmp_path / 'one') == ['plan']
    start(tmp_path / 'one', '--resume', '--change_mechanism', **more)
    after = _sketch(tmp_path, one)['epsilon']
    assert before < after <= 2
    monkeypatch.undo()


# The command that lists and removes.


def _state(folder, *more):
    done = processes.run_module('state', f'--state_dir={folder}', *more)
    assert not done.stderr or done.stderr.count('\n') == 1
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path):
    """A state folder as two runs, a crash and an evaluation leave it."""
    folder = tmp_path / 'state'
    run_state.prepare_folder(folder)
    digests = np.arange(18, dtype=np.uint64).reshape(9, 2)
    promise = seen_records.Promise(10.0, 1e-5, seen_records.IMAGE)
    for run_id in ('a' * 32, 'b' * 32):
        seen_records.count_run(folder, run_id, 'folder:faces', digests, promise)
        run = run_state.RunState(folder, run_id)
        run.remember_records(
            np.zeros((9, 4, 4, 1), np.uint8), np.zeros(9, np.int32), START_POSITION
        )
        run.close()
    (folder / evaluate.CLASSIFIERS).mkdir()
    (folder / evaluate.CLASSIFIERS / 'weights.npz').write_bytes(bytes(2_500_000))
    (folder / 'mine.txt').write_text('mine')
    return folder


def test_what_is_remembered_is_listed(folder):
    (folder / f'{"b" * 32}.seen.json').write_text('{')
    (folder / f'{"c" * 32}.json').write_text('{}')
    code, text = _state(folder)
    assert code == 0
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert 'run on folder:faces: 9 records, ε = 10, δ = 1e-5' in lines['a' * 32]
    assert 'damaged: its epsilon is not counted' in lines['b' * 32]
    assert 'without a sketch' in lines['c' * 32]
    assert 'classifiers that learned from real images' in lines['classifiers']
    assert lines['classifiers'].endswith('2.5 MB')
    assert 'left alone' in lines['mine.txt'] and 'secret key' in lines['seen.key']
    assert set(evaluate.__dict__[name] for name in ('CLASSIFIERS', 'DOWNLOADS')) < set(
        state_folder._OTHERS
    )


def test_a_run_is_removed_and_the_others_stay(folder):
    code, text = _state(folder, f'--remove={"a" * 32}')
    assert code == 0 and f'Removed {"a" * 32}' in text
    assert 'not counted any more' in text and '--resume_unverified' in text
    left = _names(folder)
    assert not any('aaaa' in name for name in left)
    assert [name for name in left if 'bbbb' in name] == [
        f'{"b" * 32}{suffix}' for suffix in ('.json', '.lock', '.seen.json')
    ]
    digests = np.arange(18, dtype=np.uint64).reshape(9, 2)
    promise = seen_records.Promise(1.0, 1e-5, seen_records.IMAGE)
    uses = seen_records.count_run(folder, 'd' * 32, 'x', digests, promise, budget=11.0).uses
    assert [use.run_id for use in uses] == ['b' * 32]


def test_all_is_removed_but_not_what_is_not_ours(folder):
    assert _state(folder, '--remove=all')[0] == 0
    assert _names(folder) == ['mine.txt']
    assert _state(folder, '--remove=all') == (0, 'There was nothing to remove.\n')


@pytest.mark.parametrize('name', ['e' * 32, 'mine.txt', '', '../state', '*'])
def test_what_is_not_there_is_refused(folder, name):
    before = _names(folder)
    code, text = _state(folder, f'--remove={name}')
    assert code == 2 and text.startswith('tf_efsgd: ') and f'Received: --remove={name}.' in text
    assert _names(folder) == before


@pytest.mark.parametrize('name', ['a' * 32, 'all'])
def test_a_run_in_training_is_not_removed(folder, name):
    run = run_state.RunState(folder, 'a' * 32)
    before = _names(folder)
    with pytest.raises(config.ConfigError, match='is trained by a process now'):
        state_folder.remove(folder, name)
    assert _names(folder) == before
    run.close()
    state_folder.remove(folder, name)
    assert _names(folder) != before


def test_a_damaged_sketch_that_is_kept_is_listed_and_removed_alone(folder):
    path = folder / f'{"a" * 32}.seen.json'
    path.write_text('{')
    digests = np.arange(18, dtype=np.uint64).reshape(9, 2)
    promise = seen_records.Promise(10.0, 1e-5, seen_records.IMAGE)
    seen_records.count_run(folder, 'a' * 32, 'folder:faces', digests, promise)
    before = _names(folder)
    name = f'{path.name}.1.damaged'
    assert name in before and 'that was damaged' in _state(folder)[1]
    assert _state(folder, f'--remove={name}')[0] == 0
    assert _names(folder) == [other for other in before if other != name]


def test_nothing_is_counted_while_something_is_removed(folder, monkeypatch):
    removed, events = state_folder._remove, []

    def remove(item):
        with open(folder / 'seen.lock') as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(run_state.RunStateError, match='Another process trains this run'):
            run_state.RunState(folder, 'a' * 32)
        events.append(item.name)
        removed(item)

    monkeypatch.setattr(state_folder, '_remove', remove)
    state_folder.remove(folder, 'a' * 32)
    assert events == ['a' * 32] and not list(folder.glob('aaa*'))


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    code, text = _state(tmp_path / 'none')
    assert code == 0 and text == f'Nothing is remembered in {tmp_path / "none"}.\n'
    assert not (tmp_path / 'none').exists()
