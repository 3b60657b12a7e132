"""Measures one generator, and beside each figure both ends of its scale.

The two ends are the same generator before training, and the real data. Everything here looks at
real images and is NOT covered by differential privacy.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tf_efsgd.data.records import Records
from tf_efsgd.evaluation import benchmark_classifiers, classifiers, distances, looks

if TYPE_CHECKING:
    from tf_efsgd.evaluation.inception import Inception
    from tf_efsgd.evaluation.real_classifiers import RealClassifiers

# More images would not move the untrained end of a scale noticeably.
_UNTRAINED_IMAGES = 10_000
# Neighbours are searched among at most this many images of a set; copies are searched among all
# training images.
_NEIGHBOUR_IMAGES = 10_000
# A generated image counts as close to a training image if the distance is below this quantile of
# the distances from test images to their nearest training images.
_CLOSE_QUANTILE = 0.01
# The features of one image differ by less than this share of their usual norm between batches.
_ROUNDING = 1e-5
_PAIRS = 12
# Fewer images have no meaningful covariance or third neighbour.
LEAST_TRAIN, _LEAST_TEST = 20, 10
_SPLIT_SEED = 103

# labels int32 [n] -> images uint8 [n, H, W, C].
Generate = Callable[[np.ndarray], np.ndarray]
# (features [n, d], features [m, d]) -> distance.
_Distance = Callable[[np.ndarray, np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much to measure.

    Attributes:
      images: number of generated images, with balanced labels, at least 100.
      runs: number of classifiers for each score, each with its own seed, at least 1.
      epochs: number of passes over generated images, at least 1. `RealClassifiers` has the number
        for real ones.
      untrained_classifiers: whether a classifier also learns from the untrained generator;
        otherwise the chance of guessing is that end of the scale.
      benchmark_classifiers: whether to train the three of `benchmark_classifiers` as well.
    """

    images: int = 60_000
    runs: int = 3
    epochs: int = 10
    untrained_classifiers: bool = True
    benchmark_classifiers: bool = False


class Pairs(NamedTuple):
    """Images uint8 [n, H, W, C] and the nearest training image of each, the closest first."""

    images: np.ndarray
    nearest: np.ndarray


class Measured(NamedTuple):
    """What was measured: JSON values by name, and pairs of images by the set they come from."""

    metrics: dict[str, Any]
    pairs: dict[str, Pairs]


def measure(
    generate: Generate,
    generate_untrained: Generate,
    train: Records,
    test: Records | None,
    sizes: Sizes,
    real: RealClassifiers,
    *,
    inception: Inception | None = None,
    public_look: looks.PublicLook | None = None,
    verbose: bool = False,
) -> Measured:
    """Measures a generator against real images.

    With one class there is nothing to classify, and the pixels serve as features. Without a test
    split there are no images that training never saw, and what needs them is left out.

    Args:
      generate: generates images; it must return the same images at each call.
      generate_untrained: the same for the generator before its first step.
      train: the real images that the generator was trained on.
      test: real images that it was not trained on, or None.
      sizes: how much to measure.
      real: classifiers that learn from `train`.
      inception: the network of the FID; None leaves the FID out.
      public_look: the public network of the "public FID"; None leaves that out.
      verbose: whether to show progress.

    Returns:
      The figures, and pairs of images with their nearest training images.

    Raises:
      ValueError: if there are fewer than `LEAST_TRAIN` training images.
    """
    if len(train) < LEAST_TRAIN:
        raise ValueError(
            f'An evaluation needs at least {LEAST_TRAIN} training images. Received: fewer.'
        )
    if test is not None and len(test) < _LEAST_TEST:
        test = None
    generated = _balanced(generate, sizes.images, train)
    untrained = _balanced(generate_untrained, min(sizes.images, _UNTRAINED_IMAGES), train)
    sets = {'generated': generated, 'untrained': untrained, 'train': train, 'test': test}
    sets = {name: records for name, records in sets.items() if records is not None}
    metrics: dict[str, Any] = {}
    if train.num_classes > 1:
        metrics |= _classify(sets, sizes, real, verbose)
        model = real.get(classifiers.build_cnn, seed=0).model
        seen = _of_each(sets, looks.Look(model), verbose)
        metrics['domain_is'] = _domain_is(seen)
        features = {name: one.features for name, one in seen.items()}
        metrics['domain_fid'] = _distance_to_real(distances.frechet_distance, features)
        metrics['domain_kid'] = _distance_to_real(distances.kernel_distance, features)
    else:
        features = {name: looks.pixel_features(r.images) for name, r in sets.items()}
    metrics['features'] = 'real_cnn' if train.num_classes > 1 else 'pixels'
    metrics['precision_recall'] = _precision_recall(features)
    metrics['duplicates'], pairs = _duplicates(features, sets)
    if inception is not None:
        features = _of_each(sets, inception, verbose)
        metrics['fid'] = _distance_to_real(distances.frechet_distance, features)
        metrics['kid'] = _distance_to_real(distances.kernel_distance, features)
    if public_look is not None:
        features = _of_each(sets, public_look, verbose)
        metrics['public_fid'] = _distance_to_real(distances.frechet_distance, features)
    metrics['class_names'] = list(train.class_names)
    metrics['num_images'] = {name: len(records) for name, records in sets.items()}
    return Measured(metrics, pairs)


def _balanced(generate: Generate, count: int, like: Records) -> Records:
    """Generates so many images, with every class equally often."""
    labels = np.arange(count, dtype=np.int32) % like.num_classes
    return dataclasses.replace(like, images=generate(labels), labels=labels)


def _of_each(sets: dict[str, Records], extract: Callable, verbose: bool) -> dict[str, Any]:
    return {
        name: extract(records.images, f'features of {name}' if verbose else None)
        for name, records in sets.items()
    }


# Classifiers.


def _classify(
    sets: dict[str, Records], sizes: Sizes, real: RealClassifiers, verbose: bool
) -> dict[str, Any]:
    """Measures gen2real and real2gen, each with both ends of its scale."""
    found = {}
    if 'test' in sets:
        builders = {'cnn': classifiers.build_cnn, 'mlp': classifiers.build_mlp}
        if sizes.benchmark_classifiers:
            builders |= benchmark_classifiers.BUILDERS
        for name, build in builders.items():
            found[f'gen2real_{name}'] = _gen2real(sets, build, sizes, real, verbose)
        if sizes.benchmark_classifiers:
            found['gen2real_benchmark'] = _mean_of_three(found)
    models = [real.get(classifiers.build_cnn, seed=seed).model for seed in range(sizes.runs)]

    def of_each_model(name):
        if name not in sets:
            return None
        return classifiers.summarize([classifiers.accuracy(m, sets[name]) for m in models])

    found['real2gen_cnn'] = {
        **of_each_model('generated'),
        'untrained': of_each_model('untrained'),
        'real': of_each_model('test'),
    }
    return found


def _mean_of_three(found: dict[str, Any]) -> dict[str, Any]:
    """Averages over the three classifiers of the benchmark, as its tables do."""
    three = [found[f'gen2real_{name}'] for name in benchmark_classifiers.BUILDERS]

    def summary(of_three):
        runs = zip(*(one['accuracies'] for one in of_three))
        return classifiers.summarize([float(np.mean(run)) for run in runs])

    def mean(end):
        ends = [one[end] for one in three if one[end] is not None]
        return summary(ends) if ends else None

    return {
        **summary(three),
        **{name: three[0][name] for name in ('num_generated', 'num_test', 'guessing')},
        'untrained': mean('untrained'),
        'real': mean('real'),
    }


def _gen2real(
    sets: dict[str, Records],
    build: classifiers.Build,
    sizes: Sizes,
    real: RealClassifiers,
    verbose: bool,
) -> dict[str, Any]:
    test = sets['test']

    def learn(name, seed):
        return classifiers.gen2real(
            sets[name],
            test,
            build=build,
            epochs=sizes.epochs,
            seed=seed,
            progress=f'{build.__name__[len("build_") :]} learns from {name}' if verbose else None,
        )

    results = [learn('generated', seed) for seed in range(sizes.runs)]
    untrained = None
    if sizes.untrained_classifiers:
        untrained = classifiers.summarize([learn('untrained', 0).accuracy])
    on_real = [real.get(build, seed=seed) for seed in range(sizes.runs)]
    return {
        **classifiers.summarize([result.accuracy for result in results]),
        'chosen_epochs': [result.chosen_epoch for result in results],
        'held_out_accuracies': [result.held_out_accuracy for result in results],
        'epochs': sizes.epochs,
        'num_generated': results[0].num_generated,
        'num_test': results[0].num_test,
        'guessing': 1 / test.num_classes,
        'largest_class': float(np.bincount(test.labels).max() / len(test)),
        'untrained': untrained,
        'real': classifiers.summarize([classifiers.accuracy(t.model, test) for t in on_real]),
        'by_class': _mean_by_class([result.by_class for result in results]),
        'real_by_class': _mean_by_class(
            [classifiers.accuracy_by_class(t.model, test) for t in on_real]
        ),
    }


def _mean_by_class(runs: list[list[float | None]]) -> list[float | None]:
    return [None if None in of_class else float(np.mean(of_class)) for of_class in zip(*runs)]


# Distances.


def _domain_is(seen: dict[str, looks.Seen]) -> dict[str, float]:
    """Computes the inception score, with the CNN that learned from real images as classifier."""
    real = seen.get('test', seen['train'])
    return {
        'value': distances.inception_score(seen['generated'].probabilities),
        'untrained': distances.inception_score(seen['untrained'].probabilities),
        'real': distances.inception_score(real.probabilities),
    }


def _distance_to_real(distance: _Distance, features: dict[str, np.ndarray]) -> dict[str, Any]:
    """Computes the distances to the training and the test split, each with both ends."""
    halves = _halves(features['train'])
    to = {name: features[name] for name in ('test', 'train') if name in features}
    real = {'train': distance(*halves)}
    if 'test' in to:
        real['test'] = distance(halves[0], to['test'])
    return {
        **{name: distance(features['generated'], other) for name, other in to.items()},
        'untrained': {name: distance(features['untrained'], other) for name, other in to.items()},
        'real': real,
    }


def _halves(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(features))
    return features[order[::2]], features[order[1::2]]


def _precision_recall(features: dict[str, np.ndarray]) -> dict[str, Any]:
    """Computes precision and recall against the test split, or half of the training split."""
    half, other_half = _halves(features['train'])
    reference = features.get('test', other_half)
    size = min(_NEIGHBOUR_IMAGES, len(reference), len(half), len(features['untrained']))
    rng = np.random.default_rng(_SPLIT_SEED)

    def against_real(some):
        chosen = [rng.choice(len(s), size, replace=False) for s in (reference, some)]
        found = distances.precision_recall(reference[chosen[0]], some[chosen[1]])
        return found._asdict()

    return {
        **against_real(features['generated']),
        'num_images': size,
        'untrained': against_real(features['untrained']),
        'real': against_real(half),
    }


def _duplicates(
    features: dict[str, np.ndarray], sets: dict[str, Records]
) -> tuple[dict[str, Any], dict[str, Pairs]]:
    """Measures whether generated images repeat training images, on the scale of test images.

    An image repeats a training image if it has the same pixels, or the same features up to
    rounding. It is close to one if it repeats it, or if it is nearer than the given quantile of
    test images. Test images that repeat a training image are left out of the scale: if their share
    exceeded the quantile, the scale would be 0, and nothing is nearer than that. If no other test
    images remain, there is no scale, and only an image that repeats a training image counts.
    """
    found: dict[str, Any] = {}
    pairs: dict[str, Pairs] = {}
    near, repeats, identical = {}, {}, {}
    names = [name for name in ('generated', 'untrained', 'test') if name in sets]
    some = {name: _some(len(sets[name])) for name in names}
    train = set(map(_digest, sets['train'].images))
    rounding = _ROUNDING * float(np.median(np.linalg.norm(features['train'], axis=1)))
    for name in names:
        images = sets[name].images[some[name]]
        near[name], indices = distances.nearest(features['train'], features[name][some[name]])
        first = np.argsort(near[name], kind='stable')[:_PAIRS]
        pairs[name] = Pairs(images[first], sets['train'].images[indices[first]])
        identical[name] = np.array([_digest(image) in train for image in images])
        repeats[name] = identical[name] | (near[name] <= rounding)
    close = None
    if 'test' in near:
        scale = near['test'][~repeats['test']]
        close = float(np.quantile(scale, _CLOSE_QUANTILE)) if len(scale) else 0.0
    for name in names:
        found[name] = {
            'close_share': None
            if close is None
            else float(np.mean(repeats[name] | (near[name] < close))),
            'median_distance': float(np.median(near[name])),
            'identical_pixels': int(identical[name].sum()),
            'num_images': len(near[name]),
        }
    del pairs['untrained']
    return {'close_distance': close, 'close_quantile': _CLOSE_QUANTILE, **found}, pairs


def _some(count: int) -> np.ndarray:
    """Chooses the images to search neighbours for; at random, since some splits are sorted."""
    if count <= _NEIGHBOUR_IMAGES:
        return np.arange(count)
    return np.random.default_rng(_SPLIT_SEED).choice(count, _NEIGHBOUR_IMAGES, replace=False)


def _digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()
