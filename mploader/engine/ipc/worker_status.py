"""What a worker shows of itself while it works: one page of shared memory, and room for a text."""

from __future__ import annotations

import mmap

from mploader._util.shared_memory import PAGE

TEXT_BYTES = 64 * 1024
"""The longest text that a worker can report of itself, and that has room beside a batch, in bytes."""
STATUS_BYTES = PAGE + TEXT_BYTES

_NONE = -1
"""In the shared words, which are whole numbers: nothing is in hand."""


class WorkerStatus:
    """The status of one worker; written by that worker alone, read by the supervisor thread.

    Args:
        memory: a mapping of ``STATUS_BYTES`` or more.
        offset: where in the mapping the status begins.
    """

    def __init__(self, memory: mmap.mmap, offset: int = 0) -> None:
        self._words = memoryview(memory)[offset : offset + 64].cast("q")
        self._text = memoryview(memory)[offset + PAGE : offset + STATUS_BYTES]

    @property
    def progress(self) -> int:
        """Grows with every step of the worker. A worker whose progress does not change has stalled."""
        return self._words[0]

    @property
    def offset(self) -> int | None:
        """The sample in hand, by its offset in the batch, or the element in hand, by its number; None outside any."""
        return _read(self._words[1])

    @property
    def sample_index(self) -> int | None:
        """The number of that sample in the source: of the replacement, where a bad sample is being replaced."""
        return _read(self._words[2])

    @property
    def task(self) -> int | None:
        """The task that the worker has begun; None before its first. Its other assignments it has not looked at."""
        return _read(self._words[3])

    @property
    def depends_on_epoch(self) -> bool:
        """Whether the work in hand may go otherwise with the same sample in another epoch."""
        return bool(self._words[4])

    def begin(self, task: int | None) -> None:
        """Notes the task that begins now."""
        self._words[1] = _NONE
        self._words[3] = _NONE if task is None else task
        self._words[0] += 1

    def step(self, offset: int | None = None, sample_index: int | None = None) -> None:
        """Notes the sample or element that is taken in hand now; None: the work is outside any."""
        self._words[4] = 0
        self._words[2] = _NONE if sample_index is None else sample_index
        self._words[1] = _NONE if offset is None else offset
        self._words[0] += 1

    def tick(self) -> None:
        """Shows that a worker which waits is not stuck."""
        self._words[0] += 1

    def enter_epoch(self) -> None:
        """Notes that the work from here may go otherwise in another epoch, as a transform with random numbers does."""
        self._words[4] = 1

    def write_text(self, data: bytes) -> int:
        """Stores at most 64 KiB and returns how many bytes were stored."""
        size = min(len(data), TEXT_BYTES)
        self._text[:size] = data[:size]
        return size

    def read_text(self, size: int) -> bytes:
        """Returns the first ``size`` bytes of the text."""
        return bytes(self._text[: max(0, min(size, TEXT_BYTES))])


def _read(word: int) -> int | None:
    return None if word < 0 else word
