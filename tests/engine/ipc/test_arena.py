"""The shared memory: statuses, slots, segments, and borrowed slots that come back with their last array."""

from __future__ import annotations

import gc
import os
from queue import Empty

import numpy as np
import pytest

from mploader._util.shared_memory import ALIGNMENT, PAGE, aligned_empty, map_range
from mploader.engine.ipc.arena import Arena
from mploader.engine.ipc.slots import Slots
from mploader.engine.ipc.worker_status import STATUS_BYTES, TEXT_BYTES, WorkerStatus
from mploader.errors import ClosedError, ResourceError


def status_of_worker(arena: Arena, index: int) -> WorkerStatus:
    """A status as its worker maps it."""
    return WorkerStatus(map_range(arena.fd, arena.status_offset(index), STATUS_BYTES))


def slots_of_worker(arena: Arena) -> Slots:
    """The slots as a worker maps them, segment by segment."""
    slots = Slots()
    for segment in arena.slots.segments:
        slots.add(segment, map_range(arena.fd, segment.offset, segment.size))
    return slots


def test_trainer_and_worker_see_the_same_memory() -> None:
    arena = Arena(2)
    theirs = status_of_worker(arena, 1)
    theirs.step(7, 70)
    assert (arena.statuses[1].progress, arena.statuses[1].offset, arena.statuses[1].sample_index) == (1, 7, 70)
    assert arena.statuses[0].progress == 0
    assert theirs.write_text(b"x" * (TEXT_BYTES + 1)) == TEXT_BYTES, "a text is cut, not written over its neighbour"
    assert arena.statuses[1].read_text(10**9) == b"x" * TEXT_BYTES
    assert arena.statuses[0].read_text(TEXT_BYTES).strip(b"\0") == b""

    arena.store_layout(b"layout")
    slots = arena.add_slots(3, 5000)
    start, size = arena.layout_range
    assert map_range(arena.fd, start, size)[:] == b"layout"
    worker_slots = slots_of_worker(arena)
    assert len(worker_slots) == len(slots) == 3
    for slot in range(3):
        worker_slots.data(slot)[:] = slot + 1
        worker_slots.write_report(slot, b"r" * (TEXT_BYTES + 5))
    for slot in range(3):
        assert (slots.data(slot) == slot + 1).all()
        assert slots.read_report(slot, 10**9) == b"r" * TEXT_BYTES
    theirs.step(8)
    assert arena.statuses[1].offset == 8, "a status keeps working when the file has grown"


def test_a_status_has_none_where_nothing_is_in_hand() -> None:
    arena = Arena(1)
    ours, theirs = arena.statuses[0], status_of_worker(arena, 0)
    theirs.begin(12)
    assert (ours.task, ours.offset, ours.progress) == (12, None, 1)
    theirs.step(0, 0)
    theirs.enter_epoch()
    assert (ours.task, ours.offset, ours.sample_index, ours.depends_on_epoch) == (12, 0, 0, True)
    theirs.step()
    assert (ours.task, ours.offset, ours.sample_index, ours.depends_on_epoch) == (12, None, None, False)
    theirs.tick()
    assert ours.progress == 4
    theirs.begin(None)
    assert (ours.task, ours.offset) == (None, None)


def test_segments_of_slots_and_statuses_leave_earlier_mappings_where_they_are() -> None:
    arena = Arena(1)
    ours, theirs = arena.statuses[0], status_of_worker(arena, 0)
    arena.store_layout(b"layout")
    slots = arena.add_slots(2, 5000)
    worker_slots = slots_of_worker(arena)
    held = arena.lend(1, 1, 5000)
    held[:] = 77
    address = held.ctypes.data
    for round_ in range(1, 4):
        assert arena.add_slots(3, 5000) is slots
        arena.add_statuses(2)
        segment = slots.segments[-1]
        assert (segment.first, segment.count, segment.offset % PAGE) == (3 * round_ - 1, 3, 0)
        worker_slots.add(segment, map_range(arena.fd, segment.offset, segment.size))

    assert len(slots) == len(worker_slots) == 11
    for slot in range(11):
        if slot != 1:
            worker_slots.data(slot)[:] = slot
            worker_slots.write_report(slot, bytes([100 + slot]) * TEXT_BYTES)
    assert slots.data_bytes == worker_slots.data_bytes
    for slot in range(11):
        assert (slots.data(slot)[:5000] == (77 if slot == 1 else slot)).all()
        assert slots.data(slot).ctypes.data % PAGE == 0
        assert slot == 1 or slots.read_report(slot, TEXT_BYTES) == bytes([100 + slot]) * TEXT_BYTES
    assert (held == 77).all()
    assert held.ctypes.data == address == arena.slots.data(1).ctypes.data

    assert len(arena.statuses) == 7
    for index, status in enumerate(arena.statuses):
        status_of_worker(arena, index).step(index, 10 * index)
        status_of_worker(arena, index).write_text(bytes([index]) * TEXT_BYTES)
        assert (status.offset, status.sample_index) == (index, 10 * index)
    assert [status.read_text(TEXT_BYTES) for status in arena.statuses] == [bytes([i]) * TEXT_BYTES for i in range(7)]
    theirs.step(5)
    assert arena.statuses[0] is ours
    assert ours.offset == 5
    start, size = arena.layout_range
    assert map_range(arena.fd, start, size)[:] == b"layout", "nothing was written over it"


def test_a_borrowed_slot_comes_back_with_the_last_view_and_not_before() -> None:
    arena = Arena(1)
    arena.add_slots(2, 4096)
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


def test_a_slot_that_is_borrowed_during_a_fork_does_not_come_back() -> None:
    arena = Arena(1)
    arena.add_slots(2, 4096)
    before = arena.lend(0, 1, 4096)
    arena.retire_borrowed()
    after = arena.lend(1, 1, 4096)
    del before, after
    gc.collect()
    assert arena.released.get_nowait() == (1, 1)
    with pytest.raises(Empty):
        arena.released.get_nowait()


def test_arrays_outlive_the_arena() -> None:
    arena = Arena(1)
    arena.add_slots(1, 4096)
    array = arena.lend(0, 1, 4096)
    array[:] = 9
    arena.close()
    arena.close()
    assert not arena.has_slots
    with pytest.raises(ClosedError):
        arena.slots  # noqa: B018
    del arena
    gc.collect()
    assert (array == 9).all()


def test_a_copy_is_aligned_and_independent() -> None:
    arena = Arena(1)
    slots = arena.add_slots(1, 4096)
    slots.data(0)[:] = 1
    copies = [arena.copy(0, 1000) for _ in range(8)]
    slots.data(0)[:] = 2
    for copied in copies:
        assert copied.ctypes.data % ALIGNMENT == 0
        assert (copied == 1).all()
    assert all(aligned_empty(size).ctypes.data % ALIGNMENT == 0 for size in range(1, 200))


def test_the_file_has_no_name_and_cannot_shrink() -> None:
    arena = Arena(1)
    arena.add_slots(1, 4096)
    assert "memfd:mploader (deleted)" in os.readlink(f"/proc/self/fd/{arena.fd}")
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, 0)
    arena.add_slots(1, 4096)
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, os.fstat(arena.fd).st_size - 1)


def test_memory_that_the_machine_does_not_have_is_an_error_that_says_how_much() -> None:
    arena = Arena(1)
    with pytest.raises(ResourceError, match=r"needs [\d,]+ MiB of shared memory.*has [\d,]+ MiB left"):
        arena.add_slots(2, 2**62)
    assert not arena.has_slots


def test_memory_that_is_not_granted_later_changes_nothing() -> None:
    arena = Arena(1)
    slots = arena.add_slots(2, 4096)
    size = os.fstat(arena.fd).st_size
    with pytest.raises(ResourceError, match=r"has [\d,]+ MiB left"):
        arena.add_slots(2**50, 4096)
    with pytest.raises(ResourceError, match=r"has [\d,]+ MiB left"):
        arena.add_statuses(2**50)
    assert (len(slots), len(slots.segments), len(arena.statuses)) == (2, 1, 1)
    assert os.fstat(arena.fd).st_size == size
    arena.add_slots(1, 4096)
    assert len(slots) == 3
