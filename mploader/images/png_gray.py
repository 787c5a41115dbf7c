"""The gray of a colour PNG as libpng makes it, and with it TensorFlow and Keras.

Many PNGs state that their colours are sRGB. libpng then mixes the light of the colours, Pillow their values: the grays
of such photographs differ by 5 to 11 of 255 on average. A model trained on one kind of gray should not get the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mploader.images.geometry import Pixels

_SRGB_GAMMA = 0.45455
_VALID_GAMMAS = (0.00016, 6250.0)  # libpng ignores others as damaged


def stated_gamma(info: dict[Any, Any]) -> float:
    """Returns the gamma that a PNG states by ``gAMA``, ``sRGB`` or a profile of sRGB; 1 without them.

    Args:
        info: what Pillow has read from the file's chunks.
    """
    if "srgb" in info or b"sRGB" in info.get("icc_profile", b""):
        return _SRGB_GAMMA
    gamma = float(info.get("gamma", 1))
    return gamma if _VALID_GAMMAS[0] <= gamma <= _VALID_GAMMAS[1] else 1.0


def to_gray(pixels: Pixels, gamma: float) -> Pixels:
    """Makes gray of colours as libpng's ``png_set_rgb_to_gray`` does, equal to the bit.

    Args:
        pixels: uint8 (height, width, 3).
        gamma: of the file. Unless it is about 1, the light of the colours is mixed, in 256 steps, not their values.

    Returns:
        uint8 (height, width, 1).
    """
    red, green, blue = np.moveaxis(pixels, 2, 0)
    is_light = not 0.95 <= gamma <= 1.05
    steps = _curve(1 / gamma) if is_light else np.arange(256, dtype=np.uint8)
    # 0.299, 0.587 and the rest, in 32768ths
    mixed = (steps * np.int32(9797))[red] + (steps * np.int32(19234))[green] + (steps * np.int32(3737))[blue]
    gray: Pixels
    if is_light:
        gray = np.where((red == green) & (green == blue), red, _curve(gamma)[(mixed + 16384) >> 15])
    else:
        gray = (mixed >> 15).astype(np.uint8)
    return gray[:, :, None]


def _curve(exponent: float) -> Pixels:
    """Returns the values 0 to 255, as shares of 255, raised to a power."""
    values: Pixels = np.floor(255 * (np.arange(256) / 255) ** exponent + 0.5).astype(np.uint8)
    return values
