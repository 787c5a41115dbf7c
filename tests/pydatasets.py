"""Datasets with the methods of a ``PyDataset``, without Keras, so that workers start quickly in the tests."""

from __future__ import annotations

import os
from typing import Any

import numpy as np


class Plain:
    """23 samples in batches of 4, as in Keras's documentation."""

    def __init__(self) -> None:
        super().__init__()
        self.x = np.arange(23 * 3, dtype=np.float32).reshape(23, 3)
        self.y = np.arange(23)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        low, high = 4 * index, min(4 * index + 4, 23)
        return self.x[low:high], self.y[low:high]


class Structured(Plain):
    """Nested inputs, lists, strings, and sequences padded to the longest of their batch."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        tokens = np.full((len(x), 3 + index), index, np.int16)
        return {"x": x, "tokens": tokens}, [y, y * 0.5], np.ones(len(y), np.float32)


class AsDict(Plain):
    """A dict, with text."""

    def __getitem__(self, index: int) -> Any:
        x, _ = super().__getitem__(index)
        return {"x": x, "text": np.array([f"row {index}.{place}" for place in range(len(x))])}


class Single(Plain):
    """Only inputs, for predict()."""

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)[0]


class Reshuffling(Plain):
    """Shuffles with the global generator of NumPy, of which workers know nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.order = np.arange(23)
        self.calls: list[str] = []
        self.difficulty = 0

    def on_epoch_begin(self) -> None:
        self.calls.append("begin")

    def on_epoch_end(self) -> None:
        self.calls.append("end")
        self.difficulty += 1
        np.random.shuffle(self.order)

    def __getitem__(self, index: int) -> Any:
        chosen = self.order[4 * index : 4 * index + 4]
        return self.x[chosen] + 1000 * self.difficulty, self.y[chosen]


class Large(Reshuffling):
    """With an array that must not be sent again at each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.ballast = np.zeros(40_000_000, np.uint8)


class Failing(Plain):
    """Raises in one batch."""

    def __getitem__(self, index: int) -> Any:
        if index == 3:
            raise KeyError("no such picture")
        return super().__getitem__(index)


class WithPid(Plain):
    """Says which process made the batch."""

    def __getitem__(self, index: int) -> Any:
        x, _ = super().__getitem__(index)
        return x, np.full(len(x), os.getpid())


class Empty(Plain):
    """Has no batches."""

    def __len__(self) -> int:
        return 0


class Infinite(Plain):
    """Has no end."""

    @property
    def num_batches(self) -> None:
        return None


class Uneven(Plain):
    """Its fourth batch has another shape than those that are looked at."""

    def __getitem__(self, index: int) -> Any:
        return (np.zeros((4, 3 if index != 3 else 2)),)
