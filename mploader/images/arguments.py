"""Checks of arguments; messages state the expected and the given value."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from mploader.errors import ArgumentError


def side(name: str, value: Any) -> int:
    """Returns a number of pixels as an int of at least 1.

    Raises:
        ArgumentError: the value is not an integer, or below 1.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ArgumentError(f"{name}={value!r}: expected a number of pixels, an integer >= 1")
    return number


def interval(name: str, value: Any, most: float) -> tuple[float, float]:
    """Returns two floats with 0 < first <= second <= most.

    Raises:
        ArgumentError: the value is anything else.
    """
    try:
        low, high = (float(bound) for bound in value)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not 0 < low <= high <= most or high == float("inf"):
        bound = "" if most == float("inf") else f" <= {most:g}"
        raise ArgumentError(f"{name}={value!r}: expected (least, most) with 0 < least <= most{bound}")
    return low, high


def size_pair(value: Any) -> tuple[int, int]:
    """Returns a size as (height, width).

    Raises:
        ArgumentError: the value is not two numbers of pixels.
    """
    if not isinstance(value, Sequence) or len(value) != 2:
        raise ArgumentError(f"size={value!r}: expected (height, width)")
    return side("height", value[0]), side("width", value[1])


def check_out(out: Any, height: int, width: int) -> None:
    """Checks that a result of height x width can be written into ``out``.

    Raises:
        ArgumentError: ``out`` has another shape or dtype, is not C-contiguous, or is read-only.
    """
    if (
        not isinstance(out, np.ndarray)
        or out.dtype != np.uint8
        or out.shape != (height, width, 3)
        or not out.flags.c_contiguous
        or not out.flags.writeable
    ):
        given = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ArgumentError(f"out: expected a writable, C-contiguous uint8 array {(height, width, 3)}, got {given}")
