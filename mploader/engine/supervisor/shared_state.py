"""What consumers and the supervisor thread share, under one lock that no other process knows.

The :class:`PoolState` holds the scheduler, the request for a probe and the error that ended the pool. Every method but
the constructor is called with ``state.lock`` held, except those that say otherwise.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import TypeVar

from mploader.batching.layout import BatchLayout
from mploader.engine.ipc.arena import Arena
from mploader.engine.ipc.job import ProbeResult
from mploader.engine.ipc.serialization import SharedFile
from mploader.engine.scheduler.scheduler import Scheduler
from mploader.engine.scheduler.states import Taken
from mploader.errors import ArgumentError, ClosedError, LoaderError

_Item = TypeVar("_Item")


class PoolState:
    """The state of a pool.

    Args:
        arena: the shared memory; what consumers release of it is taken in here.
        num_workers: how many workers to keep alive.

    Attributes:
        lock: held for every method but those that say otherwise. Reentrant, because the garbage collector and signal
            handlers may run the user's code anywhere, and that code may call the loader. It is taken as itself and not
            through ``changed``: only so no Ctrl-C comes between taking it and knowing that.
        changed: what consumers wait on.
        num_workers: see above; may grow.
        scheduler: made with the slots.
        layout: how a batch lies in a slot; made with the slots.
        to_probe: the sample that a consumer wants probed; None: no sample.
        probed: the answer.
        is_stopping: the supervisor thread is to end, or has ended.
        renewals: the source as it is in an epoch, for epochs that are being read, where it changes between epochs.
        pids: process ids of the workers, by index.
    """

    def __init__(self, arena: Arena, num_workers: int) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.num_workers = num_workers
        self.scheduler: Scheduler | None = None
        self.layout: BatchLayout | None = None
        self.to_probe: int | None = None
        self.probed: ProbeResult | LoaderError | None = None
        self.is_stopping = False
        self.renewals: weakref.WeakValueDictionary[int, SharedFile] = weakref.WeakValueDictionary()
        self.pids: dict[int, int] = {}
        self._error: LoaderError | None = None
        self._arena = arena
        self._closed_series: SimpleQueue[int] = SimpleQueue()
        self._closed_groups: SimpleQueue[int] = SimpleQueue()
        self._waking = threading.Lock()
        self._wake_file = open(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), "r+b", buffering=0)  # noqa: SIM115

    def check(self) -> None:
        """Raises the error that ended the pool, or ClosedError if it is closed."""
        if self._error is not None:
            raise self._error.again()
        if self.is_stopping:
            raise ClosedError("the loader is closed; make a new one to read more")

    def fail(self, error: LoaderError) -> None:
        """Makes an error the answer to every call from now on, and ends the workers. The first error stays."""
        self._error = self._error or error.with_traceback(None)
        self.changed.notify_all()
        self.request_stop()

    def is_held(self) -> bool:
        """Whether this very thread holds the lock, further up its stack. May be called without it."""
        return self.changed._is_owned()  # type: ignore[attr-defined,no-any-return]

    def ask_for_probe(self, index: int) -> None:
        """Has the supervisor thread probe a sample; the answer appears in ``probed``."""
        self.probed, self.to_probe = None, index
        self.wake()

    def answer_probe(self, answer: ProbeResult | LoaderError) -> None:
        """Gives a consumer the answer to its probe."""
        self.to_probe, self.probed = None, answer
        self.changed.notify_all()

    def take(self, heads: Callable[[Scheduler], dict[int, int]]) -> tuple[int, Taken] | None:
        """Waits for a batch and takes it out of the scheduler.

        Args:
            heads: returns the index of the batch that is wanted, by series; asked again after every change. The batch
                that is ready first is taken, and of several the one that comes first.

        Returns:
            The series, and what was taken; None if nothing is wanted.
        """
        while True:
            self.check()
            self.collect()
            assert self.scheduler is not None, "the slots are made before the first series"
            wanted = heads(self.scheduler)
            if not wanted:
                return None
            for series, batch_index in wanted.items():
                if not self.scheduler.has_series(series):
                    raise ClosedError(f"series {series} is closed, or was read to its end")
                if self.scheduler.is_delivered(series, batch_index):
                    raise ArgumentError(f"batch {batch_index} was delivered before")
                taken = self.scheduler.take(series, batch_index)
                if taken is not None:
                    return series, taken
            self.wake_for_work()
            self.changed.wait(1.0)

    def wake_for_work(self) -> None:
        """Wakes the supervisor thread if a worker could take work: a batch that was taken may have made some.

        While the workers are the bottleneck, all have their hands full, and the thread would wake for nothing.
        """
        if self.scheduler is None or self.scheduler.has_room:
            self.wake()

    def collect(self) -> None:
        """Takes in what finalizers have left: slots that are free again, and series that are not read any more."""
        scheduler = self.scheduler
        if scheduler is None:
            return
        for slot, generation in _drain(self._arena.released):
            scheduler.release(slot, generation)
        for series in _drain(self._closed_series):
            scheduler.close_series(series)
        for group in _drain(self._closed_groups):
            scheduler.close_group(group)

    def cancel_series(self, series: int) -> None:
        """The rest of a series is not wanted. Takes no lock: finalizers call this, on any thread."""
        self._closed_series.put(series)

    def cancel_group(self, group: int) -> None:
        """The rest of a group is not wanted. Takes no lock: finalizers call this, on any thread."""
        self._closed_groups.put(group)

    def request_stop(self) -> None:
        """Asks the supervisor thread to end. Takes no lock: finalizers call this, on any thread."""
        self.is_stopping = True
        self.wake()

    def wake(self) -> None:
        """Wakes the supervisor thread. May be called without the lock, also when the thread is gone."""
        # Never waits: finalizers call this. If it is taken, another thread wakes or closes at this moment; at worst
        # the supervisor thread notices at its next tick.
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
        """The supervisor thread has ended."""
        self.is_stopping = True
        if self.scheduler is not None:
            self.scheduler.drop_results()  # what was made ahead is not wanted any more, and may be files of their own
        # The number of the descriptor is free for others then, so no thread may be writing to it. A thread that was
        # interrupted while it did (Ctrl-C) may have left the lock taken: then the file goes with this object.
        if self._waking.acquire(timeout=1.0):
            self._wake_file.close()
            self._waking.release()
        self.changed.notify_all()


def _drain(queue: SimpleQueue[_Item]) -> Iterator[_Item]:
    """Yields what is in a queue now."""
    with contextlib.suppress(Empty):
        while True:
            yield queue.get_nowait()
