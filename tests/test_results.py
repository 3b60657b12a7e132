"""Grids are valid configs; runs are kept, resumed, refused, may fail; the tables' arithmetic."""

import dataclasses
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from absl import flags
from helpers import account_by_hand as by_hand
from matplotlib import image

from tf_efsgd import config
from tf_efsgd.cli import results as command_line
from tf_efsgd.privacy import accounting
from tf_efsgd.results import grids, runs, tables

_REPO = pathlib.Path(__file__).resolve().parent.parent
_ROWS = [row for grid in grids.GRIDS.values() for row in grid]
_DEMO = config.from_flagfile((_REPO / 'configs/demo.flags').read_text(encoding='utf-8'))
_STEPS = _DEMO.privacy.train_steps


# The grids.


@pytest.fixture
def _quick_noise(monkeypatch):
    monkeypatch.setattr(grids, '_plain_noise', lambda *_: (0.7, 0.8))


@pytest.mark.parametrize('row', _ROWS, ids=lambda row: row.name)
def test_every_row_is_a_valid_config(row, _quick_noise):
    settings = grids.make_config(row, 2)
    assert settings.training.seed == 2
    assert settings.privacy.private is ('--noprivate' not in row.changes)
    epsilon = None if row.unproven else 1 if row.name.endswith('_eps1') else 10
    assert settings.privacy.target_epsilon == epsilon
    assert settings.data.dataset == row.name[: row.name.index('mnist') + 5]
    # The shown command is the run that is made, seed and all.
    shown = config.find_flagfiles(grids.show_command(row, settings).split()[3:])
    text = [
        pathlib.Path(f.split('=')[1]).read_text() if 'flagfile' in f else f
        for f in [*shown, '--seed=2']
    ]
    assert config.from_flagfile('\n'.join(text)) == settings


def test_the_grids_hold_what_they_are_named_for(_quick_noise):
    names = [row.name for row in _ROWS]
    assert len(names) == len(set(names)) == 4 + 2 * 9 + 2
    for grid in grids.GRIDS.values():
        assert {row.baseline for row in grid} <= {None, *(row.name for row in grid)}
    ideas = {'--error_feedback=none', '--reconstruction=none', '--nonoise_injection'}
    switched_off = [ideas & set(row.changes) for row in _ROWS if row.name.startswith('mnist_no_')]
    assert sorted(map(len, switched_off)) == [0, 1, 1, 1]  # The 0: without the warm start.
    assert set().union(*switched_off) == ideas
    for row in grids.GRIDS['ablation']:  # A config that leaves an idea out does not change the row.
        model, privacy = (getattr(grids.make_config(row, 1), n) for n in ('model', 'privacy'))
        has = (privacy.error_feedback, model.reconstruction, model.noise_injection)
        assert [i in row.changes for i in sorted(ideas)] == [
            has[0] == 'none',
            not has[2],
            has[1] == 'none',
        ]
    without, with_ = (grids.make_config(row, 1) for row in grids.GRIDS['error_feedback'])
    assert with_.privacy == dataclasses.replace(without.privacy, error_feedback='private')
    assert (with_.model, with_.training) == (without.model, without.training)
    assert without.privacy.error_feedback == 'none' and without.privacy.train_steps == 6000
    (none,) = (row for row in _ROWS if row.name == 'mnist_dp_sgd_gan')
    assert ideas < set(none.changes)
    assert all(row.unproven == ('--error_feedback=hidden' in row.changes) for row in _ROWS)


def _row(*changes, **fields):
    return grids.Row('a', 'A', 'demo.flags', changes, **fields)


def test_an_unproven_row_has_the_noise_of_plain_dp_sgd(monkeypatch):
    asked = []

    def calibrate(*arguments):
        asked.append(arguments)
        return 2.00001

    monkeypatch.setattr(accounting, 'calibrate_noise_multiplier', calibrate)
    changes = ('--error_feedback=hidden', '--dataset_size=2000', '--expected_batch_size=200')
    changes += ('--warm_start_share=0.5',)
    row, overrides = _row(*changes, unproven=True), ['train_steps=8', 'limit_records=1000']
    privacy = grids.make_config(row, 1, overrides=overrides).privacy
    assert (privacy.error_feedback, privacy.target_epsilon) == ('hidden', None)
    # What is drawn for plain DP-SGD to be accounted so; up: less noise would be a larger epsilon.
    drawn = by_hand.noise_for_step(2.00001, 2**20)
    assert 0 <= privacy.noise_multiplier - drawn < 1e-4
    assert privacy.noise_multiplier == round(privacy.noise_multiplier, 4)
    # The warm start is the one that the private rows have, but for its last digits.
    delta = by_hand.accounted_delta(1e-5)
    warm_start = 2**0.5 / accounting.gaussian_mu(10.0, delta)
    assert 0 <= privacy.warm_start_noise_multiplier - warm_start < 1e-4
    assert privacy.warm_start_share == 0
    ((target, at, *rest, event),) = asked
    assert [target, at, *rest] == [10.0, delta, accounting.sampling_probability(200, 1000), 8]
    assert event.noise_multiplier == pytest.approx(warm_start, rel=1e-9)
    grids.make_config(row, 2, overrides=overrides)
    assert len(asked) == 1  # It takes seconds.


def test_places_and_overrides_come_last():
    settings = grids.make_config(
        _row('--train_steps=7', '--seed=9'),
        3,
        overrides=['train_steps=5', 'noise_injection=false'],
        datasets={'mnist_10k': 'idx:elsewhere', 'mnist': 'no'},
        data_dir='there',
    )
    assert settings.privacy.train_steps == 5 and not settings.model.noise_injection
    assert settings.training.seed == 3
    assert (settings.data.dataset, settings.data.data_dir) == ('idx:elsewhere', 'there')
    assert settings.data.tfds_manual_dir is None


@pytest.mark.parametrize(
    ('row', 'overrides', 'said'),
    [
        (_row('--no_such=1'), [], ['Row a', 'no_such']),
        (_row(), ['train_steps=0'], ['Row a', '--train_steps', 'at least 1']),
        (_row(), ['evaluate=false'], ['--evaluate']),
        (_row(), ['run_dir=x'], ['--set', 'run_dir=x']),
        (_row(unproven=True), [], ['--dataset_size']),
        (dataclasses.replace(_row(), flagfile='no.flags'), [], ["'no.flags'"]),
    ],
    ids=lambda value: '_'.join(value) if isinstance(value, list) else '',
)
def test_wrong_rows_are_refused_by_name(row, overrides, said):
    with pytest.raises(config.ConfigError) as caught:
        grids.make_config(row, 1, overrides=overrides)
    assert all(text in str(caught.value) for text in said)


# Runs, with a launcher that trains nothing. It leaves the files that the launcher would.

_FAKE = """
    import json, os, pathlib, signal, sys, time
    from tf_efsgd import config

    text = '\\n'.join(sys.argv[1:])
    settings = config.from_flagfile(text)
    run, steps = pathlib.Path(settings.run.run_dir), settings.privacy.train_steps
    with open(os.environ['FAKE_CALLS'], 'a') as calls:
        calls.write(f'{run.parent.name} {run.name} {"resume" if settings.run.resume else "new"}\\n')
    behaviour = json.loads(os.environ['FAKE_BEHAVIOUR']).get(run.parent.name, '')
    if behaviour == 'refuse':
        sys.exit('tf_efsgd: no such data')
    assert settings.run.resume == (run / 'ledger.jsonl').exists()
    run.mkdir(parents=True, exist_ok=True)
    (run / 'config.flags').write_text(settings.to_flags())
    (run / 'ledger.jsonl').touch()
    if behaviour == 'crash' and not settings.run.resume:
        print('half of it')
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == 'wait' and not settings.run.resume:
        caught = []
        signal.signal(signal.SIGINT, lambda *_: caught.append(1))
        (run / 'waits').touch()
        while not caught:
            time.sleep(0.01)
        time.sleep(0.3)  # A second signal would be seen.
        (run / 'checkpoint').write_text(f'{len(caught)} signal')
        sys.exit(130)
    private = settings.privacy.private
    statement = {'private': private, 'applied_steps': steps, 'dataset': settings.data.dataset}
    if private:
        statement.update(epsilon=9.9911, delta=1e-5, steps=steps, accountant='PLD')
        statement.update(unit_of_privacy='one image with its label', delta_times_units=0.09)
    for name, content in {
        'export/1/assets.extra/privacy_statement.json': json.dumps(statement),
        'export/1/saved_model.pb': '',
        'nonprivate/metrics.json': json.dumps(
            {'gen2real_cnn': {'accuracy': 0.7 + 0.1 * settings.training.seed}}
        ),
    }.items():
        if behaviour == 'unevaluated' and 'metrics' in name:
            continue
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(content)
    (run / 'samples').mkdir(exist_ok=True)
    for step in (1, steps):
        (run / f'samples/step_{step:06d}.png').write_bytes(
            pathlib.Path(os.environ['FAKE_PICTURE']).read_bytes()
        )
    print('ε trained')
"""

_GRID = tuple(
    grids.Row(name, name.upper(), 'demo.flags', changes, baseline)
    for name, changes, baseline in [
        ('one', (), None),
        ('two', ('--noprivate',), 'one'),
        ('three', ('--error_feedback=none',), 'one'),
    ]
)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A fake launcher; `fake(*flags, name=behaviour)` gives the exit code and the calls.

    `grid` is for other rows.
    """
    script = tmp_path / 'fake.py'
    script.write_text(textwrap.dedent(_FAKE))
    calls = tmp_path / 'calls'
    picture = tmp_path / 'picture.png'
    image.imsave(picture, np.eye(20), cmap='gray')
    monkeypatch.setenv('FAKE_CALLS', str(calls))
    monkeypatch.setenv('FAKE_PICTURE', str(picture))
    monkeypatch.setenv('PYTHONPATH', str(_REPO))

    def answer(*arguments, grid=_GRID, **behaviour):
        monkeypatch.setenv('FAKE_BEHAVIOUR', json.dumps(behaviour))
        calls.write_text('')
        values = flags.FlagValues()
        command_line.define_flags(values)
        values(['results', f'--out={tmp_path / "out"}', *arguments])
        code = command_line.answer(values, grid=grid, command=(sys.executable, str(script)))
        return code, calls.read_text().splitlines()

    answer.folder = tmp_path / 'out' / 'main'
    return answer


def _states(folder):
    rows = json.loads((folder / 'results.json').read_text())['rows']
    return {row['name']: [run['state'] for run in row['runs']] for row in rows}


def test_what_is_finished_is_kept(fake):
    assert fake('--seeds=1') == (0, ['one seed_1 new', 'two seed_1 new', 'three seed_1 new'])
    assert fake() == (0, ['one seed_2 new', 'two seed_2 new', 'three seed_2 new'])
    before = (fake.folder / 'one/seed_1/config.flags').stat().st_mtime_ns
    assert fake() == (0, [])
    assert (fake.folder / 'one/seed_1/config.flags').stat().st_mtime_ns == before
    for picture in ('one', 'two', 'three', 'contact_sheet'):
        assert image.imread(fake.folder / f'{picture}.png').size
    assert 'ε trained' in (fake.folder / 'one/seed_1.log').read_text(encoding='utf-8')


def test_seeds_take_turns_and_rows_can_be_chosen(fake):
    wanted = ['three seed_4 new', 'three seed_3 new']
    assert fake('--rows=three', '--seeds=4,3,4') == (0, wanted)
    assert _states(fake.folder) == {'three': ['finished', 'finished']}


def test_a_dry_run_and_a_table_run_nothing(fake, capsys):
    assert fake('--seeds=1', '--dry_run') == (0, [])
    assert capsys.readouterr().out.count('--run_dir=') == 3
    assert not fake.folder.exists()
    assert fake('--seeds=1', '--table_only') == (0, [])
    assert _states(fake.folder) == {name: ['not started'] for name in ('one', 'two', 'three')}


def test_a_failure_is_noted_and_the_others_go_on(fake):
    code, calls = fake('--seeds=1', two='refuse', three='unevaluated')
    assert (code, len(calls)) == (1, 3)
    assert _states(fake.folder) == {'one': ['finished'], 'two': ['failed'], 'three': ['failed']}
    table = (fake.folder / 'results.md').read_text(encoding='utf-8')
    assert '- two, seed 1: failed (exit code 1; it said: tf_efsgd: no such data)' in table
    # Nothing was spent on the first, so it starts anew; the other one goes on.
    assert fake('--seeds=1') == (0, ['two seed_1 new', 'three seed_1 resume'])
    assert set(sum(_states(fake.folder).values(), [])) == {'finished'}


def test_a_run_that_was_killed_goes_on_with_its_time(fake):
    assert fake('--seeds=1', '--rows=one', one='crash')[0] == 1
    assert _states(fake.folder) == {'one': ['failed']}
    starts = fake.folder / 'one/seed_1.starts.json'
    first = json.loads(starts.read_text())
    assert [start['exit_code'] for start in first] == [-signal.SIGKILL]
    first[0]['minutes'] = 2.5
    starts.write_text(json.dumps(first))
    assert fake('--seeds=1', '--rows=one') == (0, ['one seed_1 resume'])
    assert '| 2.5 (one seed) |' in (fake.folder / 'results.md').read_text(encoding='utf-8')
    # The machine went down in the first: how long it took is not known.
    first[0]['minutes'] = None
    starts.write_text(json.dumps([first[0], {**first[0], 'minutes': 4.0}]))
    fake('--seeds=1', '--rows=one')
    assert '| ≥ 4.0 (one seed) |' in (fake.folder / 'results.md').read_text(encoding='utf-8')


def test_the_evaluation_is_not_counted(fake):
    fake('--seeds=1', '--rows=one')
    (fake.folder / 'one/seed_1/nonprivate/metrics.json').unlink()
    hour_ago = time.time() - 3600
    os.utime(fake.folder / 'one/seed_1/export/1/saved_model.pb', (hour_ago, hour_ago))
    # Exported before it was started: only evaluated. (The fake one writes the file again.)
    run = command_line.Run(
        _GRID[0], 1, grids.make_config(_GRID[0], 1), fake.folder / 'one' / 'seed_1'
    )
    run.start([sys.executable, '-c', 'pass'], runs.Signals())
    assert run.starts()[-1]['minutes'] == 0


@pytest.mark.parametrize('finished', [True, False])
def test_other_settings_are_refused_before_anything_runs(fake, finished):
    fake('--seeds=1', '--rows=two', **({} if finished else {'two': 'crash'}))
    with pytest.raises(config.ConfigError) as caught:
        fake('--set=train_steps=20', '--set=latent_dim=3')
    said = str(caught.value)
    assert os.path.join('main', 'two', 'seed_1') in said and '\n' not in said
    assert f'--train_steps was {_STEPS}, is 20; --latent_dim was 64, is 3' in said
    assert not (fake.folder / 'one').exists()
    moved = ('--data_dir=moved', '--set=cache_dir=moved')
    assert fake('--seeds=1', '--rows=two', *moved)[0] == 0


def test_unreadable_files_are_named(fake):
    fake('--seeds=1', '--rows=one')
    metrics = fake.folder / 'one/seed_1/nonprivate/metrics.json'
    metrics.write_text('{')
    with pytest.raises(config.ConfigError, match='metrics.json cannot be read'):
        fake('--seeds=1', '--rows=one')
    (fake.folder / 'one/seed_1/config.flags').write_text('--no_such=1')
    with pytest.raises(config.ConfigError, match='config.flags cannot be read'):
        fake('--seeds=1', '--rows=one')


@pytest.mark.parametrize(
    ('flag', 'said'),
    [
        ('--seeds=1,x', '--seeds'),
        ('--rows=one,four', 'one, two, three. Received: four'),
        ('--rows=', '--rows must be among one, two, three. Received: an empty name'),
        ('--rows=,', 'Received: an empty name'),
        ('--rows=one,', 'Received: an empty name'),
    ],
)
def test_wrong_flags(fake, flag, said):
    with pytest.raises(config.ConfigError, match=said):
        fake(flag)
    assert not fake.folder.exists()


def test_ctrl_c_reaches_the_run_once_and_stops_the_grid(fake):
    waits = fake.folder / 'one/seed_1/waits'
    pressed = subprocess.Popen(
        [
            sys.executable,
            '-c',
            'import os, pathlib, signal, sys, time\n'
            'for _ in range(3000):\n'
            '    time.sleep(0.01)\n'
            '    if pathlib.Path(sys.argv[1]).exists():\n'
            '        os.kill(int(sys.argv[2]), signal.SIGINT)\n'
            '        break\n',
            str(waits),
            str(os.getpid()),
        ]
    )
    before = signal.getsignal(signal.SIGINT)
    assert fake(one='wait') == (130, ['one seed_1 new'])
    assert pressed.wait() == 0
    assert signal.getsignal(signal.SIGINT) is before
    assert (fake.folder / 'one/seed_1/checkpoint').read_text() == '1 signal'
    assert _states(fake.folder)['one'] == ['unfinished', 'not started']
    code, calls = fake()
    assert (code, calls[0], len(calls)) == (0, 'one seed_1 resume', 6)


# The table.


def test_mean_and_spread_are_those_of_a_sample():
    assert tables.average([]) is None
    assert tables.average([0.8]) == tables.Mean(0.8, None, 1)
    found = tables.average([0.80, 0.84, 0.85])
    assert found.n == 3
    assert (found.mean, found.std) == pytest.approx((0.83, math.sqrt(0.0014 / 2)))


def test_welch_against_golden_values():
    # Worked by hand: variances 1 and 4/3 over 3 and 4 values, difference 3, t = 3 / sqrt(2/3).
    found = tables.compare([5.0, 6.0, 7.0], [2.0, 2.0, 4.0, 4.0])
    assert (found.difference, found.standard_error) == pytest.approx((3.0, math.sqrt(2 / 3)))
    # Welch-Satterthwaite: (2/3)^2 / ((1/3)^2 / 2 + (1/3)^2 / 3) = 4.8 degrees of freedom; the
    # 97.5% points of t are 2.776 at 4 and 2.571 at 5, and t = 3.674.
    assert 0.01 < found.p_value < 0.02
    assert tables.compare([1.0], [2.0, 3.0]) is None
    assert tables.compare([1.0, 1.0], [2.0, 2.0]).p_value is None


@pytest.mark.parametrize(
    ('accuracies', 'text'),
    [
        # Two seeds: t needs 4.3 at 2 degrees of freedom; 10 points +- 1.4 are 7.07 of them.
        ((0.70, 0.72), '-10.0 ± 1.4'),
        ((0.79, 0.81), '-1.0 ± 1.4, within noise'),
        # More than two standard errors, and yet nothing: a normal law would have called it real.
        ((0.76, 0.78), '-4.0 ± 1.4, within noise'),
    ],
)
def test_differences_say_when_they_are_noise(accuracies, text):
    found = tables.compare(accuracies, (0.80, 0.82))
    assert tables._difference(dataclasses.asdict(found)) == text


def test_the_table(fake):
    fake()
    runs_of = {name: fake.folder / name for name in ('one', 'two', 'three')}

    def measured(name, seed, **values):
        path = runs_of[name] / f'seed_{seed}/nonprivate/metrics.json'
        path.write_text(json.dumps(values))
        (runs_of[name] / f'seed_{seed}.starts.json').write_text(
            json.dumps([{'minutes': seed}, {'minutes': 1.5}])
        )

    for seed, one, two in [(1, 0.80, 0.90), (2, 0.82, 0.91)]:
        fid = {'test': 20.25 + seed, 'train': math.inf}
        real = {'accuracy': 0.984}
        measured('one', seed, gen2real_cnn={'accuracy': one, 'real': real}, domain_fid=fid)
        measured(
            'two',
            seed,
            gen2real_cnn={'accuracy': two, 'real': real},
            gen2real_mlp={'accuracy': 0.5, 'real': None},
            real2gen_cnn={'accuracy': 0.953, 'real': real},
            precision_recall={
                'precision': 0.871 + 0.01 * seed,
                'recall': 0.35,
                'real': {'precision': 0.903, 'recall': 0.887},
            },
        )
    hidden = {
        'private': False,
        'dataset': 'mnist_10k',
        'epsilon': 1080.123,
        'epsilon_unproven': 9.9991,
        'delta': 1e-5,
        'unit_of_privacy': 'one image with its label',
        'delta_times_units': 0.6,
        'steps': 1200,
        'applied_steps': 1190,
    }
    path = runs_of['three'] / 'seed_2/export/1/assets.extra/privacy_statement.json'
    path.write_text(json.dumps(hidden))
    (runs_of['three'] / 'seed_1/nonprivate/metrics.json').unlink()
    fake('--table_only')
    lines = (fake.folder / 'results.md').read_text(encoding='utf-8').splitlines()
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines if line[:1] == '|']
    minutes = '3.0 ± 0.7'
    launch = '`python -m tf_efsgd.launch --flagfile=demo.flags'
    assert cells[2:] == [
        ['ONE', '2 of 2', '9.992', str(_STEPS), minutes, '81.0 ± 1.4', '–', '–', '21.8 ± 0.7']
        + ['–', '–', '–', '–', f'{launch}`'],
        [
            'TWO',
            '2 of 2',
            'none: NOT PRIVATE',
            str(_STEPS),
            minutes,
            '90.5 ± 0.7',
            '50.0 ± 0.0',
            '95.3 ± 0.0',
            '–',
            '–',
            '0.89 ± 0.01',
            '0.35 ± 0.00',
            '+9.5 ± 1.1',
            f'{launch} --noprivate`',
        ],
        ['THREE', '1 of 2', '1,081, NOT PRIVATE, 10 unproven', '1,190', '0.0 (one seed)']
        + ['90.0 (one seed)', *['–'] * 7, f'{launch} --error_feedback=none`'],
        ['real images of mnist_10k', '–', '–', '–', '–', '98.4', '–', '98.4', '–', '–', '0.90']
        + ['0.89', '–', '–'],
    ]
    (note,) = (line for line in lines if 'Difference: ' in line)
    assert 'baseline of the same data set (ONE)' in note
    promise = (
        'Each command with `--seed=` 1, 2. Unit of privacy: one image with its label. δ = 1e-05; '
        'times the number of units it is 0.6 at most.'
    )
    assert promise in lines
    assert any(line.startswith('- three, seed 1: failed (exit code 0') for line in lines)
    assert len({len(row) for row in cells}) == 1


def test_rows_of_other_images_are_not_compared_and_have_their_own_real_images(fake):
    grid = (
        *_GRID[:2],
        dataclasses.replace(_GRID[2], changes=('--dataset=digits',)),
        grids.Row('four', 'FOUR', 'demo.flags', ('--dataset=digits',), 'three'),
    )
    fake(grid=grid)
    for name, real in [('one', 0.99), ('two', 0.99), ('three', 0.95), ('four', 0.95)]:
        for seed in (1, 2):
            path = fake.folder / f'{name}/seed_{seed}/nonprivate/metrics.json'
            accuracy = json.loads(path.read_text())['gen2real_cnn']['accuracy']
            values = {'accuracy': accuracy, 'real': {'accuracy': real}}
            path.write_text(json.dumps({'gen2real_cnn': values}))
    fake('--table_only', grid=grid)
    rows = json.loads((fake.folder / 'results.json').read_text())['rows']
    assert [row['baseline'] for row in rows] == [None, 'one', 'one', 'three']
    assert [row['difference'] is None for row in rows] == [True, False, True, False]
    table = (fake.folder / 'results.md').read_text(encoding='utf-8')
    assert 'baseline of the same data set (ONE; THREE)' in table
    lines = [line.split(' | ') for line in table.splitlines() if 'real images of' in line]
    found = {line[0]: line[5] for line in lines}
    assert found == {'| real images of mnist_10k': '99.0', '| real images of digits': '95.0'}


# The real launcher.


@pytest.mark.acceptance
def test_a_real_run(tmp_path):
    values = flags.FlagValues()
    command_line.define_flags(values)
    settings = {
        'dataset': 'digits',
        'train_steps': 2,
        'warm_start_steps': 2,
        'evaluation_images': 100,
        'latent_dim': 4,
        'generator_width': 8,
        'discriminator_width': 8,
        'adaptive_discriminator_steps': False,
    }
    arguments = [f'--set={name}={value}' for name, value in settings.items()]
    values(['results', f'--out={tmp_path}', '--seeds=1', *arguments])
    grid = [_row('--noprivate', '--reconstruction=none')]
    assert command_line.answer(values, grid=grid) == 0
    folder = tmp_path / 'main'
    (run,) = json.loads((folder / 'results.json').read_text())['rows'][0]['runs']
    assert (run['state'], run['private'], run['applied_steps']) == ('finished', False, 2)
    assert 0 <= run['gen2real_cnn'] <= 1 and 0 < run['minutes'] < 10
    # As the evaluation writes them: none of the figures is missing.
    assert None not in [run[name] for name in tables._MEASURED]
    assert run['real'].keys() == tables._MEASURED.keys() and None not in run['real'].values()
    assert run['dataset'] == 'digits' and run['real']['gen2real_cnn'] > 0.5
    assert 0 <= run['recall'] <= 1 and 0.2 < run['real']['recall'] <= 1
    assert (
        image.imread(folder / 'a.png').shape
        == image.imread(folder / 'a/seed_1/samples/step_000002.png').shape
    )
    assert (folder / 'contact_sheet.png').exists()


@pytest.mark.parametrize(
    ('flag', 'said'),
    [
        ('--set=train_steps=0', 'Row mnist: --train_steps must be at least 1'),
        ('--rows=', '--rows must be among mnist, mnist_eps1, '),
        ('--rows=,', '--rows must be among mnist, mnist_eps1, '),
    ],
)
def test_it_needs_no_tensorflow_and_tells_mistakes_in_one_line(flag, said, tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(_REPO))
    monkeypatch.chdir(tmp_path)
    code = (
        'import sys\nfrom tf_efsgd.cli import results as m\n'
        f'sys.argv = ["results", "--grid=main", "{flag}"]\n'
        'try:\n    m.main()\nfinally:\n    assert "tensorflow" not in sys.modules\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith(f'tf_efsgd: {said}')
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
