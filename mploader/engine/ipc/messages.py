"""Every value that crosses the border between the trainer and a worker.

A message is a frozen dataclass of integers, sent as one datagram of at most 512 bytes over a ``SOCK_SEQPACKET``
socket pair: messages of that size are never torn by a kill, and a datagram needs no framing. Anything longer
(tracebacks, the description of an element) is text or a pickle that the sender has put into shared memory before;
the message says how many bytes. A whole file travels as a descriptor beside its message: what does not fit into its
slot of a batch and the reports on its bad samples, and a source that has changed.

Trainer to worker: :class:`Describe`, :class:`Open`, :class:`Renew`, :class:`Condemn`, :class:`Fill`, :class:`Draw`,
:class:`Forget`.
Worker to trainer: :class:`Hello`, :class:`Broken`, :class:`Described`, :class:`Filled`, :class:`Drawn`,
:class:`Failed`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import TypeAlias

MAX_BYTES = 512
PROTOCOL = 1
"""Number of the protocol; a worker that says another one comes from another version of mploader."""


class ProtocolError(Exception):
    """The bytes are not a message; the sender is not trusted any further."""


@dataclass(frozen=True)
class Describe:
    """To a worker: run the transform on one sample and describe the element."""

    index: int
    """The sample, in [0, len(source))."""


@dataclass(frozen=True)
class Open:
    """To a worker: the slots exist from now on; map them. Sent once, before the first :class:`Fill`."""

    layout_offset: int
    """Where the pickled ``BatchLayout`` lies in the shared file, in bytes."""
    layout_bytes: int
    slots_offset: int
    """Where slot 0 begins, in bytes, page-aligned."""
    slot_bytes: int
    """From one slot to the next, in bytes, a multiple of the page size."""
    slots: int


@dataclass(frozen=True)
class Condemn:
    """To every worker: treat one sample as bad from now on, it has killed too many workers."""

    index: int
    """The sample, in [0, len(source))."""
    epoch: int
    """The epoch in which that holds; -1: in all."""
    status: int
    """How the last of those workers ended: an exit code, minus the number of the signal, or one of ``reports``."""


@dataclass(frozen=True)
class Fill:
    """To a worker: a lease. Write one batch into one slot."""

    task: int
    attempt: int
    """From 1; one more for each worker that was lost with the task."""
    slot: int
    generation: int
    """Number of the slot's use; a result of an older use is dropped."""
    epoch: int
    position: int
    """The batch's place in the epoch of this host, from 0."""
    first: int
    """Without a batch size: the element of the epoch with which position 0 begins; a resumed run starts anywhere."""


@dataclass(frozen=True)
class Draw:
    """To a worker: a lease. Write the next elements of one generator into one slot."""

    task: int
    attempt: int
    slot: int
    generation: int
    run: int
    """The pass over the generator that is meant; the worker may have several of one stream open."""
    stream: int
    """The generator's number, from 0."""
    skip: int
    """Open the generator and leave out so many elements first, they are delivered; -1: go on where it stands."""
    checksum: int
    """Checksum of the elements to leave out."""


@dataclass(frozen=True)
class Forget:
    """To a worker: nobody wants the rest of a generator; close it."""

    run: int


@dataclass(frozen=True)
class Renew:
    """To a worker, before a :class:`Fill` of another epoch: the file sent along holds the source of that epoch.

    Only for sources that change between epochs.
    """

    epoch: int


@dataclass(frozen=True)
class Hello:
    """From a worker: it has unpickled source and transform and waits for work."""

    protocol: int
    pid: int


@dataclass(frozen=True)
class Broken:
    """From a worker: it cannot start (an import error, say). The text is in the worker's area; it ends now."""

    text_bytes: int


@dataclass(frozen=True)
class Described:
    """From a worker: the answer to :class:`Describe`. The pickle or the text is in the worker's area."""

    index: int
    ok: int
    """1: a pickled structure of ``ArraySpec``; 0: a report of what went wrong with the sample."""
    payload_bytes: int


@dataclass(frozen=True)
class Filled:
    """From a worker: the commit point of a batch. Its slot is complete; times are in nanoseconds."""

    task: int
    attempt: int
    slot: int
    generation: int
    samples: int
    """Samples in the batch; fewer than planned where bad ones were dropped."""
    batch_bytes: int
    """Bytes of the slot that are in use. More than the slot holds: they are at the start of the file sent along."""
    report_bytes: int
    """Length of the report on bad samples in the slot's report area; 0 when there were none. More than the area holds:
    it is at the end of the file sent along."""
    started_ns: int
    """When the worker took the task up, on the system-wide monotonic clock."""
    busy_ns: int
    """From then until the slot was complete."""
    read_ns: int
    transform_ns: int
    write_ns: int
    cpu_ns: int
    """Processor time that the worker has used since it told this last; it does not tell at every batch."""
    queued_ns: int
    """Time that it was ready to run while others had the processors."""
    samples_read: int
    """Samples taken from the source, bad ones included."""
    bytes_read: int
    """Their size, as far as it is told cheaply: of bytes and arrays."""
    epoch: int
    position: int
    """What the lease said; shown in timelines, decides nothing."""


@dataclass(frozen=True)
class Drawn:
    """From a worker: the commit point of a batch from a generator. As :class:`Filled`, and what a successor needs."""

    task: int
    attempt: int
    slot: int
    generation: int
    samples: int
    batch_bytes: int
    started_ns: int
    busy_ns: int
    transform_ns: int
    """Time spent in the generator."""
    write_ns: int
    cpu_ns: int
    queued_ns: int
    is_last: int
    """1: the generator has ended."""
    checksum: int
    """Of all elements of the generator so far."""

    @property
    def read_ns(self) -> int:
        """A generator does not tell its reading from the rest of its work."""
        return 0

    @property
    def report_bytes(self) -> int:
        """There are no bad samples in a generator: it fails as a whole."""
        return 0


@dataclass(frozen=True)
class Failed:
    """From a worker: the batch cannot be made, and another attempt would end the same way."""

    task: int
    attempt: int
    slot: int
    generation: int
    report_bytes: int
    """Length of the report in the slot's report area."""


ToWorker: TypeAlias = Describe | Open | Condemn | Fill | Draw | Forget | Renew
FromWorker: TypeAlias = Hello | Broken | Described | Filled | Drawn | Failed
Message: TypeAlias = ToWorker | FromWorker

_CLASSES: tuple[type[Message], ...] = (
    Describe, Open, Condemn, Fill, Draw, Forget, Renew, Hello, Broken, Described, Filled, Drawn, Failed,
)  # fmt: skip
_TAGS = {cls: tag for tag, cls in enumerate(_CLASSES, start=1)}
_FORMATS = {cls: struct.Struct(f"<B{len(fields(cls))}q") for cls in _CLASSES}
_NAMES = {cls: tuple(field.name for field in fields(cls)) for cls in _CLASSES}


def encode(message: Message) -> bytes:
    """Returns the datagram of a message: one byte of kind, then its fields as little-endian 64-bit integers."""
    cls = type(message)
    return _FORMATS[cls].pack(_TAGS[cls], *(getattr(message, name) for name in _NAMES[cls]))


def decode(data: bytes) -> Message:
    """Returns the message in a datagram.

    Raises:
        ProtocolError: the kind is unknown or the length does not belong to it.
    """
    if not data or not 1 <= data[0] <= len(_CLASSES):
        raise ProtocolError(f"not a message: {data[:16]!r} ({len(data)} bytes)")
    cls = _CLASSES[data[0] - 1]
    layout = _FORMATS[cls]
    if len(data) != layout.size:
        raise ProtocolError(f"a {cls.__name__} has {layout.size} bytes, got {len(data)}")
    return cls(*layout.unpack(data)[1:])
