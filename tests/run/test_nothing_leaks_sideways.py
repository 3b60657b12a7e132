"""What differs between runs on neighbouring data sets is what was released, and nothing else.

Both runs have the same sampling, the same keys and no noise, so that whatever depends on the one
record more shows. Its gradient is in the released sums, so networks, samples and dp/ tags differ.
"""

import collections
import contextlib
import dataclasses
import functools
import io
import json
import re
import secrets
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers import event_files, tiny_run
from tensorflow.core.protobuf import saved_model_pb2

from tf_efsgd.data import poisson
from tf_efsgd.privacy import class_sums, noise
from tf_efsgd.run import folder as run_folder
from tf_efsgd.run.context import Sources
from tf_efsgd.training import gan as gans
from tf_efsgd.training import learn_features

_DECLARED = 1602
_STEPS = 4
# In these steps the one more record is sampled, where it exists.
_SAMPLED = (1, 2)

# Functions of the releases and of generated images.
_RELEASED = re.compile(
    r"""
    logs:dp/(fake_accuracy|fake_loss|fake_accuracy_average|released_gradient_norm|samples
            |samples_of_fit|buffer_norm|distance_to_release)
    | checkpoints/step_\d+/variables:gan/[^:]*
    | checkpoints/step_\d+/manifest.json:sha256
    | export/1/variables/variables:generator_variables/.*
    | export/1/assets.extra/privacy_statement.json:(generator_sha256|released_class_counts)
    | samples/(step|fit)_\d+.png
    | report.html
    | warm_start.npy
    | learned_features.npz
    | ledger.jsonl:\d:sha256
    """,
    re.VERBOSE,
)


def _run(folder, patch, one_more, sampled=_SAMPLED, **changes):
    """A run without noise, with fixed keys and sampling; returns what it printed, times removed."""
    load = run_folder.load_records

    def load_neighbour(settings):
        dataset = load(settings)
        train = dataset.train
        if one_more:
            image = np.full((1, *train.image_shape), 255, np.uint8)
            train = dataclasses.replace(
                train,
                images=np.concatenate([train.images, image]),
                labels=np.concatenate([train.labels, np.int32([3])]),
            )
        return dataclasses.replace(dataset, train=train)

    def sample(num_records, threshold, key=None, secure=False):
        del threshold, key, secure
        rng = np.random.default_rng(5)
        for step in range(10**6):
            both = np.flatnonzero(rng.random(_DECLARED) < 0.01)
            more = [_DECLARED] if num_records > _DECLARED and step in sampled else []
            yield np.concatenate([both, more]).astype(np.int64)

    def no_noise(shape, *_, **__):
        return tf.zeros(shape, tf.int64)

    patch.setattr(poisson, 'sample_indices', sample)
    patch.setattr(noise, 'integers', no_noise)
    # A graph of its own, which would keep the other one.
    patch.setattr(class_sums, '_integers', no_noise)
    patch.setattr(learn_features, '_IMAGES', 1000)
    patch.setattr(secrets, 'randbits', lambda bits: 7)
    patch.setattr(secrets, 'token_hex', lambda count=16: 'ab' * count)
    tf.keras.backend.clear_session()  # Keras numbers the layers of a process.
    # The number of records is declared: the same for neighbours.
    declared = {'dataset_size': _DECLARED, 'train_steps': _STEPS}
    sources = Sources(load=load_neighbour)
    tiny_run.run(
        folder,
        '--noevaluate',
        f'--state_dir={folder}-state',
        sources=sources,
        **declared,
        **changes,
    )


def _variables(prefix):
    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def _events(folder):
    events = event_files.read(folder)
    return {
        tag: [(e.step, e.tensor_proto.SerializeToString()) for e in events.Tensors(tag)]
        for tag in events.Tags()['tensors']
    }


def _graph_lines(path):
    """A SavedModel's graphs with all constants, but for the numbers TensorFlow gives to names."""
    text = str(saved_model_pb2.SavedModel.FromString(path.read_bytes()))
    number = re.compile(r'(?<=[/"])\d{3,}(?=")|_\d+')
    return collections.Counter(number.sub('', line) for line in text.splitlines())


def _fields(folder):
    """Everything a run wrote, by file and field, but for times and what hashes times."""
    fields, events_seen = {}, False
    for path in sorted(p for p in folder.rglob('*') if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.startswith('logs/'):
            events_seen = True
        elif name.endswith(('.index', 'fingerprint.pb', 'SHA256SUMS')):
            continue  # Offsets and hashes of the files beside them.
        elif '.data-' in name:
            prefix = str(path).split('.data-')[0]
            name = name.split('.data-')[0]
            for key, value in _variables(prefix).items():
                # No counter may differ, whatever weights may.
                kind = ':counter' if np.issubdtype(np.asarray(value).dtype, np.integer) else ''
                fields[f'{name}:{key}{kind}'] = value
        elif name.endswith('.jsonl'):
            for i, line in enumerate(path.open()):
                entry = {k: v for k, v in json.loads(line).items() if k not in _TIMES}
                fields |= {f'{name}:{i}:{key}': value for key, value in entry.items()}
        elif name.endswith('.json'):
            entry = {k: v for k, v in json.loads(path.read_text()).items() if k not in _TIMES}
            fields |= {f'{name}:{key}': value for key, value in entry.items()}
        elif name.endswith('saved_model.pb'):
            fields[name] = _graph_lines(path)
        elif name == 'report.html':
            page = _VARYING.sub(rb'', path.read_bytes())
            fields |= {name: page, f'{name}:words': _SHOWN.sub(rb'', page)}
        else:
            fields[name] = path.read_bytes()
    assert events_seen
    return {**fields, **{f'logs:{tag}': values for tag, values in _events(folder / 'logs').items()}}


# Of a page: random names that Matplotlib gives to curves, the date, and the hash of the model, of
# which each weight is compared.
_VARYING = re.compile(rb'(?<=curve)\d+-[pm][0-9a-f]{10}|\d{4}-\d\d-\d\d \d\d:\d\d|[0-9a-f]{64}')

# What the page shows of the releases: pictures of generated images, curves, and the statement's row
# of released counts. Each of their values is compared where it comes from.
_SHOWN = re.compile(
    rb"""
    data:image/png;base64,[^"]*
    | <svg.*?</svg>
    | (?<=<code>released_class_counts</code></th><td>)<ul>(<li>\d+\.\d+</li>)+</ul>
    """,
    re.DOTALL | re.VERBOSE,
)

# `ledger` is the position in a checkpoint's manifest: its hash covers the times of the entries.
_TIMES = ('time', 'sha256_before', 'ledger')


def _difference(one, other):
    """Names of the fields that differ.

    TensorFlow adds the generated images' gradients of a bias in the order in which its threads
    end: variables may differ by rounding. A record moves them by some thousandths.
    """
    names = set(one) ^ set(other)
    for name in set(one) & set(other):
        a, b = one[name], other[name]
        if isinstance(a, np.ndarray) and a.dtype == np.float32:
            same = np.allclose(a, b, rtol=1e-5, atol=1e-8)
        else:
            same = np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
        if not same:
            names.add(name)
        if isinstance(a, np.ndarray):
            assert a.shape == b.shape and a.dtype == b.dtype
    return names


def _run_and_listen(folder, one_more):
    """What a run wrote, by file and field, and what it printed, without times and places."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            _run(folder, patch, one_more)
    text = re.sub(r'/\S*/(one|other)\b', 'RUN', printed.getvalue())
    text = re.sub(r'\d+\.\d+ minutes|\[.*?[<?].*?\]|\r.*?\||\d+%', '', text)
    return _fields(folder), text


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp('neighbours')


@pytest.fixture(scope='module')
def neighbours(folders):
    """Of a run without the one more record, and of one with it."""
    return _run_and_listen(folders / 'one', False), _run_and_listen(folders / 'other', True)


@pytest.fixture(scope='module')
def without(neighbours):
    """What a run without the one more record wrote."""
    return neighbours[0][0]


def test_only_what_was_released_differs(neighbours):
    (one, _), (other, _) = neighbours
    differing = _difference(one, other)
    leaks = sorted(name for name in differing if not _RELEASED.fullmatch(name))
    assert leaks == []
    # The record did act: nothing above holds because nothing differs.
    for name in ('logs:dp/released_gradient_norm', 'report.html', 'samples/step_000004.png'):
        assert name in differing
    assert (
        b'--dataset_size=1602' in one['report.html:words']
        and b'base64' not in one['report.html:words']
    )
    assert any(name.endswith(':counter') for name in one)
    assert any('discriminator' in name for name in differing)


def test_runs_on_neighbours_print_the_same(neighbours):
    (_, one), (_, other) = neighbours
    assert one == other
    assert 'Spent' in one and '1602 records' in one
    assert 'your turn:      tf-efsgd check photos/' in one


@pytest.mark.acceptance
def test_only_what_was_released_differs_with_the_generator_in_the_private_step(tmp_path):
    runs = []
    for name, one_more in (('one', False), ('other', True)):
        with pytest.MonkeyPatch.context() as patch:
            # Tracing would take longer than all steps.
            eager = functools.partialmethod(gans.EFSGDGan.compile, run_eagerly=True)
            patch.setattr(gans.EFSGDGan, 'compile', eager)
            _run(tmp_path / name, patch, one_more, reconstruction='generator')
        runs.append(_fields(tmp_path / name))
    differing = _difference(*runs)
    assert sorted(name for name in differing if not _RELEASED.fullmatch(name)) == []
    assert any('generator' in name for name in differing)
    statement = 'export/1/assets.extra/privacy_statement.json'
    assert runs[0][f'{statement}:private_step_updates'] == 'discriminator and generator'
    saved = {name for name in runs[0] if name.startswith('export/1/variables/')}
    assert saved and all('generator_variables' in n or '_CHECKPOINTABLE' in n for n in saved)


@pytest.mark.acceptance
def test_only_what_was_released_differs_with_two_releases_before_the_first_step(tmp_path):
    runs = []
    shares = {'warm_start_share': 0.5, 'learned_features_share': 0.5}
    steps = {'warm_start_steps': 3, 'learned_features_steps': 3, 'warm_start_weight': 1}
    for name, one_more in (('one', False), ('other', True)):
        with pytest.MonkeyPatch.context() as patch:
            _run(tmp_path / name, patch, one_more, sampled=(), **shares, **steps)
        runs.append(_fields(tmp_path / name))
    differing = _difference(*runs)
    assert sorted(name for name in differing if not _RELEASED.fullmatch(name)) == []
    for name in ('warm_start.npy', 'learned_features.npz', 'samples/step_000000.png'):
        assert name in differing
    kinds = [name for name in differing if name.startswith('ledger')]
    assert sorted(kinds) == ['ledger.jsonl:1:sha256', 'ledger.jsonl:2:sha256']


def test_a_record_that_is_never_sampled_changes_nothing(without, tmp_path, monkeypatch):
    _run(tmp_path / 'other', monkeypatch, one_more=True, sampled=())
    differing = _difference(without, _fields(tmp_path / 'other'))
    # Hashes of the variables, which are compared one by one.
    hashes = ('manifest.json:sha256', ':generator_sha256')
    assert {name for name in differing if not name.endswith(hashes)} == set()


def test_a_planted_leak_is_found(without, tmp_path, monkeypatch):
    train_step = gans.EFSGDGan.train_step

    def leaky(self, data):
        (_, labels), _ = data
        return {**train_step(self, data), 'fake_count': tf.shape(labels)[0]}

    monkeypatch.setattr(gans.EFSGDGan, 'train_step', leaky)
    _run(tmp_path / 'other', monkeypatch, one_more=True)
    differing = _difference(without, _fields(tmp_path / 'other'))
    leaks = sorted(name for name in differing if not _RELEASED.fullmatch(name))
    assert leaks == ['logs:dp/fake_count', 'report.html:words']


@pytest.mark.parametrize(
    ('file', 'leak'),
    [
        ('report.html', lambda text: text.replace('</body>', '<p>1603 records</p></body>')),
        ('ledger.jsonl', lambda text: text.replace('}', ', "records": 1603}', 1)),
    ],
)
def test_a_leak_in_a_file_s_words_is_found(neighbours, folders, tmp_path, file, leak):
    del neighbours  # They made the folders.
    shutil.copytree(folders / 'one', tmp_path / 'one')
    text = (tmp_path / 'one' / file).read_text('utf-8')
    assert leak(text) != text
    (tmp_path / 'one' / file).write_text(leak(text), 'utf-8')
    differing = _difference(_fields(folders / 'one'), _fields(tmp_path / 'one'))
    assert any(file in name and not _RELEASED.fullmatch(name) for name in differing)
