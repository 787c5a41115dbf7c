"""What the demo makes of samples: one form for image folders, TFRecord shards and tar shards.

Workers import this module, so nothing heavy is imported here.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mploader.errors import SampleError
from mploader.images import Compose, RandomFlip, RandomResizedCrop, apply_to
from mploader.sources import ImageFolder, Source

SCALE = (0.3, 1.0)
"""Least and most share of a picture that a crop takes: enough to vary it, and to leave in what its class is told by."""
LABELS_READ = 500
"""How many labels are looked at to learn how many classes shards hold."""

_PICTURE_KEYS = ("image/encoded", "image", "jpg", "jpeg", "png", "webp")
_LABEL_KEYS = ("image/class/label", "label", "cls")


def picture_and_label(sample: Any) -> tuple[bytes, int]:
    """Finds the encoded picture and the label in a sample of any of the sources.

    Raises:
        SampleError: it has none.
    """
    if isinstance(sample, tuple):
        return sample
    picture = next((sample[key] for key in _PICTURE_KEYS if key in sample), None)
    label = next((sample[key] for key in _LABEL_KEYS if key in sample), None)
    if not isinstance(picture, bytes) or label is None:
        raise SampleError(
            f"the demo finds no picture with a label in a sample with the keys {', '.join(map(repr, sample))}. "
            f"It looks for a picture in {', '.join(_PICTURE_KEYS)} and for a number in {', '.join(_LABEL_KEYS)}"
        )
    digits = label.strip() if isinstance(label, bytes) else b"%d" % label[0] if len(label) == 1 else b""
    if not re.fullmatch(rb"\d{1,9}", digits):
        raise SampleError(f"the label is {label!r}; the demo reads whole numbers from 0")
    return picture, int(digits)


def count_classes(source: Source) -> int:
    """How many classes there are: those of an image folder, or the largest of some hundred labels of shards.

    Raises:
        SampleError: not one of these labels can be read.
    """
    if isinstance(source, ImageFolder):
        return len(source.class_names)
    places = np.unique(np.linspace(0, len(source) - 1, LABELS_READ).astype(np.int64))
    labels, bad = [], []
    for index in places.tolist():
        try:
            labels.append(picture_and_label(source[index])[1])
        except SampleError as error:  # the loader will replace it and name it
            bad.append(error)
    if not labels:
        raise SampleError(f"the demo can use none of the {len(bad)} samples that it has tried. The first: {bad[0]}")
    return 1 + max(labels)


@dataclass(frozen=True)
class Augment:
    """The demo's transform: a sample to (picture, label), the picture a random crop of size x size pixels.

    Attributes:
        size: height and width, in pixels.
        classes: labels are below this.
    """

    size: int
    classes: int

    def __call__(self, sample: Any, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], int]:
        """Returns uint8 (size, size, 3) and the label."""
        picture, label = picture_and_label(sample)
        if label >= self.classes:
            raise SampleError(f"the label is {label}, and the demo has found labels below {self.classes}")
        crop = apply_to(0, Compose([RandomResizedCrop(self.size, self.size, scale=SCALE), RandomFlip()]))
        element: tuple[npt.NDArray[np.uint8], int] = crop((picture, label), rng)
        return element


def plain_elements(
    source: Source | Sequence[Any], order: Sequence[int], augment: Augment, seed: int
) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
    """The same elements as a plain Python generator makes them with Pillow, but for pictures that it cannot read."""
    rng = np.random.default_rng(seed)
    crop = RandomResizedCrop(augment.size, augment.size, scale=SCALE)
    for index in order:
        try:
            data, label = picture_and_label(source[index])
            picture = Image.open(io.BytesIO(data)).convert("RGB")
        except (SampleError, OSError, SyntaxError, ValueError):  # what sources and Pillow raise on bad data
            continue
        box = crop.view(picture.height, picture.width, rng).box
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        picture = picture.resize((augment.size, augment.size), Image.Resampling.BILINEAR, corners)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        yield np.asarray(picture), label
