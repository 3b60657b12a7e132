"""Asks an exported generator for images, as a client of TF Serving does.

  python examples/serve_and_ask.py RUN/export/1
  python examples/serve_and_ask.py RUN/export/1 --server=http://localhost:8501

With --server it sends the requests that `launch/tf_serving.sh RUN` answers. Without it, the
SavedModel is loaded into this process, which needs TensorFlow but not tf_efsgd.
"""

from __future__ import annotations

import argparse
import base64
import json
import pathlib
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

# (signature, inputs by name) -> outputs by name, all of them JSON values.
Ask = Callable[[str, dict[str, Any]], dict[str, Any]]


def over_rest(server: str) -> Ask:
    """Makes a function that asks the server at an address."""

    def ask(signature, inputs):
        body = json.dumps({'signature_name': signature, 'inputs': inputs}).encode()
        address = f'{server.rstrip("/")}/v1/models/generator:predict'
        with urllib.request.urlopen(address, body, timeout=60) as answer:
            outputs = json.load(answer)['outputs']
        # TF Serving leaves out the name of a single output.
        return outputs if isinstance(outputs, dict) else {_ONLY_OUTPUT[signature]: outputs}

    return ask


_ONLY_OUTPUT = {'class_names': 'names', 'serving_default': 'images', 'png': 'image_bytes'}


def in_process(export: pathlib.Path) -> Ask:
    """Asks a SavedModel that is loaded here."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(export))

    def ask(signature, inputs):
        function = loaded.signatures[signature]
        _, specs = function.structured_input_signature
        given = {name: tf.constant(inputs[name], spec.dtype) for name, spec in specs.items()}
        return {name: _as_json(name, value) for name, value in function(**given).items()}

    return ask


def _as_json(name: str, value: Any) -> list:
    """As TF Serving writes it: bytes are base64 where the name of the output ends in _bytes."""
    array = value.numpy()
    if array.dtype != object:
        return array.tolist()
    if name.endswith('_bytes'):
        return [{'b64': base64.b64encode(item).decode()} for item in array]
    return [item.decode() for item in array]


def save_one_of_each(ask: Ask, folder: pathlib.Path) -> list[pathlib.Path]:
    """Asks for the names of the classes and one PNG of each; returns the files."""
    names = ask('class_names', {})['names']
    pictures = ask('png', {'labels': list(range(len(names)))})['image_bytes']
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for label, picture in enumerate(pictures):
        files.append(folder / f'{label}.png')
        files[-1].write_bytes(base64.b64decode(picture['b64']))
        print(f'{names[label]}: {files[-1]}')
    return files


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('export', type=pathlib.Path, help='a version of an export, RUN/export/1')
    parser.add_argument('--server', help='e.g. http://localhost:8501; without it: in this process')
    parser.add_argument('--output', type=pathlib.Path, default=pathlib.Path('asked'))
    given = parser.parse_args()
    statement = given.export / 'assets.extra' / 'privacy_statement.json'
    if not statement.is_file():
        parser.error(
            f'give one version of an export, such as RUN/export/1: there is no {statement}'
        )
    statement = json.loads(statement.read_text())
    ask = over_rest(given.server) if given.server else in_process(given.export)
    try:
        save_one_of_each(ask, given.output)
    except urllib.error.URLError as error:
        parser.error(f'{given.server} does not answer ({error.reason}): launch/tf_serving.sh RUN')
    images = ask('serving_default', {'labels': [0, 0]})['images']
    print(f'images of {len(images[0])}x{len(images[0][0])} pixels, in [0, 1]')
    print(f'epsilon = {statement["epsilon"]} at delta = {statement["delta"]}')


if __name__ == '__main__':
    main()
