import pytest

from tf_efsgd.reporting.verdict import verdict


def _metrics(score, real=0.9, guessing=0.1, num_test=1000, **more):
    found = {'accuracy': score, 'guessing': guessing, 'num_test': num_test, **more}
    return {'gen2real_cnn': {**found, 'real': {'accuracy': real}}}


@pytest.mark.parametrize(
    ('score', 'wanted'),
    [
        (0.125, 'NO BETTER THAN GUESSING'),
        (0.13, 'good for testing code, not for training'),
        (0.49, 'good for testing code, not for training'),
        (0.51, 'good for prototypes'),
        (0.75, 'good for training a first classifier'),
        (0.87, 'nearly as good for training as real images'),
        (0.93, 'nearly as good for training as real images'),
    ],
)
def test_it_says_what_the_images_are_good_for(score, wanted):
    said = verdict(_metrics(score))
    assert wanted in said and f'right on {score:.0%} of real ones' in said
    assert 'on 10%' in said and 'on 90%' in said


def test_always_saying_the_largest_class_is_guessing():
    metrics = _metrics(0.735, real=0.94, guessing=0.5, num_test=583, largest_class=0.729)
    assert 'NO BETTER THAN GUESSING' in verdict(metrics) and '73%' in verdict(metrics)
    assert 'NO BETTER' not in verdict({**_metrics(0.735, guessing=0.5, num_test=583)})


def test_without_a_score_it_says_so():
    assert 'was not measured' in verdict({})
