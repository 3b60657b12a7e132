"""Python 3.12: TensorFlow 2.19 with Keras 2, and TF Privacy without what it has no need of here.

TensorFlow 2.15, the last one with Keras 2 inside, ends at Python 3.11. From 2.16 on Keras 2 is the
package `tf_keras`, and this setting makes `tf.keras` mean it. TF Privacy 0.9.0 loads all of its
parts when it is imported, also those that need TensorFlow Estimator, which is no more; with the
attribute it loads none, and what is used is imported by its own name.

Importing this module sets both; `tf_efsgd/__init__.py` does so first of all.
"""

from __future__ import annotations

import os
import sys

# What somebody set stays, and is named below where it does not fit.
os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
sys.skip_tf_privacy_import = True  # type: ignore[attr-defined]


def check_keras() -> None:
    """Checks that `tf.keras` is Keras 2.

    Raises:
      ImportError: if it is Keras 3: somebody used `tf.keras` first, or asked for it.
    """
    import tensorflow as tf

    version = getattr(tf.keras, '__version__', '2')  # As tf_keras, it has none.
    if not version.startswith('2'):
        raise ImportError(
            'tf_efsgd needs Keras 2: import tf_efsgd before tf.keras is used, or set '
            'TF_USE_LEGACY_KERAS=1 in the environment. Received: '
            f'Keras {version}, TF_USE_LEGACY_KERAS={os.environ["TF_USE_LEGACY_KERAS"]}.'
        )


if 'tensorflow' in sys.modules:
    check_keras()
