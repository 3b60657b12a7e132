"""Holds every import under tf_efsgd/ against the table of who may import whom."""

import ast
import pathlib

import pytest

_ROOT = pathlib.Path(__file__).resolve().parent.parent / 'tf_efsgd'

# What of the privacy room needs no TensorFlow: all that a budget is made of.
_ACCOUNT = ['privacy.accounting', 'privacy.grid', 'privacy.ledger', 'privacy.mechanism']

# Module -> what of ours it may import. 'data' stands for the package and all in it, 'data.records'
# for that module alone. Names are without the leading 'tf_efsgd.'; '' is tf_efsgd/__init__.py.
_MAY_IMPORT = {
    '': ['models', 'privacy', 'training', 'version'],
    'version': [],
    'files': [],
    'progress': [],
    'machine': [],
    'rounding': [],
    # Doors: a few lines each.
    'launch': ['cli.train'],
    'plan': ['cli.plan'],
    'evaluate': ['cli.evaluate'],
    'state': ['cli.state'],
    '__main__': ['cli.main'],
    'audit.__main__': ['cli.audit'],
    'benchmark.__main__': ['cli.bench'],
    'results.__main__': ['cli.results'],
    # One command a file; `main` loads the one that is asked for.
    'cli': [],
    'cli.arguments': ['config'],
    'cli.main': ['version'],
    'cli.train': ['cli.arguments', 'config', 'run'],
    'cli.plan': ['budget', 'cli.arguments', 'config', 'privacy.ledger'],
    'cli.evaluate': ['cli.arguments', 'config', 'evaluation.extractors', 'run'],
    'cli.audit': ['audit', 'cli.arguments', 'config', 'privacy.mechanism', 'rounding'],
    'cli.bench': ['benchmark', 'cli.arguments', 'config', 'machine'],
    'cli.results': ['cli.arguments', 'config', 'results'],
    'cli.state': [
        *('cli.arguments', 'config', 'privacy.run_state', 'privacy.seen_records'),
        'run.state_folder',
    ],
    'runner': [
        'budget',
        'config',
        'data',
        'files',
        'models',
        'privacy',
        'monitoring',
        'checkpoints',
        'evaluate',
        'evaluation',
        'export',
        'progress',
        'rounding',
        'run_folder',
        'version',
    ],
    'run_folder': ['config', 'data.records', 'privacy.run_state'],
    'config': ['config'],
    'config.fields': [],
    'config.classes': ['config.fields'],
    'config.flagfiles': ['config.fields'],
    'config.settings': ['config.classes', 'config.fields'],
    'config.flags': ['config.classes', 'config.fields', 'config.settings'],
    'config.resume': ['config.settings'],
    'budget': ['budget'],
    'budget.events': _ACCOUNT,
    'budget.epsilon': ['budget.events', *_ACCOUNT],
    'budget.plan': ['budget.epsilon', 'budget.events', 'config', 'rounding', *_ACCOUNT],
    'budget.statement': ['budget.epsilon', 'budget.events', 'config', *_ACCOUNT],
    'budget.forecast': ['budget.epsilon', 'budget.plan', 'config', *_ACCOUNT],
    'budget.text': ['budget', 'rounding', *_ACCOUNT],
    'budget.picture': ['budget.epsilon', 'budget.forecast', 'rounding'],
    'data': ['data'],
    'data.errors': [],
    'data.images': [],
    'data.persons': ['data.errors'],
    'data.split': [],
    'data.records': ['data.errors', 'data.persons', 'data.split'],
    'data.poisson': [],
    'models': ['models'],
    'models.layers': [],
    'models.generator': ['models.layers'],
    'models.classifier': [],
    'models.discriminator': ['models.layers'],
    'models.losses': [],
    'models.gan': ['privacy.optimizer'],
    'privacy': ['privacy'],
    'privacy.clipping': [],
    'privacy.layer_norms': [],
    'privacy.error_feedback': [],
    'privacy.grid': [],
    'privacy.mechanism': ['privacy.accounting', 'privacy.grid'],
    'privacy.noise': ['privacy.grid'],
    'privacy.private_step': [
        'privacy.clipping',
        'privacy.error_feedback',
        'privacy.mechanism',
        'privacy.noise',
    ],
    'privacy.drop_in': [],
    'privacy.independence': ['privacy.grid'],
    'privacy.optimizer': ['privacy'],
    'privacy.warm_start': ['privacy.grid', 'privacy.noise'],
    'privacy.learned_features': ['privacy.warm_start'],
    'privacy.accounting': [],
    'privacy.ledger': ['privacy.accounting'],
    'privacy.run_state': ['files'],
    'privacy.seen_records': ['files', 'rounding'],
    'monitoring': ['progress', 'rounding'],
    'checkpoints': ['files'],
    'evaluation': ['evaluation'],
    'evaluation.classifiers': ['data.records', 'evaluation'],
    'evaluation.distances': [],
    'evaluation.extractors': ['data.records', 'evaluation', 'files'],
    'evaluation.metrics_page': ['evaluation'],
    'evaluation.pages': ['files'],
    'evaluation.progress': ['progress'],
    'evaluation.protocol': ['data.records', 'evaluation'],
    'evaluation.report': ['data.records', 'evaluation', 'rounding'],
    'export': ['data.records', 'version'],
    'generate': ['data.records'],
    'audit': ['audit'],
    'audit.bounds': [],
    'audit.findings': ['audit', 'privacy', 'rounding'],
    'audit.class_sums': ['audit', 'privacy'],
    'audit.lattice': ['audit', 'models', 'privacy'],
    'audit.likelihood': ['privacy.grid', 'privacy.mechanism'],
    'audit.mechanism': ['audit', 'privacy', 'progress'],
    'audit.training': ['audit', 'data', 'models', 'privacy', 'progress', 'training'],
    'benchmark': [],
    'benchmark.measure': ['benchmark', 'progress'],
    'benchmark.memory': ['benchmark.steps', 'benchmark.variants'],
    'benchmark.picture': ['benchmark'],
    'benchmark.roofline': ['benchmark', 'models.discriminator', 'privacy.noise'],
    'benchmark.steps': ['benchmark', 'data.images', 'models', 'privacy.optimizer', 'training.gan'],
    'benchmark.text': ['benchmark', 'models.discriminator'],
    'benchmark.timing': [],
    'benchmark.variants': [],
    'run.log_filters': [],
    'run.state_folder': ['config', 'privacy.run_state', 'privacy.seen_records'],
    'results': ['results'],
    'results.grids': ['budget', 'config', 'privacy.mechanism'],
    'results.runs': ['config', 'files', 'results'],
    'results.tables': ['files', 'results', 'rounding'],
}

# Libraries that a module must do without: ε, the ledger, the planner and what waits for runs need
# no TensorFlow.
_TENSORFLOW = ['tensorflow', 'tensorflow_privacy', 'tensorflow_probability', 'keras']
_WITHOUT = dict.fromkeys(
    ['privacy.accounting', 'privacy.grid', 'privacy.ledger', 'privacy.mechanism']
    + ['privacy.run_state', 'privacy.seen_records', 'rounding']
    + [module for module in _MAY_IMPORT if module.split('.')[0] in ('budget', 'config', 'results')]
    + ['cli.arguments', 'cli.main', 'cli.plan', 'cli.results', 'cli.state'],
    _TENSORFLOW,
)


def _module_name(path):
    parts = path.relative_to(_ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


_FILES = {_module_name(path): path for path in sorted(_ROOT.rglob('*.py'))}
_MODULES = set(_MAY_IMPORT) | set(_FILES)


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
            if _is_within(name, _WITHOUT.get(module, [])):
                found.append(f'line {line}: tf_efsgd.{module} must do without {name}')
        elif ours != module and not (ours and _is_within(ours, _MAY_IMPORT[module])):
            allowed = ', '.join(_MAY_IMPORT[module]) or 'nothing of ours'
            found.append(f'line {line}: tf_efsgd.{module} may import {allowed}. Received: {name}')
    return found


def test_every_module_is_in_the_table():
    unknown = sorted(set(_FILES) - set(_MAY_IMPORT))
    assert not unknown, (
        f'tf_efsgd/ has modules that the table in {pathlib.Path(__file__).name} does not know: '
        f'{unknown}. Add each with what it may import, and keep to the architecture.'
    )


def test_only_doors_import_commands_and_nobody_imports_doors():
    allowed = {
        (module, name.split('.')[0])
        for module, names in _MAY_IMPORT.items()
        for name in names
        if module in _FILES and name.split('.')[0] in ('launch', 'plan', 'evaluate', 'state', 'cli')
    }
    doors = {'launch', 'plan', 'evaluate', 'state', '__main__'}
    doors |= {f'{room}.__main__' for room in ('audit', 'benchmark', 'results')}
    outside = {(module, name) for module, name in allowed if not module.startswith('cli.')}
    assert outside == {(door, 'cli') for door in doors}
    assert {name for module, name in allowed - outside} == {'cli'}


@pytest.mark.parametrize('module', [m for m in _FILES if m in _MAY_IMPORT])
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
        ('export', 'from tf_efsgd import privacy'),
        ('export', 'def f():\n    from tf_efsgd.privacy.accounting import epsilon'),
        ('export', 'import importlib\nimportlib.import_module("tf_efsgd.privacy")'),
        ('evaluation.report', 'import tf_efsgd.data.poisson'),
        ('generate', 'if x:\n    import tf_efsgd.models'),
        ('models.gan', 'from tf_efsgd.privacy.noise import draw'),
        ('models.gan', 'from tf_efsgd.privacy import optimizer, noise'),
        ('monitoring', 'from tf_efsgd.privacy import ledger'),
        ('checkpoints', 'from tf_efsgd.privacy import accounting'),
        ('config', 'from tf_efsgd import version'),
        ('audit', 'from tf_efsgd import runner'),
        ('results.runs', 'from tf_efsgd import launch'),
        ('results.tables', 'import tensorflow as tf'),
        ('runner', 'from tf_efsgd import launch'),
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
        ('privacy.optimizer', 'from tf_efsgd.privacy import clipping\nfrom . import noise'),
        ('models.gan', 'from tf_efsgd.privacy.optimizer import make_it'),
        ('models.generator', 'from tf_efsgd.models import layers'),
        ('evaluation.report', 'from tf_efsgd.data.records import Records\nfrom . import distances'),
        ('runner', 'from tf_efsgd.data.poisson import sample\nimport tf_efsgd.evaluation.report'),
    ],
)
def test_what_the_table_allows_is_not_found(module, source):
    assert find_violations(source, module) == []


def test_a_package_s_own_imports_are_read_from_its_own_folder():
    assert not find_violations('from .clipping import clip', 'privacy', is_package=True)
    assert find_violations('from ..models import gan', 'privacy', is_package=True)
    assert not find_violations('from .models import losses', '', is_package=True)
    assert find_violations('from .runner import run', '', is_package=True)
