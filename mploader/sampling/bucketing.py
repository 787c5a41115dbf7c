"""Batches of samples of similar length: ``bucket_by=``.

The samples of an epoch go, in its order, to buckets by their length. A full bucket becomes the next batch. At the end
of the epoch the rest of each bucket becomes a batch, the shortest lengths first. The result equals that of
``tf.data.Dataset.bucket_by_sequence_length``, element for element. Here the lengths of all samples are known before the
epoch. So a batch is a pure function of (lengths, seed, epoch, batch index), no sample is held back, and the number of
batches is the same in all epochs.
"""

from __future__ import annotations

import functools
import operator
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mploader.errors import ArgumentError
from mploader.sampling.permutation import Permutation
from mploader.sampling.plan import Plan
from mploader.sampling.samplers import Indices, keep

_EPOCHS_KEPT = 2


@dataclass(frozen=True, eq=False)
class BucketBy:
    """Makes batches of samples of similar length.

    Attributes:
        length: the length of each sample: an integer array (len(source),), or a function of a *sample*, as the source
            gives it, before the transform. The workers call a function once for each sample when the loader is made;
            save the array (:func:`numpy.save`) if that takes long.
        boundaries: increasing lengths at which a new bucket begins. n boundaries make n + 1 buckets; bucket i holds
            lengths from ``boundaries[i - 1]`` (included) to ``boundaries[i]`` (excluded).
        batch_sizes: samples in a batch of each of the n + 1 buckets, so that short samples can come in larger batches.
            The loader's ``batch_size`` is None then. None: the loader's ``batch_size`` for every bucket.

    Raises:
        ArgumentError: the boundaries do not increase, or there is not one batch size for each bucket.
    """

    length: Callable[[Any], int] | Any
    boundaries: Sequence[int]
    batch_sizes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "boundaries", _integers("boundaries", self.boundaries))
        if not self.boundaries or any(b <= a for a, b in zip(self.boundaries, self.boundaries[1:], strict=False)):
            raise ArgumentError(f"BucketBy: boundaries={self.boundaries}: expected increasing lengths, at least one")
        if self.batch_sizes is not None:
            object.__setattr__(self, "batch_sizes", _integers("batch_sizes", self.batch_sizes))
            if len(self.batch_sizes) != len(self.boundaries) + 1 or min(self.batch_sizes) < 1:
                raise ArgumentError(
                    f"BucketBy: batch_sizes={self.batch_sizes}: expected a batch size >= 1 for each of the "
                    f"{len(self.boundaries) + 1} buckets that {len(self.boundaries)} boundaries make"
                )
        if not callable(self.length):
            lengths = np.asarray(self.length)
            if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
                raise ArgumentError(
                    f"BucketBy: length: expected a function or an integer array (samples,), got {lengths.dtype} "
                    f"{lengths.shape}"
                )

    def largest_batch(self, batch_size: int | None) -> int:
        """Returns the number of samples in the largest batch, for the loader's ``batch_size``.

        Raises:
            ArgumentError: batch sizes are given twice, or not at all.
        """
        if self.batch_sizes is not None:
            if batch_size is not None:
                raise ArgumentError(f"batch_size={batch_size}: expected None, since bucket_by has batch_sizes")
            return max(self.batch_sizes)
        if batch_size is None:
            raise ArgumentError("batch_size=None: expected a batch size with bucket_by, or BucketBy(batch_sizes=)")
        return batch_size

    def plan(self, plan: Plan, lengths: Any) -> BucketPlan:
        """Returns a plan with the same sampler whose batches come from buckets.

        Args:
            plan: the loader's plan; its sampler has every sample once in an epoch.
            lengths: integer array (samples,), the length of each sample.

        Raises:
            ArgumentError: there is not one length for each sample, or the sampler is that of a mix.
        """
        if len(lengths) != plan.num_samples:
            raise ArgumentError(f"bucket_by: expected {plan.num_samples} lengths, one a sample, got {len(lengths)}")
        first = plan.chosen_sampler.indices(0, np.arange(plan.num_samples, dtype=np.int64))
        if first.max() >= plan.num_samples or np.bincount(first, minlength=plan.num_samples).max() > 1:
            raise ArgumentError("bucket_by: a mix of sources is not supported; concatenate the sources, or mix loaders")
        buckets = np.searchsorted(np.asarray(self.boundaries), np.asarray(lengths), side="right")
        sizes = self.batch_sizes or (plan.batch_size,) * (len(self.boundaries) + 1)
        return BucketPlan(
            plan.num_samples, plan.batch_size, plan.seed, plan.shuffle, plan.drop_remainder, plan.shard, plan.sampler,
            buckets=buckets.astype(np.min_scalar_type(len(self.boundaries))), bucket_batch_sizes=tuple(sizes),
        )  # fmt: skip


@dataclass(frozen=True)
class _Epoch:
    """The batches of an epoch.

    Attributes:
        indices: all samples, bucket by bucket.
        starts: where each global batch begins in ``indices``.
        lengths: samples of each global batch.
    """

    indices: Indices
    starts: Indices
    lengths: Indices


@dataclass(frozen=True, eq=False)
class BucketPlan(Plan):
    """A plan whose batches come from buckets. Its memory is O(samples): the bucket of each, and the order of an epoch.

    Attributes:
        buckets: unsigned integer array, the bucket of each sample.
        bucket_batch_sizes: samples in a batch of this host, for each bucket.
    """

    buckets: Any = None
    bucket_batch_sizes: tuple[int, ...] = ()
    _epochs: dict[int, _Epoch] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_batches(self) -> int:
        """Batches in an epoch: the same number on every host and in every epoch."""
        counts, windows = self._counts, self._windows
        full = int((counts // windows).sum())
        return full if self.drop_remainder else full + int(np.count_nonzero(counts % windows))

    def batch(self, epoch: int, batch_index: int) -> Indices:
        """See :meth:`Plan.batch`: a global batch is divided over the hosts in the same way."""
        if epoch < 0:
            raise ArgumentError(f"epoch={epoch}: expected an integer >= 0")
        if not 0 <= batch_index < self.num_batches:
            raise IndexError(f"batch {batch_index} of an epoch of {self.num_batches} batches")
        found = self._epoch(epoch)
        index, count = self.shard
        start, length = int(found.starts[batch_index]), int(found.lengths[batch_index])
        return found.indices[start + length * index // count : start + length * (index + 1) // count]

    def batches(self, epoch: int, start: int, stop: int) -> Indices:
        """See :meth:`Plan.batches`."""
        batches = (self.batch(epoch, batch_index) for batch_index in range(start, stop))
        return np.concatenate([np.empty(0, np.int64), *batches])

    @property
    def num_host_samples(self) -> int:
        """See :attr:`Plan.num_host_samples`."""
        index, count = self.shard
        full, rests = np.divmod(self._counts, self._windows)
        shares = rests * (index + 1) // count - rests * index // count
        sizes = np.asarray(self.bucket_batch_sizes, np.int64)
        return int((full * sizes).sum()) + (0 if self.drop_remainder else int(shares.sum()))

    def batch_size_with(self, index: int) -> int:
        """See :meth:`Plan.batch_size_with`."""
        return min(self.bucket_batch_sizes[int(self.buckets[index])], self.longest_batch)

    def progress(self, batch: int) -> int:
        """See :meth:`Plan.progress`: batches and not samples, since batches differ in size."""
        return batch

    def batch_at(self, progress: int) -> tuple[int, int]:
        """See :meth:`Plan.batch_at`."""
        return min(progress, self.num_batches), 0

    def replacement(self, epoch: int, index: int, attempt: int) -> int:
        """See :meth:`Plan.replacement`; samples of the same bucket come first."""
        members = np.flatnonzero(self.buckets == self.buckets[index])
        others = len(members) - 1
        if attempt > others:
            return super().replacement(epoch, index, attempt - others)
        own = int(np.searchsorted(members, index))
        other = int(Permutation(others, self.seed, epoch, index)(attempt - 1))
        return int(members[other + 1 if other >= own else other])

    def fingerprint(self) -> dict[str, int | str | bool]:
        """See :meth:`Plan.fingerprint`."""
        buckets = zlib.crc32(self.buckets.tobytes(), zlib.crc32(self._windows.tobytes()))
        return {**super().fingerprint(), "buckets": f"{buckets:08x} in batches of {self._windows.tolist()}"}

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what can be computed again."""
        return {**self.__dict__, "_epochs": {}}

    @functools.cached_property
    def _counts(self) -> Indices:
        """Samples in each bucket."""
        return np.bincount(self.buckets, minlength=len(self.bucket_batch_sizes))

    @functools.cached_property
    def _windows(self) -> Indices:
        """Samples in a global batch, for each bucket."""
        return np.asarray(self.bucket_batch_sizes, np.int64) * self.shard[1]

    def _epoch(self, epoch: int) -> _Epoch:
        found = self._epochs.get(epoch)
        if found is None:
            found = self._deal(epoch)
            keep(self._epochs, epoch, found, _EPOCHS_KEPT)
        return found

    def _deal(self, epoch: int) -> _Epoch:
        """Computes the batches of an epoch."""
        order = self.chosen_sampler.indices(epoch, np.arange(self.num_samples, dtype=np.int64))
        # The offsets in the epoch, bucket by bucket; within a bucket they keep their order.
        offsets = np.argsort(self.buckets[order], kind="stable")
        starts, lengths, dues = [], [], []
        first = 0
        for bucket, (count, window) in enumerate(zip(self._counts.tolist(), self._windows.tolist(), strict=True)):
            full, rest = divmod(count, window)
            begins = first + window * np.arange(full)
            starts.append(begins)
            lengths.append(np.full(full, window))
            dues.append(offsets[begins + window - 1])  # a batch is due at the offset of its last sample
            if rest and not self.drop_remainder:
                starts.append(np.array([first + window * full]))
                lengths.append(np.array([rest]))
                dues.append(np.array([self.num_samples + bucket]))
            first += count
        turn = np.argsort(np.concatenate(dues))
        return _Epoch(order[offsets], np.concatenate(starts)[turn], np.concatenate(lengths)[turn])


def _integers(name: str, values: Any) -> tuple[int, ...]:
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError:
        raise ArgumentError(f"BucketBy: {name}={values!r}: expected a list of integers") from None
