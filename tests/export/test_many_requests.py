"""An exported model answers many requests at once, in a process of plain TensorFlow."""

import json
import subprocess
import sys

import pytest
from helpers import tiny_export

# Run by `python -I` in an empty folder. The first requests trace functions and fill TensorFlow's
# pools; what the later ones add is growth.
_CLIENT = """
import concurrent.futures, json, sys
import tensorflow as tf

model = tf.saved_model.load(sys.argv[1])
serve = model.signatures["serving_default"]

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

def request(number):
    labels = tf.constant([number % 3] * (1 + number % 5), tf.int32)
    images = serve(labels=labels)["images"].numpy()
    return images.shape == (len(labels), 8, 8, 1) and int(images.max()) <= 255

with concurrent.futures.ThreadPoolExecutor(8) as pool:
    answered = sum(pool.map(request, range(1000)))
    before = resident()
    answered += sum(pool.map(request, range(1000)))
    print(json.dumps({"answered": answered, "grown": resident() - before}))
"""


@pytest.mark.acceptance
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='memory is read from /proc')
def test_requests_of_eight_threads_leave_nothing_in_memory(tmp_path):
    export = tiny_export.make(tmp_path / 'run')
    process = subprocess.run(
        [sys.executable, '-I', '-c', _CLIENT, str(export)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    said = json.loads(process.stdout)
    assert said['answered'] == 2000, process.stderr
    # A request that kept its images and inputs would keep some kilobytes.
    assert said['grown'] < 4, f'{said["grown"]} MiB'
