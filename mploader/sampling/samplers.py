"""What stands at each position of an epoch: the orders that :class:`~mploader.sampling.plan.Plan` cuts into batches.

An order is a pure function of (epoch, position). It knows nothing of hosts, workers or batches, so a position means
the same sample for any number of them.

======================  ==========================================================================================
`SequentialSampler`            the order of the source
`ShuffledSampler`              another permutation of all samples in each epoch, in constant memory
`ShardWindowSampler`        what ``shuffle=ShardShuffle(window)`` asks for: a few shards at a time, each read in order
`arrange`               from a source and ``shuffle=`` to one of these, or to the source's own (a mix has one)
======================  ==========================================================================================
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from mploader.errors import ArgumentError
from mploader.sampling import permutation
from mploader.sampling.permutation import Permutation

Indices = npt.NDArray[np.int64]

_WINDOWS_KEPT = 4
"""Of each sharded source: a batch may lie in two windows, and runs over two epochs may be read in turn."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Sampler(Protocol):
    """The order of all epochs: pure, picklable, safe from any thread, and of constant or small memory."""

    @property
    def name(self) -> str:
        """What a saved position depends on: two orders of one name put the same sample at every position."""
        ...

    def indices(self, epoch: int, positions: Indices) -> Indices:
        """Gives the sample index at each of some positions of an epoch.

        Args:
            epoch: from 0.
            positions: int64, any positions of the epoch.

        Returns:
            int64 array of the shape of ``positions``.
        """
        ...

    def replacement(self, epoch: int, index: int, attempt: int) -> int:
        """Names the sample that stands in for a bad one; see :meth:`mploader.sampling.plan.Plan.replacement`."""
        ...


@dataclass(frozen=True)
class SequentialSampler:
    """Samples in the order of the source, in every epoch; ``seed`` chooses replacements only."""

    num_samples: int
    seed: int

    @property
    def name(self) -> str:
        """See :attr:`Sampler.name`."""
        return "sequential"

    def indices(self, epoch: int, positions: Indices) -> Indices:
        """See :meth:`Sampler.indices`."""
        return positions

    def replacement(self, epoch: int, index: int, attempt: int) -> int:
        """See :meth:`Sampler.replacement`."""
        return _other_sample(self.num_samples, self.seed, epoch, index, attempt)


@dataclass(frozen=True)
class ShuffledSampler:
    """A fresh permutation of all ``num_samples`` samples in each epoch."""

    num_samples: int
    seed: int

    @property
    def name(self) -> str:
        """See :attr:`Sampler.name`."""
        return permutation.FUNCTION

    def indices(self, epoch: int, positions: Indices) -> Indices:
        """See :meth:`Sampler.indices`."""
        return _epoch_permutation(self.num_samples, self.seed, epoch)(positions)

    def replacement(self, epoch: int, index: int, attempt: int) -> int:
        """See :meth:`Sampler.replacement`."""
        return _other_sample(self.num_samples, self.seed, epoch, index, attempt)


@functools.lru_cache(maxsize=16)
def _epoch_permutation(num_samples: int, seed: int, epoch: int) -> Permutation:
    return Permutation(num_samples, seed, epoch)


def _other_sample(num_samples: int, seed: int, epoch: int, index: int, attempt: int) -> int:
    """Walks through a random permutation of all samples but ``index``; that one itself where it is alone."""
    if not 0 <= index < num_samples:
        raise IndexError(f"sample {index} of {num_samples} samples")
    others = num_samples - 1
    if others == 0:
        return index
    other = int(Permutation(others, seed, epoch, index)((attempt - 1) % others))
    return other + 1 if other >= index else other


@dataclass(frozen=True)
class ShardShuffle:
    """A shuffle that reads shards from front to back, for data on disks or object stores: ``shuffle=ShardShuffle(16)``.

    Each epoch puts the shards into another random order and goes through them ``window`` at a time. The samples of a
    window come in random turns: which of its shards is next is drawn anew for every sample, and within a shard the
    samples keep their order. So a shard is opened once an epoch by each worker and read in one direction, where
    ``shuffle=True`` jumps to another shard for every sample; and a batch holds samples of ``window`` shards.
    Neighbours within one shard always meet in the same window: write shards in random order.

    As with ``shuffle=True`` a batch is a pure function of its position, on any number of hosts and workers.

    Attributes:
        window: shards that are open at a time, at least 1. Memory is 8 bytes for each sample of the last four windows,
            in each process.

    Raises:
        ArgumentError: ``window`` is no whole number of at least 1.
    """

    window: int = 16

    def __post_init__(self) -> None:
        try:
            window = operator.index(self.window)
        except TypeError:
            window = 0
        if window < 1 or isinstance(self.window, (bool, np.bool_)):
            raise ArgumentError(f"ShardShuffle(window={self.window!r}): wanted is a whole number of at least 1")
        object.__setattr__(self, "window", window)


@dataclass(frozen=True, eq=False)
class ShardWindowSampler:
    """Shards in random order, a window of them at a time; see :class:`ShardShuffle`.

    Attributes:
        shard_sizes: samples of each shard, int64, shape (shards,).
        window: shards in a window.
        seed: chooses the orders.
    """

    shard_sizes: Indices
    window: int
    seed: int
    num_samples: int = field(init=False)
    # Here and not in a cache of the module: the sources of a mix would push each other's windows out of it.
    _epochs: dict[int, tuple[Indices, Indices]] = field(default_factory=dict, init=False, repr=False)
    _windows: dict[tuple[int, int], Indices] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_samples", int(self.shard_sizes.sum()))

    @property
    def name(self) -> str:
        """See :attr:`Sampler.name`."""
        shards = permutation.digest("shard sizes", *map(int, self.shard_sizes), size=4).hex()
        return f"windows-1 of {self.window} of {len(self.shard_sizes)} shards {shards} {permutation.FUNCTION}"

    def indices(self, epoch: int, positions: Indices) -> Indices:
        """See :meth:`Sampler.indices`."""
        _, starts = self._epoch(epoch)
        windows = np.searchsorted(starts, positions, side="right") - 1
        result = np.empty_like(positions)
        for window in np.unique(windows):
            inside = windows == window
            result[inside] = self._samples(epoch, int(window))[positions[inside] - starts[window]]
        return result

    def replacement(self, epoch: int, index: int, attempt: int) -> int:
        """See :meth:`Sampler.replacement`."""
        return _other_sample(self.num_samples, self.seed, epoch, index, attempt)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what can be worked out again."""
        return {**self.__dict__, "_epochs": {}, "_windows": {}}

    def _epoch(self, epoch: int) -> tuple[Indices, Indices]:
        """The shards in the order of an epoch, and the position at which each window starts."""
        found = self._epochs.get(epoch)
        if found is None:
            count = len(self.shard_sizes)
            shards = Permutation(count, self.seed, epoch, 0, 0)(np.arange(count))
            sizes = np.add.reduceat(self.shard_sizes[shards], np.arange(0, count, self.window))
            found = shards, np.concatenate([[0], np.cumsum(sizes)[:-1]])
            keep(self._epochs, epoch, found, _WINDOWS_KEPT)
        return found

    def _samples(self, epoch: int, window: int) -> Indices:
        """The samples of one window of shards, in order."""
        found = self._windows.get((epoch, window))
        if found is None:
            found = self._deal(epoch, window)
            keep(self._windows, (epoch, window), found, _WINDOWS_KEPT)
        return found

    def _deal(self, epoch: int, window: int) -> Indices:
        shards = self._epoch(epoch)[0][window * self.window : (window + 1) * self.window]
        sizes = self.shard_sizes[shards]
        firsts = np.cumsum(self.shard_sizes)[shards] - sizes
        turns = np.repeat(np.arange(len(shards)), sizes)
        turns = turns[Permutation(len(turns), self.seed, epoch, window, 0, 0)(np.arange(len(turns)))]
        samples = np.empty(len(turns), np.int64)
        samples[np.argsort(turns, kind="stable")] = np.concatenate(
            [np.arange(first, first + size) for first, size in zip(firsts, sizes, strict=True)]
        )
        return samples


def keep(found: dict[_Key, _Value], key: _Key, value: _Value, most: int) -> None:
    """Adds what was worked out to the last few results of its kind. Safe from any thread: at worst one is lost."""
    for old in list(found)[: 1 - most]:
        found.pop(old, None)
    found[key] = value


def arrange(source: Any, num_samples: int, seed: int, shuffle: bool | ShardShuffle) -> Sampler:
    """Works out the order that ``shuffle`` asks for.

    Args:
        source: its ``epoch_sampler(seed, shuffle) -> Sampler`` decides where it has one; ``shard_sizes`` are asked for
            by :class:`ShardShuffle`.
        num_samples: samples of the source in an epoch.
        seed: from 0.
        shuffle: as :class:`mploader.Loader` takes it.

    Raises:
        ArgumentError: ``shuffle`` cannot be meant, or the source has no shards to shuffle.
    """
    if not isinstance(shuffle, (bool, np.bool_, ShardShuffle)):
        raise ArgumentError(f"shuffle={shuffle!r}: wanted is True, False or a mploader.ShardShuffle")
    if hasattr(source, "epoch_sampler"):
        order: Sampler = source.epoch_sampler(seed, shuffle)
        return order
    if isinstance(shuffle, ShardShuffle):
        sizes = getattr(source, "shard_sizes", None)
        if sizes is None:
            raise ArgumentError(
                f"shuffle={shuffle!r} needs a source of shards (one with shard_sizes, as TFRecordShards and TarShards "
                f"have), and this is a {type(source).__name__}. Use shuffle=True, which shuffles any source"
            )
        filled = np.asarray(sizes, np.int64)
        if int(filled.sum()) != num_samples:
            raise ArgumentError(f"shard_sizes add up to {filled.sum()} samples, and the source has {num_samples}")
        return ShardWindowSampler(filled, shuffle.window, seed)
    return ShuffledSampler(num_samples, seed) if shuffle else SequentialSampler(num_samples, seed)
