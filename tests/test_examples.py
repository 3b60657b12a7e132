"""Each program and notebook of examples/ runs, small, and ends in what it promises."""

import base64
import http.server
import importlib.util
import json
import math
import pathlib
import re
import sys
import threading

import numpy as np
import pytest
from helpers import tiny_export, tiny_run
from PIL import Image

import tf_efsgd

_EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / 'examples'
_TINY = {
    name.removeprefix('no'): (False if value is None else value)
    for name, value in tiny_run.SETTINGS.items()
    if name not in ('dataset', 'target_epsilon')
}
_TINY |= {'strategy': 'one_device', 'evaluate': False, 'expected_batch_size': 64}
_TINY |= {'warm_start_share': 0.3, 'warm_start_steps': 3}


def _load(name):
    spec = importlib.util.spec_from_file_location(f'examples_{name}', _EXAMPLES / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _start(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, arguments)])
    _load(name).main()


def _epsilon(printed):
    return float(re.search(r'^epsilon = ([\d.]+) at delta = ', printed, re.MULTILINE)[1])


def test_every_example_has_a_test():
    source = pathlib.Path(__file__).read_text('utf-8')
    names = [path.stem for path in _EXAMPLES.iterdir() if path.suffix in ('.py', '.ipynb')]
    assert len(names) >= 5
    assert [name for name in names if f"'{name}" not in source] == []


def test_private_classifier_ends_in_the_epsilon_of_its_steps(monkeypatch, capsys):
    _start(monkeypatch, 'private_classifier', '--steps=30', '--noise_multiplier=1.7')
    printed = capsys.readouterr().out
    model = _load('private_classifier')
    images, _, test_images, _ = model.load_digits()
    assert len(images) + len(test_images) == 1797
    optimizer = tf_efsgd.ErrorFeedbackDPKerasSGDOptimizer(
        l2_norm_clip=1.0, noise_multiplier=1.7, expected_batch_size=model.EXPECTED_BATCH_SIZE
    )
    expected = tf_efsgd.epsilon(
        optimizer,
        steps=30,
        dataset_size=len(images),
        target_delta=1e-4,
        variables=model.build_classifier().trainable_variables,
    )
    assert _epsilon(printed) == pytest.approx(expected, abs=0.05)
    assert float(re.search(r'right on ([\d.]+)%', printed)[1]) > 20  # Guessing: 10.


@pytest.mark.acceptance
def test_own_networks_save_a_generator_and_say_its_epsilon(monkeypatch, capsys, tmp_path):
    import tensorflow as tf

    generator, picture = tmp_path / 'generator.keras', tmp_path / 'digits.png'
    _start(
        monkeypatch,
        'own_networks',
        *('--fit_steps=30', '--private_steps=6', f'--output={generator}', f'--picture={picture}'),
    )
    # The warm start alone has spent 1.698; six steps add something.
    assert 1.698 < _epsilon(capsys.readouterr().out) < 2.0
    loaded = tf.keras.models.load_model(generator, compile=False)
    images = loaded(tf_efsgd.draw_inputs(loaded, tf.constant([3, 1])))
    assert images.shape == (2, 8, 8, 1)
    assert np.asarray(Image.open(picture)).shape == (80, 80)


def _write_folder(folder):
    draws = np.random.default_rng(7)
    for name, shade in (('dark', 0), ('bright', 150)):
        (folder / name).mkdir(parents=True)
        for number in range(350):
            pixels = draws.integers(0, 60, [8, 8]) + shade
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f'{number:03}.png')


@pytest.mark.acceptance
def test_own_images_become_a_data_set_and_a_generator(tmp_path):
    _write_folder(tmp_path / 'photos')
    synthesizer, made = _load('own_images').make_synthetic(
        str(tmp_path / 'photos'),
        str(tmp_path / 'synthetic'),
        20,
        target_epsilon=1,
        run_dir=tmp_path / 'run',
        state_dir=tmp_path / 'state',
        **_TINY,
    )
    assert made['count'] == 20 and len(list((tmp_path / 'synthetic').rglob('*.png'))) == 20
    assert (tmp_path / 'synthetic' / 'PRIVACY.html').is_file()
    assert 0 < synthesizer.epsilon <= 1
    loaded = tf_efsgd.Synthesizer.load(tmp_path / 'synthetic.generator')
    assert set(loaded.sample(9)[1]) <= {'dark', 'bright'}


def test_own_images_says_a_mistake_in_one_line(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        _start(monkeypatch, 'own_images', tmp_path / 'none', tmp_path / 'out')
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


class _Serving(http.server.BaseHTTPRequestHandler):
    """Answers as TF Serving does over REST: columns, base64, one output without its name."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        assert self.path == '/v1/models/generator:predict'
        outputs = self.server.ask(request['signature_name'], request['inputs'])
        if len(outputs) == 1:
            (outputs,) = outputs.values()
        body = json.dumps({'outputs': outputs}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope='module')
def export(tmp_path_factory):
    run = tiny_export.make(tmp_path_factory.mktemp('served') / 'run')
    return run / 'export' / '1' if (run / 'export').is_dir() else pathlib.Path(run)


def _asked(folder, printed):
    pictures = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    assert len(pictures) >= 2 and all(picture.shape == (8, 8) for picture in pictures)
    assert 'röd fisk: ' in printed and 'images of 8x8 pixels' in printed
    assert 'epsilon = ' in printed


def test_serve_and_ask_in_this_process(export, monkeypatch, capsys, tmp_path):
    _start(monkeypatch, 'serve_and_ask', export, f'--output={tmp_path / "asked"}')
    _asked(tmp_path / 'asked', capsys.readouterr().out)


def test_serve_and_ask_a_server(export, monkeypatch, capsys, tmp_path):
    with http.server.HTTPServer(('127.0.0.1', 0), _Serving) as server:
        server.ask = _load('serve_and_ask').in_process(export)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f'http://127.0.0.1:{server.server_address[1]}'
        _start(
            monkeypatch,
            'serve_and_ask',
            *(export, f'--server={address}', f'--output={tmp_path / "asked"}'),
        )
        server.shutdown()
        thread.join()
    _asked(tmp_path / 'asked', capsys.readouterr().out)


# The notebook.


def _text(output):
    return output.get('text', '') or output.get('data', {}).get('text/plain', '')


@pytest.mark.acceptance
def test_the_notebook_runs_and_its_bars_are_saved_as_they_ended(tmp_path, monkeypatch):
    import nbclient
    import nbformat

    notebook = nbformat.read(_EXAMPLES / 'quickstart.ipynb', as_version=4)
    (parameters,) = [
        cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', [])
    ]
    small = {'target_epsilon': 10, 'state_dir': str(tmp_path / 'state'), **_TINY}
    small |= {'limit_records': 700, 'image_size': 8}
    # The kernel imports the program from here, too.
    monkeypatch.setenv('PYTHONPATH', str(_EXAMPLES.parent))
    parameters.source = f'settings = {small!r}'
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={'metadata': {'path': str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    # A slow machine takes seconds for a step, and its bars say so.
    bars = [_text(output) for output in outputs if re.search(r'\d(step/s|s/step)', _text(output))]
    assert len(bars) >= 2  # The fit and the private steps.
    for bar in bars:
        assert '100%|██' in bar
        assert len(bar.splitlines()) == 1 and '\r' not in bar
    texts = '\n'.join(map(_text, outputs))
    assert 0 < float(re.search(r'epsilon = ([\d.]+) at', texts)[1]) <= 10
    pictures = [o for o in outputs if 'image/png' in o.get('data', {})]
    assert len(base64.b64decode(pictures[0]['data']['image/png'])) > 1000
    assert (tmp_path / 'synthetic' / 'labels.csv').is_file()
    assert math.isfinite(float(tf_efsgd.Synthesizer.load(tmp_path / 'generator').epsilon))


def test_the_notebook_is_committed_as_it_was_run():
    notebook = json.loads((_EXAMPLES / 'quickstart.ipynb').read_text('utf-8'))
    outputs = [o for cell in notebook['cells'] for o in cell.get('outputs', [])]
    assert any('image/png' in o.get('data', {}) for o in outputs)
    assert [o for o in outputs if o['output_type'] == 'error'] == []
    assert '/home/' not in json.dumps(outputs) and '/tmp/' not in json.dumps(outputs)


def test_who_the_classifier_is_tested_on_does_not_depend_on_the_others(monkeypatch):
    import sklearn.datasets

    example, whole = _load('private_classifier'), sklearn.datasets.load_digits()
    before = {image.tobytes() for image in example.load_digits()[2]}
    fewer = sklearn.utils.Bunch(images=whole.images[1:], target=whole.target[1:])
    monkeypatch.setattr(sklearn.datasets, 'load_digits', lambda: fewer)

    after = {image.tobytes() for image in example.load_digits()[2]}

    assert len(before - after) <= 1 and not after - before
    assert 0.05 < len(before) / len(whole.images) < 0.3
