"""Slots: how many, how large, and that they keep to ``memory=``."""

from __future__ import annotations

import pytest

from mploader import Loader, ResourceError
from mploader._util.shared_memory import PAGE
from mploader.engine.ipc.worker_status import TEXT_BYTES
from mploader.loader import sizing


@pytest.mark.parametrize("memory", ["136KiB", "140KiB", "300KiB", "1MiB"])
@pytest.mark.usefixtures("workers_in_threads")
def test_slots_of_tiny_batches_keep_to_the_memory(memory: str) -> None:
    with Loader(range(100), batch_size=2, num_workers=4, memory=memory) as loader:
        (segment,) = loader._core.pool._arena.slots.segments
        assert segment.count * segment.slot_bytes <= int(memory[:-3]) * 2 ** (10 if "K" in memory else 20)
        assert (segment.count, segment.slot_bytes) == (loader._core.slots.count, loader._core.slots.slot_bytes)


def test_whole_pages_count() -> None:
    size = TEXT_BYTES + PAGE
    assert sizing.slot_bytes(1) == sizing.slot_bytes(PAGE) == size
    assert sizing.slots_for_batches(1, 4, 3 * size, "a batch").count == 3
    assert sizing.slots_for_batches(1, 4, 3 * size - 1, "a batch").count == 2
    with pytest.raises(ResourceError, match="a slot holds a batch"):
        sizing.slots_for_batches(1, 4, 2 * size - 1, "a batch")


def test_more_memory_than_is_wanted_is_not_taken() -> None:
    slots = sizing.slots_for_batches(1000, 3, 2**30, "a batch")
    assert slots.count == slots.wanted == 2 * 3 + sizing.SLOTS_IN_HAND
    assert 1 <= slots.reserved < slots.count
    assert sizing.slots_for_blocks(1000, 20, 50).reserved == 1
