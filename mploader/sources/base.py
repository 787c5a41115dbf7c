"""What every source of this package needs: checks of an index, packed file names, the state of a file."""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
PathLike = str | os.PathLike[str]
Pattern = PathLike | Sequence[PathLike]


@dataclass(frozen=True)
class FileState:
    """Size and time of change of a file, by which a change is noticed."""

    size: int  # bytes
    mtime_ns: int  # of a remote file: a hash of its version


def checked_index(index: int, length: int) -> int:
    """Returns a sample index as a number from 0; negative ones count from the end.

    Raises:
        IndexError: it is outside a source of `length` samples.
    """
    number = operator.index(index)
    from_start = number + length if number < 0 else number
    if not 0 <= from_start < length:
        raise IndexError(f"sample {number} of a source of {length} samples")
    return from_start


class PackedStrings(Sequence[str]):
    """File names in two arrays, of bytes and of offsets, instead of one object per name."""

    __slots__ = ("_bytes", "_offsets")

    def __init__(self, blob: npt.NDArray[np.uint8], offsets: Int64Array):
        self._bytes = blob
        self._offsets = offsets

    @classmethod
    def of(cls, strings: Iterable[str]) -> PackedStrings:
        """Packs file names, including undecodable ones."""
        encoded = [os.fsencode(string) for string in strings]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    @property
    def blob(self) -> npt.NDArray[np.uint8]:
        """The bytes of all names, one after the other, uint8."""
        return self._bytes

    @property
    def offsets(self) -> Int64Array:
        """Where each name starts in `blob`, and the length of `blob`. int64, shape (len + 1,)."""
        return self._offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int, /) -> str: ...

    @overload
    def __getitem__(self, index: slice, /) -> list[str]: ...

    def __getitem__(self, index: int | slice, /) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = checked_index(index, len(self))
        return os.fsdecode(self._bytes[self._offsets[row] : self._offsets[row + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        blob, offsets = self._bytes.tobytes(), self._offsets.tolist()
        for start, end in itertools.pairwise(offsets):
            yield os.fsdecode(blob[start:end])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackedStrings):
            return NotImplemented
        return np.array_equal(self._offsets, other._offsets) and np.array_equal(self._bytes, other._bytes)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<PackedStrings of {len(self)} names>"
