"""JPEG through libjpeg-turbo: the smallest scale that suffices, and specific errors.

simplejpeg decodes whole images. Where the optional extension was built (``_region.c``), a box is decoded without the
pixels around it: the result is the same, with 1.2 to 1.4 times as many random-resized crops a second.
"""

from __future__ import annotations

import numpy as np
import simplejpeg

from mploader.errors import SampleError
from mploader.images.formats import JpegHeader
from mploader.images.geometry import Box, Pixels

try:
    from mploader.images import _region
except ImportError:  # not built: no compiler, or no headers of libjpeg-turbo
    _region = None  # type: ignore[assignment]

_HARMLESS = (
    "extraneous bytes before marker",
    "unknown JFIF revision",
    "Unknown Adobe color transform",
    "bad ICC marker",
)
"""Warnings of libjpeg after which the pixels are correct. All others mean that it made up a part of the picture."""


def is_supported(header: JpegHeader) -> bool:
    """Whether this module decodes such a JPEG; CMYK and YCCK are left to Pillow."""
    return header.components in (1, 3)


def check_whole(data: bytes, header: JpegHeader) -> None:
    """Checks a JPEG of four components (CMYK, YCCK) before Pillow decodes it.

    Pillow ignores libjpeg's warnings that a part of the picture is made up. They depend on the coded data alone, so
    the smallest scale gives all of them.

    Raises:
        SampleError: libjpeg-turbo warns about the data.
    """
    if header.components != 4:
        return
    try:
        _call_simplejpeg(data, header, 8 if header.is_lossless else 1, strict=True, colours="CMYK")
    except ValueError as error:
        if not is_harmless(error):
            raise SampleError(_complaint(data, header, error)) from error


def is_harmless(error: ValueError) -> bool:
    """Whether the pixels are correct in spite of a complaint of libjpeg-turbo."""
    return any(warning in str(error) for warning in _HARMLESS)


def decode_box(data: bytes, header: JpegHeader, box: Box, height: int, width: int) -> Pixels:
    """Decodes a box of a JPEG at the smallest scale that suffices for a resize to height x width.

    Args:
        data: the whole file.
        header: its frame header.
        box: the rectangle to decode, in stored pixels.
        height, width: the size that the box will be resized to.

    Returns:
        The box as uint8 RGB, scaled by 1/8, 2/8, 4/8 or 1. Its edges lie at the nearest pixel of that scale.

    Raises:
        SampleError: libjpeg-turbo cannot decode the data. Damage that no pixel of the box depends on may go unnoticed.
    """
    eighths = 8 if header.is_lossless else box.scale_for(height, width)
    scaled = box.scaled(eighths, header.height, header.width)
    if _region is not None and not header.is_lossless and scaled != _whole(header, eighths):
        pixels = np.empty((scaled.height, scaled.width, 3), np.uint8)
        try:
            _region.decode(data, eighths, *scaled, pixels)
        except ValueError:
            pass  # harmless, or the full decode raises a specific error
        else:
            return pixels
    return scaled.of(_decode(data, header, eighths))


def decode_whole(data: bytes, header: JpegHeader, colours: str) -> Pixels:
    """Decodes all pixels at full scale with the fast DCT, which is less exact and what TensorFlow uses.

    Args:
        data: the whole file.
        header: its frame header.
        colours: "GRAY" or "RGB".

    Returns:
        uint8 (height, width, 1 or 3).

    Raises:
        SampleError: libjpeg-turbo cannot decode the data.
    """
    return _decode(data, header, 8, colours=colours, fast_dct=True)


def _whole(header: JpegHeader, eighths: int) -> Box:
    return Box(0, 0, -(-header.height * eighths // 8), -(-header.width * eighths // 8))


def _decode(data: bytes, header: JpegHeader, eighths: int, *, colours: str = "RGB", fast_dct: bool = False) -> Pixels:
    """Decodes; harmless warnings are ignored."""

    def attempt(strict: bool) -> Pixels:
        return _call_simplejpeg(data, header, eighths, strict=strict, colours=colours, fast_dct=fast_dct)

    try:
        return attempt(strict=True)
    except ValueError as error:
        if not is_harmless(error):
            raise SampleError(_complaint(data, header, error)) from error
    try:
        return attempt(strict=False)
    except ValueError as error:
        raise SampleError(_complaint(data, header, error)) from error


def _call_simplejpeg(
    data: bytes, header: JpegHeader, eighths: int, *, strict: bool, colours: str = "RGB", fast_dct: bool = False
) -> Pixels:
    whole = _whole(header, eighths)
    pixels: Pixels = simplejpeg.decode_jpeg(
        data,
        colours,
        min_height=whole.height,
        min_width=whole.width,
        min_factor=8 / eighths,
        strict=strict,
        fastdct=fast_dct,
    )
    return pixels


def _complaint(data: bytes, header: JpegHeader, error: ValueError) -> str:
    return f"{header}, {len(data):,} bytes: libjpeg-turbo reports {str(error).strip()!r}"
