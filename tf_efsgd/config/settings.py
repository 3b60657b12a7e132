"""The settings of a run: frozen dataclasses, and the checks of settings that go together.

Every setting is written once, as a field with its help, range, choices and resume rule.
"""

from __future__ import annotations

import dataclasses

from tf_efsgd.config import fields
from tf_efsgd.config.classes import parse_classes
from tf_efsgd.config.fields import ConfigError, boolean, integer, number, string


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images."""

    dataset: str = string(
        'mnist_10k',
        'The data set. mnist_10k: 10,000 embedded images, the test split of MNIST; digits: those '
        'of scikit-learn; mnist, fashion_mnist, celeb_a or any other TFDS name with images and '
        'labels; folder:PATH: images of any usual kind in PATH/<class>/, or in PATH/train/<class>/ '
        'and PATH/test/<class>/, or all in PATH (one class); idx:PATH: the files of MNIST. '
        '--resume finds moved files at a new PATH; it compares the records.',
        on_resume='may_move',
    )
    data_dir: str | None = string(
        None,
        "The folder where TFDS keeps prepared data sets. Default: TFDS's own.",
        on_resume='may_change',
    )
    tfds_manual_dir: str | None = string(
        None,
        'The folder with files that you downloaded yourself, for data sets that TFDS cannot '
        'download, e.g. celeb_a when its server refuses.',
        on_resume='may_change',
    )
    image_size: int | None = integer(
        None,
        'Height and width to resize the images to, in pixels: 4, 5, 6 or 7 times a power of two. '
        'Smaller images train faster. Default: the size that the images have.',
        at_least=4,
        may_be_read_off=True,
    )
    channels: int | None = integer(
        None,
        'Number of channels of the images: 1 turns colours to grey, 3 repeats grey. Default: what '
        'the data set declares; for folder: it is read off the records, once, and published: 3 '
        'when one of them has colours.',
        at_least=1,
        at_most=3,
        may_be_read_off=True,
    )
    classes: str | None = string(
        None,
        'Names of all classes: separated by commas, as a JSON list, or the path of a text file '
        'with one name in each line. A record of another class is refused. Default: the class '
        'folders of folder:, empty ones too, or what the data set declares; for idx: their number '
        'is read off the records, once, and published.',
        may_be_read_off=True,
    )
    label: str = string(
        'Male',
        'What the label of an image is. celeb_a: one of its 40 attributes, e.g. Smiling, or '
        'several with commas, e.g. Male,Smiling: each combination is a class. folder: csv:FILE, a '
        'table with the columns file and label (FILE and the files in it are relative to the '
        'folder of the data set); without one the class folder says it.',
        on_resume='may_move',
    )
    limit_records: int | None = integer(
        None,
        'Train on about this many records only, for a trial: they are chosen by a hash of their '
        'content, or all images of a person by a hash of the person. Default: all.',
        at_least=1,
    )
    dataset_size: int | None = integer(
        None,
        'Declared number of training records (before --limit_records; with --images_per_person: '
        'of the images that are kept of all persons). It sets how often a record is sampled, and '
        'it is public like every flag; a rounded number will do. Declare it when the exact number '
        'is private. Default: they are counted, once, and the count is published.',
        at_least=1,
        may_be_read_off=True,
    )
    images_per_person: int | None = integer(
        None,
        'Keep at most so many images of each person; epsilon is then for a person instead of an '
        'image. More of them need more noise. It goes with --person. Give it when several images '
        'may show the same person. Default: every image counts for itself.',
        at_least=1,
    )
    person: str | None = string(
        None,
        'How the person of an image is found, with --images_per_person: folder '
        '(PATH/<class>/<person>/...), csv:FILE (a table with the columns file and person; FILE and '
        'the files in it are relative to the folder of the data set), name:REGEX (the first group '
        'in the name of the file, e.g. name:^([^_]+)_), dicom (the PatientID in the file), or a '
        'TFDS feature (identity for celeb_a).',
        on_resume='may_move',
    )
    dataset_persons: int | None = integer(
        None,
        'Declared number of persons in the training records, before --limit_records; it goes with '
        '--images_per_person and is public. Default: they are counted, once, and the count is '
        'published.',
        at_least=1,
        may_be_read_off=True,
    )
    read_off_records: str | None = string(
        None,
        'Which of the settings above were read off the records, separated by commas. The program '
        'writes it into RUN/config.flags for the privacy statement; do not give it yourself.',
    )
    bits: int | None = integer(
        None,
        'How many bits the values in 16-bit image files really have, e.g. 12 for many cameras and '
        'scanners; larger values become white. Give it when all images are of one device. Default: '
        'what each file says, or what the largest value of that one file needs.',
        at_least=8,
        at_most=16,
    )
    skip_unreadable: bool = boolean(
        False,
        'Leave out image files that cannot be read, and list them on the terminal. Without it the '
        'first one ends the program, before anything is spent.',
        on_resume='may_change',
    )
    cache: bool = boolean(
        True,
        'Keep decoded images of folder: and TFDS data sets in --cache_dir and read them from there '
        'at the next start. They are private, like the images: tf-efsgd cache lists and removes '
        'them. --nocache keeps them in memory alone.',
        on_resume='may_change',
    )
    cache_dir: str | None = string(
        None,
        'The folder, outside the run folder, for decoded images; it takes about as many bytes as '
        'there are pixels after resizing. Default: $XDG_CACHE_HOME/tf_efsgd or ~/.cache/tf_efsgd.',
        on_resume='may_change',
    )

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The declared classes; None when they are not declared."""
        return None if self.classes is None else parse_classes(self.classes)

    @property
    def read_off(self) -> tuple[str, ...]:
        """The names of the settings that were read off the records."""
        return tuple(self.read_off_records.split(',')) if self.read_off_records else ()


@dataclasses.dataclass(frozen=True)
class PrivacyConfig:
    """The mechanism and its budget."""

    private: bool = boolean(
        True,
        'Train with clipping and noise. --noprivate trains without either, for comparison; the '
        'run is then marked NOT PRIVATE.',
    )
    target_epsilon: float | None = number(
        None,
        'Epsilon of the whole run; the noise is calibrated to keep to it. Smaller is more private '
        'and gives worse images. Give either this or --noise_multiplier.',
        above=0.0,
        on_resume='mechanism',
    )
    target_delta: float = number(
        1e-5,
        'Delta of the guarantee. It must also be below 1 / number of records, or below 1 / number '
        'of persons with --images_per_person: lower it for larger data sets.',
        above=0.0,
        below=1.0,
    )
    allow_large_delta: bool = boolean(
        False,
        'Accept a --target_delta of 1 / number of records or more, for experiments. A mechanism '
        'that gives one whole record away would fulfil such a guarantee.',
        on_resume='mechanism',
    )
    noise_multiplier: float | None = number(
        None,
        'Standard deviation of the noise of one step, divided by its sensitivity; epsilon is then '
        'computed and reported. Give either this or --target_epsilon.',
        above=0.0,
        on_resume='mechanism',
    )
    l2_norm_clip: float = number(
        1.0,
        "Length to which each record's gradient is clipped. The noise grows with it; lower it "
        'when gradients are shorter.',
        at_least=1e-9,
        at_most=1e9,
        on_resume='mechanism',
    )
    expected_batch_size: int = integer(
        128,
        'Mean number of records in a step. More records: less noise in each step, fewer epochs '
        'for the same epsilon, slower steps.',
        at_least=1,
        on_resume='mechanism',
    )
    train_steps: int = integer(
        5000,
        'Number of private steps. More steps need more noise in each, for the same epsilon.',
        at_least=1,
        on_resume='mechanism',
    )
    error_feedback: str = string(
        'private',
        'What happens to the part of the gradients that clipping cuts. private: it is released '
        'with noise too, and later steps give it back; none: it is lost (plain DP-SGD); hidden: '
        'the published variant, for research. Its buffer has no noise, so its true epsilon is '
        'large, its checkpoints are private and --target_epsilon needs far more noise.',
        choices=('private', 'none', 'hidden'),
        on_resume='mechanism',
    )
    residual_l2_norm_clip: float = number(
        1.0,
        'Length to which the part that clipping cut from one gradient is clipped itself. Choose '
        'it about as large as that part is. With --error_feedback=hidden: the largest norm that '
        'one step gives back, in units of the sum of gradients.',
        at_least=1e-9,
        at_most=1e9,
        on_resume='mechanism',
    )
    residual_share: float = number(
        0.1,
        'Share of the budget (in 1/sigma^2) that is spent on releasing what clipping cut; 0 is '
        'plain DP-SGD.',
        at_least=0,
        below=1.0,
        on_resume='mechanism',
    )
    feedback_decay: float = number(
        0.9,
        'Part of the error buffer that each step keeps; the rest is given back. A larger part '
        'spreads the noise of the buffer over more steps.',
        at_least=0,
        below=1.0,
        on_resume='mechanism',
    )
    feedback_l2_norm_clip: float | None = number(
        None,
        'Largest norm that one step gives back of the error buffer, in units of the mean '
        'gradient. Give it when training diverges. Default: no limit.',
        at_least=1e-9,
        at_most=1e9,
        on_resume='mechanism',
    )
    clip_fake: bool = boolean(
        True,
        'Clip the gradients of generated images like those of records, so that both sides pull '
        'alike. It costs no privacy either way.',
        on_resume='mechanism',
    )
    clipping: str = string(
        'auto',
        'How the clipped gradients are computed; the result is the same. fast: from one backward '
        'pass over the batch; vectorized: from a small backward pass for every record, slower, '
        'for networks with a layer that has no rule; auto: fast where that is possible.',
        choices=('auto', 'fast', 'vectorized'),
        on_resume='may_change',
    )
    warm_start_share: float = number(
        0.0,
        'Share of the budget that is spent once, before the first step: noisy mean features of '
        'each class are released and the generator is fitted to them. Measured in 1/sigma^2, '
        'relative to one Gaussian release that would spend the whole --target_epsilon. At 1 '
        'nothing is left for private steps, and none are run. Raise it when the budget is small.',
        at_least=0,
        at_most=1,
    )
    warm_start_noise_multiplier: float | None = number(
        None,
        'Noise of the warm start, divided by its sensitivity. It goes with --noise_multiplier and '
        'replaces the share. Default: no warm start.',
        above=0.0,
    )
    learned_features_share: float = number(
        0.0,
        'Share of the warm start that is spent on a second release. A small classifier learns '
        'from images of the generator that was fitted to the first release; the mean features of '
        'its layers are released like those of pixels, and the generator is fitted to both. 0: no '
        'second release.',
        at_least=0,
        below=1.0,
    )
    dataset_budget: float | None = number(
        None,
        'Epsilon that all runs on this machine may spend together on these records. A run that '
        'would pass it is refused before it spends anything. Other runs are found in --state_dir '
        'by their records and count with all that they may spend, if they share any record; of '
        'runs on more than 10,000 records a sample is kept, which can miss a few dozen shared '
        'ones. Default: no limit; the sum is shown.',
        above=0.0,
        on_resume='may_change',
    )
    secure_noise: bool = boolean(
        False,
        "Take every bit of noise and sampling from the operating system's cryptographic generator "
        'instead of Philox under a secret key. Slower; use it when the guarantee must not depend '
        'on Philox.',
    )
    log_nonprivate_diagnostics: bool = boolean(
        False,
        'Write losses, gradient norms, clipping fractions and batch sizes on real records to '
        'RUN/nonprivate/logs, to look for a fault. Epsilon does NOT cover them; steps take longer.',
        on_resume='may_change',
    )

    public_features: str = string(
        'auto',
        'Features of a network that learned from public images, released beside those of pixels in '
        'the warm start. efficientnet_lite0: the one that comes with the package (it learned from '
        'ImageNet); another name of tf.keras.applications, e.g. MobileNetV2, is downloaded; PATH: '
        'a saved Keras model from images, float32 [n, H, W, 3] in [-1, 1], to a dict of feature '
        'maps; none: pixels alone; auto: efficientnet_lite0 for colour images, else none. The '
        'statement, the report and every table say that public images were used.',
        earlier='none',
    )

    @property
    def has_warm_start(self) -> bool:
        """Whether a generator is fitted to class sums before the first step."""
        return self.warm_start_share > 0 or self.warm_start_noise_multiplier is not None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The networks."""

    latent_dim: int = integer(
        64, 'Size of the latent vector that the generator makes an image of.', at_least=1
    )
    generator_width: int = integer(
        64,
        'Number of channels at the start of the generator. Wider costs time but no privacy, '
        'except with --reconstruction=generator.',
        at_least=1,
    )
    discriminator_width: int = integer(
        32,
        'Number of channels of the first layer of the discriminator. Wider networks need more '
        'budget: the noise grows with the number of parameters.',
        at_least=1,
    )
    noise_injection: bool = boolean(
        True, 'Add random noise after each upsampling of the generator, for more varied images.'
    )
    reconstruction: str = string(
        'head',
        'How the private step reconstructs records. head: by a small head of the discriminator; '
        'generator: by the generator, from a latent vector that the discriminator predicts, as in '
        'a variational autoencoder. The generator then learns from records too, but all of its '
        'parameters get noise: with networks of the usual size several times as much. none: no '
        'reconstruction.',
        choices=('head', 'generator', 'none'),
    )
    reconstruction_weight: float = number(
        0.01,
        "Weight of the squared reconstruction error in a record's loss; with "
        "--reconstruction=generator also of the latent vector's divergence.",
        at_least=0,
    )
    generator_ema: float = number(
        0.99,
        "Decay of the moving average of the generator's weights, per generator step. Pictures and "
        'export use the average; 0 uses the last weights.',
        at_least=0,
        below=1.0,
    )

    generator: str = string(
        'auto',
        'How the generator is built. plain: latents and label enter at the lowest resolution. '
        'skip: they enter at every one, and each adds to the image, so that colours vary. auto: '
        'skip with --discriminator=public_heads, else plain.',
        choices=('auto', 'skip', 'plain'),
        earlier='plain',
    )
    discriminator: str = string(
        'auto',
        'What the discriminator sees. pixels: images, which it learns from scratch; public_heads: '
        'the feature maps of the frozen network of --public_features, by small heads, so that the '
        'noise is small; auto: public_heads where there are public features, else pixels.',
        choices=('auto', 'public_heads', 'pixels'),
        earlier='pixels',
    )


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How the networks are trained, and on what."""

    warm_start_steps: int = integer(
        1500,
        'Number of generator steps that fit the warm start. They cost time but no privacy; more '
        'of them give better images.',
        at_least=1,
    )
    learned_features_steps: int = integer(
        3000,
        'Number of generator steps that fit both releases, with --learned_features_share. They '
        'cost time but no privacy.',
        at_least=1,
    )
    warm_start_weight: float = number(
        0.0,
        "Weight of the distance to the warm start's class means in the generator's loss while "
        'private steps run, added to the loss from the discriminator. Raise it when private steps '
        'undo the warm start; 0 leaves the distance out.',
        at_least=0,
    )
    discriminator_only_steps: int = integer(
        0,
        'Number of private steps at the start without generator steps. After a warm start the '
        'discriminator has to catch up first.',
        at_least=0,
    )
    discriminator_steps: int = integer(
        5,
        'Number of private steps for each generator step, at the start of training with '
        '--adaptive_discriminator_steps. Raise it when the noise is large.',
        at_least=1,
        at_most=64,
    )
    adaptive_discriminator_steps: bool = boolean(
        True,
        'Raise the number of --discriminator_steps, up to 64, while the discriminator falls '
        'behind on generated images.',
    )
    generator_learning_rate: float = number(
        1e-3, "Learning rate of Adam in the generator's own steps.", above=0.0
    )
    discriminator_learning_rate: float = number(
        1e-3,
        'Learning rate of Adam in the private steps; with --reconstruction=generator these move '
        'the generator too. Lower it when the noise is large.',
        above=0.0,
    )
    microbatch_size: int | None = integer(
        None,
        'Number of records (and as many generated images) that go through the networks at a time. '
        'It bounds the memory and does not change the result; lower it when memory runs out. '
        'Default: all records of a step.',
        at_least=1,
        on_resume='may_change',
    )
    seed: int = integer(
        1,
        'Seed of what is public: initial weights and latent vectors. It never fixes the sampling '
        'or the noise for privacy.',
        at_least=0,
        at_most=2**31 - 1,
    )
    strategy: str = string(
        'auto',
        'Which devices train. one_device: the first; mirrored: all of them, each on its part of '
        'the records; auto: mirrored when there are several GPUs (or --logical_devices), else '
        'one_device.',
        choices=('auto', 'one_device', 'mirrored'),
        on_resume='may_change',
    )
    logical_devices: int = integer(
        1,
        'Split the CPU into this many devices, to try --strategy=mirrored without GPUs.',
        at_least=1,
        at_most=64,
        on_resume='may_change',
    )

    minutes: int = integer(
        30,
        'About how long to train, in minutes, when the number of steps is not given: the program '
        'measures the speed of this machine and chooses the steps before it starts.',
        at_least=1,
        on_resume='may_change',
    )


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What a run writes, and when."""

    run_dir: str | None = string(
        None,
        'The run folder; it must be new or empty, except with --resume. Default: '
        'runs/<data set>-<time>.',
        on_resume='one_start',
    )
    resume: bool = boolean(
        False,
        'Continue the run in --run_dir from its last checkpoint, with the same settings.',
        on_resume='one_start',
    )
    change_mechanism: bool = boolean(
        False,
        'With --resume: allow other privacy settings from now on. Epsilon is then the RDP filter '
        'of the plan at the start, which is larger; --target_epsilon must allow it.',
        on_resume='one_start',
    )
    resume_unverified: bool = boolean(
        False,
        'With --resume: continue although --state_dir remembers nothing of the run, e.g. on '
        'another machine. Only the number, shape and classes of the records are compared then, '
        'and the privacy statement says so.',
        on_resume='one_start',
    )
    state_dir: str | None = string(
        None,
        'The folder, outside the run folder and readable only by you, where the program keeps the '
        "fingerprint of a run's records, its ledger's last position, what it may spend on which "
        'records, and classifiers of real images. python -m tf_efsgd.state lists and removes '
        'them. Default: $XDG_STATE_HOME/tf_efsgd or ~/.local/state/tf_efsgd.',
        on_resume='one_start',
    )
    checkpoint_steps: int = integer(
        500,
        'Number of steps between checkpoints, for private steps and for those that fit the warm '
        'start. A stopped run loses, and has paid for, the private steps since the last one.',
        at_least=1,
        on_resume='may_change',
    )
    log_steps: int = integer(
        50,
        'Number of steps between log entries. At the first start of a run also the number of '
        'steps that its ledger reserves at a time.',
        at_least=1,
        on_resume='may_change',
    )
    sample_steps: int = integer(
        500, 'Number of steps between sample pictures.', at_least=1, on_resume='may_change'
    )
    evaluate: bool = boolean(
        True,
        'At the end, measure the generator against real images and write the result to '
        'RUN/nonprivate: a short form of python -m tf_efsgd.evaluate.',
        on_resume='may_change',
    )
    evaluation_images: int = integer(
        20000,
        'Number of generated images that the evaluation measures. More take longer and give '
        'steadier scores.',
        at_least=100,
        on_resume='may_change',
    )
    evaluation_runs: int = integer(
        1,
        'Number of classifiers that the evaluation trains for each score; give 2 or more to see '
        'their spread.',
        at_least=1,
        on_resume='may_change',
    )
    evaluation_epochs: int = integer(
        10,
        'Number of passes of each of these classifiers over its images.',
        at_least=1,
        on_resume='may_change',
    )
    export: bool = boolean(
        True, 'At the end, export the generator as a SavedModel.', on_resume='may_change'
    )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All settings of a run."""

    data: DataConfig = DataConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    run: RunSettings = RunSettings()

    def __post_init__(self):
        """Checks every setting that can be checked without the data.

        Raises:
          ConfigError: if one is out of its range.
        """
        for group in groups_of(self):
            for field in dataclasses.fields(group):
                fields.check(field, getattr(group, field.name))
        privacy = self.privacy
        given = (privacy.target_epsilon is not None) + (privacy.noise_multiplier is not None)
        # A run whose mechanism was changed may have both: a limit, and the noise of its next steps.
        if privacy.private and given != 1 and not (given == 2 and self.run.resume):
            received = 'neither' if privacy.target_epsilon is None else 'both'
            raise ConfigError(
                'Give either --target_epsilon (the noise is calibrated) or --noise_multiplier '
                f'(epsilon is reported). Received: {received}.'
            )
        self._check_data()
        self._check_warm_start()
        if self.run.resume and self.run.run_dir is None:
            raise ConfigError('--resume needs --run_dir, the folder of the run to continue.')
        for name in ('change_mechanism', 'resume_unverified'):
            if getattr(self.run, name) and not self.run.resume:
                raise ConfigError(f'--{name} goes with --resume.')
        if self.training.strategy == 'one_device' and self.training.logical_devices > 1:
            raise ConfigError(
                '--logical_devices above 1 needs --strategy=mirrored. Received: '
                f'--strategy=one_device --logical_devices={self.training.logical_devices}.'
            )

    def _check_data(self):
        data = self.data
        if data.channels == 2:
            raise ConfigError('--channels must be 1 (grey) or 3 (colour). Received: 2.')
        if data.classes is not None:
            parse_classes(data.classes)
        if (data.person is None) != (data.images_per_person is None):
            missing = '--person' if data.person is None else '--images_per_person'
            raise ConfigError(
                '--person (whose an image is) and --images_per_person (how many of them are kept) '
                f'go together. Received: no {missing}.'
            )
        if data.dataset_persons is not None:
            if data.images_per_person is None:
                raise ConfigError(
                    '--dataset_persons goes with --images_per_person. Received: '
                    f'--dataset_persons={data.dataset_persons} alone.'
                )
            if data.dataset_size is not None and data.dataset_persons > data.dataset_size:
                raise ConfigError(
                    '--dataset_persons must be at most --dataset_size: every person has an image. '
                    f'Received: {data.dataset_persons} and {data.dataset_size}.'
                )
        known = [f.name for f in dataclasses.fields(data) if f.metadata['may_be_read_off']]
        if not set(data.read_off) <= set(known):
            raise ConfigError(
                f'--read_off_records names settings among {", ".join(known)}. Received: '
                f'{data.read_off_records}.'
            )

    def with_public_facts_of(self, before: RunConfig) -> RunConfig:
        """What these settings leave open, as an earlier start of the run found it.

        Args:
          before: the settings of that start, from RUN/config.flags.

        Returns:
          The settings: what that start read off the records, and the classes, are taken from there
          when they are not given, so that they are never read off the records again.
        """
        left_open = {
            name: getattr(before.data, name)
            for name in ('classes', 'read_off_records', *before.data.read_off)
            if getattr(self.data, name) is None
        }
        return dataclasses.replace(self, data=dataclasses.replace(self.data, **left_open))

    def _check_warm_start(self):
        privacy = self.privacy
        if not privacy.private:
            return
        share, noise = privacy.warm_start_share, privacy.warm_start_noise_multiplier
        if share and privacy.target_epsilon is None:
            raise ConfigError(
                '--warm_start_share is a share of --target_epsilon, which is not given: give '
                f'--warm_start_noise_multiplier instead. Received: {share}.'
            )
        if noise is not None and (share or privacy.noise_multiplier is None):
            raise ConfigError(
                '--warm_start_noise_multiplier goes with --noise_multiplier; with --target_epsilon '
                f'give --warm_start_share. Received: {noise}.'
            )

    def to_flags(self, **instead) -> str:
        """What would repeat the run, as the text of a flagfile, defaults included.

        Settings of one start (where the run is, whether and how it is resumed) are left out.
        The order of the lines is part of the settings' hash in ledgers: it must not change.

        Args:
          **instead: settings to show with another value; None leaves one out.
        """
        lines = []
        for group in groups_of(self):
            for field in dataclasses.fields(group):
                value = instead.get(field.name, getattr(group, field.name))
                if value is None or field.metadata['on_resume'] == 'one_start':
                    continue
                if field.metadata['kind'] == 'boolean':
                    lines.append(f'--{"" if value else "no"}{field.name}')
                else:
                    lines.append(f'--{field.name}={value}')
        return '\n'.join(lines) + '\n'


def groups_of(config: RunConfig) -> list:
    """The groups of settings, in the order of `RunConfig`."""
    return [getattr(config, field.name) for field in dataclasses.fields(config)]
