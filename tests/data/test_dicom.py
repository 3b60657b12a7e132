"""DICOM files, as a viewer shows them."""

import io

import numpy as np
import pytest
from helpers.data_sets import error_of, write_folder

from tf_efsgd.data import dicom, load, pictures

pydicom = pytest.importorskip('pydicom')


def _file(values, kind='MONOCHROME2', patient='p1', **tags):
    """A DICOM file with these stored values, uint16 or int16 [H, W], or uint8 [H, W, 3]."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.PatientID = patient
    data.Rows, data.Columns = values.shape[:2]
    data.SamplesPerPixel = 3 if values.ndim == 3 else 1
    if values.ndim == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = kind
    data.BitsAllocated = 8 * values.itemsize
    data.BitsStored = data.BitsAllocated
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(values.dtype.kind == 'i')
    data.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


_RAMP = np.arange(0, 4000, 10, dtype=np.int16).reshape(20, 20)


def _shown(data):
    return pictures.decode(data).pixels[..., 0].astype(int)


def test_without_a_window_values_go_from_black_to_white():
    found = _shown(_file(_RAMP))
    assert (found.min(), found.max()) == (0, 255)
    np.testing.assert_allclose(found, _RAMP / 3990 * 255, atol=0.51)


def test_padding_does_not_set_the_range():
    padded = _RAMP.copy()
    padded[:3] = -2000
    found = _shown(_file(padded, PixelPaddingValue=-2000))
    assert (found[:3] == 0).all() and found[3, 0] == 0 and found[3, 5] > 0


def test_values_are_rescaled_and_put_into_the_window():
    # Hounsfield: stored - 1024; a window of 400 around 40 shows -160 to 240.
    found = _shown(
        _file(_RAMP, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    )
    hounsfield = _RAMP.astype(float) - 1024
    wanted = np.clip((hounsfield - 39.5) / 399 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(found, wanted, atol=0.51)
    assert 20 < ((found > 0) & (found < 255)).sum() < 60
    # Of several windows the first.
    several = _file(
        _RAMP,
        RescaleSlope=1,
        RescaleIntercept=-1024,
        WindowCenter=[40, 900],
        WindowWidth=[400, 10],
    )
    np.testing.assert_array_equal(_shown(several), found)


def test_monochrome1_is_turned_over():
    np.testing.assert_array_equal(_shown(_file(_RAMP, 'MONOCHROME1')), 255 - _shown(_file(_RAMP)))


def test_colours():
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(pictures.decode(_file(rgb, 'RGB')).pixels, rgb)
    from PIL import Image

    ycc = np.asarray(Image.fromarray(rgb).convert('YCbCr'))
    found = pictures.decode(_file(ycc, 'YBR_FULL')).pixels
    assert np.abs(found.astype(int) - rgb).max() <= 3


def test_several_frames_are_refused_in_one_line(tmp_path):
    data = _file(_RAMP, NumberOfFrames=30)
    write_folder(tmp_path, {'a': {'cine.dcm': data}})
    error_of(['cine.dcm', '30 frames', 'a file of its own'], f'folder:{tmp_path}')


def test_files_without_an_ending_are_found(tmp_path):
    files = {f'IM{i}': _file(np.roll(_RAMP, i)) for i in range(3)}
    files['1.2.840.7'] = _file(np.roll(_RAMP, 7))
    files['README'] = b'no image'
    loaded = load.load(write_folder(tmp_path, {'a': files}))
    assert len(loaded.train) + (0 if loaded.test is None else len(loaded.test)) == 4
    assert loaded.train.image_shape == (20, 20, 1)
    assert any('without an ending (1)' in note for note in loaded.notes)


def test_the_patient_is_the_person(tmp_path):
    files = {f'{i}.dcm': _file(np.roll(_RAMP, i), patient=f'P{i // 5}') for i in range(40)}
    dataset = write_folder(tmp_path, {'a': files})
    loaded = load.load(dataset, person='dicom', images_per_person=2)
    assert len(loaded.train) + len(loaded.test) == 2 * 8
    assert loaded.person_rule.public == 'dicom'
    write_folder(tmp_path, {'a': {'x.dcm': _file(_RAMP, patient='')}})
    error_of(['x.dcm', '--person=dicom'], dataset, person='dicom', images_per_person=2)


def test_damaged_files_and_a_missing_library_are_named(monkeypatch):
    whole = _file(_RAMP)
    for data in (whole[:200], whole[:-300], bytes(128) + b'DICM' + bytes(50)):
        with pytest.raises(pictures.Unreadable):
            pictures.decode(data)
    monkeypatch.setitem(__import__('sys').modules, 'pydicom', None)
    with pytest.raises(pictures.Unreadable, match='tf_efsgd.dicom.'):
        pictures.decode(whole)
    assert dicom.is_dicom(whole)
