"""Which samples make up which batch: a pure function of (seed, epoch, batch index), without state or I/O.

Words::

    epoch         0, 1, 2, ...: one pass over all samples
    sampler       the order of an epoch: the sample index at each offset in the epoch, shuffled or not
    batch         ``batch_size`` samples of this host; its batch index in the epoch is 0 .. num_batches - 1
    global batch  ``batch_size * count`` consecutive samples of the order, cut into ``count`` host shards, which are
                  contiguous and in the order of the hosts

A sampler does not depend on hosts, workers or batches. So the samples of a global batch are the same for every number
of hosts that divides it, and training that was saved on four hosts resumes on two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mploader._util.checks import whole_number
from mploader.errors import ArgumentError
from mploader.sampling import permutation
from mploader.sampling.samplers import Indices, Sampler, SequentialSampler, ShuffledSampler


@dataclass(frozen=True)
class Plan:
    """Maps a batch index to sample indices, for one host. Pickles to a few hundred bytes; safe from any thread.

    Attributes:
        num_samples: samples of the source, from 0 to 2^62.
        batch_size: samples in a batch of this host, at least 1.
        seed: any integer >= 0. Chooses the order of each epoch and the replacements of bad samples.
        shuffle: False: the order of the source. True: another permutation of all samples in each epoch.
        drop_remainder: leave out the last global batch of an epoch where it is not full.
        shard: (index, count): the host shard, a part of every global batch of ``batch_size * count`` samples.
        sampler: the order of the samples. None: a sequential or shuffled one, as ``shuffle`` says.

    Raises:
        ArgumentError: a field is of the wrong type or out of range.
    """

    num_samples: int
    batch_size: int
    seed: int = 0
    shuffle: bool = False
    drop_remainder: bool = False
    shard: tuple[int, int] = (0, 1)
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_samples", 0, permutation.MAX_SIZE),
            ("batch_size", 1, permutation.MAX_SIZE),
            ("seed", 0, None),
        ):
            # Stored as a plain int: a NumPy integer would overflow in the products below.
            object.__setattr__(self, name, whole_number(name, getattr(self, name), low, high))
        for name in ("shuffle", "drop_remainder"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise ArgumentError(f"{name}={getattr(self, name)!r}: expected True or False")
        object.__setattr__(self, "shard", _checked_shard(self.shard))

    @property
    def global_batch_size(self) -> int:
        """Samples in a full batch of all hosts together."""
        return self.batch_size * self.shard[1]

    @property
    def longest_batch(self) -> int:
        """Samples in the largest batch of this host: fewer than ``batch_size`` where the source has fewer."""
        return max(1, min(self.batch_size, -(-self.num_samples // self.shard[1])))

    @property
    def num_batches(self) -> int:
        """Batches in an epoch: the same number on every host."""
        full, rest = divmod(self.num_samples, self.global_batch_size)
        return full + (1 if rest and not self.drop_remainder else 0)

    @property
    def chosen_sampler(self) -> Sampler:
        """The order of the samples: the given sampler, or the one that ``shuffle`` says."""
        if self.sampler is not None:
            return self.sampler
        sampler = ShuffledSampler if self.shuffle else SequentialSampler
        return sampler(self.num_samples, self.seed)

    def batch(self, epoch: int, batch_index: int) -> Indices:
        """Returns the samples of one batch of this host.

        The last global batch of an epoch may be partial. It is divided over the hosts in order, as evenly as possible:
        host shards differ by at most one sample, and some are **empty** if there are fewer samples than hosts. Every
        host still makes the batch, so that no host waits for a batch that never comes.

        Args:
            epoch: from 0.
            batch_index: number of the batch in the epoch, in [0, num_batches).

        Returns:
            int64 array (samples of this host,) of sample indices.

        Raises:
            ArgumentError: ``epoch`` is negative.
            IndexError: ``batch_index`` is out of range.
        """
        if epoch < 0:
            raise ArgumentError(f"epoch={epoch}: expected an integer >= 0")
        start, stop = self._host_shard(batch_index)
        offsets = np.arange(start, stop, dtype=np.int64)
        return self.chosen_sampler.indices(epoch, offsets) if offsets.size else offsets

    def batches(self, epoch: int, start: int, stop: int) -> Indices:
        """Returns the samples of several consecutive batches of this host at once.

        Args:
            epoch: from 0.
            start: the first batch.
            stop: one more than the last batch, at most ``num_batches``.

        Returns:
            int64 array (samples of all these batches,) of sample indices: the batches one after the other.
        """
        full = min(stop, self.num_samples // self.global_batch_size)
        firsts = np.arange(start, full, dtype=np.int64) * self.global_batch_size + self.batch_size * self.shard[0]
        offsets = (firsts[:, np.newaxis] + np.arange(self.batch_size, dtype=np.int64)).ravel()
        if stop > full:
            offsets = np.concatenate([offsets, np.arange(*self._host_shard(full), dtype=np.int64)])
        return self.chosen_sampler.indices(epoch, offsets) if offsets.size else offsets

    @property
    def num_host_samples(self) -> int:
        """Samples in an epoch of this host."""
        full = self.num_samples // self.global_batch_size
        start, stop = self._host_shard(full) if self.num_batches > full else (0, 0)
        return full * self.batch_size + stop - start

    def batch_size_with(self, index: int) -> int:
        """The largest number of samples in a batch of this host that holds the sample ``index``."""
        return self.longest_batch

    def progress(self, batch: int) -> int:
        """Returns what a checkpoint holds: samples that all hosts have consumed after ``batch`` batches of an epoch."""
        return min(batch * self.global_batch_size, self.num_samples)

    def batch_at(self, progress: int) -> tuple[int, int]:
        """The inverse of :meth:`progress`: the next batch, and how many of its samples were consumed already."""
        return divmod(progress, self.global_batch_size)

    def replacement(self, epoch: int, index: int, attempt: int) -> int:
        """Returns the sample that replaces a bad one: a function of (seed, epoch, index, attempt).

        Successive attempts go through a random permutation of all other samples, so that no sample comes twice before
        all have come. In a mix the other samples are those of the same source.

        Args:
            epoch: from 0.
            index: the bad sample, as :meth:`batch` gave it.
            attempt: 1 for the first replacement, 2 if that is bad too, ...

        Returns:
            A sample index other than ``index``; ``index`` itself if the source has a single sample.

        Raises:
            IndexError: ``index`` is out of range.
            ArgumentError: ``epoch`` or ``attempt`` is out of range.
        """
        if epoch < 0 or attempt < 1:
            raise ArgumentError(f"epoch={epoch}, attempt={attempt}: expected an epoch >= 0 and an attempt >= 1")
        return self.chosen_sampler.replacement(epoch, index, attempt)

    def fingerprint(self) -> dict[str, int | str | bool]:
        """Returns the facts that a checkpoint depends on, for JSON: equal facts mean equal global batches.

        The split over hosts is not among them, since it does not change the global batches.
        """
        return {
            "num_samples": self.num_samples,
            "global_batch_size": self.global_batch_size,
            "seed": self.seed,
            "order": self.chosen_sampler.name,
            "drop_remainder": bool(self.drop_remainder),
        }

    def _host_shard(self, batch_index: int) -> tuple[int, int]:
        """Start and stop of the host shard of a global batch, as offsets in the epoch."""
        if not 0 <= batch_index < self.num_batches:
            raise IndexError(f"batch {batch_index} of an epoch of {self.num_batches} batches")
        index, count = self.shard
        start = batch_index * self.global_batch_size
        length = min(self.global_batch_size, self.num_samples - start)
        return start + length * index // count, start + length * (index + 1) // count


def _checked_shard(shard: object) -> tuple[int, int]:
    if not isinstance(shard, (tuple, list)) or len(shard) != 2:
        raise ArgumentError(f"shard={shard!r}: expected (index, count), such as (0, 4) for the first of four hosts")
    try:
        count = whole_number("count", shard[1], 1)
        return whole_number("index", shard[0], 0, count - 1), count
    except ArgumentError as error:
        raise ArgumentError(f"shard={shard!r}, (index, count) of hosts: {error}") from None
