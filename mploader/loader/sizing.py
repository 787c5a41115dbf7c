"""How many slots a pool gets and how large they are. Pure arithmetic on bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mploader._util import resources
from mploader.engine.ipc.slots import slot_bytes
from mploader.engine.ipc.worker_status import TEXT_BYTES
from mploader.errors import ResourceError

SLOTS_IN_HAND = 6
"""Slots beyond those of the workers: what tf.data holds (prefetch of 2, three in transfer) and one spare."""
MEMORY_SHARE = 0.5
"""The part of the memory still available that slots may take unless the user says otherwise."""
LARGER_BATCHES = 1.5
"""Slots have room for batches whose varying part is this much larger than that of the largest sample probed."""


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The slots of a pool.

    Attributes:
        count: how many.
        batch_bytes: room for a batch in each; a larger batch travels outside the slots.
        wanted: how many there would be with memory enough.
        reserved: how many of them a consumer cannot borrow.
    """

    count: int
    batch_bytes: int
    wanted: int
    reserved: int

    @property
    def slot_bytes(self) -> int:
        """What one slot takes of the memory, in bytes: whole pages, with room for reports beside the batch."""
        return slot_bytes(self.batch_bytes)


def room_for_batch(fixed_bytes: int, varying_bytes: int | None) -> int:
    """Returns the room for a batch, in bytes; ``varying_bytes`` is None where nothing of it varies."""
    return fixed_bytes + (0 if varying_bytes is None else int(LARGER_BATCHES * varying_bytes) + TEXT_BYTES)


def slots_for_batches(batch_bytes: int, num_workers: int, memory_bytes: int | None, contents: str) -> Slots:
    """Chooses the slots of a loader.

    Args:
        batch_bytes: room for a batch.
        num_workers: how many workers fill them.
        memory_bytes: what slots may take together; None: half of the memory that is available.
        contents: what a slot holds, for the message.

    Raises:
        ResourceError: the memory holds fewer than two slots.
    """
    size = slot_bytes(batch_bytes)
    wanted = 2 * num_workers + SLOTS_IN_HAND
    allowed = _available() if memory_bytes is None else memory_bytes
    count = min(wanted, allowed // size)
    if count < 2:
        given = "half of the free memory, " if memory_bytes is None else "memory="
        raise ResourceError(
            f"{given}{allowed / 2**20:.1f} MiB holds {allowed // size} slots of {size / 2**20:.1f} MiB, and a loader "
            f"needs at least 2 (a slot holds {contents}). Pass a smaller batch_size=, or "
            f'memory="{math.ceil(2 * size / 2**20)}MiB" or more'
        )
    reserved = max(1, min(2 * num_workers, count // 2))
    return Slots(count=count, batch_bytes=batch_bytes, wanted=wanted, reserved=reserved)


def slots_for_blocks(block_bytes: int, wanted: int, window: int) -> Slots:
    """Chooses the slots for blocks of generators.

    Args:
        block_bytes: room for a block.
        wanted: how many slots.
        window: how many generators are open at a time; a slot for each may be borrowed.

    Raises:
        ResourceError: half of the memory that is available holds fewer than two slots.
    """
    size, allowed = slot_bytes(block_bytes), _available()
    count = min(wanted, allowed // size)
    if count < 2:
        raise ResourceError(
            f"half of the free memory, {allowed / 2**20:.0f} MiB, holds {count} slots of {size / 2**20:.1f} MiB, and "
            "generators need at least 2; lower batch_size="
        )
    return Slots(count=count, batch_bytes=block_bytes, wanted=count, reserved=max(1, count - window))


def _available() -> int:
    return int(resources.available_memory() * MEMORY_SHARE)
