"""The time that reading, the transform and writing take in a worker, batch by batch.

Two readings of the clock around each stage cost about a microsecond a sample. That is little beside decoding, but much
beside a transform that returns an existing array. So where samples are quick, one in nineteen is timed, and stands
for the others: each stage gets the share of the batch's time that it had in the samples timed recently. Processor time
is read at most a few dozen times a second.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from mploader._util.cpu_time import CpuClock, CpuTimes

QUICK_NS = 200_000
"""Samples that take less on average, over recent batches, are quick."""
STRIDE = 19
"""One quick sample in this number is timed. It is prime, because sources repeat themselves: one that is slow at the
first sample of each batch, shard or block would otherwise be timed at those samples only, or never."""
CPU_NS = 20_000_000
"""The least time between two readings of processor time."""
_RECENT = 4096
"""After this number of samples, all earlier ones weigh half."""

_TIMES = "read_ns", "transform_ns", "write_ns"


@dataclass
class _Recent:
    """Sums over recent batches: of all samples, and of those timed, each multiplied by the number it stands for."""

    taken: float = 0
    elapsed_ns: float = 0
    timed_ns: float = 0
    read_ns: float = 0
    transform_ns: float = 0
    write_ns: float = 0

    @property
    def is_quick(self) -> bool:
        """Whether samples are quick."""
        return self.timed_ns > 0 and self.elapsed_ns < QUICK_NS * self.taken

    def fade(self) -> None:
        """Halves the weight of all that was added."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) / 2)


class StageTimer:
    """The sums of one worker for the batch that it makes.

    Attributes:
        is_timed: whether the current sample is timed: the code that works on it adds to the sums.
        samples_read: samples taken from the source for this batch, all of them.
        bytes_read: their size in bytes; until the batch ends, of those that are timed. Where samples are quick it is
            right over many batches, and not for one.
        read_ns: time in the source; until the batch ends, of those that are timed.
        transform_ns: the same for the transform.
        write_ns: the same for writing into the slot.
    """

    def __init__(self) -> None:
        self._clock = CpuClock()
        self._cpu = self._clock.read()
        self._cpu_ns = time.monotonic_ns()
        self._recent = _Recent()
        self._is_quick = False
        self._taken = 0
        self._until = STRIDE
        """How many samples from here the next one is timed, if they are quick."""
        self._started_ns = self._sample_ns = self._timed_ns = 0
        self.is_timed = False
        self.samples_read = self.bytes_read = self.read_ns = self.transform_ns = self.write_ns = 0

    def start_batch(self, now_ns: int) -> None:
        """A batch begins: the sums start from zero."""
        self._started_ns = now_ns
        self.is_timed = False
        self._taken = self._timed_ns = 0
        self.samples_read = self.bytes_read = self.read_ns = self.transform_ns = self.write_ns = 0

    def start_sample(self) -> None:
        """The next sample of the batch begins."""
        if self.is_timed:
            self._timed_ns += time.monotonic_ns() - self._sample_ns
        self._taken += 1
        self._until -= 1
        if self._is_quick and self._until:
            self.is_timed = False
            return
        if not self._until:
            self._until = STRIDE
        self.is_timed = True
        self._sample_ns = time.monotonic_ns()

    def end_batch(self, now_ns: int) -> None:
        """The batch is complete: the sums of the samples that were timed become estimates for all samples."""
        if self.is_timed:
            self._timed_ns += now_ns - self._sample_ns
            self.is_timed = False
        recent, elapsed_ns = self._recent, now_ns - self._started_ns
        weight = STRIDE if self._is_quick else 1
        recent.taken += self._taken
        recent.elapsed_ns += elapsed_ns
        recent.timed_ns += weight * self._timed_ns
        for name in _TIMES:
            setattr(recent, name, getattr(recent, name) + weight * getattr(self, name))
        self.bytes_read *= weight
        if self._is_quick:
            # Shares of the time that the batch took, so that together they never exceed it.
            for name in _TIMES:
                setattr(self, name, int(elapsed_ns * getattr(recent, name) / recent.timed_ns))
        if recent.taken > _RECENT:
            recent.fade()
        self._is_quick = recent.is_quick

    def cpu_since_last(self, now_ns: int) -> CpuTimes:
        """Processor time since this last returned any. It returns 0 shortly after, and the sum the next time."""
        if now_ns - self._cpu_ns < CPU_NS:
            return CpuTimes(0, 0)
        before, self._cpu, self._cpu_ns = self._cpu, self._clock.read(), now_ns
        return CpuTimes(self._cpu.used_ns - before.used_ns, self._cpu.queued_ns - before.queued_ns)


def sample_bytes(sample: Any) -> int:
    """The size of a sample in bytes, as far as it is known at once: of the bytes and arrays in it."""
    kind = type(sample)
    if kind is bytes:
        return len(sample)
    if kind is np.ndarray:
        return int(sample.nbytes)
    if kind is tuple:
        return sum(map(sample_bytes, sample))
    if kind is dict:
        return sum(map(sample_bytes, sample.values()))
    if kind is list and sample and type(sample[0]) is bytes:
        return sum(map(len, sample))
    return 0
