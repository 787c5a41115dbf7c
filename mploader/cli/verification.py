"""Reads and decodes every sample of some files and lists what is bad: the library behind ``mploader verify``."""

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
"""Small, so that progress is told often."""
STALL_TIMEOUT_S = 120.0
EMPTY = "is empty (0 bytes), perhaps from a copy that was interrupted"

_SHARD_PLACE = re.compile(r"(?P<file>.*), \w+ \d+ at byte (?P<byte>\d+)", re.DOTALL)
_SIZES = re.compile(r"(, \d+ x \d+)?(, [\d,]+ bytes):")
"""Of a picture, as the decoders put them before what is wrong with it."""
_SENTENCE_END = re.compile(r"\.$|\. |; |, perhaps |\n")
_NUMBER = re.compile(r"\b\d[\d,]*\b(?!-bit)")
_KIND_CHARACTERS = 120

Progress = Callable[[int, int], None]
"""Called as samples are checked: (how many so far, how many of them are bad)."""


@dataclass(frozen=True)
class Finding:
    """One thing that is bad.

    Attributes:
        index: the sample's number in the source; None for a file that cannot be opened at all.
        file: where it is.
        byte: where in the file the sample begins; None where it is the whole file.
        kind: what is wrong in general, the same for all samples with this fault.
        error: what is wrong.
    """

    index: int | None
    file: str
    byte: int | None
    kind: str
    error: str

    @classmethod
    def of(cls, bad: BadSample) -> Finding:
        """From what the loader says of a sample; its number is one less, see :class:`_AfterGoodOne`."""
        place = _SHARD_PLACE.fullmatch(bad.where)
        file, byte = (place["file"], int(place["byte"])) if place else (bad.where, None)
        error = bad.error.partition(": ")[2].removeprefix(bad.where).removeprefix(":").strip()
        return cls(bad.index - 1, file, byte, kind_of(error), error)

    @classmethod
    def of_file(cls, file: str, error: SourceError) -> Finding:
        """From what a source says of a file that it cannot open."""
        return cls._of_text(file, EMPTY if _is_empty(file) else str(error).replace(f"{file} ", "", 1))

    @classmethod
    def of_empty(cls, file: str) -> Finding:
        """Of a shard without a byte, which a source counts as one of no samples."""
        return cls._of_text(file, EMPTY)

    @classmethod
    def _of_text(cls, file: str, text: str) -> Finding:
        return cls(None, file, None, kind_of(text), text)

    def __str__(self) -> str:
        """The place and what is wrong there, in one line."""
        byte = "" if self.byte is None else f", byte {self.byte:,}"
        sample = "" if self.index is None else f", sample {self.index:,}"
        return one_line(f"{self.file}{byte}{sample}: {' '.join(self.error.split())}")


@dataclass(frozen=True)
class VerifyReport:
    """What was found.

    Attributes:
        samples: how many were checked.
        findings: what is bad, in the order of the files.
        seconds: how long it took.
    """

    samples: int
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def is_good(self) -> bool:
        """Whether nothing is bad."""
        return not self.findings

    def kinds(self) -> dict[str, int]:
        """How many findings there are of each kind, the most frequent first."""
        return dict(Counter(finding.kind for finding in self.findings).most_common())


@dataclass(frozen=True)
class Decode:
    """The check of one sample, a transform: decodes the pictures in it.

    These are the bytes of a sample of an image folder, and in a dict those whose name is a picture's file ending
    ("jpg", "seg.png", as in tar shards) or ends with "encoded" ("image/encoded", as in TFRecord). Anything else need
    only be readable.
    """

    def __call__(self, sample: Any) -> int:
        """Returns how many pictures were decoded.

        Raises:
            SampleError: one cannot be.
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
        check: a transform that raises on what is bad; None: :class:`Decode`.
        num_workers: processes; None: as many as CPUs.
        progress: told of each batch.

    Raises:
        LoaderError: the machine or the storage fails, which says nothing about the data.
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
            for position, _ in enumerate(loader, 1):
                if progress is not None:
                    done = min(position * BATCH_SIZE - 1, len(source))
                    progress(samples + done, len(findings) + loader.statistics().bad_samples)
            findings += map(Finding.of, loader.bad_samples())
        samples += len(source)
    return VerifyReport(samples, tuple(findings), time.monotonic() - started_s)


def open_all(paths: Sequence[str]) -> tuple[list[Source], list[Finding]]:
    """Opens what lies at some paths; shards that cannot be opened are findings, and the others are opened without them.

    So are shards without a byte: a writer makes one that gets no sample, and an interrupted copy leaves one behind.

    Raises:
        SourceError: nothing at all can be opened, or it is no data that mploader reads.
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
            findings += map(Finding.of_empty, opened.empty_shards())
    return sources, findings


def one_line(text: str) -> str:
    """A text for a line of its own: characters that cannot be printed, such as a line's end, are escaped."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def kind_of(error: str) -> str:
    """What is wrong in general: the first sentence of a message, without sizes and with its numbers left out."""
    first = _SENTENCE_END.split(_SIZES.sub(":", error.strip(), count=1), maxsplit=1)[0]
    return _NUMBER.sub("#", first)[:_KIND_CHARACTERS]


class _AfterGoodOne:
    """A source with a good sample in front: a loader learns from it what its elements look like, however bad the rest.

    Args:
        source: whose sample ``n`` is sample ``n + 1`` here.
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
