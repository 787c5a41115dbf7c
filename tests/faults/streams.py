"""The data that some of the fault tests read, and how they read it.

Workers import this module, and start the sooner the less it imports.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mploader import Loader

SAMPLES = 512
BATCH = 16
BATCHES = SAMPLES // BATCH


class Numbered:
    """Samples that prove themselves: sample i is int64 (2,), i and a word that can be computed from i alone."""

    def __init__(self, num_samples: int = SAMPLES) -> None:
        self._num_samples = num_samples

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array([index, word(index)], np.int64)


def word(index: int) -> int:
    """The second number of sample ``index``."""
    return (index * 0x9E37_79B9_7F4A_7C15 ^ 0x5851_F42D) % 2**62


class Faulty(Numbered):
    """The same with faults: by sample number, an exception to raise or a function to call.

    Args:
        faults: what happens at which sample.
        times: how often each fault strikes in one process; None: always.
        num_samples: how many samples there are.
    """

    def __init__(
        self,
        faults: Mapping[int, BaseException | Callable[[], Any]],
        times: int | None = None,
        num_samples: int = SAMPLES,
    ) -> None:
        super().__init__(num_samples)
        self._faults = dict(faults)
        self._times = times
        self._struck: Counter[int] = Counter()

    def __getitem__(self, index: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        fault = self._faults.get(index)
        if fault is not None and (self._times is None or self._struck[index] < self._times):
            self._struck[index] += 1
            if isinstance(fault, BaseException):
                raise fault
            fault()
        return super().__getitem__(index)

    def where(self, index: int) -> str:
        return f"row {index} of a table"


def element(sample: Any, rng: np.random.Generator) -> dict[str, Any]:
    """A transform with random numbers, so that equal streams prove equal seeds."""
    time.sleep(0.001)
    return {"sample": sample, "noise": rng.random(4)}


def plain(sample: Any) -> dict[str, Any]:
    """A transform without."""
    return {"sample": sample}


def make_loader(source: Any = None, transform: Any = element, **options: Any) -> Loader:
    """The loader of these tests: two workers, shuffled, 32 batches of 16 samples."""
    from mploader import Loader

    defaults: dict[str, Any] = {"batch_size": BATCH, "shuffle": True, "seed": 3, "num_workers": 2}
    return Loader(Numbered() if source is None else source, transform, **{**defaults, **options})


@dataclass(frozen=True)
class Epoch:
    """What was read of one epoch."""

    digest: str
    """SHA-256 of all arrays, in hexadecimal."""
    missing: dict[int, int]
    """Samples that did not come exactly once: how often they came."""
    longest_pause_s: float


def read(batches: Iterable[Any], at: dict[int, Callable[[], Any]] | None = None) -> Epoch:
    """Reads an epoch; after so many batches as the keys of ``at`` say, calls the function there."""
    total, seen, longest_s = hashlib.sha256(), Counter[int](), 0.0
    before = time.monotonic()
    for number, batch in enumerate(batches, start=1):
        longest_s = max(longest_s, time.monotonic() - before)
        for leaf in batch.values():
            total.update(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
        for index, proof in batch["sample"].tolist():
            assert proof == word(index), f"sample {index} came with the word {proof}"
            seen[index] += 1
        if at and number in at:
            at[number]()
        before = time.monotonic()
    missing = {index: seen[index] for index in {*range(SAMPLES), *seen} if seen[index] != 1}
    return Epoch(total.hexdigest(), missing, longest_s)
