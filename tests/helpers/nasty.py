"""A folder of the images that people really hold: odd, damaged, turned, hidden, too large."""

import io
import os
import struct
import zlib

import numpy as np
import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener()


def picture(seed=0, height=48, width=40, channels=3):
    """Makes smooth colours, uint8, whose bright upper left corner shows when they are turned."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    base = 30 + 60 * rows / height + 40 * columns / width
    tint = rng.integers(0, 40, channels)
    image = np.repeat(base[..., None], channels, -1) + tint
    image[: height // 3, : width // 3] += 90
    return np.round(image).astype(np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of(header, rows, *chunks):
    """Makes a PNG from its header fields (width, height, depth, colour type) and raw rows."""

    def chunk(kind, data):
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    width, height, depth, colour_type = header
    first = struct.pack('>2I5B', width, height, depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b''.join(b'\0' + row for row in rows))
    middle = b''.join(chunk(kind, data) for kind, data in chunks)
    start = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', first) + middle
    return start + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')


def deep_png(values, *chunks):
    """Makes a PNG of 16 bits from uint16 [H, W, C], where C is 1 to 4."""
    height, width, channels = values.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = [row.astype('>u2').tobytes() for row in values]
    return png_of((width, height, 16, colour_type), rows, *chunks)


def turned_jpeg(image, orientation, kind='JPEG'):
    """Makes a file whose pixels are stored so that EXIF's orientation turns them into `image`."""
    back = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {'quality': 95} if kind == 'JPEG' else {}
    if kind == 'HEIF':  # Given as bytes, it becomes a property of the image, as phones have it.
        exif = exif.tobytes()
    return encoded(np.ascontiguousarray(back(image)), kind, exif=exif, **options)


def swapping_profile():
    """Makes the colour profile of a device that has the red and the blue of sRGB exchanged."""

    def fixed(*values):
        return b''.join(struct.pack('>i', round(value * 65536)) for value in values)

    def xyz(*values):
        return b'XYZ \0\0\0\0' + fixed(*values)

    red, green, blue = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
    text = b'swapped\0'
    tags = {
        b'desc': b'desc\0\0\0\0' + struct.pack('>I', len(text)) + text + bytes(79),
        b'cprt': b'text\0\0\0\0none\0\0\0\0',
        b'wtpt': xyz(0.9642, 1.0, 0.8249),
        b'rXYZ': xyz(*blue),
        b'gXYZ': xyz(*green),
        b'bXYZ': xyz(*red),
    }
    gamma = b'curv\0\0\0\0' + struct.pack('>IHH', 1, round(2.2 * 256), 0)
    tags |= {name: gamma for name in (b'rTRC', b'gTRC', b'bTRC')}
    table, body = struct.pack('>I', len(tags)), b''
    at = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack('>II', at + len(body), len(data))
        body += data
    size = at + len(body)
    head = struct.pack('>I4sI4s4s4s', size, bytes(4), 0x02400000, b'mntr', b'RGB ', b'XYZ ')
    head += bytes(12) + b'acsp' + bytes(28) + fixed(0.9642, 1.0, 0.8249)
    return head + bytes(128 - len(head)) + table + body


def good_files():
    """Makes files that hold a picture, by name."""
    rgb, gray = picture(1), picture(2, channels=1)
    opacity = np.full((*rgb.shape[:2], 1), 128, np.uint8)
    frames = [Image.fromarray(picture(seed)) for seed in (3, 4, 5)]
    animated = {'save_all': True, 'append_images': frames[1:], 'duration': 50}
    files = {
        'plain.jpg': encoded(rgb, 'JPEG', quality=95),
        'UPPER.JPEG': encoded(rgb, 'JPEG', quality=90),
        'progressive.jfif': encoded(rgb, 'JPEG', progressive=True),
        'cmyk.jpg': encoded(Image.fromarray(rgb).convert('CMYK'), 'JPEG'),
        'gray.png': encoded(gray, 'PNG'),
        'bits.png': encoded(Image.fromarray(gray[..., 0]).convert('1'), 'PNG'),
        'palette.png': encoded(Image.fromarray(rgb).convert('P', palette=1), 'PNG'),
        'alpha.png': encoded(np.concatenate([rgb, opacity], -1), 'PNG'),
        'gray_alpha.png': encoded(
            Image.fromarray(np.concatenate([gray, opacity], -1), 'LA'), 'PNG'
        ),
        'clear_rgb.png': encoded(rgb, 'PNG', transparency=tuple(map(int, rgb[0, 0]))),
        'twelve_bits.png': deep_png(gray.astype(np.uint16) * 16),
        'sixteen_bits.png': deep_png(rgb.astype(np.uint16) * 256),
        'still.webp': encoded(rgb, 'WEBP', lossless=True),
        'animated.webp': encoded(frames[0], 'WEBP', lossless=True, **animated),
        'animated.gif': encoded(frames[0], 'GIF', **animated),
        'bitmap.bmp': encoded(rgb, 'BMP'),
        'scan.tif': encoded(rgb, 'TIFF', compression='tiff_lzw'),
        'pages.tiff': encoded(frames[0], 'TIFF', save_all=True, append_images=frames[1:]),
        'face.pgm': encoded(gray, 'PPM'),
        'phone.heic': encoded(rgb, 'HEIF', quality=95),
        'web.avif': encoded(rgb, 'AVIF', quality=95),
        'slide.jp2': encoded(rgb, 'JPEG2000'),
        'profile.jpg': encoded(rgb, 'JPEG', quality=95, icc_profile=swapping_profile()),
        'wrong_name.png': encoded(rgb, 'JPEG', quality=95),
        'wide.png': encoded(np.tile(picture(6, 10, 40), (1, 500, 1)), 'PNG'),  # 20,000 x 10.
        'ünïcödé 猫.png': encoded(rgb, 'PNG'),
        'new\nline.png': encoded(rgb, 'PNG'),
    }
    for turn in range(1, 9):
        files[f'turned_{turn}.jpg'] = turned_jpeg(rgb, turn)
    return {os.fsencode(name): data for name, data in files.items()} | {
        'caf\xe9.png'.encode('latin-1'): encoded(rgb, 'PNG')
    }


def bad_files():
    """Makes files that hold no picture, by name."""
    rgb = picture(1)
    jpeg, png = encoded(rgb, 'JPEG', quality=95), encoded(rgb, 'PNG')
    bomb = png_of((40_000, 40_000, 8, 0), [bytes(40_000)] * 3)
    return {
        b'cut_off.jpg': jpeg[:-400],
        b'cut_off.png': png[: len(png) // 2],
        b'empty.png': b'',
        b'text.png': b'This is no image.\n',
        b'bomb.png': bomb,
        b'zeros.jpg': bytes(3000),
    }


def write(root):
    """Makes the folder: class folders `b 10` and `b 2`, and what does not belong there.

    Returns:
      How many files hold a picture, and how many do not.
    """
    first, second = os.fsencode(root / 'b 2'), os.fsencode(root / 'b 10')
    for folder in (first, second):
        os.makedirs(folder)
    good, bad = good_files(), bad_files()
    for number, (name, data) in enumerate({**good, **bad}.items()):
        with open(os.path.join(second if number % 3 == 0 else first, name), 'wb') as file:
            file.write(data)
    os.symlink(root, root / 'b 2' / 'loop')
    os.symlink('itself', root / 'b 2' / 'itself')
    os.symlink(root / 'nowhere', root / 'b 10' / 'gone.png')
    for litter in ('@eaDir', '__MACOSX', '.hidden'):
        (root / litter / 'plain.jpg').mkdir(parents=True)
        (root / 'b 2' / litter).mkdir()
        (root / 'b 2' / litter / 'thumb.jpg').write_bytes(b'no image')
    for name in ('Thumbs.db', '.DS_Store', 'notes.txt', 'photo.dng', '._plain.jpg'):
        (root / 'b 2' / name).write_bytes(b'no image')
    return len(good), len(bad) + 1
