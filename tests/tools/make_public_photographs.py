"""Makes tf_efsgd/models/embedded/public_photographs.jpg from scikit-image's sample photographs.

python tests/tools/make_public_photographs.py FOLDER OUTPUT, with FOLDER the `skimage/data` of
scikit-image 0.22.0 (`pip download --no-deps scikit-image==0.22.0`, then unzip the wheel), and
Pillow installed. All of these photographs are CC0 or in the public domain
(`skimage/data/_fetchers.py`).
"""

import math
import pathlib
import sys

import numpy as np
from PIL import Image

_PHOTOGRAPHS = ('astronaut.png', 'chelsea.png', 'coffee.png', 'rocket.jpg', 'camera.png')
_TEXTURES = ('brick.png', 'grass.png', 'gravel.png', 'moon.png', 'retina.jpg')
_OTHERS = ('hubble_deep_field.jpg', 'ihc.png')
_SIZE, _ROWS = 64, 16
# Crops are from a fifth of the shorter side to all of it.
_SMALLEST = 0.2


def main(folder: str, output: str) -> None:
    """Writes the crops, 64 by 64 pixels each, as one picture of 16 rows and 16 columns."""
    draws = np.random.default_rng(2601)
    # Of four crops three are of things, not of surfaces.
    names = (*_PHOTOGRAPHS, *_PHOTOGRAPHS, *_PHOTOGRAPHS, *_TEXTURES, *_OTHERS)
    crops = []
    for number in range(_ROWS**2):
        photograph = Image.open(pathlib.Path(folder) / names[number % len(names)]).convert('RGB')
        shorter = min(photograph.size)
        size = int(shorter * math.exp(draws.uniform(math.log(_SMALLEST), 0.0)))
        left, top = (int(draws.integers(0, side - size + 1)) for side in photograph.size)
        crop = photograph.crop((left, top, left + size, top + size))
        crop = crop.resize((_SIZE, _SIZE), Image.Resampling.LANCZOS)
        crops.append(np.asarray(crop)[:, :: draws.choice([-1, 1])])
    sheet = np.reshape(crops, [_ROWS, _ROWS, _SIZE, _SIZE, 3]).swapaxes(1, 2)
    sheet = sheet.reshape(_ROWS * _SIZE, _ROWS * _SIZE, 3)
    Image.fromarray(np.ascontiguousarray(sheet)).save(output, quality=85)


if __name__ == '__main__':
    main(*sys.argv[1:])
