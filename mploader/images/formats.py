"""The format of encoded images, read from their first bytes without decoding anything.

Formats are recognised by their magic numbers, never by trying one decoder after another: a decoder then sees
only data of its own format, a worker imports only the Pillow plug-in that it needs, and formats that run
programs or fetch other files (EPS, PDF, SVG, WMF) are named in the error and never opened.
"""

from __future__ import annotations

from typing import NamedTuple

from mploader.errors import SampleError

PILLOW_PLUGINS = {
    "AVIF": "AvifImagePlugin",
    "BMP": "BmpImagePlugin",
    "GIF": "GifImagePlugin",
    "JPEG": "JpegImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
    "PNG": "PngImagePlugin",
    "PPM": "PpmImagePlugin",
    "QOI": "QoiImagePlugin",
    "TIFF": "TiffImagePlugin",
    "WEBP": "WebPImagePlugin",
}
"""The supported formats, and the module of Pillow that reads each. No other format is ever opened."""

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"WEBP", "WEBP"),
    (0, b"BM", "BMP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"II+\x00", "TIFF"),
    (0, b"MM\x00+", "TIFF"),
    (0, b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG2000"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (4, b"ftyphei", "HEIF"),
    (4, b"ftypmif1", "HEIF"),
    (0, b"qoif", "QOI"),
    *((0, b"P%d" % kind, "PPM") for kind in range(1, 7)),
    (0, b"%!PS", "EPS"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"%PDF", "PDF"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"),
    (40, b" EMF", "EMF"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML or SVG"),
    (0, b"<!DOCTYPE", "HTML"),
    (0, b"<html", "HTML"),
    (0, b"8BPS", "PSD"),
    (0, b"\x00\x00\x01\x00", "ICO"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"\x1f\x8b", "GZIP"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
)

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_ARITHMETIC = frozenset(range(0xC9, 0xD0))
_MAX_SCANS = 500


class JpegHeader(NamedTuple):
    """The frame header of a JPEG.

    Attributes:
        height: pixels, as stored (before any EXIF orientation).
        width: pixels, as stored.
        precision: bits per component.
        components: 1 (gray), 3 (colour) or 4 (CMYK, YCCK).
        frame: the second byte of the start-of-frame marker, 0xC0 to 0xCF (ITU T.81, table B.1).
        orientation: EXIF orientation, 1 to 8; 1 where there is none.
    """

    height: int
    width: int
    precision: int
    components: int
    frame: int
    orientation: int

    @property
    def is_lossless(self) -> bool:
        """Whether the pixels are coded without a DCT, so that they cannot be decoded at a smaller scale."""
        return self.frame in _LOSSLESS

    def __str__(self) -> str:
        kinds = {1: "grayscale", 3: "colour", 4: "CMYK"}
        words = [f"{self.precision}-bit", kinds.get(self.components, f"{self.components}-component")]
        words += ["arithmetic-coded"] * (self.frame in _ARITHMETIC)
        words += ["progressive"] * (self.frame in _PROGRESSIVE) + ["lossless"] * self.is_lossless
        return f"{' '.join(words)} JPEG, {self.width} x {self.height}"


def guess(data: bytes) -> str:
    """Returns the name of the format that the first bytes announce, or else a description of them."""
    if not data:
        return "empty data"
    for offset, magic, name in _MAGIC:
        if data.startswith(magic, offset):
            return name
    head = data[:64]
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return f"text that begins with {head[:24].decode('ascii')!r}"
    if not any(head):
        return "zero bytes"
    return f"an unknown format that begins with {head[:8].hex(' ')}"


def pixel_error(height: int, width: int, max_pixels: int, what: str) -> SampleError:
    """Returns the error for a header that announces no pixel, or more than ``max_pixels``."""
    if height < 1 or width < 1:
        return SampleError(f"{what}: expected at least one pixel, but the header says {width} x {height}")
    return SampleError(
        f"{what}: the header says {width} x {height} = {height * width:,} pixels, more than the limit of"
        f" {max_pixels:,}. A small file of this kind can be a decompression bomb. If it is a real"
        " picture, raise max_pixels"
    )


def check_pixels(height: int, width: int, max_pixels: int, what: str) -> None:
    """Checks the number of pixels that a header announces.

    Raises:
        SampleError: it is 0 or above ``max_pixels``; the message begins with ``what``.
    """
    if not 0 < height * width <= max_pixels:
        raise pixel_error(height, width, max_pixels, what)


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Reads the markers of a JPEG up to its frame header (ITU T.81, annex B), and checks that the data are complete.

    Raises:
        SampleError: there is no frame header, the end-of-image marker is missing, or a progressive file has
            more than 500 scans (libjpeg-turbo's own limit in fuzzing: each scan passes over the whole picture).
    """
    position, orientation = 2, 1
    while True:
        found = data.find(b"\xff", position)
        position = found if found >= 0 else len(data)
        while data[position + 1 : position + 2] == b"\xff":  # fill bytes
            position += 1
        if position + 4 > len(data):
            raise SampleError(
                f"JPEG of {len(data):,} bytes: it ends before the frame header (cut off, or without a picture)"
            )
        marker = data[position + 1]
        position += 2
        if marker in _WITHOUT_LENGTH:
            continue
        if marker in (0xD9, 0xDA):
            raise SampleError(f"JPEG of {len(data):,} bytes: no frame header before byte {position:,} (corrupt)")
        length = int.from_bytes(data[position : position + 2], "big")
        if marker in _START_OF_FRAME:
            break
        if marker == 0xE1 and data.startswith(b"Exif\0\0", position + 2):
            orientation = exif_orientation(data[position + 8 : position + length])
        position += max(length, 2)
    if length < 8 or position + 8 > len(data):
        raise SampleError(f"JPEG of {len(data):,} bytes: it ends inside the frame header (cut off)")
    header = JpegHeader(
        height=int.from_bytes(data[position + 3 : position + 5], "big"),
        width=int.from_bytes(data[position + 5 : position + 7], "big"),
        precision=data[position + 2],
        components=data[position + 7],
        frame=marker,
        orientation=orientation,
    )
    # libjpeg fills missing pixels with gray. 0xFFD9 cannot occur inside coded data, so its absence is proof.
    if data.rfind(b"\xff\xd9", position) < 0:
        raise SampleError(
            f"{header}, {len(data):,} bytes: truncated, the end-of-image marker is missing."
            " Fetch or write the file again"
        )
    if marker in _PROGRESSIVE and data.count(b"\xff\xda", position) > _MAX_SCANS:
        raise SampleError(
            f"{header}, {len(data):,} bytes: expected at most {_MAX_SCANS} scans, as all real pictures have"
        )
    return header


def exif_orientation(exif: bytes) -> int:
    """Returns the orientation (tag 0x0112) of the first directory of an EXIF block, 1 if it is absent or invalid."""
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(exif[:4])
    if order is None:
        return 1

    def number(start: int, size: int) -> int:
        return int.from_bytes(exif[start : start + size], "little" if order == "little" else "big")

    directory = number(4, 4)
    for entry in range(number(directory, 2)):
        start = directory + 2 + 12 * entry
        if start + 12 > len(exif):
            break
        if number(start, 2) == 0x0112:
            value = number(start + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1
