"""The workers of one pool, and what the supervisor thread knows of each.

Its parts (the message handler, the failure handler, the supervisor) share the table. An *entry* is one incarnation of a
worker; a replacement has another entry.
"""

from __future__ import annotations

import logging
import sys
import time
import weakref
from contextlib import suppress

from mploader.engine.ipc.arena import Arena
from mploader.engine.ipc.job import Job, ProbeResult
from mploader.engine.ipc.serialization import SharedFile
from mploader.engine.scheduler.crash_policy import CrashPolicy, InHand, Probing, TaskInHand
from mploader.engine.supervisor.shared_state import PoolState
from mploader.engine.supervisor.worker_handle import WorkerHandle
from mploader.errors import LoaderError
from mploader.monitoring.counters import Counters

log = logging.getLogger("mploader")


class WorkerEntry:
    """One incarnation of a worker.

    Attributes:
        handle: the worker itself.
        is_ready: it has said hello.
        segments: how many segments of slots it knows.
        renewal: the source that was sent to it last.
        is_probing: it was asked to probe a sample.
        broken: why it cannot start, in its own words.
        is_distrusted: it has sent nonsense; nothing that it says counts any more.
        is_abandoned: it was killed and does not die.
        progress: what its status showed last; None before the first look.
        progress_s: since when that has not changed.
        stacks_asked_s: when it was asked for its stacks; None: it was not.
        closed_s: when it was seen to have closed its channel; None: it has not.
    """

    def __init__(self, handle: WorkerHandle) -> None:
        self.handle = handle
        self.is_ready = False
        self.segments = 0
        self.renewal: weakref.ref[SharedFile] | None = None
        self.is_probing = False
        self.broken: str | None = None
        self.is_distrusted = False
        self.is_abandoned = False
        self.progress: int | None = None
        self.progress_s = time.monotonic()
        self.stacks_asked_s: float | None = None
        self.closed_s: float | None = None

    @property
    def number(self) -> int:
        """The number of the incarnation, by which the scheduler knows it."""
        return self.handle.number

    @property
    def is_killed(self) -> bool:
        """Whether it was killed; it may not be dead yet."""
        return self.handle.killed_s is not None

    def __str__(self) -> str:
        return f"{self.handle.name} (pid {self.handle.pid}, {self.handle.state})"


class WorkerTable:
    """All workers of one pool.

    Args:
        state: what is shared with consumers.
        arena: the shared memory.
        counters: where work done is counted.
        policy: decides why workers end.
        job: what the workers do.

    Attributes:
        entries: those that are not collected yet, by the number of their incarnation.
        was_ready: a worker was ready once.
        last_words: what the last worker printed that a condemned sample has killed, by sample.
        stacks: what the workers printed that have hung since a batch was made, by index.
    """

    def __init__(self, state: PoolState, arena: Arena, counters: Counters, policy: CrashPolicy, job: Job) -> None:
        self.state = state
        self.arena = arena
        self.counters = counters
        self.policy = policy
        self.job = job
        self.entries: dict[int, WorkerEntry] = {}
        self.was_ready = False
        self.last_words: dict[int, str] = {}
        self.stacks: dict[int, str] = {}
        self._to_print: list[str] = []
        self._to_log: list[str] = []

    def in_hand(self, entry: WorkerEntry) -> InHand:
        """What a worker is doing, as its status shows it. Called with the state's lock."""
        status = entry.handle.status
        task: TaskInHand = Probing.SAMPLE
        epoch, place = 0, None
        if not entry.is_probing:
            scheduler = self.state.scheduler
            assignments = () if scheduler is None else scheduler.assignments(entry.number)
            if not assignments or assignments[0].task != status.task:
                return InHand()
            first = assignments[0]
            task, epoch = first.task, first.epoch
            if first.input is None and status.offset is not None:
                assert self.state.layout is not None
                place = first.first + first.batch_index * self.state.layout.capacity + status.offset
        return InHand(task=task, epoch=epoch, offset=status.offset, sample_index=status.sample_index, place=place,
                      depends_on_epoch=status.depends_on_epoch)  # fmt: skip

    def made(self, task: TaskInHand) -> None:
        """A batch was made, or a sample probed: whatever has hung or ended before, workers work."""
        self.policy.made(task)
        self.stacks.clear()

    def answer_probe(self, entry: WorkerEntry, answer: ProbeResult | LoaderError) -> None:
        """Gives the consumer the answer to its probe. Called with the state's lock."""
        entry.is_probing = False
        self.made(Probing.SAMPLE)
        self.state.answer_probe(answer)

    def print(self, text: str) -> None:
        """Keeps what a worker has printed, for :meth:`flush`."""
        self._to_print.append(text)

    def warn(self, text: str) -> None:
        """Keeps a line for the log, for :meth:`flush`."""
        self._to_log.append(text)

    def flush(self) -> None:
        """Prints and logs what was kept. Without the lock: handlers of the user may call the loader, or wait."""
        prints, self._to_print = self._to_print, []
        logs, self._to_log = self._to_log, []
        with suppress(Exception):  # of a stream or a handler that belongs to the user
            if prints and sys.stderr is not None:
                sys.stderr.write("".join(prints))
                sys.stderr.flush()
        with suppress(Exception):
            for text in logs:
                log.warning("%s", text)


def printed(handle: WorkerHandle) -> str:
    """What a worker has printed, as the end of a message; "" if it has printed nothing."""
    return f" It printed:\n{handle.printed}" if handle.printed else ""
