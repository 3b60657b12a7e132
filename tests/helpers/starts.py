"""Starts of a run that only releases: its records, its releases, and a note of what happens."""

import os
import tempfile

import dp_accounting
import numpy as np
import pytest
import tensorflow as tf

from helpers import plans, tiny_run
from helpers.small_images import CLASSES, SHAPE, draw_images
from tf_efsgd import files
from tf_efsgd.privacy import noise, releases, run_state
from tf_efsgd.privacy.features import grouped
from tf_efsgd.privacy.ledger import Ledger

IMAGES, LABELS = draw_images(20), np.arange(20, dtype=np.int32) % CLASSES
SIGMAS = (0.7, 1.9)
VERSION = 7
NAMES = {'first': releases.WARM_START, 'second': releases.LEARNED_FEATURES}
KINDS = {'first': ['plan', 'warm_start'], 'second': ['plan', 'warm_start', 'learned_features']}
WEIGHTS = {
    'distances': (0.3, 0.7, 1.1),
    'classifier': [np.full([2, 3], 0.3, np.float32), np.arange(3, dtype=np.float32)],
    'generator': [np.full([1, 5], -0.7, np.float32)],
}


class Columns(grouped.GroupedFeatures):
    """The means of the columns of an image, the same in every group."""

    def __init__(self):
        super().__init__(name='columns')
        self._measure(SHAPE)

    def group(self, images, group):
        del group
        return tf.reduce_mean(images, axis=[1, 3]) / 3.0

    def rows(self):
        return 7


class Start:
    """One start of a run: its releases, and a note of what happens in them."""

    def __init__(self, base, *, cut_behind=None, kind=releases.Releases, **plan):
        self.folder, path = base / 'run', base / 'run' / 'ledger.jsonl'
        self.happened, self._cut_behind = [], cut_behind
        self.folder.mkdir(exist_ok=True)
        run_state.prepare_folder(base / 'state')
        self.ledger = Ledger(path, None if path.exists() else make_plan(**plan))
        self.state = run_state.RunState(base / 'state', self.ledger.run_id)
        if not self.state.is_known:
            self.state.remember_records(IMAGES, LABELS, self.ledger.position)
        self.ledger.check_position(self.state.position)
        self.releases = kind(
            self.folder,
            self.ledger,
            self.state,
            IMAGES,
            LABELS,
            SIGMAS,
            lambda: self._with(noise.NoiseKey(), 'the noise has a key'),
            VERSION,
            all_reduce=lambda sums: self._with(sums, 'the sums are made'),
        )

    def __enter__(self):
        self._patch = pytest.MonkeyPatch()
        store = self._around(self.state.store_position, [], lambda: [f'position {self._stored()}'])
        self._patch.setattr(self.state, 'store_position', store)
        for name in ('reserve_warm_start', 'note_learned_features'):
            charge = self._around(getattr(self.ledger, name), ['to be paid'], lambda: ['paid'])
            self._patch.setattr(self.ledger, name, charge)
        replace, make, sync = os.replace, tempfile.mkstemp, files.sync

        # Nothing else is written into the run folder by these.
        def made(prefix, dir):
            found = make(prefix=prefix, dir=dir)
            return self._with(found, *(['there is a file'] if dir == self.folder else []))

        def named(source, path):
            self._note(*(['to be named'] if path.parent == self.folder else []))
            replace(source, path)

        def synced(path):
            sync(path)
            self._note(*(['named'] if path == self.folder else []))

        self._patch.setattr(tempfile, 'mkstemp', made)
        self._patch.setattr(os, 'replace', named)
        self._patch.setattr(files, 'sync', synced)
        return self

    def __exit__(self, *_):
        self._patch.undo()
        self.ledger.close()
        self.state.close()

    def make(self, which, features):
        """Makes or reads a release, as a run does."""
        self.releases.check()
        if which == 'first':
            return self.releases.class_sums(features)
        stored = self.releases.stored_learned_features()
        if stored is not None or self.releases.learned_features_are_lost:
            return stored
        return self.releases.release_learned_features(features, **WEIGHTS)

    def _stored(self):
        return 1 + sum(what.startswith('position') for what in self.happened)

    def _note(self, *whats):
        for what in whats:
            self.happened.append(what)
            if what == self._cut_behind:
                raise tiny_run.PowerCut

    def _with(self, value, *whats):
        self._note(*whats)
        return value

    def _around(self, call, before, after):
        def noted(*arguments):
            self._note(*before)
            call(*arguments)
            self._note(*after())

        return noted


def make_plan(**changes):
    two_releases = {
        'warm_start_event': dp_accounting.GaussianDpEvent(0.6),
        'warm_start_noise_multiplier': 0.6,
        'learned_features_share': 0.3,
    }
    records = {'dataset_size': len(IMAGES), 'image_shape': SHAPE, 'num_classes': CLASSES}
    return plans.in_ledger(**{**records, **two_releases, **changes})
