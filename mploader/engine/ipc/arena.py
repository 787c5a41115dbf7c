"""The memory that the trainer and its workers share: one anonymous file, cut into areas and slots.

::

    | area of worker 0 | area of worker 1 | ... | layout | slot 0 | report 0 | slot 1 | report 1 | ...

A worker's area holds its status words and room for one text (what went wrong at its start). The slots are added once
the size of a batch is known. The file is a *memfd*: it has no name, so nothing can leak or collide, it goes when its
last user goes, and it is not limited by the size of ``/dev/shm``. It is reserved when it grows, so that a
machine without enough memory says so in the constructor and never by SIGBUS later.

What is lent of a slot comes back when nothing refers to the arrays any more: the finalizer of the root array puts the
slot's number on a queue. It does nothing else, because it runs on any thread, inside any deallocation.
"""

from __future__ import annotations

import mmap
import os
import weakref
from queue import SimpleQueue
from typing import Any

import numpy as np

from mploader._util import resources
from mploader._util.platform_check import fcntl
from mploader.batching.writer import ALIGNMENT, Array, align
from mploader.errors import ClosedError, ResourceError

PAGE = mmap.PAGESIZE
TEXT_BYTES = 64 * 1024
"""The longest text that a worker can report of itself, and that has room beside a batch."""
AREA_BYTES = PAGE + TEXT_BYTES

NOTHING_IN_HAND = -1


class WorkerArea:
    """One worker's part of the shared memory; written by that worker alone, read by the supervising thread."""

    def __init__(self, memory: mmap.mmap, index: int) -> None:
        start = index * AREA_BYTES
        self._words = memoryview(memory)[start : start + 64].cast("q")
        self._text = memoryview(memory)[start + PAGE : start + AREA_BYTES]

    @property
    def progress(self) -> int:
        """Grows with every step that the worker makes; a worker whose progress stands still has stalled."""
        return self._words[0]

    @property
    def ordinal(self) -> int:
        """The place in the batch of the sample that the worker has in hand, or ``NOTHING_IN_HAND``."""
        return self._words[1]

    @property
    def sample(self) -> int:
        """The number of that sample in the source: of the replacement, where a bad sample is being replaced."""
        return self._words[2]

    @property
    def task(self) -> int:
        """The task that the worker has taken up, or ``NOTHING_IN_HAND``. Its other leases it has not looked at."""
        return self._words[3]

    @property
    def depends_on_epoch(self) -> bool:
        """Whether the worker is at something that may go otherwise with the same sample in another epoch."""
        return bool(self._words[4])

    def take_up(self, task: int) -> None:
        """Says which task the worker begins now."""
        self._words[1] = NOTHING_IN_HAND
        self._words[3] = task
        self._words[0] += 1

    def step(self, ordinal: int, sample: int = NOTHING_IN_HAND) -> None:
        """Says which sample the worker takes in hand now."""
        self._words[4] = 0
        self._words[2] = sample
        self._words[1] = ordinal
        self._words[0] += 1

    def enter_epoch(self) -> None:
        """Says that what comes now may go otherwise in another epoch: a transform that takes random numbers, say."""
        self._words[4] = 1

    def write_text(self, data: bytes) -> int:
        """Stores at most 64 KiB and returns how many bytes were stored."""
        size = min(len(data), TEXT_BYTES)
        self._text[:size] = data[:size]
        return size

    def read_text(self, size: int) -> bytes:
        """Returns the first ``size`` bytes of what was stored."""
        return bytes(self._text[: max(0, min(size, TEXT_BYTES))])


class SlotMemory:
    """The slots inside a mapping of the shared file; the same in the trainer and in a worker."""

    def __init__(self, memory: mmap.mmap, offset: int, slot_bytes: int, count: int) -> None:
        self._memory = memoryview(memory)
        self.offset = offset
        self.slot_bytes = slot_bytes
        self.count = count

    @property
    def data_bytes(self) -> int:
        """What a batch may use of a slot, in bytes."""
        return self.slot_bytes - TEXT_BYTES

    def data(self, slot: int, size: int | None = None) -> Array:
        """A fresh root array over a slot: 1-d uint8, aligned to a page, an exact ``np.ndarray``."""
        start = self.offset + slot * self.slot_bytes
        return np.frombuffer(self._memory[start : start + (self.data_bytes if size is None else size)], np.uint8)

    def write_report(self, slot: int, data: bytes) -> int:
        """Stores at most 64 KiB beside a slot and returns how many bytes were stored."""
        start = self.offset + slot * self.slot_bytes + self.data_bytes
        size = min(len(data), TEXT_BYTES)
        self._memory[start : start + size] = data[:size]
        return size

    def read_report(self, slot: int, size: int) -> bytes:
        """Returns the report beside a slot."""
        start = self.offset + slot * self.slot_bytes + self.data_bytes
        return bytes(self._memory[start : start + max(0, min(size, TEXT_BYTES))])


class Arena:
    """The trainer's side of the shared file.

    Args:
        num_workers: how many worker areas to make.

    Raises:
        ResourceError: the file or its memory is not granted.
    """

    def __init__(self, num_workers: int) -> None:
        try:
            self.fd = os.memfd_create("mploader", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise ResourceError(f"cannot create shared memory (memfd_create: {error.strerror})") from error
        self._bytes = 0
        self.areas: list[WorkerArea] = []
        try:
            memory = self._grow(num_workers * AREA_BYTES)
        except ResourceError:
            os.close(self.fd)
            raise
        self._memory: mmap.mmap | None = memory
        self.areas += [WorkerArea(memory, index) for index in range(num_workers)]
        self.released: SimpleQueue[tuple[int, int]] = SimpleQueue()
        """Slots whose last array is gone, as (slot, generation)."""
        self._loans: dict[tuple[int, int], weakref.ref[Array]] = {}
        self.layout_range = (0, 0)
        self.slots: SlotMemory | None = None
        _arenas.add(self)

    def add_slots(self, layout: bytes, count: int, batch_bytes: int) -> SlotMemory:
        """Makes ``count`` slots for batches of ``batch_bytes`` each and stores the pickled layout beside them.

        Raises:
            ResourceError: the memory is not granted.
        """
        slot_bytes = align(batch_bytes + TEXT_BYTES, PAGE)
        start = self._bytes
        offset = start + align(len(layout), PAGE)
        self._memory = memory = self._grow(offset + count * slot_bytes)
        memory[start : start + len(layout)] = layout
        self.layout_range = (start, len(layout))
        # Nobody may shrink the file under a mapping: that would be a SIGBUS in the trainer.
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self.slots = slots = SlotMemory(memory, offset, slot_bytes, count)
        return slots

    def lend(self, slot: int, generation: int, size: int) -> Array:
        """Returns the slot's memory as a root array; when its last view is gone, the slot is put on ``released``."""
        root = self._open_slots().data(slot, size)
        key = (slot, generation)
        loans, released = self._loans, self.released

        def release(_: weakref.ref[Array]) -> None:
            released.put(key)  # first: an interrupt in here is swallowed with all that is left to do
            loans.pop(key, None)

        loans[key] = weakref.ref(root, release)
        return root

    def retire_loans(self) -> None:
        """Lets no slot that is lent now ever be used again: a fork of this process may go on reading it."""
        self._loans.clear()  # a weak reference that is gone calls nobody

    def copy(self, slot: int, size: int) -> Array:
        """Returns the slot's content in memory of its own, aligned so that TensorFlow adopts it."""
        copied = aligned_empty(size)
        np.copyto(copied, self._open_slots().data(slot, size))
        return copied

    def close(self) -> None:
        """Lets the file go; its memory stays as long as arrays refer to it, also if the loader stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.slots = self._memory = None
        self.areas.clear()

    def _open_slots(self) -> SlotMemory:
        slots = self.slots  # read once: another thread may close the loader
        if slots is None:
            raise ClosedError("the loader is closed; make a new one to read more")
        return slots

    def _grow(self, size: int) -> mmap.mmap:
        """Reserves memory up to ``size`` bytes and maps all of it; earlier mappings stay valid."""
        # Asked before: the kernel would not refuse what it cannot give, but end processes to find it.
        more, available = size - self._bytes, resources.available_memory()
        if more > available:
            raise ResourceError(
                f"{more / 2**20:,.0f} MiB of shared memory are wanted, and the machine (or this control group) has "
                f"{available / 2**20:,.0f} MiB left; lower memory=, batch_size= or num_workers="
            )
        try:
            os.posix_fallocate(self.fd, 0, size)
            memory = mmap.mmap(self.fd, size)
        except OSError as error:
            raise ResourceError(
                f"the machine does not grant {size / 2**20:,.0f} MiB of shared memory ({error.strerror}); "
                "lower memory=, batch_size= or num_workers="
            ) from error
        self._bytes = align(size, PAGE)
        return memory


_arenas: weakref.WeakSet[Arena] = weakref.WeakSet()


def _before_fork() -> None:
    # A fork shares the memory of slots with this process, which cannot know when the fork drops its arrays. Lent slots
    # stay lent, which costs nothing but room: beyond the low-water mark batches are copied out.
    for arena in list(_arenas):
        arena.retire_loans()


os.register_at_fork(before=_before_fork)


def aligned_empty(size: int) -> Array:
    """Returns ``size`` bytes of fresh memory at a multiple of 64, as a 1-d uint8 array."""
    room: np.ndarray[Any, Any] = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size]
