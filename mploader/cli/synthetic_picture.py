"""Draws pictures that look like photographs to a decoder and to a small network, for ``mploader synth``.

The statistics that matter for a loader come from two models of natural scenes:

- textures whose amplitude spectrum falls as 1/f (Field, "Relations between the statistics of natural images
  and the response properties of cortical cells", JOSA A 1987);
- opaque objects of many sizes in front of each other, "dead leaves" (Lee, Mumford, Huang, "Occlusion models
  for natural images", IJCV 2001), which give edges.

So JPEG spends its bits as on photographs, and decoding costs as much. Textures are cut from a few large noise fields
and coloured through tables, so a picture takes about 7 ms to draw and encode.

A class is a shape and a hue: each picture has objects of its class, among pale objects of any shape and hue.
"""

from __future__ import annotations

import colorsys
import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from numpy.random import Generator
from PIL import Image, ImageDraw

from mploader.sampling.plan import SampleRandom

_FIELD_SIDE = 1024
_MAX_SIDE = 900
_ASPECTS = (4 / 3, 3 / 2, 1.0, 16 / 9)
_ASPECT_SHARES = (0.5, 0.3, 0.1, 0.1)
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2

Colour = tuple[float, float, float]
Size = tuple[int, int]


@dataclass(frozen=True)
class _Bank:
    """Noise fields of 1024 x 1024 (mode L) that textures are cut from."""

    fine: tuple[Image.Image, ...]
    smooth: tuple[Image.Image, ...]


def label_of(index: int, classes: int) -> int:
    """The class of the picture with this number, in [0, classes)."""
    return index % classes


def picture(seed: int, index: int, classes: int) -> Image.Image:
    """Draws one picture: a function of its arguments alone.

    Args:
        seed: any integer >= 0.
        index: the number of the picture, from 0.
        classes: how many classes there are.

    Returns:
        An RGB image, mostly about 500 pixels at its longer side, at most 900, at least 112.
    """
    return _draw(SampleRandom(seed)(0, index), _bank(seed), label_of(index, classes))


def encoded(seed: int, index: int, classes: int) -> bytes:
    """Returns :func:`picture` as JPEG; about 110 kB on average."""
    quality = int(SampleRandom(seed)(1, index).integers(92, 99))
    pixels = np.asarray(picture(seed, index, classes))
    data: bytes = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")
    return data


@dataclass(frozen=True)
class Draw:
    """The transform that draws: the number of a picture to its JPEG bytes.

    Attributes:
        seed: any integer >= 0.
        classes: how many classes there are.
    """

    seed: int
    classes: int

    def __call__(self, index: int) -> bytes:
        """Returns :func:`encoded` for this number."""
        return encoded(self.seed, index, self.classes)


def _draw(rng: Generator, bank: _Bank, label: int) -> Image.Image:
    size = _random_size(rng)
    ground = _texture(rng, bank, size, _muted(rng))
    sky = _texture(rng, bank, size, _muted(rng), contrast=0.5)
    canvas = Image.composite(sky, ground, _cut(rng, bank.smooth, size).point(_steep(rng)))
    # Distant, small objects first. Those of the class are drawn last, so that one is always visible.
    for _ in range(int(rng.integers(5, 10))):
        shape = int(rng.integers(len(_SHAPES)))
        _put_object(rng, bank, canvas, _muted(rng), shape, _random_extent(rng, 0.05, 0.5))
    for _ in range(int(rng.integers(1, 4))):
        _put_object(rng, bank, canvas, _vivid(rng, label), label % len(_SHAPES), _random_extent(rng, 0.3, 0.7))
    return canvas


def _random_size(rng: Generator) -> Size:
    """(width, height) about as in ImageNet: most have a longer side of 500, and one in four is upright."""
    longer = 500 if rng.random() < 0.7 else min(_MAX_SIDE, max(200, int(500 * math.exp(0.35 * rng.normal()))))
    shorter = int(longer / rng.choice(_ASPECTS, p=_ASPECT_SHARES))
    return (longer, shorter) if rng.random() < 0.75 else (shorter, longer)


def _random_extent(rng: Generator, low: float, high: float) -> float:
    """A size relative to the shorter side, uniform in its logarithm: a scene looks the same at every scale."""
    return float(low * (high / low) ** rng.random())


def _muted(rng: Generator) -> Colour:
    return colorsys.hsv_to_rgb(rng.random(), 0.3 * rng.random(), 0.25 + 0.6 * rng.random())


def _vivid(rng: Generator, label: int) -> Colour:
    """The hue of a class. Steps of the golden ratio keep the hues of any number of classes apart."""
    hue = (label * _GOLDEN_RATIO + 0.03 * rng.normal()) % 1.0
    return colorsys.hsv_to_rgb(hue, 0.55 + 0.4 * rng.random(), 0.45 + 0.45 * rng.random())


def _steep(rng: Generator) -> list[int]:
    """A table that turns a smooth field into a mask: anything from a haze to an edge."""
    slope, middle = math.exp(3 * rng.random()), 128 + 30 * rng.normal()
    return [round(min(255.0, max(0.0, 128 + slope * (value - middle)))) for value in range(256)]


def _cut(rng: Generator, fields: tuple[Image.Image, ...], size: Size) -> Image.Image:
    field = fields[int(rng.integers(len(fields)))]
    left = int(rng.integers(_FIELD_SIDE - size[0] + 1))
    top = int(rng.integers(_FIELD_SIDE - size[1] + 1))
    piece = field.crop((left, top, left + size[0], top + size[1]))
    return piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else piece


def _texture(rng: Generator, bank: _Bank, size: Size, colour: Colour, contrast: float = 1.0) -> Image.Image:
    """A piece of noise in shades of a colour, whose hue changes a little from shadow to light."""
    noise = _cut(rng, bank.fine, size)
    contrast *= 0.4 + 0.8 * float(rng.random())
    shades = np.arange(256) - 128.0
    tables = [255 * part + contrast * (0.8 + 0.4 * rng.random()) * shades for part in colour]
    return Image.merge("RGB", [noise.point(np.clip(table, 0, 255).round().tolist()) for table in tables])


def _put_object(rng: Generator, bank: _Bank, canvas: Image.Image, colour: Colour, shape: int, extent: float) -> None:
    """Pastes one object at a random place inside the canvas."""
    width, height = canvas.size
    side = max(8, int(extent * min(width, height)))
    left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    # Drawn at half the size and enlarged: cheap, and the edge is as soft as through a lens.
    mask = Image.new("L", (side // 2, side // 2))
    _draw_shape(ImageDraw.Draw(mask), shape, side // 2, 2 * math.pi * float(rng.random()))
    texture = _texture(rng, bank, (side, side), colour, contrast=0.8)
    canvas.paste(texture, (left, top), mask.resize((side, side), Image.Resampling.BILINEAR))


def _draw_shape(draw: ImageDraw.ImageDraw, shape: int, side: int, angle: float) -> None:
    corners, inner = _SHAPES[shape]
    centre = radius = (side - 1) / 2
    points = [
        (
            centre + radius * (1.0 if turn % 2 == 0 else inner) * math.cos(angle + math.pi * turn / corners),
            centre + radius * (1.0 if turn % 2 == 0 else inner) * math.sin(angle + math.pi * turn / corners),
        )
        for turn in range(2 * corners)
    ]
    draw.polygon(points, fill=255)


# (corners, radius between two corners relative to that at a corner): disc, triangle, bar, star, square
_SHAPES = ((24, 1.0), (3, 0.5), (2, 0.25), (5, 0.4), (4, math.sqrt(0.5)))


@functools.lru_cache(maxsize=1)
def _bank(seed: int) -> _Bank:
    random = SampleRandom(seed)
    fine = tuple(_noise(random(2, number), exponent) for number, exponent in enumerate((0.9, 1.0, 1.1, 1.25)))
    smooth = tuple(_noise(random(3, number), 1.9) for number in range(2))
    return _Bank(fine, smooth)


def _noise(rng: Generator, exponent: float) -> Image.Image:
    """Noise whose amplitude falls as 1 / frequency ** exponent, with mean 128 and standard deviation 45."""
    spectrum: npt.NDArray[np.complex128] = np.fft.rfft2(rng.standard_normal((_FIELD_SIDE, _FIELD_SIDE)))
    frequency = np.hypot(np.fft.fftfreq(_FIELD_SIDE)[:, None], np.fft.rfftfreq(_FIELD_SIDE)[None, :])
    frequency[0, 0] = 1.0
    spectrum /= frequency**exponent
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum, s=(_FIELD_SIDE, _FIELD_SIDE))
    return Image.fromarray(np.clip(128 + 45 / field.std() * field, 0, 255).round().astype(np.uint8))
