"""Made-up records, and runs on them that are counted."""

import hashlib
import math

import numpy as np

from tf_efsgd.privacy import seen_records
from tf_efsgd.privacy.seen_records import IMAGE, PERSON, Promise

TEN = Promise(10.0, 1e-5, IMAGE)
NONE = Promise(math.inf, 0.0, IMAGE)
TO_A_PERSON = Promise(2.0, 1e-6, PERSON)


def digests_of(first, last):
    """Returns digests of the records with these numbers."""
    hashes = b''.join(hashlib.sha256(b'%d' % i).digest()[:16] for i in range(first, last))
    return np.frombuffer(hashes, '>u8').astype(np.uint64).reshape(-1, 2)


def start_run(folder, run_id, digests, promise=TEN, budget=None):
    return seen_records.count_run(folder, run_id, 'folder:faces', digests, promise, budget)


def counts_of(others):
    return [(use.run_id, use.count, use.is_exact) for use in others.uses]


def persons_of(count, rule=b'folder', public_rule='folder', shift=0, images=3):
    """Makes persons of whom each has so many records in a row."""
    codes = [(i + shift) // images for i in range(count)]
    names = np.array([[code, code + 7] for code in codes], np.uint64)
    return seen_records.Persons(rule, names, public_rule)


def start_run_of_persons(folder, run_id, persons, budget=None):
    digests = digests_of(0, len(persons.names))
    return seen_records.count_run(
        folder, run_id, 'folder:faces', digests, TO_A_PERSON, budget, persons
    )
