"""What a loader has done: the frozen snapshot that users see.

Totals only grow, so what happened between two snapshots is their difference: :meth:`Statistics.since`. To add a
statistic, add a field: its origin says what it adds up and where it is shown; see :mod:`mploader.monitoring.totals`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from mploader.errors import ArgumentError
from mploader.monitoring.consumer_time import ConsumerTime
from mploader.monitoring.events import BatchDelivered, BatchMade, SlotCounts, SlotsAllocated, WorkerRestarted
from mploader.monitoring.totals import difference, is_earlier, origins, state, total

_MIB = 2**20


@dataclass(frozen=True)
class Stage:
    """What one stage of the work did.

    Attributes:
        seconds: time spent in it.
        bytes: its output: encoded bytes for reading, bytes of finished batches for writing.
        samples: samples that went through it.
    """

    seconds: float
    bytes: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class WorkerStatistics:
    """What one worker (with its replacements) has done since the loader was made.

    The seconds of the stages, and ``bytes_read``, are estimates where samples are quick (less than 0.2 ms each): the
    worker times one in nineteen then, which stands for the others.

    Attributes:
        batches: batches that it has made.
        samples: samples in its batches.
        busy_s: seconds that it has spent on them.
        read_s: seconds of ``busy_s`` in the source.
        transform_s: seconds of ``busy_s`` in the transform.
        write_s: seconds of ``busy_s`` writing into slots.
        bytes_read: bytes of encoded data, and of arrays, that the source returned.
        bytes_written: bytes of finished batches.
        restarts: how many times it was replaced.
        cpu_s: seconds of processor time that it has used; reported, like ``queued_s``, with a delay of a few batches.
        queued_s: seconds of ``busy_s`` in which it was ready to run and others had the processors. The rest of
            ``busy_s``, without ``cpu_s``, it has waited for storage, the network or the like.
        samples_read: samples that it has read, bad ones included.
    """

    batches: int = total(BatchMade, None, "batches")
    samples: int = total(BatchMade, "samples", "samples")
    busy_s: float = total(BatchMade, "busy_ns", "busy s", "{:.1f}")
    read_s: float = total(BatchMade, "read_ns", "read s", "{:.1f}")
    transform_s: float = total(BatchMade, "transform_ns", "transform s", "{:.1f}")
    write_s: float = total(BatchMade, "write_ns", "write s", "{:.1f}")
    bytes_read: int = total(BatchMade, "bytes_read", "read MiB", "{:,.1f}", _MIB)
    bytes_written: int = total(BatchMade, "batch_bytes", "written MiB", "{:,.1f}", _MIB)
    restarts: int = total(WorkerRestarted, None, "restarts")
    cpu_s: float = total(BatchMade, "cpu_ns")
    queued_s: float = total(BatchMade, "queued_ns")
    samples_read: int = total(BatchMade, "samples_read")

    @property
    def read(self) -> Stage:
        """The source."""
        return Stage(self.read_s, self.bytes_read, self.samples_read)

    @property
    def transform(self) -> Stage:
        """The transform, decoding included. Its bytes are those of the elements that it makes."""
        return Stage(self.transform_s, self.bytes_written, self.samples_read)

    @property
    def write(self) -> Stage:
        """Writing elements into slots."""
        return Stage(self.write_s, self.bytes_written, self.samples)


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What a loader has done since it was made; a snapshot.

    Several consumers at once count as one, which waits while any of them waits. Time without a consumer, such as a
    pause between epochs, counts in ``seconds`` and in what workers do meanwhile, and nowhere else.

    Attributes:
        batches: batches delivered.
        samples: samples in them.
        bytes: their size in slots, in bytes.
        batches_copied: batches that were copied out because too many slots were borrowed.
        bad_samples: samples that were dropped or replaced.
        seconds: since the loader was made.
        waited_s: seconds in which a consumer has waited for a batch.
        started_s: seconds of ``waited_s`` that passed before the first batch of all: workers start, import and read.
        copied_s: seconds in which a consumer has copied a batch out.
        computing_s: seconds between getting a batch and asking for the next, or for the end of the epoch, in which no
            consumer waited: what training takes for itself. Behind ``as_dataset()`` it is ``prefetch`` that asks, as
            soon as it has room, so the steps on the last few batches of an epoch are not seen.
        slots: how many slots there are.
        slot_bytes: size of a slot, in bytes.
        slots_borrowed: slots whose arrays a consumer holds now.
        slots_ready: slots that hold batches which no consumer has taken yet.
        slots_assigned: slots that workers write to, or will write to next.
        slots_free: slots that hold nothing now.
        slots_wanted: how many slots the loader would have made with enough memory.
        full_s: seconds of ``active_s`` during which no slot was free.
        full_waited_s: seconds of ``full_s`` in which a consumer waited: the slots held other batches.
        borrowed_slot_s: slots borrowed, times the seconds of ``active_s`` during which they were.
        start_s: seconds that the workers took to start and to make a first sample; the same in every snapshot.
        workers: one entry for each worker.
    """

    batches: int = total(BatchDelivered, None, "delivered", "{:,} batches")
    samples: int = total(BatchDelivered, "samples", "delivered", "{:,} samples")
    bytes: int = total(BatchDelivered, "size", "delivered", "{:,.1f} MiB", _MIB)
    batches_copied: int = total(BatchDelivered, "copied", "delivered", "{:,} batches copied out")
    bad_samples: int = total(BatchDelivered, "bad", "delivered", "{:,} bad samples")
    seconds: float = total(ConsumerTime, "age_ns", "delivered", "in {:,.1f} s")
    waited_s: float = total(ConsumerTime, "waited_ns", "consumer", "waited {:,.1f} s")
    started_s: float = total(ConsumerTime, "started_ns", "consumer", "{:,.1f} s of it for the first batch")
    copied_s: float = total(ConsumerTime, "copied_ns", "consumer", "copied {:,.1f} s")
    computing_s: float = total(ConsumerTime, "computed_ns", "consumer", "computed {:,.1f} s")
    slots: int = state(SlotCounts, "total", "slots", "{:,} in all")
    slot_bytes: int = state(SlotsAllocated, "slot_bytes", "slots", "{:,.1f} MiB each", _MIB)
    slots_borrowed: int = state(SlotCounts, "borrowed", "slots", "{:,} borrowed")
    slots_ready: int = state(SlotCounts, "ready", "slots", "{:,} ready")
    slots_assigned: int = state(SlotCounts, "assigned", "slots", "{:,} assigned")
    slots_free: int = state(SlotCounts, "free", "slots", "{:,} free")
    slots_wanted: int = state(SlotsAllocated, "wanted")
    full_s: float = total(ConsumerTime, "full_ns")
    full_waited_s: float = total(ConsumerTime, "full_waited_ns")
    borrowed_slot_s: float = total(ConsumerTime, "borrowed_slot_ns")
    start_s: float = state(SlotsAllocated, "start_ns")
    workers: tuple[WorkerStatistics, ...] = ()

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
        """The part of its time that the consumer waits for data or copies it, from 0 to 1, without the start."""
        return 1 - self.computing_s / self.active_s if self.active_s > 0 else 0.0

    @property
    def active_s(self) -> float:
        """Seconds in which a consumer has waited, copied or computed, without the start."""
        return self.waited_s - self.started_s + self.copied_s + self.computing_s

    @property
    def samples_per_s(self) -> float:
        """Samples delivered in a second of ``active_s``."""
        return self.samples / self.active_s if self.active_s > 0 else 0.0

    def since(self, earlier: Statistics) -> Statistics:
        """Returns what happened between an earlier snapshot of the same loader and this one.

        Totals are differences; numbers of slots are as they are in this snapshot. A worker that joined in between
        counts from its start.

        Raises:
            ArgumentError: ``earlier`` is not an earlier snapshot of the same loader.
        """
        if not isinstance(earlier, Statistics):
            raise ArgumentError(f"since(): expected an earlier statistics(), got {type(earlier).__name__}")
        if len(earlier.workers) > len(self.workers) or not is_earlier(earlier, self):
            raise ArgumentError("since(): expected an earlier snapshot of this loader, got a later one or another's")
        workers = tuple(
            difference(new, type(new)() if old is None else old)
            for new, old in itertools.zip_longest(self.workers, earlier.workers)
        )
        return dataclasses.replace(difference(self, earlier), workers=workers)

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([*self._summary(), *table])

    def _repr_html_(self) -> str:
        """Returns HTML for a notebook."""
        summary = "".join(f"<div>{line}</div>" for line in self._summary())
        head, *rows = self._rows()
        cells = "".join(f"<th>{cell}</th>" for cell in head)
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        return f"<div>{summary}<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"

    def _summary(self) -> Iterator[str]:
        lines: dict[str, list[str]] = {}
        for name, origin in origins(type(self)).items():
            if origin.line:
                lines.setdefault(origin.line, []).append(origin.show(getattr(self, name)))
        yield from (f"{line}: {', '.join(texts)}" for line, texts in lines.items())
        yield f"workers: {len(self.workers)}, {self.restarts:,} replaced"

    def _rows(self) -> list[tuple[str, ...]]:
        """The table of workers, its head first."""
        record = type(self.workers[0]) if self.workers else WorkerStatistics
        columns = {name: origin for name, origin in origins(record).items() if origin.line}
        head = ("worker", *(origin.line for origin in columns.values()))
        return [head] + [
            (str(index), *(origin.show(getattr(worker, name)) for name, origin in columns.items()))
            for index, worker in enumerate(self.workers)
        ]
