"""What every test runs under: TensorFlow quiet, on the CPU, with two logical devices."""

import functools
import os
import pathlib
import shutil
import tempfile

# Before the first import of TensorFlow, here or in a test module.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ['CUDA_VISIBLE_DEVICES'] = '-1'

import pytest  # noqa: E402

import tf_efsgd  # noqa: E402, F401 On Python 3.12 it must come before TensorFlow and TF Privacy.

_REPO = pathlib.Path(__file__).resolve().parent.parent

# Files and folders that take more than about twenty seconds of one core, measured, the longest
# first: they start in this order, so that no core waits for a long one at the end. `make test-fast`
# leaves them out.
_SLOW_FILES = (
    'training/test_gan.py',
    'run/test_second_release',
    'test_audit',
    'run/test_resume',
    'training/test_gan_independence',
    'training/test_replicas',
    'training/test_public_heads_gan',
    'run/test_warm_started_run',
    'run/test_public_run',
    'run/',
    'test_synthesizer',
    'privacy/test_optimizer',
    'training/test_gan',
    'training/test_fit',
    'training/test_learn_features',
    'training/test_own_networks',
    'training/test_warm_start',
    'training/test_precision',
    'training/test_padding',
    'test_examples',
    'privacy/test_float_slack',
    'privacy/test_hidden',
    'privacy/test_lattice_attack',
    'privacy/test_noise',
    'privacy/test_drop_in',
    'privacy/test_class_sums',
    'privacy/layer_norms/',
    'privacy/features/',
    'budget/test_one_account',
    'benchmark/test_benchmark',
    'benchmark/test_memory',
    'benchmark/test_steps',
    'evaluation/test_classifiers',
    'evaluation/test_protocol',
    'evaluation/test_real_classifiers',
    'cli/test_train',
    'test_packaging',
    'test_results',
    'test_upstream_semantics',
)


def pytest_configure(config):
    """Keeps the order of the files: pytest-xdist would start with those that have most tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Marks what is slow, and puts it first."""
    folder = pathlib.Path(__file__).resolve().parent

    def place(item):
        name = item.path.relative_to(folder).as_posix()
        slow = (at for at, start in enumerate(_SLOW_FILES) if name.startswith(start))
        return next(slow, len(_SLOW_FILES))

    for item in items:
        if place(item) < len(_SLOW_FILES):
            item.add_marker(pytest.mark.slow)
    items.sort(key=place)


def pytest_sessionstart(session):
    """Splits the CPU in three, for MirroredStrategy(['CPU:0', 'CPU:1']) and one of three.

    TensorFlow takes this only before its first op, so before any test module is imported.
    """
    del session
    # What runs remember outside their folders.
    os.environ['XDG_STATE_HOME'] = tempfile.mkdtemp(prefix='tf_efsgd-tests-')
    os.environ['XDG_CACHE_HOME'] = os.environ['XDG_STATE_HOME']
    try:
        import tensorflow as tf
    except ImportError:  # Tests of what needs no TensorFlow still run.
        return
    cpu = tf.config.list_physical_devices('CPU')[0]
    parts = [tf.config.LogicalDeviceConfiguration()] * 3
    tf.config.set_logical_device_configuration(cpu, parts)


def pytest_sessionfinish(session):
    """Removes it."""
    del session
    shutil.rmtree(os.environ['XDG_STATE_HOME'], ignore_errors=True)


@pytest.fixture(scope='module', autouse=True)
def _tiny_graphs_as_they_are(request):
    """Whole runs of tests leave out Grappler: it takes a quarter of the time of a few tiny steps.

    What it does to exact sums, clipping and noise is tried by the tests of `privacy`, `training`
    and `models`, and by those of other processes, which all have it.
    """
    folder = request.path.relative_to(pathlib.Path(__file__).resolve().parent).parts[0]
    # Grappler changes the rounding, so what is compared with another process needs it, too.
    compares_processes = 'worker' in request.path.name
    if folder not in ('run', 'test_synthesizer.py') or compares_processes:
        yield
        return
    import tensorflow as tf

    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': True})
    yield
    tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': False, **before})


@pytest.fixture(scope='session')
def test_data():
    """The folder TF_EFSGD_TEST_DATA, or ../shared/data beside the repository; skips if absent."""
    folder = pathlib.Path(os.environ.get('TF_EFSGD_TEST_DATA') or _REPO / '..' / 'shared' / 'data')
    if not folder.is_dir():
        pytest.skip(f'no test data in {folder}; set TF_EFSGD_TEST_DATA to a folder that has it')
    return folder.resolve()


@pytest.fixture(scope='session')
def strategy():
    """Two replicas on the CPU. One for all tests: strategies of a process share collective keys."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])


@pytest.fixture(scope='session')
def three_replicas():
    """Three, with collective keys of their own."""
    import tensorflow as tf

    with pytest.MonkeyPatch.context() as patch:
        # As in the tests of TensorFlow itself; the number only has to be far from the other's.
        patch.setattr(tf.distribute.MirroredStrategy, '_collective_key_base', 100_000)
        yield tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1', 'CPU:2'])


@pytest.fixture(params=[2, 3])
def several(request):
    """Strategies of two and of three replicas."""
    return request.getfixturevalue('strategy' if request.param == 2 else 'three_replicas')


@pytest.fixture(scope='session', autouse=True)
def _quick_compile():
    """Tries the private loss of a network once for all models that are built like it.

    A loss that is refused is tried again each time, as are networks with layers of a test's own.
    """
    from tf_efsgd.privacy import optimizer
    from tf_efsgd.privacy.features import alone

    with pytest.MonkeyPatch.context() as patch:
        for name in ('why_not_alone', 'why_not_fast'):
            patch.setattr(optimizer, name, _once_for_each_network(getattr(optimizer, name)))
        patch.setattr(alone, 'choose_rows', _once_for_each_kind(alone.choose_rows))
        yield


def _without_counted_names(network):
    """Its JSON; the name of a layer counts what the process has built before."""
    text = network.to_json()
    for number, layer in enumerate(network._flatten_layers()):
        text = text.replace(f'"{layer.name}"', f'"layer {number}"')
    return text


def _once_for_each_kind(choose_rows):
    """Features of one kind and shape are summed in one order, whatever their weights."""
    chosen = {}

    def key_of(function, made_up):
        features = getattr(function, '__self__', function)
        if hasattr(features, 'private_variables'):
            key = _key_of_network(features)
            return key and (*key, features.clipping, features.compiles_sums)
        if not type(features).__module__.startswith('tf_efsgd.'):
            return None
        shapes = tuple(map(tuple, getattr(features, 'shapes', ())))
        return type(features), made_up.shape[1:], features.size, shapes

    @functools.wraps(choose_rows)
    def cached(function, made_up, *choices):
        key = key_of(function, made_up)
        if key is None:
            return choose_rows(function, made_up, *choices)
        key = (*key, *map(tuple, choices))
        if key not in chosen:
            chosen[key] = choose_rows(function, made_up, *choices)
        return chosen[key]

    return cached


def _key_of_network(gan):
    """Tells GANs whose private loss is computed otherwise; None for layers of a test's own."""
    import tensorflow as tf

    networks = [gan.generator, gan.discriminator]
    modules = {type(layer).__module__ for n in networks for layer in n._flatten_layers()}
    if not all(module.startswith(('keras.', 'tf_efsgd.')) for module in modules):
        return None
    return (
        *map(_without_counted_names, networks),
        type(gan._losses),
        gan._reconstruction_weight,
        gan.run_eagerly,
        tf.distribute.get_strategy().num_replicas_in_sync,
    )


def _once_for_each_network(why_not):
    passed = set()

    def cached(*args, **kwargs):
        gans = [getattr(arg, '__self__', None) for arg in args]
        gan = next((gan for gan in gans if hasattr(gan, 'private_variables')), None)
        key = gan and _key_of_network(gan)
        if key is None:
            return why_not(*args, **kwargs)
        if key in passed:
            return None
        reason = why_not(*args, **kwargs)
        if reason is None:
            passed.add(key)
        return reason

    return cached
