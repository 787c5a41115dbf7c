"""Kills and stops workers at random times during a stress test."""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stress.background import Background

TICK_S = 0.02
PATIENCE = 3
"""A stopped worker is left alone until it is replaced, for at most so many times ``stall_timeout``."""
SLACK_S = 5.0
"""Added to that, because noticing, printing stacks and starting a replacement takes time on a loaded machine."""


@dataclass(frozen=True)
class Incident:
    """A fault that was done to a worker.

    Attributes:
        at_s: when, in seconds since the start.
        kind: "kill" or "stall".
        pid: the process.
    """

    at_s: float
    kind: str
    pid: int


@dataclass(frozen=True)
class Workers:
    """The workers of a loader at one time.

    Attributes:
        pids: process ids of the live workers, in the order of their indices.
        batches: batches made so far by the workers with each index.
        assigned: slots assigned to workers; 0: no worker has work.
    """

    pids: Sequence[int]
    batches: Sequence[int]
    assigned: int


@dataclass
class Stop:
    """A worker that was stopped and is left alone until the loader replaces it.

    Attributes:
        at_s: since when, on ``time.monotonic()``.
        is_idle: it may have no work, and then the loader need not replace it.
    """

    at_s: float
    is_idle: bool = False


class Chaos(Background):
    """A thread that kills and stops workers until it is told to end.

    Only workers that have made a batch are stopped, because the loader allows a minute for a start. One of several
    workers is never stopped, because a loader whose workers all hang gives up, as it should. The first stop is as early
    as possible, so that a short test has one.

    Args:
        workers: returns the workers.
        kills_per_minute: workers killed per minute, on average.
        stalls_per_minute: workers stopped per minute, on average. The loader has to notice and replace them.
        stall_timeout_s: of the loader.
        seed: seed of the times and of the choice of workers.
        start_s: when the test started, on ``time.monotonic()``.

    Attributes:
        incidents: the faults, in order.
        recovered: stopped workers that the loader replaced.
        overdue: stopped workers that had work and were not replaced in time.
        patience_s: how long a stopped worker is left alone.
    """

    def __init__(
        self,
        workers: Callable[[], Workers],
        kills_per_minute: float,
        stalls_per_minute: float,
        stall_timeout_s: float,
        seed: int,
        start_s: float,
    ) -> None:
        super().__init__("chaos")
        self.incidents: list[Incident] = []
        self.recovered = self.overdue = 0
        self._workers: Callable[[], Workers] | None = workers
        self._rates = {"stall": stalls_per_minute / 60, "kill": kills_per_minute / 60}
        self.patience_s = PATIENCE * stall_timeout_s + SLACK_S
        self._random = random.Random(seed)
        self._start_s = start_s
        self._due_s = {"stall": start_s if stalls_per_minute else math.inf, "kill": self._next_s("kill", start_s)}
        self._first: dict[int, int] = {}
        """By process id, the batches of a worker when it was first seen."""
        self._ready: set[int] = set()
        """Workers that have made a batch."""
        self._stopped: dict[int, Stop] = {}

    def end(self) -> None:
        """Ends the thread and waits for it."""
        super().end()
        self._workers = None  # it refers to the loader, whose memory is to be released

    @property
    def killed(self) -> int:
        """How many workers were killed. One that was killed twice, before the loader noticed, counts once."""
        return len(self._killed)

    @property
    def stopped(self) -> int:
        """How many workers were stopped."""
        return sum(incident.kind == "stall" for incident in self.incidents)

    @property
    def awaits_replacement(self) -> bool:
        """Whether a worker is stopped, has work, and may still be replaced in time."""
        return any(not stop.is_idle for stop in self._stopped.values())

    @property
    def _killed(self) -> set[int]:
        return {incident.pid for incident in self.incidents if incident.kind == "kill"}

    def note(self, workers: Workers, now_s: float) -> None:
        """Notes the state of the workers."""
        if len(workers.pids) == len(workers.batches):  # otherwise it is unknown which is which
            for pid, batches in zip(workers.pids, workers.batches, strict=True):
                if batches > self._first.setdefault(pid, batches):
                    self._ready.add(pid)
        self._ready &= set(workers.pids)
        for pid, stop in list(self._stopped.items()):
            stop.is_idle |= not workers.assigned
            if pid not in workers.pids:
                self.recovered += 1
            elif now_s - stop.at_s > self.patience_s:
                self.overdue += not stop.is_idle
            else:
                continue
            del self._stopped[pid]

    def strike(self, workers: Workers, now_s: float) -> None:
        """Kills and stops workers if it is time to."""
        self.note(workers, now_s)
        for kind, due_s in self._due_s.items():
            pids = [pid for pid in workers.pids if self._may(kind, pid, workers)] if now_s >= due_s else []
            if not pids:
                continue
            pid = self._random.choice(pids)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
                self.incidents.append(Incident(now_s - self._start_s, kind, pid))
                if kind == "stall":
                    self._stopped[pid] = Stop(now_s)
            self._due_s[kind] = self._next_s(kind, now_s)

    def _may(self, kind: str, pid: int, workers: Workers) -> bool:
        """Whether a worker may be killed or stopped now."""
        if pid in self._stopped or pid in self._killed:
            return False
        if kind == "kill":
            return True
        others = self._ready - self._killed - self._stopped.keys() - {pid}
        return pid in self._ready and (bool(others) or len(workers.batches) == 1)

    def _next_s(self, kind: str, now_s: float) -> float:
        rate = self._rates[kind]
        return now_s + self._random.expovariate(rate) if rate else math.inf

    def _run(self) -> None:
        while any(self._rates.values()) and not self._ended.wait(TICK_S):
            assert self._workers is not None
            self.strike(self._workers(), time.monotonic())
