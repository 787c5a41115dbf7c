"""What the machine says of trainer and workers during a stress test, twice a second."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

INTERVAL_S = 0.5


@dataclass(frozen=True)
class Sample:
    """One look at the processes. Sizes in bytes, processor use in parts of one processor.

    Attributes:
        at_s: when, in seconds since the start.
        trainer_rss: resident memory of the trainer, the slots that it has touched included.
        trainer_pss: its proportional share: memory that n processes share counts as an n-th each.
        workers_rss: of all workers together.
        workers_pss: of all workers together.
        shared: memory of the trainer that is shared with the workers: the slots.
        trainer_cpu: processors that the trainer has used since the last look.
        workers_cpu: processors that all workers together have used.
        descriptors: open in the trainer.
        threads: of the trainer.
        workers: alive.
        batches_per_s: delivered a second since the last look.
        pause_s: longest time that the consumer has waited for one batch since the last look.
    """

    at_s: float
    trainer_rss: int
    trainer_pss: int
    workers_rss: int
    workers_pss: int
    shared: int
    trainer_cpu: float
    workers_cpu: float
    descriptors: int
    threads: int
    workers: int
    batches_per_s: float
    pause_s: float


class Progress:
    """What the consumer tells the sampler."""

    def __init__(self) -> None:
        self.batches = 0
        self.longest_pause_s = 0.0
        """Of the whole test."""
        self._recent_s = 0.0
        self._asked_s = 0.0

    def ask(self) -> None:
        """The consumer asks for a batch now."""
        self._asked_s = time.monotonic()

    def got(self) -> None:
        """The consumer has got it."""
        waited_s = time.monotonic() - self._asked_s
        self._recent_s = max(self._recent_s, waited_s)
        self.longest_pause_s = max(self.longest_pause_s, waited_s)
        self.batches += 1

    def take_recent_pause(self) -> float:
        """The longest wait since the last call."""
        recent_s, self._recent_s = self._recent_s, 0.0
        return recent_s


class Sampler:
    """A thread that looks at the processes until it is told to end.

    Args:
        pids: gives the process ids of the workers.
        progress: what the consumer tells.
        start_s: when the test started, on ``time.monotonic()``.
    """

    def __init__(self, pids: Callable[[], list[int]], progress: Progress, start_s: float) -> None:
        self.samples: list[Sample] = []
        self._pids = pids
        self._progress = progress
        self._start_s = start_s
        self._trainer = psutil.Process()
        self._workers: dict[int, psutil.Process] = {}
        self._cpu_s: dict[int, float] = {}
        self._seen = (start_s, 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler")

    def __enter__(self) -> Sampler:
        """Starts."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends."""
        self._ended.set()
        self._thread.join()
        self._pids = list  # what it was refers to the loader, whose memory is to go

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self.samples.append(self._look())

    def _look(self) -> Sample:
        now_s = time.monotonic()
        before_s, before = self._seen
        self._seen = now_s, self._progress.batches
        passed_s = now_s - before_s
        rss = pss = alive = 0
        workers_cpu_s = 0.0
        known, self._workers = self._workers, {}
        for pid in self._pids():
            with contextlib.suppress(psutil.Error):  # it may have been killed a moment ago
                worker = self._workers[pid] = known.get(pid) or psutil.Process(pid)
                memory = worker.memory_full_info()
                rss, pss, alive = rss + memory.rss, pss + memory.pss, alive + 1
                workers_cpu_s += self._cpu_since(pid, worker)
        memory = self._trainer.memory_full_info()
        return Sample(
            now_s - self._start_s, memory.rss, memory.pss, rss, pss, memory.shared,
            self._cpu_since(self._trainer.pid, self._trainer) / passed_s, workers_cpu_s / passed_s,
            self._trainer.num_fds(), self._trainer.num_threads(), alive, (self._seen[1] - before) / passed_s,
            self._progress.take_recent_pause(),
        )  # fmt: skip

    def _cpu_since(self, pid: int, process: psutil.Process) -> float:
        times = process.cpu_times()
        used_s = times.user + times.system
        before_s = self._cpu_s.get(pid, used_s)
        self._cpu_s[pid] = used_s
        return used_s - before_s
