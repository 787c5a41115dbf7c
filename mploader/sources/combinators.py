"""Sources made of other sources: one behind the other, a part of one, or with another look of its samples.

They hold their parts and a few numbers; samples are read from the parts when they are asked for. `len`, `repr`,
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
    """A hash of sources and plain values. A source of which nothing is known counts with its type and length."""
    texts = []
    for part in parts:
        if isinstance(part, (str, bytes, tuple)) or not hasattr(part, "__getitem__"):
            texts.append(repr(part))
        else:
            texts.append(fingerprint_of(part) or f"{type(part).__name__} of {len(part)}")
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def checked_source(source: Any) -> Any:
    """A part of another source, which has samples by number.

    Raises:
        ArgumentError: it has none.
    """
    if not isinstance(source, Source):
        raise ArgumentError(f"expected a source, with __len__ and __getitem__(int), got a {type(source).__name__}")
    if not len(source):
        raise ArgumentError(f"a source has no samples: {short(source)}")
    return source


class Concat:
    """Sources one behind the other: sample 0 is that of the first source, and so on.

    Shuffling goes over all samples of all parts. For fixed proportions see `Mix`.

    Args:
        sources: at least one; each with samples.

    Raises:
        ArgumentError: there is none, or one of them is no source or has no samples.
    """

    def __init__(self, sources: Sequence[Any]):
        try:
            parts = iter(sources)
        except TypeError:
            raise ArgumentError(f"Concat: sources={sources!r}: wanted is a list of sources") from None
        self._sources = tuple(checked_source(source) for source in parts)
        if not self._sources:
            raise ArgumentError("Concat([]): name at least one source")
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
        """The sample with this number; IndexError outside, else what the part raises."""
        source, inside = self._locate(index)
        return source[inside]

    def where(self, index: int) -> Location:
        """What the part says of the sample."""
        return where_is(*self._locate(index))

    def fingerprint(self) -> str:
        """A hash of the parts' fingerprints, in order."""
        return combined_fingerprint("Concat", *self._sources)

    def __repr__(self) -> str:
        return f"Concat of {len(self._sources)} sources, {len(self)} samples: [{', '.join(map(short, self._sources))}]"

    def _locate(self, index: int) -> tuple[Any, int]:
        position = checked_index(index, len(self))
        place = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self._sources[place], position - int(self._starts[place])


class Subset:
    """Some samples of a source, in any order; one may come several times.

    Args:
        source: the whole.
        indices: a slice, a range, a mask (bool, one for each sample), or sample numbers; negative ones count from the
            end. Slices and ranges take no memory, others 8 bytes a sample.

    Raises:
        ArgumentError: nothing is left, the indices are neither, or a number is outside of the source.
    """

    def __init__(self, source: Any, indices: slice | range | npt.ArrayLike):
        self._source = checked_source(source)
        self._indices = _chosen(indices, len(source))
        if not len(self._indices):
            raise ArgumentError(f"Subset of {short(source)}: the indices choose none of its samples")

    @property
    def shard_sizes(self) -> Int64Array:
        """The samples chosen of each shard.

        Raises:
            AttributeError: the source has no shards, or the samples are not in their order.
        """
        indices = np.asarray(self._indices, np.int64)
        if (np.diff(indices) < 0).any():
            raise AttributeError("a Subset has shards only where its indices ascend")
        ends = np.cumsum(self._source.shard_sizes)
        return np.diff(np.searchsorted(indices, ends), prepend=0)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int, /) -> Any:
        """The sample with this number in the subset; IndexError outside, else what the source raises."""
        return self._source[self._inside(index)]

    def where(self, index: int) -> Location:
        """What the source says of the sample."""
        return where_is(self._source, self._inside(index))

    def fingerprint(self) -> str:
        """A hash of the source's fingerprint and the chosen samples."""
        chosen = self._indices
        facts = repr(chosen) if isinstance(chosen, range) else hashlib.sha256(chosen.tobytes()).hexdigest()
        return combined_fingerprint("Subset", self._source, facts)

    def __repr__(self) -> str:
        return f"Subset of {len(self)} of {len(self._source)} samples of {short(self._source)}"

    def _inside(self, index: int) -> int:
        return int(self._indices[checked_index(index, len(self))])


class Map:
    """A source with each sample changed by a cheap function, or found under other numbers.

    The function runs where the sample is read, before the loader's transform, and gets no random numbers. It must be
    the same in every process: its name, not its code, is part of the fingerprint.

    Args:
        source: the samples.
        function: ``sample -> sample``. None: as they are.
        index: ``number here -> number in the source``, both from 0, for an order that a formula gives.
        length: samples here, with ``index``. None: as many as the source has.

    Raises:
        ArgumentError: an argument cannot be meant.
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
                raise ArgumentError(f"Map: {name}={value!r} cannot be called")
        if length is not None:
            whole_number("Map: length", length, 1)
            if index is None:
                raise ArgumentError(f"Map: length={length!r} is for use with index=")
        self._function = function
        self._index = index
        self._length = length
        if index is None and isinstance(source, Ordered):
            self.epoch_sampler = functools.partial(_order_of, source)

    @property
    def shard_sizes(self) -> Int64Array:
        """The shards of the source; AttributeError where it has none, or numbers differ."""
        if self._index is not None:
            raise AttributeError("a Map with other numbers has no shards")
        return np.asarray(self._source.shard_sizes, np.int64)

    @property
    def is_endless(self) -> bool:
        """Whether numbers beyond the length mean further samples, as in a `Mix`."""
        return self._index is None and is_endless(self._source)

    def __len__(self) -> int:
        return len(self._source) if self._length is None else operator.index(self._length)

    def __getitem__(self, index: int, /) -> Any:
        """The changed sample with this number; IndexError outside, else what source or function raise."""
        sample = self._source[self._inside(index)]
        return sample if self._function is None else self._function(sample)

    def __iter__(self) -> Iterator[Any]:
        """The samples of one epoch, also where the numbers of the source have no end."""
        return (self[index] for index in range(len(self)))

    def where(self, index: int) -> Location:
        """What the source says of the sample."""
        return where_is(self._source, self._inside(index))

    def fingerprint(self) -> str:
        """A hash of the source's fingerprint and the names of the functions."""
        return combined_fingerprint("Map", self._source, _name(self._function), _name(self._index), len(self))

    def __repr__(self) -> str:
        functions = ", ".join(_name(function) for function in (self._function, self._index) if function is not None)
        return f"Map({functions}) of {short(self._source)}"

    def _inside(self, index: int) -> int:
        position = operator.index(index) if self.is_endless else checked_index(index, len(self))
        return position if self._index is None else self._index(position)


def short(source: Any) -> str:
    """A source in a few words: its own representation where it has one of this package's, else type and length."""
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
            f"Subset: indices of shape {numbers.shape} and dtype {numbers.dtype}; wanted are whole numbers, or one "
            f"truth value for each of the {length} samples"
        )
    outside = numbers[(numbers < -length) | (numbers >= length)]
    if outside.size:
        raise ArgumentError(
            f"Subset: {outside.size} of the indices, the first of them {outside[0]}, are outside of the {length} "
            f"samples: wanted are numbers from {-length} to {length - 1}"
        )
    numbers = numbers.astype(np.int64)
    return np.where(numbers < 0, numbers + length, numbers)
