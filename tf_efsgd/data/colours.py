"""Converts colours to sRGB by a file's colour profile (ICC), as a viewer does. No TensorFlow.

Phones write Display P3, cameras Adobe RGB, printers CMYK with a profile. If these are read as sRGB,
their colours are paler or wrong.
"""

from __future__ import annotations

import functools
import io

from PIL import Image, ImageCms

# Modes with colours, and the mode that the conversion by a profile gives.
_OUTPUT = {'RGB': 'RGB', 'RGBA': 'RGBA', 'CMYK': 'RGB'}
_MOST_PROFILES = 64


def is_other_than_srgb(profile: bytes | None) -> bool:
    """Whether a colour profile is another one than sRGB; a damaged profile counts as none."""
    return bool(profile) and _source(profile) is not None


def to_srgb(image: Image.Image) -> Image.Image:
    """Converts an image to sRGB.

    Args:
      image: of any mode, loaded.

    Returns:
      The image in `RGB` or `RGBA` if it has colours and a readable profile other than sRGB; else
      the image as it is.
    """
    profile = image.info.get('icc_profile')
    if image.mode not in _OUTPUT or not is_other_than_srgb(profile):
        return image
    try:
        converted = ImageCms.applyTransform(image, _transform(profile, image.mode))
    except ImageCms.PyCMSError:  # The profile is for other channels.
        return image
    return image if converted is None else converted


@functools.lru_cache(maxsize=_MOST_PROFILES)
def _source(profile: bytes) -> ImageCms.ImageCmsProfile | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return None if 'srgb' in name.lower() else source


@functools.lru_cache(maxsize=_MOST_PROFILES)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    target = ImageCms.createProfile('sRGB')
    return ImageCms.buildTransform(_source(profile), target, mode, _OUTPUT[mode])
