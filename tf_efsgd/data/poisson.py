"""Poisson sampling: every record enters every step by its own coin toss, as the account assumes.

Formal guarantees:
  - In each step every record is taken independently with probability exactly
    `accounting.sampling_probability`: its 32-bit draw is below `threshold`.
  - Batches have variable size, empty ones included. Nothing is truncated, padded, shuffled or
    remembered: there are no epochs.
  - The draws come from Philox with a key from the operating system. The key stays in the memory of
    this process and is in no graph, file or log. With `secure` every bit is the operating system's.
  - With several replicas each record belongs to one replica; the shares of a step are disjoint and
    together are one Poisson sample.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tf_efsgd.data.records import check_declared_size

_GRAIN = 2**32


def poisson_batches(
    images: np.ndarray,
    labels: np.ndarray,
    threshold: int | None = None,
    *,
    expected_batch_size: int | None = None,
    dataset_size: int | None = None,
    num_replicas: int = 1,
    key: int | None = None,
    secure: bool = False,
) -> tf.data.Dataset:
    """Makes an endless data set of Poisson samples: the batches that `tf_efsgd.epsilon` assumes.

    Give `expected_batch_size`, or `threshold`.

    Args:
      images: uint8 [N, H, W, C], or something in their place, e.g. features float16 [N, size].
      labels: integers [N].
      threshold: a record is sampled when its uniform 32-bit draw is below it; in [1, 2^32], see
        `accounting.sampling_threshold`.
      expected_batch_size: mean number of records in a batch, the same as the optimizer's.
      dataset_size: declared number of records, public, at least `expected_batch_size`; None
        declares N.
      num_replicas: each step is given as this many consecutive elements, one per replica.
      key: for tests only: a fixed key. None draws one from the operating system.
      secure: whether every bit comes from the operating system's generator itself.

    Returns:
      Elements (images [n, ...] of the same type, labels int32 [n]); n varies and may be 0.

    Raises:
      ValueError: if `threshold` is out of range, or both or neither are given, if there is not one
        label for each image, or if there are far more records than were declared.
    """
    if (threshold is None) == (expected_batch_size is None):
        raise ValueError(
            'Give expected_batch_size or threshold, one of them. Received: '
            f'expected_batch_size={expected_batch_size}, threshold={threshold}.'
        )
    kind = getattr(getattr(images, 'dtype', None), 'kind', 'O')  # A tensor's type has none.
    if kind == 'O':
        raise ValueError(
            'images must be one NumPy array: convert tensors and lists with numpy.stack. '
            f'Received: {type(images).__name__}.'
        )
    if threshold is None:
        size = len(images) if dataset_size is None else dataset_size
        if not 1 <= expected_batch_size <= size:
            raise ValueError(
                'expected_batch_size must be between 1 and the number of records. Received: '
                f'expected_batch_size={expected_batch_size}, records={size}.'
            )
        check_declared_size(len(images), size)
        threshold = -(-_GRAIN * expected_batch_size // size)  # Rounded up, never down.
    labels = np.asarray(labels)
    if labels.shape != (len(images),) or labels.dtype.kind not in 'iu':
        raise ValueError(
            f'labels must be one integer for each of the {len(images)} images. '
            f'Received: {labels.dtype} of shape {labels.shape}.'
        )
    if len(labels) and not (0 <= labels.min() and labels.max() < 2**31):
        raise ValueError(
            'labels must be 0 for the first class, 1 for the second, and so on. Received: '
            f'{labels.min()} to {labels.max()}.'
        )
    labels = labels.astype(np.int32)
    if not 1 <= threshold <= _GRAIN:
        raise ValueError(f'threshold must be in [1, 2^32]. Received: {threshold}.')

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for sampled in sample_indices(len(images), threshold, key, secure):
            for replica in range(num_replicas):
                share = sampled[sampled % num_replicas == replica]
                yield images[share], labels[share]

    dataset = tf.data.Dataset.from_generator(
        batches,
        output_signature=(
            tf.TensorSpec([None, *images.shape[1:]], tf.as_dtype(images.dtype)),
            tf.TensorSpec([None], tf.int32),
        ),
    )
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    # There is nothing to tune, and the tuner can delay the end of training by a minute.
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.prefetch(2 * num_replicas).with_options(options)
    # What `EFSGDGan.fit` compares with the optimizer and the discriminator.
    dataset.expected_batch_size = expected_batch_size
    dataset.range_of_labels = (int(labels.min()), int(labels.max())) if len(labels) else None
    return dataset


def sample_indices(
    num_records: int, threshold: int, key: int | None = None, secure: bool = False
) -> Iterator[np.ndarray]:
    """Yields the numbers of the sampled records, step after step: int64 [n], ascending.

    Args:
      num_records: N >= 1.
      threshold: in [1, 2^32].
      key: for tests only: a fixed key.
      secure: as in `poisson_batches`.
    """
    # Every iteration has a fresh Philox key, whose counter is never reset.
    philox = np.random.Philox(key=secrets.randbits(128) if key is None else key)
    draws = np.random.Generator(philox)
    process = os.getpid()
    while True:
        if process != os.getpid():
            raise RuntimeError('A sampler belongs to one process: a fork would repeat samples.')
        if secure:
            drawn = np.frombuffer(os.urandom(4 * num_records), np.uint32)
        else:
            drawn = draws.integers(0, _GRAIN, size=num_records, dtype=np.uint32)
        yield np.flatnonzero(drawn < threshold)
