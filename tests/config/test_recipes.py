import dataclasses

import pytest

from tf_efsgd import config
from tf_efsgd.config import recipes

_SPEED = recipes.Speed(fit=0.2, private=0.5)


def _complete(lines, shape=(32, 32, 3), records=20_000, classes=10, given=None, speed=_SPEED):
    settings = config.from_flagfile('\n'.join(lines))
    if given is None:
        given = [line.lstrip('-').split('=')[0] for line in lines]
    facts = recipes.Facts(records, classes, shape)
    asked = []

    def measure(of):
        asked.append(of)
        return speed

    return recipes.complete(settings, given, facts, measure), asked


def test_a_colour_folder_and_an_epsilon_are_enough():
    chosen, [measured] = _complete(['--dataset=folder:photos', '--target_epsilon=10'])
    assert chosen.privacy.public_features == 'efficientnet_lite0'
    assert chosen.model.discriminator == 'public_heads'
    assert chosen.privacy.expected_batch_size == 2048
    # 95% of 30 minutes at half a second, in two digits.
    assert chosen.privacy.train_steps == 3400
    assert chosen.training.warm_start_steps == 450
    assert chosen.training.discriminator_steps == 1
    assert chosen.model.generator == 'skip'
    assert 'auto' not in (measured.privacy.public_features, measured.model.discriminator)
    assert measured.model.generator == 'skip'
    assert config.from_flagfile(chosen.to_flags()) == chosen


def test_what_was_given_stays():
    lines = ['--target_epsilon=10', '--generator_width=32', '--seed=3']
    chosen, _ = _complete([*lines, '--warm_start_steps=7'])
    assert chosen.model.generator_width == 32 and chosen.training.warm_start_steps == 7


def test_a_batch_is_not_larger_than_a_small_data_set():
    chosen, _ = _complete(['--target_epsilon=10'], shape=(28, 28, 1), records=81)
    assert chosen.privacy.expected_batch_size == 81
    chosen, _ = _complete(['--target_epsilon=10'], shape=(28, 28, 1))
    assert chosen.privacy.expected_batch_size == 128


def test_the_evaluation_of_larger_images_is_smaller():
    lines = ['--target_epsilon=10']

    def images(lines, side):
        return _complete(lines, shape=(side, side, 3))[0].run.evaluation_images

    assert images(lines, 32) == config.from_flagfile(lines[0]).run.evaluation_images == 20_000
    assert images(lines, 48) == images(lines, 64) == 10_000
    assert images([*lines, '--evaluation_images=300'], 64) == 300


def test_more_minutes_are_more_steps_up_to_a_limit():
    steps = [
        _complete(['--target_epsilon=10', f'--minutes={m}'])[0].privacy.train_steps
        for m in (1, 10, 20, 1000)
    ]
    assert steps == [110, 1100, 2200, 5000]


def test_small_gray_images_have_releases_of_pixels_alone():
    chosen, _ = _complete(['--target_epsilon=10'], shape=(28, 28, 1))
    assert chosen.privacy.public_features == 'none'
    assert chosen.model.discriminator == 'pixels'
    assert chosen.model.generator == 'plain'
    assert chosen.privacy.warm_start_share == 1
    assert chosen.privacy.learned_features_share == 0.5
    fitted = chosen.training.warm_start_steps + chosen.training.learned_features_steps
    assert fitted == 9000  # 30 minutes at a fifth of a second.
    # Where steps to both releases take longer, and learning takes its time, there are fewer.
    slow = recipes.Speed(fit=0.2, private=0.5, both=0.4, learning=115.0)
    chosen, _ = _complete(['--target_epsilon=10'], shape=(28, 28, 1), speed=slow)
    training = chosen.training
    assert (training.warm_start_steps, training.learned_features_steps) == (3600, 2400)
    assert 0.2 * 3600 + 0.4 * 2400 + 115 <= 30 * 60
    # At a small budget each of two releases would be too noisy.
    chosen, _ = _complete(['--target_epsilon=1'], shape=(28, 28, 1))
    assert chosen.privacy.learned_features_share == 0
    fast = recipes.Speed(0.001, 0.001)
    chosen, _ = _complete(['--target_epsilon=1'], shape=(28, 28, 1), speed=fast)
    assert chosen.training.warm_start_steps == 10_000
    chosen, _ = _complete(['--target_epsilon=10'], shape=(28, 28, 1), speed=fast)
    assert chosen.training.warm_start_steps == 12_000
    assert chosen.training.learned_features_steps == 8_000


def test_without_public_features_colour_has_releases_of_pixels():
    chosen, _ = _complete(['--target_epsilon=10', '--public_features=none'])
    assert chosen.privacy.public_features == 'none'
    assert chosen.model.discriminator == 'pixels'


def test_few_records_get_small_batches_and_many_a_small_delta():
    chosen, _ = _complete(['--target_epsilon=10'], records=800)
    assert chosen.privacy.expected_batch_size == 100
    assert chosen.privacy.target_delta == 1e-5
    chosen, _ = _complete(['--target_epsilon=10'], records=200_000)
    assert chosen.privacy.target_delta == pytest.approx(1e-6)


@pytest.mark.parametrize(
    'own', ['train_steps=9', 'expected_batch_size=9', 'warm_start_share=0.5', 'noise_multiplier=1']
)
def test_who_has_a_recipe_keeps_it(own):
    budget = [] if own.startswith('noise') else ['--target_epsilon=10']
    lines = [*budget, f'--{own}']
    chosen, asked = _complete(lines)
    assert asked == []
    before = config.from_flagfile('\n'.join(lines))
    for group in ('data', 'training', 'run'):
        old, new = getattr(before, group), getattr(chosen, group)
        if chosen.model.discriminator == 'pixels' or group != 'training':
            assert new == old
    assert chosen.privacy.train_steps == before.privacy.train_steps
    # Public features come with a warm start alone.
    uses = own.startswith('warm_start')
    assert (chosen.privacy.public_features != 'none') is uses
    assert recipes.uses_public_features(chosen.privacy) is uses


def test_heads_reconstruct_at_a_weight_of_their_own():
    lines = ['--target_epsilon=10', '--warm_start_share=0.5', '--train_steps=9']
    for given in (lines, ['--target_epsilon=10']):
        model = _complete(given)[0].model
        assert (model.discriminator, model.reconstruction) == ('public_heads', 'head')
        assert model.reconstruction_weight == 0.001
    kept = _complete([*lines, '--reconstruction_weight=0.1'])[0].model
    assert kept.reconstruction_weight == 0.1
    assert _complete([*lines, '--reconstruction=none'])[0].model.reconstruction == 'none'
    on_pixels = _complete(['--target_epsilon=10', '--train_steps=9'])[0].model
    assert (on_pixels.reconstruction, on_pixels.reconstruction_weight) == ('head', 0.01)
    with pytest.raises(config.ConfigError, match='give --discriminator=pixels'):
        _complete([*lines, '--reconstruction=generator', '--discriminator=public_heads'])


def test_a_run_folder_of_an_earlier_version_stays_what_it_was():
    lines = ['--target_epsilon=10', '--warm_start_share=0.5', '--train_steps=9']
    before = config.from_flagfile('\n'.join(lines))
    assert before.privacy.public_features == 'auto'
    resumed = recipes.as_before(before, ['target_epsilon'], before)
    assert resumed.privacy.public_features == 'none'
    assert resumed.model.discriminator == 'pixels'
    # The hash of such settings is that of the version before there was the choice.
    text = resumed.to_flags()
    assert '--public_features=none' in text
    old = dataclasses.replace(resumed)
    assert config.settings_hash(old) == config.settings_hash(resumed)
    other = recipes._with(resumed, {'public_features': 'efficientnet_lite0'})
    assert config.settings_hash(other) != config.settings_hash(resumed)


def test_on_resume_what_nobody_gives_stays_what_was_chosen():
    chosen, _ = _complete(['--dataset=folder:photos', '--target_epsilon=10'])
    again = config.from_flagfile('--dataset=folder:photos\n--target_epsilon=10')
    resumed = recipes.as_before(again, ['dataset', 'target_epsilon'], chosen)
    assert resumed.privacy == chosen.privacy and resumed.training == chosen.training
    assert resumed.model == chosen.model
    given = ['dataset', 'target_epsilon', 'train_steps']
    assert recipes.as_before(again, given, chosen).privacy.train_steps == 5000


def test_everything_names_all_settings():
    assert {'dataset', 'target_epsilon', 'minutes', 'run_dir'} <= recipes.EVERYTHING


@pytest.mark.parametrize(
    ('side', 'wanted'),
    [(3, None), (8, 8), (9, 8), (27, 24), (28, 28), (31, 28), (40, 32), (64, 64), (3000, 64)],
)
def test_images_get_a_size_that_a_cpu_can_train(side, wanted):
    assert recipes.image_size(side) == wanted
