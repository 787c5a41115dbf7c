"""The shared memory: areas, slots, and leases that end with the last array."""

from __future__ import annotations

import gc
import mmap
import os
from queue import Empty

import numpy as np
import pytest

from mploader._util.shared_memory import ALIGNMENT
from mploader.engine.ipc.arena import TEXT_BYTES, Arena, SlotMemory, WorkerArea, aligned_empty
from mploader.errors import ResourceError


def test_a_worker_sees_what_the_trainer_sees() -> None:
    arena = Arena(2)
    theirs = WorkerArea(mmap.mmap(arena.fd, 0), 1)
    theirs.step(7)
    assert (arena.areas[1].progress, arena.areas[1].ordinal) == (1, 7)
    assert arena.areas[0].progress == 0
    assert theirs.write_text(b"x" * (TEXT_BYTES + 1)) == TEXT_BYTES, "a text is cut, not written over its neighbour"
    assert arena.areas[1].read_text(10**9) == b"x" * TEXT_BYTES
    assert arena.areas[0].read_text(TEXT_BYTES).strip(b"\0") == b""

    slots = arena.add_slots(b"layout", 3, 5000)
    start, size = arena.layout_range
    memory = mmap.mmap(arena.fd, 0)
    assert memory[start : start + size] == b"layout"
    worker_slots = SlotMemory(memory, slots.offset, slots.slot_bytes, slots.count)
    for slot in range(3):
        worker_slots.data(slot)[:] = slot + 1
        worker_slots.write_report(slot, b"r" * (TEXT_BYTES + 5))
    for slot in range(3):
        assert (slots.data(slot) == slot + 1).all()
        assert slots.read_report(slot, 10**9) == b"r" * TEXT_BYTES
    theirs.step(8)
    assert arena.areas[1].ordinal == 8, "areas keep working when the file has grown"


def test_a_lease_ends_with_the_last_view_and_not_before() -> None:
    arena = Arena(1)
    arena.add_slots(b"", 2, 4096)
    root = arena.lend(1, 5, 4096)
    assert type(root) is np.ndarray
    assert root.ctypes.data % ALIGNMENT == 0
    view = root[64:128].view(np.int32).reshape(4, 4)
    part = view[2:]
    del root, view
    gc.collect()
    with pytest.raises(Empty):
        arena.released.get_nowait()
    del part
    assert arena.released.get_nowait() == (1, 5)


def test_arrays_outlive_the_arena() -> None:
    arena = Arena(1)
    arena.add_slots(b"", 1, 4096)
    array = arena.lend(0, 1, 4096)
    array[:] = 9
    arena.close()
    arena.close()
    del arena
    gc.collect()
    assert (array == 9).all()


def test_a_copy_is_aligned_and_independent() -> None:
    arena = Arena(1)
    slots = arena.add_slots(b"", 1, 4096)
    slots.data(0)[:] = 1
    copies = [arena.copy(0, 1000) for _ in range(8)]
    slots.data(0)[:] = 2
    for copied in copies:
        assert copied.ctypes.data % ALIGNMENT == 0
        assert (copied == 1).all()
    assert all(aligned_empty(size).ctypes.data % ALIGNMENT == 0 for size in range(1, 200))


def test_the_file_has_no_name_and_cannot_shrink() -> None:
    arena = Arena(1)
    arena.add_slots(b"", 1, 4096)
    assert "memfd:mploader (deleted)" in os.readlink(f"/proc/self/fd/{arena.fd}")
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, 0)


def test_memory_that_the_machine_does_not_have_is_an_error_that_says_how_much() -> None:
    arena = Arena(1)
    with pytest.raises(ResourceError, match=r"MiB of shared memory are wanted.*has [\d,]+ MiB left"):
        arena.add_slots(b"", 2, 2**62)
