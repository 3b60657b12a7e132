"""Releases are made in memory, paid for and then written, wherever a power cut ends a start.

Nothing is trained here: the features are the means of an image's columns. `tests/run/` has the same
with whole runs.
"""

import json

import numpy as np
import pytest
from helpers import starts, tiny_run
from helpers.pairs import pairs
from helpers.small_images import CLASSES

from tf_efsgd import files
from tf_efsgd.privacy import class_sums, grid, releases
from tf_efsgd.privacy.features import learned
from tf_efsgd.privacy.ledger import LedgerError

# What happens in a release, in this order; a power cut can come behind each.
_FREE = ['the noise has a key', 'the sums are made', 'position 1', 'there is a file', 'to be paid']
_LOST = ['paid', 'position 2', 'to be named']
_KEPT = ['named']


@pytest.fixture(scope='module')
def features():
    return starts.Columns()


def _ready_for(which, base, features, **plan):
    """The kinds of the entries of a run whose next release is this one."""
    with starts.Start(base, **plan) as start:
        if which == 'second':
            start.make('first', features)
    return tiny_run.kinds(base / 'run')


def _cut(which, base, features, behind):
    with pytest.raises(tiny_run.PowerCut), starts.Start(base, cut_behind=behind) as start:
        start.make(which, features)
    assert start.happened[-1] == behind
    return start


def _arrays(which, found):
    """All numbers of a release."""
    if which == 'first':
        return [found]
    return [found.sums, np.asarray(found.distances), *found.classifier, *found.generator]


def _sha256_in_ledger(folder):
    return json.loads((folder / 'ledger.jsonl').read_text().splitlines()[-1])['sha256']


@pytest.fixture(params=list(starts.NAMES))
def which(request):
    return request.param


class _WritesFirst(releases.Releases):
    """Planted: it writes the release and then pays for it."""

    def _pay_and_write(self, path, content, charge, version):
        files.write_atomically(path, content)
        charge(releases._sha256(content), version)
        self._state.store_position(self._ledger.position)


def test_it_is_made_then_paid_for_then_written(which, tmp_path, features):
    _ready_for(which, tmp_path, features)
    with starts.Start(tmp_path) as start:
        start.make(which, features)
    assert start.happened == _FREE + _LOST + _KEPT
    assert tiny_run.kinds(tmp_path / 'run') == starts.KINDS[which]
    content = (tmp_path / 'run' / starts.NAMES[which]).read_bytes()
    assert _sha256_in_ledger(tmp_path / 'run') == releases._sha256(content)
    with starts.Start(tmp_path) as again:  # The state remembers the ledger with its last entry.
        assert again.state.position == again.ledger.position
    # The same notes show a program that writes first.
    (tmp_path / 'planted').mkdir()
    _ready_for(which, tmp_path / 'planted', features)
    with starts.Start(tmp_path / 'planted', kind=_WritesFirst) as planted:
        planted.make(which, features)
    assert planted.happened.index('named') < planted.happened.index('to be paid')


def test_no_byte_of_it_is_on_disk_before_it_is_paid_for(which, tmp_path, features):
    _ready_for(which, tmp_path, features)
    with starts.Start(tmp_path) as start:
        before, on_disk = {path.name for path in start.folder.iterdir()}, []

        def look(*_):
            new = [path for path in start.folder.iterdir() if path.name not in before]
            on_disk.extend(path.read_bytes() for path in new)
            raise tiny_run.PowerCut

        for name in ('reserve_warm_start', 'note_learned_features'):
            start._patch.setattr(start.ledger, name, look)
        with pytest.raises(tiny_run.PowerCut):
            start.make(which, features)
    (room,) = on_disk
    assert len(room) > 500 and not any(room)


@pytest.mark.parametrize('behind', _FREE)
def test_a_cut_before_it_is_paid_for_costs_nothing(which, behind, tmp_path, features):
    entries = _ready_for(which, tmp_path, features)
    _cut(which, tmp_path, features, behind)
    assert tiny_run.kinds(tmp_path / 'run') == entries == starts.KINDS[which][:-1]
    assert not (tmp_path / 'run' / starts.NAMES[which]).exists()
    with starts.Start(tmp_path) as again:
        assert again.make(which, features) is not None
    # It is made again as a whole, with a key of its own, and paid for once.
    assert again.happened == _FREE + _LOST + _KEPT
    assert tiny_run.kinds(tmp_path / 'run') == starts.KINDS[which]


@pytest.mark.parametrize('behind', _LOST)
def test_a_cut_after_it_is_paid_for_loses_it_for_good(which, behind, tmp_path, features):
    _ready_for(which, tmp_path, features)
    _cut(which, tmp_path, features, behind)
    assert tiny_run.kinds(tmp_path / 'run') == starts.KINDS[which]
    spent = (tmp_path / 'run/ledger.jsonl').read_bytes()
    for _ in range(2):
        with starts.Start(tmp_path) as again:
            assert again.make(which, features) is None
            assert not again.releases.first_is_to_be_made
            assert again.releases.learned_features_are_lost == (which == 'second')
        assert again.happened == []  # Nothing has looked at the records.
    assert (tmp_path / 'run/ledger.jsonl').read_bytes() == spent
    assert not (tmp_path / 'run' / starts.NAMES[which]).exists()


def test_a_torn_charge_counts_as_paid(which, tmp_path, features):
    _ready_for(which, tmp_path, features)
    _cut(which, tmp_path, features, 'paid')
    path = tmp_path / 'run' / 'ledger.jsonl'
    path.write_bytes(path.read_bytes()[:-30])
    with starts.Start(tmp_path) as again:
        assert again.make(which, features) is None
        noted = again.ledger.warm_start if which == 'first' else again.ledger.learned_features
        assert noted == {'sha256': None, 'version': None}
    assert again.happened == []
    # Whatever lies in its place was not released.
    (tmp_path / 'run' / starts.NAMES[which]).write_bytes(b'planted')
    with (
        starts.Start(tmp_path) as again,
        pytest.raises(releases.ReleaseError, match='another hash'),
    ):
        again.make(which, features)


@pytest.mark.parametrize('behind', [*_KEPT, None])
def test_it_is_read_as_it_was_made(which, behind, tmp_path, features):
    _ready_for(which, tmp_path, features)
    path, made = tmp_path / 'run' / starts.NAMES[which], None
    if behind is None:
        with starts.Start(tmp_path) as start:
            made = start.make(which, features)
    else:
        _cut(which, tmp_path, features, behind)
    content, read = path.read_bytes(), []
    for _ in range(2):
        with starts.Start(tmp_path) as again:
            read.append(_arrays(which, again.make(which, features)))
        assert again.happened == []
    assert path.read_bytes() == content
    assert tiny_run.kinds(tmp_path / 'run') == starts.KINDS[which]
    for found in read:
        for one, other in pairs(found, read[0] if made is None else _arrays(which, made)):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_its_sums_are_those_of_the_records_with_noise_of_its_own(tmp_path, features):
    with starts.Start(tmp_path) as start:
        released = [start.make('first', features), start.make('second', features).sums]
        means = start.releases.class_means(0, released[0])
    noises = []
    for sums, sigma in pairs(released, starts.SIGMAS):
        exact = class_sums.sum_over_records(starts.IMAGES, starts.LABELS, CLASSES, features, sigma)
        noises.append((sums - exact) * grid.class_sum_step(sigma))
        error = 4 / np.sqrt(2 * sums.size)
        assert abs(noises[-1].std() / sigma - 1) < error
    assert abs(np.corrcoef(noises[0].ravel(), noises[1].ravel())[0, 1]) < 4 / np.sqrt(sums.size)
    expected = class_sums.class_means(released[0], starts.SIGMAS[0], len(starts.IMAGES))
    np.testing.assert_array_equal(means, expected)


def _other_hash(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _cut_off(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize('damage', [_other_hash, _cut_off, lambda path: path.write_bytes(b'')])
def test_a_file_with_another_hash_is_refused(which, damage, tmp_path, features):
    _ready_for(which, tmp_path, features)
    _cut(which, tmp_path, features, 'named')
    damage(tmp_path / 'run' / starts.NAMES[which])
    with starts.Start(tmp_path) as again:
        with pytest.raises(releases.ReleaseError, match='its ledger has another hash. Put'):
            again.make(which, features)
    assert again.happened == []


def test_a_file_that_the_ledger_does_not_know_is_refused(which, tmp_path, features):
    entries = _ready_for(which, tmp_path, features)
    (tmp_path / 'run' / starts.NAMES[which]).write_bytes(b'planted')
    with starts.Start(tmp_path) as again:
        with pytest.raises(releases.ReleaseError, match='knows of no such release. Start a new'):
            again.make(which, features)
    assert again.happened == [] and tiny_run.kinds(tmp_path / 'run') == entries


def test_a_release_of_other_features_is_refused(which, tmp_path, features, monkeypatch):
    _ready_for(which, tmp_path, features)
    _cut(which, tmp_path, features, 'named')
    monkeypatch.setattr(starts, 'VERSION', starts.VERSION + 1)
    monkeypatch.setattr(learned, 'VERSION', learned.VERSION + 1)
    with (
        starts.Start(tmp_path) as again,
        pytest.raises(releases.ReleaseError, match='another version'),
    ):
        again.make(which, features)


def test_sums_of_another_shape_are_refused(tmp_path, features):
    with starts.Start(tmp_path) as start:
        np.save(start.folder / releases.WARM_START, np.zeros([CLASSES, 5], np.int64))
        with pytest.raises(releases.ReleaseError, match=r'integers of shape.*Received: int64'):
            start.releases.class_sums(features)


def test_a_second_release_cannot_be_made_twice(tmp_path, features):
    _ready_for('second', tmp_path, features)
    with starts.Start(tmp_path) as start:
        start.make('second', features)
        content = (start.folder / releases.LEARNED_FEATURES).read_bytes()
        with pytest.raises(LedgerError, match='not the time for it'):
            start.releases.release_learned_features(features, **starts.WEIGHTS)
    assert (start.folder / releases.LEARNED_FEATURES).read_bytes() == content
    assert tiny_run.kinds(start.folder) == starts.KINDS['second']
    assert sorted(path.name for path in start.folder.iterdir()) == sorted(
        ['ledger.jsonl', *starts.NAMES.values()]
    )


def test_a_second_release_that_is_given_up_is_never_made(tmp_path, features):
    _ready_for('second', tmp_path, features)
    with starts.Start(tmp_path) as start:
        start.releases.give_up_learned_features()
        start.releases.give_up_learned_features()  # Once is enough.
        assert start.state.position == start.ledger.position
    assert tiny_run.kinds(tmp_path / 'run') == starts.KINDS['second']
    assert _sha256_in_ledger(tmp_path / 'run') is None
    with starts.Start(tmp_path) as again:
        assert again.make('second', features) is None
        with pytest.raises(LedgerError, match='not the time for it'):
            again.releases.release_learned_features(features, **starts.WEIGHTS)
    assert not (tmp_path / 'run' / releases.LEARNED_FEATURES).exists()


def test_without_privacy_nothing_is_paid_for(which, tmp_path, features):
    public = {'event': None, 'warm_start_event': None, 'warm_start_noise_multiplier': None}
    _ready_for(which, tmp_path, features, **public)
    with starts.Start(tmp_path) as start:
        if which == 'first':
            assert start.releases.first_is_to_be_made
        assert start.make(which, features) is not None
    unpaid = ['position 1', 'to be paid', *_LOST[:2]]
    assert start.happened == [what for what in _FREE + _LOST + _KEPT if what not in unpaid]
    assert tiny_run.kinds(tmp_path / 'run') == ['plan']
