"""Trains classifiers on some images and measures them on others: gen2real, real2gen, upper bound.

The scores look at real images, so they are NOT covered by differential privacy: keep them in
`RUN/nonprivate/` and never feed them back into training.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tf_efsgd.data.images import to_float
from tf_efsgd.progress import progress_bar

if TYPE_CHECKING:
    from tf_efsgd.data.records import Records

# The layer whose outputs are the features of an image.
FEATURES = 'features'

_MAX_HELD_OUT = 5000
_TEST_BATCH_SIZE = 512

# (image shape, number of classes, seed) -> an untrained classifier.
Build = Callable[..., tf.keras.Model]


@dataclasses.dataclass(frozen=True)
class Gen2RealResult:
    """What one gen2real run measured.

    Attributes:
      accuracy: share of real test images classified correctly, in [0, 1]. Not covered by DP.
      chosen_epoch: the epoch whose weights were measured, counted from 1.
      held_out_accuracy: accuracy of that epoch on held-out generated images, in [0, 1].
      epochs: number of epochs.
      num_generated: number of generated images, including the held-out ones.
      num_test: number of real test images.
      by_class: the accuracy on the real test images of each class, in the order of the classes;
        None for a class without test images.
    """

    accuracy: float
    chosen_epoch: int
    held_out_accuracy: float
    epochs: int
    num_generated: int
    num_test: int
    by_class: list[float | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A classifier with the weights of its best epoch.

    Attributes:
      model: from images, float32 [batch, H, W, C] in [-1, 1], to logits.
      chosen_epoch: the epoch of the weights, counted from 1.
      held_out_accuracy: accuracy of that epoch on the held-out images, in [0, 1].
    """

    model: tf.keras.Model
    chosen_epoch: int
    held_out_accuracy: float


def build_cnn(
    image_shape: tuple[int, int, int], num_classes: int, *, seed: int = 0
) -> tf.keras.Model:
    """Builds the gen2real classifier: two conv layers, dense 128, dropout 0.5, logits.

    Every initializer has its own seed, so the weights neither depend on the global random state nor
    change it.

    Args:
      image_shape: (height, width, channels) of the images; height and width at least 4.
      num_classes: number of logits, at least 1.
      seed: seed of the initial weights and of dropout.

    Returns:
      A model from images, float32 [batch, height, width, channels] in [-1, 1], to logits,
      float32 [batch, num_classes].

    Raises:
      ValueError: if an image is smaller than 4 x 4, or there is no class.
    """
    height, width, _ = image_shape
    if min(height, width) < 4 or num_classes < 1:
        raise ValueError(
            'The classifier needs images of at least 4 x 4 pixels and at least 1 class. '
            f'Received: image_shape={tuple(image_shape)}, num_classes={num_classes}.'
        )
    layers = tf.keras.layers

    def kernel(index: int) -> tf.keras.initializers.Initializer:
        return tf.keras.initializers.GlorotUniform(seed=10 * seed + index)

    return tf.keras.Sequential(
        [
            layers.InputLayer(input_shape=tuple(image_shape), dtype=tf.float32),
            layers.Conv2D(32, 3, padding='same', activation='relu', kernel_initializer=kernel(0)),
            layers.MaxPool2D(),
            layers.Conv2D(64, 3, padding='same', activation='relu', kernel_initializer=kernel(1)),
            layers.MaxPool2D(),
            layers.Flatten(),
            layers.Dense(128, activation='relu', kernel_initializer=kernel(2), name=FEATURES),
            # It has its own generator: by default the masks would depend on the global seed.
            layers.Dropout(0.5, seed=10 * seed + 3, force_generator=True),
            # Logits are float32 even if the caller's global policy is mixed precision.
            layers.Dense(num_classes, kernel_initializer=kernel(4), dtype='float32'),
        ],
        name='gen2real_cnn',
    )


def build_mlp(
    image_shape: tuple[int, int, int], num_classes: int, *, seed: int = 0
) -> tf.keras.Model:
    """Builds the small classifier of the field's tables: pixels, dense 256, logits.

    Args:
      image_shape: (height, width, channels) of the images.
      num_classes: number of logits, at least 1.
      seed: seed of the initial weights.

    Returns:
      A model with the inputs and outputs of `build_cnn`.
    """
    layers = tf.keras.layers
    kernels = [tf.keras.initializers.GlorotUniform(seed=10 * seed + index) for index in (5, 6)]
    return tf.keras.Sequential(
        [
            layers.InputLayer(input_shape=tuple(image_shape), dtype=tf.float32),
            layers.Flatten(),
            layers.Dense(256, activation='relu', kernel_initializer=kernels[0], name=FEATURES),
            layers.Dense(num_classes, kernel_initializer=kernels[1], dtype='float32'),
        ],
        name='gen2real_mlp',
    )


def gen2real(
    generated: Records,
    test: Records,
    *,
    build: Build = build_cnn,
    epochs: int = 10,
    held_out: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: str | None = None,
) -> Gen2RealResult:
    """Trains a CNN on generated images and measures its accuracy on real test images, once.

    The epoch is chosen on held-out GENERATED images. Choosing it on the real test split would
    overstate the score and spend privacy that nobody accounts for.

    Two runs with the same arguments on the same CPU agree; on a GPU the last digits may differ.

    Args:
      generated: images uint8 [n, H, W, C] in [0, 255] with labels int32 [n], n >= 2.
      test: real images that training never saw, of the same shape and classes.
      build: makes the classifier; `build_cnn`, `build_mlp` or one of `benchmark_classifiers`.
      epochs: number of passes over the generated images that are not held out, at least 1.
      held_out: number of generated images to choose the epoch on, in [1, n - 1]; by default a
        tenth of them, at most 5000.
      batch_size: images per training step, at least 1.
      seed: seed of the split, the shuffles, the initial weights and dropout.
      progress: title of the progress bar; None draws none.

    Returns:
      The accuracy on the real test images, and how it was measured.

    Raises:
      ValueError: if the shapes or classes of the two sets differ, or a number is out of its range.
    """
    _check_fit(generated, test)
    trained = train(
        generated,
        build=build,
        epochs=epochs,
        held_out=held_out,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    # The one and only look at the real test split.
    return Gen2RealResult(
        accuracy=accuracy(trained.model, test),
        chosen_epoch=trained.chosen_epoch,
        held_out_accuracy=trained.held_out_accuracy,
        epochs=epochs,
        num_generated=len(generated.images),
        num_test=len(test.images),
        by_class=accuracy_by_class(trained.model, test),
    )


def train(
    records: Records,
    *,
    build: Build = build_cnn,
    epochs: int = 10,
    held_out: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: str | None = None,
) -> Trained:
    """Trains a classifier; the epoch is chosen on held-out images of the same records.

    Args:
      records: images uint8 [n, H, W, C] with labels int32 [n], n >= 2.
      build: as in `gen2real`.
      epochs: as in `gen2real`.
      held_out: number of records to choose the epoch on; the default is that of `gen2real`.
      batch_size: as in `gen2real`.
      seed: as in `gen2real`.
      progress: title of the progress bar; None draws none.

    Returns:
      The classifier with the weights of the chosen epoch.

    Raises:
      ValueError: if a number is out of its range.
    """
    count = len(records.images)
    if held_out is None:
        held_out = min(_MAX_HELD_OUT, max(1, count // 10))
    _check_numbers(count, epochs=epochs, held_out=held_out, batch_size=batch_size)

    order = np.random.default_rng(seed).permutation(count)
    chosen_on, trained_on = order[:held_out], order[held_out:]
    steps_per_epoch = -(-len(trained_on) // batch_size)
    load = _loader(records)

    model = build(records.images.shape[1:], records.num_classes, seed=seed)
    model.compile(
        optimizer=tf.keras.optimizers.Adam(),
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=['accuracy'],
    )
    chooser = _EpochChooser()
    total = epochs * steps_per_epoch
    with progress_bar(progress, total) as bar:
        model.fit(
            load(_shuffled(trained_on, batch_size, epochs, seed)),
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            validation_data=load(_in_order(chosen_on)),
            callbacks=[chooser, _Progress(bar)],
            verbose=0,
        )
    model.set_weights(chooser.weights)
    return Trained(model, chooser.epoch, chooser.accuracy)


def accuracy(model: tf.keras.Model, records: Records) -> float:
    """Returns the share of records that a classifier assigns to their class, in [0, 1]."""
    return float(np.mean(_is_right(model, records)))


def accuracy_by_class(model: tf.keras.Model, records: Records) -> list[float | None]:
    """Returns the accuracy for each class, in their order; None for a class without records."""
    is_right = _is_right(model, records)
    of_class = [is_right[records.labels == label] for label in range(records.num_classes)]
    return [float(np.mean(found)) if len(found) else None for found in of_class]


def _is_right(model: tf.keras.Model, records: Records) -> np.ndarray:
    predicted = np.concatenate([logits.argmax(1) for logits in outputs(model, records.images)])
    return predicted == records.labels


def outputs(model: tf.keras.Model, images: np.ndarray) -> Iterator[Any]:
    """Yields the outputs of a model for images, batch by batch.

    Args:
      model: from images, float32 [batch, H, W, C] in [-1, 1], to a tensor or a list of tensors.
      images: uint8 [n, H, W, C].

    Yields:
      A NumPy array, or a list of them, for each batch.
    """
    for start in range(0, len(images), _TEST_BATCH_SIZE):
        yield model.predict_on_batch(to_float(images[start : start + _TEST_BATCH_SIZE]))


def summarize(values: Sequence[float]) -> dict[str, float | list[float] | None]:
    """Returns mean and spread (sample standard deviation; None for one value) of accuracies."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {'accuracy': statistics.fmean(values), 'spread': spread, 'accuracies': list(values)}


def _check_fit(generated: Records, test: Records) -> None:
    """Raises ValueError unless generated and test images have the same shape and classes."""
    shapes = generated.images.shape[1:], test.images.shape[1:]
    classes = generated.num_classes, test.num_classes
    if shapes[0] != shapes[1] or classes[0] != classes[1]:
        raise ValueError(
            'Generated and test images must have the same shape and classes. Received: generated '
            f'{shapes[0]} with {classes[0]} classes, test {shapes[1]} with {classes[1]} classes.'
        )
    if len(test.images) == 0:
        raise ValueError('gen2real needs at least 1 test image. Received: 0.')


def _check_numbers(count: int, *, epochs: int, held_out: int, batch_size: int) -> None:
    """Raises ValueError unless the numbers of `train` are in their ranges."""
    if not 1 <= held_out <= count - 1:
        raise ValueError(
            'held_out must leave at least 1 image to train on and 1 to choose the epoch. '
            f'Received: held_out={held_out} of {count} images.'
        )
    if epochs < 1 or batch_size < 1:
        raise ValueError(
            'epochs and batch_size must be at least 1. '
            f'Received: epochs={epochs}, batch_size={batch_size}.'
        )


def _in_order(indices: np.ndarray) -> tf.data.Dataset:
    """Returns batches of the indices, once."""
    return tf.data.Dataset.from_tensor_slices(indices).batch(_TEST_BATCH_SIZE)


def _shuffled(indices: np.ndarray, batch_size: int, epochs: int, seed: int) -> tf.data.Dataset:
    """Returns batches of the indices, once per epoch, each time in another order.

    The shuffle is stateless, because `Dataset.shuffle(seed=...)` also depends on the global seed.
    """

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(indices, seed=tf.stack([seed, epoch]))
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size)

    return tf.data.Dataset.range(epochs).flat_map(one_epoch)


def _loader(records: Records) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """Maps batches of indices to batches of (float32 images in [-1, 1], int32 labels).

    Images are looked up where they are, in memory or in a mapped file, so a large data set is never
    copied, and only a few batches are float.
    """

    def look_up(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(records.images[indices]), np.asarray(records.labels[indices])

    def load(indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images, labels = tf.numpy_function(look_up, [indices], (tf.uint8, tf.int32))
        images.set_shape([None, *records.images.shape[1:]])
        labels.set_shape([None])
        return to_float(images), labels

    return lambda batches: batches.map(load, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)


class _EpochChooser(tf.keras.callbacks.Callback):
    """Keeps the weights of the epoch with the best held-out accuracy; the earliest if tied."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = -1.0
        self.epoch = 0
        self.weights: list[np.ndarray] = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        accuracy = float((logs or {})['val_accuracy'])
        if accuracy > self.accuracy:
            self.accuracy, self.epoch = accuracy, epoch + 1
            self.weights = self.model.get_weights()


class _Progress(tf.keras.callbacks.Callback):
    """Moves a tqdm bar by one per training batch."""

    def __init__(self, bar: Any) -> None:
        super().__init__()
        self._bar = bar

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._bar.update(1)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        held_out = f'{(logs or {})["val_accuracy"]:.3f}'
        self._bar.set_postfix(epoch=epoch + 1, held_out=held_out, refresh=False)
