"""What reading, the transform and writing take in a worker, told a batch at a time.

Two readings of the clock around each stage cost about a microsecond a sample. That is nothing beside decoding, but much
beside a transform that returns an array it has ready. So where samples are quick, one in sixteen is timed and stands
for the others, and processor time is read a few dozen times a second at most.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from mploader.cpuclock import CpuClock, CpuTimes

QUICK_NS = 200_000
"""Samples that take less, in the mean of the last batch, are quick."""
STRIDE = 16
"""One quick sample in so many is timed."""
CPU_NS = 20_000_000
"""How often processor time is read at most."""


class Stages:
    """The sums of one worker.

    Attributes:
        is_timed: whether the sample in hand is timed: whoever works on it adds to the sums.
        samples_read: samples taken from the source for this batch, all of them.
        bytes_read: their size; of those that are timed.
        read_ns: time in the source; of those that are timed.
        transform_ns: the same for the transform.
        write_ns: the same for writing into the slot.
    """

    def __init__(self) -> None:
        self._clock = CpuClock()
        self._cpu = self._clock.read()
        self._cpu_ns = time.monotonic_ns()
        self._stride = 1
        self._taken = self._timed = 0
        self._started_ns = 0
        self.is_timed = True
        self.samples_read = self.bytes_read = self.read_ns = self.transform_ns = self.write_ns = 0

    def start_batch(self, now_ns: int) -> None:
        """A batch begins: the sums start from zero."""
        self._started_ns = now_ns
        self._taken = self._timed = 0
        self.samples_read = self.bytes_read = self.read_ns = self.transform_ns = self.write_ns = 0

    def start_sample(self) -> None:
        """The next sample of the batch comes in hand."""
        self.is_timed = self._taken % self._stride == 0
        self._timed += self.is_timed
        self._taken += 1

    def end_batch(self, now_ns: int) -> None:
        """The batch is complete: the sums of the samples that were timed become those of all, as far as is known."""
        if self._timed:
            share = self._taken / self._timed
            for name in ("bytes_read", "read_ns", "transform_ns", "write_ns"):
                setattr(self, name, round(share * getattr(self, name)))
        self._stride = STRIDE if now_ns - self._started_ns < QUICK_NS * self._taken else 1

    def cpu_since_last(self, now_ns: int) -> CpuTimes:
        """Processor time since it was told last; nothing if that is a moment ago, and the next time tells it all."""
        if now_ns - self._cpu_ns < CPU_NS:
            return CpuTimes(0, 0)
        before, self._cpu, self._cpu_ns = self._cpu, self._clock.read(), now_ns
        return CpuTimes(self._cpu.used_ns - before.used_ns, self._cpu.queued_ns - before.queued_ns)


def sample_bytes(sample: Any) -> int:
    """The size of what a source gave, as far as it is told at once: the bytes and arrays in it."""
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
