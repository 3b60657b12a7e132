"""Packaging of tf_efsgd: pins, extras and package data."""

import pathlib
import re

import setuptools

_HERE = pathlib.Path(__file__).parent


def _version():
    text = (_HERE / 'tf_efsgd' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE).group(1)


def _long_description():
    readme = _HERE / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.exists() else ''


setuptools.setup(
    name='tf_efsgd',
    version=_version(),
    description='A differentially private GAN for Keras, trained by DP-SGD with error feedback',
    long_description=_long_description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    # TensorFlow 2.15 and TF Privacy 0.9 exist for these versions only.
    python_requires='>=3.9,<3.12',
    packages=[
        *setuptools.find_packages(include=['tf_efsgd', 'tf_efsgd.*']),
        'tf_efsgd.configs',
    ],
    entry_points={'console_scripts': ['tf-efsgd = tf_efsgd.cli.main:main']},
    # configs/ stays at the top of the repository, where people look for it.
    package_dir={'tf_efsgd.configs': 'configs'},
    package_data={
        'tf_efsgd.configs': ['*.flags'],
        'tf_efsgd.data': ['embedded/*.gz', 'embedded/LICENSE.md'],
        'tf_efsgd.models': ['embedded/*.npz', 'embedded/*.jpg', 'embedded/LICENSE.md'],
    },
    include_package_data=False,
    zip_safe=False,
    install_requires=[
        'tensorflow==2.15.1',
        'keras==2.15.0',
        'tensorflow-privacy==0.9.0',
        # The version that TF Privacy 0.9.0 asks for, to the digit.
        'dp-accounting==0.4.3',
        # 4.9.3 is the last one for Python 3.9; all of these read and write the same files.
        'tensorflow-datasets>=4.9.3,<4.9.11',
        # From 1.14 on it holds Python 3.9 and 3.10 to protobuf 3.20, from 1.16 on it wants one that
        # TensorFlow 2.15 does not take. 1.13 has protobuf 4 for all.
        'tensorflow-metadata>=1.13.1,<1.14',
        # TFDS 4.9.3 imports it without asking for it.
        'importlib_resources>=5.0',
        # The newest that fit, said here so that pip need not search for them.
        'etils<1.14; python_version == "3.10"',
        'etils<1.6; python_version < "3.10"',
        'googleapis-common-protos>=1.56.4,<1.75.1',
        'tensorboard>=2.15,<2.16',
        # TensorBoard 2.15 imports pkg_resources, which setuptools 81 may drop.
        'setuptools>=64,<81',
        # TF Privacy 0.9.0 holds packaging at 22, which later ones do not take.
        'wheel<0.46',
        'numpy>=1.23.5,<2',
        # What TensorFlow does not decode, or does not show as a person sees it.
        'pillow>=9.2',
        'scikit-learn>=1.2,<2',
        'scipy>=1.9,<2',
        'attrs>=22',
        'absl-py>=1.0,<2',
        'tqdm>=4.60',
    ],
    extras_require={
        'dev': [
            'pytest>=7.4',
            'pytest-xdist>=3.3',
            'hypothesis>=6.80',
            'mpmath>=1.2',
            'ruff>=0.5',
            'mypy>=1.8',
        ],
        'report': ['matplotlib>=3.7'],
        'dicom': ['pydicom>=2.4,<4'],
        # For tests/tools/opacus_step.py; ghost clipping came with Opacus 1.5.
        'bench': ['matplotlib>=3.7', 'opacus>=1.5,<2', 'torch>=2.0'],
    },
)
