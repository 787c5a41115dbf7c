"""The counters behind :class:`~mploader.monitoring.statistics.Statistics`: they add up the events of a pool."""

from __future__ import annotations

import collections
import threading
import time
from typing import Any, Protocol

from mploader.monitoring.consumer_time import ConsumerTime
from mploader.monitoring.events import BatchDelivered, BatchMade, SlotCounts, SlotsAllocated, WorkerRestarted
from mploader.monitoring.statistics import Statistics, WorkerStatistics
from mploader.monitoring.totals import Sums, values

MARK_S = 5.0
"""How far apart the snapshots are that :meth:`Counters.recent` can look back to, in seconds."""
MARKS = 12
"""How many of them are kept: a diagnosis is about the last minute, not about the start long ago."""


class Listener(Protocol):
    """Sees each event as it is counted, such as a trace. Called in the thread that counts."""

    @property
    def is_over(self) -> bool:
        """Whether it expects no more events."""

    def made(self, event: BatchMade) -> None:
        """A worker has made a batch."""

    def restarted(self, event: WorkerRestarted) -> None:
        """A worker is replaced."""

    def delivered(self, event: BatchDelivered) -> None:
        """A consumer has got a batch."""


class Counters:
    """The running totals of one pool.

    Consumers and the supervisor thread call it, under a lock that is held for a few additions.

    Args:
        num_workers: how many workers the pool starts with.
    """

    def __init__(self, num_workers: int) -> None:
        self._lock = threading.RLock()  # a signal handler may come back while it is held
        self._listener: Listener | None = None
        self._workers: list[Sums] = []
        self.add_workers(num_workers)
        self._delivered = Sums(Statistics, BatchDelivered)
        self._allocated = SlotsAllocated(wanted=0, slot_bytes=0, start_ns=0)
        self._made_ns = self._marked_ns = time.monotonic_ns()
        self._time = ConsumerTime(self._made_ns)
        self._marks: collections.deque[Statistics] = collections.deque(maxlen=MARKS)

    def add_workers(self, count: int) -> None:
        """Counts the work of more workers from now on."""
        with self._lock:
            self._workers += [Sums(WorkerStatistics, BatchMade, WorkerRestarted) for _ in range(count)]

    def listen(self, listener: Listener) -> None:
        """Passes every event to a listener from now on, until it is over. It replaces the listener before."""
        with self._lock:
            self._listener = listener

    def _listening(self) -> Listener | None:
        if self._listener is not None and self._listener.is_over:
            self._listener = None
        return self._listener

    def allocated(self, wanted: int, slot_bytes: int) -> None:
        """The slots exist now; see :class:`SlotsAllocated`."""
        start_ns = time.monotonic_ns() - self._made_ns
        self._allocated = SlotsAllocated(wanted=wanted, slot_bytes=slot_bytes, start_ns=start_ns)

    def made(self, event: BatchMade) -> None:
        """A worker has made a batch."""
        with self._lock:
            self._workers[event.worker].add(event)
            self._time.see_slots(event.at_ns, event.slots)
            listener = self._listening()
        if listener is not None:
            listener.made(event)

    def restarted(self, event: WorkerRestarted) -> None:
        """A worker is replaced."""
        with self._lock:
            self._workers[event.worker].add(event)
            listener = self._listening()
        if listener is not None:
            listener.restarted(event)

    def asked(self, asked_ns: int, previous_ns: int | None) -> None:
        """A consumer waits for a batch, until :meth:`stop_waiting`; ``previous_ns`` as in :class:`BatchDelivered`."""
        with self._lock:
            self._time.ask(asked_ns, previous_ns)

    def stop_waiting(self) -> None:
        """The consumer of this thread no longer waits: it has got a batch or an exception."""
        self._time.stop_waiting()

    def ended(self, now_ns: int, previous_ns: int | None) -> None:
        """A consumer has asked for more than there is; ``previous_ns`` as in :class:`BatchDelivered`."""
        with self._lock:
            self._time.end(now_ns, previous_ns)

    def delivered(self, event: BatchDelivered) -> None:
        """A consumer has got a batch."""
        got_ns = event.got_ns
        with self._lock:
            self._delivered.add(event)
            self._time.get(got_ns, got_ns - event.taken_ns if event.copied else 0)
            self._time.see_slots(got_ns, event.slots)
            if not self._marks or got_ns - self._marked_ns > MARK_S * 1e9:
                # The first mark follows the first batch, so that no diagnosis includes the start of the workers.
                self._marked_ns = got_ns
                self._marks.append(self._snapshot())
            listener = self._listening()
        if listener is not None:
            listener.delivered(event)

    def snapshot(self, slots: SlotCounts) -> Statistics:
        """Returns the totals as they are now; ``slots``: the states of the slots."""
        with self._lock:
            self._time.see_slots(time.monotonic_ns(), slots)
            return self._snapshot()

    def recent(self, slots: SlotCounts) -> Statistics:
        """Returns what has happened in the last minute, or since the first batch if that was later."""
        with self._lock:
            earlier = self._marks[0] if self._marks else None
        now = self.snapshot(slots)
        return now if earlier is None else now.since(earlier)

    def _snapshot(self) -> Statistics:
        fields: dict[str, Any] = self._delivered.values()
        for owner in (self._time, self._time.slots, self._allocated):
            fields |= values(Statistics, owner)
        workers: list[dict[str, Any]] = [sums.values() for sums in self._workers]
        return Statistics(**fields, workers=tuple(WorkerStatistics(**worker) for worker in workers))
