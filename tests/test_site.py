"""The site of docs/: it builds without a warning, and names what exists."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

_REPO = pathlib.Path(__file__).resolve().parents[1]
_DOCS = _REPO / 'docs'
_PAGES = sorted(path.name for path in _DOCS.glob('*.md'))


def _navigation():
    """The pages that mkdocs.yml names, in order."""
    text = (_REPO / 'mkdocs.yml').read_text('utf-8')
    return re.findall(r'- [^\n:]+: (\w+\.md)$', text.partition('\nnav:\n')[2], re.MULTILINE)


def test_the_navigation_has_pages_that_exist_each_once():
    named = _navigation()
    assert len(named) >= 18 and len(set(named)) == len(named)
    assert set(named) - set(_PAGES) == set()


def test_a_page_that_nobody_named_comes_last(tmp_path):
    spec = importlib.util.spec_from_file_location('navigation', _DOCS / 'navigation.py')
    navigation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(navigation)
    for name in ('a.md', 'b.md', 'c.md', 'd.txt'):
        (tmp_path / name).write_text('')
    nav = [{'Home': 'b.md'}, {'Part': [{'One': 'a.md'}]}]
    made = navigation.on_config({'docs_dir': str(tmp_path), 'nav': [*nav]})
    assert made['nav'] == [*nav, {'More': ['c.md']}]
    (tmp_path / 'c.md').unlink()
    made = navigation.on_config({'docs_dir': str(tmp_path), 'nav': [*nav]})
    assert made['nav'] == nav


@pytest.mark.parametrize('page', ['reviewers_route.md', 'architecture.md'])
def test_every_file_that_a_page_sends_a_reviewer_to_exists(page):
    text = (_DOCS / page).read_text('utf-8')
    named = re.findall(r'`([\w/]+(?:\.py|/))`', text)
    assert len(named) > 15
    rooms = [_REPO / 'tf_efsgd', _REPO / 'tests']
    places = [*rooms, *(path for room in rooms for path in room.rglob('*'))]
    existing = [f'/{path.as_posix()}{"/" * path.is_dir()}' for path in places]
    missing = [name for name in named if not any(path.endswith(f'/{name}') for path in existing)]
    assert missing == []


def test_the_api_page_has_every_public_name():
    import tf_efsgd

    text = (_DOCS / 'api.md').read_text('utf-8')
    described = {name.rpartition('.')[2] for name in re.findall(r'^::: (\S+)', text, re.MULTILINE)}
    described |= set(re.findall(r'`(\w+)`', text)) | {'__version__'}
    assert set(tf_efsgd.__all__) - described == set()
    for name in re.findall(r'^::: (\S+)', text, re.MULTILINE):
        module, _, attribute = name.rpartition('.')
        assert hasattr(__import__(module, fromlist=[attribute]), attribute), name


@pytest.mark.acceptance
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip('mkdocs')
    # What the pages need must be in the repository, and TensorFlow is not imported.
    blocked = tmp_path / 'blocked'
    (blocked / 'tensorflow').mkdir(parents=True)
    (blocked / 'tensorflow' / '__init__.py').write_text('raise ImportError("not for docs")')
    built = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', tmp_path / 'site'],
        cwd=_REPO,
        env={**os.environ, 'NO_MKDOCS_2_WARNING': '1', 'PYTHONPATH': str(blocked)},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert 'WARNING' not in built.stderr
    pages = {path.name for path in (tmp_path / 'site').glob('*.html')}
    assert {name.replace('.md', '.html') for name in _PAGES} <= pages
    api = (tmp_path / 'site' / 'api.html').read_text('utf-8')
    # Docstrings are there, and nothing in angle brackets was taken for HTML.
    assert 'Learns from images under differential privacy' in api
    assert 'runs/&lt;data set&gt;-&lt;time&gt;' in api
