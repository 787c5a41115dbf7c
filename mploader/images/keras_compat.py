"""Images as ``keras.utils.image_dataset_from_directory`` makes them, without TensorFlow: the worker's side.

Pixels are decoded and resized by the rules of ``tf.io.decode_image`` and ``tf.image.resize(antialias=False)``, and
rounded to whole numbers. JPEGs are decoded in full with libjpeg's fast DCT, which is what TensorFlow does: not a
bit differs before the resize. The kernels are those of ``scale_and_translate_op.cc``, ``resize_bicubic_op.cc`` and
``resize_area_op.cc`` of TensorFlow 2.21.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg

from mploader import images
from mploader.errors import SampleError
from mploader.images import formats, jpeg
from mploader.images.geometry import Pixels
from mploader.images.resize import opencv
from mploader.sources.base import PackedStrings, checked_index
from mploader.sources.files import read_whole
from mploader.sources.fingerprint import hash_of

FloatArray = np.ndarray[Any, np.dtype[np.float32]]

CHANNELS = {"grayscale": 1, "rgb": 3, "rgba": 4}
_PILLOW_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class LabelledFiles:
    """A source of ``(bytes, label)``, or of ``bytes`` where there are no labels.

    Attributes:
        paths: the files.
        labels: one row for each file, in the form that batches have; None: no labels.
    """

    paths: PackedStrings
    labels: np.ndarray[Any, Any] | None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Any:
        """The content of a file, and its label. Raises OSError and SampleError as the file system has it."""
        position = checked_index(index, len(self))
        data = read_whole(self.paths[position])
        return data if self.labels is None else (data, self.labels[position])

    def where(self, index: int) -> str:
        """The file of a sample."""
        return self.paths[checked_index(index, len(self))]

    def fingerprint(self) -> str:
        """Hashes of the files' names below the folder that holds them all, and of the labels. No file is looked at."""
        names = list(self.paths)
        # What the first and the last in the order of strings share, all share.
        start = len(os.path.commonprefix([min(names), max(names)]).rpartition("/")[0])  # noqa: RUF071
        files = hashlib.sha256("\0".join(name[start:] for name in names).encode("utf-8", "surrogateescape"))
        labels = "none" if self.labels is None else hash_of(self.labels)
        return f"files {files.hexdigest()[:16]}, labels {labels}"


@dataclass(frozen=True)
class KerasImage:
    """A transform of samples of :class:`LabelledFiles`: decodes and resizes the image.

    Attributes:
        height, width: of the result, in pixels.
        channels: 1, 3 or 4.
        interpolation: a method of ``tf.image.resize``.
        fit: "stretch", "crop" (the largest box of the target's aspect ratio) or "pad" (with black).
        channels_first: the result is (channels, height, width).
        max_pixels: most pixels that a header may announce.
    """

    height: int
    width: int
    channels: int = 3
    interpolation: str = "bilinear"
    fit: str = "stretch"
    channels_first: bool = False
    max_pixels: int = 0

    def __call__(self, sample: Any) -> Any:
        """Returns the image, uint8 (height, width, channels), with the label that the sample has."""
        if isinstance(sample, tuple):
            return (self.pixels(sample[0]), *sample[1:])
        return self.pixels(sample)

    def pixels(self, data: bytes) -> Pixels:
        """Decodes and resizes one image.

        Raises:
            SampleError: the bytes are no image, damaged, or too large.
        """
        image = decode(data, self.channels, self.max_pixels or images.max_pixels)
        if self.fit == "crop":
            image = self._cropped(image)
        size = self.height, self.width
        image = self._padded(image) if self.fit == "pad" else resize(image, *size, self.interpolation)
        return image.transpose(2, 0, 1) if self.channels_first else image

    def _cropped(self, image: Pixels) -> Pixels:
        """The box that ``keras.utils.image_utils.smart_resize`` takes; its arithmetic is in float32."""
        height, width = image.shape[:2]
        box_height = max(1, min(height, int(np.float32(width * self.height) / np.float32(self.width))))
        box_width = max(1, min(width, int(np.float32(height * self.width) / np.float32(self.height))))
        top, left = (height - box_height) // 2, (width - box_width) // 2
        return image[top : top + box_height, left : left + box_width]

    def _padded(self, image: Pixels) -> Pixels:
        """As ``tf.image.resize_with_pad``; its arithmetic is in float32."""
        height, width = np.float32(image.shape[0]), np.float32(image.shape[1])
        ratio = max(width / np.float32(self.width), height / np.float32(self.height))
        inner_height, inner_width = height / ratio, width / ratio
        top = max(0, math.floor((np.float32(self.height) - inner_height) / 2))
        left = max(0, math.floor((np.float32(self.width) - inner_width) / 2))
        inner = resize(image, max(1, math.floor(inner_height)), max(1, math.floor(inner_width)), self.interpolation)
        padded = np.zeros((self.height, self.width, self.channels), np.uint8)
        padded[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
        return padded


def decode(data: bytes, channels: int, max_pixels: int) -> Pixels:
    """Decodes the first frame of an image, as it is stored, to ``channels`` channels.

    Returns:
        uint8 (height, width, channels).

    Raises:
        SampleError: the bytes are no image that Pillow or libjpeg-turbo reads, damaged, or too large.
    """
    kind = formats.guess(data)
    if kind == "JPEG":
        header = formats.read_jpeg_header(data)
        if not 0 < header.height * header.width <= max_pixels:
            raise formats.pixel_error(header.height, header.width, max_pixels, f"{header}, {len(data):,} bytes")
        if header.precision == 8:
            if jpeg.is_supported(header):
                return _with_alpha(_decode_jpeg(data, "GRAY" if channels == 1 else "RGB", header), channels)
            jpeg.check_whole(data, header)
    if kind not in formats.PILLOW_PLUGINS:
        raise SampleError(
            f"{len(data):,} bytes are no image that mploader reads: {kind}. It reads "
            f"{', '.join(formats.PILLOW_PLUGINS)}"
        )
    return _decode_with_pillow(data, kind, channels, max_pixels)


def _decode_jpeg(data: bytes, colours: str, header: formats.JpegHeader) -> Pixels:
    pixels: Pixels
    try:
        pixels = simplejpeg.decode_jpeg(data, colours, fastdct=True, strict=True)
    except ValueError as error:
        if not jpeg.is_harmless(error):
            raise SampleError(f"{header}, {len(data):,} bytes: libjpeg-turbo says {str(error).strip()!r}") from error
        pixels = simplejpeg.decode_jpeg(data, colours, fastdct=True, strict=False)
    return pixels


def _decode_with_pillow(data: bytes, kind: str, channels: int, max_pixels: int) -> Pixels:
    from PIL import Image

    what = f"{kind}, {len(data):,} bytes"
    try:
        importlib.import_module(f"PIL.{formats.PILLOW_PLUGINS[kind]}")
        with Image.open(io.BytesIO(data), formats=[kind]) as picture:
            what += f", {picture.width} x {picture.height}, mode {picture.mode}"
            if not 0 < picture.height * picture.width <= max_pixels:
                raise formats.pixel_error(picture.height, picture.width, max_pixels, what)
            picture.load()
            if picture.mode.startswith("I"):
                # 16-bit gray. libpng, as TensorFlow uses it, keeps the upper byte; Pillow would clip at 255.
                gray = (np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8)[:, :, None]
                return _with_alpha(gray if channels == 1 else np.repeat(gray, 3, axis=2), channels)
            if channels != 4:
                picture.info.pop("transparency", None)  # convert() warns about it, and has no room for it
            if channels == 1 and kind == "PNG" and picture.mode not in ("L", "LA", "1"):
                return _gray(np.asarray(picture.convert("RGB")), _gamma(picture.info))
            pixels = np.asarray(picture.convert(_PILLOW_MODES[channels]))
            return pixels.reshape(*pixels.shape[:2], channels)
    except (SampleError, MemoryError, ImportError):
        raise
    except Exception as error:  # Pillow's parsers let escape whatever bad bytes lead them to
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the bytes are in memory: an errno is the machine's fault, not theirs
        raise SampleError(f"{what}: Pillow cannot decode it: {type(error).__name__}: {error}") from error


def _gamma(info: dict[Any, Any]) -> float:
    """The gamma that a PNG states, as libpng takes it from ``gAMA``, ``sRGB`` or a profile of sRGB; 1 without them."""
    if "srgb" in info or b"sRGB" in info.get("icc_profile", b""):
        return 0.45455
    gamma = float(info.get("gamma", 1))
    return gamma if 0.00016 <= gamma <= 6250 else 1.0  # others libpng takes for damaged


def _gray(pixels: Pixels, gamma: float) -> Pixels:
    """The gray that libpng's ``png_set_rgb_to_gray`` makes: not a bit differs.

    Args:
        pixels: uint8 (height, width, 3).
        gamma: of the file. If it is not about 1 the light of the colours is mixed, in 256 steps, not their values.

    Returns:
        uint8 (height, width, 1).
    """
    red, green, blue = np.moveaxis(pixels, 2, 0)
    is_light = not 0.95 <= gamma <= 1.05
    steps = _curve(1 / gamma) if is_light else np.arange(256, dtype=np.uint8)
    # 0.299, 0.587 and what is left, in 32768ths
    mixed = (steps * np.int32(9797))[red] + (steps * np.int32(19234))[green] + (steps * np.int32(3737))[blue]
    gray: Pixels
    if is_light:
        gray = np.where((red == green) & (green == blue), red, _curve(gamma)[(mixed + 16384) >> 15])
    else:
        gray = (mixed >> 15).astype(np.uint8)
    return gray[:, :, None]


def _curve(exponent: float) -> Pixels:
    """The values 0 to 255 raised to a power, as shares of 255."""
    values: Pixels = np.floor(255 * (np.arange(256) / 255) ** exponent + 0.5).astype(np.uint8)
    return values


def _with_alpha(pixels: Pixels, channels: int) -> Pixels:
    if channels != 4:
        return pixels
    alpha = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    return np.concatenate([pixels, alpha], axis=2)


def resize(image: Pixels, height: int, width: int, interpolation: str) -> Pixels:
    """Resizes as ``tf.image.resize(image, (height, width), interpolation)`` does, rounded and clipped to uint8.

    Args:
        image: uint8 (rows, columns, channels).
        height, width: of the result.
        interpolation: "nearest", or a key of :data:`KERNELS`.

    Returns:
        uint8 (height, width, channels).
    """
    if image.shape[:2] == (height, width) and interpolation in ("nearest", "bilinear", "area"):
        return image
    if interpolation == "nearest":
        rows, columns = _nearest(image.shape[0], height), _nearest(image.shape[1], width)
        return image.take(rows, axis=0).take(columns, axis=1)
    cv2 = opencv() if interpolation == "bilinear" else None
    if cv2 is not None:
        resized: Pixels = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_LINEAR)
        return resized.reshape(height, width, image.shape[2])
    taps = KERNELS[interpolation]
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
    places: np.ndarray[Any, Any] = np.minimum(np.floor(centres).astype(np.int64), size - 1)
    return places


Taps = tuple[np.ndarray[Any, Any], FloatArray]
"""For each place of the result: the places in the image that it is mixed from, and their weights; (target, taps)."""


def _kernel_taps(kernel: Callable[[FloatArray], FloatArray], radius: float, size: int, target: int) -> Taps:
    """A kernel of the image's own pixel size at each sampled point; what lies outside the image has no weight."""
    centres = (np.arange(target, dtype=np.float64) + 0.5) * (size / target)
    first = np.ceil(centres - radius - 0.5).astype(np.int64)
    places = first[:, None] + np.arange(math.ceil(2 * radius) + 1)
    weights = kernel((places + 0.5 - centres[:, None]).astype(np.float32))
    weights[(places < 0) | (places >= size)] = 0
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), np.float32(1e-6))
    return np.clip(places, 0, size - 1), weights.astype(np.float32)


def _triangle(x: FloatArray) -> FloatArray:
    weights: FloatArray = np.maximum(1 - np.abs(x), 0)
    return weights


def _cubic(b: float, c: float, x: FloatArray) -> FloatArray:
    """Mitchell and Netravali, "Reconstruction Filters in Computer Graphics" (1988), equation 8."""
    x = np.abs(x)
    near = ((12 - 9 * b - 6 * c) * x**3 + (-18 + 12 * b + 6 * c) * x**2 + (6 - 2 * b)) / 6
    far = ((-b - 6 * c) * x**3 + (6 * b + 30 * c) * x**2 + (-12 * b - 48 * c) * x + (8 * b + 24 * c)) / 6
    return np.where(x < 1, near, np.where(x < 2, far, 0)).astype(np.float32)


def _lanczos(radius: int, x: FloatArray) -> FloatArray:
    return np.where(np.abs(x) < radius, np.sinc(x) * np.sinc(x / radius), 0).astype(np.float32)


def _gaussian(x: FloatArray) -> FloatArray:
    return np.where(np.abs(x) < 1.5, np.exp(-(x**2) / (2 * 0.5**2)), 0).astype(np.float32)


def _area_taps(size: int, target: int) -> Taps:
    """The mean of the box of the image that a place of the result covers."""
    scale = size / target
    edges = np.arange(target + 1) * scale
    first = np.floor(edges[:-1]).astype(np.int64)
    places = first[:, None] + np.arange(math.ceil(scale) + 1)
    covered = np.minimum(places + 1, edges[1:, None]) - np.maximum(places, edges[:-1, None])
    return np.clip(places, 0, size - 1), (np.maximum(covered, 0) / scale).astype(np.float32)


def _cached(kernel: Callable[[FloatArray], FloatArray], radius: float) -> Callable[[int, int], Taps]:
    return functools.lru_cache(maxsize=64)(functools.partial(_kernel_taps, kernel, radius))


KERNELS: dict[str, Callable[[int, int], Taps]] = {
    "bilinear": _cached(_triangle, 1),
    "bicubic": _cached(functools.partial(_cubic, 0.0, 0.5), 2),
    "area": functools.lru_cache(maxsize=64)(_area_taps),
    "lanczos3": _cached(functools.partial(_lanczos, 3), 3),
    "lanczos5": _cached(functools.partial(_lanczos, 5), 5),
    "gaussian": _cached(_gaussian, 1.5),
    "mitchellcubic": _cached(functools.partial(_cubic, 1 / 3, 1 / 3), 2),
}
"""The taps of each method but "nearest"."""


def list_files(
    directory: str, classes: Sequence[str], extensions: tuple[str, ...], follow_links: bool
) -> tuple[list[str], list[int]]:
    """Lists images as Keras does: class by class, by folder, then by name, with the position of the class.

    A class "" stands for the folder itself. Folders that cannot be listed are left out.
    """
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folders = os.walk(os.path.join(directory, name), followlinks=follow_links)
        for root, _, files in sorted(folders, key=lambda folder: folder[0]):
            found = [os.path.join(root, file) for file in sorted(files) if file.lower().endswith(extensions)]
            paths += found
            labels += [label] * len(found)
    return paths, labels
