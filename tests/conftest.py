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

# Of these, what trains longest: whole runs with a warm start, audits, the same training in several
# ways or by several replicas. They are marked `acceptance`, so that `make test` takes minutes. CI
# runs both.
_LONG_FILES = (
    'run/test_second_release.py',
    'run/test_same_records.py',
    'run/test_share.py',
    'run/test_evaluate.py',
    'run/test_again.py',
    'run/test_checkpoints.py',
    'run/test_declared_run.py',
    'run/test_exports.py',
    'training/test_gan_independence.py',
    'test_snippets.py',
    'run/test_warm_started_run.py',
    'run/test_public_run.py',
    'test_audit.py',
    'training/test_public_heads_gan.py',
    'training/test_replicas.py',
    'training/test_gan_clipping.py',
    'training/test_fit.py',
    'training/test_padding.py',
    'training/test_precision.py',
    'benchmark/test_steps.py',
    'benchmark/test_memory.py',
)

# Of other files, the tests that took more than about 15 seconds of a slow core, measured. They are
# marked `acceptance`, too.
LONG_TESTS = {
    'budget/test_one_account.py': ('test_the_planner_and_the_launcher_plan_alike',),
    'budget/test_statement.py': (
        'test_the_statement_of_a_run',
        'test_the_statement_of_two_releases_and_steps',
    ),
    'cli/test_main.py': ('test_a_plan_needs_no_tensorflow',),
    'cli/test_train.py': ('test_an_unreadable_image_is_named',),
    'evaluation/test_benchmark_classifiers.py': ('test_they_learn',),
    'evaluation/test_classifiers.py': (
        'test_same_seed_same_result_whatever_the_global_seed',
        'test_epoch_choice_never_looks_at_the_test_split',
    ),
    'evaluation/test_protocol.py': (
        'test_public_fid_has_both_ends_of_its_scale',
        'test_copies_of_training_images_are_found_and_shown',
        'test_scores_of_each_class',
    ),
    'models/test_generator.py': ('test_images_have_the_asked_shape_and_range',),
    'privacy/accounting/test_calibration.py': (
        'test_calibration_meets_the_target_and_is_tight',
        'test_a_target_that_needs_no_noise_gets_the_least',
    ),
    'privacy/accounting/test_events.py': (
        'test_a_person_of_k_images_is_at_least_as_private_as_the_mixture_over_them',
    ),
    'privacy/accounting/test_renyi_filter.py': ('test_an_unchanged_event_gets_its_planned_steps',),
    'privacy/features/test_alone.py': (
        'test_a_record_more_adds_its_own_numbers_alone_to_a_sum',
        'test_another_network_or_size_is_another_version',
    ),
    'privacy/layer_norms/test_one_pass.py': (
        'test_models',
        'test_a_record_that_is_not_finite_counts_as_zero',
    ),
    'privacy/test_class_sums.py': (
        'test_the_sum_over_replicas_is_that_of_one_device_to_the_last_digit',
    ),
    'privacy/test_drop_in.py': ('test_an_empty_batch_is_a_full_step_of_the_optimizer_alone',),
    'privacy/test_float_slack.py': ('test_rounding_stays_within_half_of_the_allowance',),
    'privacy/test_lattice_attack.py': ('test_the_audit_finds_nothing',),
    'privacy/test_mechanism_properties.py': (
        'test_one_record_moves_the_scaled_sums_by_at_most_one_over_sigma',
        'test_a_release_is_determined_by_sums_key_and_step',
    ),
    'privacy/test_optimizer_replicas.py': ('test_two_replicas_give_the_one_device_update',),
    'run/test_nothing_leaks_sideways.py': (
        'test_a_record_that_is_never_sampled_changes_nothing',
        'test_a_planted_leak_is_found',
    ),
    'run/test_places.py': ('test_what_ends_in_the_fit_says_the_command',),
    'run/test_resume.py': (
        'test_a_start_that_was_cut_off_before_its_ledger_starts_anew',
        'test_a_change_that_was_cut_off_behind_its_ledger_entry',
        'test_a_full_disk_stops_the_run_and_it_goes_on_later',
        'test_a_copy_of_a_run_that_was_trained_further_is_refused',
        'test_a_hidden_buffer_is_private_state_and_its_epsilon_is_the_honest_one',
    ),
    'run/test_runner.py': ('test_a_run_goes_on_after_a_crash_within_its_budget',),
    'training/test_gan.py': (
        'test_records_act_through_the_release_alone',
        'test_two_devices_give_the_weights_of_one',
        'test_no_clip_and_no_noise_is_plain_training',
    ),
    'training/test_targets.py': (
        'test_mmd_loss_is_unbiased',
        'test_a_step_counts_once_however_surely_it_is_remembered',
    ),
}


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
        name = item.path.relative_to(folder).as_posix()
        function = getattr(item, 'originalname', item.name)
        if name in _LONG_FILES or function in LONG_TESTS.get(name, ()):
            item.add_marker(pytest.mark.acceptance)
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
    """Removes the folder that `pytest_sessionstart` made."""
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
    """Gives TF_EFSGD_TEST_DATA, or ../shared/data beside the repository; skips if it is absent."""
    folder = pathlib.Path(os.environ.get('TF_EFSGD_TEST_DATA') or _REPO / '..' / 'shared' / 'data')
    if not folder.is_dir():
        pytest.skip(f'no test data in {folder}; set TF_EFSGD_TEST_DATA to a folder that has it')
    return folder.resolve()


@pytest.fixture(scope='session')
def strategy():
    """Gives all tests one strategy of two replicas: those of a process share collective keys."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])


@pytest.fixture(scope='session')
def three_replicas():
    """Gives a strategy of three replicas, which has collective keys of its own."""
    import tensorflow as tf

    with pytest.MonkeyPatch.context() as patch:
        # As in the tests of TensorFlow itself; the number only has to be far from the other's.
        patch.setattr(tf.distribute.MirroredStrategy, '_collective_key_base', 100_000)
        yield tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1', 'CPU:2'])


@pytest.fixture(params=[2, 3])
def several(request):
    """Gives a strategy of two replicas, then one of three."""
    return request.getfixturevalue('strategy' if request.param == 2 else 'three_replicas')


@pytest.fixture(scope='session')
def _quick_trials():
    """Gives what tries losses and features once for all that are built alike, by its place."""
    from tf_efsgd.privacy.features import alone
    from tf_efsgd.training import private_model

    return {
        (private_model, 'why_not_alone'): _once_for_each_network(private_model.why_not_alone),
        (private_model, 'why_not_fast'): _once_for_each_network(private_model.why_not_fast),
        (alone, 'choose_rows'): _once_for_each_kind(alone.choose_rows),
    }


@pytest.fixture(scope='module', autouse=True)
def _quick_compile(request, _quick_trials):
    """Tries the private loss of a network once for all models that are built like it.

    A loss that is refused is tried again each time, as are networks with layers of a test's own.
    Files that are marked `real_trials`, because they are about the trials, try everything.
    """
    if request.node.get_closest_marker('real_trials'):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), quick in _quick_trials.items():
            patch.setattr(module, name, quick)
        yield


def _without_counted_names(network):
    """Returns its JSON without names of layers, which count what the process has built before."""
    text = network.to_json()
    for number, layer in enumerate(network._flatten_layers()):
        text = text.replace(f'"{layer.name}"', f'"layer {number}"')
    return text


def _once_for_each_kind(choose_rows):
    """Tries features of one kind and shape once: they are summed alike, whatever their weights."""
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
