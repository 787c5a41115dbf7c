"""A component of a batch whose rows differ in length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # a Ragged can be used on systems without shared memory
    from mploader._util.shared_memory import Array


@dataclass(frozen=True, eq=False)
class Ragged:
    """A batch of arrays of different lengths: all rows in one array, and the offsets at which each array ends.

    The NumPy side of ``tf.RaggedTensor``: ``tf.RaggedTensor.from_row_splits(ragged.values, ragged.row_splits)``.

    Attributes:
        values: the rows of all elements, (rows, ...). A :class:`Ragged` of the next dimension if several dimensions
            vary.
        row_splits: int64 (elements + 1,); element i has the rows ``row_splits[i]:row_splits[i + 1]``.
    """

    values: Array | Ragged
    row_splits: Array

    @property
    def flat_values(self) -> Array:
        """The innermost values."""
        return self.values.flat_values if isinstance(self.values, Ragged) else self.values

    @property
    def nested_row_splits(self) -> tuple[Array, ...]:
        """The row splits of each varying dimension, outermost first."""
        inner = self.values.nested_row_splits if isinstance(self.values, Ragged) else ()
        return (self.row_splits, *inner)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the values."""
        dtype: np.dtype[Any] = self.flat_values.dtype
        return dtype

    def __len__(self) -> int:
        """The number of elements."""
        return len(self.row_splits) - 1

    def __getitem__(self, element: int) -> Array:
        """Returns one element as the array that the transform returned, a view.

        Raises:
            IndexError: ``element`` is out of range.
        """
        count = len(self)
        if not -count <= element < count:
            raise IndexError(f"element {element} of a batch of {count}")
        element %= count
        return _rows(self.values, int(self.row_splits[element]), int(self.row_splits[element + 1]))

    def __iter__(self) -> Iterator[Array]:
        """Goes through the elements."""
        return (self[element] for element in range(len(self)))

    def __repr__(self) -> str:
        return f"<Ragged: {len(self)} elements, {len(self.values)} rows, {self.dtype}>"


def _rows(values: Array | Ragged, start: int, stop: int) -> Array:
    if not isinstance(values, Ragged):
        return values[start:stop]
    inner = _rows(values.values, int(values.row_splits[start]), int(values.row_splits[stop]))
    width = len(inner) // (stop - start) if stop > start else 0
    return inner.reshape(stop - start, width, *inner.shape[1:])
