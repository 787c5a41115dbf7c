"""What a worker says about bad samples and failed batches: bounded text, never a pickled exception.

An exception is turned into a :class:`SampleReport` in the worker. The trainer makes a :class:`BadSample` or an error
of ``mploader.errors`` from it. An exception that cannot be printed, or is a hundred megabytes long, must not do more
harm than one that can.
"""

from __future__ import annotations

import json
import signal
import traceback
from dataclasses import asdict, dataclass, fields

from mploader._util.environment_errors import is_environment
from mploader._util.location import Location
from mploader._util.text import clip, clip_front
from mploader.errors import LoaderError, ResourceError, SampleError, SpecError, StallError

ADVICE = 'Mend the data or the transform, or pass on_bad_sample="drop" or "replace" to go on without it.'
KIND_CHARACTERS = 200
MESSAGE_CHARACTERS = 2_000
TRACEBACK_CHARACTERS = 12_000
MAX_CAUSES = 5
"""Exceptions of a chain that a traceback shows; a chain may be endless."""

UNKNOWN_ENDING = 256
"""In place of an exit status: somebody else has collected it."""
STALLED = 257
"""In place of an exit status: the worker made no progress and was killed for that."""


@dataclass(frozen=True)
class SampleReport:
    """One sample that could not be made into an element.

    Attributes:
        index: the sample's number in the source; of a generator, the number of the element. None: the report is on a
            batch as a whole.
        where: what ``source.where(index)`` says, or "".
        kind: the name of the original exception's class.
        error: its message.
        traceback: the worker's traceback as text.
        group: "content" (the data or the transform), "generator" (the same), "spec" (the element does not fit),
            "environment" (storage, memory, descriptors), "crash" (it killed its workers) or "stall" (they hung on it).
        file: path or URL of the file that the sample lies in; None where the source does not say.
        byte: offset of the sample in that file; None where the source does not say.
        offset: the offset in the batch (without a batch size: in the block of elements) that the sample was read for;
            None for a sample that was read for no batch.
    """

    index: int | None
    where: str
    kind: str
    error: str
    traceback: str
    group: str
    file: str | None = None
    byte: int | None = None
    offset: int | None = None

    def to_error(self, worker: str, advice: str = ADVICE) -> LoaderError:
        """Returns the error that the consumer gets.

        Args:
            worker: name of the worker, as "worker 3".
            advice: what to do about bad data or a fault in the transform; "" for none.
        """
        kind, text = self._error_text(worker, advice)
        return kind(
            text, index=self.index, file=self.file, byte=self.byte, kind=self.kind, reason=self.error,
            traceback=self.traceback or None, worker=worker,
        )  # fmt: skip

    def _error_text(self, worker: str, advice: str) -> tuple[type[LoaderError], str]:
        where = f" ({self.where})" if self.where else ""
        place = self.where if self.index is None else f"sample {self.index}{where}"
        text = f"{place} failed in {worker}: {self.kind}: {self.error}"
        if self.group == "spec":
            return SpecError, f"{text}\n\n{self.traceback}".rstrip()
        if self.group == "environment":
            advice = "This is a fault of the machine or the storage, not of the data. It was tried several times."
            if self.kind == "MemoryError":
                advice = "No memory is left for it, and it was tried several times: use fewer workers (num_workers=)."
            return ResourceError, f"{text}\n{advice}\n\n{self.traceback}"
        if self.group == "stall":
            advice = "If it may take so long, raise stall_timeout=. Otherwise see where it hangs:"
            return StallError, f"{text}\n{advice}\n\n{self.traceback}"
        if self.group == "generator":
            advice = "An element cannot be left out: mend the generator."
        parts = (f"{text}\n{advice}" if advice else text, self.traceback)
        return SampleError, "\n\n".join(parts).rstrip()


@dataclass(frozen=True)
class BadSample:
    """One sample that was dropped or replaced.

    Attributes:
        index: the sample's number in the source.
        where: file, record and byte, as far as the source knows them.
        error: the original exception, as ``Type: message``.
        traceback: the worker's traceback as text, of the first 100 of an epoch; "" for others, and where so many
            samples of one batch are bad that it had no room.
        file: path or URL of the file that the sample lies in; None where the source does not say.
        byte: offset of the sample in that file; None where the source does not say.
        kind: the name of the original exception's class.
    """

    index: int
    where: str
    error: str
    traceback: str
    file: str | None = None
    byte: int | None = None
    kind: str = ""

    @classmethod
    def of(cls, report: SampleReport, *, keep_traceback: bool) -> BadSample:
        """Makes the record of a sample from its report."""
        assert report.index is not None, "a bad sample has a number"
        return cls(
            report.index, report.where, f"{report.kind}: {report.error}", report.traceback if keep_traceback else "",
            report.file, report.byte, report.kind,
        )  # fmt: skip


def report_exception(index: int | None, where: str, error: BaseException) -> SampleReport:
    """Describes an exception of the source or the transform."""
    group = "spec" if isinstance(error, SpecError) else "environment" if is_environment(error) else "content"
    kind = clip(type(error).__name__, KIND_CHARACTERS)
    return SampleReport(
        index, clip(where, MESSAGE_CHARACTERS), kind, message_of(error), traceback_of(error), group,
        *file_and_byte(where),
    )  # fmt: skip


def file_and_byte(where: str) -> tuple[str | None, int | None]:
    """Returns the file and the byte that a source names; a name of more than 2,000 characters is left out."""
    if not isinstance(where, Location):
        return None, None
    is_short = where.file is not None and len(where.file) <= MESSAGE_CHARACTERS
    return where.file if is_short else None, where.byte


def message_of(error: BaseException) -> str:
    """The exception's message, at most 2,000 characters, whatever its ``__str__`` does."""
    try:
        return clip(str(error), MESSAGE_CHARACTERS)
    except BaseException as failure:  # user code: a __str__ may raise anything
        return f"(its message cannot be shown: __str__ raised {type(failure).__name__})"


def traceback_of(error: BaseException) -> str:
    """The exception's traceback, at most 12,000 characters, with the innermost frames kept."""
    parts: list[str] = []
    link: BaseException | None = error
    while link is not None and len(parts) < MAX_CAUSES:
        frames = "".join(traceback.format_tb(link.__traceback__))
        last = f"{type(link).__name__}: {message_of(link)}"
        parts.append(f"Traceback (in the worker, innermost call last):\n{frames}{last}")
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return clip_front("\n\nled to:\n\n".join(reversed(parts)), TRACEBACK_CHARACTERS)


def describe_condemned(status: int) -> str:
    """Says what a sample has done to its workers; ``status`` is how the last one ended."""
    if status == STALLED:
        return "its worker hung on it 3 times: it made no progress for stall_timeout"
    return f"it killed its worker 3 times; the last one {describe_ending(status)}"


def describe_ending(status: int) -> str:
    """Says how a worker ended, with the name of the signal.

    Args:
        status: its exit code, minus the number of the signal, ``UNKNOWN_ENDING`` or ``STALLED``.
    """
    if status == UNKNOWN_ENDING:
        return "ended (its exit status was collected elsewhere)"
    if status == STALLED:
        return "made no progress for stall_timeout"
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:  # a real-time signal
            name = f"signal {-status}"
        return f"was ended by {name} ({status})"
    return f"exited with code {status}"


def encode(reports: list[SampleReport], limit: int) -> bytes:
    """Returns reports as JSON in ``limit`` bytes, if need be without most of their tracebacks.

    One report always fits into 64 KiB. Of many, each keeps its place and its message, however long all of them are
    together: at most 4,300 characters for each sample.
    """
    for characters in (TRACEBACK_CHARACTERS, 3_000, 750, 180, 0):
        data = json.dumps([_cut(report, characters) for report in reports]).encode()
        if len(data) <= limit:
            return data
    return data


def _cut(report: SampleReport, traceback_characters: int) -> dict[str, object]:
    short = clip_front(report.traceback, traceback_characters) if traceback_characters else ""
    return {**asdict(report), "traceback": short}


def decode(data: bytes) -> list[SampleReport]:
    """Reads what :func:`encode` has made.

    Raises:
        ValueError: the bytes are something else.
    """
    rows = json.loads(data)
    if not isinstance(rows, list) or not rows:
        raise ValueError("reports are a list that is not empty")
    return [_read(row) for row in rows]


def _read(row: object) -> SampleReport:
    names = {field.name for field in fields(SampleReport)}
    if not isinstance(row, dict) or set(row) != names:
        raise ValueError("not a report")
    for name, value in row.items():
        kind = int if name in ("index", "byte", "offset") else str
        if type(value) is not kind and not (value is None and name in ("index", "file", "byte", "offset")):
            raise ValueError("not a report")
    return SampleReport(**row)
