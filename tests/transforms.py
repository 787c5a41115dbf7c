"""Transforms and sources for the tests, in a module without TensorFlow: a worker imports the module of its function."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from mploader._util.trees import flatten

Element = dict[str, Any]


def noisy(sample: int, rng: np.random.Generator) -> Element:
    """An element that depends on the sample and on the random numbers of its sample."""
    return {"noise": rng.integers(0, 256, (5, 7, 3)).astype(np.uint8), "id": sample, "scale": rng.random()}


def identity(sample: Any) -> Any:
    return sample


def square(sample: int) -> tuple[np.ndarray[Any, Any], int]:
    return np.full((4, 4), sample, np.float32), sample


def large(sample: int) -> np.ndarray[Any, Any]:
    return np.full((64, 64, 4), sample % 256, np.uint8)


def loaded_modules(sample: int) -> bool:
    return any(name.split(".")[0] in ("tensorflow", "keras") for name in sys.modules)


def process_id(sample: int) -> int:
    return os.getpid()


class Squares:
    """A sequence that is not a list."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index * index

    def where(self, index: int) -> str:
        return f"squares.txt, line {index + 1} at byte {8 * index}"


def fail_at(*bad: int) -> Any:
    """A transform that raises on some samples."""

    def transform(sample: int) -> np.ndarray[Any, Any]:
        if sample in bad:
            raise ValueError(f"sample {sample} is rotten")
        return np.full((2,), sample)

    return transform


def ids(batches: Iterator[Any]) -> list[int]:
    """The ids in batches of :func:`noisy` or :func:`square`, in order."""
    found: list[int] = []
    for batch in batches:
        values = batch["id"] if isinstance(batch, dict) else batch[1]
        found += np.asarray(values).tolist()
    return found


def odd_labels_are_bad(sample: tuple[bytes, int]) -> int:
    if sample[1] % 2:
        raise ValueError(f"label {sample[1]} is odd: so the test says")
    return 0


def digest(batches: Iterable[Any]) -> str:
    """SHA-256 of a stream of batches: structure, dtypes, shapes, bytes and order."""
    stream = hashlib.sha256()
    for batch in batches:
        for leaf in flatten(batch):
            array = np.asarray(leaf)
            stream.update(f"{array.dtype}{array.shape}".encode())
            stream.update(array.tobytes())
    return stream.hexdigest()
