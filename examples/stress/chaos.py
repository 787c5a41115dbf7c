"""What goes wrong during a stress test: workers are killed and stopped, at random moments."""

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
"""A stopped worker is left alone until it was replaced, for so many times ``stall_timeout`` at most."""
SLACK_S = 5.0
"""How much longer than that: to notice, to print stacks and to start a replacement takes time on a loaded machine."""


@dataclass(frozen=True)
class Incident:
    """One thing that was done to a worker.

    Attributes:
        at_s: when, in seconds since the start.
        kind: "kill" or "stall".
        pid: to which process.
    """

    at_s: float
    kind: str
    pid: int


@dataclass(frozen=True)
class Workers:
    """The workers of a loader at one moment.

    Attributes:
        pids: the process ids of the living, in the order of their indices.
        batches: made so far by each worker and those that it replaces; one for each index.
        leased: slots that workers write to, or will next; 0: nobody has work.
    """

    pids: Sequence[int]
    batches: Sequence[int]
    leased: int


@dataclass
class Stop:
    """A worker that was stopped and is left alone until the loader replaces it.

    Attributes:
        at_s: since when, on ``time.monotonic()``.
        is_idle: it may have no work; the loader then has no reason to replace it.
    """

    at_s: float
    is_idle: bool = False


class Chaos(Background):
    """A thread that kills and stops workers until it is told to end.

    Only workers that have made a batch are stopped: the loader gives one that starts a minute. One worker at least is
    not stopped, if there are several: if all hang, the loader rightly gives up. The first stop comes as soon as it can,
    so that a short test has one.

    Args:
        workers: gives the workers.
        kills_per_minute: how often one is killed, on average.
        stalls_per_minute: how often one is stopped, on average; the loader has to notice and replace it.
        stall_timeout_s: of the loader.
        seed: of the moments and the choice of workers.
        start_s: when the test started, on ``time.monotonic()``.

    Attributes:
        incidents: what was done, in order.
        recovered: stopped workers that the loader has replaced by itself.
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
        """What the batches of a worker were when it was first seen, by process id."""
        self._ready: set[int] = set()
        """Workers that have made a batch."""
        self._stopped: dict[int, Stop] = {}

    def end(self) -> None:
        """Ends."""
        super().end()
        self._workers = None  # it refers to the loader, whose memory is to go

    @property
    def killed(self) -> int:
        """How many workers have been killed: one that was killed twice, before anybody noticed, counts once."""
        return len(self._killed)

    @property
    def stopped(self) -> int:
        """How many workers have been stopped."""
        return sum(incident.kind == "stall" for incident in self.incidents)

    @property
    def awaits_replacement(self) -> bool:
        """Whether a worker is stopped, has work, and may still be replaced in time."""
        return any(not stop.is_idle for stop in self._stopped.values())

    @property
    def _killed(self) -> set[int]:
        return {incident.pid for incident in self.incidents if incident.kind == "kill"}

    def note(self, workers: Workers, now_s: float) -> None:
        """Takes note of how the workers are."""
        if len(workers.pids) == len(workers.batches):  # otherwise nobody knows which is which
            for pid, batches in zip(workers.pids, workers.batches, strict=True):
                if batches > self._first.setdefault(pid, batches):
                    self._ready.add(pid)
        self._ready &= set(workers.pids)
        for pid, stop in list(self._stopped.items()):
            stop.is_idle |= not workers.leased
            if pid not in workers.pids:
                self.recovered += 1
            elif now_s - stop.at_s > self.patience_s:
                self.overdue += not stop.is_idle
            else:
                continue
            del self._stopped[pid]

    def strike(self, workers: Workers, now_s: float) -> None:
        """Kills and stops those whose time has come."""
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
        """Whether something may be done to a worker now."""
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
