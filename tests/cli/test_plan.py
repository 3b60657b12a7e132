"""The planner: its numbers against formulas of their own, its words, its mistakes and its speed."""

import dataclasses
import math
import re
import sys

import dp_accounting
import numpy as np
import pytest
from absl import flags
from helpers import plans, processes, yardstick
from helpers.forecasts import DELTA, assert_said, bounds, effective

from tf_efsgd import budget, config, rounding
from tf_efsgd.budget import forecast, text
from tf_efsgd.cli import plan
from tf_efsgd.privacy import accounting
from tf_efsgd.privacy.ledger import Ledger

# Quick to account for.
_QUICK = ['--dataset_size=2000', '--expected_batch_size=20', '--train_steps=300']


def _ask(*arguments):
    flag_values = flags.FlagValues()
    plan.define_flags(flag_values)
    flag_values(['plan', *arguments])
    return plan.answer(flag_values)


# The budget.


def test_a_hidden_buffer_is_calibrated_by_the_closed_form():
    printed = _ask(*_QUICK, '--error_feedback=hidden', '--target_epsilon=7')
    spent = [line.split()[1] for line in printed.splitlines() if line.startswith('ε  ')]
    assert spent == ['7']


def test_what_is_printed():
    printed = _ask(*_QUICK, '--noise_multiplier=3')
    result = forecast.forecast(
        config.PrivacyConfig(noise_multiplier=3.0, expected_batch_size=20, train_steps=300), 2_000
    )
    marked = [line for line in printed.splitlines() if '[' in line and 'asked' not in line]
    assert len(marked) == 1 and marked[0].split()[0] == '300'
    assert float(marked[0].split('[')[1].split(']')[0]) == pytest.approx(
        result.epsilon.rdp, rel=1e-3
    )
    assert 'by RDP: an upper bound' in printed
    assert 'WARNING' not in printed
    assert max(len(line) for line in printed.splitlines()) <= 100


def test_delta_that_gives_a_record_away_is_refused_or_warned_of():
    large = [*_QUICK, '--noise_multiplier=3', '--target_delta=0.0005']  # 1 / 2,000
    said = (
        '--target_delta must be below 1 / number of images = 0.0005: a mechanism that gives away '
        'one image whole would satisfy a larger one. Lower it, or accept it with '
        '--allow_large_delta. Received: 0.0005.'
    )
    with pytest.raises(config.ConfigError, match=re.escape(said)):
        _ask(*large)
    warning = 'WARNING: δ is not below 1 / images: a mechanism that gives away one image'
    printed = _ask(*large, '--allow_large_delta')
    assert_said(printed, warning, '0.0005      times 2,000 images is 1, which must be below 1')
    small = _ask(*_QUICK, '--noise_multiplier=3', '--target_delta=0.0004')
    assert 'WARNING' not in small
    # 0.0004 times 2,000, rounded up.
    assert_said(small, '0.0004      times 2,000 images is 0.8, which must be below 1')


def test_pld_above_rdp_is_warned_of():
    warned = _ask('--dataset_size=60000', '--expected_batch_size=256', '--noise_multiplier=150')
    assert_said(warned, 'by RDP, the smallest bound (PLD', 'WARNING: PLD gives')


@pytest.mark.parametrize('mechanism', ['private', 'none', 'hidden'])
def test_so_much_noise_that_nothing_is_spent(mechanism):
    printed = _ask(
        '--dataset_size=20',
        '--expected_batch_size=20',
        '--train_steps=1',
        '--noise_multiplier=1e5',
        f'--error_feedback={mechanism}',
    )
    assert_said(printed, '1 private steps', 'epochs                1 ')


def test_no_minutes_are_spent_on_what_is_not_private():
    accounting.compute_epsilon.cache_clear()
    with yardstick.measured() as took:
        printed = _ask(*_QUICK, '--train_steps=9000', '--noise_multiplier=0.25')
    assert took.units < 100  # About 20.
    event = accounting.step_event(0.01 + 2**-33, effective(0.25))
    ideal = accounting.rdp_epsilon_of([(event, 9_000)], DELTA)
    assert ideal > 500  # By PLD it would take minutes.
    assert_said(printed, 'far above anything private')
    assert_said(printed, f'of exact real-valued noise: {rounding.up(ideal)}')
    assert [line.split()[1] for line in printed.splitlines() if line.startswith('ε  ')] == ['none']


def test_the_length_of_the_noise_grows_with_the_root_of_the_parameters():
    def one_step(*more):
        printed = _ask(*_QUICK, '--noise_multiplier=3', '--error_feedback=none', *more)
        (line,) = [line for line in printed.splitlines() if 'plain DP-SGD, clipped at 1 ' in line]
        return float(line.split()[-2]), printed

    alone, printed = one_step()
    assert alone == pytest.approx(3 / 20) and '--parameters' in printed
    length, printed = one_step('--parameters=400')
    assert length == pytest.approx(20 * 3 / 20) and '400 parameters' in printed


# The picture.


def test_the_picture_is_written(tmp_path):
    image = pytest.importorskip('matplotlib.image')
    target = tmp_path / 'out.png'
    printed = _ask(*_QUICK, '--noise_multiplier=3', f'--plot={target}')
    assert str(target) in printed
    pixels = image.imread(target)[..., :3]
    assert min(pixels.shape[:2]) > 400
    # The mark, in crimson, is in both halves.
    crimson = np.abs(pixels - np.array([0xDC, 0x14, 0x3C]) / 255).max(axis=-1) < 0.02
    for half in np.array_split(crimson[:, : int(0.8 * crimson.shape[1])], 2, axis=1):
        assert half.sum() > 30


@pytest.mark.parametrize('name', ['no/such/out.png', 'out.nothing', 'out'])
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_computed(
    name, tmp_path, monkeypatch
):
    pytest.importorskip('matplotlib')
    monkeypatch.setattr(plan, 'forecast', lambda *_: pytest.fail('computed'))
    with pytest.raises(config.ConfigError, match='--plot'):
        _ask(*_QUICK, '--noise_multiplier=3', f'--plot={tmp_path / name}')


def test_without_matplotlib_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    monkeypatch.setattr(plan, 'forecast', lambda *_: pytest.fail('computed'))
    with pytest.raises(config.ConfigError, match='pip install matplotlib'):
        _ask(*_QUICK, '--noise_multiplier=3', f'--plot={tmp_path / "out.png"}')


# The ledger.

_STEP = accounting.step_event(0.02, 3.0)
_PLAN = plans.in_ledger(
    dataset_size=3_000,
    event=_STEP,
    expected_batch_size=60,
    mechanism={'noise_multiplier': 3.0, 'l2_norm_clip': 0.3},
    train_steps=400,
)


def _hidden(noise_multiplier):
    return dataclasses.replace(
        _PLAN,
        mechanism={
            **{'noise_multiplier': noise_multiplier, 'l2_norm_clip': 1.0},
            **{'residual_l2_norm_clip': 0.5, 'error_feedback': 'hidden'},
        },
        event=dp_accounting.GaussianDpEvent(noise_multiplier / 2.0),
        unproven_event=accounting.step_event(0.02, noise_multiplier),
    )


def _write(folder, first, *later, torn=False):
    """A ledger with 30 + 30 + 7 steps under each plan."""
    path = folder / 'ledger.jsonl'
    ledger = Ledger(path, first)
    for i, one in enumerate((first, *later)):
        if i:
            ledger.change_plan(one)
        for count in (30, 30, 7):
            ledger.reserve(count)
    ledger.close()
    if torn:
        with open(path, 'ab') as file:
            file.write(b'{"kind": "steps", "cou')
    return path


def _spent(path):
    """The ledger, and epsilon of what it reserved."""
    ledger = Ledger.read(path)
    return ledger, budget.spent_epsilon(ledger)


def test_a_ledger_is_printed_event_by_event(tmp_path):
    path = _write(tmp_path, _PLAN, torn=True)
    before = path.read_bytes()
    printed = _ask(f'--ledger={path}')
    spent = bounds(accounting.step_event(0.02, 3.0), 97)
    whole = bounds(accounting.step_event(0.02, 3.0), 400)
    assert_said(
        printed,
        f'Spent: ε = {rounding.up(spent.headline)} at δ = 1e-05, by PLD',
        f'RDP {rounding.up(spent.rdp)}',
        '97 steps reserved, 303 of 400 remain',
        f'the whole plan: ε = {rounding.up(whole.headline)}',
        'mnist, 3,000 records of 28x28x1 in 10 classes',
        'noise multiplier 3, as accounted, on a Poisson sample, probability 0.02',
        'Plan, for one image with its label:',
        'noise given, δ = 1e-05, times 3,000 images is 0.03, which must be below 1',
        'l2_norm_clip 0.3',
    )
    rows = [words[:6] for line in printed.splitlines() if (words := line.split())[1:2] == ['to']]
    assert [' '.join(row) for row in rows] == [
        '1 to 60 2 of 30',
        '61 to 67 1 of 7',
        '68 to 97 1 of 30',
    ]
    assert printed.count('torn line') == 1 and 'torn line' in printed.split('68 to 97')[1]
    assert path.read_bytes() == before
    every = _ask(f'--ledger={path}', '--ledger_entries')
    assert_said(every, '1 to 30 ', '31 to 60 ', '61 to 67 ')


def test_an_open_ledger_can_be_read_and_an_empty_one_is_spent_nothing(tmp_path):
    path = tmp_path / 'ledger.jsonl'
    ledger = Ledger(path, _PLAN)
    assert_said(_ask(f'--ledger={path}'), 'Spent: ε = 0 ', '0 steps reserved', 'none')
    ledger.close()


def test_after_a_change_the_filter_of_the_first_plan_holds(tmp_path):
    later = dataclasses.replace(_PLAN, event=accounting.step_event(0.02, 4.0))
    path = _write(tmp_path, _PLAN, later)
    ledger, spent = _spent(path)
    whole = bounds(accounting.step_event(0.02, 3.0), 400)
    assert spent.headline == pytest.approx(whole.rdp)
    assert spent.pld < whole.pld
    assert_said(
        text.format_ledger(ledger, False),
        f'Spent: ε = {rounding.up(whole.rdp)} at δ = 1e-05, by the RDP filter',
        f'fixed in advance only: ε = {rounding.up(spent.pld)}, by PLD',
        'noise multiplier 3, as accounted',
        'noise multiplier 4, as accounted',
        '134 steps reserved, 266 of 400 remain',
    )


@pytest.mark.parametrize(
    'later',
    [
        # Less noise than the budget of the first plan allows, and more of the same steps.
        dataclasses.replace(_PLAN, event=accounting.step_event(0.02, 1.5)),
        dataclasses.replace(_PLAN, train_steps=401),
    ],
    ids=['less noise', 'more steps'],
)
def test_a_change_beyond_the_budget_of_the_first_plan_proves_nothing(later, tmp_path):
    first = dataclasses.replace(_PLAN, train_steps=80)
    printed = _ask(f'--ledger={_write(tmp_path, first, later)}')
    assert_said(printed, 'Spent: ε = none', 'WARNING', 'no ε is proven')


def test_a_hidden_buffer_is_shown_with_both_accounts(tmp_path):
    ledger, spent = _spent(_write(tmp_path, _hidden(9.0)))
    # 67 steps of a shift of (1 + 2 * 0.5) at noise 9.
    honest = accounting.gaussian_epsilon(math.sqrt(67) * 2 / 9.0, DELTA)
    plain = bounds(accounting.step_event(0.02, 9.0), 67, 1e-5)
    assert spent.headline == pytest.approx(honest)
    assert budget.unproven_epsilon(ledger.first_plan, ledger.reserved_steps) == plain.headline
    assert_said(
        _ask(f'--ledger={tmp_path / "ledger.jsonl"}'),
        f'Spent: ε = {rounding.up(honest)}',
        f'unproven, by plain DP-SGD accounting: ε = {rounding.up(plain.headline)}',
        'the buffer is not noised',
    )


def test_a_hidden_buffer_that_was_changed_is_accounted_for(tmp_path):
    # PLD of more such steps takes more memory than there is, so it is left alone.
    path = _write(tmp_path, _hidden(9.0), _hidden(12.0))
    ledger, spent = _spent(path)
    mu = math.sqrt(67 * (2 / 9.0) ** 2 + 67 * (2 / 12.0) ** 2)
    assert spent.closed_form == pytest.approx(accounting.gaussian_epsilon(mu, DELTA))
    assert spent.accountant == 'RDP filter' and math.isinf(spent.pld)
    assert math.isfinite(spent.headline)
    # No run of ours changes such a mechanism; all steps are taken for those of the first plan.
    plain = bounds(accounting.step_event(0.02, 9.0), 134, 1e-5)
    assert budget.unproven_epsilon(ledger.first_plan, ledger.reserved_steps) == plain.headline


def test_a_run_that_is_not_private_says_so(tmp_path):
    public = dataclasses.replace(_PLAN, event=None, target_delta=None, mechanism={})
    printed = _ask(f'--ledger={_write(tmp_path, public)}')
    assert_said(printed, 'NOT PRIVATE: no ε holds', '67 steps reserved')
    assert 'Spent' not in printed


_ALONE = ['--dataset_size=60000', '--target_epsilon=1', '--warm_start_share=1']


def test_a_warm_start_alone_is_planned_without_steps():
    printed = _ask(*_ALONE)
    # sigma = 3.7306 spends epsilon 1 at delta 1e-5; what is kept back of delta costs 1e-4 of it.
    assert_said(printed, 'no private steps are run', 'warm start σ          3.730', 'closed form')
    for absent in ('sampling probability', 'epochs', 'None', 'Error feedback'):
        assert absent not in printed


def test_two_releases_are_planned_as_one():
    one, two = _ask(*_ALONE), _ask(*_ALONE, '--learned_features_share=0.2')
    added = [line for line in two.splitlines() if line not in one.splitlines()]
    assert len(added) == 1
    # 3.7307 / sqrt(0.8) and 3.7307 / sqrt(0.2).
    assert_said(added[0], 'made as two', '4.171', '8.342', 'charged as one')


def test_a_ledger_of_two_releases_says_so(tmp_path):
    planned = dataclasses.replace(
        _PLAN,
        warm_start_event=dp_accounting.GaussianDpEvent(3.0),
        warm_start_noise_multiplier=3.1,
        learned_features_share=0.2,
    )
    ledger = Ledger(tmp_path / 'ledger.jsonl', planned)
    ledger.reserve_warm_start('e3b0', 1)
    ledger.note_learned_features('4c1f', 1)
    ledger.close()
    printed = _ask(f'--ledger={tmp_path / "ledger.jsonl"}')
    # 3.1 / sqrt(0.8) and 3.1 / sqrt(0.2): of the noise that is drawn, not of what is accounted.
    assert_said(
        printed,
        'one Gaussian release with noise multiplier 3.1, not sampled',
        'made as two releases, with noise multipliers 3.46591 and 6.93181',
    )


# The command line.


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ([*_QUICK], 'neither'),
        ([*_QUICK, '--noise_multiplier=1', '--target_epsilon=1'], 'both'),
        ([*_QUICK, '--noise_multiplier=0'], '--noise_multiplier'),
        ([*_QUICK, '--noise_multiplier=nan'], '--noise_multiplier'),
        ([*_QUICK, '--noise_multiplier=1', '--target_delta=1'], '--target_delta'),
        ([*_QUICK, '--noise_multiplier=1', '--residual_share=1'], '--residual_share'),
        ([*_QUICK, '--noise_multiplier=1', '--error_feedback=open'], '--error_feedback'),
        ([*_QUICK, '--noise_multiplier=1', '--expected_batch_size=2001'], '2001'),
        ([*_QUICK, '--noprivate'], '--noprivate'),
        (['--noise_multiplier=1'], '--dataset_size'),
        ([*_QUICK, '--target_epsilon=1e-9'], 'target_epsilon'),
        (['--ledger=no/such/ledger.jsonl'], 'missing'),
        (['--ledger=x', '--plot=x.png'], '--plot'),
        ([*_ALONE, '--plot=x.png'], '--plot'),
        ([*_ALONE, '--learned_features_share=1'], 'at least 0 and below 1'),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else '',
)
def test_mistakes_are_named(arguments, said):
    with pytest.raises(ValueError) as caught:
        _ask(*arguments)
    assert said in str(caught.value)


def _altered(folder):
    path = _write(folder, _PLAN)
    path.write_bytes(path.read_bytes().replace(b'"count": 30', b'"count": 29', 1))
    return path


def test_mistakes_on_the_command_line_are_one_line_and_exit_code_2(tmp_path):
    for arguments, said in (
        ([*_QUICK], 'neither'),
        ([*_QUICK, '--no_such_flag=1'], 'no_such_flag'),
        ([*_QUICK, '--noise_multiplier=1', 'photos', 'mnist'], 'Received: mnist'),
        ([f'--ledger={_altered(tmp_path)}'], 'altered'),
        ([f'--ledger={tmp_path}'], str(tmp_path)),
    ):
        finished = processes.run_module('plan', *arguments, cwd=tmp_path)
        assert finished.returncode == 2, finished.stderr
        assert finished.stdout == ''
        assert finished.stderr.startswith('tf_efsgd: ') and said in finished.stderr
        assert len(finished.stderr.splitlines()) == 1, finished.stderr


def test_a_flagfile_of_a_run_is_understood(tmp_path):
    arguments = ['--flagfile=mnist.flags', '--dataset_size=60000', '--error_feedback=hidden']
    finished = processes.run_module('plan', *arguments, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ''
    assert_said(finished.stdout, '256 of 60,000 records', 'calibrated for ε ≤ 10')


def test_the_planner_needs_no_tensorflow():
    program = (
        'import sys\nfrom tf_efsgd import plan\n'
        "print([name for name in ('tensorflow', 'keras', 'matplotlib') if name in sys.modules])"
    )
    finished = processes.run_python('-c', program)
    assert finished.stdout.strip() == '[]', finished.stderr
