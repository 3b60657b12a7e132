"""The commands and snippets of docs/: each is one that exists."""

import ast
import importlib
import pathlib
import re
import shlex

import pytest
from absl import flags

from tf_efsgd.cli import arguments, generate, verify
from tf_efsgd.cli import main as console

_REPO = pathlib.Path(__file__).resolve().parents[1]
_PAGES = ['docs/sharing.md', 'docs/serving.md']
_ALL = ['README.md', *sorted(f'docs/{path.name}' for path in (_REPO / 'docs').glob('*.md'))]
# What an earlier version was called with, as it was written down then.
_DIARIES = ['docs/experiments.md', 'docs/reviews.md']
_MODULES = {'launch': 'train', 'benchmark': 'bench'}


def _blocks(page, language):
    text = (_REPO / page).read_text('utf-8')
    found = re.findall(r'^```(\w*)\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    return [block for kind, block in found if kind == language]


def _commands(page):
    """All commands of a page: lines of its blocks, and what stands between backticks."""
    text = (_REPO / page).read_text('utf-8')
    lines = [line for block in _blocks(page, '') for line in block.splitlines()]
    lines += re.findall(r'`((?:tf-efsgd|python -m tf_efsgd\.\w+) [^`]*|launch/[^`]*)`', text)
    return [line for line in lines if line.strip()]


def _of(program):
    return [(page, line) for page in _PAGES for line in _commands(page) if line.startswith(program)]


def _of_ours():
    """Every call of a command on every page, as (page, line, command, arguments)."""
    for page in _ALL:
        if page in _DIARIES:
            continue
        for line in _commands(page):
            if not line.startswith(('tf-efsgd ', 'python -m tf_efsgd.')):
                continue
            words = shlex.split(line.split(' #')[0].replace('...', 'x').rstrip('\\'))
            if words[0] == 'tf-efsgd':
                yield page, line, words[1], words[2:]
            elif words[:2] == ['python', '-m'] and words[2].startswith('tf_efsgd.'):
                name = words[2].split('.')[1]
                yield page, line, _MODULES.get(name, name), words[3:]


@pytest.mark.parametrize(('page', 'line', 'name', 'rest'), list(_of_ours()))
def test_every_command_takes_its_flags(page, line, name, rest):
    if name in ('COMMAND', '--version'):
        return
    assert name in console.COMMANDS, f'{page}: {line}'
    command = importlib.import_module(f'tf_efsgd.cli.{name}')
    started = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arguments, 'start', lambda *args, **how: started.update(how, args=args))
        command.main()
    values = flags.FlagValues()
    started['args'][1](values)
    values.set_gnu_getopt(True)
    files = [word for word in rest if word.startswith('--flagfile=')]
    for word in files:
        given = word.partition('=')[2]
        assert 'RUN' in given or (_REPO / 'configs' / given).is_file(), f'{page}: {line}'
    unnamed = values(['tf-efsgd', *(word for word in rest if word not in files)])[1:]
    assert len(unnamed) <= (1 if started.get('positional') else 0), f'{page}: {line}'


def test_the_commands_are_found():
    assert len(_of('tf-efsgd ')) >= 12 and len(_of('launch/')) >= 2
    assert len([page for page, *_ in _of_ours() if page == 'README.md']) >= 6
    assert len(_of('curl ')) == 3


@pytest.mark.parametrize('page', _PAGES)
def test_no_line_of_a_block_is_of_another_kind(page):
    known = ('tf-efsgd ', 'launch/', 'curl ')
    assert [line for line in _commands(page) if not line.startswith(known)] == []


@pytest.mark.parametrize(('page', 'line'), _of('launch/'))
def test_every_script_is_there(page, line):
    assert (_REPO / shlex.split(line)[0]).is_file()


@pytest.mark.parametrize(('page', 'line'), _of('curl '))
def test_every_request_is_of_a_signature(page, line):
    import json

    program, address, option, body = shlex.split(line)
    assert (program, option) == ('curl', '-d')
    assert address == 'http://localhost:8501/v1/models/generator:predict'
    request = json.loads(body)
    source = (_REPO / 'tf_efsgd' / 'export' / 'saved_model.py').read_text('utf-8')
    assert f'def {request["signature_name"]}(' in source
    for name in request['inputs']:
        assert f"name='{name}'" in source


@pytest.mark.parametrize(
    'snippet', [block for page in _ALL for block in _blocks(page, 'python')], ids=len
)
def test_every_snippet_is_python(snippet):
    ast.parse(snippet)


def test_flags_that_the_tables_name_exist():
    values = flags.FlagValues()
    generate.define_flags(values)
    text = (_REPO / 'docs' / 'sharing.md').read_text('utf-8')
    named = set(re.findall(r'`--(\w+)', text))
    assert {'format', 'balance', 'seed', 'json', 'quiet'} <= named <= set(values)
    values = flags.FlagValues()
    assert 'path' in verify.define_flags(values)
