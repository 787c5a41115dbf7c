"""What goes wrong during a stress test: workers are killed and stopped, at random moments."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from stress.background import Background


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


class Chaos(Background):
    """A thread that kills and stops workers until it is told to end.

    Args:
        pids: gives the process ids of the workers.
        kills_per_minute: how often one is killed, on average.
        stalls_per_minute: how often one is stopped, on average; the loader has to notice and replace it.
        seed: of the moments and the choice of workers.
        start_s: when the test started, on ``time.monotonic()``.
    """

    def __init__(
        self,
        pids: Callable[[], list[int]],
        kills_per_minute: float,
        stalls_per_minute: float,
        seed: int,
        start_s: float,
    ) -> None:
        super().__init__("chaos")
        self.incidents: list[Incident] = []
        self._pids = pids
        self._rates = {"kill": kills_per_minute / 60, "stall": stalls_per_minute / 60}
        self._random = random.Random(seed)
        self._start_s = start_s

    def end(self) -> None:
        """Ends."""
        super().end()
        self._pids = list  # what it was refers to the loader, whose memory is to go

    @property
    def killed(self) -> int:
        """How many workers have been killed: one that was killed twice, before anybody noticed, counts once."""
        return len({incident.pid for incident in self.incidents if incident.kind == "kill"})

    def _run(self) -> None:
        total = sum(self._rates.values())
        while total > 0 and not self._ended.wait(self._random.expovariate(total)):
            pids = self._pids()
            if not pids:
                continue
            kind = self._random.choices(list(self._rates), list(self._rates.values()))[0]
            pid = self._random.choice(pids)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
                self.incidents.append(Incident(time.monotonic() - self._start_s, kind, pid))
