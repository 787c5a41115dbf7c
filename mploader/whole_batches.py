"""Sources whose samples are the batches of a ``PyDataset``: the workers' side of ``from_pydataset``."""

from __future__ import annotations

from typing import Any

import numpy as np


class WholeBatches:
    """A source whose samples are the batches of a ``PyDataset``."""

    yields_batches = True

    def __init__(self, dataset: Any, length: int) -> None:
        self.dataset = dataset
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int, /) -> Any:
        """A batch, in the structure in which Keras gives it to a model."""
        batch = self.dataset[index]
        if isinstance(batch, dict):
            return _arrays(batch)
        return tuple(map(_arrays, batch)) if isinstance(batch, (tuple, list)) else (_arrays(batch),)

    def describe(self, index: int) -> str:
        """Which batch of which class."""
        return f"{type(self.dataset).__name__}[{index}]"


class ChangingBatches(WholeBatches):
    """The same for a dataset that does something between epochs. Its methods are called in the trainer's process."""

    def begin_epoch(self) -> None:
        """An epoch starts; afterwards the dataset is sent to the workers as it is then."""
        begin = getattr(self.dataset, "on_epoch_begin", None)
        if begin is not None:
            begin()

    def end_epoch(self) -> None:
        """All batches of an epoch were delivered."""
        end = getattr(self.dataset, "on_epoch_end", None)
        if end is not None:
            end()


def _arrays(part: Any) -> Any:
    """Turns what Keras takes as a component into arrays: tensors, lists of arrays, lists of numbers."""
    if isinstance(part, dict):
        return {key: _arrays(value) for key, value in part.items()}
    if isinstance(part, tuple) or (isinstance(part, list) and any(hasattr(item, "shape") for item in part)):
        return tuple(map(_arrays, part))
    return part if part is None or isinstance(part, np.ndarray) else np.asarray(part)
