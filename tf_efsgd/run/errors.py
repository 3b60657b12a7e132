"""How a run ends early, and what it says then."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import tensorflow as tf

from tf_efsgd.config import ConfigError

_T = TypeVar('_T')


class Interrupted(Exception):
    """Training was stopped by a signal, after a checkpoint; the message says how to continue.

    Attributes:
      signal_number: the number of the signal.
    """

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.signal_number = signal_number


class TensorFlowError(Exception):
    """TensorFlow failed; the message leaves out its text, which may be about the records.

    Attributes:
      how_to_continue: see `with_how_to_continue`.
    """

    how_to_continue: str | None = None


class WorkerLost(TensorFlowError):
    """Another worker of the run has gone, with or without an error of its own."""

    def __init__(self):
        super().__init__(
            'Another worker was lost or has stopped, so this one stops, too. First do what the '
            'last line of that worker says; then start all workers again.'
        )


def as_config_error(
    call: Callable[[], _T], error_type: type[Exception] | tuple[type[Exception], ...]
) -> _T:
    """Calls a function and turns its errors of some types into a ConfigError, one line for users.

    Args:
      call: the function.
      error_type: types of errors that are mistakes of the user.

    Returns:
      What `call` returns.

    Raises:
      ConfigError: in place of such an error, with its text.
    """
    try:
        return call()
    except error_type as error:
        raise ConfigError(str(error)) from error


@contextlib.contextmanager
def with_how_to_continue(say: Callable[[], str | None]) -> Iterator[None]:
    """Lets an error that ends a run early say how to continue, if there is a run to continue.

    An OSError, a KeyboardInterrupt or a TensorFlowError then has an attribute `how_to_continue`: a
    whole sentence or None.

    Args:
      say: returns the sentence, or None if no run has begun.
    """
    try:
        yield
    except (OSError, KeyboardInterrupt, TensorFlowError) as error:
        error.how_to_continue = say()  # type: ignore[union-attr]
        raise


@contextlib.contextmanager
def without_private_text(show: bool, losses: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turns TensorFlow's errors into ours: their texts hold shapes, and so the size of a batch.

    Args:
      show: whether to show TensorFlow's own error instead.
      losses: types of errors which mean that another worker is lost, see `alone.Alone`.

    Raises:
      WorkerLost: in place of these.
      TensorFlowError: in place of TensorFlow's.
      OSError: if the disk is full.
    """
    try:
        yield
    except losses:
        raise WorkerLost() from None
    except tf.errors.OpError as error:
        if 'No space left' in error.message:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        if show:
            raise
        hint = ''
        if isinstance(error, tf.errors.ResourceExhaustedError):
            hint = ' It ran out of memory: give a (smaller) --microbatch_size.'
        raise TensorFlowError(
            f'TensorFlow failed with a {type(error).__name__}.{hint} Its text can tell the size of '
            'a batch, which is private; --log_nonprivate_diagnostics shows it.'
        ) from None
