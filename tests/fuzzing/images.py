"""Small valid images of every format that is read: what the fuzz test of files damages."""

import io
import struct
import zlib

import numpy as np
import tifffile
from PIL import ExifTags, Image

HEIGHT, WIDTH = 16, 24
IDS = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3), np.ones((8, 8), np.uint8))
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 5), np.uint8)
COLOR = np.stack([IDS * 40, NOISE[..., 0] // 4, np.full_like(IDS, 90)], axis=-1)
WIDE = COLOR.astype(np.uint16) * 257
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: np.ndarray, bits: int, color_type: int, interlaced: int = 0, *extra: bytes) -> bytes:
    """(H, W) or (H, W, C) samples -> a PNG file; `extra` chunks come before the pixels."""
    parts = [samples[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [samples]
    rows = b"".join(b"\0" + packed(row.reshape(-1), bits) for part in parts if part.size for row in part)
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def packed(row: np.ndarray, bits: int) -> bytes:
    """Samples of one row in bytes, the first one in the highest bits."""
    text = "".join(f"{value & (1 << bits) - 1:0{bits}b}" for value in row.tolist())
    return bytes(int(text[place : place + 8].ljust(8, "0"), 2) for place in range(0, len(text), 8))


def pillow(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def palette_image() -> Image.Image:
    image = Image.fromarray(IDS)
    image.putpalette([level for color in range(6) for level in (color * 40, 255 - color * 20, 90)])
    return image


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[ExifTags.Base.Orientation] = orientation
    return block


def png_images() -> dict[str, bytes]:
    palette = chunk(b"PLTE", bytes(range(48)))
    rotated = pillow(Image.fromarray(COLOR), "PNG", exif=exif(6))
    second = Image.fromarray(COLOR[::-1])
    return {
        **{f"gray{bits}.png": png(IDS, bits, 0) for bits in (1, 2, 4, 8, 16)},
        "gray-interlaced.png": png(IDS, 8, 0, 1),
        "gray2-interlaced.png": png(IDS, 2, 0, 1),
        "palette.png": png(IDS, 8, 3, 0, palette),
        "palette4.png": png(IDS, 4, 3, 0, palette, chunk(b"tRNS", b"\0\xff\x80")),
        "gray-alpha.png": png(NOISE[..., :2], 8, 4),
        "rgb.png": png(COLOR, 8, 2, 0, chunk(b"tEXt", b"Title\0fuzz"), chunk(b"gAMA", b"\0\0\xb1\x8f")),
        "rgba-interlaced.png": png(NOISE[..., :4], 8, 6, 1),
        "rgb16.png": png(WIDE, 16, 2),
        "rgb-rotated.png": rotated,
        "rgb-late-exif.png": late_metadata(rotated),
        "moving.apng": pillow(Image.fromarray(COLOR), "PNG", save_all=True, append_images=[second]),
    }


def late_metadata(data: bytes) -> bytes:
    """The PNG with its EXIF block behind the pixels."""
    place = data.index(b"eXIf") - 4
    length = 12 + int.from_bytes(data[place : place + 4], "big")
    return data[:place] + data[place + length : -12] + data[place : place + length] + data[-12:]


def tiff_images() -> dict[str, bytes]:
    color, ids = Image.fromarray(COLOR), Image.fromarray(IDS)
    return {
        "raw.tif": pillow(color, "TIFF"),
        "lzw.tif": pillow(ids, "TIFF", compression="tiff_lzw"),
        "deflate.tiff": pillow(color, "TIFF", compression="tiff_adobe_deflate"),
        "packbits.tif": pillow(ids, "TIFF", compression="packbits"),
        "jpeg.tif": pillow(color, "TIFF", compression="jpeg"),
        "zstd.tif": pillow(color, "TIFF", compression="zstd"),
        "fax.tif": pillow(ids.convert("1"), "TIFF", compression="group4"),
        "palette.tif": pillow(palette_image(), "TIFF"),
        "rotated.tif": pillow(color, "TIFF", tiffinfo={274: 6}),
        "pages.tif": pillow(ids, "TIFF", save_all=True, append_images=[color, ids]),
        "float.tif": pillow(Image.fromarray(NOISE[..., 0] / np.float32(255)), "TIFF"),
        "cmyk.tif": pillow(color.convert("CMYK"), "TIFF"),
        "lab.tif": tiff(COLOR, photometric="cielab"),
        "big-endian.tif": tiff(WIDE[..., 0], byteorder=">"),
        "big.tif": tiff(COLOR, bigtiff=True),
        "tiles.tif": tiff(COLOR, tile=(16, 16), compression="zlib"),
        "rgb16.tif": tiff(WIDE, photometric="rgb"),
        "five-bands.tif": tiff(NOISE, photometric="minisblack", planarconfig="contig"),
        "planes.tif": tiff(np.moveaxis(NOISE, -1, 0), photometric="minisblack", planarconfig="separate"),
        "double.tif": tiff(NOISE[..., 0] / 255.0, compression="lzw", predictor=True),
        "signed.tif": tiff(
            np.moveaxis(NOISE[..., :2], -1, 0).astype(np.int16), tile=(16, 16), planarconfig="separate"
        ),
    }


def other_images() -> dict[str, bytes]:
    color, ids, gray = Image.fromarray(COLOR), Image.fromarray(IDS), Image.fromarray(NOISE[..., 0])
    second = Image.fromarray(COLOR[::-1])
    movie = {"save_all": True, "append_images": [second]}
    return {
        "baseline.jpg": pillow(color, "JPEG"),
        "progressive.jpeg": pillow(color, "JPEG", progressive=True),
        "cmyk.jpg": pillow(color.convert("CMYK"), "JPEG"),
        "gray.jpe": pillow(gray, "JPEG"),
        "rotated.jfif": pillow(color, "JPEG", exif=exif(8)),
        "two.mpo": pillow(color, "MPO", **movie),
        "still.gif": pillow(palette_image(), "GIF"),
        "moving.gif": pillow(palette_image(), "GIF", save_all=True, append_images=[ids]),
        "lossy.webp": pillow(color, "WEBP"),
        "lossless.webp": pillow(color, "WEBP", lossless=True, exif=exif(3)),
        "moving.webp": pillow(color, "WEBP", lossless=True, **movie),
        "still.avif": pillow(color, "AVIF", speed=10),
        "moving.avifs": pillow(color, "AVIF", speed=10, **movie),
        "color.bmp": pillow(color, "BMP"),
        "palette.bmp": pillow(palette_image(), "BMP"),
        "one.dib": pillow(ids.convert("1"), "DIB"),
        "lossless.jp2": pillow(color, "JPEG2000"),
        "lossy.jp2": pillow(color, "JPEG2000", irreversible=True),
        "codestream.j2k": pillow(ids, "JPEG2000", no_jp2=True),
        "raw.tga": pillow(color, "TGA"),
        "packed.tga": pillow(palette_image(), "TGA", compression="tga_rle"),
        "color.ppm": pillow(color, "PPM"),
        "gray.pgm": pillow(ids, "PPM"),
        "gray16.pgm": b"P5 24 16 4095\n" + (IDS.astype(">u2") * 800).tobytes(),
        "plain.pgm": b"P2\n# ids\n24 16 5\n" + " ".join(map(str, IDS.reshape(-1).tolist())).encode(),
        "one.pbm": pillow(ids.convert("1"), "PPM"),
        "float.pfm": pillow(Image.fromarray(NOISE[..., 0] / np.float32(255)), "PPM"),
        "ids.npy": npy(IDS),
        "color.npy": npy(COLOR),
        "bands.npy": npy(np.moveaxis(NOISE, -1, 0)),
        "wide.npy": npy(np.asfortranarray(WIDE)),
        "float.npy": npy(NOISE[..., :3] / np.float32(255)),
        "long.npy": npy(IDS.astype(np.int64)),
        "bool.npy": npy(IDS > 2),
    }


def all_images() -> dict[str, bytes]:
    """Name with ending -> content."""
    return {**png_images(), **tiff_images(), **other_images()}
