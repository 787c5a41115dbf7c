"""The supervisor thread's view of workers, without workers. Shared memory, state and scheduler are real."""

from __future__ import annotations

from typing import Any, cast

from mploader.engine.ipc import messages
from mploader.engine.ipc.arena import Arena
from mploader.engine.ipc.job import GeneratorJob, Job, SampleJob
from mploader.engine.ipc.on_bad_sample import OnBadSample
from mploader.engine.ipc.sample_report import STALLED
from mploader.engine.ipc.worker_status import WorkerStatus
from mploader.engine.scheduler.crash_policy import CrashPolicy
from mploader.engine.scheduler.scheduler import Scheduler
from mploader.engine.scheduler.states import Assignment, Taken
from mploader.engine.supervisor.ready_batch import ReadyBatch
from mploader.engine.supervisor.shared_state import PoolState
from mploader.engine.supervisor.worker_handle import Received
from mploader.engine.supervisor.worker_table import WorkerEntry, WorkerTable
from mploader.monitoring.counters import Counters
from mploader.sampling.plan import Plan

SLOTS = 4
BATCH_BYTES = 1000
BATCH = 8
BATCHES = 10


class FakeHandle:
    """A worker that does nothing but note what is done to it; see :class:`WorkerHandle`.

    Attributes:
        sent: the messages that it was sent.
        stacks_asked: how often it was asked for its stacks.
    """

    start = 1
    state = "S (sleeping)"
    is_closed_by_peer = False
    is_dead = False
    message_fd = exit_fd = output_fd = -1

    def __init__(self, number: int, index: int, status: WorkerStatus) -> None:
        self.number = number
        self.index = index
        self.name = f"worker {number}"
        self.pid = 1000 + number
        self.status = status
        self.printed = ""
        self.killed_s: float | None = None
        self.sent: list[messages.ToWorker] = []
        self.stacks_asked = 0

    def send(self, message: messages.ToWorker, file: int | None = None) -> None:
        """Notes a message."""
        self.sent.append(message)

    def receive(self) -> Received | None:
        """It sends nothing by itself."""
        return None

    def read_output(self) -> bytes | None:
        """It prints nothing by itself."""
        return None

    def ask_to_end(self) -> None:
        """It stays."""

    def ask_for_stacks(self) -> None:
        """Notes it, and prints them at once."""
        self.stacks_asked += 1
        self.printed = f"stack of worker {self.index}"

    def kill(self) -> None:
        """Notes it, at the second 1 of the clock."""
        self.killed_s = self.killed_s or 1.0

    def reap(self) -> int:
        """There is nothing to collect."""
        return 0

    def close(self) -> None:
        """There is nothing to close."""


class FakeWorkerTable:
    """A worker table with ready workers, some slots, and a series of ten batches; used with the lock of its state.

    Args:
        workers: how many.
        skips: bad samples are dropped.
        inputs: of a generator, in place of the series over an epoch; None: there is no generator.

    Attributes:
        entries: those that were there at first, by index.
        series: the series over epoch 0, or over the first input.
    """

    def __init__(self, workers: int = 2, skips: bool = False, inputs: list[Any] | None = None) -> None:
        self.arena = Arena(workers)
        self.arena.add_slots(SLOTS, BATCH_BYTES)
        self.state = PoolState(self.arena, workers)
        self.state.scheduler = self.scheduler = Scheduler(SLOTS, reserved=1, backlog=1)
        self.state.layout = cast(Any, type("Layout", (), {"capacity": BATCH}))
        policy = CrashPolicy(workers, per_epoch=False, skips=skips, stalled=STALLED)
        self.table = WorkerTable(self.state, self.arena, Counters(workers), policy, _job(skips, inputs))
        self.table.was_ready = True
        self.entries = [self.join(number) for number in range(workers)]
        self.series = self.scheduler.open_series(0, BATCHES) if inputs is None else self.scheduler.open_input(0, 2)

    def join(self, number: int, index: int | None = None) -> WorkerEntry:
        """Adds a worker that is ready; a replacement has the index, and so the status, of the worker before."""
        index = number if index is None else index
        entry = WorkerEntry(FakeHandle(number, index, self.arena.statuses[index]))
        entry.is_ready, entry.segments = True, 1
        self.table.entries[number] = entry
        self.scheduler.worker_ready(number)
        return entry

    def handle(self, number: int = 0) -> FakeHandle:
        """The fake behind an entry."""
        return cast(FakeHandle, self.table.entries[number].handle)

    def assigned(self) -> Assignment:
        """The next assignment."""
        assignment = self.scheduler.assign()
        assert assignment is not None
        return assignment

    def taken(self, batch_index: int = 0) -> tuple[Taken, ReadyBatch]:
        """Takes a batch that is ready, with what the pool keeps with it."""
        taken = self.scheduler.take(self.series, batch_index)
        assert taken is not None
        assert isinstance(taken.result, ReadyBatch)
        return taken, taken.result

    def close(self) -> None:
        """Gives the memory back."""
        self.entries.clear()
        self.table.entries.clear()
        self.state.close()
        self.arena.close()


def _job(skips: bool, inputs: list[Any] | None) -> Job:
    if inputs is not None:
        return GeneratorJob(generator=iter, inputs=inputs)
    samples = BATCH * BATCHES
    plan = Plan(samples, BATCH, 0, False, False)
    policy = "drop" if skips else "raise"
    return SampleJob(
        source=range(samples), transform=None, plan=plan, on_bad_sample=OnBadSample.of(policy), is_batched=True
    )
