"""What the parts of a run share."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tf_efsgd import budget, progress
from tf_efsgd.config import RunConfig
from tf_efsgd.data import poisson
from tf_efsgd.data.records import Dataset
from tf_efsgd.models import public_heads, sampling
from tf_efsgd.models.public_heads import HeadInputs
from tf_efsgd.privacy import ledger, run_state, seen_records
from tf_efsgd.privacy.optimizer import new_noise
from tf_efsgd.run import checkpoints
from tf_efsgd.run import folder as run_folder
from tf_efsgd.training import samples
from tf_efsgd.training.gan import EFSGDGan

_SAMPLE_SEED = 101


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where a run takes its records, its samples of them and its noise from.

    Attributes:
      load: from the settings to the records, see `folder.load_records`.
      sample: from records to Poisson batches of them, see `poisson.poisson_batches`.
      new_noise: makes a source of noise, see `optimizer.new_noise`.
    """

    load: Callable[[RunConfig], Dataset] = run_folder.load_records
    sample: Callable[..., tf.data.Dataset] = poisson.poisson_batches
    new_noise: Callable = new_noise


@dataclasses.dataclass
class Context:
    """A run folder, what is trained in it and what is remembered of it.

    Attributes:
      config: the settings, with every public fact declared.
      folder: the run folder.
      state_dir: where things are remembered outside the run folder.
      dataset: the records. PRIVATE.
      ledger: the privacy spent.
      state: what is remembered of the run.
      gan: compiled.
      strategy: that it was built under.
      other_runs: on the same records.
      sources: of samples and noise.
      network: that learned from public images, frozen; None without public features.
      head_inputs: what a discriminator of heads on it sees of an image; None where it sees images.
      is_restored: whether a checkpoint was found.
    """

    config: RunConfig
    folder: pathlib.Path
    state_dir: pathlib.Path
    dataset: Dataset
    ledger: ledger.Ledger
    state: run_state.RunState
    gan: EFSGDGan
    strategy: tf.distribute.Strategy
    other_runs: seen_records.OtherRuns
    sources: Sources
    network: tf.keras.Model | None = None
    head_inputs: HeadInputs | None = None
    is_restored: bool = False

    @functools.cached_property
    def checkpoints(self) -> checkpoints.RunCheckpoints:
        """Those of the steps."""
        plan = self.ledger.plan
        holds_private_state = plan.event is None or budget.mechanism_of(plan).hides_buffer
        return checkpoints.RunCheckpoints(
            self.folder / run_folder.CHECKPOINTS, self.gan, holds_private_state=holds_private_state
        )

    @functools.cached_property
    def private_inputs(self) -> np.ndarray:
        """What the private steps see of the records: images, or what the heads see. PRIVATE.

        Features are computed once, into a file without a name on the disk of the state folder.
        """
        train = self.dataset.train
        if self.head_inputs is None:
            return train.images
        path = self.state_dir / f'{self.ledger.run_id}{run_state.FEATURES}'
        path.unlink(missing_ok=True)  # Of a process that was killed at once.
        with progress.waiting('Looking at the records once through the public network'):
            return public_heads.record_features(self.head_inputs, train.images, path)

    @property
    def is_private(self) -> bool:
        """Whether the run clips and adds noise."""
        return self.ledger.first_plan.event is not None

    @property
    def private_steps(self) -> int:
        """How many were applied."""
        return int(self.gan.private_steps.numpy())

    def new_noise(self):
        """A source of noise of its own."""
        return self.sources.new_noise(secure=self.config.privacy.secure_noise)

    def save(self) -> None:
        """Writes a checkpoint of the steps so far."""
        self.checkpoints.save(self.private_steps, self.ledger.position)

    def writer(self) -> tf.summary.SummaryWriter:
        """Of TensorBoard's log of released quantities."""
        (self.folder / run_folder.SAMPLES).mkdir(exist_ok=True)
        return tf.summary.create_file_writer(str(self.folder / run_folder.LOGS))

    def sample_grid(self, writer, first: int, last: int) -> samples.SampleGrid:
        """The callback that draws sample pictures from step `first` to step `last`."""
        return samples.SampleGrid(
            writer,
            str(self.folder / run_folder.SAMPLES),
            lambda labels: sampling.generate(self.gan.ema_generator, labels, _SAMPLE_SEED),
            self.ledger.plan.num_classes,
            first,
            last,
            self.config.run.sample_steps,
            is_private=self.is_private,
        )
