"""Sources made of other sources: one after the other, a part of one, or one with changed samples.

They keep their parts and a few numbers; samples are read from the parts on demand. `len`, `repr`,
`where(index)` and `fingerprint()` work through all of them, however deep, and so does pickling.
"""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mploader._util.checks import whole_number
from mploader._util.location import Location
from mploader.errors import ArgumentError
from mploader.sampling.samplers import Sampler, ShardShuffle
from mploader.sources.base import Int64Array, checked_index
from mploader.sources.fingerprint import fingerprint_of
from mploader.sources.protocols import Ordered, Source, is_endless, where_is


def combined_fingerprint(*parts: Any) -> str:
    """Hashes sources and plain values. A source without a fingerprint counts with its type and length."""
    texts = []
    for part in parts:
        if isinstance(part, (str, bytes, tuple)) or not hasattr(part, "__getitem__"):
            texts.append(repr(part))
        else:
            texts.append(fingerprint_of(part) or f"{type(part).__name__} of {len(part)}")
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def checked_source(source: Any) -> Any:
    """Returns a part of another source.

    Raises:
        ArgumentError: it is not a source, or has no samples.
    """
    if not isinstance(source, Source):
        raise ArgumentError(f"expected a source, with __len__ and __getitem__(int), got a {type(source).__name__}")
    if not len(source):
        raise ArgumentError(f"a source has no samples: {short(source)}")
    return source


class Concat:
    """Sources one after the other: sample 0 is that of the first source, and so on.

    Shuffling includes all samples of all parts. For fixed proportions see `Mix`.

    Args:
        sources: at least one, none of them empty.

    Raises:
        ArgumentError: there is no source, or one of them is not a source or has no samples.
    """

    def __init__(self, sources: Sequence[Any]):
        try:
            parts = iter(sources)
        except TypeError:
            raise ArgumentError(f"Concat: sources={sources!r}: expected a list of sources") from None
        self._sources = tuple(checked_source(source) for source in parts)
        if not self._sources:
            raise ArgumentError("Concat([]): expected at least one source")
        self._starts: Int64Array = np.concatenate([[0], np.cumsum([len(source) for source in self._sources])])

    @property
    def sources(self) -> tuple[Any, ...]:
        """The parts."""
        return self._sources

    @property
    def shard_sizes(self) -> Int64Array:
        """The number of samples in each shard of all parts; AttributeError if a part has no shards."""
        return np.concatenate([np.asarray(source.shard_sizes, np.int64) for source in self._sources])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int, /) -> Any:
        """Returns a sample.

        Raises:
            IndexError: the index is outside the source.
            Exception: from the part.
        """
        source, inside = self._locate(index)
        return source[inside]

    def where(self, index: int) -> Location:
        """Returns the location of a sample, as the part states it."""
        return where_is(*self._locate(index))

    def fingerprint(self) -> str:
        """Hashes the parts' fingerprints, in order."""
        return combined_fingerprint("Concat", *self._sources)

    def __repr__(self) -> str:
        return f"Concat of {len(self._sources)} sources, {len(self)} samples: [{', '.join(map(short, self._sources))}]"

    def _locate(self, index: int) -> tuple[Any, int]:
        index = checked_index(index, len(self))
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._sources[part], index - int(self._starts[part])


class Subset:
    """Some samples of a source, in any order, also repeated.

    Args:
        source: the source of all samples.
        indices: a slice, a range, a mask (bool, one for each sample), or sample indices; negative ones count from the
            end. Slices and ranges take no memory, others 8 bytes per sample.

    Raises:
        ArgumentError: no sample is chosen, the indices are of another type, or one is outside the source.
    """

    def __init__(self, source: Any, indices: slice | range | npt.ArrayLike):
        self._source = checked_source(source)
        self._indices = _chosen(indices, len(source))
        if not len(self._indices):
            raise ArgumentError(f"Subset of {short(source)}: the indices choose none of its samples")

    @property
    def shard_sizes(self) -> Int64Array:
        """The number of chosen samples in each shard, int64 (shards,).

        Raises:
            AttributeError: the source has no shards, or the indices do not ascend.
        """
        indices = np.asarray(self._indices, np.int64)
        if (np.diff(indices) < 0).any():
            raise AttributeError("a Subset has shards only where its indices ascend")
        ends = np.cumsum(self._source.shard_sizes)
        return np.diff(np.searchsorted(indices, ends), prepend=0)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int, /) -> Any:
        """Returns a sample of the subset.

        Raises:
            IndexError: the index is outside the subset.
            Exception: from the source.
        """
        return self._source[self._inside(index)]

    def where(self, index: int) -> Location:
        """Returns the location of a sample, as the source states it."""
        return where_is(self._source, self._inside(index))

    def fingerprint(self) -> str:
        """Hashes the source's fingerprint and the chosen indices."""
        chosen = self._indices
        facts = repr(chosen) if isinstance(chosen, range) else hashlib.sha256(chosen.tobytes()).hexdigest()
        return combined_fingerprint("Subset", self._source, facts)

    def __repr__(self) -> str:
        return f"Subset of {len(self)} of {len(self._source)} samples of {short(self._source)}"

    def _inside(self, index: int) -> int:
        return int(self._indices[checked_index(index, len(self))])


class Map:
    """A source with each sample changed by a cheap function, or with other indices.

    The function runs where the sample is read, before the loader's transform, and gets no random numbers. It must be
    the same in every process: the fingerprint contains its name, not its code.

    Args:
        source: the samples.
        function: ``sample -> sample``. None: samples are not changed.
        index: ``index here -> index in the source``, both from 0, for an order that a formula gives.
        length: number of samples here, with ``index``. None: as many as in the source.

    Raises:
        ArgumentError: an argument is invalid.
    """

    def __init__(
        self,
        source: Any,
        function: Callable[[Any], Any] | None = None,
        *,
        index: Callable[[int], int] | None = None,
        length: int | None = None,
    ):
        self._source = checked_source(source)
        for name, value in (("function", function), ("index", index)):
            if value is not None and not callable(value):
                raise ArgumentError(f"Map: {name}={value!r}: expected a callable")
        if length is not None:
            whole_number("Map: length", length, 1)
            if index is None:
                raise ArgumentError(f"Map: length={length!r}: expected with index=")
        self._function = function
        self._index = index
        self._length = length
        if index is None and isinstance(source, Ordered):
            self.epoch_sampler = functools.partial(_order_of, source)

    @property
    def shard_sizes(self) -> Int64Array:
        """The number of samples in each shard of the source.

        Raises:
            AttributeError: the source has no shards, or ``index`` is given.
        """
        if self._index is not None:
            raise AttributeError("a Map with index= has no shards")
        return np.asarray(self._source.shard_sizes, np.int64)

    @property
    def is_endless(self) -> bool:
        """Whether indices beyond the length mean further samples, as in a `Mix`."""
        return self._index is None and is_endless(self._source)

    def __len__(self) -> int:
        return len(self._source) if self._length is None else operator.index(self._length)

    def __getitem__(self, index: int, /) -> Any:
        """Returns a changed sample.

        Raises:
            IndexError: the index is outside the source.
            Exception: from the source or the function.
        """
        sample = self._source[self._inside(index)]
        return sample if self._function is None else self._function(sample)

    def __iter__(self) -> Iterator[Any]:
        """Iterates over the samples of one epoch, also of an endless source."""
        return (self[index] for index in range(len(self)))

    def where(self, index: int) -> Location:
        """Returns the location of a sample, as the source states it."""
        return where_is(self._source, self._inside(index))

    def fingerprint(self) -> str:
        """Hashes the source's fingerprint and the names of the functions."""
        return combined_fingerprint("Map", self._source, _name(self._function), _name(self._index), len(self))

    def __repr__(self) -> str:
        functions = ", ".join(_name(function) for function in (self._function, self._index) if function is not None)
        return f"Map({functions}) of {short(self._source)}"

    def _inside(self, index: int) -> int:
        checked = operator.index(index) if self.is_endless else checked_index(index, len(self))
        return checked if self._index is None else self._index(checked)


def short(source: Any) -> str:
    """Describes a source briefly: by its own representation if it is of this package, else by type and length."""
    if type(source).__module__.startswith("mploader"):
        text = repr(source)
        return text if len(text) <= 200 else f"{text[:200]}..."
    return f"a {type(source).__name__} of {len(source)}"


def _order_of(source: Any, seed: int, shuffle: bool | ShardShuffle) -> Sampler:
    order: Sampler = source.epoch_sampler(seed, shuffle)
    return order


def _name(function: Callable[..., Any] | None) -> str:
    return "" if function is None else getattr(function, "__qualname__", type(function).__name__)


def _chosen(indices: slice | range | npt.ArrayLike, length: int) -> range | Int64Array:
    if isinstance(indices, slice):
        return range(length)[indices]
    if isinstance(indices, range) and (not indices or (min(indices) >= 0 and max(indices) < length)):
        return indices
    numbers = np.asarray(indices)
    if numbers.dtype == np.bool_ and numbers.shape == (length,):
        return np.flatnonzero(numbers).astype(np.int64)
    if numbers.size == 0:
        return np.zeros(0, np.int64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ArgumentError(
            f"Subset: indices: expected integers (n,), or one bool for each of the {length} samples, got shape "
            f"{numbers.shape}, dtype {numbers.dtype}"
        )
    outside = numbers[(numbers < -length) | (numbers >= length)]
    if outside.size:
        raise ArgumentError(
            f"Subset: {outside.size} of the indices, the first of them {outside[0]}, are outside the {length} "
            f"samples: expected {-length} to {length - 1}"
        )
    numbers = numbers.astype(np.int64)
    return np.where(numbers < 0, numbers + length, numbers)
