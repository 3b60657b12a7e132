"""What all code of the repository keeps to: the oldest Python of setup.py, tests that exist."""

import ast
import pathlib

import pytest

_REPO = pathlib.Path(__file__).resolve().parent.parent
_FILES = [
    _REPO / 'setup.py',
    *sorted(
        path
        for folder in ('tf_efsgd', 'tests', 'examples', 'docs')
        for path in (_REPO / folder).rglob('*.py')
    ),
]


def _newer_calls(source):
    """The lines of `zip(..., strict=...)`, which Python 3.9 does not have and ruff does not see."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [
        call.lineno
        for call in calls
        if getattr(call.func, 'id', None) == 'zip'
        and 'strict' in [keyword.arg for keyword in call.keywords]
    ]


def test_no_call_needs_a_newer_python():
    assert "python_requires='>=3.9," in (_REPO / 'setup.py').read_text('utf-8')
    assert len(_FILES) > 300  # Both the package and its tests.
    found = [
        f'{path.relative_to(_REPO)}:{line}'
        for path in _FILES
        for line in _newer_calls(path.read_text('utf-8'))
    ]
    assert not found, f'Python 3.9 has no zip(strict=); tests have helpers.pairs. Found: {found}'


@pytest.mark.parametrize('call', ['zip(a, b, strict=True)', 'list(zip(a, strict=x))'])
def test_a_planted_call_is_found(call):
    assert _newer_calls(f'import re\nfor x in {call}: pass') == [2]
    assert not _newer_calls('csv.reader(a, strict=True), zip(a, b)')


def test_tests_that_are_named_as_long_exist():
    tree = ast.parse((_REPO / 'tests/conftest.py').read_text('utf-8'))
    [long_tests] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'LONG_TESTS'
    ]
    assert len(long_tests) > 10
    for name, functions in long_tests.items():
        source = ast.parse((_REPO / 'tests' / name).read_text('utf-8'))
        found = {node.name for node in ast.walk(source) if isinstance(node, ast.FunctionDef)}
        assert set(functions) <= found, f'{name}: {set(functions) - found}'
