"""What the parts of a run share, typed."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tf_efsgd import budget, file_names, progress
from tf_efsgd.config import RunConfig, recipes
from tf_efsgd.data import poisson
from tf_efsgd.data.records import Dataset
from tf_efsgd.models import public_heads, sampling
from tf_efsgd.models.public_heads import HeadInputs
from tf_efsgd.privacy import ledger_copy, run_state, seen_records
from tf_efsgd.privacy.features import pixels, public
from tf_efsgd.privacy.ledger import Ledger
from tf_efsgd.privacy.optimizer import new_noise
from tf_efsgd.run import checkpoints
from tf_efsgd.run import folder as run_folder
from tf_efsgd.run.alone import Alone
from tf_efsgd.training import callbacks, samples
from tf_efsgd.training.gan import EFSGDGan

_SAMPLE_SEED = 101


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where a run takes its records, its samples of them and its noise from.

    Attributes:
      load: maps the settings to the records, see `folder.load_records`.
      sample: maps records to Poisson batches of them, see `poisson.poisson_batches`.
      new_noise: makes a source of noise, see `optimizer.new_noise`.
    """

    load: Callable[[RunConfig], Dataset] = run_folder.load_records
    sample: Callable[..., tf.data.Dataset] = poisson.poisson_batches
    new_noise: Callable = new_noise


@dataclasses.dataclass
class Context:
    """A run: its folder, what is trained in it and what is remembered of it.

    Attributes:
      config: the settings, with every public fact declared.
      folder: the run folder.
      state_dir: the folder where things are remembered outside the run folder.
      dataset: the records. PRIVATE.
      ledger: says what is spent.
      state: what is remembered of the run.
      gan: the compiled model.
      strategy: the one that the networks were built under.
      other_runs: those on the same records; None on workers that are not the chief.
      sources: of samples and noise.
      workers: of the run: this one alone, or several.
      network: the frozen network that learned from public images; None without public features.
      head_inputs: what a discriminator of heads sees of an image; None if it sees images.
      features: of the first release, tried; None in a run without one, and in a resumed run.
      is_restored: whether a checkpoint was restored.
    """

    config: RunConfig
    folder: pathlib.Path
    state_dir: pathlib.Path
    dataset: Dataset
    ledger: Ledger
    state: run_state.RunState | ledger_copy.NothingRemembered
    gan: EFSGDGan
    strategy: tf.distribute.Strategy
    other_runs: seen_records.OtherRuns | None
    sources: Sources
    workers: Alone = dataclasses.field(default_factory=Alone)
    network: tf.keras.Model | None = None
    head_inputs: HeadInputs | None = None
    features: pixels.FeatureMap | public.PublicFeatures | None = None
    is_restored: bool = False
    _has_overview: bool = dataclasses.field(default=False, init=False)

    @functools.cached_property
    def checkpoints(self) -> checkpoints.RunCheckpoints:
        """The checkpoints of the private steps."""
        plan = self.ledger.plan
        holds_private_state = plan.event is None or budget.mechanism_of(plan).hides_buffer
        return checkpoints.RunCheckpoints(
            self.folder / file_names.CHECKPOINTS, self.gan, holds_private_state=holds_private_state
        )

    @functools.cached_property
    def private_inputs(self) -> np.ndarray:
        """What the private steps see of this worker's records: images, or what the heads see.

        It is PRIVATE. Features are computed once, into a file without a name on the disk of the
        state folder.
        """
        images = self.workers.share(self.dataset.train.images)
        if self.head_inputs is None:
            return images
        own = '' if self.workers.is_chief else f'.{self.workers.index}'
        path = self.state_dir / f'{self.ledger.run_id}{own}{run_state.FEATURES}'
        path.unlink(missing_ok=True)  # A process that was killed may have left it.
        with progress.waiting('Looking at the records once through the public network'):
            return public_heads.record_features(self.head_inputs, images, path, self.strategy)

    @property
    def is_private(self) -> bool:
        """Whether the run clips and adds noise."""
        return self.ledger.first_plan.event is not None

    @property
    def private_steps(self) -> int:
        """How many private steps were applied."""
        return int(self.gan.private_steps.numpy())

    def new_noise(self):
        """Makes a new source of noise."""
        return self.sources.new_noise(secure=self.config.privacy.secure_noise)

    @property
    def trained_variables(self) -> list[tf.Variable]:
        """All variables that training continues with: networks, optimizers, counters, buffers."""
        gan = self.gan
        gan._make_slots()
        of_optimizers = (gan.discriminator_optimizer, gan.generator_optimizer)
        found = [*gan.variables, *(v for of in of_optimizers for v in of.variables())]
        return list({variable.ref(): variable for variable in found}.values())

    def save(self) -> None:
        """Writes a checkpoint of the steps so far, on the chief; call it on every worker.

        Raises:
          WorkersDiffer: if the workers have not trained the same; nothing is written then.
        """
        self.workers.check_alike(self.trained_variables)
        if self.workers.is_chief:
            self.checkpoints.save(self.private_steps, self.ledger.position)

    def writer(self) -> tf.summary.SummaryWriter:
        """Makes the writer of TensorBoard's log of released quantities; only the chief writes."""
        if not self.workers.is_chief:
            return tf.summary.create_noop_writer()
        (self.folder / file_names.SAMPLES).mkdir(exist_ok=True)
        return tf.summary.create_file_writer(str(self.folder / file_names.LOGS))

    def write_overview(self, writer: tf.summary.SummaryWriter) -> None:
        """Writes the layout of TensorBoard's pages and the public settings, on the chief, once."""
        if self._has_overview or not self.workers.is_chief:
            return
        self._has_overview = True
        config = self.config
        settings = {
            name: value
            for group in (config.privacy, config.model, config.training)
            for name, value in dataclasses.asdict(group).items()
            if value is not None
        }
        # Without places on this machine.
        network = recipes.without_folder(config.privacy.public_features)
        settings |= {'dataset': self.ledger.plan.dataset, 'public_features': network}
        callbacks.write_overview(writer, self.is_private, settings)

    def sample_grid(
        self, writer, first: int, last: int, generator: tf.keras.Model | None = None
    ) -> samples.SampleGrid:
        """Makes the callback that draws sample pictures from step `first` to step `last`.

        Args:
          writer: from `writer`.
          first: the first step.
          last: the last step.
          generator: makes the images; None: the averaged generator of the GAN.
        """
        generator = generator or self.gan.ema_generator
        return samples.SampleGrid(
            writer,
            str(self.folder / file_names.SAMPLES),
            lambda labels: sampling.generate(generator, labels, _SAMPLE_SEED),
            self.ledger.plan.num_classes,
            first,
            last,
            self.config.run.sample_steps,
            is_private=self.is_private,
        )
