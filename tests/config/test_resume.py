"""What a resumed run shares with its first start: every rule, and the settings' hash."""

import dataclasses
import hashlib

import pytest

from tf_efsgd import config
from tf_efsgd.config import fields, recipes

# The rules once more, by name; a setting that is in none of these keeps its value.
_MAY_CHANGE = {
    *('data_dir', 'tfds_manual_dir', 'strategy', 'logical_devices'),
    *('log_nonprivate_diagnostics', 'dataset_budget'),
    *('checkpoint_steps', 'log_steps', 'sample_steps', 'evaluate', 'evaluation_images'),
    *('evaluation_runs', 'evaluation_epochs', 'export', 'minutes'),
    *('skip_unreadable', 'cache', 'cache_dir', 'worker_timeout', 'worker_records'),
}
_STAYS = {'clipping', 'microbatch_size', 'mixed_precision', 'jit_compile'}
_MECHANISM = {
    *('target_epsilon', 'allow_large_delta', 'noise_multiplier', 'l2_norm_clip'),
    *('expected_batch_size', 'train_steps', 'error_feedback', 'residual_l2_norm_clip'),
    *('residual_share', 'feedback_decay', 'feedback_l2_norm_clip', 'clip_fake'),
}
_ONE_START = {'run_dir', 'resume', 'change_mechanism', 'resume_unverified', 'state_dir'}
_PLACES = {'dataset', 'person', 'label'}

_BEFORE = '--noise_multiplier=2\n--dataset=digits'


def _fields():
    groups = dataclasses.fields(config.RunConfig)
    return {f.name: f for group in groups for f in dataclasses.fields(group.default)}


def _names(rule):
    return {name for name, field in _fields().items() if field.metadata['on_resume'] == rule}


def _config(text, **changes):
    """Settings with changes that need not go together."""
    read = config.from_flagfile(text)
    groups = {}
    for group in dataclasses.fields(read):
        settings = getattr(read, group.name)
        of_group = {
            f.name: changes[f.name] for f in dataclasses.fields(settings) if f.name in changes
        }
        groups[group.name] = dataclasses.replace(settings, **of_group)
    changed = object.__new__(config.RunConfig)
    for name, settings in groups.items():
        object.__setattr__(changed, name, settings)
    return changed


def _other(field):
    """A value that is not the default."""
    if field.metadata['choices']:
        return next(c for c in field.metadata['choices'] if c != field.default)
    kind = field.metadata['kind']
    return {'boolean': not field.default, 'string': 'other', 'integer': 777, 'float': 0.777}[kind]


# Without a value of theirs, which earlier versions did not have.
_WITH_EARLIER = {'dataset', 'public_features', 'discriminator', 'generator'}


def test_every_setting_has_its_rule():
    assert _names('may_change') == _MAY_CHANGE
    assert _names('stays') == _STAYS
    assert _names('mechanism') == _MECHANISM
    assert _names('one_start') == _ONE_START
    assert _names('may_move') == _PLACES
    rest = _MAY_CHANGE | _STAYS | _MECHANISM | _ONE_START | _PLACES
    assert _names('same') == set(_fields()) - rest


@pytest.mark.parametrize('name', _fields())
@pytest.mark.parametrize('change_mechanism', [False, True])
def test_a_resumed_run_changes_what_its_rule_allows(name, change_mechanism):
    before = config.from_flagfile(_BEFORE)
    now = _config(_BEFORE, **{'change_mechanism': change_mechanism, name: _other(_fields()[name])})
    allowed = name in _MAY_CHANGE | _STAYS | _ONE_START or (change_mechanism and name in _MECHANISM)
    changed = config.forbidden_changes(before, now)
    assert [text.split()[0] for text in changed] == ([] if allowed else [f'--{name}'])


@pytest.mark.parametrize('name', _fields())
def test_what_lasts_is_written_down(name):
    before, now = config.from_flagfile(_BEFORE), _config(_BEFORE, **{name: _other(_fields()[name])})
    lasting = {name: _other(_fields()[name])} if name in _STAYS | _PLACES else {}
    assert config.lasting_changes(before, now) == lasting


@pytest.mark.parametrize('name', sorted(_STAYS))
def test_what_stays_is_kept_until_somebody_gives_another_value(name):
    before, now = _config(_BEFORE, **{name: _other(_fields()[name])}), config.from_flagfile(_BEFORE)

    def kept(given):
        resumed = recipes.as_before(now, given, before)
        group = resumed.privacy if name == 'clipping' else resumed.training
        return getattr(group, name)

    assert kept(['dataset']) == _other(_fields()[name])
    assert kept(['dataset', name]) == _fields()[name].default


@pytest.mark.parametrize('name', _fields())
def test_the_hash_holds_what_every_start_shares(name):
    before, now = config.from_flagfile(_BEFORE), _config(_BEFORE, **{name: _other(_fields()[name])})
    is_free = name in _MAY_CHANGE | _STAYS | _MECHANISM | _ONE_START | {'dataset'}
    assert (config.settings_hash(now) == config.settings_hash(before)) == is_free


def test_the_hash_is_of_these_lines_in_their_order():
    settings = config.from_flagfile(f'{_BEFORE}\n--person=csv:/a/b.csv\n--images_per_person=3')
    labels = config.from_flagfile(f'{_BEFORE}\n--label=csv:/a/c.csv')
    moved = config.from_flagfile(f'{_BEFORE}\n--label=csv:/d/e.csv')
    assert config.settings_hash(labels) == config.settings_hash(moved)
    # What earlier versions did is no line.
    free = _MAY_CHANGE | _STAYS | _MECHANISM | _ONE_START | _WITH_EARLIER

    def is_free(line):
        name = line.split('=')[0].strip().removeprefix('--')
        return (name if name in _fields() else name.removeprefix('no')) in free

    lines = [line for line in settings.to_flags().splitlines(keepends=True) if not is_free(line)]
    assert [line.split('=')[0].strip() for line in lines] == [
        *('--label', '--images_per_person', '--person', '--private', '--target_delta'),
        *('--warm_start_share', '--learned_features_share', '--nosecure_noise', '--latent_dim'),
        *('--generator_width', '--discriminator_width', '--noise_injection', '--reconstruction'),
        *('--reconstruction_weight', '--generator_ema', '--warm_start_steps'),
        *('--learned_features_steps', '--warm_start_weight', '--discriminator_only_steps'),
        *('--discriminator_steps', '--adaptive_discriminator_steps', '--generator_learning_rate'),
        *('--discriminator_learning_rate', '--seed'),
    ]
    text = ''.join(lines)
    placed = hashlib.sha256(text.encode()).hexdigest()
    assert config.settings_hash(settings, has_place=True) == placed
    text = text.replace('csv:/a/b.csv', 'csv')
    assert config.settings_hash(settings) == hashlib.sha256(text.encode()).hexdigest()


def test_the_hash_of_a_ledger_that_was_written_before_is_found_again():
    """The hash that earlier versions wrote for these settings."""
    golden = '762e21891e23e6215b22acca752495ea086cff7f32638ba066953d3d525d5d32'
    assert config.settings_hash(config.from_flagfile(_BEFORE)) == golden


@pytest.mark.parametrize(
    ('kind', 'default', 'other'),
    [('boolean', False, True), ('boolean', True, False), ('integer', 0, 3), ('number', 0.3, 0.7)],
)
def test_a_new_setting_leaves_the_hash_of_runs_that_were_before_it(kind, default, other):
    before = config.from_flagfile(_BEFORE)

    def hash_with(earlier, value):
        field = getattr(fields, kind)(default, 'Of a later version.', earlier=earlier)
        annotated = [('fresh', type(default), field)]
        later = dataclasses.make_dataclass(
            'Later', annotated, bases=(type(before.training),), frozen=True
        )
        return config.settings_hash(dataclasses.replace(before, training=later(fresh=value)))

    assert hash_with(default, default) == config.settings_hash(before)
    assert hash_with(default, other) != config.settings_hash(before)
    assert hash_with(None, default) != config.settings_hash(before)


@pytest.mark.parametrize('make', [fields.boolean, fields.integer, fields.number, fields.string])
def test_the_default_of_a_new_setting_is_what_runs_did_before(make):
    with pytest.raises(ValueError, match='what runs did before, 3, or "auto". Received: 2'):
        make(2, 'Of a later version.', earlier=3)


@pytest.mark.parametrize(
    ('name', 'value', 'wanted'),
    [
        ('dataset', 'folder:/a/b', 'folder'),
        ('dataset', 'idx:/a/b', 'idx'),
        ('dataset', 'mnist', 'mnist'),
        ('person', 'csv:/a/b.csv', 'csv'),
        ('person', 'name:^(.)', 'name:^(.)'),
        ('person', None, None),
        ('label', 'csv:/a/b.csv', 'csv'),
        ('label', 'Smiling', 'Smiling'),
        ('data_dir', 'folder:/a', 'folder:/a'),
    ],
)
def test_a_place_is_taken_away_where_there_is_one(name, value, wanted):
    assert config.without_place(value, name) == wanted
