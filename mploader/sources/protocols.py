"""What a source is, and what else it may offer: every method that mploader ever looks for on a source.

A source needs ``__len__`` and ``__getitem__(int)``; any sequence is one, and nothing has to derive from a class of this
package. Each further ability is a Protocol here, found by the presence of its members. The functions at the end are the
only places where a source is asked for an ability.

A source is made once in the trainer and pickled to each worker, so its state is small, or sits in NumPy arrays, which
travel by shared memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mploader._util.location import Location
from mploader.sampling.samplers import Sampler, ShardShuffle


@runtime_checkable
class Source(Protocol):
    """Samples by index. ``__getitem__`` is called in workers, and may be called from several threads."""

    def __len__(self) -> int:
        """The number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Returns a sample; raises IndexError outside ``-len(self) <= index < len(self)``."""
        ...


@runtime_checkable
class Located(Protocol):
    """Knows the location of a sample. Called in the worker when a sample is bad, and by ``mploader verify``."""

    def where(self, index: int) -> str:
        """Returns file and byte of a sample, for messages."""
        ...


@runtime_checkable
class Fingerprinted(Protocol):
    """Identifies its data. Called in the trainer when a position is saved or restored."""

    def fingerprint(self) -> str:
        """Returns a short text that changes with the data: a hash, or several: ``"files 5a0c, labels 91e7"``."""
        ...


@runtime_checkable
class Sharded(Protocol):
    """Reads shards. Asked once in the trainer: ``ShardShuffle`` shuffles them, and checkpoints count them.

    ``shard_sizes`` may raise AttributeError where a wrapper finds that its source has no shards.
    """

    @property
    def shard_sizes(self) -> npt.NDArray[np.int64]:
        """The number of samples in each shard, in order, int64 (shards,)."""
        ...


@runtime_checkable
class Classified(Protocol):
    """Has classes. Asked in the trainer: checkpoints count them, and ``mploader show`` prints them."""

    @property
    def class_names(self) -> Sequence[str]:
        """The name of each label."""
        ...


@runtime_checkable
class Ordered(Protocol):
    """Has an order of its own. Asked once in the trainer, when the loader is made."""

    def epoch_sampler(self, seed: int, shuffle: bool | ShardShuffle) -> Sampler:
        """Returns the order of all epochs."""
        ...


@runtime_checkable
class Changing(Protocol):
    """Changes between epochs. Both methods run in the trainer; workers get the source again for each epoch."""

    def begin_epoch(self) -> None:
        """Called when an epoch starts. Afterwards the source is sent to the workers."""
        ...

    def end_epoch(self) -> None:
        """Called when every batch of an epoch was delivered."""
        ...


@runtime_checkable
class WholeBatches(Protocol):
    """Its samples are batches already. Asked once in the trainer."""

    @property
    def yields_batches(self) -> bool:
        """Whether a sample is a batch: arrays with a leading batch dimension."""
        ...


@runtime_checkable
class Endless(Protocol):
    """Its indices go on beyond its length, into the next epochs, as those of a ``Mix`` do."""

    @property
    def is_endless(self) -> bool:
        """Whether indices beyond the length mean further samples."""
        ...


def location_of(source: Any, index: int) -> Location:
    """Returns the location of a sample; an empty text if the source does not know it.

    Raises:
        Exception: from the source's ``where``.
    """
    if not isinstance(source, Located):
        return Location("")
    where = source.where(index)
    return where if isinstance(where, Location) else Location(str(where))


def where_is(source: Any, index: int) -> Location:
    """Returns the location of a sample of any source: that of the source, else its type and the index."""
    return location_of(source, index) or Location(f"sample {index} of a {type(source).__name__}")


def changes_between_epochs(source: Any) -> bool:
    """Whether a source may change between epochs."""
    return isinstance(source, Changing)


def yields_batches(source: Any) -> bool:
    """Whether the samples of a source are batches already."""
    return isinstance(source, WholeBatches) and bool(source.yields_batches)


def is_endless(source: Any) -> bool:
    """Whether a source goes on beyond its length, as a ``Mix`` does into its next epochs."""
    return isinstance(source, Endless) and bool(source.is_endless)


def shard_sizes_of(source: Any) -> npt.NDArray[np.int64] | None:
    """Returns the number of samples in each shard, int64 (shards,); None for a source without shards."""
    return np.asarray(source.shard_sizes, np.int64) if isinstance(source, Sharded) else None


def class_names_of(source: Any) -> Sequence[str]:
    """Returns the names of a source's classes; empty for a source without classes."""
    return source.class_names if isinstance(source, Classified) else ()
