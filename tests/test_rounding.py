"""The one way of showing a bound: up, and never in another place."""

import ast
import dataclasses
import decimal
import math
import pathlib

import hypothesis
import pytest
from hypothesis import strategies as st

from tf_efsgd import config, rounding
from tf_efsgd.audit import findings
from tf_efsgd.budget import forecast as forecasts
from tf_efsgd.budget import text as texts
from tf_efsgd.budget.epsilon import or_none
from tf_efsgd.cli import audit
from tf_efsgd.privacy import accounting
from tf_efsgd.reporting import report
from tf_efsgd.results import tables
from tf_efsgd.run import messages
from tf_efsgd.training import callbacks as monitoring

_PACKAGE = pathlib.Path(rounding.__file__).parent


@pytest.mark.parametrize(
    ('value', 'shown'),
    [
        (0.0, '0'),
        (1.1, '1.1'),
        (10.0, '10'),
        (100.0, '100'),
        (9.2781, '9.279'),
        (9.279, '9.279'),
        (9.27911, '9.28'),
        (9.9999999, '10'),
        (0.0123412, '0.01235'),
        (123456.0, '123,500'),
        (4797.2, '4,798'),
        (1e9, '1e+9'),
        (1000000001.0, '1.001e+9'),
        (1.00001e-5, '1.001e-5'),
        (5e-324, '5e-324'),
        (math.inf, 'none'),
        (math.nan, 'none'),
    ],
)
def test_examples(value, shown):
    assert rounding.up(value) == shown


@hypothesis.given(value=st.floats(0, 1e300, allow_subnormal=False), digits=st.integers(1, 8))
def test_what_is_shown_is_never_below_and_hardly_above(value, digits):
    exact = decimal.Decimal(repr(value))
    shown = decimal.Decimal(rounding.up(value, digits).replace(',', ''))
    assert exact <= shown
    assert shown - exact < decimal.Decimal(10) ** (exact.adjusted() + 1 - digits) or not exact
    # Who types it in again gets the same.
    assert rounding.up(float(shown), digits) == rounding.up(value, digits)


# Wherever an epsilon is shown.


def _forecast():
    settings = config.PrivacyConfig(
        noise_multiplier=8.0, expected_batch_size=20, train_steps=3, error_feedback='none'
    )
    return forecasts.forecast(settings, 2_000)


def _in_the_plan(epsilon, forecast, capsys):
    found = dataclasses.replace(forecast, epsilon=epsilon)
    lines = texts.format_forecast(found).splitlines()
    return [line.split()[1] for line in lines if line.startswith('ε  ')]


def _in_the_table_of_the_plan(epsilon, forecast, capsys):
    table = forecasts.Table([3], [8.0], [[epsilon.headline]])
    text = texts.format_forecast(dataclasses.replace(forecast, table=table))
    return [
        line.split('[')[1].split(']')[0] for line in text.splitlines() if line[:15].strip() == '3'
    ]


def _in_the_bar(epsilon, forecast, capsys):
    bar = monitoring.ProgressBar(0, 1, 1, lambda _: epsilon.headline)
    bar.on_train_begin()
    bar.on_train_batch_end(0, {})
    bar.on_train_end()
    said = capsys.readouterr().err.split('ε≤')[-1]
    return [said.split()[0], said.split(' of ')[1].split(']')[0].split(',')[0].strip()]


def _in_the_first_line_of_a_run(epsilon, forecast, capsys):
    class Networks:
        def count_params(self):
            return 7

        generator = discriminator = property(lambda self: self)

    messages.describe(forecast.plan, Networks(), 'run', epsilon)
    return [capsys.readouterr().out.split('ε of the whole run = ')[1].split()[0]]


_STATEMENT = {
    'private': True,
    'delta': 1e-5,
    'delta_times_units': 0.02,
    'unit_of_privacy': 'one image with its label',
    'accountant': 'PLD',
    'steps': 3,
    'applied_steps': 3,
    'epsilon_unproven': None,
}


def _in_the_last_line_of_a_run(epsilon, forecast, capsys):
    stated = or_none(epsilon.headline)
    messages.result({**_STATEMENT, 'epsilon': stated}, {})
    return [capsys.readouterr().out.split('Spent ε = ')[1].split()[0]]


def _in_the_tables(epsilon, forecast, capsys):
    return [tables._epsilon([{**_STATEMENT, 'epsilon': or_none(epsilon.headline)}])]


def _in_the_audit(epsilon, forecast, capsys):
    audit._print_findings(
        [findings.Finding('mechanism', 'none', 1, 1, 1.0, 1e-5, 9, 3.0, 0.5, epsilon.headline)]
    )
    return [capsys.readouterr().out.split()[9]]


def _in_the_report(epsilon, forecast, capsys):
    if math.isinf(epsilon.headline):  # It refuses to be one of a private run.
        images = {**_STATEMENT, 'epsilon_by_images_per_person': {2: None}}
        return [report._several_images(images).split('<td>')[1].split('</td>')[0]]
    statement = {**_STATEMENT, 'epsilon': epsilon.headline}
    images = {**_STATEMENT, 'epsilon_by_images_per_person': {2: epsilon.headline}}
    return [
        report._banner(True, statement).split('ε = ')[1].split(', δ')[0],
        report._one_value('dp/epsilon', 3, epsilon.headline).split('>')[1].split(' at step')[0],
        report._several_images(images).split('<td>')[1].split('</td>')[0],
    ]


@pytest.fixture(scope='module')
def forecast():
    return _forecast()


@pytest.mark.parametrize(
    'place',
    [
        _in_the_plan,
        _in_the_table_of_the_plan,
        _in_the_bar,
        _in_the_first_line_of_a_run,
        _in_the_last_line_of_a_run,
        _in_the_tables,
        _in_the_audit,
        _in_the_report,
    ],
    ids=lambda place: place.__name__.strip('_'),
)
@pytest.mark.parametrize(
    ('value', 'shown'), [(1.1, '1.1'), (9.27911, '9.28'), (10.0, '10'), (math.inf, 'none')]
)
def test_it_is_shown_alike_everywhere(place, value, shown, forecast, capsys):
    epsilon = accounting.Epsilon(
        pld=min(value, 77.0), rdp=2 * min(value, 77.0), is_proven=math.isfinite(value)
    )
    found = place(epsilon, forecast, capsys)
    assert found and set(found) == {shown}


# And that nothing else rounds one.

_ROUNDING_CALLS = {'ceil', 'floor', 'round', 'round_', 'around', 'trunc', 'format', 'quantize'}
_ROUNDING_NAMES = {'ROUND_CEILING', 'ROUND_UP', 'ROUND_HALF_UP', 'ROUND_HALF_EVEN', 'ROUND_FLOOR'}
_BOUNDS = ('epsilon', 'unproven', 'account', 'headline', 'smallest_bound', 'promised')
# What was asked for is shown as it was typed; it is no bound.
_NO_BOUNDS = ('target_epsilon', 'accounting', '_accounted', 'accountant', 'LARGEST_EPSILON')


def _is_of_a_bound(node):
    """Whether an expression looks like an epsilon that is not text yet: by its names and keys."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == 'rounding.up':
        return False
    name = getattr(node, 'id', getattr(node, 'attr', ''))
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        name = str(node.slice.value)
    for left_out in _NO_BOUNDS:
        name = name.replace(left_out, '')
    if any(bound in name for bound in _BOUNDS):
        return True
    return any(map(_is_of_a_bound, ast.iter_child_nodes(node)))


def _roundings(source):
    """Lines that round what looks like an epsilon, by a call or by a format such as :.2f."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            spec = ''.join(
                part.value for part in node.format_spec.values if isinstance(part, ast.Constant)
            )
            # A width alone rounds nothing.
            if spec.strip('<>^ 0123456789') and _is_of_a_bound(node.value):
                found.append(node.lineno)
        if isinstance(node, ast.Call):
            name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
            if name in _ROUNDING_CALLS and any(map(_is_of_a_bound, node.args)):
                found.append(node.lineno)
        if isinstance(node, (ast.Attribute, ast.Name)):
            if getattr(node, 'attr', getattr(node, 'id', '')) in _ROUNDING_NAMES:
                found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    'source',
    [
        "f'{epsilon:.2f}'",
        'f\'ε = {statement["epsilon"]:.4g}\'',
        'math.ceil(100 * f.account) / 100',
        'round(found.headline, 2)',
        "f'{max(run.epsilon_unproven for run in runs):g}'",
        "'{:.2f}'.format(epsilon)",
        "_COLUMNS.format(f'{f.bound}', rounding.up(f.account), f.account)",
        'decimal.ROUND_CEILING',
    ],
)
def test_another_rounding_would_be_found(source):
    assert _roundings(source)


@pytest.mark.parametrize(
    'source',
    [
        "f'{rounding.up(epsilon):>12}'",
        "_COLUMNS.format(f.audit, rounding.up(f.account), 'account')",
        "f'{target_epsilon:g}'",
        'math.ceil(steps * (i + 1) / grid_points)',
        "f'{accounting.SMALLEST_NOISE:g}'",
    ],
)
def test_what_rounds_no_epsilon_is_left_alone(source):
    assert _roundings(source) == []


def test_nothing_else_rounds_an_epsilon():
    found = {
        path.relative_to(_PACKAGE).as_posix(): lines
        for path in sorted(_PACKAGE.rglob('*.py'))
        if path.name != 'rounding.py' and (lines := _roundings(path.read_text(encoding='utf-8')))
    }
    assert found == {}
