"""Decodes one image file for training, by TensorFlow where that shows what a person sees.

The pixels of a JPEG depend on the library. TensorFlow's are kept, because the hash of a record, by
which it is split and recognised in other runs, is computed from them.
"""

from __future__ import annotations

import io

import numpy as np
import tensorflow as tf
from PIL import Image

from tf_efsgd.data import colours, pictures
from tf_efsgd.data.pictures import Picture, Unreadable

_JPEG, _PNG = b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n'
_GREY, _PALETTE, _GREY_AND_OPACITY = 0, 3, 4  # Colour types of PNG.


def decode(data: bytes, bits: int | None = None) -> Picture:
    """Decodes one image file of any kind, as `pictures.decode` does.

    Args:
      data: the file's content.
      bits: as in `pictures.decode`.

    Raises:
      Unreadable: as in `pictures.decode`.
    """
    try:
        if data.startswith(_JPEG):
            return _jpeg(data) or pictures.decode(data, bits)
        if data.startswith(_PNG):
            return _png(data, bits) or pictures.decode(data, bits)
    except tf.errors.ResourceExhaustedError:
        raise
    except tf.errors.OpError:
        pass  # Pillow says what is wrong, or reads it, e.g. a PNG without its last chunk.
    return pictures.decode(data, bits)


def _jpeg(data: bytes) -> Picture | None:
    """Decodes a JPEG in gray or sRGB; None for other JPEGs (CMYK, colour profiles)."""
    try:
        with Image.open(io.BytesIO(data), formats=('JPEG',)) as image:
            pictures.check_size(*image.size)
            if image.mode not in ('L', 'RGB'):
                return None
            if image.mode == 'RGB' and colours.is_other_than_srgb(image.info.get('icc_profile')):
                return None
            turn = pictures.orientation(image)
    except (Unreadable, Image.DecompressionBombError):
        return None  # `pictures` will raise it again.
    except Exception:  # TensorFlow may accept a header in which Pillow finds faults.
        turn = 1
    return Picture(pictures.upright(tf.io.decode_jpeg(data).numpy(), turn))


def _png(data: bytes, bits: int | None) -> Picture | None:
    """Decodes a PNG; None if Pillow shows it better."""
    chunks = dict(pictures.png_chunks(data))
    header = chunks.get(b'IHDR', b'')
    if len(header) < 13:
        return None
    width, height = int.from_bytes(header[:4], 'big'), int.from_bytes(header[4:8], 'big')
    pictures.check_size(width, height)
    depth, kind = header[8], header[9]
    is_clear = b'tRNS' in chunks and kind != _PALETTE
    if is_clear and (depth < 16 or kind == _GREY):
        return None
    if b'iCCP' in chunks and depth < 16 and kind not in (_GREY, _GREY_AND_OPACITY):
        return None  # A colour profile; Pillow unpacks it.
    if depth == 16:
        # A transparent colour becomes a channel of opacity if four channels are asked for.
        channels = 4 if is_clear else 0
        values = tf.io.decode_png(data, channels=channels, dtype=tf.uint16).numpy()
        has_opacity = values.shape[-1] in (2, 4)
        colours = values[..., :-1] if has_opacity else values
        pixels, depth = pictures.to_8_bits(colours, bits or pictures.declared_bits(data))
        if has_opacity:
            opacity = (values[..., -1:] >> 8).astype(np.uint8)
            pixels = np.concatenate([pixels, opacity], -1)
    else:
        pixels, depth = tf.io.decode_png(data).numpy(), 0
    if pixels.shape[-1] in (2, 4):
        pixels = pictures.on_white(pixels)
    if kind == _PALETTE:
        pixels = pictures.without_gray_palette(pixels)
    return Picture(pictures.upright(pixels, _png_orientation(chunks)), depth)


def _png_orientation(chunks: dict[bytes, bytes]) -> int:
    if b'eXIf' not in chunks:
        return 1
    exif = Image.Exif()
    try:
        exif.load(b'Exif\0\0' + chunks[b'eXIf'])
        turn = exif.get(0x0112, 1)
    except Exception:  # As in `pictures.orientation`.
        return 1
    return turn if turn in range(1, 9) else 1
