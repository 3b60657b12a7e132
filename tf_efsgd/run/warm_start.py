"""The generator is fitted to what is released of all records, before the first private step."""

from __future__ import annotations

import functools
import shutil
import time

import numpy as np
import tensorflow as tf

from tf_efsgd import budget, progress
from tf_efsgd.config import ConfigError
from tf_efsgd.models import sampling
from tf_efsgd.models.classifier import build_classifier
from tf_efsgd.models.generator import draw_inputs
from tf_efsgd.privacy import class_sums, releases
from tf_efsgd.privacy.features import learned, pixels, public
from tf_efsgd.run import build
from tf_efsgd.run import folder as run_folder
from tf_efsgd.run.context import Context
from tf_efsgd.run.errors import as_config_error
from tf_efsgd.training import callbacks, learn_features, targets
from tf_efsgd.training import fit as fitting
from tf_efsgd.training.public_heads_gan import OfMaps, PublicHeadsGan

# Of the generated images that the features of the second release are learned from.
_LEARNED_SEED = 103


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
        self._features = self._make_features(noise[0]) if run.network is not None else None
        self._releases = releases.Releases(
            run.folder,
            run.ledger,
            run.state,
            train.images,
            train.labels,
            noise,
            run.new_noise,
            pixels.VERSION if self._features is None else self._features.version,
        )
        self._checkpoints = run.folder / run_folder.CHECKPOINTS / 'warm_start'

    def check(self) -> None:
        """Holds the releases of earlier starts against the ledger.

        Raises:
          ConfigError: if they are not what was released.
        """
        as_config_error(self._releases.check, ValueError)

    def make(self) -> None:
        """Releases, fits, and hands the targets on to the steps, as far as it is due.

        Raises:
          ConfigError: if a release on disk does not fit, or nothing is left after a crash.
        """
        run, plan = self._run, self._plan
        privacy, weight = run.config.privacy, run.config.training.warm_start_weight
        if not (plan.warm_start_event if run.is_private else privacy.warm_start_share):
            return
        if run.is_restored and not weight:
            return
        features = self._features or pixels.FeatureMap(plan.image_shape)
        with progress.waiting('Looking at all records once, for the release'):
            sums = as_config_error(
                lambda: self._releases.class_sums(features), releases.ReleaseError
            )
        if run.is_private and not run.is_restored:
            callbacks.write_epsilon(run.writer(), 0, budget.EpsilonSoFar(run.ledger, 0)(0))
        if sums is None:
            self._continue_without('warm start')
            return
        fitted = [targets.Target(features, self._releases.class_means(0, sums, features.groups))]
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
            run.gan.follow(targets.AveragedTarget(of_maps), 1.0 / weight)
        elif weight:
            run.gan.set_target(targets.SumOfTargets(fitted), weight)

    def _make_features(self, noise_multiplier: float) -> public.PublicFeatures:
        """Those of the first release, tried on this machine before they see a record."""
        plan = self._plan
        size = public.choose_size(plan.dataset_size, plan.num_classes, noise_multiplier)
        features = public.PublicFeatures(self._run.network, plan.image_shape, size)
        photographs = public.public_photographs(plan.image_shape)
        build.check_alone(features, photographs, class_sums.RECORDS_PER_PART)
        return features

    def _continue_without(self, what: str) -> None:
        """After a crash between the charge of a release and its file: it is never made again."""
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
        """Fits the generator to what was and what will be released; returns all targets."""
        run = self._run
        training, started, fitted = run.config.training, time.monotonic(), [target]
        # A copy outside the strategy: the fit is for one device.
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
        shutil.rmtree(self._checkpoints, ignore_errors=True)
        run.sample_grid(run.writer(), 0, 0).on_due({})
        return fitted

    def _fit_steps(self, generator, fitted, description: str, **how) -> None:
        run, writer = self._run, self._run.writer()
        show = functools.partial(
            callbacks.write_scalar, writer, run.is_private, 'distance_to_release'
        )
        average = fitting.fit(
            generator,
            draw_inputs,
            fitted,
            seed=self._run.config.training.seed,
            checkpoint_dir=self._checkpoints,
            checkpoint_steps=self._run.config.run.checkpoint_steps,
            progress=functools.partial(
                progress.Bar, desc=description, unit='step', builds_graph=True
            ),
            show=show,
            show_steps=run.config.run.log_steps,
            **how,
        )
        writer.flush()
        generator.set_weights(average)

    def _release_learned_features(self, generator) -> learned.Release | None:
        """The second release, of what a classifier of this generator's images sees."""
        plan = self._plan
        if not plan.learned_features_share:
            return None
        if self._releases.learned_features_are_lost:
            self._continue_without('second release of the warm start')
            return None
        classifier = build_classifier(plan.image_shape, plan.num_classes)
        with progress.Bar(desc='learning features', unit='epoch', builds_graph=True) as bar:
            distances = learn_features.learn(
                classifier,
                lambda labels: sampling.generate(generator, labels, _LEARNED_SEED),
                plan.num_classes,
                seed=self._run.config.training.seed,
                callbacks=[tf.keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: bar.update())],
            )
        if not np.all(np.isfinite(distances)):
            print('WARNING: no features were learned: the second release is given up.')
            self._releases.give_up_learned_features()
            return None
        return self._releases.release_learned_features(
            learned.LearnedFeatures(classifier, distances, plan.image_shape),
            distances,
            classifier.get_weights(),
            generator.get_weights(),
        )

    def _learned_target(self, release: learned.Release) -> targets.Target:
        plan = self._plan
        classifier = build_classifier(plan.image_shape, plan.num_classes)
        classifier.set_weights(release.classifier)
        features = learned.LearnedFeatures(classifier, release.distances, plan.image_shape)
        return targets.Target(features, self._releases.class_means(1, release.sums))
