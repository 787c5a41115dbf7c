"""What the engine reports of its work: one record for each event.

The engine makes the records and knows what they mean there; monitoring adds them up and draws them. They are tuples,
built by keyword, because several are made for each batch. Times are nanoseconds on the system-wide monotonic clock.
"""

from __future__ import annotations

from typing import NamedTuple


class SlotCounts(NamedTuple):
    """How many slots are in each state. All are 0 before the slots exist."""

    free: int = 0
    assigned: int = 0
    ready: int = 0
    borrowed: int = 0
    quarantined: int = 0

    @property
    def total(self) -> int:
        """How many slots there are."""
        return sum(self)


class BatchMade(NamedTuple):
    """A worker has made a batch.

    Attributes:
        worker: index of the worker.
        at_ns: when the trainer received the batch.
        slots: the states of the slots from then on.
        attempt: which attempt at the task this was, from 1.
        slot: number of the slot that was assigned.
        epoch: epoch of the batch; 0 for a generator.
        batch_index: number of the batch in its epoch, or among those of its generator.
        input: number of the generator's input; None for a batch of a plan.
        samples: samples in the batch.
        batch_bytes: its size in bytes.
        started_ns: when the worker began.
        busy_ns: time from then until the batch was complete.
        read_ns: part of it in the source.
        transform_ns: part of it in the transform or the generator.
        write_ns: part of it writing into the slot.
        cpu_ns: processor time of the worker since it last reported any.
        queued_ns: time since then in which the worker was ready to run and had no processor.
        samples_read: samples taken from the source, bad ones included.
        bytes_read: their size in bytes.
    """

    worker: int
    at_ns: int
    slots: SlotCounts
    attempt: int
    slot: int
    epoch: int
    batch_index: int
    input: int | None
    samples: int
    batch_bytes: int
    started_ns: int
    busy_ns: int
    read_ns: int
    transform_ns: int
    write_ns: int
    cpu_ns: int
    queued_ns: int
    samples_read: int
    bytes_read: int


class BatchDelivered(NamedTuple):
    """A consumer has got a batch.

    Attributes:
        series: number of the series of batches that the consumer reads.
        batch_index: number of the batch in it.
        samples: samples in the batch.
        size: its size in bytes.
        bad: samples of it that were dropped or replaced.
        copied: whether it was copied out of its slot.
        previous_ns: when the consumer got the batch before; None for its first.
        asked_ns: when the consumer asked for the batch.
        taken_ns: when the batch was there.
        got_ns: when the consumer got it, after a copy if there was one.
        slots: the states of the slots from then on.
    """

    series: int
    batch_index: int
    samples: int
    size: int
    bad: int
    copied: bool
    previous_ns: int | None
    asked_ns: int
    taken_ns: int
    got_ns: int
    slots: SlotCounts


class WorkerRestarted(NamedTuple):
    """A worker was lost and another one starts in its place.

    Attributes:
        worker: index of the worker.
        at_ns: when the new one was started.
    """

    worker: int
    at_ns: int


class SlotsAllocated(NamedTuple):
    """The slots exist.

    Attributes:
        wanted: how many there would be with enough memory.
        slot_bytes: size of a slot, in bytes.
        start_ns: time that the workers took from the start to a first sample.
    """

    wanted: int
    slot_bytes: int
    start_ns: int
