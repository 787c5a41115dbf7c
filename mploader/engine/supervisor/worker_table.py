"""What the supervising thread knows of its workers; its parts (``intake``, ``losses``, ``supervisor``) share it.

A *member* is one incarnation of a worker; a replacement is another member.
"""

from __future__ import annotations

import logging
import sys
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from mploader.engine.ipc.arena import Arena, WorkerArea
from mploader.engine.ipc.serialization import SharedFile
from mploader.engine.scheduler.crash_policy import DESCRIPTION, CrashPolicy, InHand
from mploader.engine.supervisor.shared_state import PoolState
from mploader.engine.supervisor.worker_process import WorkerProcess
from mploader.engine.worker.loop import Description
from mploader.errors import LoaderError
from mploader.monitoring.statistics import Counters

log = logging.getLogger("mploader")


class WorkerEntry:
    """What the supervisor remembers of one incarnation of a worker."""

    def __init__(self, process: WorkerProcess, area: WorkerArea) -> None:
        self.process = process
        self.area = area
        self.is_ready = False
        self.has_slots = False
        self.renewal: weakref.ref[SharedFile] | None = None
        self.describing = False
        self.broken: str | None = None
        self.is_distrusted = False
        """It has sent nonsense; nothing that it says counts any more."""
        self.progress = -1
        self.progress_s = time.monotonic()
        self.stacks_asked_s: float | None = None
        self.closed_s: float | None = None
        """When it was seen to have closed its channel."""
        self.is_abandoned = False

    def __str__(self) -> str:
        return f"{self.process.name} (pid {self.process.pid}, {self.process.state})"


class WorkerTable:
    """The workers of one pool, and what there is to know about all of them.

    Args:
        ledger: the state that is shared with consumers.
        arena: the shared memory.
        counters: where work done is counted.
        blame: finds out why workers end.
        shards: what the generators are called with.
    """

    def __init__(
        self, ledger: PoolState, arena: Arena, counters: Counters, blame: CrashPolicy, shards: Sequence[Any] = ()
    ) -> None:
        self.ledger = ledger
        self.arena = arena
        self.counters = counters
        self.blame = blame
        self.shards = shards
        self.members: dict[int, WorkerEntry] = {}
        """Those that are not collected yet, by the number of their incarnation."""
        self.ever_ready = False
        self.last_words: dict[int, str] = {}
        """What the last worker printed that a condemned sample has killed, by sample."""
        self.stacks: dict[int, str] = {}
        """What the workers printed that have hung since a batch was made, by index."""
        self._to_print: list[str] = []
        self._to_log: list[str] = []

    def in_hand(self, member: WorkerEntry) -> InHand:
        """What a worker was at."""
        area = member.area
        if member.describing:
            return InHand(DESCRIPTION, 0, area.ordinal, area.sample, depends_on_epoch=area.depends_on_epoch)
        schedule = self.ledger.schedule
        leases = () if schedule is None else schedule.leases(member.process.number)
        if not leases or leases[0].task != area.task:
            return InHand()
        lease, place = leases[0], -1
        if lease.stream < 0 and area.ordinal >= 0:
            assert self.ledger.layout is not None
            place = lease.first + lease.position * self.ledger.layout.capacity + area.ordinal
        return InHand(area.task, lease.epoch, area.ordinal, area.sample, place, area.depends_on_epoch)

    def made(self, task: int) -> None:
        """A batch was made, or a sample described: whatever has hung or ended before, workers work."""
        self.blame.made(task)
        self.stacks.clear()

    def answer_description(self, member: WorkerEntry, answer: Description | LoaderError) -> None:
        """Gives the consumer what it has asked of a sample."""
        member.describing = False
        self.made(DESCRIPTION)
        self.ledger.to_describe, self.ledger.description = None, answer
        self.ledger.changed.notify_all()

    def print(self, text: str) -> None:
        """Notes what a worker has printed, for :meth:`say`."""
        self._to_print.append(text)

    def warn(self, text: str) -> None:
        """Notes a line for the log, for :meth:`say`."""
        self._to_log.append(text)

    def say(self) -> None:
        """Prints and logs what has come up. Without the lock: handlers of the user may call the loader, or wait."""
        prints, self._to_print = self._to_print, []
        logs, self._to_log = self._to_log, []
        with suppress(Exception):  # of a stream or a handler that belongs to the user
            if prints and sys.stderr is not None:
                sys.stderr.write("".join(prints))
                sys.stderr.flush()
        with suppress(Exception):
            for text in logs:
                log.warning("%s", text)


def printed(process: WorkerProcess) -> str:
    """What a worker has printed, as the end of a message; nothing if it has not."""
    return f" It printed:\n{process.printed}" if process.printed else ""
