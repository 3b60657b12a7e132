"""Decodes an image file to what a person sees: upright, on white, with 8 bits. No TensorFlow.

Formal guarantee:
  - The pixels of a file depend only on that file and on declared settings. In particular the number
    of bits of 16-bit values is declared, or read off this file: if it came from the largest value
    of a whole folder, one image would change all others.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from tf_efsgd.data import colours, dicom

try:
    import pillow_heif
except ImportError:
    pillow_heif = None

# A larger image would take gigabytes before it is resized: it is a decompression bomb, or a scan
# that its owner must shrink.
_MOST_PIXELS = 100_000_000
_WANTED = ('PNG', 'JPEG', 'WEBP', 'BMP', 'DIB', 'GIF', 'TIFF', 'PPM', 'JPEG2000', 'AVIF', 'HEIF')
# How files of these kinds begin, from their fifth byte on, and what must be installed for them.
_BRANDS = {
    'HEIC': ((b'ftypheic', b'ftypheix', b'ftyphevc', b'ftypmif1', b'ftypmsf1'), '[heic]'),
    'AVIF': ((b'ftypavif', b'ftypavis'), None),
}
# Numbers of bits that cameras and scanners store in 16 bits.
_DEPTHS = (8, 10, 12, 14, 16)
_ORIENTATION = 0x0112
_PNG = b'\x89PNG\r\n\x1a\n'
_ON_WHITE = 255.0

if pillow_heif is not None:
    pillow_heif.register_heif_opener()
Image.init()
_FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)

# These filters are set once, for the whole process. Files are decoded in several threads, and there
# `warnings.catch_warnings` is not safe: it changes the filters of all threads, and two that overlap
# can leave them changed.
# These are about metadata that are not needed here.
warnings.filterwarnings('ignore', category=UserWarning, module='PIL')
# We have a limit of our own, and say so.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)


class Unreadable(ValueError):
    """A file is not an image that can be used; the message says why, without the file's name."""


class Picture(NamedTuple):
    """One decoded image.

    Attributes:
      pixels: uint8 [H, W, C], C is 1 (gray) or 3 (RGB).
      bits: how many bits the values of a 16-bit file are assumed to have; 0 for other files.
      has_more: whether the file holds other frames or pages, which are left out.
    """

    pixels: np.ndarray
    bits: int = 0
    has_more: bool = False


class Header(NamedTuple):
    """What a file says of itself, without its pixels.

    Attributes:
      kind: 'JPEG', 'PNG', 'DICOM' and so on.
      side: the shorter side, in pixels.
      is_gray: whether it has no colours; None if only the pixels can tell.
    """

    kind: str
    side: int
    is_gray: bool | None


def heif_version() -> str:
    """The version of the library that reads HEIC; '' without it."""
    return '' if pillow_heif is None else str(pillow_heif.__version__)


def decode(data: bytes, bits: int | None = None) -> Picture:
    """Decodes one image file of any kind.

    Args:
      data: the file's content.
      bits: how many bits the values of 16-bit files have, 8 to 16; None: as many as the file says
        (sBIT of PNG, the header of DICOM), or as its own largest value needs.

    Raises:
      Unreadable: if it is not an image, is damaged, is too large, or has values that cannot be
        shown.
    """
    try:
        if dicom.is_dicom(data):
            return Picture(dicom.decode(data))
        with _open(data) as image:
            return _decode(image, data, bits)
    except dicom.DicomError as error:
        raise Unreadable(str(error)) from error
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # Damaged files may raise anything.
        raise Unreadable(_cause(error)) from error


def probe(data: bytes) -> Header:
    """Reads the header of an image file.

    Raises:
      Unreadable: as in `decode`, as far as the header tells.
    """
    try:
        if dicom.is_dicom(data):
            return Header('DICOM', min(dicom.size(data)), None)
        with _open(data) as image:
            is_gray = {'1': True, 'L': True, 'LA': True, 'RGB': False, 'RGBA': False}
            kind = 'JPEG' if image.format == 'MPO' else image.format
            return Header(kind, min(image.size), is_gray.get(image.mode))
    except dicom.DicomError as error:
        raise Unreadable(str(error)) from error
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(_cause(error)) from error


def check_size(width: int, height: int) -> None:
    """Raises Unreadable for an image with more pixels than anybody needs."""
    if width * height > _MOST_PIXELS:
        raise Unreadable(
            f'it has {width}x{height} pixels, more than {_MOST_PIXELS // 10**6} million: shrink it'
        )


def _open(data: bytes) -> Image.Image:
    if not data:
        raise Unreadable('it is empty')
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.UnidentifiedImageError:
        raise Unreadable(_unknown(data)) from None
    except Image.DecompressionBombError:
        raise Unreadable(
            f'it has more than {_MOST_PIXELS // 10**6} million pixels: shrink it'
        ) from None
    check_size(*image.size)
    return image


def _unknown(data: bytes) -> str:
    for kind, (brands, extra) in _BRANDS.items():
        if data[4:12] not in brands:
            continue
        what = f'"tf_efsgd{extra}"' if extra else '"pillow>=11.3"'
        return f'{kind} needs: pip install {what}'
    return 'it is not an image of a known kind'


def _cause(error: Exception) -> str:
    if 'truncated' in str(error).lower():
        return 'it is cut off'
    text = ' '.join(re.sub(r'<_?io\.\w+ object at \w+>', 'it', str(error)).split())
    return text[:200] or type(error).__name__


def _decode(image: Image.Image, data: bytes, bits: int | None) -> Picture:
    # The second picture in an MPO file of a phone is a preview of the first.
    has_more = image.format != 'MPO' and getattr(image, 'is_animated', False)
    image.load()
    is_upright = image.format == 'TIFF'  # Pillow turns it while it loads it.
    turn = 1 if is_upright else orientation(image)
    if image.mode.startswith('I') or image.mode == 'F':
        pixels, depth = _deep(image, bits or declared_bits(data))
    else:
        pixels, depth = _shallow(colours.to_srgb(image)), 0
        if image.format == 'TIFF' and _is_deep_tiff(image):
            _check_upper_bits(pixels)
    return Picture(upright(pixels, turn), depth, has_more)


def _shallow(image: Image.Image) -> np.ndarray:
    """The pixels of an image with 8 bits or less per channel."""
    mode = image.mode
    if mode in ('1', 'L') and 'transparency' not in image.info:
        return np.asarray(image.convert('L'))[..., np.newaxis]
    if mode in ('1', 'L', 'LA', 'La'):
        # Pillow handles the transparent colour of mode `L`, but not of mode `1`.
        image = image.convert('L') if mode == '1' else image
        return on_white(np.asarray(image.convert('LA')))
    if mode == 'RGB' and 'transparency' not in image.info:
        return np.asarray(image)
    if mode in ('RGB', 'RGBA', 'RGBa', 'P', 'PA'):
        if mode == 'P' and 'transparency' not in image.info:
            pixels = np.asarray(image.convert('RGB'))
        else:
            pixels = on_white(np.asarray(image.convert('RGBA')))
        return without_gray_palette(pixels) if mode in ('P', 'PA') else pixels
    return np.asarray(image.convert('RGB'))


def _deep(image: Image.Image, bits: int | None) -> tuple[np.ndarray, int]:
    """The pixels of a gray image with more than 8 bits, and how many bits it has."""
    values = np.asarray(image)
    if image.mode == 'F':
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise Unreadable(
                'its values are floating-point numbers outside of 0 to 1: save it with 8 or 16 bits'
            )
        return np.round(values * 255.0).astype(np.uint8)[..., np.newaxis], 0
    if values.min() < 0 or values.max() > 65535:
        raise Unreadable(
            f'its values go from {values.min()} to {values.max()}, not from 0 to 65535: save it '
            'with 8 or 16 bits'
        )
    values = values.astype(np.uint16)
    pixels, depth = to_8_bits(values, bits)
    clear = image.info.get('transparency')
    if isinstance(clear, int):
        pixels = np.where(values == clear, np.uint8(_ON_WHITE), pixels)
    return pixels[..., np.newaxis], depth


def to_8_bits(values: np.ndarray, bits: int | None) -> tuple[np.ndarray, int]:
    """Takes the upper 8 of the bits that values really have.

    Args:
      values: uint16, any shape.
      bits: how many bits they have, 8 to 16; larger values become white. None: the fewest of 8, 10,
        12, 14 and 16 that hold the largest of these values.

    Returns:
      uint8 of the same shape, and the number of bits.
    """
    if bits is None:
        needed = int(values.max(initial=0)).bit_length()
        bits = next(depth for depth in _DEPTHS if depth >= needed)
    return np.minimum(values >> (bits - 8), 255).astype(np.uint8), bits


def declared_bits(data: bytes) -> int | None:
    """How many bits the values of a PNG file have, by its sBIT chunk; None if it does not say."""
    for kind, content in png_chunks(data):
        if kind == b'sBIT' and content and 8 <= max(content) <= 16:
            return max(content)
    return None


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the chunks of a PNG file, except its pixels, as (kind, content)."""
    if data[:8] != _PNG:
        return
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack('>I4s', data[at : at + 8])
        if kind != b'IDAT':
            yield kind, data[at + 8 : at + 8 + length]
        at += 12 + length


def _is_deep_tiff(image: Image.Image) -> bool:
    tags = getattr(image, 'tag_v2', {})
    return max(tags.get(258, (8,))) > 8  # BitsPerSample


def _check_upper_bits(pixels: np.ndarray) -> None:
    """Raises Unreadable for dark colours of 16 bits, of which Pillow gives only the upper 8."""
    if pixels.max(initial=0) < 64:
        raise Unreadable(
            'it has colours of 16 bits and uses the lower 14 or fewer of them: save it with 8 bits'
        )


def orientation(image: Image.Image) -> int:
    """The orientation that EXIF gives an image, 1 to 8; 1 if it gives none."""
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # An image with damaged EXIF is accepted: viewers show it as it is.
        return 1
    return turn if turn in range(1, 9) else 1


def upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Turns pixels [H, W, C] with this EXIF orientation, 1 to 8, upright, as a viewer does."""
    if turn >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def without_gray_palette(pixels: np.ndarray) -> np.ndarray:
    """Reduces RGB pixels that come from a palette to one channel if all of them are gray."""
    return pixels[..., :1] if (pixels == pixels[..., :1]).all() else pixels


def on_white(pixels: np.ndarray) -> np.ndarray:
    """Lays pixels on white, as a viewer does: uint8 [H, W, C + 1], opacity last, to [H, W, C]."""
    colours, opacity = pixels[..., :-1], pixels[..., -1:].astype(np.float32) / 255.0
    blended = colours.astype(np.float32) * opacity + _ON_WHITE * (1.0 - opacity)
    return np.clip(np.round(blended), 0, 255).astype(np.uint8)
