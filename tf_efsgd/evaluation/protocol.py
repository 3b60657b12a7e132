"""Everything that is measured about one generator, with both ends of the scale beside each figure.

All of it looks at real images: NOT covered by differential privacy. The two ends are the same
generator untrained, and the real data itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tf_efsgd.data.records import Records
from tf_efsgd.evaluation import classifiers, distances, looks

if TYPE_CHECKING:
    from tf_efsgd.evaluation.inception import Inception
    from tf_efsgd.evaluation.real_classifiers import RealClassifiers

# More images would not move the untrained end of a scale noticeably.
_UNTRAINED_IMAGES = 10_000
# Neighbours are searched among at most this many images of a set (for copies, among all training
# images).
_NEIGHBOUR_IMAGES = 10_000
# A generated image is called close to a training image when it is closer than this share of test
# images is to its own nearest one.
_CLOSE_QUANTILE = 0.01
# Features of one image differ by less from batch to batch, as a share of their usual norm.
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
    """How much is measured.

    Attributes:
      images: generated images, with balanced labels, at least 100.
      runs: classifiers per score, each with a seed of its own, at least 1.
      epochs: passes over generated images, at least 1; over real ones see `RealClassifiers`.
      untrained_classifiers: whether a classifier learns from the untrained generator too; else
        the chance of guessing stands for that end of the scale.
    """

    images: int = 60_000
    runs: int = 3
    epochs: int = 10
    untrained_classifiers: bool = True


class Pairs(NamedTuple):
    """Images, uint8 [n, H, W, C], and beside each its nearest training image; closest first."""

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
    verbose: bool = False,
) -> Measured:
    """Measures a generator against real images.

    With one class there is nothing to classify: then pixels are the features. Without a test split
    there is nothing that training never saw: what needs it is left out.

    Args:
      generate: of the generator; the same images at each call.
      generate_untrained: of the same generator before its first step.
      train: the real images that it was trained on.
      test: real images that it was not.
      sizes: how much is measured.
      real: classifiers that learn from `train`.
      inception: the network of the FID; None leaves the FID out.
      verbose: whether progress is shown.

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
    metrics['num_images'] = {name: len(records) for name, records in sets.items()}
    return Measured(metrics, pairs)


def _balanced(generate: Generate, count: int, like: Records) -> Records:
    """This many generated images, with every class equally often."""
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
    """gen2real and real2gen, each with its ends."""
    found = {}
    if 'test' in sets:
        for name, build in (('cnn', classifiers.build_cnn), ('mlp', classifiers.build_mlp)):
            found[f'gen2real_{name}'] = _gen2real(sets, build, sizes, real, verbose)
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
    }


# Distances.


def _domain_is(seen: dict[str, looks.Seen]) -> dict[str, float]:
    """The inception score with the real-data CNN as the classifier."""
    real = seen.get('test', seen['train'])
    return {
        'value': distances.inception_score(seen['generated'].probabilities),
        'untrained': distances.inception_score(seen['untrained'].probabilities),
        'real': distances.inception_score(real.probabilities),
    }


def _distance_to_real(distance: _Distance, features: dict[str, np.ndarray]) -> dict[str, Any]:
    """The distance to the training and to the test split, each with its ends."""
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
    """Precision and recall against the test split, or half of the training split without one."""
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
    """Whether generated images repeat training images, with test images as the scale.

    An image repeats a training image when it has the same pixels, or the same features up to
    rounding. It is close to one when it repeats it, or is nearer than the given quantile of test
    images. Test images that repeat a training image set no scale: with a share of them above the
    quantile it would be 0, and nothing is nearer than that. Without others there is no scale, and
    only what repeats a training image counts.
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
    """Which images neighbours are searched for: a random part, as some splits are in order."""
    if count <= _NEIGHBOUR_IMAGES:
        return np.arange(count)
    return np.random.default_rng(_SPLIT_SEED).choice(count, _NEIGHBOUR_IMAGES, replace=False)


def _digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()
