"""The memory that the trainer and its workers share: one anonymous file that grows by segments.

::

    | status of worker 0 | status of worker 1 | ... | layout | slot 0 | report 0 | slot 1 | report 1 | ... | (more)

Statuses and slots may be added at any time: each addition is a segment behind the last one, with a mapping of its own,
and nothing that was mapped before moves.

A consumer borrows a slot as an array. The slot comes back when nothing refers to the array any more: the finalizer of
the root array puts the slot's number on a queue. It does nothing else, because it runs on any thread, inside any
deallocation.
"""

from __future__ import annotations

import mmap
import os
import weakref
from queue import SimpleQueue

import numpy as np

from mploader._util import resources, shared_memory
from mploader._util.shared_memory import PAGE, Array, align, aligned_empty
from mploader.engine.ipc.slots import Segment, Slots, slot_bytes
from mploader.engine.ipc.worker_status import STATUS_BYTES, WorkerStatus
from mploader.errors import ClosedError, ResourceError


class Arena:
    """The trainer's side of the shared file.

    Args:
        num_workers: for how many workers there is room at first.

    Attributes:
        fd: the file.
        statuses: the status of each worker, by its index.
        layout_range: offset and size of the pickled layout, in bytes.
        released: slots whose last array is gone, as (slot, generation).

    Raises:
        ResourceError: the file or its memory is not granted.
    """

    def __init__(self, num_workers: int) -> None:
        try:
            self.fd = shared_memory.create("mploader")
        except OSError as error:
            raise ResourceError(f"cannot create shared memory (memfd_create: {error.strerror})") from error
        self._bytes = 0
        self._offsets: list[int] = []
        self.statuses: list[WorkerStatus] = []
        try:
            self.add_statuses(num_workers)
        except ResourceError:
            os.close(self.fd)
            raise
        shared_memory.forbid_shrinking(self.fd)
        self.released: SimpleQueue[tuple[int, int]] = SimpleQueue()
        self._borrowed: dict[tuple[int, int], weakref.ref[Array]] = {}
        self.layout_range = (0, 0)
        self._slots: Slots | None = None
        _arenas.add(self)

    def add_statuses(self, count: int) -> None:
        """Makes room for more workers.

        Raises:
            ResourceError: the memory is not granted.
        """
        start, size = self._bytes, count * STATUS_BYTES
        memory = self._grow(size)
        offsets = range(0, size, STATUS_BYTES)
        self._offsets += [start + offset for offset in offsets]
        self.statuses += [WorkerStatus(memory, offset) for offset in offsets]  # last: they are counted

    def status_offset(self, index: int) -> int:
        """Where the status of a worker begins in the file, in bytes, page-aligned."""
        return self._offsets[index]

    def store_layout(self, data: bytes) -> None:
        """Stores the pickled layout of a batch, for all workers.

        Raises:
            ResourceError: the memory is not granted.
        """
        start = self._bytes
        self._grow(align(len(data), PAGE))[: len(data)] = data
        self.layout_range = (start, len(data))

    def add_slots(self, count: int, batch_bytes: int) -> Slots:
        """Makes ``count`` slots for batches of ``batch_bytes`` each, behind those that there are.

        Raises:
            ResourceError: the memory is not granted.
        """
        slots = Slots() if self._slots is None else self._slots
        segment = Segment(len(slots), count, self._bytes, slot_bytes(batch_bytes))
        slots.add(segment, self._grow(segment.size))
        self._slots = slots
        return slots

    @property
    def has_slots(self) -> bool:
        """Whether the slots are made and not closed."""
        return self._slots is not None

    @property
    def slots(self) -> Slots:
        """The slots.

        Raises:
            ClosedError: the loader is closed.
        """
        slots = self._slots  # read once: another thread may close the loader
        if slots is None:
            raise ClosedError("the loader is closed; make a new one to read more")
        return slots

    def borrow(self, slot: int, generation: int, size: int) -> Array:
        """Returns the slot's memory as a root array; when its last view is gone, the slot is put on ``released``."""
        root = self.slots.data(slot, size)
        key = (slot, generation)
        borrowed, released = self._borrowed, self.released

        def release(_: weakref.ref[Array]) -> None:
            released.put(key)  # first: an interrupt in here is swallowed with all that is left to do
            borrowed.pop(key, None)

        borrowed[key] = weakref.ref(root, release)
        return root

    def retire_borrowed(self) -> None:
        """Never uses the slots again that are borrowed now: a fork of this process may go on reading them."""
        self._borrowed.clear()  # a weak reference that is gone calls nothing

    def copy(self, slot: int, size: int) -> Array:
        """Returns the slot's content in memory of its own, aligned so that TensorFlow adopts it."""
        copied = aligned_empty(size)
        np.copyto(copied, self.slots.data(slot, size))
        return copied

    def close(self) -> None:
        """Closes the file; its memory stays as long as arrays refer to it, also if the loader stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._slots = None
        self.statuses.clear()

    def _grow(self, size: int) -> mmap.mmap:
        """Reserves ``size`` bytes behind what there is, and maps them.

        Raises:
            ResourceError: the memory is not granted.
        """
        # Asked before: the kernel would not refuse what it cannot give, but end processes to find it.
        available = resources.available_memory()
        if size > available:
            raise ResourceError(
                f"the loader needs {size / 2**20:,.0f} MiB of shared memory, and the machine (or this control group) "
                f"has {available / 2**20:,.0f} MiB left; lower memory=, batch_size= or num_workers="
            )
        try:
            memory = shared_memory.grow(self.fd, self._bytes, size)
        except OSError as error:
            raise ResourceError(
                f"the machine does not grant {size / 2**20:,.0f} MiB of shared memory ({error.strerror}); "
                "lower memory=, batch_size= or num_workers="
            ) from error
        self._bytes += align(size, PAGE)
        return memory


_arenas: weakref.WeakSet[Arena] = weakref.WeakSet()


def _before_fork() -> None:
    # A fork shares the memory of slots with this process, which cannot know when the fork drops its arrays. Borrowed
    # slots stay borrowed, which costs only room: beyond the low-water mark batches are copied out.
    for arena in list(_arenas):
        arena.retire_borrowed()


os.register_at_fork(before=_before_fork)
