"""What every test runs under: TensorFlow quiet, on the CPU, with two logical devices."""

import os
import pathlib
import shutil
import tempfile

# Before the first import of TensorFlow, here or in a test module.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ['CUDA_VISIBLE_DEVICES'] = '-1'

import pytest  # noqa: E402

_REPO = pathlib.Path(__file__).resolve().parent.parent

# Files and folders that take more than about twenty seconds of one core, measured, the longest
# first: they start in this order, so that no core waits for a long one at the end. `make test-fast`
# leaves them out.
_SLOW_FILES = (
    'run/test_second_release',
    'run/test_resume',
    'training/test_gan.py',
    'test_synthesizer',
    'run/test_public_run',
    'run/test_warm_started_run',
    'run/test_runner',
    'privacy/test_optimizer',
    'run/',
    'training/test_public_heads_gan',
    'training/test_gan',
    'training/test_fit',
    'training/test_learn_features',
    'privacy/test_float_slack',
    'privacy/test_hidden',
    'privacy/test_lattice_attack',
    'privacy/test_noise',
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
    'test_audit',
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
    """Splits the CPU in two, for MirroredStrategy(['CPU:0', 'CPU:1']).

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
    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, halves)


def pytest_sessionfinish(session):
    """Removes it."""
    del session
    shutil.rmtree(os.environ['XDG_STATE_HOME'], ignore_errors=True)


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


@pytest.fixture(scope='session', autouse=True)
def _quick_compile():
    """Tries the private loss of a network once for all models that are built like it.

    A loss that is refused is tried again each time, as are networks with layers of a test's own.
    """
    from tf_efsgd.privacy import optimizer

    with pytest.MonkeyPatch.context() as patch:
        for name in ('why_not_alone', 'why_not_fast'):
            patch.setattr(optimizer, name, _once_for_each_network(getattr(optimizer, name)))
        yield


def _without_counted_names(network):
    """Its JSON; the name of a layer counts what the process has built before."""
    text = network.to_json()
    for number, layer in enumerate(network._flatten_layers()):
        text = text.replace(f'"{layer.name}"', f'"layer {number}"')
    return text


def _once_for_each_network(why_not):
    import tensorflow as tf

    passed = set()

    def key_of(gan):
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

    def cached(*args, **kwargs):
        gans = [getattr(arg, '__self__', None) for arg in args]
        gan = next((gan for gan in gans if hasattr(gan, 'private_variables')), None)
        key = gan and key_of(gan)
        if key is None:
            return why_not(*args, **kwargs)
        if key in passed:
            return None
        reason = why_not(*args, **kwargs)
        if reason is None:
            passed.add(key)
        return reason

    return cached
