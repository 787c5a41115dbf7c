"""Reads and decodes every sample of some files and lists the bad ones: the library behind ``mploader verify``."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mploader.engine.ipc.sample_report import BadSample
from mploader.errors import SourceError
from mploader.images import decode
from mploader.loader.loader import Loader
from mploader.sources import Source, TarShards, TFRecordShards, open_source
from mploader.sources.detect import open_each
from mploader.sources.files import file_state
from mploader.sources.image_folder import EXTENSIONS
from mploader.sources.protocols import where_is

BATCH_SIZE = 32
"""Small, so that progress is shown often."""
STALL_TIMEOUT_S = 120.0
EMPTY = "is empty (0 bytes), perhaps from a copy that was interrupted"

_SENTENCE_END = re.compile(r"\.$|\. |; |\n")
_NUMBER = re.compile(r"\b\d[\d,]*\b(?!-)")  # not in words such as 8-bit
_SUMMARY_CHARACTERS = 120

Progress = Callable[[int, int], None]
"""Called as samples are checked: (how many so far, how many of them are bad)."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A bad sample, or a bad file.

    Attributes:
        index: the sample's number in the source; None for a file that cannot be opened at all.
        file: path or URL of the file; what the source says of the sample where it is in no file.
        byte: where in the file the sample begins; None where it is the whole file.
        error: what is wrong.
        summary: the same in one sentence without its numbers, so that samples with the same fault can be counted.
    """

    index: int | None = None
    file: str
    byte: int | None = None
    error: str
    summary: str

    @classmethod
    def of_sample(cls, source: Source, bad: BadSample) -> Finding:
        """From a bad sample of the loader, whose source is an :class:`_AfterGoodOne`."""
        index = bad.index - 1
        where = where_is(source, index)
        error = bad.error.removeprefix(f"{bad.kind}: ").removeprefix(where).removeprefix(":").strip()
        file = str(where) if where.file is None else where.file
        return cls(index=index, file=file, byte=where.byte, error=error, summary=summary_of(error))

    @classmethod
    def of_file(cls, file: str, error: SourceError | None) -> Finding:
        """From the error of a source that cannot open a file; None for a shard of 0 bytes, which can be opened."""
        text = EMPTY if error is None or _is_empty(file) else str(error).replace(f"{file} ", "", 1)
        return cls(file=file, error=text, summary=summary_of(text))

    def __str__(self) -> str:
        """One line: the file, the byte, the sample and what is wrong."""
        byte = "" if self.byte is None else f", byte {self.byte:,}"
        sample = "" if self.index is None else f", sample {self.index:,}"
        return one_line(f"{self.file}{byte}{sample}: {' '.join(self.error.split())}")


@dataclass(frozen=True)
class VerifyReport:
    """The results of a check.

    Attributes:
        samples: how many were checked.
        findings: bad samples and bad files, in the order of the files.
        seconds: how long it took.
    """

    samples: int
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def is_good(self) -> bool:
        """Whether nothing is bad."""
        return not self.findings

    def summary(self) -> dict[str, int]:
        """How many findings have each summary, the most frequent first."""
        return dict(Counter(finding.summary for finding in self.findings).most_common())


@dataclass(frozen=True)
class Decode:
    """A transform that checks one sample: decodes the pictures in it.

    Pictures are the bytes of a sample of an image folder, and in a dict the values whose name is the file ending of a
    picture ("jpg", "seg.png", as in tar shards) or ends with "encoded" ("image/encoded", as in TFRecord). Of everything
    else it is only checked that it can be read.
    """

    def __call__(self, sample: Any) -> int:
        """Returns how many pictures were decoded.

        Raises:
            SampleError: a picture cannot be decoded.
        """
        pictures = [data for data in _pictures(sample) if isinstance(data, bytes)]
        for data in pictures:
            decode(data)
        return len(pictures)


def verify(
    sources: Iterable[Source],
    *,
    check: Callable[[Any], Any] | None = None,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Reads every sample in worker processes and checks it.

    Args:
        sources: what to read.
        check: a transform that raises on a bad sample; None: :class:`Decode`.
        num_workers: processes. None: as many as CPUs that this process may use.
        progress: called after each batch.

    Raises:
        LoaderError: the machine or the storage fails. This says nothing about the data.
    """
    started_s = time.monotonic()
    samples, findings = 0, list[Finding]()
    for source in sources:
        with Loader(
            _AfterGoodOne(source),
            _CheckAfterGoodOne(Decode() if check is None else check),
            batch_size=BATCH_SIZE,
            on_bad_sample="drop",
            num_workers=num_workers,
            stall_timeout=STALL_TIMEOUT_S,
        ) as loader:
            for batches, _ in enumerate(loader, 1):
                if progress is not None:
                    done = min(batches * BATCH_SIZE - 1, len(source))
                    progress(samples + done, len(findings) + loader.statistics().bad_samples)
            findings += [Finding.of_sample(source, bad) for bad in loader.bad_samples()]
        samples += len(source)
    return VerifyReport(samples, tuple(findings), time.monotonic() - started_s)


def open_all(paths: Sequence[str]) -> tuple[list[Source], list[Finding]]:
    """Opens the data at some paths without the shards that cannot be opened, which are findings.

    Shards of 0 bytes are findings, too: an interrupted copy leaves one behind.

    Raises:
        SourceError: nothing can be opened, or the data is of no format that mploader reads.
    """
    sources, findings = list[Source](), list[Finding]()
    for path in paths:
        try:
            opened: Source | None = open_source(path)
        except SourceError:
            opened, refused = open_each(path)
            findings += [Finding.of_file(file, error) for file, error in refused.items()]
        if opened is not None:
            sources.append(opened)
        if isinstance(opened, (TFRecordShards, TarShards)):
            findings += [Finding.of_file(file, None) for file in opened.empty_shards()]
    return sources, findings


def one_line(text: str) -> str:
    """The text in one line: characters that cannot be printed, such as the end of a line, are escaped."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def summary_of(error: str) -> str:
    """The first sentence of a message with # for its numbers, at most 120 characters."""
    first = _SENTENCE_END.split(error.strip(), maxsplit=1)[0]
    return _NUMBER.sub("#", first)[:_SUMMARY_CHARACTERS]


class _AfterGoodOne:
    """A source with a good sample in front, from which a loader learns its spec even if all others are bad.

    Args:
        source: its sample ``n`` is sample ``n + 1`` here.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source) + 1

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return (self._source[index - 1],) if index else ()

    def where(self, index: int) -> str:
        return where_is(self._source, index - 1) if index else ""


@dataclass(frozen=True)
class _CheckAfterGoodOne:
    check: Callable[[Any], Any]

    def __call__(self, sample: tuple[Any, ...]) -> int:
        for inside in sample:
            self.check(inside)
        return 0


def _is_empty(file: str) -> bool:
    try:
        return file_state(file).size == 0
    except OSError:
        return False


def _pictures(sample: Any) -> Iterable[Any]:
    if isinstance(sample, tuple):
        return sample[:1]
    if isinstance(sample, dict):
        return [value for name, value in sample.items() if _is_picture(str(name).lower())]
    return ()


def _is_picture(name: str) -> bool:
    return name.endswith("encoded") or f".{name.rpartition('.')[2]}" in EXTENSIONS
