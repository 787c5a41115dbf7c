"""Measures the trainer and the workers during a stress test, twice a second."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from mploader import Loader
from stress.background import Background

INTERVAL_S = 0.5


@dataclass(frozen=True)
class Sample:
    """One measurement of the processes. Sizes are in bytes, CPU use is in processors.

    Attributes:
        at_s: when, in seconds since the start.
        trainer_rss: resident memory of the trainer, including the slots that it has touched.
        trainer_pss: its proportional share: memory that n processes share counts as an n-th each.
        workers_rss: resident memory of all workers together.
        workers_pss: proportional share of all workers together.
        shared: memory of the trainer that is shared with the workers: the slots.
        trainer_cpu: processors that the trainer used since the last measurement.
        workers_cpu: processors that all workers together used.
        descriptors: descriptors that are open in the trainer.
        threads: threads of the trainer.
        workers: workers that are alive.
        batches_per_s: batches delivered per second since the last measurement.
        pause_s: longest wait of the consumer for one batch since the last measurement, including one that is not over.
        restarts: workers replaced so far.
        bad_samples: bad samples left out so far; the loader keeps a report of each.
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
    restarts: int
    bad_samples: int


class Progress:
    """What the main thread waits for, for the other threads to read.

    Attributes:
        batches: batches received so far.
        awaited: what the trainer waits for now; "" if it does not wait.
    """

    def __init__(self) -> None:
        self.batches = 0
        self.awaited = ""
        self._asked_s = 0.0
        self._waited_s = 0.0
        self._recent_s = 0.0
        self._longest_s = 0.0

    @contextlib.contextmanager
    def waiting(self, awaited: str) -> Iterator[None]:
        """A ``with`` block in which the trainer waits for something."""
        self._asked_s, self.awaited = time.monotonic(), awaited
        try:
            yield
        finally:
            self._waited_s, self.awaited = self.waited_s, ""

    def got_batch(self) -> None:
        """Notes that the last wait was for a batch, which has arrived."""
        self._recent_s = max(self._recent_s, self._waited_s)
        self._longest_s = max(self._longest_s, self._waited_s)
        self.batches += 1

    @property
    def waited_s(self) -> float:
        """How long the trainer has been waiting for ``awaited``, in seconds."""
        return time.monotonic() - self._asked_s if self.awaited else 0.0

    @property
    def longest_pause_s(self) -> float:
        """The longest wait of the whole test in seconds, including one that is not over."""
        return max(self._longest_s, self.waited_s)

    def take_recent_pause(self) -> float:
        """The longest wait since the last call in seconds, including one that is not over."""
        recent_s, self._recent_s = self._recent_s, 0.0
        return max(recent_s, self.waited_s)


class Sampler(Background):
    """A thread that measures the processes until it is ended.

    Only this thread and the chaos thread call the loader while it runs. Others read the measurements, so that a lock of
    the loader that is never released stops no other thread.

    Args:
        loader: the loader to measure.
        progress: progress of the trainer.
        start_s: when the test started, on ``time.monotonic()``.

    Attributes:
        samples: the measurements, oldest first.
    """

    def __init__(self, loader: Loader, progress: Progress, start_s: float) -> None:
        super().__init__("sampler")
        self.samples: list[Sample] = []
        self._loader: Loader | None = loader
        self._progress = progress
        self._start_s = start_s
        self._trainer = psutil.Process()
        self._workers: dict[int, psutil.Process] = {}
        self._cpu_s: dict[int, float] = {}
        self._seen = (start_s, 0)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers at the last measurement."""
        return list(self._workers)

    def end(self) -> None:
        """Ends the thread and waits for it."""
        super().end()
        self._loader = None  # its memory is to be released

    def _run(self) -> None:
        loader = self._loader
        assert loader is not None
        while not self._ended.wait(INTERVAL_S):
            self.samples.append(self._measure(loader))

    def _measure(self, loader: Loader) -> Sample:
        now_s = time.monotonic()
        before_s, before = self._seen
        self._seen = now_s, self._progress.batches
        passed_s = now_s - before_s
        rss = pss = alive = 0
        workers_cpu_s = 0.0
        known, workers = self._workers, {}
        for pid in loader.worker_pids:
            with contextlib.suppress(psutil.Error):  # it may have been killed a moment ago
                worker = workers[pid] = known.get(pid) or psutil.Process(pid)
                memory = worker.memory_full_info()
                rss, pss, alive = rss + memory.rss, pss + memory.pss, alive + 1
                workers_cpu_s += self._cpu_since(pid, worker)
        self._workers = workers
        statistics = loader.statistics()
        memory = self._trainer.memory_full_info()
        return Sample(
            now_s - self._start_s, memory.rss, memory.pss, rss, pss, memory.shared,
            self._cpu_since(self._trainer.pid, self._trainer) / passed_s, workers_cpu_s / passed_s,
            self._trainer.num_fds(), self._trainer.num_threads(), alive, (self._seen[1] - before) / passed_s,
            self._progress.take_recent_pause(), statistics.restarts, statistics.bad_samples,
        )  # fmt: skip

    def _cpu_since(self, pid: int, process: psutil.Process) -> float:
        times = process.cpu_times()
        used_s = times.user + times.system
        before_s = self._cpu_s.get(pid, used_s)
        self._cpu_s[pid] = used_s
        return used_s - before_s
