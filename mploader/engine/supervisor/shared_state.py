"""What consumers and the supervising thread share, under one lock that no other process knows.

The :class:`PoolState` holds the schedule, the results that wait to be taken, the request for a description and the
error that ended the pool. Every method but the constructor is called with ``ledger.lock`` held, except those
that say otherwise.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from mploader.batching.writer import Array, BatchLayout
from mploader.engine.ipc.arena import Arena
from mploader.engine.ipc.sample_report import ADVICE, SampleReport
from mploader.engine.ipc.serialization import SharedFile
from mploader.engine.scheduler.scheduler import Scheduler
from mploader.engine.scheduler.states import Taken
from mploader.engine.worker.loop import Description
from mploader.errors import ArgumentError, ClosedError, LoaderError


@dataclass(frozen=True)
class Result:
    """What became of a task that nobody has taken yet.

    Attributes:
        samples: samples in the batch.
        is_last: the batch is the last of its stream.
        size: bytes of the slot in use.
        reports: the bad samples that were dropped or replaced.
        overflow: the batch itself, where it did not fit into its slot.
        error: why there is no batch.
    """

    samples: int = 0
    size: int = 0
    reports: list[SampleReport] = field(default_factory=list)
    overflow: Array | None = None
    is_last: bool = False
    error: LoaderError | None = None


class PoolState:
    """The state of a pool."""

    def __init__(self, arena: Arena) -> None:
        self.lock = threading.RLock()
        """Held for every method below but those that say otherwise. Reentrant, because the garbage collector and
        signal handlers may run the user's code anywhere, and that code may call the loader. It is taken as itself
        and not through ``changed``: only so no Ctrl-C comes between taking it and knowing that."""
        self.changed = threading.Condition(self.lock)
        """What consumers wait on."""
        self.schedule: Scheduler | None = None
        self.layout: BatchLayout | None = None
        self.results: dict[int, Result] = {}
        self.to_describe: int | None = None
        self.description: Description | LoaderError | None = None
        self.stopping = False
        self.advice = ADVICE
        """What errors about bad samples advise; see :attr:`OnBadSample.advice`."""
        self.renewals: weakref.WeakValueDictionary[int, SharedFile] = weakref.WeakValueDictionary()
        """The source as it is in an epoch, for epochs that somebody reads, where it changes between epochs."""
        self.pids: dict[int, int] = {}
        """Process ids of the workers, by index."""
        self._error: LoaderError | None = None
        self._arena = arena
        self._closed_runs: SimpleQueue[int] = SimpleQueue()
        self._closed_passes: SimpleQueue[int] = SimpleQueue()
        self._waking = threading.Lock()
        self._wake_file = open(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), "r+b", buffering=0)  # noqa: SIM115

    def check(self) -> None:
        """Raises the error that ended the pool, or says that it is closed."""
        if self._error is not None:
            raise self._error.again()
        if self.stopping:
            raise ClosedError("the loader is closed; make a new one to read more")

    def fail(self, error: LoaderError) -> None:
        """Makes an error the answer to every call from now on, and ends the workers. The first error stays."""
        self._error = self._error or error.with_traceback(None)
        self.changed.notify_all()
        self.request_stop()

    def is_held(self) -> bool:
        """Whether this very thread holds the lock, further up its stack. May be called without it."""
        return self.changed._is_owned()  # type: ignore[attr-defined,no-any-return]

    def ask_for_description(self, index: int) -> None:
        """Lets the supervising thread have a sample described; the answer appears in ``description``."""
        self.description, self.to_describe = None, index
        self.wake()

    def take(self, heads: Callable[[Scheduler], dict[int, int]]) -> tuple[int, Taken, Result] | None:
        """Waits for a batch and takes it out of the schedule.

        Args:
            heads: returns the position that is wanted, by run; asked again after every change. Whichever is ready first
                is taken, and of several the one that comes first.

        Returns:
            The run, and what was taken; None if nothing is wanted.
        """
        while True:
            self.check()
            self.collect()
            assert self.schedule is not None, "the slots are made before the first run"
            wanted = heads(self.schedule)
            if not wanted:
                return None
            for run, position in wanted.items():
                if not self.schedule.has_run(run):
                    raise ClosedError(f"run {run} is closed, or was read to its end")
                if self.schedule.is_delivered(run, position):
                    raise ArgumentError(f"position {position} of this run was given before")
                taken = self.schedule.take(run, position)
                if taken is not None:
                    return run, taken, self.results.pop(taken.task)
            self.wake_for_work()
            self.changed.wait(1.0)

    def wake_for_work(self) -> None:
        """Wakes the supervising thread if a worker could take work: a batch that was taken may have made some.

        While the workers are what limits, all have their hands full, and the thread would wake for nothing.
        """
        if self.schedule is None or self.schedule.has_room:
            self.wake()

    def collect(self) -> None:
        """Takes in what finalizers have left: slots that are free again, and runs that nobody holds any more."""
        if self.schedule is None:
            return
        with contextlib.suppress(Empty):
            while True:
                self.schedule.release(*self._arena.released.get_nowait())
        closed = False
        with contextlib.suppress(Empty):
            while True:
                self.schedule.close_run(self._closed_runs.get_nowait())
                closed = True
        with contextlib.suppress(Empty):
            while True:
                self.schedule.close_pass(self._closed_passes.get_nowait())
                closed = True
        if closed:
            self.results = {task: result for task, result in self.results.items() if self.schedule.has_task(task)}

    def give_up_run(self, run: int) -> None:
        """Nobody wants the rest of a run. Takes no lock: finalizers call this, on any thread."""
        self._closed_runs.put(run)

    def give_up_pass(self, number: int) -> None:
        """Nobody wants the rest of a pass over streams. Takes no lock: finalizers call this, on any thread."""
        self._closed_passes.put(number)

    def request_stop(self) -> None:
        """Asks the supervising thread to end. Takes no lock: finalizers call this, on any thread."""
        self.stopping = True
        self.wake()

    def wake(self) -> None:
        """Wakes the supervising thread. May be called without the lock, also when the thread is gone."""
        # Never waits: finalizers call this. If it is taken, another thread wakes or closes at this moment; at worst
        # the supervising thread notices at its next tick.
        if self._waking.acquire(blocking=False):
            try:
                with contextlib.suppress(BlockingIOError, ValueError):
                    self._wake_file.write(b"\1\0\0\0\0\0\0\0")
            finally:
                self._waking.release()

    @property
    def wake_fd(self) -> int:
        """The descriptor that polls as readable after :meth:`wake`."""
        return self._wake_file.fileno()

    def drain_wake(self) -> None:
        """Makes ``wake_fd`` unreadable again."""
        self._wake_file.read(8)

    def close(self) -> None:
        """The supervising thread has ended."""
        self.stopping = True
        self.results.clear()  # what was made ahead is nobody's any more, and may be files of their own
        # The number of the descriptor is free for others then, so nobody may be writing to it. A thread that was
        # interrupted while it did (Ctrl-C) may have left the lock taken: then the file goes with this object.
        if self._waking.acquire(timeout=1.0):
            self._wake_file.close()
            self._waking.release()
        self.changed.notify_all()
