"""Tests of plans: what is refused for its noise, and when."""

import pytest

from tf_efsgd import budget, config

_FACTS = {'dataset': 'digits', 'dataset_size': 1602, 'image_shape': (8, 8, 1), 'num_classes': 10}
_HIDDEN = '--error_feedback=hidden\n--residual_l2_norm_clip=2\n--train_steps=100\n'


def _plan(flags):
    return budget.make_plan(config.from_flagfile(flags), _FACTS)


def test_a_hidden_buffer_with_a_large_clip_gets_the_noise_that_it_needs():
    plan = _plan(_HIDDEN + '--target_epsilon=10')
    # mu = sqrt(T) (C1 + 2 C2) / (sigma C1), which is 1.9 at epsilon 10 and delta 1e-5.
    assert plan.event['noise_multiplier'] == pytest.approx(100**0.5 / 1.9, rel=0.1)
    assert budget.planned_epsilon(plan).headline <= 10


def test_without_steps_no_noise_of_theirs_is_too_small():
    plan = _plan(_HIDDEN + '--target_epsilon=10\n--warm_start_share=1')
    assert plan.train_steps == 0


def test_too_little_noise_that_was_given_is_refused():
    with pytest.raises(config.ConfigError, match='must be at least 0.25 times'):
        _plan(_HIDDEN + '--noise_multiplier=1')
