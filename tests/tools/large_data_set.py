"""Memory and time of a large data set, from the cache to the sampler; run by hand.

  python tests/tools/large_data_set.py FOLDER

It makes a cache of 200,000 random images of 64x64 in FOLDER, 2.5 GB, and reads it in another
process as a run does: opened and checked, split, hashed as by the fingerprint, sampled.
"""

import pathlib
import subprocess
import sys
import threading
import time

import numpy as np

from tf_efsgd.data import cache, load, parts, poisson, split
from tf_efsgd.privacy import run_state

_RECORDS, _SHAPE, _BATCH = 200_000, (64, 64, 3), 256


def _write(place):
    rng = np.random.default_rng(0)
    rows, step = cache.FileRows(place), 64
    digests = rng.integers(0, 2**64, (_RECORDS, 2), dtype=np.uint64)
    block = rng.integers(0, 256, (step, *_SHAPE), dtype=np.uint8)
    for start in range(0, _RECORDS, step):
        own = digests[start : start + step]
        rows.append((block + np.uint8(start % 251))[: len(own)], split.is_tested_on(own))
    images, order = rows.finish()
    labels = np.arange(_RECORDS, dtype=np.int32) % 4
    persons = np.full(_RECORDS, '', object)
    rows.commit(cache.Columns(images, labels, digests[order], persons))


def _resident():
    """VmRSS, and of it what is the process's own and what is of mapped files, in MB."""
    lines = pathlib.Path('/proc/self/status').read_text().splitlines()
    fields = dict(line.split(':', 1) for line in lines)
    return [int(fields[name].split()[0]) // 1024 for name in ('VmRSS', 'RssAnon', 'RssFile')]


def _read(place):
    most = [0, 0, 0]

    def watch():
        while True:
            most[:] = map(max, most, _resident())
            time.sleep(0.01)

    def say(what, started):
        print(f'{what:<12} {time.monotonic() - started:6.2f} s, most resident so far {most}')

    threading.Thread(target=watch, daemon=True).start()
    started = time.monotonic()
    columns = cache.read(place)
    part = parts.Part(columns.images, columns.labels, columns.digests, columns.persons)
    train, _ = load._split(parts.Source(part, None, tuple('abcd')), None, place.folder)
    say('read, split', started)
    started = time.monotonic()
    run_state._fingerprint(bytes(32), train.images, train.labels)
    say('fingerprint', started)
    threshold = 2**32 * _BATCH // len(train.labels)
    batches = iter(poisson.poisson_batches(train.images, train.labels, threshold))
    next(batches)
    started, used = time.monotonic(), time.process_time()
    for _ in range(200):
        next(batches)
    used = 1000 * (time.process_time() - used) / 200
    say('200 batches', started)
    print(f'a batch of about {_BATCH}: {used:.1f} ms of CPU')


if __name__ == '__main__':
    there = cache.Place.of(pathlib.Path(sys.argv[1]), 'large', 'random')
    if len(sys.argv) > 2:
        _read(there)
    else:
        _write(there)
        subprocess.run([sys.executable, __file__, sys.argv[1], 'read'], check=True)
