"""Checks that contenders do the same work, by their first batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

Images = np.ndarray[Any, Any]


class First(NamedTuple):
    """The first batches of a contender, to check that all contenders do the same work.

    Attributes:
        images: (images, height, width, 3).
        labels: (images,); empty for a contender without labels.
    """

    images: Images
    labels: np.ndarray[Any, Any] = np.empty(0, np.int64)

    @classmethod
    def of(cls, batches: Iterable[Any]) -> First:
        """Concatenates batches ``(images, labels)``."""
        images, labels = (np.concatenate([np.array(part) for part in parts]) for parts in zip(*batches, strict=True))
        return cls(images, labels)


Check = Callable[[First, First], str]
"""Compares the first batches of a contender with those of the reference; returns a remark."""


def same_pixels(tolerance: float) -> Check:
    """Expects the same shape and dtype, the same images with the same labels in any order, and pixels that differ by a
    mean of at most ``tolerance``, of 255."""

    def check(first: First, expected: First) -> str:
        images, reference = first.images, expected.images
        if images.shape != reference.shape or images.dtype != reference.dtype:
            return f"NOT EQUAL WORK: {images.shape} {images.dtype}"
        matches = _matches(images, reference)
        difference = float(np.abs(images.astype(np.int16) - reference[matches]).mean())
        if difference > tolerance:
            return f"NOT EQUAL WORK: pixels differ by a mean of {difference:.1f}"
        if len(set(matches)) < len(set(_matches(reference, reference))):
            return "NOT EQUAL WORK: one image occurs twice, another never"
        if len(first.labels) and not np.array_equal(first.labels, expected.labels[matches]):
            return "NOT EQUAL WORK: the labels differ"
        return f"pixels +-{difference:.1f}"

    return check


def _matches(images: Images, expected: Images) -> Any:
    """The offset of each image among the expected ones, by a few of its pixels."""
    thumbnails = expected[:, ::16, ::16].astype(np.int16)
    return [int(np.abs(thumbnails - image[::16, ::16]).mean(axis=(1, 2, 3)).argmin()) for image in images]


def same_brightness(tolerance: float) -> Check:
    """For random work. Expects the same shape, dtype and labels in any order, and a mean within ``tolerance``."""

    def check(first: First, expected: First) -> str:
        images, reference = first.images, expected.images
        if images.shape != reference.shape or images.dtype != reference.dtype:
            return f"NOT EQUAL WORK: {images.shape} {images.dtype}"
        if len(first.labels) and sorted(first.labels) != sorted(expected.labels):
            return "NOT EQUAL WORK: the labels differ"
        difference = abs(float(images.mean()) - float(reference.mean()))
        if difference > tolerance:
            return f"NOT EQUAL WORK: mean brightness differs by {difference:.1f}"
        return f"mean +-{difference:.1f}"

    return check
