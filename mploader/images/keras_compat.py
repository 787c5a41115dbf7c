"""Images as ``keras.utils.image_dataset_from_directory`` makes them, without TensorFlow: the worker's side.

Pixels are decoded in full, resized by the rules of ``tf.image.resize(antialias=False)``, and rounded to whole numbers.
The rules are those of ``scale_and_translate_op.cc`` (bilinear), ``resize_nearest_neighbor_op.cc``,
``resize_bicubic_op.cc`` and ``resize_area_op.cc`` of TensorFlow 2.21. The resize of :mod:`mploader.images` antialiases,
which Keras does not by default: pixels would differ from Keras's by several of 255.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mploader import images
from mploader.images.execution import decode_whole
from mploader.images.geometry import Pixels
from mploader.images.resize import opencv

FloatArray = np.ndarray[Any, np.dtype[np.float32]]

CHANNELS = {"grayscale": 1, "rgb": 3, "rgba": 4}
"""The number of channels of each ``color_mode`` of Keras."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class KerasImage:
    """A transform of samples ``(bytes, label)`` or ``bytes``: decodes and resizes the image.

    Attributes:
        height, width: of the result, in pixels.
        channels: 1, 3 or 4.
        interpolation: one of :data:`INTERPOLATIONS`.
        fit: "stretch", "crop" (the largest box of the target's aspect ratio) or "pad" (with black).
        channels_first: whether the result is (channels, height, width).
        max_pixels: largest number of pixels that a header may announce; 0: ``mploader.images.max_pixels``.
    """

    height: int
    width: int
    channels: int = 3
    interpolation: str = "bilinear"
    fit: str = "stretch"
    channels_first: bool = False
    max_pixels: int = 0

    def __call__(self, sample: Any) -> Any:
        """Returns the image, uint8 (height, width, channels), with the label if the sample has one."""
        if isinstance(sample, tuple):
            return (self.pixels(sample[0]), *sample[1:])
        return self.pixels(sample)

    def pixels(self, data: bytes) -> Pixels:
        """Decodes and resizes one image.

        Raises:
            SampleError: the bytes are not a supported image, are damaged, or hold too many pixels.
        """
        image = decode_whole(data, _MODES[self.channels], max_pixels=self.max_pixels or images.max_pixels)
        if self.fit == "crop":
            image = self._cropped(image)
        size = self.height, self.width
        image = self._padded(image) if self.fit == "pad" else resize(image, *size, self.interpolation)
        return image.transpose(2, 0, 1) if self.channels_first else image

    def _cropped(self, image: Pixels) -> Pixels:
        """Cuts the box of ``keras.utils.image_utils.smart_resize``, whose arithmetic is in float32."""
        height, width = image.shape[:2]
        box_height = max(1, min(height, int(np.float32(width * self.height) / np.float32(self.width))))
        box_width = max(1, min(width, int(np.float32(height * self.width) / np.float32(self.height))))
        top, left = (height - box_height) // 2, (width - box_width) // 2
        return image[top : top + box_height, left : left + box_width]

    def _padded(self, image: Pixels) -> Pixels:
        """Resizes and pads as ``tf.image.resize_with_pad``, whose arithmetic is in float32."""
        height, width = np.float32(image.shape[0]), np.float32(image.shape[1])
        ratio = max(width / np.float32(self.width), height / np.float32(self.height))
        inner_height, inner_width = height / ratio, width / ratio
        top = max(0, math.floor((np.float32(self.height) - inner_height) / 2))
        left = max(0, math.floor((np.float32(self.width) - inner_width) / 2))
        inner = resize(image, max(1, math.floor(inner_height)), max(1, math.floor(inner_width)), self.interpolation)
        padded = np.zeros((self.height, self.width, self.channels), np.uint8)
        padded[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
        return padded


def resize(image: Pixels, height: int, width: int, interpolation: str) -> Pixels:
    """Resizes as ``tf.image.resize(image, (height, width), interpolation)``, rounded and clipped to uint8.

    Args:
        image: uint8 (rows, columns, channels).
        height, width: of the result, in pixels.
        interpolation: one of :data:`INTERPOLATIONS`.

    Returns:
        uint8 (height, width, channels).
    """
    if image.shape[:2] == (height, width):
        return image
    if interpolation == "nearest":
        rows, columns = _nearest(image.shape[0], height), _nearest(image.shape[1], width)
        return image.take(rows, axis=0).take(columns, axis=1)
    cv2 = opencv() if interpolation == "bilinear" else None
    if cv2 is not None:
        resized: Pixels = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_LINEAR)
        return resized.reshape(height, width, image.shape[2])
    taps = _TAPS[interpolation]
    indices, weights = taps(image.shape[0], height)
    rows_done = _mix(image, indices, weights[:, :, None, None])
    indices, weights = taps(image.shape[1], width)
    mixed = _mix(rows_done.transpose(1, 0, 2), indices, weights[:, :, None, None])
    pixels: Pixels = np.clip(np.rint(mixed, out=mixed), 0, 255, out=mixed).astype(np.uint8).transpose(1, 0, 2)
    return pixels


def _mix(pixels: np.ndarray[Any, Any], indices: np.ndarray[Any, Any], weights: FloatArray) -> FloatArray:
    """Weighted sums of slices of the first axis: result[i] = sum of pixels[indices[i, k]] * weights[i, k]."""
    mixed: FloatArray = pixels[indices[:, 0]] * weights[:, 0]
    for tap in range(1, indices.shape[1]):
        mixed += pixels[indices[:, tap]] * weights[:, tap]
    return mixed


def _nearest(size: int, target: int) -> np.ndarray[Any, Any]:
    scale = np.float32(size) / np.float32(target)
    centres = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale
    rows: np.ndarray[Any, Any] = np.minimum(np.floor(centres).astype(np.int64), size - 1)
    return rows


Taps = tuple[np.ndarray[Any, Any], FloatArray]
"""For each pixel of a result along one axis: the pixels that it is mixed from, and their weights; (target, taps)."""


def _kernel_taps(kernel: Callable[[FloatArray], FloatArray], radius: int, size: int, target: int) -> Taps:
    """Samples a kernel as wide as the image's own pixels, without antialiasing; pixels outside have no weight."""
    centres = (np.arange(target, dtype=np.float64) + 0.5) * (size / target)
    first = np.ceil(centres - radius - 0.5).astype(np.int64)
    indices = first[:, None] + np.arange(2 * radius + 1)
    weights = kernel((indices + 0.5 - centres[:, None]).astype(np.float32))
    weights[(indices < 0) | (indices >= size)] = 0
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), np.float32(1e-6))
    return np.clip(indices, 0, size - 1), weights.astype(np.float32)


def _triangle(x: FloatArray) -> FloatArray:
    weights: FloatArray = np.maximum(1 - np.abs(x), 0)
    return weights


def _cubic(x: FloatArray) -> FloatArray:
    """Keys, "Cubic convolution interpolation for digital image processing" (1981), with a = -1/2."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0)).astype(np.float32)


def _area_taps(size: int, target: int) -> Taps:
    """Weights of the mean over the box of the image that a pixel of the result covers."""
    scale = size / target
    edges = np.arange(target + 1) * scale
    first = np.floor(edges[:-1]).astype(np.int64)
    indices = first[:, None] + np.arange(math.ceil(scale) + 1)
    covered = np.minimum(indices + 1, edges[1:, None]) - np.maximum(indices, edges[:-1, None])
    return np.clip(indices, 0, size - 1), (np.maximum(covered, 0) / scale).astype(np.float32)


_TAPS: dict[str, Callable[[int, int], Taps]] = {
    "bilinear": functools.lru_cache(maxsize=64)(functools.partial(_kernel_taps, _triangle, 1)),
    "bicubic": functools.lru_cache(maxsize=64)(functools.partial(_kernel_taps, _cubic, 2)),
    "area": functools.lru_cache(maxsize=64)(_area_taps),
}

INTERPOLATIONS = ("nearest", *_TAPS)
"""The methods of ``tf.image.resize`` that are supported."""
