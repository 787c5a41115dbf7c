"""Writes elements into the memory of a slot and reads batches out of it.

A slot begins with a header: the number of samples, then for every stored array its offset and shape. The arrays
follow, each at a multiple of 64 bytes, because that is what TensorFlow needs to adopt memory without copying it.
How a component is stored is told by its codec. Components of one shape come first, each element at its place as soon as
it is made. What varies is kept until the last element has come, measured, and written once behind them; its codecs are
in :mod:`mploader.batching.ragged`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from mploader.batching.spec import STRING, ArraySpec, component_names, flatten, pack_as
from mploader.errors import SpecError

ALIGNMENT = 64
MAX_RANK = 8
FIRST_ELEMENT = "the first element"
DECLARED = "element_spec="
_HEADER_INTS_PER_ARRAY = 2 + MAX_RANK  # offset, rank, shape

Array = np.ndarray[Any, Any]
Elements = Sequence[Any] | Array
"""The elements of one component of a batch, in order."""


def align(size: int, to: int = ALIGNMENT) -> int:
    """Rounds ``size`` up to a multiple of ``to``."""
    return -(-size // to) * to


class Codec(Protocol):
    """How one component is stored. The worker calls ``accept``, ``measure`` and ``write``, the trainer ``read``."""

    @property
    def spec(self) -> ArraySpec:
        """The element's shape and dtype; None for a dimension that varies."""
        ...

    def batch_spec(self, batch: int | None) -> ArraySpec:
        """What a user sees: the spec with the batch dimension in front."""
        ...

    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """The dtypes of the stored arrays."""
        ...

    def accept(self, leaf: Any, name: str) -> Any:
        """Returns an element in the form that the other methods take, safe from later changes by the transform.

        Called with a leaf that fits ``spec``. Raises SpecError, with ``name`` in it, if it cannot be stored.
        """
        ...

    def measure(self, values: Elements) -> list[tuple[int, ...]]:
        """The shapes of the stored arrays for these elements."""
        ...

    def write(self, arrays: Sequence[Array], values: Elements) -> None:
        """Stores the elements into arrays of the measured shapes."""
        ...

    def read(self, arrays: Sequence[Array]) -> Any:
        """The component of the batch; a view of the stored arrays wherever that is possible."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Every element has the same shape: one array, and each element is written when it comes."""

    spec: ArraySpec

    def batch_spec(self, batch: int | None) -> ArraySpec:
        """See :class:`Codec`."""
        return ArraySpec((batch, *self.spec.shape), self.spec.dtype)

    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """See :class:`Codec`."""
        return (self.spec.dtype,)

    def accept(self, leaf: Any, name: str) -> Any:
        """See :class:`Codec`."""
        return leaf

    def measure(self, values: Elements) -> list[tuple[int, ...]]:
        """See :class:`Codec`."""
        return [self.shape(len(values))]

    def shape(self, count: int) -> tuple[int, ...]:
        """The shape of the stored array for ``count`` elements."""
        return (count, *(size for size in self.spec.shape if size is not None))

    def write(self, arrays: Sequence[Array], values: Elements) -> None:
        """See :class:`Codec`."""
        arrays[0][...] = values

    def read(self, arrays: Sequence[Array]) -> Any:
        """See :class:`Codec`."""
        return arrays[0]


@dataclass(frozen=True)
class Strings:
    """Bytes: offsets and one run of data. Read as an object array of ``bytes``, which is always a copy."""

    spec: ArraySpec

    def batch_spec(self, batch: int | None) -> ArraySpec:
        """See :class:`Codec`."""
        return ArraySpec((batch, *self.spec.shape), STRING)

    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """See :class:`Codec`."""
        return (np.dtype(np.int64), *TEXT_DTYPES)

    def accept(self, leaf: Any, name: str) -> Any:
        """See :class:`Codec`."""
        return texts_of(leaf)

    def measure(self, values: Elements) -> list[tuple[int, ...]]:
        """See :class:`Codec`."""
        return [(1 + len(self.spec.shape),), *measure_texts([text for texts in values for text in texts])]

    def write(self, arrays: Sequence[Array], values: Elements) -> None:
        """See :class:`Codec`."""
        arrays[0][:] = (len(values), *self.spec.shape)
        write_texts(arrays[1:], [text for texts in values for text in texts])

    def read(self, arrays: Sequence[Array]) -> Any:
        """See :class:`Codec`."""
        return read_texts(arrays[1:]).reshape(arrays[0].tolist())


TEXT_DTYPES = (np.dtype(np.int64), np.dtype(np.uint8))
"""What a row of strings is stored as: where each ends, and their bytes."""


def texts_of(value: Any) -> list[bytes]:
    """Returns the strings of one element in order; ``str`` is encoded as UTF-8.

    Raises:
        SpecError: something in it is no string.
    """
    if isinstance(value, (bytes, str)):
        return [_text_of(value)]
    # As objects: an array of bytes of one length cuts zero bytes off their ends.
    array = value if isinstance(value, np.ndarray) else np.asarray(value, STRING)
    return [_text_of(item) for item in array.flat]


def _text_of(item: Any) -> bytes:
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, bytes):
        return item
    raise SpecError(f"an array of strings holds {item!r:.200}, a {type(item).__name__}")


def measure_texts(texts: Sequence[bytes]) -> list[tuple[int, ...]]:
    """Returns the shapes of the two arrays that store a row of strings."""
    return [(len(texts) + 1,), (sum(map(len, texts)),)]


def write_texts(arrays: Sequence[Array], texts: Sequence[bytes]) -> None:
    """Stores a row of strings."""
    offsets, data = arrays
    offsets[0] = 0
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    data[:] = np.frombuffer(b"".join(texts), np.uint8)


def read_texts(arrays: Sequence[Array]) -> Array:
    """Returns a row of strings as a 1-d object array of ``bytes``."""
    offsets, data = arrays
    blob = data.tobytes()
    ends = offsets.tolist()
    texts = np.empty(len(ends) - 1, object)
    for place in range(len(texts)):
        texts[place] = blob[ends[place] : ends[place + 1]]
    return texts


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


class BatchWriter:
    """Collects the elements of one batch for a slot. Used by a worker, one writer for each task.

    Components of one shape go to their place in the slot at once. The others are kept until the last element has
    come, because their size in the batch depends on all elements.
    """

    def __init__(self, layout: BatchLayout, memory: Array) -> None:
        self._layout = layout
        self._memory = memory
        self._codecs = layout.codecs
        self._names = component_names(layout.structure)
        self._places = layout.fixed_places(memory)
        self._kept: list[list[Any]] = [[] for _ in self._codecs]
        self.count = 0

    def add(self, element: Any) -> None:
        """Takes one element; one that is refused leaves nothing behind.

        Raises:
            SpecError: the element is not like the first one of the loader.
            Exception: whatever NumPy, or an object of the user's, raises when it is converted.
        """
        leaves: list[Any] = []
        if not _collect(element, self._layout.structure, leaves):
            raise SpecError(
                f"the element has the components {component_names(element)}, "
                f"but {self._layout.model} has {self._names}; return the same structure for every sample"
            )
        accepted: list[tuple[list[Any], Any]] = []
        for place, (leaf, codec) in enumerate(zip(leaves, self._codecs, strict=True)):
            check_component(leaf, codec.spec, self._names[place], self._layout.model)
            target = self._places[place]
            if target is not None:
                target[self.count] = leaf
            else:
                accepted.append((self._kept[place], codec.accept(leaf, self._names[place])))
        for kept, value in accepted:  # not before: nothing must remain of an element that is refused
            kept.append(value)
        self.count += 1

    def finish(self) -> int:
        """Writes what was kept and returns the bytes in use; if they exceed the slot, the batch is not complete."""
        shapes = self._measure()
        used = self._layout.used_bytes(shapes)
        if used <= len(self._memory):
            arrays = self._layout.open(self._memory, self.count, shapes)
            for codec, target, group, values in zip(self._codecs, self._places, arrays, self._kept, strict=True):
                if target is None:
                    codec.write(group, values)
        return used

    def write_to(self, memory: Array) -> None:
        """Writes the whole batch to other memory, which holds at least what :meth:`finish` returned."""
        arrays = self._layout.open(memory, self.count, self._measure())
        for codec, target, group, values in zip(self._codecs, self._places, arrays, self._kept, strict=True):
            codec.write(group, values if target is None else target[: self.count])

    def _measure(self) -> list[list[tuple[int, ...]]]:
        return [
            codec.measure(values if target is None else target[: self.count])
            for codec, target, values in zip(self._codecs, self._places, self._kept, strict=True)
        ]


def _collect(element: Any, structure: Any, leaves: list[Any]) -> bool:
    """Appends the components of ``element`` in the order of ``structure``; False if the two do not match."""
    # Called for every sample, so it goes without generator expressions, which take four times as long here.
    if isinstance(structure, tuple):
        if not isinstance(element, tuple) or len(element) != len(structure):
            return False
        for value, part in zip(element, structure, strict=True):  # noqa: SIM110
            if not _collect(value, part, leaves):
                return False
        return True
    if isinstance(structure, dict):
        if not isinstance(element, dict) or len(element) != len(structure):
            return False
        for key, part in structure.items():
            if key not in element or not _collect(element[key], part, leaves):
                return False
        return True
    leaves.append(element)
    return not isinstance(element, (dict, tuple))


_PYTHON_TYPES = {np.dtype(np.int64): int, np.dtype(np.float64): float, np.dtype(np.bool_): bool}
"""The type of Python numbers that a component of a dtype came from; NumPy refuses an int that is out of range."""


def check_component(leaf: Any, spec: ArraySpec, name: str, model: str) -> None:
    """Checks one component of an element against the spec of the ``model``: the first one, or the signature.

    Raises:
        SpecError: another kind, dtype or shape.
    """
    # What nearly every component is, told apart from all that needs a closer look.
    if type(leaf) is np.ndarray:
        if leaf.dtype == spec.dtype and leaf.shape == spec.shape and not leaf.dtype.hasobject:
            return
    elif spec.shape == () and (
        type(leaf) is _PYTHON_TYPES.get(spec.dtype) or (isinstance(leaf, np.generic) and leaf.dtype == spec.dtype)
    ):
        return
    if isinstance(leaf, np.ma.MaskedArray):
        raise SpecError(f"{name} is a masked array, and its mask would be lost; return array.filled(value)")
    if spec.is_string:
        if not isinstance(leaf, (bytes, str)) and np.asarray(leaf).dtype.kind not in "SUO":
            raise SpecError(f"{name} is a {type(leaf).__name__}, but {model} has bytes there")
        shape = () if isinstance(leaf, (bytes, str)) else np.shape(leaf)
    elif isinstance(leaf, np.ndarray):
        shape = leaf.shape
        if leaf.dtype != spec.dtype and leaf.dtype.newbyteorder("=") != spec.dtype:
            raise SpecError(
                f"{name} has dtype {leaf.dtype}, but {model} has {spec.dtype}; "
                "convert it in the transform with .astype()"
            )
    else:
        shape = ()
        if not _is_number_of(leaf, spec.dtype):
            raise SpecError(f"{name} is {leaf!r:.200}, which does not fit the dtype {spec.dtype} of {model}")
    if len(shape) != len(spec.shape) or any(
        want is not None and got != want for got, want in zip(shape, spec.shape, strict=False)
    ):
        advice = (
            ". Make the shapes equal in the transform (images.Resize), or say that they vary with pad= or ragged= "
            "(ragged=2: in two dimensions)"
        )
        raise SpecError(
            f"{name} has shape {shape}, but {model} has {spec.shape}" + (advice if model == FIRST_ELEMENT else "")
        )


def _is_number_of(leaf: Any, dtype: np.dtype[Any]) -> bool:
    """Whether a number can be stored in a dtype; a float may be rounded, but not to infinity."""
    number = np.asarray(leaf)
    if number.shape or isinstance(leaf, list) or not np.can_cast(number.dtype, dtype, "same_kind"):
        return False
    with np.errstate(all="ignore"):
        stored = number.astype(dtype)
        if dtype.kind in "iu":
            return bool(stored == number)
        return dtype.kind not in "fc" or bool(np.isfinite(stored) or not np.isfinite(number))
