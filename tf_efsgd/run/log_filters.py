"""Hides messages of libraries that mean nothing to the user of a run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

# (Logger, part of the message). vectorized_map prints the first one for every convolution, Keras
# the second for every classifier; in a notebook TensorFlow says where it begins an export.
_MESSAGES = (
    ('tensorflow', 'uses a while_loop'),
    ('tensorflow', 'triggered tf.function retracing'),
    ('tensorflow', 'Assets written to'),
    # With several workers the private step is tried eagerly, and the first one is slow.
    ('tensorflow', 'eagerly has significant overhead'),
    ('tensorflow', 'is slow compared'),
    ('absl', 'is slow compared'),
)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hides those messages inside the context; at its end the filters are removed."""
    with contextlib.ExitStack() as stack:
        for name, text in _MESSAGES:
            logger, has_none = logging.getLogger(name), _without(text)
            logger.addFilter(has_none)
            stack.callback(logger.removeFilter, has_none)
        yield


def _without(text: str):
    return lambda record: text not in record.getMessage()
