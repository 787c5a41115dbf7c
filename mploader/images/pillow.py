"""All images that are not ordinary JPEGs, through Pillow, to 8 bits per channel."""

from __future__ import annotations

import importlib
import io
from typing import TYPE_CHECKING

import numpy as np

from mploader.errors import SampleError
from mploader.images import png_gray
from mploader.images.formats import PILLOW_PLUGINS, check_pixels
from mploader.images.geometry import Pixels

if TYPE_CHECKING:
    from PIL import Image


def decode(data: bytes, kind: str, mode: str = "RGB", *, max_pixels: int, apply_exif_orientation: bool) -> Pixels:
    """Decodes the first frame of an image.

    Args:
        data: the whole file.
        kind: its format, a key of ``PILLOW_PLUGINS``.
        mode: of the result: "L" (gray), "RGB" or "RGBA".
        max_pixels: largest number of pixels that the header may announce.
        apply_exif_orientation: whether to turn the picture as its EXIF data say.

    Returns:
        uint8 (height, width, channels), as Pillow's ``convert(mode)`` makes it; 16-bit gray is scaled to 8
        bits, and the gray of a colour PNG is libpng's.

    Raises:
        SampleError: Pillow cannot read the data, or there are too many pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    what = f"{kind}, {len(data):,} bytes"
    try:
        importlib.import_module(f"PIL.{PILLOW_PLUGINS[kind]}")
        with Image.open(io.BytesIO(data), formats=[kind]) as picture:
            what += f", {picture.width} x {picture.height}, mode {picture.mode}"
            check_pixels(picture.height, picture.width, max_pixels, what)
            shown = ImageOps.exif_transpose(picture) if apply_exif_orientation else picture
            return _converted(shown, kind, mode)
    except (SampleError, MemoryError, ImportError):
        raise
    except UnidentifiedImageError as error:  # its text holds an address, which differs from run to run
        raise SampleError(f"{what}: Pillow cannot decode it: its header is damaged") from error
    except Exception as error:  # bad bytes make Pillow's parsers raise anything, KeyError included
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the bytes are in memory: an errno is the machine's fault, not theirs
        raise SampleError(f"{what}: Pillow cannot decode it: {type(error).__name__}: {error}") from error


def _converted(picture: Image.Image, kind: str, mode: str) -> Pixels:
    from PIL import Image

    picture.load()
    if picture.mode.startswith("I;16") or (picture.mode == "I" and kind == "PNG"):
        # convert() clips 16-bit values at 255 and gives a white picture; 65535 / 255 is 257.
        gray = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(((gray + 128) // 257).astype(np.uint8))
    if mode != "RGBA":
        picture.info.pop("transparency", None)  # convert() would warn that the mode cannot hold it
    if mode == "L" and kind == "PNG" and picture.mode not in ("L", "LA", "1"):
        return png_gray.to_gray(np.asarray(picture.convert("RGB")), png_gray.stated_gamma(picture.info))
    pixels = np.array(picture.convert(mode))
    return pixels[:, :, None] if mode == "L" else pixels
