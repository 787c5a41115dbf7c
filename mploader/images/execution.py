"""Executes a view: from encoded bytes or an array to the requested pixels, by the cheapest way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mploader.errors import SampleError
from mploader.images import formats, geometry, jpeg, pillow
from mploader.images.geometry import Pixels, View
from mploader.images.resize import resize

Encoded = bytes | bytearray | memoryview
Image = Encoded | Pixels
Framing = Callable[[int, int], View]
"""A function from the (height, width) of an image, as it is shown, to the view of it to be made."""


def render(
    image: Image, framing: Framing, *, max_pixels: int, apply_exif_orientation: bool, out: Pixels | None
) -> Pixels:
    """Returns the view of an image that ``framing`` chooses from the size of the image.

    ``framing`` is called once, before any pixel is decoded, so that a JPEG is decoded no further than the
    view needs.

    Returns:
        uint8 (view.height, view.width, 3), C-contiguous; ``out`` where it is given.

    Raises:
        SampleError: the image cannot be read.
    """
    if isinstance(image, np.ndarray):
        return _render_pixels(_as_rgb(image), framing, out)
    if not isinstance(image, (bytes, bytearray, memoryview)):
        raise SampleError(
            f"image: expected encoded bytes or a uint8 array, got {type(image).__name__}."
            " For one component of a sample use apply_to(key, transform)"
        )
    data = bytes(image)
    kind, header = _identify(data, max_pixels)
    if header is not None:
        turn = geometry.ORIENTATIONS[header.orientation if apply_exif_orientation else 1]
        return _render_jpeg(data, header, framing, turn, out)
    pixels = pillow.decode(data, kind, max_pixels=max_pixels, apply_exif_orientation=apply_exif_orientation)
    return _render_pixels(pixels, framing, out)


def decode_whole(data: bytes, mode: str, *, max_pixels: int) -> Pixels:
    """Decodes all pixels of the first frame, as stored, without scaling.

    JPEGs are decoded with libjpeg's fast DCT, as TensorFlow does, so that not a bit differs from it.

    Args:
        data: the encoded file.
        mode: "L" (gray), "RGB" or "RGBA" (opaque where the file has no transparency).
        max_pixels: largest number of pixels that the header may announce.

    Returns:
        uint8 (height, width, channels).

    Raises:
        SampleError: the image cannot be read.
    """
    kind, header = _identify(data, max_pixels)
    if header is None:
        return pillow.decode(data, kind, mode, max_pixels=max_pixels, apply_exif_orientation=False)
    pixels = jpeg.decode_whole(data, header, "GRAY" if mode == "L" else "RGB")
    if mode == "RGBA":
        return np.concatenate([pixels, np.full((*pixels.shape[:2], 1), 255, np.uint8)], axis=2)
    return pixels


def _identify(data: bytes, max_pixels: int) -> tuple[str, formats.JpegHeader | None]:
    """Returns the format of encoded bytes, and the header of a JPEG that :mod:`mploader.images.jpeg` decodes.

    Raises:
        SampleError: the format is not supported, or the header of a JPEG is invalid.
    """
    kind = formats.guess(data)
    if kind == "JPEG":
        header = formats.read_jpeg_header(data)
        what = f"{header}, {len(data):,} bytes"
        formats.check_pixels(header.height, header.width, max_pixels, what)
        if header.precision != 8:
            raise SampleError(f"{what}: expected 8 bits per component, got {header.precision}. Convert the file")
        if jpeg.is_supported(header):
            return kind, header
        jpeg.check_whole(data, header)
    if kind not in formats.PILLOW_PLUGINS:
        raise SampleError(
            f"{len(data):,} bytes are not a supported image: got {kind}, expected one of"
            f" {', '.join(formats.PILLOW_PLUGINS)}"
        )
    return kind, None


def _render_jpeg(
    data: bytes, header: formats.JpegHeader, framing: Framing, turn: geometry.Turn, out: Pixels | None
) -> Pixels:
    height, width = header.height, header.width
    if turn is geometry.ORIENTATIONS[1]:
        view = framing(height, width)
        return resize(jpeg.decode_box(data, header, view.box, view.height, view.width), view.height, view.width, out)
    shown_height, shown_width = (width, height) if turn.transpose else (height, width)
    view = turn.stored(framing(shown_height, shown_width), shown_height, shown_width)
    stored = resize(jpeg.decode_box(data, header, view.box, view.height, view.width), view.height, view.width)
    shown = turn.show(stored)
    return resize(shown, shown.shape[0], shown.shape[1], out)


def _render_pixels(pixels: Pixels, framing: Framing, out: Pixels | None) -> Pixels:
    view = framing(*pixels.shape[:2])
    return resize(view.box.of(pixels), view.height, view.width, out)


def _as_rgb(pixels: Pixels) -> Pixels:
    """Returns an image array as (height, width, 3), grayscale repeated into the three channels."""
    if pixels.dtype != np.uint8:
        raise SampleError(f"image array: expected uint8, got {pixels.dtype}. Crop and resize before normalising")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise SampleError(f"image array: expected (H, W, 3), (H, W, 1) or (H, W), got {pixels.shape}")
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)) if pixels.shape[2] == 1 else pixels
