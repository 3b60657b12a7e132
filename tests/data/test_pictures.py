"""What an image file holds, as a person sees it."""

import numpy as np
import pytest
from helpers import nasty
from helpers.data_sets import error_of, rows_of, write_folder, write_train
from PIL import Image, ImageCms

from tf_efsgd.data import decoding, load, pictures, split


def _pixels(data, bits=None):
    """By both ways of decoding; where they should show the same, they do."""
    with_tensorflow, alone = decoding.decode(data, bits), pictures.decode(data, bits)
    assert with_tensorflow.pixels.shape == alone.pixels.shape
    distance = np.abs(with_tensorflow.pixels.astype(int) - alone.pixels)
    assert distance.max() <= 12  # Of JPEG; see `decoding`.
    return with_tensorflow.pixels


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('turn', range(1, 9))
def test_every_orientation_of_exif_comes_in_upright(kind, turn):
    image = nasty.picture(3)
    found = _pixels(nasty.turned_jpeg(image, turn, kind))
    assert found.shape == image.shape
    assert np.abs(found.astype(int) - image).mean() < (3 if kind == 'JPEG' else 2)
    if turn > 1:  # So the pixels were stored in another way.
        stored = Image.open(__import__('io').BytesIO(nasty.turned_jpeg(image, turn, 'PNG')))
        raw = np.asarray(stored)
        assert raw.shape != image.shape or np.abs(raw.astype(int) - image).mean() > 5


@pytest.mark.parametrize('kind', ['HEIF', 'AVIF', 'JPEG2000'])
def test_photographs_of_phones_and_scanners(kind):
    image = nasty.picture(3)
    found = _pixels(nasty.encoded(image, kind, **({} if kind == 'JPEG2000' else {'quality': 95})))
    assert found.shape == image.shape
    assert np.abs(found.astype(int) - image).mean() < 5


@pytest.mark.parametrize('kind', ['HEIF', 'AVIF'])
@pytest.mark.parametrize('turn', [1, 3, 6])
def test_they_come_in_upright(kind, turn):
    image = nasty.picture(3)
    found = _pixels(nasty.turned_jpeg(image, turn, kind))
    assert found.shape == image.shape
    assert np.abs(found.astype(int) - image).mean() < 8


def test_heic_is_not_turned_by_exif():
    """A property of its own turns it; readers must not follow the EXIF beside that."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = nasty.picture(3)
    found = _pixels(nasty.encoded(image, 'HEIF', exif=exif, quality=95))
    assert found.shape == image.shape
    assert np.abs(found.astype(int) - image).mean() < 5


def test_what_is_missing_for_a_file_is_said(monkeypatch):
    heic = nasty.encoded(nasty.picture(3), 'HEIF')
    monkeypatch.setattr(pictures, '_FORMATS', ('PNG', 'JPEG'))
    with pytest.raises(pictures.Unreadable, match=r'HEIC needs: pip install "tf_efsgd\[heic\]"'):
        pictures.decode(heic)
    with pytest.raises(pictures.Unreadable, match=r'AVIF needs: pip install "pillow>=11.3"'):
        pictures.decode(nasty.encoded(nasty.picture(3), 'AVIF'))


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF', 'WEBP', 'HEIF'])
def test_colour_profiles_are_applied(kind):
    image = nasty.picture(3)
    profile = nasty.swapping_profile()
    found = _pixels(nasty.encoded(image, kind, icc_profile=profile)).astype(int)
    plain = _pixels(nasty.encoded(image, kind)).astype(int)
    # Red and blue change places; gamma is nearly that of sRGB.
    assert np.abs(found - plain[..., ::-1]).mean() < 6
    assert np.abs(found - plain).mean() > 12


def test_opacity_stays_with_a_profile():
    image, profile = nasty.picture(3), nasty.swapping_profile()
    clear = np.full((*image.shape[:2], 1), 0, np.uint8)
    found = _pixels(nasty.encoded(np.concatenate([image, clear], -1), 'PNG', icc_profile=profile))
    assert (found == 255).all()


def test_a_damaged_profile_and_that_of_srgb_change_nothing():
    image = nasty.picture(3)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    for profile in (srgb, b'no profile', nasty.swapping_profile()[:150]):
        for kind in ('JPEG', 'PNG'):
            with_it = nasty.encoded(image, kind, icc_profile=profile)
            np.testing.assert_array_equal(_pixels(with_it), _pixels(nasty.encoded(image, kind)))
    gray = nasty.encoded(image[..., :1], 'PNG', icc_profile=nasty.swapping_profile())
    np.testing.assert_array_equal(_pixels(gray), image[..., :1])


def test_damaged_exif_does_not_refuse_a_picture():
    image = nasty.picture(3)
    data = nasty.encoded(image, 'JPEG', exif=b'Exif\0\0II*\0\xff\xff\xff\x7fgarbage', quality=95)
    assert np.abs(_pixels(data).astype(int) - image).mean() < 3


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
@pytest.mark.parametrize('bits', [10, 12, 14, 16])
def test_values_of_a_few_bits_in_16_are_not_black(bits, channels):
    values = nasty.picture(2, channels=channels).astype(np.uint16)
    values[0, 0] = 217  # The top of the range is used, as by a camera.
    deep = values << (bits - 8)
    wanted = values[..., :1] if channels <= 2 else values[..., :3]
    if channels in (2, 4):
        deep[..., -1] = 65535  # Opacity has 16 bits whatever the colours have.
    found = decoding.decode(nasty.deep_png(deep))
    np.testing.assert_array_equal(found.pixels, wanted)
    assert found.bits == bits
    if channels == 1:
        np.testing.assert_array_equal(pictures.decode(nasty.deep_png(deep)).pixels, wanted)


def test_how_many_bits_there_are_is_declared_or_of_the_file_alone():
    dark = np.full((6, 6, 1), 40 << 4, np.uint16)  # 640: 10 bits would hold it.
    assert decoding.decode(nasty.deep_png(dark)).bits == 10
    assert (decoding.decode(nasty.deep_png(dark), 12).pixels == 40).all()
    said = nasty.deep_png(dark, (b'sBIT', b'\x0c'))
    assert (_pixels(said) == 40).all() and decoding.decode(said).bits == 12
    assert (decoding.decode(said, 14).pixels == 10).all()
    # Above the declared range it is white, never dark again.
    assert (decoding.decode(nasty.deep_png(dark * 100), 12).pixels == 255).all()


def test_a_brighter_image_does_not_change_another(tmp_path):
    dark, bright = np.full((6, 6, 1), 700, np.uint16), np.full((6, 6, 1), 60_000, np.uint16)
    write_train(tmp_path, {'a': {'dark.png': nasty.deep_png(dark)}})
    before = rows_of(load.load(f'folder:{tmp_path}').train)
    write_train(tmp_path, {'a': {'bright.png': nasty.deep_png(bright)}})
    assert before < rows_of(load.load(f'folder:{tmp_path}').train)


def test_a_transparent_colour_turns_white():
    gray, rgb = nasty.picture(2, channels=1), nasty.picture(3)
    gray[2:5], rgb[2:5] = 7, (9, 8, 7)
    white = gray.copy(), rgb.copy()
    white[0][2:5], white[1][2:5] = 255, 255
    found = _pixels(nasty.encoded(gray, 'PNG', transparency=7))
    np.testing.assert_array_equal(found, white[0])
    found = _pixels(nasty.encoded(rgb, 'PNG', transparency=(9, 8, 7)))
    np.testing.assert_array_equal(found, white[1])
    for pixels, colour in ((gray, (7,)), (rgb, (9, 8, 7))):
        clear = b''.join((value << 8).to_bytes(2, 'big') for value in colour)
        data = nasty.deep_png(pixels.astype(np.uint16) << 8, (b'tRNS', clear))
        np.testing.assert_array_equal(decoding.decode(data).pixels, white[len(colour) > 1])


@pytest.mark.parametrize(
    ('kind', 'mode'),
    [
        *(
            (kind, mode)
            for kind in ('BMP', 'TIFF', 'PNG', 'GIF')
            for mode in ('1', 'L', 'P', 'RGB')
        ),
        *(('PPM', mode) for mode in ('1', 'L', 'RGB')),  # It has no palettes.
    ],
)
def test_modes_of_every_kind(kind, mode):
    wanted = nasty.picture(5, channels=1 if mode in '1L' else 3)
    image = Image.fromarray(wanted[..., 0] if mode in '1L' else wanted)
    if (mode, kind) == ('RGB', 'GIF'):
        image = image.convert('P', palette=Image.Palette.ADAPTIVE)
    image = image.convert(mode) if mode in '1P' else image
    found = _pixels(nasty.encoded(image, kind))
    expected = np.asarray(image.convert('L' if mode in '1L' else 'RGB'))
    np.testing.assert_array_equal(found, expected.reshape(found.shape))
    assert found.shape[-1] == (1 if mode in '1L' else 3)


@pytest.mark.parametrize('kind', ['JPEG', 'TIFF'])
def test_cmyk_is_shown_in_its_colours(kind):
    image = nasty.picture(5)
    found = _pixels(nasty.encoded(Image.fromarray(image).convert('CMYK'), kind))
    assert np.abs(found.astype(int) - image).mean() < 6


@pytest.mark.parametrize('name', ['animated.gif', 'animated.webp', 'pages.tiff'])
def test_of_several_frames_the_first_is_used_and_that_is_said(name, tmp_path):
    data = nasty.good_files()[name.encode()]
    found = decoding.decode(data)
    assert found.has_more
    assert np.abs(found.pixels.astype(int) - nasty.picture(3)).mean() < 3
    write_train(tmp_path, {'a': {name: data}})
    notes = load.load(f'folder:{tmp_path}').notes
    assert any('of 1 files with several frames or pages the first' in note for note in notes)


def test_16_bit_tiffs_are_read_or_named():
    gray = nasty.picture(2, channels=1)
    deep = Image.fromarray(gray[..., 0].astype(np.uint16) << 4)
    found = _pixels(nasty.encoded(deep, 'TIFF'))
    np.testing.assert_array_equal(found, gray)
    floats = Image.fromarray(gray[..., 0] / np.float32(255))
    np.testing.assert_array_equal(_pixels(nasty.encoded(floats, 'TIFF')), gray)
    for values in (gray[..., 0].astype(np.float32), gray[..., 0] * np.float32(np.nan)):
        with pytest.raises(pictures.Unreadable, match='8 or 16 bits'):
            pictures.decode(nasty.encoded(Image.fromarray(values), 'TIFF'))
    with pytest.raises(pictures.Unreadable, match='from -7 to'):
        signed = gray[..., 0].astype(np.int32) - gray.min() - 7
        pictures.decode(nasty.encoded(Image.fromarray(signed), 'TIFF'))


@pytest.mark.parametrize('name', nasty.bad_files())
def test_what_is_no_image_is_refused_with_a_reason(name):
    data = nasty.bad_files()[name]
    for decode in (decoding.decode, pictures.decode):
        with pytest.raises(pictures.Unreadable) as caught:
            decode(data)
        assert '\n' not in str(caught.value) and len(str(caught.value)) < 250


def test_two_encodings_of_the_same_pixels_fall_on_one_side(tmp_path):
    # 40 pictures, each as PNG, BMP, TIFF and lossless WebP.
    kinds = {'png': 'PNG', 'bmp': 'BMP', 'tif': 'TIFF', 'webp': 'WEBP'}
    options = {'webp': {'lossless': True, 'exact': True}}
    files = {
        f'{seed}.{ending}': nasty.encoded(nasty.picture(seed), kind, **options.get(ending, {}))
        for seed in range(40)
        for ending, kind in kinds.items()
    }
    assert len({split.digest(_pixels(files[f'7.{ending}'])).tobytes() for ending in kinds}) == 1
    loaded = load.load(write_folder(tmp_path, {'a': files}))
    assert len(loaded.train) + len(loaded.test) == 160
    assert len(loaded.test) and not rows_of(loaded.train) & rows_of(loaded.test)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    write_folder(tmp_path, {'a': {'bomb.png': nasty.bad_files()[b'bomb.png']}})
    error_of(['bomb.png', 'million'], f'folder:{tmp_path}', image_size=8)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP', 'GIF', 'TIFF', 'BMP'])
def test_what_a_check_reads_of_a_damaged_file_training_reads_too(kind):
    whole = nasty.encoded(nasty.picture(5), kind)
    rng = np.random.default_rng(0)
    damaged = [whole[:-cut] for cut in (*range(1, 40, 3), 100, len(whole) // 2)]
    for at in rng.integers(0, len(whole), 40):
        flipped = bytes([whole[at] ^ 1 << int(rng.integers(8))])
        damaged.append(whole[:at] + flipped + whole[at + 1 :])
    verdicts = [[_is_read(decode, data) for data in damaged] for decode in _BOTH]
    assert verdicts[0] == verdicts[1]
    assert not all(verdicts[0])
    if kind == 'PNG':  # Its last chunk, of 12 bytes, has no pixels.
        assert verdicts[0][:4] == [True] * 4


_BOTH = (decoding.decode, pictures.decode)


def _is_read(decode, data):
    try:
        return decode(data).pixels.size > 0
    except pictures.Unreadable:
        return False
