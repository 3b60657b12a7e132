"""Decodes DICOM files as a viewer of medical images shows them. It needs pydicom, not TensorFlow.

Values are rescaled (by slope and intercept, or by a table), then the file's first window is
applied. A file without a window is shown from its smallest to its largest value. MONOCHROME1 is
inverted.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import os
from typing import IO, Any

import numpy as np

_MAGIC_AT, _MAGIC = 128, b'DICM'
# So many bytes at the start of a file tell whether it is DICOM.
HEADER = _MAGIC_AT + len(_MAGIC)
_GREY = ('MONOCHROME1', 'MONOCHROME2')


class DicomError(ValueError):
    """A DICOM file cannot be used; the message says why, without the file's name."""


def is_dicom(data: bytes) -> bool:
    """Whether a file that starts like this is DICOM."""
    return data[_MAGIC_AT:HEADER] == _MAGIC


def version() -> str:
    """The version of pydicom; '' without it."""
    try:
        return importlib.metadata.version('pydicom')
    except importlib.metadata.PackageNotFoundError:
        return ''


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError:
        raise DicomError(
            'it is DICOM, which needs pydicom: pip install "tf_efsgd[dicom]"'
        ) from None
    return pydicom


def _tools() -> Any:
    """The module of pydicom that converts pixels."""
    _pydicom()
    try:
        return importlib.import_module('pydicom.pixels')
    except ImportError:  # Before pydicom 3.
        return importlib.import_module('pydicom.pixel_data_handlers.util')


def _read(file: IO[bytes], **options) -> Any:
    pydicom = _pydicom()
    try:
        return pydicom.dcmread(file, **options)
    except Exception as error:  # Damaged files may raise anything.
        raise DicomError(f'its DICOM header is damaged: {error}') from error


def size(data: bytes) -> tuple[int, int]:
    """Height and width that the header declares."""
    header = _read(io.BytesIO(data), stop_before_pixels=True)
    _check(header)
    return int(header.Rows), int(header.Columns)


def patient(path: str | os.PathLike) -> str:
    """Reads the PatientID of a file, which is private, without reading its pixels; '' for none.

    Raises:
      DicomError: if it is not a DICOM file, or pydicom is missing.
      OSError: if it cannot be read.
    """
    with open(path, 'rb') as file:
        if not is_dicom(file.read(HEADER)):
            raise DicomError('it is not a DICOM file')
        file.seek(0)
        header = _read(file, stop_before_pixels=True, specific_tags=['PatientID'])
    return str(header.get('PatientID') or '').strip()


def _check(header: Any) -> None:
    frames = int(header.get('NumberOfFrames') or 1)
    if frames > 1:
        raise DicomError(
            f'it is DICOM with {frames} frames: export each frame that you want as a file of its '
            'own'
        )
    if not (header.get('Rows') and header.get('Columns')):
        raise DicomError('it is DICOM without an image, e.g. a report')


def decode(data: bytes) -> np.ndarray:
    """Decodes a file with one frame.

    Args:
      data: the file's content.

    Returns:
      uint8 [H, W, C], C is 1 (gray) or 3 (RGB).

    Raises:
      DicomError: if it has several frames or none, or needs a library that is missing.
    """
    file = _read(io.BytesIO(data))
    _check(file)
    try:
        values = file.pixel_array
    except Exception as error:  # Each decoder raises its own.
        name = getattr(file.file_meta.get('TransferSyntaxUID'), 'name', 'unknown')
        raise DicomError(
            f'its pixels ({name}) cannot be decoded: {error}. Where a library is missing: '
            'pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg'
        ) from error
    kind = str(file.get('PhotometricInterpretation', 'MONOCHROME2'))
    if kind in _GREY:
        return _gray(file, values, kind)
    return _colours(file, values, kind)


def _gray(file: Any, values: np.ndarray, kind: str) -> np.ndarray:
    tools = _tools()
    shown = np.asarray(tools.apply_modality_lut(values, file), np.float64)
    low, high = shown.min(), shown.max()
    if file.get('VOILUTSequence'):
        shown = np.asarray(tools.apply_voi_lut(shown.astype(values.dtype), file), np.float64)
        low, high = 0.0, float(2 ** int(file.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    elif file.get('WindowCenter') is not None and file.get('WindowWidth') is not None:
        shown, low, high = _window(file, shown)
    else:
        seen = shown
        if file.get('PixelPaddingValue') is not None:
            inside = values != int(file.PixelPaddingValue)
            seen = shown[inside] if inside.any() else shown
        low, high = seen.min(), seen.max()
    scaled = np.clip((shown - low) / max(high - low, 1e-12), 0.0, 1.0)
    if kind == 'MONOCHROME1':
        scaled = 1.0 - scaled
    return np.round(255.0 * scaled).astype(np.uint8)[..., np.newaxis]


def _window(file: Any, values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Applies the first window: values and its ends (DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3)."""
    centre, width = _first(file.WindowCenter), _first(file.WindowWidth)
    function = str(file.get('VOILUTFunction') or 'LINEAR')
    if function == 'SIGMOID':
        shape = np.clip(-4.0 * (values - centre) / max(width, 1e-12), -700.0, 700.0)
        return 1.0 / (1.0 + np.exp(shape)), 0.0, 1.0
    if function == 'LINEAR_EXACT':
        return values, centre - width / 2, centre + width / 2
    half = max(width - 1.0, 0.0) / 2
    return values, centre - 0.5 - half, centre - 0.5 + half


def _first(value: Any) -> float:
    return float(value) if isinstance(value, (str, float, int)) else float(value[0])


def _colours(file: Any, values: np.ndarray, kind: str) -> np.ndarray:
    tools = _tools()
    if kind == 'PALETTE COLOR':
        values = tools.apply_color_lut(values, file)
        if values.dtype != np.uint8:
            values = (values >> 8).astype(np.uint8)
        return np.ascontiguousarray(values[..., :3])
    if values.ndim != 3 or values.shape[-1] != 3 or int(file.BitsAllocated) != 8:
        raise DicomError(f'its colours ({kind}) are not of 8 bits: export it as PNG')
    if kind.startswith('YBR') and version() < '3':  # Newer versions give RGB already.
        values = tools.convert_color_space(values, kind, 'RGB')
    return np.ascontiguousarray(values)
