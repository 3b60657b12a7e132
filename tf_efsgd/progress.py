"""The progress bar for everything that takes long."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

import tqdm

# Seconds between two updates, on a terminal and where nobody watches, such as in a log file.
_WATCHED, _UNWATCHED = 0.5, 60.0
# Set by `be_quiet`.
_IS_QUIET = [False]
# The length of a line in a notebook, whose width is not known.
_NOTEBOOK_WIDTH = 100


class Bar(tqdm.tqdm):
    """A tqdm bar that writes at most one line a minute to a log file, and its end.

    In a notebook it is one output, which changes in place and is saved in its last state.

    Args:
      iterable: as in `tqdm.tqdm`.
      builds_graph: whether the first step takes much longer than the others, because TensorFlow
        builds its graph. The bar then says so, and computes rate and remaining time without the
        first step.
      **options: as in `tqdm.tqdm`.
    """

    def __init__(self, iterable=None, *, builds_graph: bool = False, **options):
        is_notebook = 'ipykernel' in sys.modules
        is_watched = is_notebook or sys.stderr.isatty()
        self._is_building = builds_graph
        file = sys.stderr if is_watched else _Lines(sys.stderr)
        if _IS_QUIET[0]:
            options['disable'] = True
        super().__init__(
            iterable,
            file=_Output() if is_notebook else file,
            mininterval=_WATCHED if is_watched else _UNWATCHED,
            # Otherwise tqdm's monitor refreshes after 10 seconds, whatever mininterval says.
            miniters=None if is_watched else 1,
            dynamic_ncols=is_watched and not is_notebook,
            ncols=_NOTEBOOK_WIDTH if is_notebook else None,
            # In a notebook every bar has its own place, so there are no lines to move between.
            position=0 if is_notebook else None,
            **options,
        )

    def __iter__(self) -> Iterator:
        """Steps through the iterable, with one update for each item."""
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
    """Standard error where nobody watches: writes every state of a bar as its own line.

    Args:
      stream: the stream to write to.
    """

    def __init__(self, stream):
        self._stream = stream
        self.encoding = getattr(stream, 'encoding', None)

    def write(self, text: str) -> None:
        """Writes a state, without the characters that move the cursor of a terminal."""
        text = text.strip('\r\n ')
        if text:
            self._stream.write(f'{text}\n')

    def flush(self) -> None:
        """Flushes the stream."""
        self._stream.flush()

    def isatty(self) -> bool:
        """It is none."""
        return False


class _Output:
    """An output of a notebook, where every state of a bar replaces the one before.

    With a stream, the notebook would save the characters that move the cursor. A widget would be
    saved in its first state, and needs one more package.
    """

    encoding = 'utf-8'

    def __init__(self):
        self._handle = None

    def write(self, text: str) -> None:
        """Shows a state."""
        from IPython import display

        text = text.strip('\r\n ')
        if not text:
            return
        shown = {'text/plain': text}
        if self._handle is None:
            self._handle = display.display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)

    def flush(self) -> None:
        """Does nothing, since the state is already shown."""

    def isatty(self) -> bool:
        """It is none."""
        return False


def be_quiet() -> None:
    """Draws no bars and announces no waiting from now on in this process."""
    _IS_QUIET[0] = True


def progress_bar(name: str | None, total: int, *, delay: float = 0.0) -> Bar:
    """Makes a bar that moves by `update`.

    It shows no counts, because the number of records may be private.

    Args:
      name: the title of the bar; None draws none.
      total: the count at its end.
      delay: seconds before it is drawn; what ends earlier draws none.

    Returns:
      The bar.
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
    """Says what is done inside the context and, on a terminal, for how long already.

    It shows neither counts nor shares, because those of records may be private.

    Args:
      what: a sentence without its full stop, such as 'Looking at the records once'.
    """
    if _IS_QUIET[0]:
        yield
        return
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
