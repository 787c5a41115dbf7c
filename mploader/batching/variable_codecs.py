"""Codecs for components whose shape varies from sample to sample: padded, ragged, or apart.

Each collects the elements of a batch, measures them, and writes each into the slot once; nothing is assembled beside
the slot. Equal to ``tf.data``'s ``padded_batch`` and ``ragged_batch`` element for element.

It is longer than 300 lines by a few: the three codecs share how they measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mploader._util.shared_memory import Array, align
from mploader.batching.codecs import TEXT_DTYPES, Elements, measure_texts, read_texts, texts_of, write_texts
from mploader.batching.ragged import Ragged
from mploader.batching.spec import STRING, ArraySpec, Pad
from mploader.errors import SpecError

_INT64 = np.dtype(np.int64)


@dataclass(frozen=True)
class Padded:
    """Elements of different shapes, padded to the largest of the batch, to a given shape or to a multiple.

    Attributes:
        spec: the element's spec; None for a dimension that is padded.
        pad: the padding value and sizes. The sizes in its shape are the sizes in the batch.
    """

    spec: ArraySpec
    pad: Pad

    def batch_spec(self, batch: int | None) -> ArraySpec:
        """See :class:`~mploader.batching.codecs.Codec`."""
        return ArraySpec((batch, *(self.pad.shape or self.spec.shape)), self.spec.dtype)

    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """See :class:`~mploader.batching.codecs.Codec`."""
        return (self.spec.dtype,)

    def accept(self, leaf: Any, name: str) -> Any:
        """See :class:`~mploader.batching.codecs.Codec`."""
        return _check_room(np.array(leaf, self.spec.dtype), self.pad, name)

    def measure(self, values: Elements) -> list[tuple[int, ...]]:
        """See :class:`~mploader.batching.codecs.Codec`."""
        return [(len(values), *padded_sizes(values, self.spec, self.pad))]

    def write(self, arrays: Sequence[Array], values: Elements) -> None:
        """See :class:`~mploader.batching.codecs.Codec`."""
        for room, value in zip(arrays[0], values, strict=True):
            write_padded(room, value, self.pad.value)

    def read(self, arrays: Sequence[Array]) -> Any:
        """See :class:`~mploader.batching.codecs.Codec`."""
        return arrays[0]


@dataclass(frozen=True)
class PaddedStrings:
    """Arrays of bytes of different shapes, padded with ``pad.value``."""

    spec: ArraySpec
    pad: Pad

    def batch_spec(self, batch: int | None) -> ArraySpec:
        """See :class:`~mploader.batching.codecs.Codec`."""
        return ArraySpec((batch, *(self.pad.shape or self.spec.shape)), STRING)

    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """See :class:`~mploader.batching.codecs.Codec`."""
        return (_INT64, *TEXT_DTYPES)

    def accept(self, leaf: Any, name: str) -> Any:
        """See :class:`~mploader.batching.codecs.Codec`."""
        return _check_room(_object_array(leaf), self.pad, name)

    def measure(self, values: Elements) -> list[tuple[int, ...]]:
        """See :class:`~mploader.batching.codecs.Codec`."""
        return [(1 + len(self.spec.shape),), *measure_texts(self._texts(values)[1])]

    def write(self, arrays: Sequence[Array], values: Elements) -> None:
        """See :class:`~mploader.batching.codecs.Codec`."""
        sizes, texts = self._texts(values)
        arrays[0][:] = (len(values), *sizes)
        write_texts(arrays[1:], texts)

    def read(self, arrays: Sequence[Array]) -> Any:
        """See :class:`~mploader.batching.codecs.Codec`."""
        return read_texts(arrays[1:]).reshape(arrays[0].tolist())

    def _texts(self, values: Elements) -> tuple[tuple[int, ...], list[bytes]]:
        sizes = padded_sizes(values, self.spec, self.pad)
        texts: list[bytes] = []
        for value in values:
            room = np.empty(sizes, object)
            write_padded(room, value, self.pad.value)
            texts += room.ravel().tolist()
        return sizes, texts


@dataclass(frozen=True)
class RaggedRows:
    """Elements whose first ``ragged_rank`` dimensions vary: their rows one after another, read as :class:`Ragged`."""

    spec: ArraySpec
    ragged_rank: int = 1

    def batch_spec(self, batch: int | None) -> ArraySpec:
        """See :class:`~mploader.batching.codecs.Codec`."""
        return ArraySpec((batch, *self.spec.shape), self.spec.dtype, self.ragged_rank)

    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """See :class:`~mploader.batching.codecs.Codec`."""
        values = TEXT_DTYPES if self.spec.is_string else (self.spec.dtype,)
        return (*[_INT64] * self.ragged_rank, *values)

    def accept(self, leaf: Any, name: str) -> Any:
        """See :class:`~mploader.batching.codecs.Codec`."""
        return _object_array(leaf) if self.spec.is_string else np.array(leaf, self.spec.dtype)

    def measure(self, values: Elements) -> list[tuple[int, ...]]:
        """See :class:`~mploader.batching.codecs.Codec`."""
        rows = [
            sum(int(np.prod(value.shape[:depth], dtype=np.int64)) for value in values)
            for depth in range(self.ragged_rank + 1)
        ]
        splits = [(count + 1,) for count in rows[:-1]]
        if self.spec.is_string:
            return [*splits, *measure_texts(_all_texts(values))]
        return [*splits, (rows[-1], *self._inner)]

    def write(self, arrays: Sequence[Array], values: Elements) -> None:
        """See :class:`~mploader.batching.codecs.Codec`."""
        for depth in range(self.ragged_rank):
            repeats = [int(np.prod(value.shape[:depth], dtype=np.int64)) for value in values]
            arrays[depth][0] = 0
            np.cumsum(np.repeat([value.shape[depth] for value in values], repeats), out=arrays[depth][1:])
        if self.spec.is_string:
            write_texts(arrays[self.ragged_rank :], _all_texts(values))
            return
        start = 0
        for value in values:
            rows = value.reshape(int(np.prod(value.shape[: self.ragged_rank], dtype=np.int64)), *self._inner)
            arrays[-1][start : start + len(rows)] = rows
            start += len(rows)

    def read(self, arrays: Sequence[Array]) -> Any:
        """See :class:`~mploader.batching.codecs.Codec`."""
        values: Array | Ragged = arrays[-1]
        if self.spec.is_string:
            texts = read_texts(arrays[self.ragged_rank :])
            values = texts.reshape(int(arrays[self.ragged_rank - 1][-1]), *self._inner)
        for splits in reversed(arrays[: self.ragged_rank]):
            values = Ragged(values, splits)
        return values

    @property
    def _inner(self) -> tuple[int, ...]:
        """The sizes that all elements share."""
        return tuple(size for size in self.spec.shape[self.ragged_rank :] if size is not None)


@dataclass(frozen=True)
class Apart:
    """Separate elements, for a loader without a batch size: each in its own shape, or padded by itself."""

    spec: ArraySpec
    pad: Pad

    def batch_spec(self, batch: int | None) -> ArraySpec:
        """See :class:`~mploader.batching.codecs.Codec`."""
        return ArraySpec((batch, *(self.pad.shape or self.spec.shape)), self.spec.dtype)

    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """See :class:`~mploader.batching.codecs.Codec`."""
        return (_INT64, *(TEXT_DTYPES if self.spec.is_string else (np.dtype(np.uint8),)))

    def accept(self, leaf: Any, name: str) -> Any:
        """See :class:`~mploader.batching.codecs.Codec`."""
        value = _object_array(leaf) if self.spec.is_string else np.array(leaf, self.spec.dtype)
        _check_room(value, self.pad, name)
        sizes = padded_sizes([value], self.spec, self.pad)
        if sizes == value.shape:
            return value
        room = np.empty(sizes, value.dtype)
        write_padded(room, value, self.pad.value)
        return room

    def measure(self, values: Elements) -> list[tuple[int, ...]]:
        """See :class:`~mploader.batching.codecs.Codec`."""
        shapes = (len(values), len(self.spec.shape))
        if self.spec.is_string:
            return [shapes, *measure_texts(_all_texts(values))]
        return [shapes, (sum(align(value.nbytes) for value in values),)]

    def write(self, arrays: Sequence[Array], values: Elements) -> None:
        """See :class:`~mploader.batching.codecs.Codec`."""
        for row, value in zip(arrays[0], values, strict=True):
            row[:] = value.shape
        if self.spec.is_string:
            write_texts(arrays[1:], _all_texts(values))
            return
        for part, value in zip(self.read(arrays), values, strict=True):
            part[...] = value

    def read(self, arrays: Sequence[Array]) -> list[Array]:
        """See :class:`~mploader.batching.codecs.Codec`."""
        is_string = self.spec.is_string
        data = read_texts(arrays[1:]) if is_string else arrays[1]
        parts, start = [], 0
        for shape in arrays[0].tolist():
            size = int(np.prod(shape, dtype=np.int64)) * (1 if is_string else self.spec.dtype.itemsize)
            part = data[start : start + size]
            parts.append((part if is_string else part.view(self.spec.dtype)).reshape(shape))
            start += size if is_string else align(size)
        return parts


@dataclass(frozen=True)
class Whole:
    """A batch that the source has made: the only element of its slot, without another batch dimension.

    Attributes:
        spec: the batch's shape, None for a dimension that varies.
    """

    spec: ArraySpec

    def batch_spec(self, batch: int | None) -> ArraySpec:
        """See :class:`~mploader.batching.codecs.Codec`."""
        return self.spec

    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """See :class:`~mploader.batching.codecs.Codec`."""
        return (_INT64, *TEXT_DTYPES) if self.spec.is_string else (self.spec.dtype,)

    def accept(self, leaf: Any, name: str) -> Any:
        """See :class:`~mploader.batching.codecs.Codec`; no copy: it is written before another is made."""
        return _object_array(leaf) if self.spec.is_string else np.asarray(leaf, self.spec.dtype)

    def measure(self, values: Elements) -> list[tuple[int, ...]]:
        """See :class:`~mploader.batching.codecs.Codec`."""
        if self.spec.is_string:
            return [(len(self.spec.shape),), *measure_texts(_all_texts(values))]
        return [values[0].shape]

    def write(self, arrays: Sequence[Array], values: Elements) -> None:
        """See :class:`~mploader.batching.codecs.Codec`."""
        if self.spec.is_string:
            arrays[0][:] = values[0].shape
            write_texts(arrays[1:], _all_texts(values))
        else:
            arrays[0][...] = values[0]

    def read(self, arrays: Sequence[Array]) -> Any:
        """See :class:`~mploader.batching.codecs.Codec`."""
        return read_texts(arrays[1:]).reshape(arrays[0].tolist()) if self.spec.is_string else arrays[0]


def padded_sizes(values: Elements, spec: ArraySpec, pad: Pad) -> tuple[int, ...]:
    """Returns the sizes that elements are padded to: the given ones, or those of the largest element, rounded up."""
    sizes = []
    for axis, given in enumerate(pad.shape or spec.shape):
        largest = max((value.shape[axis] for value in values), default=0)
        sizes.append(given if given is not None else align(largest, pad.multiple_of))
    return tuple(sizes)


def write_padded(room: Array, value: Array, filling: Any) -> None:
    """Writes ``value`` to the first corner of ``room`` and ``filling`` to the rest; nothing is written twice."""
    corner = tuple(slice(0, size) for size in value.shape)
    room[corner] = value
    for axis, size in enumerate(value.shape):
        if size < room.shape[axis]:
            room[(*corner[:axis], slice(size, None))] = filling


def _check_room(value: Array, pad: Pad, name: str) -> Array:
    if pad.shape is not None and any(
        largest is not None and size > largest for size, largest in zip(value.shape, pad.shape, strict=True)
    ):
        raise SpecError(
            f"{name} has shape {value.shape}, which exceeds Pad(shape={pad.shape}); raise Pad(shape=), or cut the "
            "element in the transform"
        )
    return value


def _object_array(leaf: Any) -> Array:
    """A copy of an array of strings as an object array of ``bytes``."""
    shape = () if isinstance(leaf, (bytes, str)) else np.shape(leaf)
    texts = np.empty(int(np.prod(shape, dtype=np.int64)), object)
    for index, text in enumerate(texts_of(leaf)):
        texts[index] = text
    return texts.reshape(shape)


def _all_texts(values: Elements) -> list[bytes]:
    return [text for value in values for text in value.ravel().tolist()]
