"""Which version an export of a run is, and what its statement says of the generator."""

import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tf_efsgd.export import saved_model, versions
from tf_efsgd.models.generator import build_generator
from tf_efsgd.run import exports

_NAMES = ('cat', 'dog', 'fish')


@pytest.fixture
def generator():
    return build_generator((8, 8, 1), 3, latent_dim=4, width=8)


def _statement(generator, **changes):
    statement = {'private': True, 'epsilon': 3.1, 'delta': 1e-5, 'steps': 8, 'applied_steps': 8}
    return {**statement, **exports.of_generator(generator, _NAMES), **changes}


def test_another_generator_is_the_next_version_and_the_same_one_is_kept(generator, tmp_path):
    first = exports.export(tmp_path, generator, _statement(generator))
    assert first == (tmp_path / 'export' / '1', True)
    # What other runs spent is not of this generator.
    again = exports.export(tmp_path, generator, _statement(generator, together={'runs': 2}))
    assert again == (tmp_path / 'export' / '1', False)
    weights = generator.get_weights()
    weights[0] = weights[0] + 0.3
    generator.set_weights(weights)
    second = exports.export(tmp_path, generator, _statement(generator))
    assert second == (tmp_path / 'export' / '2', True)
    # The same weights, but more was spent: the older statement would be too good.
    third = exports.export(tmp_path, generator, _statement(generator, epsilon=3.3, steps=9))
    assert third == (tmp_path / 'export' / '3', True)
    assert sorted(os.listdir(tmp_path / 'export')) == ['1', '2', '3']


def test_a_damaged_export_is_written_again_as_the_next_version(generator, tmp_path):
    first, _ = exports.export(tmp_path, generator, _statement(generator))
    (first / 'saved_model.pb').write_bytes(b'cut')
    assert exports.export(tmp_path, generator, _statement(generator)) == (
        tmp_path / 'export' / '2',
        True,
    )


def test_an_export_without_a_hash_of_its_generator_is_held_by_its_steps(generator, tmp_path):
    statement = _statement(generator)
    target, _ = exports.export(tmp_path, generator, statement)
    del statement['generator_sha256'], statement['class_names']
    (target / versions.STATEMENT).write_text(json.dumps(statement))
    assert exports.export(tmp_path, generator, _statement(generator)) == (target, False)
    assert exports.export(tmp_path, generator, _statement(generator, steps=9))[1]


def test_a_half_written_export_is_never_seen_and_is_removed(generator, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        os.makedirs(args[1])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tf.saved_model, 'save', interrupted)
        # As a power cut: nothing is tidied up.
        patch.setattr(shutil, 'rmtree', lambda *args, **kwargs: None)
        with pytest.raises(KeyboardInterrupt):
            exports.export(tmp_path, generator, _statement(generator))
    (left,) = os.listdir(tmp_path / 'export')
    assert left.startswith('.1.tmp-') and versions.all_versions(tmp_path / 'export') == []
    exports.export(tmp_path, generator, _statement(generator))
    assert os.listdir(tmp_path / 'export') == ['1']


def test_the_hash_is_of_the_weights_in_their_order(generator):
    before = exports.of_generator(generator, _NAMES)
    weights = generator.get_weights()
    generator.set_weights([np.nextafter(weights[0], np.float32(9)), *weights[1:]])
    after = exports.of_generator(generator, _NAMES)
    assert before['class_names'] == list(_NAMES)
    assert before['generator_sha256'] != after['generator_sha256']
    generator.set_weights(weights)
    assert exports.of_generator(generator, _NAMES) == before


def test_what_is_exported_is_what_the_seed_draws(generator, tmp_path):
    target, _ = exports.export(tmp_path, generator, _statement(generator))
    loaded = tf.saved_model.load(str(target))
    labels, seed = tf.constant([0, 2, 1]), tf.constant([5, 7])
    drawn = loaded.signatures['from_seed'](labels=labels, seed=seed)['images']
    from tf_efsgd.data.images import to_uint8
    from tf_efsgd.models.generator import draw_inputs

    here = to_uint8(generator(draw_inputs(generator, labels, seed)))
    assert np.abs(drawn.numpy().astype(int) - here.numpy().astype(int)).max() <= 1
    assert drawn.numpy().std() > 0
    with pytest.raises(ValueError, match='must not exist'):
        saved_model.export_generator(
            lambda labels: labels, [], target, num_classes=3, statement={'private': False}
        )
