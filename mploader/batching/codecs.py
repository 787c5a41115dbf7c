"""How a component is stored in a batch: the protocol of codecs, and those for components whose size is known.

Codecs for components whose shape varies are in :mod:`mploader.batching.variable_codecs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mploader._util.shared_memory import Array
from mploader.batching.spec import STRING, ArraySpec
from mploader.errors import SpecError

Elements = Sequence[Any] | Array
"""The elements of one component of a batch, in order."""


class Codec(Protocol):
    """How one component is stored. The worker calls ``accept``, ``measure`` and ``write``, the trainer ``read``."""

    @property
    def spec(self) -> ArraySpec:
        """The element's shape and dtype; None for a dimension that varies."""
        ...

    def batch_spec(self, batch: int | None) -> ArraySpec:
        """Returns the spec of a batch of ``batch`` elements, with the batch dimension in front."""
        ...

    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """The dtypes of the stored arrays."""
        ...

    def accept(self, leaf: Any, name: str) -> Any:
        """Returns an element in the form that the other methods take, safe from later changes by the transform.

        Args:
            leaf: the component of an element; it fits ``spec``.
            name: of the component, for messages.

        Raises:
            SpecError: the component cannot be stored.
        """
        ...

    def measure(self, values: Elements) -> list[tuple[int, ...]]:
        """Returns the shapes of the stored arrays for these elements."""
        ...

    def write(self, arrays: Sequence[Array], values: Elements) -> None:
        """Stores the elements into arrays of the measured shapes."""
        ...

    def read(self, arrays: Sequence[Array]) -> Any:
        """Returns the component of the batch, a view of the stored arrays if possible."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Components of one shape: one array, in which each element is written when it is added."""

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
    """Strings: offsets and one array of all bytes. Read as an object array of ``bytes``, which is always a copy."""

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
        SpecError: an item is not a string.
    """
    if isinstance(value, (bytes, str)):
        return [_text_of(value)]
    # As objects, since an array of fixed-size strings loses trailing zero bytes.
    array = value if isinstance(value, np.ndarray) else np.asarray(value, STRING)
    return [_text_of(item) for item in array.flat]


def _text_of(item: Any) -> bytes:
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, bytes):
        return item
    raise SpecError(f"an array of strings: expected bytes or str, got {item!r:.200}, a {type(item).__name__}")


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
    for index in range(len(texts)):
        texts[index] = blob[ends[index] : ends[index + 1]]
    return texts
