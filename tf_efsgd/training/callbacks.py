"""Keras callbacks that show and bound a run: progress bar, TensorBoard, payments, checkpoints.

They write only what `EFSGDGan.train_step` returns, and generated images. These are functions of
private releases, so all tags begin with dp/. Only `NonprivateDiagnostics` writes what records show,
to a folder of its own.
"""

from __future__ import annotations

import collections
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.hparams import api as hparams

from tf_efsgd import progress, rounding


class BeforeEachStep(tf.keras.callbacks.Callback):
    """Calls a function before each step of a run; what it raises stops the run before the step.

    Args:
      call: for example `privacy.payments.StepPayments.before_step`.
    """

    def __init__(self, call: Callable[[], None]):
        super().__init__()
        self._call = call

    def on_train_batch_begin(self, batch, logs=None):
        """Calls it."""
        self._call()


class EveryStep(tf.keras.callbacks.Callback):
    """Counts the steps of a run, across resumes.

    Args:
      first_step: how many steps were done before, >= 0.
      last_step: the step at which the run ends.
      every: `on_due` is called after so many steps, and after the last one.
    """

    def __init__(self, first_step: int, last_step: int, every: int):
        super().__init__()
        self.step = first_step
        self._last_step = last_step
        self._every = every

    def on_train_batch_end(self, batch, logs=None):
        """Counts the step."""
        self.step += 1
        if self.step % self._every == 0 or self.step == self._last_step:
            self.on_due(logs or {})

    def on_due(self, logs):
        """What a subclass does when it is due.

        Args:
          logs: of Keras, for the step.
        """


class ProgressBar(EveryStep):
    """Shows steps per second, the time left and the epsilon of the steps that are paid for.

    Args:
      first_step: how many steps were done before, >= 0.
      last_step: the step at which the run ends.
      every: steps between updates of epsilon.
      epsilon: maps steps to an upper bound on the epsilon spent; None when nothing is private. The
        bound holds for a run that was planned to stop at that step. A run that is stopped because
        of what it showed has spent the epsilon of the whole plan, so that is shown too.
    """

    def __init__(self, first_step: int, last_step: int, every: int, epsilon=None):
        super().__init__(first_step, last_step, every)
        self._epsilon = epsilon
        self._bar: progress.Bar | None = None

    def on_train_begin(self, logs=None):
        """Opens the bar."""
        self._bar = progress.Bar(
            initial=self.step,
            total=self._last_step,
            unit='step',
            desc='Training',
            builds_graph=True,
        )
        self._show_epsilon()

    def on_train_batch_end(self, batch, logs=None):
        """Advances the bar."""
        super().on_train_batch_end(batch, logs)
        self._bar.update(1)

    def on_due(self, logs):
        """Refreshes epsilon."""
        self._show_epsilon()

    def _show_epsilon(self):
        text = 'NOT PRIVATE'
        if self._epsilon is not None:
            planned = rounding.up(self._epsilon(self._last_step))
            # It stands there until the next time, and steps are paid for before they run.
            until = min(self._last_step, (self.step // self._every + 1) * self._every)
            text = f'ε≤{rounding.up(self._epsilon(until))} of {planned}'
        self._bar.set_postfix_str(text, refresh=False)

    def on_train_end(self, logs=None):
        """Closes the bar."""
        self._bar.close()


class TensorBoardScalars(EveryStep):
    """Writes released scalars and epsilon as dp/<name>, without privacy as nonprivate/<name>.

    Args:
      writer: summary writer of RUN/logs.
      first_step: as in `ProgressBar`.
      last_step: as in `ProgressBar`.
      every: steps between entries.
      epsilon: as in `ProgressBar`.
      more: called when an entry is due; returns further released scalars by name.
    """

    def __init__(
        self,
        writer,
        first_step: int,
        last_step: int,
        every: int,
        epsilon=None,
        more: Callable[[], dict] = dict,
    ):
        super().__init__(first_step, last_step, every)
        self._writer = writer
        self._epsilon = epsilon
        self._more = more
        self._is_private = epsilon is not None

    def on_due(self, logs):
        """Writes one entry of every scalar."""
        with self._writer.as_default(step=self.step):
            for name, value in {**logs, **self._more()}.items():
                tf.summary.scalar(f'{prefix(self._is_private)}/{name}', value)
            if self._epsilon is not None:
                tf.summary.scalar('dp/epsilon', self._epsilon(self.step))
        self._writer.flush()


# TensorBoard's page "Custom scalars", which shows the main scalars of a run at a glance.
# The tags of sample pictures: after steps of the GAN, and after those of a fit.
PICTURES = ('samples', 'samples_of_fit')
_LAYOUT = {
    'Privacy': {'epsilon spent': ['epsilon']},
    'Generated images': {
        'loss on generated images': ['fake_loss'],
        'share of generated images that are recognised': ['fake_accuracy', 'fake_accuracy_average'],
    },
    'Releases': {
        'distance to the release': ['distance_to_release'],
        'norm of the error buffer': ['buffer_norm'],
        'norm of the released gradient': ['released_gradient_norm'],
    },
}


def write_overview(writer, is_private: bool, settings: dict) -> None:
    """Writes a layout of a run's scalars, and its settings, for TensorBoard.

    Args:
      writer: summary writer of RUN/logs.
      is_private: whether the tags begin with dp/.
      settings: public settings by name, for the page HParams, which compares runs.
    """
    start = prefix(is_private)
    layout = layout_pb2.Layout(
        category=[
            layout_pb2.Category(
                title=category,
                chart=[
                    layout_pb2.Chart(
                        title=title,
                        multiline=layout_pb2.MultilineChartContent(
                            tag=[f'^{start}/{name}$' for name in names]
                        ),
                    )
                    for title, names in charts.items()
                ],
            )
            for category, charts in _LAYOUT.items()
        ]
    )
    with writer.as_default(step=0):
        tf.summary.experimental.write_raw_pb(custom_scalar.pb(layout).SerializeToString(), step=0)
        hparams.hparams(settings)
    writer.flush()


def write_scalar(writer, is_private: bool, name: str, step: int, value: float) -> None:
    """Writes one released scalar of a step that `TensorBoardScalars` does not see.

    Args:
      writer: summary writer of RUN/logs.
      is_private: whether its tag begins with dp/.
      name: of the scalar, without the prefix of the tag.
      step: of the entry.
      value: of the scalar.
    """
    with writer.as_default(step=step):
        tf.summary.scalar(f'{prefix(is_private)}/{name}', value)


def write_epsilon(writer, step: int, epsilon: float) -> None:
    """Writes the epsilon of a step that `TensorBoardScalars` does not see: that of a warm start.

    Args:
      writer: summary writer of RUN/logs.
      step: the number of steps done, 0 after a warm start.
      epsilon: what is spent by then.
    """
    with writer.as_default(step=step):
        tf.summary.scalar('dp/epsilon', epsilon)
    writer.flush()


class NonprivateDiagnostics(EveryStep):
    """Writes what real records show, as nonprivate/<name>: NOT covered by epsilon.

    Args:
      writer: summary writer of RUN/nonprivate/logs.
      first_step: as in `ProgressBar`.
      last_step: as in `ProgressBar`.
      every: steps between entries.
    """

    def __init__(self, writer, first_step: int, last_step: int, every: int):
        super().__init__(first_step, last_step, every)
        self._writer = writer

    def on_due(self, logs):
        """Writes the diagnostics of the last step; they are not in the logs of Keras."""
        with self._writer.as_default(step=self.step):
            for name, value in self.model.nonprivate_diagnostics().items():
                tf.summary.scalar(f'nonprivate/{name}', value)
        self._writer.flush()


class Checkpoint(EveryStep):
    """Saves checkpoints of the run.

    Args:
      save: saves a checkpoint, given the step.
      first_step: as in `ProgressBar`.
      last_step: as in `ProgressBar`.
      every: steps between checkpoints.
    """

    def __init__(self, save: Callable[[int], None], first_step: int, last_step: int, every: int):
        super().__init__(first_step, last_step, every)
        self._save = save

    def on_due(self, logs):
        """Saves one checkpoint."""
        self._save(self.step)


class StopOnSignal(tf.keras.callbacks.Callback):
    """Ends training after the step at which a signal comes, with a checkpoint.

    These are SIGINT (Ctrl-C), SIGTERM, and SIGHUP (the terminal was closed) unless it is ignored,
    as with `nohup`. A second signal stops at once, without a checkpoint. Outside the main thread
    Python cannot take signals over, and nothing stops training.

    Args:
      save: saves a checkpoint.
      agree: called after every step with the signal received so far, or None; returns the signal to
        stop for now, or None. Where several processes train, all of them get the same answer.
      when: when training will stop, in words for the user.

    Attributes:
      received: the signal that ended training; None if none did.
    """

    def __init__(
        self,
        save: Callable[[], None],
        agree: Callable[[signal.Signals | None], signal.Signals | None] = lambda received: received,
        when: str = 'after this step',
    ):
        super().__init__()
        self._save = save
        self._agree = agree
        self._when = when
        self._before: dict[signal.Signals, Any] = {}
        self.received: signal.Signals | None = None

    def on_train_begin(self, logs=None):
        """Takes the signals over."""
        if threading.current_thread() is not threading.main_thread():
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        hangup = getattr(signal, 'SIGHUP', None)  # Windows has none.
        if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
            numbers.append(hangup)
        for number in numbers:
            self._before[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number, frame):
        del frame
        if self.received is not None:
            self.restore_handlers()
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        print(f'\nStopping {self._when}, with a checkpoint; again to stop at once.', flush=True)

    def on_train_batch_end(self, batch, logs=None):
        """Saves and stops if a signal has come."""
        agreed = self._agree(self.received)
        if agreed is not None and not self.model.stop_training:
            self.received = agreed
            self._save()
            self.model.stop_training = True

    def restore_handlers(self):
        """Gives the signals back; call it when training has ended, for whatever reason."""
        while self._before:
            signal.signal(*self._before.popitem())


def prefix(is_private: bool) -> str:
    """The prefix of TensorBoard's tags: dp, or nonprivate for what no epsilon covers."""
    return 'dp' if is_private else 'nonprivate'


def read_scalars(log_dir: str, is_private: bool = True) -> list[dict[str, float]]:
    """Reads what `TensorBoardScalars` wrote, across all resumes of a run, and nothing else.

    Args:
      log_dir: RUN/logs.
      is_private: whether the run was private: then only tags dp/... are read, else only
        nonprivate/...; other tags in the folder are not the run's.

    Returns:
      One dict per logged step: 'step', and the value of each tag.
    """
    if not os.path.isdir(log_dir):
        return []
    events = event_accumulator.EventAccumulator(log_dir, size_guidance={'tensors': 0})
    events.Reload()
    entries: dict[int, dict[str, float]] = collections.defaultdict(dict)
    start = f'{prefix(is_private)}/'
    for tag in events.Tags()['tensors']:
        if not tag.startswith(start) or tag.removeprefix(start) in PICTURES:
            continue
        for event in events.Tensors(tag):
            value = tf.make_ndarray(event.tensor_proto)
            entries[event.step][tag] = float(value)
    return [{'step': step, **entries[step]} for step in sorted(entries)]


def last_log_time(log_dir: str) -> float | None:
    """When the last scalar or picture was written, in seconds since 1970; None if none was."""
    if not os.path.isdir(log_dir):
        return None
    events = event_accumulator.EventAccumulator(log_dir, size_guidance={'tensors': 1})
    events.Reload()
    times = [events.Tensors(tag)[-1].wall_time for tag in events.Tags()['tensors']]
    return max(times, default=None)
