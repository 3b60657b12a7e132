"""The warm start of a run: releases of all records, and a generator fitted to them.

It comes before the first private step.
"""

from __future__ import annotations

import functools
import shutil
import time

import numpy as np
import tensorflow as tf

from tf_efsgd import budget, file_names, progress
from tf_efsgd.config import ConfigError
from tf_efsgd.models import sampling
from tf_efsgd.models.classifier import build_classifier
from tf_efsgd.models.generator import draw_inputs
from tf_efsgd.privacy import releases, shared_releases
from tf_efsgd.privacy.features import alone, learned, pixels, public
from tf_efsgd.run import build
from tf_efsgd.run.context import Context
from tf_efsgd.run.errors import as_config_error
from tf_efsgd.training import callbacks, learn_features, targets
from tf_efsgd.training import fit as fitting
from tf_efsgd.training.public_heads_gan import OfMaps, OnNetwork, PublicHeadsGan

# The seed of the generated images from which the features of the second release are learned.
_LEARNED_SEED = 103
# A fit draws sample pictures every --sample_steps, and at least so many.
_PICTURES = 4


class WarmStart:
    """The releases of a run and the fit of its generator to them.

    Args:
      run: the run.
    """

    def __init__(self, run: Context):
        self._run = run
        plan, train = run.ledger.first_plan, run.dataset.train
        self._plan = plan
        noise = budget.noise_of_releases(plan) if run.is_private else (0.0, 0.0)
        self._is_public = run.network is not None
        kind = shared_releases.ReleasesOfChief
        self._releases = (kind if run.workers.is_chief else shared_releases.ReleasesOfOthers)(
            run.workers,
            run.folder,
            run.ledger,
            run.state,
            run.workers.share(train.images),
            run.workers.share(train.labels)[:],
            noise,
            run.new_noise,
            self._features.version if self._is_public else pixels.VERSION,
            run.strategy,
        )
        self._checkpoints = run.folder / file_names.CHECKPOINTS / 'warm_start'

    @functools.cached_property
    def _features(self) -> pixels.FeatureMap | public.PublicFeatures:
        """The features of the first release."""
        return self._run.features or build.build_features(self._plan, self._run.network)

    def check(self) -> None:
        """Compares the releases of earlier starts with the ledger.

        Raises:
          ConfigError: if they are not what was released.
        """
        as_config_error(self._releases.check, ValueError)

    def make(self) -> None:
        """Releases, fits, and gives the steps their targets, as far as each is due.

        Raises:
          ConfigError: if a release on disk does not fit, or a crash left nothing to continue with.
        """
        run, plan = self._run, self._plan
        privacy, weight = run.config.privacy, run.config.training.warm_start_weight
        if not (plan.warm_start_event if run.is_private else privacy.warm_start_share):
            return
        if run.is_restored and not weight:
            return
        features = self._features
        with progress.waiting('Looking at all records once, for the release'):
            if not run.is_restored:
                run.workers.together(lambda: build.try_rows(features.rows))
            sums = as_config_error(
                lambda: self._releases.class_sums(features), releases.ReleaseError
            )
        if run.is_private and not run.is_restored:
            callbacks.write_epsilon(run.writer(), 0, budget.EpsilonSoFar(run.ledger, 0)(0))
        if sums is None:
            self._continue_without('warm start')
            return
        means = self._releases.class_means(0, sums, features.groups)
        fitted = [targets.Target(self._features_of_generated() or features, means)]
        if not run.is_restored:
            fitted = self._fit_to(fitted[0])
        else:
            release = self._releases.stored_learned_features()
            if release is not None:
                fitted.append(self._learned_target(release))
            elif run.ledger.learned_features is not None:
                name = releases.LEARNED_FEATURES
                print(f'WARNING: {name} is missing: the steps continue without it.')
        if weight and isinstance(run.gan, PublicHeadsGan):
            of_maps = targets.Target(OfMaps(features), fitted[0].means)
            with run.strategy.scope():
                run.gan.follow(targets.AveragedTarget(of_maps), 1.0 / weight)
        elif weight:
            run.gan.set_target(targets.SumOfTargets(fitted), weight)

    def _features_of_generated(self) -> OnNetwork | None:
        """The features of generated images by the public network; None if the run uses none."""
        if not self._is_public:
            return None
        with self._run.strategy.scope():
            network = build.for_generated_images(self._run.network, self._run.config.training)
        return OnNetwork(self._features, network)

    def _continue_without(self, what: str) -> None:
        """Continues after a crash between the charge of a release and the writing of its file.

        Such a release is never made again.
        """
        run = self._run
        if not (run.ledger.plan.train_steps or run.is_restored) and what == 'warm start':
            raise ConfigError(
                f'The warm start of {run.folder} was charged, but a crash lost what it released, '
                'and nothing of the budget is left: start a new run folder.'
            )
        print(
            f'WARNING: the {what} was charged, but a crash lost what it released: training '
            'continues without it.'
        )
        self._releases.give_up_learned_features()  # Without the first release there is no second.

    def _fit_to(self, target: targets.Target) -> list[targets.Target]:
        """Fits the generator to the first release, makes the second, fits to both.

        Returns:
          The targets of all releases.
        """
        run = self._run
        training, started, fitted = run.config.training, time.monotonic(), [target]
        with run.strategy.scope():
            generator = tf.keras.models.clone_model(run.gan.generator)
        generator.set_weights(run.gan.generator.get_weights())
        release = self._releases.stored_learned_features()
        if release is None:
            self._fit_steps(generator, fitted, 'warm start', steps=training.warm_start_steps)
            release = self._release_learned_features(generator)
        if release is not None:
            generator.set_weights(release.generator)
            fitted.append(self._learned_target(release))
            self._fit_steps(
                generator,
                fitted,
                'warm start, both releases',
                steps=training.learned_features_steps,
                learning_rate=fitting.LEARNING_RATE_OF_BOTH,
                first_step=training.warm_start_steps,
            )
        run.gan.generator.set_weights(generator.get_weights())
        run.gan.ema_generator.set_weights(generator.get_weights())
        print(f'Fitted the generator in {(time.monotonic() - started) / 60:.1f} minutes.')
        run.save()
        if run.workers.is_chief:
            shutil.rmtree(self._checkpoints, ignore_errors=True)
            run.sample_grid(run.writer(), 0, 0).on_due({})
        return fitted

    def _fit_steps(self, generator, fitted, description: str, **how) -> None:
        run, writer = self._run, self._run.writer()
        run.write_overview(writer)
        grid = run.sample_grid(writer, 0, 0, generator)
        pictures_every = max(1, min(run.config.run.sample_steps, how['steps'] // _PICTURES))
        show = functools.partial(
            callbacks.write_scalar, writer, run.is_private, 'distance_to_release'
        )
        average = fitting.fit(
            generator,
            draw_inputs,
            fitted,
            seed=self._run.config.training.seed,
            checkpoint_dir=self._checkpoints if self._run.workers.is_chief else None,
            broadcast_variables=self._run.workers.broadcast_variables,
            checkpoint_steps=self._run.config.run.checkpoint_steps,
            progress=functools.partial(
                progress.Bar, desc=description, unit='step', builds_graph=True
            ),
            show=show,
            show_steps=run.config.run.log_steps,
            draw=functools.partial(grid.draw, of_fit=True) if run.workers.is_chief else None,
            draw_steps=pictures_every,
            strategy=run.strategy,
            **how,
        )
        writer.flush()
        generator.set_weights(average)

    def _release_learned_features(self, generator) -> learned.Release | None:
        """Makes the second release, of what a classifier of this generator's images sees."""
        plan = self._plan
        if not plan.learned_features_share:
            return None
        if self._releases.learned_features_are_lost:
            self._continue_without('second release of the warm start')
            return None
        classifier = build_classifier(plan.image_shape, plan.num_classes)
        # One worker learns, and the others take over what it has learned: their features must be
        # the same to the last digit.
        distances = self._run.workers.of_chief(lambda: self._learn(classifier, generator))
        self._run.workers.broadcast_variables(classifier.weights)
        if not np.all(np.isfinite(distances)):
            print('WARNING: no features were learned: the second release is given up.')
            self._releases.give_up_learned_features()
            return None
        features = learned.LearnedFeatures(classifier, distances, plan.image_shape)
        if self._run.workers.all_reduce_max(int(not _has_rows(features))):
            print(
                'WARNING: this device computes records otherwise each time: the second release '
                'is given up.'
            )
            self._releases.give_up_learned_features()
            return None
        return self._releases.release_learned_features(
            features, distances, classifier.get_weights(), generator.get_weights()
        )

    def _learn(self, classifier, generator) -> list[float]:
        with progress.Bar(desc='learning features', unit='epoch', builds_graph=True) as bar:
            distances = learn_features.learn(
                classifier,
                lambda labels: sampling.generate(generator, labels, _LEARNED_SEED),
                self._plan.num_classes,
                seed=self._run.config.training.seed,
                callbacks=[tf.keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: bar.update())],
            )
        return [float(distance) for distance in distances]

    def _learned_target(self, release: learned.Release) -> targets.Target:
        plan = self._plan
        with self._run.strategy.scope():
            classifier = build_classifier(plan.image_shape, plan.num_classes)
        classifier.set_weights(release.classifier)
        features = learned.LearnedFeatures(classifier, release.distances, plan.image_shape)
        return targets.Target(features, self._releases.class_means(1, release.sums))


def _has_rows(features: learned.LearnedFeatures) -> bool:
    """Whether a record's features are its own, computed some records at a time."""
    try:
        features.rows()
    except alone.NotAlone:
        return False
    return True
