"""Samplers: the orders of samples that :class:`~mploader.sampling.plan.Plan` cuts into batches.

A sampler is a pure function of (epoch, offset in the epoch). It does not depend on hosts, workers or batches, so an
offset means the same sample for any number of them.

======================  ==========================================================================================
`SequentialSampler`     the order of the source
`ShuffledSampler`       another permutation of all samples in each epoch, in constant memory
`ShardWindowSampler`    ``shuffle=ShardShuffle(window)``: a few shards at a time, each read in order
======================  ==========================================================================================
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from mploader._util.checks import whole_number
from mploader.sampling import permutation
from mploader.sampling.permutation import Permutation

Indices = npt.NDArray[np.int64]

_WINDOWS_KEPT = 4
"""Of each sampler: a batch may lie in two windows, and two epochs may be read in turn."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Sampler(Protocol):
    """An order of samples in all epochs: pure, picklable, safe from any thread, in constant or small memory."""

    @property
    def name(self) -> str:
        """What a checkpoint depends on: two samplers of one name give the same sample at every offset."""
        ...

    def indices(self, epoch: int, offsets: Indices) -> Indices:
        """Returns the sample index at each of some offsets in an epoch.

        Args:
            epoch: from 0.
            offsets: int64, in [0, samples of the epoch), in any order.

        Returns:
            int64 array of the shape of ``offsets``.
        """
        ...

    def replacement(self, epoch: int, index: int, attempt: int) -> int:
        """Returns the sample that replaces a bad one; see :meth:`mploader.sampling.plan.Plan.replacement`."""
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

    def indices(self, epoch: int, offsets: Indices) -> Indices:
        """See :meth:`Sampler.indices`."""
        return offsets

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

    def indices(self, epoch: int, offsets: Indices) -> Indices:
        """See :meth:`Sampler.indices`."""
        return _epoch_permutation(self.num_samples, self.seed, epoch)(offsets)

    def replacement(self, epoch: int, index: int, attempt: int) -> int:
        """See :meth:`Sampler.replacement`."""
        return _other_sample(self.num_samples, self.seed, epoch, index, attempt)


@functools.lru_cache(maxsize=16)
def _epoch_permutation(num_samples: int, seed: int, epoch: int) -> Permutation:
    return Permutation(num_samples, seed, epoch)


def _other_sample(num_samples: int, seed: int, epoch: int, index: int, attempt: int) -> int:
    """Goes through a random permutation of all samples but ``index``; ``index`` itself if there is no other."""
    if not 0 <= index < num_samples:
        raise IndexError(f"sample {index} of {num_samples} samples")
    others = num_samples - 1
    if others == 0:
        return index
    other = int(Permutation(others, seed, epoch, index)((attempt - 1) % others))
    return other + 1 if other >= index else other


@dataclass(frozen=True)
class ShardShuffle:
    """A shuffle that reads each shard front to back, for disks and object stores: ``shuffle=ShardShuffle(16)``.

    Each epoch goes through the shards in another random order, ``window`` at a time. The next sample comes from a shard
    of the window that is drawn for every sample; within a shard, samples keep their order. So each worker opens a shard
    once an epoch and reads it in one direction, while ``shuffle=True`` jumps to another shard for every sample. A batch
    holds samples of up to ``window`` shards. Neighbours in a shard are always in the same window: write shards in
    random order.

    As with ``shuffle=True``, a batch is a pure function of (seed, epoch, batch index), for any number of hosts and
    workers.

    Attributes:
        window: shards that are open at a time, at least 1. Each process keeps 8 bytes for each sample of the last four
            windows.

    Raises:
        ArgumentError: ``window`` is not an integer >= 1.
    """

    window: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", whole_number("ShardShuffle: window", self.window, 1))


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

    def indices(self, epoch: int, offsets: Indices) -> Indices:
        """See :meth:`Sampler.indices`."""
        _, starts = self._epoch(epoch)
        windows = np.searchsorted(starts, offsets, side="right") - 1
        result = np.empty_like(offsets)
        for window in np.unique(windows):
            inside = windows == window
            result[inside] = self._samples(epoch, int(window))[offsets[inside] - starts[window]]
        return result

    def replacement(self, epoch: int, index: int, attempt: int) -> int:
        """See :meth:`Sampler.replacement`."""
        return _other_sample(self.num_samples, self.seed, epoch, index, attempt)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what can be computed again."""
        return {**self.__dict__, "_epochs": {}, "_windows": {}}

    def _epoch(self, epoch: int) -> tuple[Indices, Indices]:
        """The shards in the order of an epoch, and the offset in the epoch at which each window starts."""
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
    """Adds a result to a dict of the last ``most`` results. Safe from any thread: at worst a result is lost."""
    for old in list(found)[: 1 - most]:
        found.pop(old, None)
    found[key] = value
