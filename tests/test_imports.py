"""Holds every import under tf_efsgd/ against the table of who may import whom."""

import ast
import pathlib

import pytest

_ROOT = pathlib.Path(__file__).resolve().parent.parent / 'tf_efsgd'

# What of the privacy room needs no TensorFlow: all that a budget is made of.
_ACCOUNT = ['privacy.accounting', 'privacy.grid', 'privacy.ledger', 'privacy.mechanism']
_ACCOUNT += ['privacy.plan']

# Of these everybody may import, and they import nothing of ours, but for each other's doors below.
_EVERYBODYS = [
    'file_names',
    'files',
    'machine',
    'progress',
    'replicas',
    'rounding',
    'terminal',
    'version',
]

# Room -> what of ours its files may import beside their own room: the table of the architecture.
# Names are without the leading 'tf_efsgd.'; '' is tf_efsgd/__init__.py.
_ROOMS = {
    '': [
        *('models', 'privacy', 'training', 'data', 'budget', 'config', 'synthesizer'),
        'run.errors',
        'python_312',
    ],
    'python_312': [],
    'synthesizer': ['run', 'export', 'config'],
    **dict.fromkeys(_EVERYBODYS, []),
    'cli': [
        'run',
        'budget',
        'audit',
        'benchmark',
        'results',
        'data',
        'export',
        'config',
        'evaluation',
        'privacy',
    ],
    'audit': ['training', 'privacy', 'models', 'data'],
    'benchmark': ['training', 'privacy', 'models', 'data'],
    'results': ['config', 'budget'],
    'run': [
        'training',
        'export',
        'evaluation',
        'reporting',
        'budget',
        'privacy',
        'models',
        'data',
        'config',
    ],
    'training': ['privacy', 'models', 'data.images'],
    'export': ['data.images'],
    'evaluation': ['models', 'data'],
    'reporting': [],
    # Without TensorFlow, see below.
    'budget': ['config', 'privacy'],
    'privacy': [],
    'models': ['data.images'],
    'data': [],
    'config': [],
}

# One concept a file, which imports nothing of its own room but these.
_PRIMITIVES = {
    'privacy.accounting': ['privacy.accounting'],
    'privacy.clipping': [],
    'privacy.drop_in': [],
    'privacy.error_feedback': [],
    'privacy.grid': [],
    'privacy.independence': ['privacy.grid', 'privacy.loss_graph', 'privacy.random_weights'],
    'privacy.layer_norms': ['privacy.layer_norms'],
    'privacy.ledger': ['privacy.plan'],
    'privacy.loss_graph': [],
    'privacy.mechanism': ['privacy.accounting', 'privacy.grid'],
    'privacy.noise': ['privacy.grid'],
    'privacy.payments': ['privacy.ledger', 'privacy.ledger_copy', 'privacy.run_state'],
    'privacy.plan': ['privacy.accounting'],
    'privacy.random_weights': [],
    'privacy.run_state': [],
    'privacy.seen_records': ['privacy.seen_records'],
    'data.images': [],
    'data.poisson': ['data.records'],
    'data.split': [],
}

# `python -m tf_efsgd.NAME`: a few lines each. They alone import commands.
_DOORS = ['__main__', 'audit.__main__', 'benchmark.__main__', 'evaluate', 'launch', 'plan']
_DOORS += ['results.__main__', 'state']

# Libraries that a module must do without: ε, the ledger, the planner and what waits for runs need
# no TensorFlow.
_TENSORFLOW = ['tensorflow', 'tensorflow_privacy', 'tensorflow_probability', 'keras']
_WITHOUT = dict.fromkeys(
    _ACCOUNT
    + [
        'privacy.payments',
        'privacy.run_state',
        'privacy.seen_records',
        'budget',
        'config',
        'reporting',
        'rounding',
    ]
    + ['results', 'cli.main', 'cli.plan', 'cli.arguments', 'cli.state', 'run.state_folder']
    + ['cli.check', 'cli.cache', 'data.pictures', 'data.dicom', 'data.listing', 'data.survey']
    + ['data.cache', 'data.records']
    + ['cli.helps', 'cli.verify', 'run.verify', 'export.checksums', 'export.names']
    + ['export.versions'],
    _TENSORFLOW,
)


def _room(module):
    """The longest name in the table that a module is within."""
    parts = module.split('.')
    while parts and '.'.join(parts) not in _ROOMS:
        parts.pop()
    return '.'.join(parts)


def _may_import(module):
    if module in _DOORS:
        return ['cli']
    if module in _EVERYBODYS:
        return []
    for name, allowed in _PRIMITIVES.items():
        if _is_within(module, [name]):
            return [*allowed, *_EVERYBODYS]
    room = _room(module)
    own = room.split('.')[0]
    return [own, *_ROOMS[room], *_EVERYBODYS] if own else [*_ROOMS[''], *_EVERYBODYS]


def _module_name(path):
    parts = path.relative_to(_ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


_FILES = {_module_name(path): path for path in sorted(_ROOT.rglob('*.py'))}
_MODULES = set(_FILES) | set(_ROOMS)


def _imported_names(source, module, is_package):
    """Yields (line, dotted name) of all imports, also those inside functions."""
    package = ['tf_efsgd', *filter(None, module.split('.'))]
    if not is_package:
        package = package[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = '.'.join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, base if alias.name == '*' else f'{base}.{alias.name}'
        elif isinstance(node, ast.Call) and node.args:
            # importlib.import_module('tf_efsgd.x') and __import__('tf_efsgd.x').
            called = getattr(node.func, 'attr', getattr(node.func, 'id', None))
            name = getattr(node.args[0], 'value', None)
            if called in ('import_module', '__import__') and isinstance(name, str):
                yield node.lineno, '.'.join(package[:1] + [name[1:]]) if name[:1] == '.' else name


def _our_module(name):
    """The longest prefix of a dotted name that is a module of ours, None for a library's."""
    first, *rest = name.split('.')
    if first != 'tf_efsgd':
        return None
    while rest and '.'.join(rest) not in _MODULES:
        rest.pop()
    return '.'.join(rest)


def _is_within(module, parents):
    return any(module == parent or module.startswith(parent + '.') for parent in parents)


def find_violations(source, module, is_package=False):
    """What in the source of a module breaks the table, as lines for a person."""
    found = []
    for line, name in _imported_names(source, module, is_package):
        ours = _our_module(name)
        if ours is None:
            libraries = [
                lib for room, libs in _WITHOUT.items() if _is_within(module, [room]) for lib in libs
            ]
            if _is_within(name, libraries):
                found.append(f'line {line}: tf_efsgd.{module} must do without {name}')
        elif ours != module and not (ours and _is_within(ours, _may_import(module))):
            allowed = ', '.join(_may_import(module)) or 'nothing of ours'
            found.append(f'line {line}: tf_efsgd.{module} may import {allowed}. Received: {name}')
    return found


def test_every_file_is_in_a_room():
    unknown = sorted(m for m in _FILES if m and m not in _DOORS and _room(m) == '')
    assert not unknown, (
        f'tf_efsgd/ has modules that the table in {pathlib.Path(__file__).name} has no room for: '
        f'{unknown}. Put each into one, and keep to the architecture.'
    )


def test_the_table_names_what_there_is():
    named = {*_ROOMS, *_PRIMITIVES, *_DOORS, *_WITHOUT}
    named |= {name for names in (*_ROOMS.values(), *_PRIMITIVES.values()) for name in names}
    assert sorted(named - set(_FILES)) == []


def test_doors_are_short():
    for module in _DOORS:
        assert len(_FILES[module].read_text('utf-8').splitlines()) < 10, module


@pytest.mark.parametrize('module', list(_FILES))
def test_imports_keep_to_the_table(module):
    path = _FILES[module]
    found = find_violations(path.read_text('utf-8'), module, path.name == '__init__.py')
    assert not found, '\n'.join([str(path), *found])


def test_every_progress_bar_is_ours():
    users = [
        module
        for module, path in _FILES.items()
        for _, name in _imported_names(path.read_text('utf-8'), module, False)
        if _is_within(name, ['tqdm'])
    ]
    assert users == ['progress'], 'tqdm itself floods log files; use tf_efsgd.progress.Bar.'


@pytest.mark.parametrize(
    ('module', 'source'),
    [
        ('privacy.noise', 'import tf_efsgd.config'),
        ('privacy.noise', 'from tf_efsgd.privacy import clipping'),
        ('privacy.noise', 'from . import clipping'),
        ('privacy.noise', 'from .clipping import clip'),
        ('privacy.noise', 'from .. import config'),
        ('privacy.noise', 'import tf_efsgd'),
        ('privacy.noise', 'from tf_efsgd import *'),
        ('privacy.accounting', 'import numpy, tensorflow as tf'),
        ('privacy.accounting', 'from tensorflow.keras import layers'),
        ('privacy.ledger', 'from tensorflow_privacy import x'),
        ('export.saved_model', 'from tf_efsgd import privacy'),
        ('export.saved_model', 'def f():\n    from tf_efsgd.privacy.accounting import epsilon'),
        ('export.saved_model', 'import importlib\nimportlib.import_module("tf_efsgd.privacy")'),
        ('reporting.report', 'import tf_efsgd.data.records'),
        ('data.images', 'if x:\n    import tf_efsgd.models'),
        ('models.layers', 'from tf_efsgd.privacy.noise import draw'),
        ('training.gan', 'from tf_efsgd.run import context'),
        ('run.runner', 'from tf_efsgd.cli import train'),
        ('config.settings', 'from tf_efsgd import budget'),
        ('budget.plan', 'from tf_efsgd.run import folder'),
        ('budget.text', 'import tensorflow as tf'),
        ('audit.lattice', 'from tf_efsgd.run import runner'),
        ('results.runs', 'from tf_efsgd import launch'),
        ('results.tables', 'import tensorflow as tf'),
        ('launch', 'from tf_efsgd import run'),
    ],
)
def test_a_planted_violation_is_found(module, source):
    assert len(find_violations(source, module)) == 1


@pytest.mark.parametrize(
    ('module', 'source'),
    [
        ('cli.train', 'from absl import app\nfrom tf_efsgd import config, run'),
        ('privacy.noise', 'import tensorflow as tf'),
        ('privacy.accounting', 'import dp_accounting\nimport tensorflowjs_is_another_library'),
        ('privacy.private_step', 'from tf_efsgd.privacy import clipping\nfrom . import noise'),
        ('training.gan', 'from tf_efsgd.privacy.optimizer import make_it'),
        ('models.generator', 'from tf_efsgd.models import layers'),
        ('evaluation.protocol', 'from tf_efsgd.data.records import Records\nfrom . import looks'),
        ('run.runner', 'from tf_efsgd.data.poisson import sample\nimport tf_efsgd.budget'),
    ],
)
def test_what_the_table_allows_is_not_found(module, source):
    assert find_violations(source, module) == []


def test_a_package_s_own_imports_are_read_from_its_own_folder():
    assert not find_violations('from .clipping import clip', 'privacy', is_package=True)
    assert find_violations('from ..models import layers', 'privacy', is_package=True)
    assert not find_violations('from .models import losses', '', is_package=True)
    assert find_violations('from .run import runner', '', is_package=True)
