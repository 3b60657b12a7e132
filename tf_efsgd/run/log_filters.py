"""Messages of libraries that say nothing to a user of a run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

# (Logger, text of the message). vectorized_map says the first of every convolution, Keras the
# others of every checkpoint and every classifier.
_MESSAGES = (
    ('tensorflow', 'uses a while_loop'),
    ('tensorflow', 'triggered tf.function retracing'),
    ('absl', 'is slow compared'),
)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Leaves those messages out inside, and only there: the filters are removed at the end."""
    with contextlib.ExitStack() as stack:
        for name, text in _MESSAGES:
            logger, has_none = logging.getLogger(name), _without(text)
            logger.addFilter(has_none)
            stack.callback(logger.removeFilter, has_none)
        yield


def _without(text: str):
    return lambda record: text not in record.getMessage()
