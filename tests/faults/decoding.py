"""Transforms of bad data, in a module that workers import without pytest."""

from __future__ import annotations

from typing import Any

import numpy as np

from mploader.images import Resize


def text_of(sample: dict[str, Any]) -> bytes:
    """The text of a sample of a tar shard."""
    data: bytes = sample["txt"]
    return data


def shape_of(sample: tuple[bytes, int]) -> np.ndarray[Any, Any]:
    """The shape of a decoded picture: three numbers, whatever the picture is."""
    return np.array(Resize(30, 40)(sample[0], np.random.default_rng(0)).shape)
