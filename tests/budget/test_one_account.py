"""The planner and the launcher take one path: they refuse alike, and they plan alike."""

import types

import pytest
import tensorflow as tf
from absl import flags

from tf_efsgd import budget, config
from tf_efsgd.cli import plan
from tf_efsgd.data import load
from tf_efsgd.run import build, runner
from tf_efsgd.run.context import Sources

_RECORDS, _PARAMETERS = 1602, 5_000


class _Planned(Exception):
    """Ends a run when it has its plan."""


@pytest.fixture
def launch(monkeypatch, tmp_path):
    """Runs the launcher as far as its plan, on the digits, with networks that have a size only."""
    dataset = load.load('digits')
    network = types.SimpleNamespace(private_variables=[tf.zeros([_PARAMETERS - 8]), tf.zeros([8])])
    monkeypatch.setattr(build, 'build_gan', lambda *_: (network, None))

    def stop(gan, settings, found, noise):
        raise _Planned(found)

    monkeypatch.setattr(build, 'compile_gan', stop)

    def launch(*arguments):
        flag_values = flags.FlagValues()
        config.define_flags(flag_values)
        folder = tmp_path / 'run'
        flag_values(
            ['launch', *arguments, '--dataset=digits', f'--run_dir={folder}']
            + [f'--state_dir={tmp_path / "state"}', '--strategy=one_device']
        )
        try:
            runner.run(config.from_flags(flag_values), Sources(load=lambda _: dataset))
        finally:
            # Whatever was wrong was found before anything was written.
            assert not folder.exists()

    return launch


def _forecast(*arguments):
    """Asks the planner about as many records and parameters."""
    flag_values = flags.FlagValues()
    plan.define_flags(flag_values)
    flag_values(['plan', *arguments, f'--dataset_size={_RECORDS}', f'--parameters={_PARAMETERS}'])
    return plan.answer(flag_values)


def _refusal(ask, arguments):
    with pytest.raises(config.ConfigError) as caught:
        ask(*arguments)
    assert 'Received: ' in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    'arguments',
    [
        ['--noise_multiplier=0.1'],
        ['--noise_multiplier=0.2499'],
        ['--noise_multiplier=0'],
        ['--noise_multiplier=-1'],
        ['--noise_multiplier=nan'],
        ['--noise_multiplier=inf'],
        ['--noise_multiplier=1', '--target_epsilon=1'],
        [],
        ['--target_epsilon=0'],
        ['--target_epsilon=inf'],
        ['--target_epsilon=1e-9', '--train_steps=9'],
        ['--target_epsilon=60', '--error_feedback=hidden', '--train_steps=100'],
        ['--noise_multiplier=1', f'--target_delta={1 / _RECORDS}'],
        ['--noise_multiplier=1', '--target_delta=0.01'],
        ['--noise_multiplier=1', '--target_delta=1'],
        ['--noise_multiplier=1', '--target_delta=0'],
        ['--noise_multiplier=1', '--expected_batch_size=1603'],
        ['--target_epsilon=1', '--expected_batch_size=1603'],
        ['--noise_multiplier=1', '--expected_batch_size=0'],
        ['--noise_multiplier=1', '--train_steps=0'],
        ['--noise_multiplier=1', '--l2_norm_clip=0'],
        ['--noise_multiplier=1', '--l2_norm_clip=1e10'],
        ['--noise_multiplier=1', '--residual_l2_norm_clip=1e-10'],
        ['--noise_multiplier=1', '--residual_share=1'],
        ['--noise_multiplier=1', '--feedback_decay=1'],
        ['--noise_multiplier=1', '--feedback_l2_norm_clip=0'],
        ['--noise_multiplier=0.7', '--error_feedback=hidden'],
        ['--noise_multiplier=1', '--error_feedback=open'],
        ['--noise_multiplier=1', '--warm_start_noise_multiplier=0.1'],
        ['--noise_multiplier=1', '--warm_start_share=0.5'],
        ['--target_epsilon=1', '--warm_start_noise_multiplier=3'],
        ['--target_epsilon=90', '--warm_start_share=0.5'],
        ['--target_epsilon=90', '--warm_start_share=1'],
        ['--target_epsilon=1', '--warm_start_share=1.5'],
        ['--target_epsilon=1', '--warm_start_share=0.5', '--learned_features_share=1'],
    ],
    ids=' '.join,
)
def test_the_planner_and_the_launcher_refuse_alike(arguments, launch):
    said = _refusal(launch, arguments)
    assert said == _refusal(_forecast, arguments)
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    'arguments',
    [
        ['--noise_multiplier=0.25', '--train_steps=3'],
        ['--noise_multiplier=2', '--train_steps=3', '--target_delta=0.01', '--allow_large_delta'],
        ['--noise_multiplier=2', '--train_steps=3', '--error_feedback=none'],
        ['--noise_multiplier=9', '--train_steps=3', '--warm_start_noise_multiplier=2']
        + ['--learned_features_share=0.3'],
        ['--target_epsilon=3', '--warm_start_share=1'],
        ['--target_epsilon=3', '--train_steps=30', '--error_feedback=hidden']
        + ['--warm_start_share=0.3'],
        ['--target_epsilon=3', '--train_steps=3', '--expected_batch_size=160'],
    ],
    ids=' '.join,
)
def test_the_planner_and_the_launcher_plan_alike(arguments, launch, monkeypatch):
    forecasts, forecast = [], plan.forecast

    def keep(*given):
        forecasts.append(forecast(*given))
        return forecasts[-1]

    monkeypatch.setattr(plan, 'forecast', keep)
    text = _forecast(*arguments)
    with pytest.raises(_Planned) as caught:
        launch(*arguments)
    (launched,), (planned,) = caught.value.args, forecasts
    for name in (
        *('event', 'unproven_event', 'mechanism', 'private_parameters', 'warm_start_event'),
        *('warm_start_noise_multiplier', 'learned_features_share', 'train_steps'),
        *('target_delta', 'target_epsilon', 'dataset_size', 'expected_batch_size'),
        *('images_per_person', 'persons', 'unit_of_privacy'),
    ):
        assert getattr(planned.plan, name) == getattr(launched, name), name
    assert planned.epsilon == budget.planned_epsilon(launched)
    assert f'{launched.unit_of_privacy}\n' in text
