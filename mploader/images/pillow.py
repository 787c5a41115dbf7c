"""Everything that is not an ordinary JPEG, through Pillow, to 8-bit RGB."""

from __future__ import annotations

import importlib
import io
from typing import TYPE_CHECKING

import numpy as np

from mploader.errors import SampleError
from mploader.images.formats import PILLOW_PLUGINS, check_pixels
from mploader.images.geometry import Pixels

if TYPE_CHECKING:
    from PIL import Image


def decode(data: bytes, kind: str, *, max_pixels: int, apply_exif_orientation: bool) -> Pixels:
    """Decodes the first frame of an image.

    Args:
        data: the whole file.
        kind: its format, a key of ``PILLOW_PLUGINS``.
        max_pixels: most pixels that the header may announce.
        apply_exif_orientation: turn the picture as its EXIF data say.

    Returns:
        uint8 (height, width, 3) as ``convert("RGB")`` makes it; 16-bit gray is scaled to 8 bits.

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
            return _to_rgb(shown, kind)
    except (SampleError, MemoryError, ImportError):
        raise
    except UnidentifiedImageError as error:  # its text holds an address, which would differ from run to run
        raise SampleError(f"{what}: Pillow cannot decode it: its header is damaged") from error
    except Exception as error:  # Pillow's parsers let escape what bad bytes lead them to, KeyError and others
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the bytes are in memory: an errno is the machine's fault, not theirs
        raise SampleError(f"{what}: Pillow cannot decode it: {type(error).__name__}: {error}") from error


def _to_rgb(picture: Image.Image, kind: str) -> Pixels:
    picture.load()
    if picture.mode.startswith("I;16") or (picture.mode == "I" and kind == "PNG"):
        # convert("RGB") clips 16-bit values at 255 and gives a white picture; 65535 / 255 is 257.
        gray = np.asarray(picture).astype(np.uint32)
        return np.repeat(((gray + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    picture.info.pop("transparency", None)  # convert() warns about it; RGB has no room for it anyway
    return np.array(picture.convert("RGB"))
