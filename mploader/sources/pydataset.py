"""Sources whose samples are the batches of a ``PyDataset``: the workers' side of ``from_pydataset``."""

from __future__ import annotations

from typing import Any

import numpy as np

from mploader.sources.fingerprint import hash_of

_ABOUT_WORKERS = frozenset({"_workers", "_use_multiprocessing", "_max_queue_size"})
"""Attributes of Keras's class that do not concern the data."""


class WholeBatches:
    """A source whose samples are the batches of a ``PyDataset``."""

    yields_batches = True

    def __init__(self, dataset: Any, length: int) -> None:
        self.dataset = dataset
        self._length = length
        self._fingerprint = _fingerprint_of(dataset)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int, /) -> Any:
        """Returns a batch, in the structure in which Keras passes it to a model."""
        batch = self.dataset[index]
        if isinstance(batch, dict):
            return _arrays(batch)
        return tuple(map(_arrays, batch)) if isinstance(batch, (tuple, list)) else (_arrays(batch),)

    def where(self, index: int) -> str:
        """Returns the class of the dataset and the index of the batch."""
        return f"{type(self.dataset).__name__}[{index}]"

    def fingerprint(self) -> str:
        """Hashes the class, and the arrays, lists, texts and numbers that the object held at the start.

        Data that its methods read from files, and objects of other classes, do not count.
        """
        return self._fingerprint


class ChangingBatches(WholeBatches):
    """A source for a dataset with methods for the start or end of epochs; these are called in the trainer."""

    def begin_epoch(self) -> None:
        """Called when an epoch starts; afterwards the dataset is sent to the workers."""
        begin = getattr(self.dataset, "on_epoch_begin", None)
        if begin is not None:
            begin()

    def end_epoch(self) -> None:
        """Called when all batches of an epoch were delivered."""
        end = getattr(self.dataset, "on_epoch_end", None)
        if end is not None:
            end()


def _fingerprint_of(dataset: Any) -> str:
    kind = type(dataset)
    held = {name: value for name, value in getattr(dataset, "__dict__", {}).items() if name not in _ABOUT_WORKERS}
    values = [value for _, value in sorted(held.items())]
    return f"class {hash_of(kind.__module__, kind.__qualname__)}, attributes {hash_of(sorted(held), *values)}"


def _arrays(part: Any) -> Any:
    """Converts components as Keras accepts them to arrays: tensors, lists of arrays, lists of numbers."""
    if isinstance(part, dict):
        return {key: _arrays(value) for key, value in part.items()}
    if isinstance(part, tuple) or (isinstance(part, list) and any(hasattr(item, "shape") for item in part)):
        return tuple(map(_arrays, part))
    return part if part is None or isinstance(part, np.ndarray) else np.asarray(part)
