"""What is measured of a generator: the figures, both ends of their scale, and what is left out."""

import dataclasses

import numpy as np
import pytest
from helpers.toy_images import toy

from tf_efsgd.evaluation import classifiers, looks, protocol
from tf_efsgd.evaluation.real_classifiers import RealClassifiers

_TRAIN, _TEST = toy(300, 0), toy(100, 1)
_SIZES = protocol.Sizes(images=120, runs=2, epochs=2)


def _noise(labels):
    return np.random.default_rng(3).integers(0, 255, [len(labels), 8, 8, 1]).astype(np.uint8)


def _like_real(labels):
    records = toy(4 * len(labels), 2)
    images = np.zeros([len(labels), 8, 8, 1], np.uint8)
    for label in range(3):
        images[labels == label] = records.images[records.labels == label][: sum(labels == label)]
    return images


def _copied(labels):
    return np.stack([_TRAIN.images[_TRAIN.labels == label][0] for label in labels])


@pytest.fixture(scope='module')
def real(tmp_path_factory):
    return RealClassifiers(_TRAIN, tmp_path_factory.mktemp('kept'), epochs=4)


def _measure(generate, real, *, train=_TRAIN, test=_TEST, sizes=_SIZES, **more):
    return protocol.measure(generate, _noise, train, test, sizes, real, **more)


def _network(images, progress):
    """Stands for the Inception network."""
    del progress
    return images.reshape(len(images), -1)[:, ::8] / 255


@pytest.fixture(scope='module')
def good(real):
    return _measure(_like_real, real, inception=_network)


@pytest.mark.acceptance
def test_the_three_of_the_benchmark_and_their_mean(real):
    sizes = dataclasses.replace(_SIZES, benchmark_classifiers=True, untrained_classifiers=False)

    metrics = _measure(_like_real, real, sizes=sizes).metrics

    three = [metrics[f'gen2real_{name}'] for name in ('resnet', 'wide_resnet', 'resnext')]
    mean = metrics['gen2real_benchmark']
    assert mean['accuracy'] == pytest.approx(np.mean([one['accuracy'] for one in three]))
    assert mean['real']['accuracy'] == pytest.approx(
        np.mean([one['real']['accuracy'] for one in three])
    )
    assert len(mean['accuracies']) == 2 and mean['untrained'] is None


def test_scores_of_each_class(good):
    found = good.metrics['gen2real_cnn']
    counts = np.bincount(_TEST.labels, minlength=3)
    assert np.average(found['by_class'], weights=counts) == pytest.approx(found['accuracy'])
    assert np.average(found['real_by_class'], weights=counts) == pytest.approx(
        found['real']['accuracy']
    )
    assert good.metrics['class_names'] == list(_TEST.class_names)


def test_public_fid_has_both_ends_of_its_scale(real):
    with_network = _measure(_like_real, real, public_look=_network).metrics['public_fid']
    assert with_network['test'] < 0.2 * with_network['untrained']['test']
    assert with_network['real']['test'] < with_network['untrained']['test']


def test_a_good_generator_is_near_the_real_end_of_every_scale(good):
    metrics = good.metrics
    for name in ('gen2real_cnn', 'gen2real_mlp', 'real2gen_cnn'):
        found = metrics[name]
        assert len(found['accuracies']) == 2
        assert found['accuracy'] == pytest.approx(np.mean(found['accuracies']))
        assert found['untrained']['accuracy'] < 0.6
        assert found['real']['accuracy'] > 0.9
    assert metrics['real2gen_cnn']['accuracy'] > 0.9
    assert metrics['gen2real_cnn']['num_generated'] == 120
    for name in ('domain_fid', 'domain_kid', 'fid', 'kid'):
        for split in ('train', 'test'):
            found = metrics[name]
            worst, best = found['untrained'][split], found['real'][split]
            assert abs(found[split] - best) < 0.3 * (worst - best)
    assert 1 <= metrics['domain_is']['untrained'] < metrics['domain_is']['value'] <= 3
    assert metrics['domain_is']['value'] == pytest.approx(metrics['domain_is']['real'], rel=0.1)
    assert metrics['fid'] != metrics['domain_fid']


def test_precision_falls_with_the_quality(good):
    found = good.metrics['precision_recall']
    assert found['precision'] > 0.7 > 0.3 > found['untrained']['precision']
    assert found['real']['precision'] > 0.7
    assert found['num_images'] == 100


def test_what_is_generated_is_no_copy(good):
    found = good.metrics['duplicates']
    assert found['generated']['identical_pixels'] == 0
    assert found['generated']['close_share'] < 0.3
    assert found['test']['close_share'] == pytest.approx(found['close_quantile'], abs=0.01)
    assert set(good.pairs) == {'generated', 'test'}


def test_copies_of_training_images_are_found_and_shown(real):
    sizes = dataclasses.replace(_SIZES, runs=1, epochs=1, untrained_classifiers=False)
    asked = []

    def generate(labels):
        asked.append(labels)
        return _copied(labels)

    measured = _measure(generate, real, sizes=sizes)
    (labels,) = asked
    assert labels.dtype == np.int32
    assert np.bincount(labels).tolist() == [40, 40, 40]
    found = measured.metrics['duplicates']
    assert found['generated']['identical_pixels'] == 120
    assert found['generated']['close_share'] == 1
    assert found['generated']['median_distance'] < found['test']['median_distance'] / 5
    pairs = measured.pairs['generated']
    np.testing.assert_array_equal(pairs.images, pairs.nearest)
    assert 'fid' not in measured.metrics
    # The untrained generator was not learned from.
    assert measured.metrics['gen2real_cnn']['untrained'] is None
    assert measured.metrics['gen2real_cnn']['guessing'] == pytest.approx(1 / 3)
    assert measured.metrics['gen2real_cnn']['spread'] is None


# Test images among the training images, by their share, and what the copies then are.


def _spots(shade):
    """Images of one bright pixel each, in a place of its own."""
    images = np.zeros([60, 8, 8, 1], np.uint8)
    for place, image in enumerate(images):
        image.flat[place] = shade
    return images


def _duplicates_of(generated, test, train=None):
    """Of images whose pixels are the features, with `_spots(200)` as training images."""
    train = _spots(200) if train is None else train
    images = {'train': train, 'generated': generated, 'untrained': 255 - generated, 'test': test}
    sets = {
        name: dataclasses.replace(_TRAIN, images=i, labels=np.zeros(len(i), np.int32))
        for name, i in images.items()
    }
    features = {name: i.reshape(len(i), -1).astype(float) for name, i in images.items()}
    return protocol._duplicates(features, sets)[0]


@pytest.mark.parametrize('repeated', [0, 1, 30])
def test_test_images_that_repeat_training_images_hide_no_copy(repeated):
    train, apart = _spots(200), _spots(150)  # At a distance of 50 from the training images.
    test = np.concatenate([train[:repeated], apart[repeated:]])
    # 12 copies, 6 images nearer than any other test image, 42 further away.
    generated = np.concatenate([train[:12], _spots(190)[12:18], _spots(100)[18:]])
    found = _duplicates_of(generated, test)
    assert found['close_distance'] == pytest.approx(50)
    assert found['generated']['close_share'] == pytest.approx(18 / 60)
    assert found['generated']['identical_pixels'] == 12
    assert found['test']['close_share'] == pytest.approx(repeated / 60)
    assert found['untrained']['close_share'] == 0


def test_where_all_test_images_repeat_training_images_only_copies_count():
    train = _spots(200)
    generated = np.concatenate([train[:12], _spots(190)[12:]])
    found = _duplicates_of(generated, train[:30])
    assert found['close_distance'] == 0
    assert found['generated']['close_share'] == pytest.approx(12 / 60)
    assert found['test']['close_share'] == 1


def test_features_that_differ_by_rounding_are_a_copy(monkeypatch):
    nearest = protocol.distances.nearest

    def rounded(references, queries):
        found, indices = nearest(references, queries)
        return found + 1e-4, indices  # The features of a training image have the norm 200.

    monkeypatch.setattr(protocol.distances, 'nearest', rounded)
    monkeypatch.setattr(protocol, '_digest', id)  # No two images have the same pixels.
    train = _spots(200)
    test = np.concatenate([train[:30], _spots(150)[30:]])
    found = _duplicates_of(train[:12], test)
    assert found['close_distance'] == pytest.approx(50, abs=1e-3)
    assert found['generated']['close_share'] == 1


def test_pairs_are_the_closest_first_each_with_its_nearest_training_image(good, real):
    pairs = good.pairs['test']
    look = looks.Look(real.get(classifiers.build_cnn, seed=0).model)
    shown, nearest, train = (look(i).features for i in (*pairs, _TRAIN.images))
    gaps = np.linalg.norm(shown - nearest, axis=1)
    assert (np.diff(gaps) > -1e-4).all()
    to_all = np.linalg.norm(shown[:, np.newaxis] - train, axis=2)
    np.testing.assert_allclose(gaps, to_all.min(1), atol=1e-4)


def test_without_a_test_split_what_needs_it_is_left_out(real):
    measured = _measure(_like_real, real, test=None)
    assert 'gen2real_cnn' not in measured.metrics
    assert set(measured.metrics['domain_fid']) == {'train', 'untrained', 'real'}
    assert measured.metrics['real2gen_cnn']['real'] is None
    assert measured.metrics['duplicates']['generated']['close_share'] is None
    assert set(measured.pairs) == {'generated'}
    # Of a few test images there is no covariance to speak of.
    few = _measure(_like_real, real, test=toy(9, 1))
    assert few.metrics == measured.metrics


def test_one_class_is_measured_in_pixels(tmp_path):
    train, test = toy(100, 0, num_classes=1), toy(50, 1, num_classes=1)
    real = RealClassifiers(train, tmp_path / 'kept')
    measured = _measure(lambda labels: toy(len(labels), 2, num_classes=1).images, real,
                        train=train, test=test)  # fmt: skip
    assert not {'gen2real_cnn', 'real2gen_cnn', 'domain_is', 'domain_fid'} & set(measured.metrics)
    assert measured.metrics['features'] == 'pixels'
    assert measured.metrics['precision_recall']['precision'] > 0.7
    assert measured.metrics['precision_recall']['untrained']['precision'] < 0.3
    assert not (tmp_path / 'kept').exists(), 'no classifier is trained'


def test_too_few_training_images_are_refused(real):
    with pytest.raises(ValueError, match='at least 20 training images. Received: fewer'):
        _measure(_noise, real, train=toy(19, 0))


def test_neighbours_are_searched_for_a_random_part_of_many(monkeypatch):
    monkeypatch.setattr(protocol, '_NEIGHBOUR_IMAGES', 40)
    assert protocol._some(40).tolist() == list(range(40))
    some = protocol._some(100)
    assert len(set(some)) == 40 and 30 < np.mean(some) < 70
    np.testing.assert_array_equal(protocol._some(100), some)
