"""Samples of different shapes for the tests, in a module that workers import without TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

NUMBERS = list(range(61))
LENGTHS = np.random.default_rng(7).integers(0, 30, len(NUMBERS))


def element(number: int) -> dict[str, Any]:
    """Returns components whose shapes depend on ``LENGTHS[number]``."""
    length = int(LENGTHS[number])
    return {
        "row": np.arange(length, dtype=np.float32) + number,
        "boxes": np.full((length // 2, 4), number, np.int16),
        "image": np.full((1 + length % 5, 1 + length % 3, 3), number, np.uint8),
        "words": np.array([b"w%d" % place for place in range(length % 4)], object),
        "label": number,
        "name": b"n%d" % number,
        "fixed": np.full((2, 3), number, np.float16),
    }


def row(number: int) -> Any:
    """Returns the component of an element that is a sequence."""
    return element(number)["row"]


def with_ballast(number: int) -> Any:
    """An element for a model of three inputs, with a quarter of a mebibyte beside them."""
    return {"x": np.zeros(3, np.float32), "ballast": np.full(2**18, number, np.uint8)}, np.float32(0)


def lies_in_a_slot(buffer: Any) -> bool:
    """Whether the memory of an array or a tensor is that of a loader's shared file."""
    address = np.asarray(memoryview(buffer)).ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(number, 16) for number in line.split()[0].split("-"))
        if start <= address < stop:
            return "memfd:mploader" in line
    return False
