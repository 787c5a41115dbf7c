"""How the demo turns samples of image folders, TFRecord shards and tar shards into elements.

Workers import this module, so it imports nothing heavy.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mploader.cli.sample_images import LABEL_KEYS, PICTURE_KEYS, find_picture, kind_of, label_number
from mploader.errors import SampleError
from mploader.images import Compose, RandomFlip, RandomResizedCrop, apply_to
from mploader.sources import ImageFolder, Source

SCALE = (0.3, 1.0)
"""Smallest and largest share of a picture that a crop takes: varied, and large enough to show what its class is."""
LABELS_READ = 500
"""How many labels are read to learn how many classes shards hold."""


def picture_and_label(sample: Any) -> tuple[bytes, int]:
    """Finds the encoded picture and the label in a sample of any of the sources.

    Raises:
        SampleError: it has no picture, or no whole number from 0 as a label.
    """
    picture, label = find_picture(sample)
    if not isinstance(picture, bytes) or label is None:
        raise SampleError(
            f"the demo finds no picture with a label in {kind_of(sample)}: expected a picture in one of "
            f"{', '.join(PICTURE_KEYS)}, and a number in one of {', '.join(LABEL_KEYS)}"
        )
    number = label_number(label)
    if number is None or number < 0:
        raise SampleError(f"the label is {label!r}: expected a whole number from 0")
    return picture, number


def count_classes(source: Source) -> int:
    """How many classes there are: those of an image folder, or 1 + the largest of some hundred labels of shards.

    Raises:
        SampleError: none of these labels can be read.
    """
    if isinstance(source, ImageFolder):
        return len(source.class_names)
    indices = np.unique(np.linspace(0, len(source) - 1, LABELS_READ).astype(np.int64))
    labels, bad = [], []
    for index in indices.tolist():
        try:
            labels.append(picture_and_label(source[index])[1])
        except SampleError as error:  # the loader replaces it and reports it
            bad.append(error)
    if not labels:
        raise SampleError(f"the demo can use none of the {len(bad)} samples that it tried. The first: {bad[0]}")
    return 1 + max(labels)


@dataclass(frozen=True)
class Augment:
    """The demo's transform: a sample to (picture, label), the picture a random crop of size x size pixels.

    Attributes:
        size: height and width of the crop, in pixels.
        classes: number of classes; every label is below it.
    """

    size: int
    classes: int

    def __call__(self, sample: Any, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], int]:
        """Returns uint8 (size, size, 3) and the label."""
        picture, label = picture_and_label(sample)
        if label >= self.classes:
            raise SampleError(f"the label is {label}: expected one below {self.classes}, the classes that were found")
        crop = apply_to(0, Compose([RandomResizedCrop(self.size, self.size, scale=SCALE), RandomFlip()]))
        element: tuple[npt.NDArray[np.uint8], int] = crop((picture, label), rng)
        return element


def plain_elements(
    source: Source | Sequence[Any], order: Sequence[int], augment: Augment, seed: int
) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
    """The same elements from a plain Python generator with Pillow. Leaves out samples that it cannot read."""
    rng = np.random.default_rng(seed)
    crop = RandomResizedCrop(augment.size, augment.size, scale=SCALE)
    for index in order:
        try:
            data, label = picture_and_label(source[index])
            picture = Image.open(io.BytesIO(data)).convert("RGB")
        except (SampleError, OSError, SyntaxError, ValueError):  # errors of sources and Pillow on bad data
            continue
        box = crop.view(picture.height, picture.width, rng).box
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        picture = picture.resize((augment.size, augment.size), Image.Resampling.BILINEAR, corners)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        yield np.asarray(picture), label
