"""The supervisor thread's view of workers, without workers: memory and pool state are real, processes are fakes."""

from __future__ import annotations

from typing import Any, cast

from mploader.engine.ipc import messages
from mploader.engine.ipc.arena import Arena
from mploader.engine.scheduler.crash_policy import CrashPolicy
from mploader.engine.scheduler.scheduler import Scheduler
from mploader.engine.supervisor.shared_state import PoolState
from mploader.engine.supervisor.worker_process import WorkerProcess
from mploader.engine.supervisor.worker_table import WorkerEntry, WorkerTable
from mploader.monitoring.counters import Counters

SLOTS = 4
BATCH_BYTES = 1000


class FakeProcess:
    """Notes what the trainer does to it."""

    def __init__(self, number: int) -> None:
        self.number = self.index = number
        self.name = f"worker {number}"
        self.pid = 1000 + number
        self.state = "S (sleeping)"
        self.printed = ""
        self.killed_s: float | None = None
        self.sent: list[messages.Message] = []
        self.stacks_asked = 0

    def send(self, message: messages.ToWorker, file: int | None = None) -> None:
        """Notes a message."""
        self.sent.append(message)

    def ask_for_stacks(self) -> None:
        """Notes it, and prints them at once."""
        self.stacks_asked += 1
        self.printed = f"stack of worker {self.index}"

    def kill(self) -> None:
        """Notes it, at the second 1 of the clock."""
        self.killed_s = self.killed_s or 1.0


class FakeWorkerTable:
    """Workers that are ready, some slots, and a run of ten batches in epoch 0; used with the ledger's lock."""

    def __init__(self, workers: int = 2, skips: bool = False) -> None:
        self.arena = Arena(workers)
        self.arena.add_slots(b"layout", SLOTS, BATCH_BYTES)
        self.ledger = PoolState(self.arena)
        self.ledger.schedule = self.schedule = Scheduler(SLOTS, reserved=1, backlog=1)
        self.ledger.layout = cast(Any, type("Layout", (), {"capacity": 8}))
        policy = CrashPolicy(workers, per_epoch=False, skips=skips)
        self.crew = WorkerTable(self.ledger, self.arena, Counters(workers), policy)
        self.crew.ever_ready = True
        self.members = [self.join(number) for number in range(workers)]
        self.run = self.schedule.open_run(0, 10)

    def join(self, number: int, area: int | None = None) -> WorkerEntry:
        """A worker that is ready; a replacement uses the area of the worker before."""
        process = cast(WorkerProcess, FakeProcess(number))
        member = WorkerEntry(process, self.arena.areas[number if area is None else area])
        member.is_ready = member.has_slots = True
        self.crew.members[number] = member
        self.schedule.worker_ready(number)
        return member

    def process(self, number: int = 0) -> FakeProcess:
        """The fake that a worker is."""
        return cast(FakeProcess, self.crew.members[number].process)

    def close(self) -> None:
        """Gives the memory back."""
        self.members.clear()
        self.crew.members.clear()
        self.ledger.close()
        self.arena.close()
