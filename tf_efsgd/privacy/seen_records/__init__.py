"""Which runs used the same records, and what they may spend together.

The state folder keeps one key for all runs, and a sketch of the records of each run. The hash of a
record is HMAC-SHA256 of its digest under that key. Of the hashes of a run the 10,000 smallest are
kept, with the threshold below which none is missing. They are a sample of the records that nobody
can choose without the key, and that picks the same records in every run (a bottom-k or theta
sketch: Cohen and Kaplan 2007, Dasgupta et al. 2016). A run that starts has all its records at hand.
How many of them another run used is counted in that run's sample and divided by the share that was
kept; the sizes of the two data sets play no part.

How much this finds depends on r, the share kept of the OTHER run's records, min(1, 10,000 /
records):
  - With up to 10,000 records there, r is 1: every common record is found and the number is exact.
    (One of 60,000 records here is mistaken for another with probability 10⁻⁸.)
  - With more, m common records are missed with probability (1 - r)^m, and their number has the
    standard deviation √(m (1 - r) / r). For 60,000 records, r = 1/6: 1 % of them, 600, is always
    found (missed with probability 10⁻⁴⁷) and shown as 600 ± 55; 40 are missed once in 1,500 times,
    10 once in 6 times, a single one 5 times in 6. For 200,000 records, r = 1/20: 1 % is missed once
    in 10⁴⁴ times, 100 records once in 170 times.
  - Whatever the sizes, nothing is counted that is not there.
A plain MinHash of both sets would give their Jaccard index, which says little when one set is much
smaller; a Bloom filter of the same size would take some 600 of 60,000 new records for seen ones. A
picture is recognised by its pixels, also at another --image_size, under another label and among
other records, but not if it was stored with other pixels. A person is not recognised by other
pictures.

Formal guarantees:
  - Together, runs on the same records have the sums of their ε and of their δ: a later run was
    chosen after the earlier one was seen, and basic composition holds for choices made on the way
    when a total is fixed first (`budget`). Any overlap counts as if it were all records.
  - A run counts with all that it MAY spend, already before its first charge: it is counted when it
    looks others up, under one lock, so two runs that start together see each other.
  - A sum is never below the exact one, and the sum that is shown never below its first 15 digits.
  - For persons nothing is proven together, unless both runs tell persons apart by the same rule and
    table (compared under the key) and give every record that they are seen to share to the same
    person: one person in one run may be several in the other.
  - What the public statement says of other runs is a function of public facts alone: which runs are
    remembered, the names of their data sets, what they may spend, the texts of their rules of
    persons. It is the same whatever the comparison of records found, so somebody who can start runs
    with a guessed record beside another run learns nothing from it. What was found stands on the
    terminal and in RUN/nonprivate/ (`OtherRuns.to_nonprivate`), which ε does not cover; nor does it
    cover whether a run with a --dataset_budget was refused. Whoever sees these can test a guess of
    a record.
  - What cannot be read counts as not known, even if it belongs to the run itself: a damaged sketch
    is kept aside, and every start says so until it is removed.
  - Sketches and key are outside run folders, mode 0600. Whoever has both can test a guess of a
    record.
"""

from tf_efsgd.privacy.seen_records.comparison import Persons, count_run
from tf_efsgd.privacy.seen_records.memory import DAMAGED, KEY, LOCK, SUFFIX, Memory, forget, locked
from tf_efsgd.privacy.seen_records.other_runs import (
    NOT_COVERED_COMPARED,
    NOT_COVERED_NOT_COMPARED,
    OtherRuns,
    Remembered,
    SeenRecordsError,
    Use,
)
from tf_efsgd.privacy.seen_records.promises import IMAGE, PERSON, Promise
from tf_efsgd.privacy.seen_records.sketch import Sketch

__all__ = [
    'DAMAGED',
    'IMAGE',
    'KEY',
    'LOCK',
    'NOT_COVERED_COMPARED',
    'NOT_COVERED_NOT_COMPARED',
    'PERSON',
    'SUFFIX',
    'Memory',
    'OtherRuns',
    'Persons',
    'Promise',
    'Remembered',
    'SeenRecordsError',
    'Sketch',
    'Use',
    'count_run',
    'forget',
    'locked',
]
