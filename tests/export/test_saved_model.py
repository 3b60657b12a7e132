"""The exported SavedModel: served by plain TensorFlow, nothing inside but the generator."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from helpers.pairs import pairs

from tf_efsgd.export import checksums, versions, warmup
from tf_efsgd.export import saved_model as export

_STATEMENT = {'private': True, 'epsilon': 9.28, 'delta': 1e-5, 'not_covered': ['ε over runs']}

# Run by `python -I` in an empty folder: what a server without this package sees.
_CLIENT = """
import importlib.util, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tf_efsgd":
            raise ImportError("blocked")

sys.meta_path.insert(0, Blocked())
try:
    importlib.util.find_spec("tf_efsgd")
    raise SystemExit("tf_efsgd can be imported")
except ImportError:
    pass

import tensorflow as tf

served = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]

def call(labels):
    return served(labels=tf.constant(labels, tf.int32))["images"].numpy()

def error(labels):
    try:
        call(labels)
    except tf.errors.InvalidArgumentError as error:
        return str(error)

first, second, empty = call([2, 0, 1]), call([2, 0, 1]), call([])
large = call([0] * 500)
loaded = tf.saved_model.load(sys.argv[1])
signatures = loaded.signatures

def result(name, **inputs):
    try:
        return {k: v.numpy() for k, v in signatures[name](**inputs).items()}
    except tf.errors.InvalidArgumentError as error:
        return str(error)

def listed(values):
    return values if isinstance(values, str) else {k: v.tolist() for k, v in values.items()}

png = result("png", labels=tf.constant([0, 2]))["image_bytes"]
drawn = result("sample", count=tf.constant(300))
seeded = [result("from_seed", labels=tf.constant([0, 2]), seed=tf.constant(seed))["images"]
          for seed in ([1, 2], [1, 2], [1, 3])]
latents = tf.constant([[0.3] * 4] * 3)
print(json.dumps({
    "signatures": sorted(signatures),
    "names": [name.decode() for name in result("class_names")["names"]],
    "png": [tf.io.decode_png(image).shape.as_list() for image in png],
    "no_png": len(result("png", labels=tf.zeros([0], tf.int32))["image_bytes"]),
    "sample_labels": sorted(set(drawn["labels"].tolist())),
    "sample_shape": drawn["images"].shape,
    "count_errors": [result("sample", count=tf.constant(count)) for count in (-1, 10_001)],
    "seeded": [bool((seeded[0] == other).all()) for other in seeded[1:]],
    "seeded_dtype": str(seeded[0].dtype),
    "latent": listed(result("from_latent", labels=tf.constant([0, 0, 1]), latents=latents)),
    "one_latent": listed(result("from_latent", labels=tf.constant([0]), latents=latents[:1])),
    "latent_error": result("from_latent", labels=tf.constant([0, 1]), latents=latents),
    "int64": result("serving_int64", labels=tf.constant([0, 2], tf.int64))["images"].shape,
    "int64_errors": [result("serving_int64", labels=tf.constant([label], tf.int64))
                     for label in (3, 2**32, -1)],
    "generate": [loaded.generate(tf.constant([1], dtype))["images"].shape.as_list()
                 for dtype in (tf.int32, tf.int64)],
    "after_errors": call([0, 1, 2]).shape,
    "input": str(served.structured_input_signature[1]["labels"].dtype.name),
    "outputs": list(served.structured_outputs),
    "dtype": str(first.dtype), "shape": first.shape, "empty_shape": empty.shape,
    "min": float(large.min()), "max": float(large.max()),
    "difference": float(abs(first - second).max()),
    "means": [float(call([label] * 200).mean()) for label in range(3)],
    "restart_draw": first.ravel().tolist(),
    "too_large": error([0, 3]), "negative": error([-1, 0]),
}))
"""


class _Gan(tf.keras.Model):
    """A generator with a discriminator and a used optimizer next to it."""

    def __init__(self):
        super().__init__()
        layers = tf.keras.layers
        self.embedding = tf.Variable([[-0.8], [0.0], [0.8]], name='embedding')
        self.generator = tf.keras.Sequential(
            [
                layers.InputLayer(input_shape=[5]),
                layers.Dense(2 * 2 * 3, name='seed_pixels'),
                layers.Reshape([2, 2, 3]),
                layers.Conv2DTranspose(1, 4, strides=2, padding='same', name='up'),
            ]
        )
        self.discriminator = tf.keras.Sequential([layers.InputLayer([4, 4, 1]), layers.Dense(1)])
        optimizer = tf.keras.optimizers.Adam()
        optimizer.apply_gradients((tf.ones_like(v), v) for v in self.generator.variables)
        self.optimizer_in_use = optimizer

    @property
    def exported(self):
        return [self.embedding, *self.generator.variables]

    def generate(self, labels):
        return self.generate_from(labels, tf.random.normal([tf.shape(labels)[0], 4]))

    def generate_seeded(self, labels, seed):
        shape = [tf.shape(labels)[0], 4]
        return self.generate_from(labels, tf.random.stateless_normal(shape, seed))

    def generate_from(self, labels, latents):
        inputs = tf.concat([latents, tf.gather(self.embedding, labels)], axis=1)
        shade = tf.gather(self.embedding, labels)[:, :, None, None]
        return tf.tanh(0.1 * self.generator(inputs) + shade)


@pytest.fixture(scope='module')
def gan():
    return _Gan()


def _export(gan, path, **changes):
    arguments = {
        'generate_images': gan.generate,
        'generator_variables': gan.exported,
        'export_dir': path,
        'num_classes': 3,
        'statement': _STATEMENT,
        **changes,
    }
    return export.export_generator(**arguments)


def _serve(path, cwd):
    client = subprocess.run(
        [sys.executable, '-I', '-c', _CLIENT, str(path)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'},
    )
    assert client.returncode == 0, client.stderr
    return json.loads(client.stdout)


@pytest.fixture(scope='module')
def served(gan, tmp_path_factory):
    folder = tmp_path_factory.mktemp('served')
    # As after `--seed`: must not decide what a server draws.
    tf.random.set_seed(1)
    path = _export(
        gan,
        folder / 'export' / '1',
        class_names=['cat', 'dog', 'röd fisk'],
        from_seed=gan.generate_seeded,
        from_latents=export.FromLatents(gan.generate_from, 4),
    )
    cwd = tmp_path_factory.mktemp('elsewhere')
    return [_serve(path, cwd), _serve(path, cwd)]


def test_plain_tensorflow_serves_images_in_range(served):
    answer = served[0]
    assert (answer['input'], answer['outputs']) == ('int32', ['images'])
    assert (answer['dtype'], answer['shape']) == ('float32', [3, 4, 4, 1])
    assert 0 <= answer['min'] < answer['max'] <= 1
    # tanh(-0.8), 0, tanh(0.8) moved to [0, 1]: the label decides, and -1 becomes 0.
    np.testing.assert_allclose(answer['means'], [0.168, 0.5, 0.832], atol=0.05)


def test_no_labels_give_no_images(served):
    assert served[0]['empty_shape'] == [0, 4, 4, 1]


def test_each_call_and_each_start_draws_fresh_latents(served):
    assert served[0]['difference'] > 1e-4
    assert served[0]['restart_draw'] != served[1]['restart_draw']


@pytest.mark.parametrize('case', ['too_large', 'negative'])
def test_label_out_of_range_is_refused_with_the_allowed_range(served, case):
    assert 'labels must be in [0, 2]' in served[0][case]


def test_a_server_of_plain_tensorflow_has_every_signature(served):
    answer = served[0]
    assert answer['signatures'] == [
        *('class_names', 'from_latent', 'from_seed', 'png', 'sample'),
        *('serving_default', 'serving_int64'),
    ]
    assert answer['names'] == ['cat', 'dog', 'röd fisk']
    assert answer['png'] == [[4, 4, 1], [4, 4, 1]] and answer['no_png'] == 0
    assert answer['sample_labels'] == [0, 1, 2] and answer['sample_shape'] == [300, 4, 4, 1]
    assert answer['int64'] == [2, 4, 4, 1]
    assert answer['generate'] == [[1, 4, 4, 1], [1, 4, 4, 1]]


def test_a_seed_and_a_latent_decide_the_image(served):
    answer = served[0]
    assert answer['seeded'] == [True, False] and answer['seeded_dtype'] == 'uint8'
    images = np.array(answer['latent']['images'])
    np.testing.assert_array_equal(images[0], images[1])
    assert abs(images[0] - images[2]).max() > 0.1
    np.testing.assert_allclose(answer['one_latent']['images'][0], images[0], atol=1e-6)


def test_a_bad_request_is_an_error_and_the_next_is_answered(served):
    answer = served[0]
    for name, cases, said in (
        ('int64', 3, 'labels must be in [0, 2]'),
        ('count', 2, 'count must be in [0, 10000]'),
    ):
        errors = answer[f'{name}_errors']
        assert len(errors) == cases and all(said in error for error in errors)
    assert 'one row of latents for each label' in answer['latent_error']
    assert answer['after_errors'] == [3, 4, 4, 1]


def test_values_outside_the_range_are_clipped(gan, tmp_path):
    path = _export(
        gan,
        tmp_path / '1',
        generate_images=lambda labels: (
            tf.ones([tf.shape(labels)[0], 2, 2, 1])
            * tf.cast(labels * 4 - 2, tf.float32)[:, None, None, None]
        ),
        generator_variables=[],
    )
    images = tf.saved_model.load(path).signatures['serving_default'](labels=tf.constant([0, 1]))
    np.testing.assert_array_equal(images['images'][:, 0, 0, 0], [0, 1])


def test_no_labels_are_served_by_a_network_that_takes_no_empty_batch(gan, tmp_path):
    def generate(labels):
        # As cuDNN's convolutions.
        with tf.control_dependencies([tf.debugging.assert_positive(tf.shape(labels)[0])]):
            return tf.identity(gan.generate(labels))

    path = _export(gan, tmp_path / '1', generate_images=generate)
    no_labels = tf.zeros([0], tf.int32)
    images = tf.saved_model.load(path).signatures['serving_default'](labels=no_labels)['images']
    assert images.shape == (0, 4, 4, 1)


def test_checkpoint_inside_holds_the_generator_and_nothing_else(gan, tmp_path):
    path = _export(gan, tmp_path / '1')
    saved = {
        name: shape
        for name, shape in tf.train.list_variables(os.path.join(path, 'variables', 'variables'))
        if name != '_CHECKPOINTABLE_OBJECT_GRAPH'
    }
    assert saved == {
        f'generator_variables/{i}/.ATTRIBUTES/VARIABLE_VALUE': variable.shape.as_list()
        for i, variable in enumerate(gan.exported)
    }
    assert len(saved) == 5
    proto = open(os.path.join(path, 'saved_model.pb'), 'rb').read()
    for foreign in (b'Adam', b'discriminator', b'tf_keras', __file__.encode()):
        assert foreign not in proto
    files = {os.path.relpath(os.path.join(d, f), path) for d, _, fs in os.walk(path) for f in fs}
    assert files == {
        *('saved_model.pb', 'fingerprint.pb', 'assets.extra/privacy_statement.json'),
        *('variables/variables.index', 'variables/variables.data-00000-of-00001'),
        *('assets/class_names.txt', 'assets.extra/SHA256SUMS'),
        *(['assets.extra/tf_serving_warmup_requests'] if warmup.is_possible() else []),
    }


def test_saved_values_are_the_generators(gan, tmp_path):
    path = _export(gan, tmp_path / '1')
    loaded = tf.saved_model.load(path).generator_variables
    for saved, variable in pairs(loaded, gan.exported):
        np.testing.assert_array_equal(saved, variable)


def test_statement_is_inside_in_the_order_given(gan, tmp_path):
    path = _export(gan, tmp_path / '1')
    with open(os.path.join(path, 'assets.extra', 'privacy_statement.json')) as file:
        text = file.read()
    assert json.loads(text) == {**_STATEMENT, 'class_names': ['0', '1', '2']}
    assert list(json.loads(text)) == [*_STATEMENT, 'class_names']
    assert '\n  "epsilon": 9.28' in text


def test_names_are_inside_whatever_they_are(gan, tmp_path):
    names = ['a\nb', os.fsdecode(b'caf\xe9'), 'ü']
    path = _export(gan, tmp_path / '1', class_names=names)
    with open(os.path.join(path, versions.CLASS_NAMES), 'rb') as file:
        assert file.read() == b'a b\ncaf\xe9\n\xc3\xbc\n'
    assert versions.read_statement(path)['class_names'] == names
    loaded = tf.saved_model.load(path)
    served = loaded.signatures['class_names']()['names'].numpy()
    assert [os.fsdecode(name) for name in served] == names


def test_the_checksums_are_of_all_other_files(gan, tmp_path):
    path = _export(gan, tmp_path / '1')
    assert checksums.differences(path, versions.CHECKSUMS) == []
    check = ['sha256sum', '--check', '--quiet', versions.CHECKSUMS]
    assert subprocess.run(check, cwd=path).returncode == 0
    with open(os.path.join(path, versions.STATEMENT), 'a') as file:
        file.write(' ')
    (line,) = checksums.differences(path, versions.CHECKSUMS)
    assert line.startswith(f'{versions.STATEMENT} was changed')


def test_requests_to_warm_up_with_are_answered(gan, tmp_path):
    logs = pytest.importorskip('tensorflow_serving.apis.prediction_log_pb2')
    path = _export(gan, tmp_path / '1')
    loaded = tf.saved_model.load(path)
    signatures = loaded.signatures
    asked = []
    for record in tf.data.TFRecordDataset(os.path.join(path, versions.WARM_UP)):
        request = logs.PredictionLog.FromString(record.numpy()).predict_log.request
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        answer = signatures[request.model_spec.signature_name](
            **{name: tf.constant(value) for name, value in inputs.items()}
        )
        assert answer
        asked.append(request.model_spec.signature_name)
    assert asked == ['serving_default', 'serving_int64', 'png', 'sample', 'class_names']


def test_folder_is_named_as_asked_and_readable_like_any_other(gan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir('plain')
    path = _export(gan, 'new/folder/7/')
    assert path == str(tmp_path / 'new' / 'folder' / '7')
    assert os.stat(path).st_mode == os.stat('plain').st_mode
    assert os.listdir(tmp_path / 'new' / 'folder') == ['7']


def test_existing_folder_is_refused_and_left_alone(gan, tmp_path):
    (tmp_path / '1').mkdir()
    (tmp_path / '1' / 'mine').write_text('kept')
    with pytest.raises(ValueError, match='must not exist'):
        _export(gan, tmp_path / '1')
    assert (tmp_path / '1' / 'mine').read_text() == 'kept'


_EAGER = tf.constant(0.3)
_FOREIGN = tf.Variable(0.3, name='private_buffer')


def _seeded(labels):
    return tf.random.normal([tf.shape(labels)[0], 2, 2, 1], seed=7)


def _unseeded(labels):
    return tf.random.normal([tf.shape(labels)[0], 2, 2, 1])


@tf.function
def _seeded_inside(labels):
    return _seeded(labels)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'statement': {'epsilon': float('inf')}}, 'no NaN and no infinity'),
        ({'statement': {'epsilon': float('nan')}}, 'no NaN and no infinity'),
        ({'statement': {'epsilon': np.float32(1)}}, 'JSON values only'),
        ({'statement': {'private': True}}, 'must not say private'),
        ({'statement': {'private': True, 'epsilon': None}}, 'must not say private'),
        ({'statement': {'private': True, 'epsilon': 3.1, 'target_epsilon': 3.0}}, 'meet a target'),
        ({'statement': {'private': True, 'epsilon': 3, 'error_feedback': 'hidden'}}, 'hidden'),
        ({'num_classes': 0}, 'num_classes=0'),
        ({'class_names': ['a', 'b']}, 'each of the 3 classes'),
        ({'generate_images': _seeded}, 'without a seed'),
        ({'generate_images': _seeded_inside}, 'without a seed'),
        ({'generate_images': lambda labels: _unseeded(labels) * _FOREIGN}, 'generator_variables'),
        ({'generate_images': lambda labels: _unseeded(labels) * _EAGER}, 'outside'),
        ({'generate_images': lambda labels: tf.cast(_unseeded(labels), tf.float64)}, 'float64'),
        ({'generate_images': lambda labels: _unseeded(labels)[..., 0]}, r'shape \(None, 2, 2\)'),
    ],
)
def test_refusals_leave_nothing_behind(gan, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        _export(gan, tmp_path / '1', **changes)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    'statement',
    [
        {'private': False},
        {'private': False, 'epsilon': 900.0, 'error_feedback': 'hidden'},
        {'private': True, 'epsilon': 3.0, 'target_epsilon': 3.0, 'error_feedback': 'hidden'},
        {'private': True, 'epsilon': 3.0, 'target_epsilon': None, 'error_feedback': 'private'},
    ],
)
def test_claims_that_their_numbers_bear_out_are_exported(gan, tmp_path, statement):
    path = _export(gan, tmp_path / '1', statement=statement)
    with open(os.path.join(path, 'assets.extra', 'privacy_statement.json')) as file:
        assert json.load(file) == {**statement, 'class_names': ['0', '1', '2']}


@pytest.mark.parametrize('failing', ['tensorflow.saved_model.save', 'os.rename'])
def test_failure_half_way_leaves_nothing_behind(gan, tmp_path, monkeypatch, failing):
    def fail(*args, **kwargs):
        if failing.endswith('save'):
            os.makedirs(args[1])
        raise OSError('disk full')

    monkeypatch.setattr(failing, fail)
    with pytest.raises(OSError, match='disk full'):
        _export(gan, tmp_path / '1')
    assert os.listdir(tmp_path) == []
