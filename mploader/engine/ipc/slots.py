"""The slots: memory for one batch each, with room for a report beside it. The same in the trainer and in a worker."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np

from mploader._util.shared_memory import PAGE, Array, align
from mploader.engine.ipc.worker_status import TEXT_BYTES


@dataclass(frozen=True)
class Segment:
    """Some slots that were made together.

    Attributes:
        first: number of the first one.
        count: how many.
        offset: where the first one begins in the shared file, in bytes, page-aligned.
        slot_bytes: from one slot to the next, in bytes, a multiple of the page size.
    """

    first: int
    count: int
    offset: int
    slot_bytes: int

    @property
    def size(self) -> int:
        """Bytes of all slots together."""
        return self.count * self.slot_bytes


def slot_bytes(batch_bytes: int) -> int:
    """Bytes of a slot for batches of ``batch_bytes``, with room for a report, rounded up to whole pages."""
    return align(batch_bytes + TEXT_BYTES, PAGE)


class Slots:
    """All slots that one process has mapped, by number. All have one size.

    Attributes:
        segments: how the slots lie in the shared file.
    """

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self._slots: list[memoryview] = []

    def add(self, segment: Segment, memory: mmap.mmap) -> None:
        """Adds the slots of a segment, given a mapping of it. Slots that there are stay where they are."""
        view = memoryview(memory)
        self._slots += [
            view[start : start + segment.slot_bytes] for start in range(0, segment.size, segment.slot_bytes)
        ]
        self.segments.append(segment)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def data_bytes(self) -> int:
        """Bytes that a batch may use of a slot."""
        return self.segments[0].slot_bytes - TEXT_BYTES

    def data(self, slot: int, size: int | None = None) -> Array:
        """A fresh root array over a slot: 1-d uint8, aligned to a page, an exact ``np.ndarray``."""
        return np.frombuffer(self._slots[slot][: self.data_bytes if size is None else size], np.uint8)

    def write_report(self, slot: int, data: bytes) -> int:
        """Stores at most 64 KiB beside a slot and returns how many bytes were stored."""
        size = min(len(data), TEXT_BYTES)
        self._slots[slot][self.data_bytes : self.data_bytes + size] = data[:size]
        return size

    def read_report(self, slot: int, size: int) -> bytes:
        """Returns the report beside a slot."""
        return bytes(self._slots[slot][self.data_bytes : self.data_bytes + max(0, min(size, TEXT_BYTES))])
