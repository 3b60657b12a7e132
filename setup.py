"""Packaging of tf_efsgd: pins, extras and package data."""

import pathlib
import re

import setuptools

_LINE_1, _LINE_2 = 'python_version < "3.12"', 'python_version >= "3.12"'
_HERE = pathlib.Path(__file__).parent
_DICOM = 'pydicom>=2.4,<4'
_HEIC = 'pillow-heif>=0.16'
# The site of docs/; the handler reads docstrings without importing anything.
_DOCS = [
    'mkdocs>=1.6,<2',
    'mkdocs-material>=9.5,<10',
    'mkdocstrings-python>=1.10',
]
_SERVING = [
    f'tensorflow-serving-api>=2.15.1,<2.16; {_LINE_1}',
    f'tensorflow-serving-api>=2.19,<2.20; {_LINE_2}',
]


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
    python_requires='>=3.9,<3.13',
    packages=[
        *setuptools.find_packages(include=['tf_efsgd', 'tf_efsgd.*']),
        'tf_efsgd.configs',
    ],
    entry_points={'console_scripts': ['tf-efsgd = tf_efsgd.cli.main:main']},
    # configs/ stays at the top of the repository, where people look for it.
    package_dir={'tf_efsgd.configs': 'configs'},
    package_data={
        'tf_efsgd': ['py.typed'],
        'tf_efsgd.configs': ['*.flags'],
        'tf_efsgd.data': ['embedded/*.gz', 'embedded/LICENSE.md'],
        'tf_efsgd.models': ['embedded/*.npz', 'embedded/*.jpg', 'embedded/LICENSE.md'],
    },
    include_package_data=False,
    zip_safe=False,
    install_requires=[
        # TensorFlow 2.15, the last with Keras 2 inside, ends at Python 3.11; on 3.12 Keras 2 is a
        # package of its own, see tf_efsgd/python_312.py. TF Privacy 0.9.0 says that it needs a
        # Python below 3.12 and packages that TensorFlow 2.19 does not take, and works without them:
        # there it is a second command, `pip install --no-deps --ignore-requires-python
        # tensorflow-privacy==0.9.0`.
        f'tensorflow==2.15.1; {_LINE_1}',
        f'keras==2.15.0; {_LINE_1}',
        f'tensorflow-privacy==0.9.0; {_LINE_1}',
        f'tensorflow>=2.19,<2.20; {_LINE_2}',
        f'tf_keras>=2.19,<2.20; {_LINE_2}',
        # The version that TF Privacy 0.9.0 asks for, to the digit.
        'dp-accounting==0.4.3',
        # 4.9.3 is the last one for Python 3.9; all of these read and write the same files.
        'tensorflow-datasets>=4.9.3,<4.9.11',
        # From 1.14 on it holds Python 3.9 and 3.10 to protobuf 3.20, from 1.16 on it wants one that
        # TensorFlow 2.15 does not take. 1.13 has protobuf 4 for all.
        f'tensorflow-metadata>=1.13.1,<1.14; {_LINE_1}',
        # From 1.21 on its files are for protobuf 6, which TensorFlow 2.19 does not take.
        f'tensorflow-metadata>=1.17,<1.18; {_LINE_2}',
        # TFDS 4.9.3 imports it without asking for it.
        'importlib_resources>=5.0',
        # The newest that fit, said here so that pip need not search for them.
        'etils<1.14; python_version == "3.10"',
        'etils<1.6; python_version < "3.10"',
        'googleapis-common-protos>=1.56.4,<1.75.1',
        f'tensorboard>=2.15,<2.16; {_LINE_1}',
        f'tensorboard>=2.19,<2.20; {_LINE_2}',
        # TensorBoard imports pkg_resources, which setuptools 81 may drop.
        'setuptools>=64,<81',
        # TF Privacy 0.9.0 holds packaging at 22, which later ones do not take.
        f'wheel<0.46; {_LINE_1}',
        # Without it the pages have no curves.
        'matplotlib>=3.7',
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
            # launch/kubernetes.yaml against the schemas of Kubernetes.
            'kubernetes-validate>=1.29,<2',
            'pyyaml>=6',
            # For examples/quickstart.ipynb.
            'nbclient>=0.8',
            'nbformat>=5.7',
            'ipykernel>=6.20',
            _DICOM,
            _HEIC,
            *_DOCS,
            *_SERVING,
        ],
        'dicom': [_DICOM],
        # Photographs of phones.
        'heic': [_HEIC],
        'docs': _DOCS,
        # Part of the base by now; the name stays for who asks for it.
        'report': [],
        # TensorFlow with the libraries of NVIDIA that go with it.
        'gpu': [
            f'tensorflow[and-cuda]==2.15.1; {_LINE_1}',
            f'tensorflow[and-cuda]>=2.19,<2.20; {_LINE_2}',
        ],
        # Requests that warm a server up, in each export; and gRPC clients.
        'serving': _SERVING,
        # For tests/tools/opacus_step.py; ghost clipping came with Opacus 1.5.
        'bench': ['opacus>=1.5,<2', 'torch>=2.0'],
    },
)
