"""What reading, the transform and writing take in a worker, told a batch at a time.

Two readings of the clock around each stage cost about a microsecond a sample. That is nothing beside decoding, but much
beside a transform that returns an array it has ready. So where samples are quick, one in sixteen is timed, and the
shares of their time that the stages of those took lately are taken for those of all. Processor time is read a few dozen
times a second at most.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from mploader._util.cpu_time import CpuClock, CpuTimes

QUICK_NS = 200_000
"""Samples that take less, in the mean of recent batches, are quick."""
STRIDE = 16
"""One quick sample in so many is timed."""
CPU_NS = 20_000_000
"""How often processor time is read at most."""
_RECENT = 4096
"""After so many samples, what was before weighs half."""
_GOLDEN = 40_503
"""65,536 times the golden ratio: steps of it spread evenly, and meet no short period of the source."""

_TIMES = "read_ns", "transform_ns", "write_ns"


@dataclass
class _Recent:
    """Sums over recent batches: of all samples, and of those that were timed, each as often as it stands for others."""

    taken: float = 0
    elapsed_ns: float = 0
    timed_ns: float = 0
    read_ns: float = 0
    transform_ns: float = 0
    write_ns: float = 0

    @property
    def is_quick(self) -> bool:
        return self.timed_ns > 0 and self.elapsed_ns < QUICK_NS * self.taken

    def fade(self) -> None:
        """Lets all of it weigh half."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) / 2)


class StageTimer:
    """The sums of one worker.

    Attributes:
        is_timed: whether the sample in hand is timed: whoever works on it adds to the sums.
        samples_read: samples taken from the source for this batch, all of them.
        bytes_read: their size; of those that are timed, until the batch is complete. Where samples are quick it is
            right over many batches, and not for one.
        read_ns: time in the source; of those that are timed, until then.
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
        self._until = 1
        """How many samples from here the next one is timed, if they are quick."""
        self._turn = 0
        """Where among its sixteen that one lies, as a part of 65,536."""
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
        """The next sample of the batch comes in hand."""
        if self.is_timed:
            self._timed_ns += time.monotonic_ns() - self._sample_ns
        self._taken += 1
        self._until -= 1
        if self._is_quick and self._until:
            self.is_timed = False
            return
        if not self._until:
            # Its place among sixteen moves on, across batches: a source that is slow at every sixteenth sample, or at
            # the first of each batch, would otherwise be timed at those only, or at none of them.
            before, self._turn = self._turn, (self._turn + _GOLDEN) % 2**16
            self._until = STRIDE + (self._turn * STRIDE >> 16) - (before * STRIDE >> 16)
        self.is_timed = True
        self._sample_ns = time.monotonic_ns()

    def end_batch(self, now_ns: int) -> None:
        """The batch is complete: the sums of the samples that were timed become those of all, as far as is known."""
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
            # As parts of the time that the batch took, so that together they never exceed it.
            for name in _TIMES:
                setattr(self, name, int(elapsed_ns * getattr(recent, name) / recent.timed_ns))
        if recent.taken > _RECENT:
            recent.fade()
        self._is_quick = recent.is_quick

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
