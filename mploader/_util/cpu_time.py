"""How much processor time this process has used, and how long it has queued for a processor."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from typing import NamedTuple


class CpuTimes(NamedTuple):
    """Totals since the process started, in nanoseconds. A tuple, because two are made for each batch.

    Attributes:
        used_ns: processor time of all threads.
        queued_ns: time in which the main thread was ready to run and others had the processors; 0 if the kernel does
            not report it.
    """

    used_ns: int
    queued_ns: int


class CpuClock:
    """Reads the times of this process; a reading takes about 2 us."""

    def __init__(self) -> None:
        self._fd: int | None = None
        with contextlib.suppress(OSError):
            # Described in the kernel's Documentation/scheduler/sched-stats.rst: time on a processor, time queued, runs.
            self._fd = os.open("/proc/self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._fd).atexit = False

    def read(self) -> CpuTimes:
        """Returns the totals so far."""
        queued_ns = int(os.pread(self._fd, 128, 0).split()[1]) if self._fd is not None else 0
        return CpuTimes(time.process_time_ns(), queued_ns)
