"""The page that may not be shared: it says so first, and shows every figure with its scale."""

import copy
import re

import pytest
import tensorflow as tf
from helpers import read_page

from tf_efsgd.reporting import metrics_page

_PNG = tf.io.encode_png(tf.zeros([1, 1, 1], tf.uint8)).numpy()
_ENDS = {'untrained': {'test': 40.0, 'train': 50.0}, 'real': {'test': 2.0, 'train': 1.0}}
_NEAR = {'median_distance': 3.0, 'identical_pixels': 0, 'num_images': 500}
_METRICS = {
    'gen2real_cnn': {
        'accuracy': 0.8,
        'spread': 0.0123,
        'accuracies': [0.79, 0.81],
        'num_generated': 1000,
        'num_test': 300,
        'guessing': 0.1,
        'untrained': {'accuracy': 0.2},
        'real': {'accuracy': 1.0},
    },
    'domain_is': {'value': 5.0, 'untrained': 1.0, 'real': 9.0},
    'domain_fid': {'test': 11.5, 'train': 12.5, **_ENDS},
    'features': 'real_cnn',
    'precision_recall': {
        'precision': 0.7,
        'recall': 0.5,
        'num_images': 300,
        'untrained': {'precision': 0.0, 'recall': 0.0},
        'real': {'precision': 0.9, 'recall': 0.9},
    },
    'duplicates': {
        'generated': {'close_share': 0.02, **_NEAR},
        'untrained': {'close_share': 0.0, **_NEAR},
        'test': {'close_share': 0.01, **_NEAR},
    },
    'provenance': {'epsilon_pld': 9.99, 'machine': '<two> cores', 'steps': 30},
}


def _write(folder, metrics=_METRICS, pictures=None):
    pictures = {'generated': _PNG, 'test': _PNG} if pictures is None else pictures
    path = folder / 'metrics.html'
    metrics_page.write_metrics_page(
        path, title='Digits <1>: real', metrics=metrics, pictures=pictures
    )
    return path.read_text(encoding='utf-8')


def test_page_says_at_its_top_that_it_may_not_be_shared(tmp_path):
    text = read_page.text(_write(tmp_path))
    assert text.startswith('Digits <1>: real Do NOT share this page')
    assert 'not covered' in text
    assert 'may be shared' not in text


def test_page_stands_alone_and_escapes(tmp_path):
    page = _write(tmp_path)
    read_page.check_stands_alone(page)
    assert page.count('data:image/png;base64,') == 2
    assert 'two' not in read_page.Parsed(page).tags


def test_each_figure_stands_beside_both_ends_of_its_scale(tmp_path):
    text = read_page.text(_write(tmp_path))
    for row in (
        'gen2real, CNN80.0% ± 1.2%20.0%100.0%',
        'domain IS519',
        'domain FID to the test split11.5402',
        'domain FID to the train split12.5501',
        'precision70.0%0.0%90.0%',
        'images closer to a training image than 1 in 100 test images is2.0%0.0%1.0%',
    ):
        assert row in text
    assert 'must not be compared with a published FID' in text
    assert 'FID (Inception' not in text


def test_mark_is_where_the_value_is_on_its_scale(tmp_path):
    page = _write(tmp_path)
    [row] = re.findall(r'<tr><th>gen2real, CNN.*?</tr>', page)
    assert '75% of the way' in row
    assert float(re.search(r'cx="([\d.]+)"', row)[1]) == pytest.approx(12 + 0.75 * 176)
    # From 40 down to 2; and one that lies beyond its end.
    assert '75% of the way' in re.search(r'<tr><th>domain FID to the test.*?</tr>', page)[0]
    metrics = {**_METRICS, 'domain_is': {'value': 17.0, 'untrained': 1.0, 'real': 9.0}}
    beyond = re.search(r'<tr><th>domain IS.*?</tr>', _write(tmp_path, metrics))[0]
    assert '200% of the way' in beyond and 'cx="188.0"' in beyond


def test_guessing_stands_for_an_untrained_generator_that_was_not_measured(tmp_path):
    metrics = copy.deepcopy(_METRICS)
    metrics['gen2real_cnn'].update(untrained=None, spread=None, accuracies=[0.8])
    text = read_page.text(_write(tmp_path, metrics))
    assert 'gen2real, CNN80.0%10.0%100.0%' in text
    assert 'of guessing' in text


def test_one_class_without_a_test_split(tmp_path):
    metrics = copy.deepcopy(_METRICS)
    for name in ('gen2real_cnn', 'domain_is', 'domain_fid'):
        del metrics[name]
    del metrics['duplicates']['test']
    for near in metrics['duplicates'].values():
        near['close_share'] = None
    metrics['features'] = 'pixels'
    text = read_page.text(_write(tmp_path, metrics, {'generated': _PNG}))
    assert 'No gen2real: it needs at least two classes' in text
    assert 'Features: pixels' in text
    assert 'test images isnonenonenone' in text


def test_fid_of_the_inception_network_is_named_so(tmp_path):
    metrics = {**_METRICS, 'fid': {'test': 20.0, 'train': 21.0, **_ENDS}}
    text = read_page.text(_write(tmp_path, metrics))
    assert 'FID (Inception 2015) to the test split20402' in text
    assert '--inception_weights' not in text
    assert '--inception_weights' in read_page.text(_write(tmp_path))


def test_what_is_no_png_is_refused(tmp_path):
    with pytest.raises(ValueError, match='PNG'):
        _write(tmp_path, pictures={'generated': b'GIF'})
    assert list(tmp_path.iterdir()) == []


def test_classes_weakest_first(tmp_path):
    metrics = copy.deepcopy(_METRICS)
    metrics['class_names'] = ['cat <1>', 'dog', 'eel', 'fox']
    metrics['gen2real_cnn'] |= {
        'by_class': [0.9, 0.25, None, 0.5],
        'real_by_class': [1.0, 0.75, None, 0.625],
    }
    metrics['public_fid'] = {'test': 1.5, 'train': 1.25, **_ENDS}

    text = read_page.text(_write(tmp_path, metrics))

    order = r'dog\s*25.0%\s*10.0%\s*75.0%.*fox\s*50.0%\s*10.0%\s*62.5%.*cat <1>\s*90.0%'
    assert re.search(order, text)
    assert 'eel' not in text
    assert re.search(r'public FID to the test split\s*1.5', text)
    assert 'flatters' in text
