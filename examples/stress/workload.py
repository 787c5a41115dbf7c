"""The source and the transform of the stress test.

A synthetic picture is a function of the sample index and of the random number that its transform draws, so the trainer
can compute each picture again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from mploader.images import Resize, apply_to

Image = npt.NDArray[np.uint8]

_KEYS = ("image/encoded", "image", "jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class Indexed:
    """A source of pairs (index, sample).

    Attributes:
        source: the source of the samples; None for synthetic ones.
        length: number of samples.
    """

    source: Any
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, None if self.source is None else self.source[index]


@dataclass(frozen=True)
class Work:
    """The transform.

    Attributes:
        size: height and width of the pictures, in pixels.
        bad_rate: share of the samples that are bad, from 0 to 1. Whether a sample is bad is a function of its index.
    """

    size: int
    bad_rate: float

    def is_bad(self, index: int) -> bool:
        """Whether a sample is one of the bad ones."""
        return int(google_crc32c.value(b"bad %d" % index)) < self.bad_rate * 2**32

    def __call__(self, sample: tuple[int, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Makes an element: picture, sample index, the number drawn, and the checksum of the picture."""
        index, record = sample
        if self.is_bad(index):
            raise ValueError(f"sample {index} is bad on purpose")
        draw = int(rng.integers(2**32))
        image = synthetic(index, draw, self.size) if record is None else self._decode(record, rng)
        return {"image": image, "index": index, "draw": draw, "checksum": google_crc32c.value(image.tobytes())}

    def _decode(self, record: Any, rng: np.random.Generator) -> Image:
        key = 0 if isinstance(record, tuple) else next(key for key in _KEYS if key in record)
        image: Image = apply_to(key, Resize(self.size, self.size))(record, rng)[key]
        return np.ascontiguousarray(image)


def synthetic(index: int, draw: int, size: int) -> Image:
    """The picture of a synthetic sample: uint8 (size, size, 3)."""
    row = (np.arange(size * 3, dtype=np.uint32) * (2 * (index % 1000) + 1) + draw).astype(np.uint8)
    column = (np.arange(size, dtype=np.uint32) * (draw % 251 + 1)).astype(np.uint8)
    image: Image = (column[:, np.newaxis] ^ row).reshape(size, size, 3)
    return image
