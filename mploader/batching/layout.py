"""Where the components of a batch lie in a slot.

A slot begins with a header: the number of samples, then for every stored array its offset and shape. The arrays
follow, each at a multiple of 64 bytes, because that is what TensorFlow needs to adopt memory without copying it.
Components of one shape come first. Their offsets do not depend on the batch, so each element is written to its place as
soon as it is made. Components that vary come behind them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mploader._util.shared_memory import Array, align
from mploader._util.trees import flatten, pack_as
from mploader.batching.codecs import Codec, Fixed

MAX_RANK = 8
FIRST_ELEMENT = "the first element"
DECLARED = "element_spec="
_HEADER_INTS_PER_ARRAY = 2 + MAX_RANK  # offset, rank, shape


@dataclass(frozen=True)
class BatchLayout:
    """Where the components of a batch lie in a slot.

    Attributes:
        structure: an element with one codec in place of each component.
        capacity: samples in a full batch.
        model: what elements have to be like, in the words of messages.
    """

    structure: Any
    capacity: int
    model: str = FIRST_ELEMENT

    @cached_property
    def codecs(self) -> list[Codec]:
        """The codecs in the order of the components."""
        return flatten(self.structure)

    @property
    def is_fixed(self) -> bool:
        """Whether the batch's size is known before its samples are."""
        return all(isinstance(codec, Fixed) for codec in self.codecs)

    @cached_property
    def header_bytes(self) -> int:
        """Size of a slot's header, a multiple of 64."""
        arrays = sum(len(codec.dtypes()) for codec in self.codecs)
        return align(8 * (1 + arrays * _HEADER_INTS_PER_ARRAY))

    @property
    def fixed_bytes(self) -> int:
        """Bytes of the header and the components of one shape, for a full batch; what varies comes behind them."""
        return self._fixed_offsets()[1]

    def fixed_places(self, memory: Array) -> list[Array | None]:
        """The array for a full batch of each component of one shape, in ``memory`` (1-d uint8); None for others."""
        offsets, _ = self._fixed_offsets()
        return [
            _view(memory, offsets[place], codec.spec.dtype, codec.shape(self.capacity))
            if isinstance(codec, Fixed) else None
            for place, codec in enumerate(self.codecs)
        ]  # fmt: skip

    def used_bytes(self, shapes: list[list[tuple[int, ...]]]) -> int:
        """Bytes in use by a batch whose stored arrays have these shapes, for each component."""
        return self._place(shapes)[1]

    def _fixed_offsets(self) -> tuple[dict[int, int], int]:
        """The offset of each component of one shape, which does not depend on the batch, and where the last ends."""
        offsets, end = {}, self.header_bytes
        for place, codec in enumerate(self.codecs):
            if isinstance(codec, Fixed):
                offsets[place] = end
                end = align(end + _nbytes(codec.spec.dtype, codec.shape(self.capacity)))
        return offsets, end

    def _place(self, shapes: list[list[tuple[int, ...]]]) -> tuple[list[int], int]:
        """The offset of every stored array, and the bytes in use."""
        fixed, end = self._fixed_offsets()
        offsets = []
        for place, (codec, codec_shapes) in enumerate(zip(self.codecs, shapes, strict=True)):
            if place in fixed:
                offsets.append(fixed[place])
                continue
            for dtype, shape in zip(codec.dtypes(), codec_shapes, strict=True):
                offsets.append(end)
                end = align(end + _nbytes(dtype, shape))
        return offsets, end

    def open(self, memory: Array, count: int, shapes: list[list[tuple[int, ...]]]) -> list[list[Array]]:
        """Writes the header into ``memory`` (1-d uint8) and returns the arrays to write to, for each component."""
        offsets, _ = self._place(shapes)
        header = memory[: self.header_bytes].view(np.int64)
        header[0] = count
        rows = header[1 : 1 + len(offsets) * _HEADER_INTS_PER_ARRAY].reshape(-1, _HEADER_INTS_PER_ARRAY)
        flat_shapes = [shape for codec_shapes in shapes for shape in codec_shapes]
        for row, offset, shape in zip(rows, offsets, flat_shapes, strict=True):
            row[0], row[1] = offset, len(shape)
            row[2 : 2 + len(shape)] = shape
        return self._arrays(memory, rows.tolist())

    def read(self, memory: Array) -> Any:
        """Returns the batch that ``memory`` (1-d uint8) holds, as views of it."""
        header = memory[: self.header_bytes].view(np.int64)
        arrays = sum(len(codec.dtypes()) for codec in self.codecs)
        rows = header[1 : 1 + arrays * _HEADER_INTS_PER_ARRAY].reshape(-1, _HEADER_INTS_PER_ARRAY)
        stored = self._arrays(memory, rows.tolist())
        leaves = [codec.read(group) for codec, group in zip(self.codecs, stored, strict=True)]
        return pack_as(self.structure, leaves)

    def _arrays(self, memory: Array, rows: list[list[int]]) -> list[list[Array]]:
        groups, following = [], iter(rows)
        for codec in self.codecs:
            group = []
            for dtype in codec.dtypes():
                offset, rank, *sizes = next(following)
                group.append(_view(memory, offset, dtype, tuple(sizes[:rank])))
            groups.append(group)
        return groups


def _nbytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    return dtype.itemsize * math.prod(shape)


def _view(memory: Array, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    return memory[offset : offset + _nbytes(dtype, shape)].view(dtype).reshape(shape)
