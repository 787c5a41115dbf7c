"""Draws batches as the model gets them: the library behind ``mploader show``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from mploader._util.trees import flatten
from mploader.errors import ArgumentError

CELL = 160
"""Height and width of the largest picture in the grid, in pixels; larger ones are shrunk."""
CAPTION = 14
GAP = 6

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Labelled:
    """One picture of the grid.

    Attributes:
        picture: uint8 (height, width, 3).
        label: text below it.
    """

    picture: Picture
    label: str


def draw(batches: Sequence[Any], class_names: Sequence[str] = (), columns: int = 8) -> Image.Image:
    """Draws the pictures of some batches in a grid, each with its label; a line separates batches.

    Args:
        batches: structures of arrays, as a loader yields them. The first component of three dimensions (without the
            batch's) and 1 or 3 channels is the picture: uint8, or floats in [0, 1], in [-1, 1] or normalised. The first
            component that is one whole number for each sample is the label.
        class_names: name of each label.
        columns: pictures in a row.

    Raises:
        ArgumentError: no component is a picture, or there are no batches or columns.
    """
    if columns < 1 or not batches:
        raise ArgumentError(f"{len(batches)} batches in {columns} columns: expected at least one of each")
    rows: list[list[Labelled]] = []
    ends: list[int] = []
    for batch in batches:
        pictures = _labelled(batch, class_names)
        rows += [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
        ends.append(len(rows))
    width = columns * (CELL + GAP) + GAP
    height = len(rows) * (CELL + CAPTION + GAP) + GAP
    page = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(page)
    for row, pictures in enumerate(rows):
        top = GAP + row * (CELL + CAPTION + GAP)
        if row in ends:
            pen.line((0, top - GAP // 2, width, top - GAP // 2), fill=(160, 160, 160))
        for column, one in enumerate(pictures):
            _draw_one(page, pen, one, GAP + column * (CELL + GAP), top)
    return page


def save(page: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes a drawn grid as a PNG.

    Raises:
        ArgumentError: the file cannot be written.
    """
    try:
        page.save(path, format="PNG")
    except OSError as error:
        raise ArgumentError(f"cannot write the picture to {os.fspath(path)!r}: {error}") from error


def _draw_one(page: Image.Image, pen: ImageDraw.ImageDraw, one: Labelled, left: int, top: int) -> None:
    image = Image.fromarray(one.picture)
    image.thumbnail((CELL, CELL))
    page.paste(image, (left + (CELL - image.width) // 2, top + (CELL - image.height) // 2))
    label = one.label
    while label and pen.textlength(label) > CELL:
        label = label[:-2] + "…" if len(label) > 2 else ""
    pen.text((left, top + CELL + 1), label, fill="black")


def _labelled(batch: Any, class_names: Sequence[str]) -> list[Labelled]:
    leaves = [leaf for leaf in flatten(batch) if isinstance(leaf, np.ndarray)]
    pictures = next((leaf for leaf in leaves if leaf.ndim == 4 and leaf.shape[-1] in (1, 3)), None)
    if pictures is None:
        shapes = ", ".join(f"{leaf.dtype} {leaf.shape}" for leaf in leaves)
        raise ArgumentError(f"no component is a batch of pictures (batch, height, width, 1 or 3): got {shapes}")
    labels = next((leaf for leaf in leaves if leaf.ndim == 1 and leaf.dtype.kind in "iu"), None)
    finite = pictures[np.isfinite(pictures)]  # one NaN must not hide the picture that shows it
    low, high = float(finite.min(initial=0)), float(finite.max(initial=0))
    return [
        Labelled(_as_bytes(picture, low, high), "" if labels is None else _name(int(labels[offset]), class_names))
        for offset, picture in enumerate(pictures)
    ]


def _as_bytes(picture: npt.NDArray[Any], low: float, high: float) -> Picture:
    """A picture as uint8 RGB. Floats are scaled from the range that the batch seems to have; NaN is black."""
    if picture.dtype != np.uint8:
        if low >= 0 and high > 1:
            low, high = 0.0, max(255.0, high)
        elif low >= -1 and high <= 1:
            low, high = (0.0, 1.0) if low >= 0 else (-1.0, 1.0)
        stretched = (picture.astype(np.float64) - low) / (high - low)
        picture = np.rint(np.clip(np.nan_to_num(stretched), 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))


def _name(label: int, class_names: Sequence[str]) -> str:
    return f"{label} {class_names[label]}" if 0 <= label < len(class_names) else str(label)


def columns_for(count: int) -> int:
    """How many columns show batches of ``count`` pictures in full rows; at most 8 if no number does."""
    return next((columns for columns in range(8, 3, -1) if count % columns == 0), min(8, count))
