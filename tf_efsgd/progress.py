"""The progress bar of all that takes long."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

import tqdm

# Seconds between two updates: on a terminal, and where nobody watches, as in a log file.
_WATCHED, _UNWATCHED = 0.5, 60.0


class Bar(tqdm.tqdm):
    """A tqdm bar that writes to a log file one line a minute at most, and how it ended.

    Args:
      iterable: as of `tqdm.tqdm`.
      builds_graph: whether the first step takes much longer than the others, since TensorFlow
        builds its graph then: the bar says so, and counts rate and time left from the second on.
      **options: as of `tqdm.tqdm`.
    """

    def __init__(self, iterable=None, *, builds_graph: bool = False, **options):
        is_watched = _is_watched()
        self._is_building = builds_graph
        super().__init__(
            iterable,
            file=sys.stderr if is_watched else _Lines(sys.stderr),
            mininterval=_WATCHED if is_watched else _UNWATCHED,
            # Else tqdm's monitor refreshes after 10 seconds, whatever mininterval says.
            miniters=None if is_watched else 1,
            dynamic_ncols=is_watched,
            **options,
        )

    def __iter__(self) -> Iterator:
        """Steps through the iterable, one update each."""
        if not self._is_building or self.disable:
            yield from super().__iter__()
            return
        try:
            for item in self.iterable:
                yield item
                self.update()
        finally:
            self.close()

    def update(self, n=1):
        """Moves by n steps."""
        if self._is_building and not self.disable:
            self._is_building = False
            self.start_t = self.last_print_t = self._time()
            self.n: float = self.n + n
            self.initial = self.last_print_n = self.n
            return self.refresh()
        return super().update(n)

    def __str__(self) -> str:
        if self._is_building:
            return f'{self.desc}: building the graph ...'
        return super().__str__()


class _Lines:
    """Standard errors where nobody watches: every state of a bar is a line of its own.

    Args:
      stream: to write to.
    """

    def __init__(self, stream):
        self._stream = stream
        self.encoding = getattr(stream, 'encoding', None)

    def write(self, text: str) -> None:
        """Writes a state, without what moves the cursor of a terminal."""
        text = text.strip('\r\n ')
        if text:
            self._stream.write(f'{text}\n')

    def flush(self) -> None:
        """Flushes the stream."""
        self._stream.flush()

    def isatty(self) -> bool:
        """It is none."""
        return False


def _is_watched() -> bool:
    """Whether somebody sees the bar move: on a terminal, or in a notebook."""
    return sys.stderr.isatty() or 'ipykernel' in sys.modules


def progress_bar(name: str | None, total: int, *, delay: float = 0.0) -> Bar:
    """A bar that moves by `update`.

    It shows no counts: how many records there are may be private.

    Args:
      name: what it is called; None draws none.
      total: how far it goes.
      delay: seconds before it is drawn: what ends earlier draws none.
    """
    return Bar(
        total=total,
        desc=name,
        bar_format='{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}',
        disable=name is None,
        delay=delay,
    )


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says what is done inside, and on a terminal for how long by now.

    It shows nothing else, neither counts nor shares, which may be private for records.

    Args:
      what: a sentence without its end, e.g. 'Looking at the records once'.
    """
    if not sys.stderr.isatty():
        print(f'{what} ...', file=sys.stderr, flush=True)
        yield
        return
    ended, started = threading.Event(), time.monotonic()

    def tick():
        while True:
            seconds = int(time.monotonic() - started)
            print(f'\r{what} ... {seconds // 60}:{seconds % 60:02}', end='', file=sys.stderr)
            sys.stderr.flush()
            if ended.wait(1.0):
                return

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        print(file=sys.stderr, flush=True)
