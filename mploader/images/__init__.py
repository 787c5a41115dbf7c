"""Images: decode, resize, crop, flip.

A transform is split into geometry and execution. The geometry (:class:`View`) says, from the size in the
header, which rectangle is wanted at which size; then the decoder reads no more pixels than that needs::

    formats    what the bytes are: magic numbers, the header of a JPEG, the limit on pixels
    geometry   boxes, views, EXIF orientations: arithmetic without pixels
    jpeg       libjpeg-turbo at the smallest scale that serves
    pillow     every other format
    resize     one antialiased resize, and the mirror image
    execution  chooses among these: the one way from bytes or an array to pixels
    (here)     what users call

An image is encoded bytes, or a uint8 array (H, W, 3), (H, W, 1) or (H, W) where gray becomes RGB. A result
is always uint8 RGB (H, W, 3), C-contiguous. What an image's bytes do wrong is a
:class:`mploader.SampleError`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mploader.errors import ArgumentError
from mploader.images.apply import apply_to
from mploader.images.arguments import check_out, interval, side, size_pair
from mploader.images.execution import Framing, Image, render
from mploader.images.geometry import Box, Pixels, View, centre_box, largest_centre_box
from mploader.images.resize import mirror

__all__ = [
    "CenterCrop",
    "Compose",
    "ImageTransform",
    "RandomFlip",
    "RandomResizedCrop",
    "Resize",
    "apply_to",
    "decode",
    "max_pixels",
]

max_pixels: int = 178_956_970
"""Most pixels (height * width) that an image's header may announce, as in Pillow.

:func:`decode` reads it when it is called. A transform reads it when it is made, and takes it along to the
workers: set it before making transforms, or give them ``max_pixels=``. For formats other than JPEG Pillow's
own limit, twice ``PIL.Image.MAX_IMAGE_PIXELS`` (the same number), holds as well."""


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted(__all__)


def decode(
    data: bytes,
    size: tuple[int, int] | None = None,
    *,
    max_pixels: int | None = None,
    apply_exif_orientation: bool = False,
    out: Pixels | None = None,
) -> Pixels:
    """Decodes an image to RGB, and resizes it if a size is given.

    The same bytes and arguments give the same pixels. A JPEG is decoded at the smallest scale of 1, 1/2,
    1/4, 1/8 that is not below 1.25 times ``size``, then resized once with antialiasing, close to Pillow's
    bilinear filter.

    Args:
        data: the encoded file: AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM, QOI, TIFF or WebP; the first
            frame counts.
        size: (height, width) of the result; None: as stored.
        max_pixels: most pixels that the header may announce; None: ``mploader.images.max_pixels``.
        apply_exif_orientation: turn the picture as its EXIF data say; False, as in TensorFlow: as stored.
        out: a C-contiguous uint8 array (height, width, 3) that receives the result and is returned.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ArgumentError: an argument cannot be meant.
        SampleError: the bytes are no image of these formats, damaged, cut off, or too large.
    """
    limit = _pixel_limit(max_pixels)
    if size is None:
        framing: Framing = _whole
    else:
        height, width = size_pair(size)

        def framing(rows: int, columns: int) -> View:
            return View(Box(0, 0, rows, columns), height, width)

    return _rendered(data, framing, limit, apply_exif_orientation, out)


class ImageTransform(ABC):
    """A callable (image, rng) -> uint8 array that can also write into an array it is given."""

    @abstractmethod
    def __call__(self, image: Image, rng: np.random.Generator, *, out: Pixels | None = None) -> Pixels:
        """Returns the transformed image: uint8 (height, width, 3), C-contiguous.

        Args:
            image: encoded bytes, or a uint8 array (H, W, 3), (H, W, 1) or (H, W).
            rng: the source of all randomness.
            out: a C-contiguous uint8 array of the result's shape that receives the result and is returned.

        Raises:
            SampleError: the image cannot be read.
            ArgumentError: ``out`` does not fit the result.
        """


@dataclass(frozen=True)
class _Geometric(ImageTransform):
    """A transform that chooses a :class:`View` from the size of an image, before its pixels are known."""

    max_pixels: int | None = field(default=None, kw_only=True, repr=False)
    apply_exif_orientation: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_pixels", _pixel_limit(self.max_pixels))

    @abstractmethod
    def view(self, height: int, width: int, rng: np.random.Generator) -> View:
        """Returns which box of an image of height x width pixels is wanted, and at which size."""

    def __call__(self, image: Image, rng: np.random.Generator, *, out: Pixels | None = None) -> Pixels:
        def framing(height: int, width: int) -> View:
            return self.view(height, width, rng)

        return _rendered(image, framing, _pixel_limit(self.max_pixels), self.apply_exif_orientation, out)


@dataclass(frozen=True)
class _Sized(_Geometric):
    height: int
    width: int

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "height", side("height", self.height))
        object.__setattr__(self, "width", side("width", self.width))


@dataclass(frozen=True)
class Resize(_Sized):
    """Resizes the whole image to height x width pixels, whatever its aspect ratio, with antialiasing."""

    def view(self, height: int, width: int, rng: np.random.Generator) -> View:
        """Returns the whole image."""
        return View(Box(0, 0, height, width), self.height, self.width)


@dataclass(frozen=True)
class CenterCrop(_Sized):
    """Cuts height x width pixels from the middle, without scaling.

    An image that is smaller in a dimension is enlarged, as by ``keras.layers.CenterCrop``: the largest box
    of the same aspect ratio in its middle is resized to height x width.
    """

    def view(self, height: int, width: int, rng: np.random.Generator) -> View:
        """Returns the box in the middle."""
        if height >= self.height and width >= self.width:
            return View(centre_box(height, width, self.height, self.width), self.height, self.width)
        return View(largest_centre_box(height, width, self.width / self.height), self.height, self.width)


@dataclass(frozen=True)
class RandomResizedCrop(_Sized):
    """Cuts a box of random area, aspect ratio and place, and resizes it to height x width.

    Szegedy et al., *Going deeper with convolutions* (2015), as torchvision draws it: ten attempts at an
    area uniform in ``scale`` and a ratio log-uniform in ``ratio``; if none fits, the largest box in the
    middle of an allowed ratio.

    Args:
        height, width: of the result, in pixels.
        scale: least and most share of the image's area, 0 < least <= most <= 1.
        ratio: least and most width / height of the box.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scale", interval("scale", self.scale, most=1.0))
        object.__setattr__(self, "ratio", interval("ratio", self.ratio, most=math.inf))

    def view(self, height: int, width: int, rng: np.random.Generator) -> View:
        """Returns a random box. Draws two numbers for each attempt and two for the place."""
        low, high = (math.log(bound) for bound in self.ratio)
        for _ in range(10):
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * rng.random())
            aspect = math.exp(low + (high - low) * rng.random())
            box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < box_width <= width and 0 < box_height <= height:
                top = int(rng.random() * (height - box_height + 1))
                left = int(rng.random() * (width - box_width + 1))
                box = Box(top, left, box_height, box_width)
                step = 8 // box.scale_for(self.height, self.width)
                return View(box.on_grid(step, height, width), self.height, self.width)
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        return View(largest_centre_box(height, width, aspect), self.height, self.width)


@dataclass(frozen=True)
class RandomFlip(_Geometric):
    """Mirrors left and right with probability one half."""

    def view(self, height: int, width: int, rng: np.random.Generator) -> View:
        """Returns the whole image."""
        return _whole(height, width)

    def __call__(self, image: Image, rng: np.random.Generator, *, out: Pixels | None = None) -> Pixels:
        """Returns the image or its mirror image, arrays that are not mirrored as they are."""
        flip = rng.random() < 0.5
        pixels = super().__call__(image, rng, out=out)
        return mirror(pixels, out) if flip else pixels


@dataclass(frozen=True)
class Compose(ImageTransform):
    """Applies transforms in turn. The first gets the encoded bytes, so it tells the decoder what is needed.

    Args:
        parts: transforms of this module, or any callables (image, rng) -> image. The last must return uint8
            (H, W, 3).
    """

    parts: Sequence[Callable[..., Any]]

    def __post_init__(self) -> None:
        if not isinstance(self.parts, Sequence) or not self.parts or not all(map(callable, self.parts)):
            raise ArgumentError(
                f"Compose takes a list of one or more callables (image, rng) -> image, not {self.parts!r}"
            )
        object.__setattr__(self, "parts", tuple(self.parts))

    def __call__(self, image: Image, rng: np.random.Generator, *, out: Pixels | None = None) -> Pixels:
        """Returns what the last part makes of what the parts before it made; ``out`` goes to the last."""
        *firsts, last = self.parts
        for part in firsts:
            image = part(image, rng)
        if isinstance(last, ImageTransform):
            return last(image, rng, out=out)
        result: Pixels = last(image, rng)
        if out is None:
            return result
        check_out(out, result.shape[0], result.shape[1])
        out[...] = result
        return out


def _whole(height: int, width: int) -> View:
    return View(Box(0, 0, height, width), height, width)


def _pixel_limit(given: int | None) -> int:
    return side("max_pixels", max_pixels if given is None else given)


def _rendered(image: Image, framing: Framing, limit: int, exif: bool, out: Pixels | None) -> Pixels:
    if out is None:
        return render(image, framing, max_pixels=limit, apply_exif_orientation=exif, out=None)

    def checked(height: int, width: int) -> View:
        view = framing(height, width)
        check_out(out, view.height, view.width)
        return view

    return render(image, checked, max_pixels=limit, apply_exif_orientation=exif, out=out)
