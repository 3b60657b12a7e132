"""The Python of README and docs/, run as it stands there.

Trainings of half an hour get a tiny recipe, and sixty images are saved instead of sixty thousand.
What asks a TF Serving is read alone (`test_docs.py`): there is none here.
"""

import ast
import functools
import pathlib
import re

import numpy as np
import pytest
from helpers import tiny_export
from PIL import Image

import tf_efsgd

_REPO = pathlib.Path(__file__).resolve().parents[1]
_PAGES = [_REPO / 'README.md', *sorted((_REPO / 'docs').glob('*.md'))]
_NEEDS_A_SERVER = 'import grpc'
_TINY = {
    # Strategies of one process share collective keys, and tests have one of their own.
    'strategy': 'one_device',
    'image_size': 8,
    'expected_batch_size': 16,
    'train_steps': 1,
    'warm_start_share': 0.3,
    'warm_start_steps': 2,
    'discriminator': 'pixels',
    'public_features': 'none',
    'generator_width': 16,
    'discriminator_width': 8,
    'evaluate': False,
}


def _snippets():
    """Each snippet once; two that differ in comments are the same."""
    seen = set()
    for page in _PAGES:
        found = re.findall(r'^```python\n(.*?)^```', page.read_text('utf-8'), re.DOTALL | re.M)
        for number, snippet in enumerate(found):
            code = ast.unparse(ast.parse(snippet))
            if _NEEDS_A_SERVER not in code and code not in seen:
                seen.add(code)
                yield pytest.param(snippet, id=f'{page.name}-{number}')


def _draw(count=48):
    """Images of two shades, with the labels 0 and 1."""
    labels = np.arange(count) % 2
    noise = np.random.default_rng(3).integers(0, 60, [count, 8, 8])
    return (noise + 150 * labels[:, None, None]).astype(np.uint8), labels


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder: photos/, and a finished run RUN."""
    images, labels = _draw()
    for index, (image, label) in enumerate(zip(images, labels)):
        place = tmp_path / 'photos' / ('dark', 'light')[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f'{index}.png')
    tiny_export.make(tmp_path / 'RUN')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_snippets_are_found():
    assert len(list(_snippets())) >= 6


@pytest.mark.parametrize('snippet', list(_snippets()))
def test_every_snippet_runs(snippet, folder, monkeypatch, capsys):
    tiny = functools.partial(tf_efsgd.Synthesizer, state_dir=folder / 'state', **_TINY)
    tiny.load = tf_efsgd.Synthesizer.load
    monkeypatch.setattr(tf_efsgd, 'Synthesizer', tiny)
    images, labels = _draw()
    known = {'images': images, 'labels': labels}
    exec(compile(snippet.replace('60000', '60'), 'snippet', 'exec'), known)  # noqa: S102
    if 'synthesizer.sample(1000)' in snippet:
        name = 'new_images' if 'new_images' in known else 'images'
        assert known[name].shape[:3] == (1000, 8, 8) and known[name].dtype == np.uint8
        assert len(known[name.replace('images', 'labels')]) == 1000
    if "save_images('synthetic'" in snippet:
        assert len(list((folder / 'synthetic').rglob('*.png'))) >= 60
        assert (folder / 'generator').is_dir()
    if "print('epsilon =" in snippet:
        assert re.search(r'epsilon = \d+\.\d+', capsys.readouterr().out)
    if 'saved_model.load' in snippet:
        assert known['images'].shape[0] == 3
