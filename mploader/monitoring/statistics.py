"""Counters of what a loader does, and the frozen snapshot that users see.

Totals only grow, so what happened between two snapshots is their difference: :meth:`Statistics.since`.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from mploader.engine.scheduler.states import SlotState
from mploader.errors import ArgumentError
from mploader.monitoring.consumer_time import ConsumerTime, SlotCounts

MARK_S = 5.0
"""How far apart the snapshots are that :meth:`Counters.recent` can look back to, in seconds."""
MARKS = 12
"""How many of them are kept: the verdict speaks of the last minute, not of the start long ago."""


@dataclass(frozen=True)
class Stage:
    """What one stage of the work did.

    Attributes:
        seconds: time spent in it.
        bytes: what it gave on: encoded bytes for reading, bytes of finished batches for writing.
        samples: samples that went through it.
    """

    seconds: float
    bytes: int
    samples: int


@dataclass(frozen=True)
class WorkerStatistics:
    """What one worker (with its replacements) has done since the loader was made.

    The seconds of the stages, and ``bytes_read``, are estimated where samples are quick (less than 0.2 ms each): one in
    sixteen is timed then, and stands for the others.

    Attributes:
        batches: batches that it has made.
        busy_s: seconds that it has spent on them.
        read_s: seconds thereof in the source.
        transform_s: seconds thereof in the transform.
        write_s: seconds thereof writing into slots.
        restarts: how many times it was replaced.
        cpu_s: seconds of processor time that it has used; told, as ``queued_s``, with a delay of a few batches.
        queued_s: seconds of ``busy_s`` in which it was ready to run and others had the processors. What then remains of
            ``busy_s`` without ``cpu_s`` it has waited for storage, the network or the like.
        samples: samples in its batches.
        samples_read: samples that it has read, bad ones included.
        bytes_read: bytes of encoded data, and of arrays, that the source gave it.
        bytes_written: bytes of finished batches.
    """

    batches: int = 0
    busy_s: float = 0.0
    read_s: float = 0.0
    transform_s: float = 0.0
    write_s: float = 0.0
    restarts: int = 0
    cpu_s: float = 0.0
    samples: int = 0
    samples_read: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    queued_s: float = 0.0

    @property
    def read(self) -> Stage:
        """The source."""
        return Stage(self.read_s, self.bytes_read, self.samples_read)

    @property
    def transform(self) -> Stage:
        """The transform: decoding is here. Its bytes are those of the elements that it makes."""
        return Stage(self.transform_s, self.bytes_written, self.samples_read)

    @property
    def write(self) -> Stage:
        """Writing elements into slots."""
        return Stage(self.write_s, self.bytes_written, self.samples)


@dataclass(frozen=True)
class Statistics:
    """What a loader has done since it was made; a snapshot.

    Several consumers at once count as one, which waits while any of them waits. Time in which nobody consumes, such as
    a pause between epochs, counts in ``seconds`` and in what workers do meanwhile, and nowhere else.

    Attributes:
        batches: batches delivered.
        samples: samples in them.
        bytes: their size in slots, in bytes.
        waited_s: seconds in which a consumer has waited for a batch.
        slots: how many slots there are.
        slots_lent: slots whose arrays somebody holds now.
        slots_free: slots that hold nothing now.
        batches_copied: batches that were copied out because too many slots were lent.
        bad_samples: samples that were dropped or replaced.
        workers: one entry for each worker.
        seconds: since the loader was made.
        computing_s: seconds between getting a batch and asking for the next, or for the end of the epoch, in which no
            consumer waited: what training takes for itself. Behind ``as_dataset()`` it is ``prefetch`` that asks, as
            soon as it has room, so the steps on the last few batches of an epoch are not seen.
        started_s: seconds of ``waited_s`` that passed before the first batch of all: workers start, import and read.
        copied_s: seconds in which a consumer has copied a batch out.
        slots_ready: slots that hold batches which nobody has taken yet.
        slots_leased: slots that workers write to, or will next.
        slots_wanted: how many slots the loader would have made with memory enough.
        slot_bytes: size of a slot.
        full_s: seconds of ``active_s`` during which no slot was free.
        lent_slot_s: slots lent, times the seconds of ``active_s`` during which they were.
        full_waited_s: seconds of ``full_s`` in which a consumer waited: the slots held other batches.
        start_s: seconds that the workers took to start and to make a first sample; the same in every snapshot.
    """

    batches: int
    samples: int
    bytes: int
    waited_s: float
    slots: int
    slots_lent: int
    slots_free: int
    batches_copied: int
    bad_samples: int
    workers: tuple[WorkerStatistics, ...]
    seconds: float = 0.0
    computing_s: float = 0.0
    started_s: float = 0.0
    copied_s: float = 0.0
    slots_ready: int = 0
    slots_leased: int = 0
    slots_wanted: int = 0
    slot_bytes: int = 0
    full_s: float = 0.0
    lent_slot_s: float = 0.0
    full_waited_s: float = 0.0
    start_s: float = 0.0

    @property
    def restarts(self) -> int:
        """How many workers were replaced."""
        return sum(worker.restarts for worker in self.workers)

    @property
    def busy_s(self) -> float:
        """Seconds that all workers together have spent on batches."""
        return sum(worker.busy_s for worker in self.workers)

    @property
    def waiting(self) -> float:
        """The part of its time that the consumer waits for data or copies it, from 0 to 1; the start left out."""
        return 1 - self.computing_s / self.active_s if self.active_s > 0 else 0.0

    @property
    def active_s(self) -> float:
        """Seconds in which a consumer has waited, copied or computed; the start left out."""
        return self.waited_s - self.started_s + self.copied_s + self.computing_s

    @property
    def samples_per_s(self) -> float:
        """Samples delivered in a second of ``active_s``."""
        return self.samples / self.active_s if self.active_s > 0 else 0.0

    def since(self, earlier: Statistics) -> Statistics:
        """Returns what happened between an earlier snapshot of the same loader and this one.

        Totals are differences; numbers of slots are as they are in this snapshot.

        Raises:
            ArgumentError: that is no earlier snapshot of the same loader.
        """
        if not isinstance(earlier, Statistics):
            raise ArgumentError(f"since() wants an earlier statistics(), not {type(earlier).__name__}")
        if len(earlier.workers) > len(self.workers) or any(
            getattr(earlier, name) > getattr(self, name) for name in _TOTALS
        ):
            raise ArgumentError("since() wants an earlier snapshot of the same loader, not a later one or another's")
        added = (WorkerStatistics(),) * (len(self.workers) - len(earlier.workers))  # workers may join at any time
        workers = tuple(
            _difference(new, old, _WORKER_TOTALS)
            for new, old in zip(self.workers, earlier.workers + added, strict=True)
        )
        return dataclasses.replace(_difference(self, earlier, _TOTALS), workers=workers)

    def __str__(self) -> str:
        rows = [" ".join(f"{cell:>{width}}" for cell, width in zip(row, _WIDTHS, strict=True)) for row in self._rows()]
        return "\n".join([*self._summary(), *rows])

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        summary = "".join(f"<div>{line}</div>" for line in self._summary())
        head, *rows = self._rows()
        cells = "".join(f"<th>{cell}</th>" for cell in head)
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        return f"<div>{summary}<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"

    def _summary(self) -> list[str]:
        return [
            f"{self.batches:,} batches, {self.samples:,} samples, {self.bytes / 2**20:,.1f} MiB "
            f"in {self.seconds:,.1f} s",
            f"consumer: waited {self.waited_s:,.1f} s ({self.started_s:,.1f} s of it for the first batch), "
            f"computed {self.computing_s:,.1f} s",
            f"slots: {self.slots} of {self.slot_bytes / 2**20:,.1f} MiB; {self.slots_lent} lent, "
            f"{self.slots_ready} ready, {self.slots_leased} leased, {self.slots_free} free; "
            f"{self.batches_copied:,} batches copied out",
            f"bad samples: {self.bad_samples:,}; workers replaced: {self.restarts:,}",
        ]

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [
            ("worker", "batches", "samples", "busy s", "read s", "transform s", "write s", "read MiB", "written MiB",
             "restarts"),
        ]  # fmt: skip
        for index, worker in enumerate(self.workers):
            rows.append((
                str(index), f"{worker.batches:,}", f"{worker.samples:,}", f"{worker.busy_s:.1f}",
                f"{worker.read_s:.1f}", f"{worker.transform_s:.1f}", f"{worker.write_s:.1f}",
                f"{worker.bytes_read / 2**20:,.1f}", f"{worker.bytes_written / 2**20:,.1f}", str(worker.restarts),
            ))  # fmt: skip
        return rows


_Totals = TypeVar("_Totals", "WorkerStatistics", "Statistics")
_WIDTHS = (6, 9, 11, 9, 9, 11, 9, 10, 11, 8)
_WORKER_TOTALS = tuple(field.name for field in dataclasses.fields(WorkerStatistics))
_TOTALS = (
    "batches", "samples", "bytes", "waited_s", "batches_copied", "bad_samples", "seconds", "computing_s", "started_s",
    "copied_s", "full_s", "lent_slot_s", "full_waited_s",
)  # fmt: skip


def _difference(new: _Totals, old: _Totals, names: tuple[str, ...]) -> _Totals:
    """Returns ``new`` with the totals of ``old`` taken off."""
    return dataclasses.replace(new, **{name: getattr(new, name) - getattr(old, name) for name in names})


class Handover(NamedTuple):
    """One batch that a consumer has got. Times are on the system-wide monotonic clock, in nanoseconds.

    A tuple, as one is made for each batch.

    Attributes:
        run: the run's number.
        position: the batch's place in the epoch.
        samples: samples in it.
        size: bytes of its slot in use.
        bad: samples of it that were dropped or replaced.
        copied: it was copied out of its slot.
        left_ns: when the consumer got the batch before; 0 for the first of a run.
        asked_ns: when the consumer asked.
        taken_ns: when the batch was there.
        got_ns: when the consumer got it, copied if need be.
    """

    run: int
    position: int
    samples: int
    size: int
    bad: int
    copied: bool
    left_ns: int
    asked_ns: int
    taken_ns: int
    got_ns: int


class Listener(Protocol):
    """Whoever wants to see each event as it is counted: a trace. Called in the thread that counts."""

    @property
    def is_over(self) -> bool:
        """Whether it wants to see no more."""

    def filled(self, worker: int, assignment: Any, message: Any, now_ns: int, slots: SlotCounts) -> None:
        """A worker has made a batch."""

    def restarted(self, worker: int, now_ns: int) -> None:
        """A worker is replaced."""

    def delivered(self, handover: Handover, slots: SlotCounts) -> None:
        """A consumer has got a batch."""


class _Work:
    """The running totals of one worker. Times in nanoseconds."""

    __slots__ = ("batches", "busy", "bytes_read", "bytes_written", "cpu", "queued", "read", "restarts", "samples",
                 "samples_read", "transform", "write")  # fmt: skip

    def __init__(self) -> None:
        self.batches = self.samples = self.samples_read = self.bytes_read = self.bytes_written = self.restarts = 0
        self.busy = self.read = self.transform = self.write = self.cpu = self.queued = 0

    def snapshot(self) -> WorkerStatistics:
        return WorkerStatistics(
            self.batches, self.busy / 1e9, self.read / 1e9, self.transform / 1e9, self.write / 1e9, self.restarts,
            self.cpu / 1e9, self.samples, self.samples_read, self.bytes_read, self.bytes_written,
            self.queued / 1e9,
        )  # fmt: skip


class Counters:
    """The running totals behind :class:`Statistics`.

    Consumers and the supervising thread write to different fields, under a lock that is held for a few additions.
    """

    def __init__(self, num_workers: int) -> None:
        self._lock = threading.RLock()  # a signal handler may come back while it is held
        self._listener: Listener | None = None
        self._workers = [_Work() for _ in range(num_workers)]
        self._batches = self._samples = self._bytes = self._copied = self._bad = 0
        self._slots_wanted = self._slot_bytes = self._start_ns = 0
        self._made_ns = self._marked_ns = time.monotonic_ns()
        self._time = ConsumerTime(self._made_ns)
        self._marks: collections.deque[Statistics] = collections.deque(maxlen=MARKS)

    def add_workers(self, count: int) -> None:
        """Counts the work of more workers from now on."""
        with self._lock:
            self._workers += [_Work() for _ in range(count)]

    def listen(self, listener: Listener) -> None:
        """Lets somebody see every event from now on, until they want no more; in place of who did so far."""
        with self._lock:
            self._listener = listener

    def _listening(self) -> Listener | None:
        if self._listener is not None and self._listener.is_over:
            self._listener = None
        return self._listener

    def allocated(self, wanted: int, slot_bytes: int) -> None:
        """The slots are made; ``wanted`` is how many would have been with memory enough."""
        self._slots_wanted, self._slot_bytes = wanted, slot_bytes
        self._start_ns = time.monotonic_ns() - self._made_ns

    def filled(self, worker: int, assignment: Any, message: Any, now_ns: int, slots: SlotCounts) -> None:
        """A worker has made a batch."""
        with self._lock:
            work = self._workers[worker]
            work.batches += 1
            work.samples += message.samples
            work.bytes_written += message.batch_bytes
            work.transform += message.transform_ns
            work.write += message.write_ns
            work.busy += message.busy_ns
            work.cpu += message.cpu_ns
            work.queued += message.queued_ns
            work.read += message.read_ns
            work.samples_read += message.samples_read
            work.bytes_read += message.bytes_read
            self._time.see_slots(now_ns, slots)
            listener = self._listening()
        if listener is not None:
            listener.filled(worker, assignment, message, now_ns, slots)

    def restarted(self, worker: int) -> None:
        """A worker is replaced."""
        with self._lock:
            self._workers[worker].restarts += 1
            listener = self._listening()
        if listener is not None:
            listener.restarted(worker, time.monotonic_ns())

    def asked(self, asked_ns: int, left_ns: int) -> None:
        """A consumer waits for a batch, until :meth:`stop_waiting`; ``left_ns`` as in :class:`Handover`."""
        with self._lock:
            self._time.ask(asked_ns, left_ns)

    def stop_waiting(self) -> None:
        """The consumer of this thread no longer waits, whether it has got a batch or an exception."""
        self._time.stop_waiting()

    def ended(self, now_ns: int, left_ns: int) -> None:
        """A consumer has asked for more than there is; ``left_ns`` as in :class:`Handover`."""
        with self._lock:
            self._time.end(now_ns, left_ns)

    def delivered(self, handover: Handover, slots: SlotCounts) -> None:
        """A consumer has got a batch."""
        with self._lock:
            self._batches += 1
            self._samples += handover.samples
            self._bytes += handover.size
            self._copied += handover.copied
            self._bad += handover.bad
            self._time.get(handover.got_ns, handover.got_ns - handover.taken_ns if handover.copied else 0)
            self._time.see_slots(handover.got_ns, slots)
            if not self._marks or handover.got_ns - self._marked_ns > MARK_S * 1e9:
                # The first mark lies behind the first batch, so that the start of the workers is no part of a verdict.
                self._marked_ns = handover.got_ns
                self._marks.append(self._snapshot(handover.got_ns))
            listener = self._listening()
        if listener is not None:
            listener.delivered(handover, slots)

    def snapshot(self, slots: SlotCounts) -> Statistics:
        """Returns the totals as they are now."""
        with self._lock:
            now_ns = time.monotonic_ns()
            self._time.see_slots(now_ns, slots)
            return self._snapshot(now_ns)

    def recent(self, slots: SlotCounts) -> Statistics:
        """Returns what has happened in the last minute, or since the first batch if that was later."""
        with self._lock:
            earlier = self._marks[0] if self._marks else None
        now = self.snapshot(slots)
        return now if earlier is None else now.since(earlier)

    def _snapshot(self, now_ns: int) -> Statistics:
        spent, slots = self._time, self._time.slots
        return Statistics(
            self._batches, self._samples, self._bytes, spent.waited_ns / 1e9, sum(slots.values()),
            slots.get(SlotState.BORROWED, 0), slots.get(SlotState.FREE, 0), self._copied, self._bad,
            tuple(work.snapshot() for work in self._workers),
            seconds=(now_ns - self._made_ns) / 1e9,
            computing_s=spent.computed_ns / 1e9,
            started_s=spent.started_ns / 1e9,
            copied_s=spent.copied_ns / 1e9,
            slots_ready=slots.get(SlotState.READY, 0),
            slots_leased=slots.get(SlotState.ASSIGNED, 0),
            slots_wanted=self._slots_wanted,
            slot_bytes=self._slot_bytes,
            full_s=spent.full_ns / 1e9,
            lent_slot_s=spent.lent_ns / 1e9,
            full_waited_s=spent.full_waited_ns / 1e9,
            start_s=self._start_ns / 1e9,
        )  # fmt: skip
