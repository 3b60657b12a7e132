"""Divides the records among several workers, so that no record is sampled by two of them.

A record that two workers sample would move a sum by twice the sensitivity of the account. So
workers that divide one data set must have the same records, to the last pixel, and workers with
records of their own must have no record in common. The worker of a record follows from its own
pixels alone: an additional record sends no other one to another machine, which may round
differently.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import secrets

import numpy as np
import tensorflow as tf

from tf_efsgd.config import ConfigError
from tf_efsgd.data.records import DataError, Dataset, check_declared_size
from tf_efsgd.run.alone import Alone

_IMAGES_AT_A_TIME = 4096


def check(workers: Alone, dataset: Dataset) -> Dataset:
    """Compares the records of all workers, before anything is charged.

    Args:
      workers: of the run.
      dataset: the records that this worker has.

    Returns:
      The data set, with the digests of the records of all workers.

    Raises:
      ConfigError: on all workers, if they do not fit together.
    """
    if workers.count == 1:
        return dataset
    _check_facts(workers, dataset)
    if not workers.has_own_records:
        _check_same(workers, dataset)
        workers.divide(dataset.digests)
        return dataset
    digests = _all_digests(workers, dataset)
    try:
        check_declared_size(len(digests), dataset.declared_size)
    except DataError as error:
        workers.leave()
        raise ConfigError(f'The records of all workers together are too many. {error}') from error
    return dataclasses.replace(dataset, digests=digests)


def check_network(workers: Alone, network: tf.keras.Model | None) -> None:
    """Compares the public networks that the workers have loaded.

    If they differed, a record's features would still be a function of that record, and the account
    would hold, but the sums would be meaningless.

    Raises:
      ConfigError: on all workers, if they differ.
    """
    if workers.count == 1 or network is None:
        return
    digest = hashlib.sha256()
    for weight in network.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    found = workers.all_gather(digest.digest())
    for index, other in enumerate(found):
        if other != found[0]:
            workers.leave()
            raise ConfigError(
                f'{workers.name(index)} has another network under --public_features than the '
                'chief: copy the file of one of them to all.'
            )


def _check_facts(workers: Alone, dataset: Dataset) -> None:
    train = dataset.train
    facts = [train.image_shape, train.class_names, dataset.declared_size, dataset.persons]
    found = [json.loads(text) for text in workers.all_gather(json.dumps(facts).encode())]
    for index, other in enumerate(found):
        for name, value, of_chief in zip(
            ('image shape', 'classes', 'declared size', 'persons'), other, found[0]
        ):
            if value != of_chief:
                workers.leave()
                raise ConfigError(
                    f'{workers.name(index)} has other records than the chief: {name} {value}, and '
                    f'{of_chief} there. Give all the same data, or declare --image_size, '
                    '--channels, --classes and --dataset_size.'
                )


def _check_same(workers: Alone, dataset: Dataset) -> None:
    """Checks that all workers have the same records: then their parts are disjoint."""
    key = workers.broadcast(secrets.token_bytes(32))
    found = workers.all_gather(_tag(key, dataset.train.images, dataset.train.labels))
    for index, tag in enumerate(found):
        if not hmac.compare_digest(tag, found[0]):
            workers.leave()
            raise ConfigError(
                f'{workers.name(index)} has other records than the chief, or has them in another '
                'order, by their fingerprints: put the same data on all workers, or on each its '
                'own part with --worker_records=own.'
            )


def _tag(key: bytes, images: np.ndarray, labels: np.ndarray) -> bytes:
    """Computes a keyed fingerprint of records and of their order."""
    tag = hmac.new(key, repr((images.shape, images.dtype.str)).encode(), 'sha256')
    tag.update(np.ascontiguousarray(labels).tobytes())
    for start in range(0, len(images), _IMAGES_AT_A_TIME):
        tag.update(np.ascontiguousarray(images[start : start + _IMAGES_AT_A_TIME]).tobytes())
    return tag.digest()


def _all_digests(workers: Alone, dataset: Dataset) -> np.ndarray:
    """Gathers the digests of all workers, uint64 [N, 2], those of the chief first."""
    digests = np.ascontiguousarray(dataset.digests, np.uint64)
    found = [
        np.frombuffer(of_worker, np.uint64).reshape(-1, 2)
        for of_worker in workers.all_gather(digests.tobytes())
    ]
    # Each worker's digests count once, however often it has an image itself.
    distinct = np.concatenate([np.unique(of_worker, axis=0) for of_worker in found])
    if len(np.unique(distinct, axis=0)) < len(distinct):
        workers.leave()
        raise ConfigError(
            'Two workers have the same picture, so one record may be sampled by both: give each '
            'worker its own part (--worker_records=own), identical pictures to the same one, or '
            'all the whole data set (--worker_records=all).'
        )
    return np.concatenate(found)
