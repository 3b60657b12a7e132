"""From a folder of images to a data set that may be shared.

  python examples/own_images.py photos/ synthetic/

photos/ has one folder for each class: photos/cat/0001.jpg, photos/dog/0001.jpg, ... Training takes
about half an hour; synthetic/ then has class folders, labels.csv, PRIVACY.html and checksums.
"""

from __future__ import annotations

import argparse
import os
import pathlib

import tf_efsgd


def make_synthetic(
    photos: str, synthetic: str, count: int, **settings
) -> tuple[tf_efsgd.Synthesizer, dict]:
    """Trains on a folder and writes a data set.

    Args:
      photos: the folder of the images.
      synthetic: the folder to make.
      count: how many images to make.
      **settings: settings of the run, by the names of their flags.

    Returns:
      (the trained synthesizer, what `save_images` returned).
    """
    if os.path.lexists(synthetic):  # Not after half an hour.
        raise tf_efsgd.ConfigError(f'The folder to make must not exist yet. Received: {synthetic}.')
    synthesizer = tf_efsgd.Synthesizer(**settings)
    synthesizer.fit(f'folder:{photos}')
    made = synthesizer.save_images(synthetic, count=count)
    # A colleague needs only this folder: Synthesizer.load('synthetic.generator').sample(1000).
    synthesizer.save(f'{pathlib.Path(synthetic)}.generator')
    return synthesizer, made


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('photos', help='a folder with one folder for each class')
    parser.add_argument('synthetic', help='the folder to make')
    parser.add_argument('--count', type=int, default=10_000, help='how many images to make')
    parser.add_argument('--target_epsilon', type=float, default=10.0, help='of the whole run')
    parser.add_argument('--minutes', type=int, default=30, help='about how long to train')
    given = parser.parse_args()
    settings = {'target_epsilon': given.target_epsilon, 'minutes': given.minutes}
    try:
        synthesizer, made = make_synthetic(given.photos, given.synthetic, given.count, **settings)
    except tf_efsgd.ConfigError as error:
        parser.exit(2, f'{error}\n')
    print(f'{made["count"]:,} images of {len(made["class_names"])} classes in {given.synthetic}')
    print(f'epsilon = {synthesizer.epsilon:.2f} at delta = {synthesizer.statement["delta"]:g}')
    print(f'what your privacy officer reads: {synthesizer.report()}')


if __name__ == '__main__':
    main()
