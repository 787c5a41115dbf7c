"""Decoding and resizing a photograph: with mploader's functions, and with simplejpeg and OpenCV alone."""

from __future__ import annotations

import functools
import math
from typing import Any

import cv2
import numpy as np
import simplejpeg

from mploader import images

SIZE = (224, 224)
crop = images.RandomResizedCrop(*SIZE)


def read(path: str) -> bytes:
    """Returns the content of a file."""
    with open(path, "rb") as file:
        return file.read()


def whole_image(sample: tuple[bytes, int]) -> tuple[Any, int]:
    """The transform of all contenders except the decoder's limit and tf.data."""
    return images.decode(sample[0], SIZE), sample[1]


def random_crop(sample: tuple[bytes, int]) -> tuple[Any, int]:
    """The same for ``--crop``."""
    return crop(sample[0], _generator()), sample[1]


@functools.cache
def _generator() -> np.random.Generator:
    return np.random.default_rng()


def bare_image(data: bytes) -> Any:
    """Decodes and resizes with the two libraries alone: a Gaussian filter against aliasing, then bilinear."""
    pixels = simplejpeg.decode_jpeg(data)
    vertical, horizontal = pixels.shape[0] / SIZE[0], pixels.shape[1] / SIZE[1]
    if max(vertical, horizontal) > 1.1:
        width = 3 if max(vertical, horizontal) <= 2.2 else 5
        blur = [math.sqrt(max((factor * factor - 1) / 6, 0.0025)) for factor in (horizontal, vertical)]
        pixels = cv2.GaussianBlur(pixels, (width, width), sigmaX=blur[0], sigmaY=blur[1])
    return cv2.resize(pixels, SIZE[::-1])


def bare_crop(data: bytes) -> Any:
    """Decodes the whole picture, cuts a random box and resizes it."""
    height, width = simplejpeg.decode_jpeg_header(data)[:2]
    box = crop.view(height, width, _generator()).box
    pixels = box.of(simplejpeg.decode_jpeg(data))
    return cv2.resize(pixels, SIZE[::-1], interpolation=cv2.INTER_LINEAR)
