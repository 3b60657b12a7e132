"""Python 3.12: TensorFlow 2.19 with Keras 2, and only those parts of TF Privacy that are needed.

TensorFlow 2.15, the last version that includes Keras 2, supports Python up to 3.11. Since 2.16,
Keras 2 is the package `tf_keras`, and the environment variable below makes `tf.keras` mean it. TF
Privacy 0.9.0 loads all of its parts when it is imported, also those that need TensorFlow Estimator,
which no longer exists. With the attribute below it loads none, and the parts that are used are
imported by their own names.

Importing this module sets both; `tf_efsgd/__init__.py` does so before anything else.
"""

from __future__ import annotations

import os
import sys

# A value that the user has set stays; `check_keras` names it if it does not fit.
os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
sys.skip_tf_privacy_import = True  # type: ignore[attr-defined]


def check_keras() -> None:
    """Checks that `tf.keras` is Keras 2.

    Raises:
      ImportError: if it is Keras 3: somebody used `tf.keras` first, or asked for it.
    """
    import tensorflow as tf

    version = getattr(tf.keras, '__version__', '2')  # If it is tf_keras, it has none.
    if not version.startswith('2'):
        raise ImportError(
            'tf_efsgd needs Keras 2: import tf_efsgd before tf.keras is used, or set '
            'TF_USE_LEGACY_KERAS=1 in the environment. Received: '
            f'Keras {version}, TF_USE_LEGACY_KERAS={os.environ["TF_USE_LEGACY_KERAS"]}.'
        )


if 'tensorflow' in sys.modules:
    check_keras()
