"""Settings: every flag, every range, and where a flagfile is found."""

import dataclasses
import pathlib

import pytest
from absl import flags

from tf_efsgd import config

_CONFIGS = sorted((pathlib.Path(__file__).resolve().parents[2] / 'configs').glob('*.flags'))

# A value for every setting, none of them its default.
_OTHER = {
    'public_features': 'MobileNetV2',
    'discriminator': 'public_heads',
    'generator': 'skip',
    'minutes': 7,
    'dataset': 'folder:/some where/#1=x',
    'data_dir': '/a',
    'tfds_manual_dir': '/b c',
    'image_size': 48,
    'channels': 3,
    'classes': '["cats, two", "dog\\n\\u00e9"]',
    'images_per_person': 3,
    'person': r'name:^([^_]+)_#=\d',
    'dataset_persons': 456,
    'read_off_records': 'channels,image_size',
    'bits': 12,
    'skip_unreadable': True,
    'cache': False,
    'cache_dir': '/d',
    'allow_large_delta': True,
    'label': 'Smiling',
    'limit_records': 1234,
    'dataset_size': 2345,
    'private': False,
    'target_epsilon': 0.3,
    'target_delta': 3e-7,
    'noise_multiplier': None,
    'l2_norm_clip': 0.07,
    'expected_batch_size': 77,
    'train_steps': 123,
    'error_feedback': 'none',
    'residual_l2_norm_clip': 0.7,
    'residual_share': 0.0,
    'feedback_decay': 0.37,
    'feedback_l2_norm_clip': 2.5,
    'clip_fake': False,
    'latent_dim': 13,
    'generator_width': 24,
    'discriminator_width': 23,
    'noise_injection': False,
    'reconstruction': 'none',
    'reconstruction_weight': 0.123456789012345,
    'generator_ema': 0.0,
    'warm_start_share': 0.3,
    'warm_start_noise_multiplier': None,
    'learned_features_share': 0.4,
    'dataset_budget': 12.5,
    'warm_start_steps': 77,
    'learned_features_steps': 78,
    'warm_start_weight': 3.5,
    'discriminator_only_steps': 8,
    'discriminator_steps': 7,
    'adaptive_discriminator_steps': False,
    'generator_learning_rate': 1.5e-4,
    'discriminator_learning_rate': 2.5e-4,
    'seed': 0,
    'strategy': 'mirrored',
    'logical_devices': 3,
    'worker_timeout': 45,
    'worker_records': 'own',
    'mixed_precision': 'bfloat16',
    'jit_compile': 'on',
    'run_dir': 'runs/a=b',
    'resume': True,
    'change_mechanism': True,
    'resume_unverified': True,
    'state_dir': 'state',
    'secure_noise': True,
    'clipping': 'vectorized',
    'microbatch_size': 9,
    'log_nonprivate_diagnostics': True,
    'checkpoint_steps': 11,
    'log_steps': 12,
    'sample_steps': 13,
    'evaluate': False,
    'evaluation_images': 101,
    'evaluation_runs': 2,
    'evaluation_epochs': 3,
    'export': False,
}


def _fields():
    groups = dataclasses.fields(config.RunConfig)
    return {f.name: f for group in groups for f in dataclasses.fields(group.default)}


def _parse(*arguments):
    """A command line, as the launcher reads it."""
    flag_values = flags.FlagValues()
    flags.DEFINE_multi_string('flagfile', [], 'Only for this parser.', flag_values=flag_values)
    config.define_flags(flag_values)
    rest = flag_values(['launch', *config.find_flagfiles(arguments)])
    assert rest == ['launch']
    return config.from_flags(flag_values)


def _config(**settings):
    return config.from_flagfile(
        '\n'.join(f'--{k}={v}' for k, v in {'noise_multiplier': 1.1, **settings}.items())
    )


def _settings(run_config):
    return {k: v for group in dataclasses.asdict(run_config).values() for k, v in group.items()}


# Flags.


@pytest.mark.parametrize('name', _fields())
def test_every_flag_has_help(name):
    flag_values = flags.FlagValues()
    config.define_flags(flag_values)
    text = flag_values[name].help
    assert len(text) > 10 and text.rstrip().endswith('.')


def test_groups_share_no_name():
    groups = dataclasses.fields(config.RunConfig)
    assert len(_fields()) == sum(len(dataclasses.fields(group.default)) for group in groups)


def test_the_text_of_a_config_gives_the_config_again():
    assert set(_OTHER) == set(_fields()), 'give each new setting a value in _OTHER'
    for name, field in _fields().items():
        if name not in ('noise_multiplier', 'warm_start_noise_multiplier'):
            assert _OTHER[name] != field.default, f'{name}: choose another value than the default'
    groups = {
        group.name: type(group.default)(
            **{f.name: _OTHER[f.name] for f in dataclasses.fields(group.default)}
        )
        for group in dataclasses.fields(config.RunConfig)
    }
    changed = config.RunConfig(**groups)
    # Where the run is, and whether and how to resume, are no part of what would repeat it.
    one_start = ('run_dir', 'resume', 'change_mechanism', 'resume_unverified', 'state_dir')
    wanted = {**_OTHER, **{name: _fields()[name].default for name in one_start}}
    assert _settings(config.from_flagfile(changed.to_flags())) == wanted


def test_a_config_can_be_used_as_a_flagfile(tmp_path):
    saved = _config(train_steps=7, l2_norm_clip=0.1234567890123)
    (tmp_path / 'config.flags').write_text(saved.to_flags())
    assert _parse(f'--flagfile={tmp_path}/config.flags') == saved


@pytest.mark.parametrize('flagfile_first', [True, False])
def test_a_run_is_resumed_with_its_flagfile_before_or_after(flagfile_first, tmp_path):
    (tmp_path / 'config.flags').write_text(_config(run_dir='runs/old').to_flags())
    arguments = [f'--flagfile={tmp_path}/config.flags', '--resume', '--run_dir=runs/moved']
    run = _parse(*(arguments if flagfile_first else arguments[::-1])).run
    assert (run.resume, run.run_dir) == (True, 'runs/moved')


def test_comments_and_empty_lines_of_a_flagfile_are_skipped():
    text = '# one\n\n   \n// two\n--noise_multiplier=2\n  --train_steps=7  \n'
    read = config.from_flagfile(text)
    assert (read.privacy.noise_multiplier, read.privacy.train_steps) == (2.0, 7)


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('--no_such_flag=1', 'no_such_flag'),
        ('--train_steps=many', "train_steps.*'many'"),
        ('--train_steps=1.5', 'train_steps'),
        ('--private=perhaps', 'private'),
        ('train_steps=7', 'Received: train_steps=7'),
    ],
)
def test_a_bad_line_of_a_flagfile_is_named_in_one_line(line, message):
    with pytest.raises(config.ConfigError, match=message) as caught:
        config.from_flagfile(f'{line}\n--noise_multiplier=1\n')
    assert '\n' not in str(caught.value)


# Ranges.


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        *((name, 0.0) for name in ('target_epsilon', 'target_delta', 'noise_multiplier')),
        *((name, -1.0) for name in ('target_epsilon', 'target_delta', 'noise_multiplier')),
        *((name, 'nan') for name in ('target_epsilon', 'l2_norm_clip', 'residual_share')),
        *((name, 'inf') for name in ('noise_multiplier', 'target_epsilon', 'l2_norm_clip')),
        *((name, 0.0) for name in ('l2_norm_clip', 'residual_l2_norm_clip')),
        *((name, 0.0) for name in ('generator_learning_rate', 'discriminator_learning_rate')),
        *((name, -0.1) for name in ('residual_share', 'feedback_decay', 'generator_ema')),
        *((name, 1.0) for name in ('residual_share', 'feedback_decay', 'generator_ema')),
        *((name, 0) for name in ('train_steps', 'expected_batch_size', 'latent_dim')),
        *((name, 0) for name in ('generator_width', 'discriminator_width', 'logical_devices')),
        *((name, 0) for name in ('checkpoint_steps', 'log_steps', 'sample_steps')),
        *((name, 0) for name in ('limit_records', 'discriminator_steps')),
        ('target_delta', 1.0),
        ('feedback_l2_norm_clip', 0.0),
        ('reconstruction_weight', -0.5),
        ('reconstruction_weight', 'inf'),
        ('discriminator_steps', 65),
        ('logical_devices', 65),
        ('image_size', 3),
        ('channels', 4),
        ('channels', 2),
        ('images_per_person', 0),
        ('dataset_persons', 0),
        ('seed', -1),
        ('seed', 2**31),
        ('evaluation_images', 99),
        ('evaluation_runs', 0),
        ('evaluation_epochs', 0),
    ],
)
def test_a_value_out_of_range_is_named(name, value):
    with pytest.raises(config.ConfigError, match=f'^--{name} must be .* Received: ') as caught:
        _config(**{name: value})
    assert str(caught.value).endswith(f'Received: {value}.')


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('residual_share', 0),
        ('feedback_decay', 0),
        ('generator_ema', 0),
        ('reconstruction_weight', 0),
        ('train_steps', 1),
        ('discriminator_steps', 64),
        ('seed', 2**31 - 1),
        ('image_size', 4),
    ],
)
def test_the_end_of_a_range_is_allowed(name, value):
    assert _settings(_config(**{name: value}))[name] == value


def test_every_number_has_a_range():
    ranged = {name for name, f in _fields().items() if f.metadata['range'] is not None}
    numbers = {name for name, f in _fields().items() if f.metadata['kind'] in ('integer', 'float')}
    assert ranged == numbers
    for name in ranged:
        allowed = _fields()[name].metadata['range']
        assert (allowed.at_least is None) != (allowed.above is None), name
        assert allowed.at_most is None or allowed.below is None, name


@pytest.mark.parametrize('name', [n for n, f in _fields().items() if f.metadata['choices']])
def test_an_unknown_choice_is_named_with_the_known_ones(name):
    with pytest.raises(config.ConfigError, match=f'--{name} must be one of .*: other.') as caught:
        _config(**{name: 'other'})
    for choice in _fields()[name].metadata['choices']:
        assert choice in str(caught.value)


@pytest.mark.parametrize(
    ('lines', 'received'),
    [('', 'neither'), ('--target_epsilon=3\n--noise_multiplier=1', 'both')],
)
def test_one_of_epsilon_and_noise_is_demanded(lines, received):
    with pytest.raises(config.ConfigError, match=f'either .* or .* Received: {received}.'):
        config.from_flagfile(lines)
    assert not config.from_flagfile(f'{lines}\n--noprivate').privacy.private


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        ('--resume', '--resume needs --run_dir'),
        ('--strategy=one_device\n--logical_devices=2', 'needs --strategy=mirrored'),
        ('--strategy=multi_worker\n--logical_devices=2', 'needs --strategy=mirrored'),
    ],
)
def test_settings_that_do_not_go_together_are_refused(lines, message):
    with pytest.raises(config.ConfigError, match=message):
        config.from_flagfile(f'--noise_multiplier=1\n{lines}')


# Flagfiles.


def test_a_bare_name_is_looked_up_here_first_and_then_among_the_installed(tmp_path, monkeypatch):
    installed, here = tmp_path / 'installed', tmp_path / 'here'
    for folder, text in ((installed, '--train_steps=1'), (here, '--train_steps=2')):
        folder.mkdir()
        (folder / 'mine.flags').write_text(f'--noise_multiplier=1\n{text}\n')
    monkeypatch.chdir(here)
    assert config.config_dirs()[0] == here
    monkeypatch.setattr(config.flagfiles, 'config_dirs', lambda: [pathlib.Path.cwd(), installed])
    assert _parse('--flagfile=mine.flags').privacy.train_steps == 2
    (here / 'mine.flags').unlink()
    assert _parse('--flagfile=mine.flags').privacy.train_steps == 1
    with pytest.raises(config.ConfigError, match="no flagfile 'other.flags'.*mine.flags"):
        _parse('--flagfile=other.flags')


def test_a_path_is_not_looked_up_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(config.ConfigError, match='no flagfile'):
        _parse('--flagfile=./demo.flags')
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub' / 'a.flags').write_text('--noise_multiplier=3')
    assert _parse('--flagfile=sub/a.flags').privacy.noise_multiplier == 3


def test_an_unknown_flagfile_lists_all_known_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(config.ConfigError) as caught:
        _parse('--flagfile=no_such.flags')
    assert "'no_such.flags'" in str(caught.value)
    assert _CONFIGS
    for path in _CONFIGS:
        assert path.name in str(caught.value)


@pytest.mark.parametrize('path', _CONFIGS, ids=lambda path: path.name)
def test_every_config_is_valid_and_found_by_name(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _parse(f'--flagfile={path.name}') == config.from_flagfile(path.read_text())


@pytest.mark.parametrize(
    ('arguments', 'wanted'),
    [
        (['--flagfile=demo.flags'], {'dataset': 'mnist_10k'}),
        (['--flagfile', 'demo.flags', '--train_steps=3'], {'train_steps': 3}),
        (['-flagfile=demo.flags', '-train_steps', '3'], {'train_steps': 3}),
        (['--flagfile=demo.flags', '--noprivate'], {'private': False}),
        (['--noise_multiplier=1', '--dataset=folder:~/x'], {'dataset': 'folder:~/x'}),
        (
            ['--flagfile=demo.flags', '--strategy=mirrored', '--logical_devices=2'],
            {'strategy': 'mirrored', 'logical_devices': 2},
        ),
        (
            ['--flagfile=demo.flags', '--run_dir=runs/a', '--resume'],
            {'run_dir': 'runs/a', 'resume': True},
        ),
    ],
)
def test_command_lines(arguments, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert wanted.items() <= _settings(_parse(*arguments)).items()


# What is public is declared.


@pytest.mark.parametrize(
    'names',
    [
        ('cat', 'dog'),
        ('one alone',),
        ('classes.txt', 'a/b'),
        ('with, comma', 'b'),
        (' space around ', 'b  b'),
        ('#', '//', '--train_steps=1'),
        ('["', '"]'),
        ("it's", 'back\\slash', 'new\nline', '\u2028', '\x0b\x85', 'tab\t'),
        ('Löwe', '猫', 'e\u0301', 'not UTF-8: \udcff'),
        ('$HOME', '~', '%s', '{}'),
    ],
)
def test_classes_come_back_from_a_flagfile_as_they_were(names, tmp_path):
    text = config.join_classes(names)
    assert config.parse_classes(text) == names
    saved = _config()
    saved = dataclasses.replace(saved, data=dataclasses.replace(saved.data, classes=text))
    assert saved.to_flags().isascii()
    (tmp_path / 'config.flags').write_text(saved.to_flags())
    for read in (
        config.from_flagfile(saved.to_flags()),
        _parse(f'--flagfile={tmp_path}/config.flags'),
    ):
        assert read == saved and read.data.class_names == names


def test_classes_may_be_in_a_file_that_need_not_stay(tmp_path):
    path = tmp_path / 'classes.txt'
    path.write_text('\ufeffcat\n\n  rock dove \r\nLöwe, alt\n', encoding='utf-8')
    read = _config(classes=path)
    path.unlink()
    assert read.data.class_names == ('cat', 'rock dove', 'Löwe, alt')
    assert str(tmp_path) not in read.to_flags()
    assert _config(classes='cat, rock dove').data.class_names == ('cat', 'rock dove')
    assert _config(classes='cat').data.class_names == ('cat',)


@pytest.mark.parametrize(
    ('value', 'said'),
    [
        ('', 'an empty name'),
        ('a,,b', 'an empty name'),
        ('a,b,a', "'a' twice"),
        ('[]', 'no name'),
        ('["a", 3]', 'a JSON list'),
        ('[a]', 'a JSON list'),
        ('gone.txt', 'no file gone.txt'),
        ('some/where', 'no file some/where'),
    ],
)
def test_classes_that_are_none_are_named(value, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(config.ConfigError, match='--classes.*' + said):
        _config(classes=value)


@pytest.mark.parametrize(
    ('settings', 'said'),
    [
        ({'person': 'folder'}, 'no --images_per_person'),
        ({'images_per_person': 2}, 'no --person'),
        ({'dataset_persons': 9}, 'goes with --images_per_person'),
        (
            {
                'person': 'folder',
                'images_per_person': 2,
                'dataset_persons': 9,
                'dataset_size': 8,
            },
            'at most --dataset_size.*9 and 8',
        ),
        ({'read_off_records': 'classes,label'}, '--read_off_records names settings among'),
    ],
)
def test_settings_of_persons_go_together(settings, said):
    with pytest.raises(config.ConfigError, match=said):
        _config(**settings)


def test_what_was_read_off_is_not_read_again_and_what_was_given_is_given_again():
    before = _config(
        classes='a,b', channels=1, image_size=8, dataset_size=90,
        read_off_records='channels,dataset_size',
    ).data  # fmt: skip
    before = dataclasses.replace(_config(), data=before)
    now = _config(dataset_size=91).with_public_facts_of(before).data
    assert (now.classes, now.channels, now.dataset_size) == ('a,b', 1, 91)
    assert now.image_size is None and now.read_off == ('channels', 'dataset_size')
    assert _config().with_public_facts_of(_config()) == _config()


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'mixed_precision': 'float16'}, 'float16 is not offered: .* loss scaling. Give bfloat16'),
        (
            {'mixed_precision': 'bfloat16', 'reconstruction': 'generator'},
            'does not go with --reconstruction=generator: the generator then sees records',
        ),
        ({'mixed_precision': 'float64'}, 'must be one of none, bfloat16. Received: float64'),
    ],
)
def test_a_precision_in_which_records_or_gradients_would_suffer_is_refused(settings, message):
    with pytest.raises(config.ConfigError, match=message):
        _config(**settings)
    _config(mixed_precision='bfloat16', reconstruction='head')
