"""--json and --quiet: the result alone, or nothing; of the older commands, one by one."""

import json
import math
import os

import pytest
from absl import flags
from helpers import plans, processes

from tf_efsgd import progress
from tf_efsgd.audit.findings import Finding
from tf_efsgd.audit.lattice import Attack
from tf_efsgd.benchmark import measure, timing, variants
from tf_efsgd.budget import as_json
from tf_efsgd.budget.epsilon import spent_epsilon
from tf_efsgd.cli import (
    arguments,
    audit,
    bench,
    cache,
    check,
    evaluate,
    plan,
    results,
    state,
    train,
)
from tf_efsgd.privacy.ledger import Ledger
from tf_efsgd.run import runner

_FINDING = Finding('mechanism', 'none', 1, 7, 0.3, 1e-5, 10, 2.0, 0.5, math.inf)
_ATTACK = Attack('F', 'Philox', 40, {'true': 0, 'without one': 3}, {'true': 0.3})


def _measured(_):
    (variant, *_) = variants.step_variants(2, 2, None)
    return [measure.Result(variant, [0.3, 0.5], timing.Spread(1.0, 0.9, 1.1))]


def _evaluated(folder):
    def run(_):
        (folder / 'metrics.json').write_text('{"gen2real_cnn": 0.7}')
        return str(folder / 'metrics.html')

    return run


def _table_written(folder):
    def answer(_):
        (folder / 'main').mkdir(exist_ok=True)
        (folder / 'main' / 'results.json').write_text('{"rows": [3]}')
        return 0

    return answer


def _trained(folder):
    def run(_, given):
        assert {'dataset', 'target_epsilon'} <= given and not given & {'json', 'quiet'}
        return str(folder)

    return run


# Command -> (what does its work, that in a test, its flags, what of the result is checked).
_COMMANDS = {
    'plan': (plan, 'find', lambda _: lambda _: ({'epsilon': 0.7}, 'ε is 0.7'), {'epsilon': 0.7}),
    'check': (check, 'find', lambda _: lambda _: ({'images': 7}, '7 images'), {'images': 7}),
    'evaluate': (evaluate, 'run', _evaluated, {'gen2real_cnn': 0.7}),
    'audit': (audit, 'run', lambda _: lambda _: ([_FINDING], [_ATTACK]), {'failed': True}),
    'results': (results, 'answer', _table_written, {'rows': [3]}),
    'bench': (bench, 'run', lambda _: _measured, {'model': 'mnist', 'rounds': 7}),
    'train': (runner, 'run', _trained, {'export_dir': None, 'privacy_statement': None}),
}


def _run(name, given, tmp_path, monkeypatch):
    """Runs the command's main without its parsing; whatever it prints on the way is noise."""
    module, does, make, _ = _COMMANDS[name]
    command = train if name == 'train' else module
    values = flags.FlagValues()
    command.define_flags(values)
    needed = {
        'results': [f'--out={tmp_path}'],
        'train': ['--dataset=digits', '--target_epsilon=3'],
    }
    values(['x', *needed.get(name, []), *given])
    work = make(tmp_path)

    def noisy(*given, **more):
        print('noise of this process')
        os.system('echo noise of a child')
        return work(*given, **more)

    monkeypatch.setattr(module, does, noisy)
    monkeypatch.setattr(flags, 'FLAGS', values)
    try:
        command._main()
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.fixture
def loud():
    """Bars are drawn again after the test."""
    yield
    progress._IS_QUIET[0] = False


@pytest.mark.parametrize('name', sorted(_COMMANDS))
def test_json_is_the_result_and_nothing_else(name, tmp_path, monkeypatch, capfd):
    code = _run(name, ['--json'], tmp_path, monkeypatch)
    found = json.loads(capfd.readouterr().out)
    assert {key: found[key] for key in _COMMANDS[name][3]} == _COMMANDS[name][3]
    assert code == (1 if name == 'audit' else 0)


@pytest.mark.parametrize('name', sorted(_COMMANDS))
def test_quiet_prints_nothing(name, tmp_path, monkeypatch, capfd, loud):
    code = _run(name, ['--quiet'], tmp_path, monkeypatch)
    assert capfd.readouterr().out == ''
    assert code == (1 if name == 'audit' else 0)
    with progress.progress_bar('x', 3) as bar, progress.waiting('Waiting'):
        bar.update()
    assert capfd.readouterr().err == ''


def test_without_them_everything_is_shown(tmp_path, monkeypatch, capfd):
    _run('plan', [], tmp_path, monkeypatch)
    shown = capfd.readouterr().out
    assert 'noise of this process' in shown and 'noise of a child' in shown
    assert shown.endswith('ε is 0.7\n')


def test_what_does_not_exist_is_null(capsys):
    values = flags.FlagValues()
    arguments.define_output_flags(values)
    values(['x', '--json'])
    arguments.show({'a': [math.inf, 0.3], 'b': {'c': math.nan}}, None, values)
    assert json.loads(capsys.readouterr().out) == {'a': [None, 0.3], 'b': {'c': None}}


def test_findings_have_their_verdicts():
    found = audit.result_of([_FINDING], [])
    assert found['failed'] is False and 'nothing is claimed' in found['findings'][0]['verdict']


@pytest.mark.parametrize('command', [state, cache])
def test_what_is_remembered_is_listed_and_removed_as_json(command, tmp_path, monkeypatch, capsys):
    run_id = 'ab' * 16
    (tmp_path / f'{run_id}.json').write_text('{}')
    (tmp_path / 'left.images').write_bytes(b'torn')
    folder = {state: 'state_dir', cache: 'cache_dir'}[command]
    name = {state: run_id, cache: 'left'}[command]

    def ask(*more):
        values = flags.FlagValues()
        command.define_flags(values)
        values(['x', f'--{folder}={tmp_path}', *more])
        monkeypatch.setattr(flags, 'FLAGS', values)
        command._main()
        return capsys.readouterr().out

    found = json.loads(ask('--json'))
    assert found['note'].startswith('PRIVATE') and found['folder'] == str(tmp_path)
    assert name in [item['name'] for item in found['items']] and found['items'][0]['bytes'] > 0
    assert name in ask() and ask('--quiet') == ''
    found = json.loads(ask('--json', f'--remove={name}'))
    assert found['removed'] == [name]
    if command is state:
        (warning,) = found['warnings']
        assert warning.startswith(f'{name}: WARNING: the epsilon of this run is not counted')
    assert name not in [item['name'] for item in json.loads(ask('--json'))['items']]


@pytest.mark.acceptance
def test_a_plan_as_json_says_what_the_text_says():
    asked = ['--target_epsilon=3', '--dataset_size=6000', '--train_steps=50']
    asked.append('--expected_batch_size=64')
    ended = [processes.run_module('plan', *asked, *more) for more in ([], ['--json'], ['--quiet'])]
    assert [process.returncode for process in ended] == [0, 0, 0]
    shown = [process.stdout for process in ended]
    found = json.loads(shown[1])
    assert found['private'] and 2.9 < found['epsilon'] <= 3 == found['target_epsilon']
    assert found['epsilon'] == min(found['epsilon_pld'], found['epsilon_rdp'])
    assert f'{found["noise_multiplier"]:.7f}'[:6] in shown[0]
    assert f'{found["sampling_probability"]:.6g}' in shown[0]
    assert found['train_steps'] == 50 and found['event'] is not None
    assert shown[2] == ''


def test_a_ledger_as_json(tmp_path):
    ledger = Ledger(tmp_path / 'ledger.jsonl', plans.in_ledger())
    ledger.reserve(3)
    found = as_json.of_ledger(ledger)
    assert found['steps'] == 3 and found['epsilon'] == spent_epsilon(ledger).headline
    assert json.loads(json.dumps(found))['plans'][0]['train_steps'] == ledger.plan.train_steps
