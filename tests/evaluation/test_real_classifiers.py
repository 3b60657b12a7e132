"""Classifiers of real images: trained once, kept apart, for the user alone."""

import os
import stat

import numpy as np
import pytest
from helpers.pairs import pairs
from helpers.toy_images import toy

from tf_efsgd.evaluation import classifiers, real_classifiers

_TRAIN = toy(200, 0)


def _classifiers(folder, train=_TRAIN, epochs=1):
    return real_classifiers.RealClassifiers(train, folder, epochs=epochs)


@pytest.fixture
def trained(monkeypatch):
    """The arguments of every training."""
    calls = []
    real = classifiers.train

    def train(*args, **kwargs):
        calls.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(classifiers, 'train', train)
    return calls


def test_a_classifier_is_trained_once_and_read_back(tmp_path, trained):
    first = _classifiers(tmp_path / 'kept').get(classifiers.build_cnn, seed=3)
    again = _classifiers(tmp_path / 'kept').get(classifiers.build_cnn, seed=3)
    assert len(trained) == 1
    for one, other in pairs(first.model.get_weights(), again.model.get_weights()):
        np.testing.assert_array_equal(one, other)
    assert again.chosen_epoch == first.chosen_epoch
    assert again.held_out_accuracy == first.held_out_accuracy
    assert classifiers.accuracy(again.model, _TRAIN) == classifiers.accuracy(first.model, _TRAIN)


def test_other_records_seeds_or_recipes_have_classifiers_of_their_own(
    tmp_path, trained, monkeypatch
):
    _classifiers(tmp_path).get(classifiers.build_mlp, seed=0)
    _classifiers(tmp_path).get(classifiers.build_mlp, seed=1)
    _classifiers(tmp_path, toy(200, 5)).get(classifiers.build_mlp, seed=0)
    _classifiers(tmp_path, epochs=2).get(classifiers.build_mlp, seed=0)
    monkeypatch.setattr(real_classifiers, '_RECIPE', real_classifiers._RECIPE + 1)
    _classifiers(tmp_path).get(classifiers.build_mlp, seed=0)
    assert len(trained) == len(list(tmp_path.iterdir())) == 5


def test_what_is_kept_is_for_the_user_alone(tmp_path):
    folder = tmp_path / 'state' / 'classifiers'
    _classifiers(folder).get(classifiers.build_mlp, seed=0)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    (file,) = folder.iterdir()
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600


@pytest.mark.parametrize('damage', [b'', None])
def test_a_damaged_file_is_trained_again(tmp_path, trained, capsys, damage):
    _classifiers(tmp_path).get(classifiers.build_mlp, seed=0)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-200] if damage is None else damage)
    _classifiers(tmp_path).get(classifiers.build_mlp, seed=0)
    assert len(trained) == 2
    assert 'damaged' in capsys.readouterr().out
    _classifiers(tmp_path).get(classifiers.build_mlp, seed=0)
    assert len(trained) == 2
