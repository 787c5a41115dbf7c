"""Every value that crosses the border between the trainer and a worker.

A message is a frozen dataclass of integers, sent as one datagram of at most 512 bytes over a ``SOCK_SEQPACKET``
socket pair: messages of that size are never torn by a kill, and a datagram needs no framing. Anything longer
(tracebacks, the description of an element) is text or a pickle that the sender has put into shared memory before;
the message says how many bytes. A whole file travels as a descriptor beside its message: a batch and reports that are
larger than their slot, and a source that has changed.

Trainer to worker: :class:`Probe`, :class:`Open`, :class:`AddSlots`, :class:`Condemn`, :class:`Make`, :class:`Cancel`,
:class:`Renew`.
Worker to trainer: :class:`Hello`, :class:`Broken`, :class:`Probed`, :class:`Made`, :class:`Failed`.

A new message is one class here, listed in ``ToWorker`` or ``FromWorker``, and a method where it is handled:
``engine/worker/loop.py`` or ``engine/supervisor/message_handler.py``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, get_args

MAX_BYTES = 512
PROTOCOL = 2
"""Number of the protocol; a worker with another one comes from another version of mploader."""

_NONE = -(2**63)
"""None on the wire. No field has this value."""


class ProtocolError(Exception):
    """The bytes are not a message; the sender is not trusted any further."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """To a worker: run the transform on one sample and describe the element.

    Attributes:
        sample_index: the sample, in [0, len(source)).
    """

    sample_index: int


@dataclass(frozen=True, kw_only=True)
class Open:
    """To a worker, once, before the first :class:`AddSlots`: how a batch lies in a slot.

    Attributes:
        offset: where the pickled ``BatchLayout`` lies in the shared file, in bytes, page-aligned.
        size: its length in bytes.
    """

    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class AddSlots:
    """To a worker: a segment of slots exists from now on; map it. Comes again when more are made.

    Attributes:
        first: number of the first slot.
        count: how many there are.
        offset: where the first one begins in the shared file, in bytes, page-aligned.
        slot_bytes: from one slot to the next, in bytes, a multiple of the page size.
    """

    first: int
    count: int
    offset: int
    slot_bytes: int


@dataclass(frozen=True, kw_only=True)
class Condemn:
    """To every worker: treat one sample as bad from now on, because it has killed too many workers.

    Attributes:
        sample_index: the sample, in [0, len(source)).
        epoch: the epoch in which that holds; None: in all.
        status: how the last of those workers ended, as :func:`sample_report.describe_ending` takes it.
    """

    sample_index: int
    epoch: int | None
    status: int


@dataclass(frozen=True, kw_only=True)
class Make:
    """To a worker: an assignment. Write one batch into one slot.

    Attributes:
        task, attempt, slot, generation, series, epoch, batch_index, first, input: see
            :class:`mploader.engine.scheduler.states.Assignment`.
        skip: of a generator: open it anew and leave out so many elements, which are delivered. None: go on where it
            stands.
        checksum: of the elements to leave out.
    """

    task: int
    attempt: int
    slot: int
    generation: int
    series: int
    epoch: int
    batch_index: int
    first: int
    input: int | None = None
    skip: int | None = None
    checksum: int = 0


@dataclass(frozen=True, kw_only=True)
class Cancel:
    """To a worker: the rest of a generator is not wanted; close it.

    Attributes:
        series: the pass over the generator that is meant.
    """

    series: int


@dataclass(frozen=True, kw_only=True)
class Renew:
    """To a worker, before a :class:`Make` of another epoch: the file sent along holds the source of that epoch.

    Only for sources that change between epochs.
    """

    epoch: int


@dataclass(frozen=True, kw_only=True)
class Hello:
    """From a worker: it has unpickled source and transform and waits for work."""

    protocol: int
    pid: int


@dataclass(frozen=True, kw_only=True)
class Broken:
    """From a worker: it cannot start (an import error, say), and ends now. The text is in the worker's status."""

    text_bytes: int


@dataclass(frozen=True, kw_only=True)
class Probed:
    """From a worker: the answer to :class:`Probe`, whose text is in the worker's status.

    Attributes:
        sample_index: the sample.
        ok: 1: the text is a pickled ``ProbeResult``; 0: it is a report of what went wrong with the sample.
        text_bytes: length of the text.
    """

    sample_index: int
    ok: int
    text_bytes: int


@dataclass(frozen=True, kw_only=True)
class Made:
    """From a worker: the commit point of a batch. Its slot is complete. Times are in nanoseconds.

    Attributes:
        task, attempt, slot, generation: those of the assignment.
        samples: samples in the batch; fewer than planned where bad ones were dropped.
        batch_bytes: bytes of the slot that are in use. More than the slot holds: they are at the start of the file sent
            along.
        report_bytes: length of the report on bad samples beside the slot; 0 without any. More than there is room for:
            it is at the end of the file sent along.
        started_ns: when the worker began the task, on the system-wide monotonic clock.
        busy_ns: from then until the slot was complete.
        read_ns, transform_ns, write_ns: parts of it: in the source, in the transform or generator, writing the slot.
        cpu_ns: processor time that the worker has used since it reported this last; not every batch reports it.
        queued_ns: time in which it was ready to run while others had the processors.
        samples_read: samples taken from the source, bad ones included.
        bytes_read: their size, as far as it is known at once: of bytes and arrays.
        elements: of a generator, all that it has given so far, with this batch.
        checksum: over these elements.
        is_last: 1: the generator has ended, and there is no batch behind this one.
    """

    task: int
    attempt: int
    slot: int
    generation: int
    samples: int
    batch_bytes: int
    report_bytes: int
    started_ns: int
    busy_ns: int
    read_ns: int
    transform_ns: int
    write_ns: int
    cpu_ns: int
    queued_ns: int
    samples_read: int
    bytes_read: int
    elements: int = 0
    checksum: int = 0
    is_last: int = 0


@dataclass(frozen=True, kw_only=True)
class Failed:
    """From a worker: the batch cannot be made, and another attempt would end the same way.

    Attributes:
        task, attempt, slot, generation: those of the assignment.
        report_bytes: length of the report beside the slot.
    """

    task: int
    attempt: int
    slot: int
    generation: int
    report_bytes: int


ToWorker: TypeAlias = Probe | Open | AddSlots | Condemn | Make | Cancel | Renew
FromWorker: TypeAlias = Hello | Broken | Probed | Made | Failed
Message: TypeAlias = ToWorker | FromWorker

_CLASSES: tuple[type[Any], ...] = (*get_args(ToWorker), *get_args(FromWorker))
_TAGS = {cls: tag for tag, cls in enumerate(_CLASSES, start=1)}
_FORMATS = {cls: struct.Struct(f"<B{len(fields(cls))}q") for cls in _CLASSES}
_NAMES = {cls: tuple(field.name for field in fields(cls)) for cls in _CLASSES}
_OPTIONAL = {
    cls: frozenset(field.name for field in fields(cls) if "None" in str(field.type)) for cls in _CLASSES
}


def encode(message: Message) -> bytes:
    """Returns the datagram of a message: one byte of kind, then its fields as little-endian 64-bit integers."""
    cls = type(message)
    values = vars(message).values()  # in the order of the fields, as __init__ sets them
    if None in values:
        return _FORMATS[cls].pack(_TAGS[cls], *(_NONE if value is None else value for value in values))
    return _FORMATS[cls].pack(_TAGS[cls], *values)


def decode(data: bytes) -> Message:
    """Returns the message in a datagram.

    Raises:
        ProtocolError: the kind is unknown, the length does not belong to it, or a value is missing.
    """
    if not data or not 1 <= data[0] <= len(_CLASSES):
        raise ProtocolError(f"not a message: {data[:16]!r} ({len(data)} bytes)")
    cls = _CLASSES[data[0] - 1]
    layout = _FORMATS[cls]
    if len(data) != layout.size:
        raise ProtocolError(f"{cls.__name__}: expected {layout.size} bytes, got {len(data)}")
    values: tuple[int | None, ...] = layout.unpack(data)[1:]
    if _NONE in values:
        values = tuple(None if value == _NONE else value for value in values)
    # Not by __init__: that of a frozen class sets one field after the other, at three times the cost.
    message: Message = object.__new__(cls)
    vars(message).update(zip(_NAMES[cls], values, strict=True))
    if None in values:
        _check_missing(message)
    return message


def _check_missing(message: Message) -> None:
    for name, value in vars(message).items():
        if value is None and name not in _OPTIONAL[type(message)]:
            raise ProtocolError(f"{type(message).__name__}: {name} is missing")
