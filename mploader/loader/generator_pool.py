"""Generators in worker processes, as their consumer sees them: the trainer's side of ``from_generator``.

No TensorFlow here: :mod:`mploader.tfdata.generator` turns the blocks into a dataset.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from mploader._util import resources
from mploader._util.trees import map_structure
from mploader.batching.layout import BatchLayout
from mploader.engine.ipc import serialization
from mploader.engine.ipc.job import GeneratorJob
from mploader.engine.ipc.worker_status import TEXT_BYTES
from mploader.engine.supervisor.pool import Pool
from mploader.engine.supervisor.ready_batch import ReadyBatch
from mploader.errors import ResourceError
from mploader.monitoring.statistics import Statistics

BLOCKS_AHEAD = 2
"""Blocks that each stream may have ready: one is consumed from while the other is made."""
MIN_SLOT_BYTES = 2**18
AHEAD_BYTES = 2**24
"""Slots are made for so many bytes at least, so that short streams can be made ahead behind a long one."""
MEMORY_SHARE = 0.5


class GeneratorPool:
    """Worker processes that run generators.

    Args:
        job: the generators.
        layout: how a block of elements lies in a slot.
        block_bytes: room for a block, in bytes; a larger one travels outside the slots.
        num_workers: how many processes.
        window: how many streams are opened ahead whose generators have not ended, at least as many as the consumer
            merges. While the consumer waits, streams that keep no worker busy do not count, as many as the slots hold.
        stall_timeout_s: seconds without progress before a worker is replaced.

    Raises:
        ArgumentError: the generator cannot be sent to a worker.
        ResourceError: the machine does not grant memory, processes or descriptors.
    """

    def __init__(
        self,
        job: GeneratorJob,
        layout: BatchLayout,
        block_bytes: int,
        num_workers: int,
        window: int,
        stall_timeout_s: float,
    ) -> None:
        serialization.check_picklable("generator", job.generator)
        serialization.check_picklable("shards", job.inputs)
        serialization.check_picklable("args", job.args)
        self.job = job
        self.layout = layout
        self.window = window
        slot_bytes = max(block_bytes, MIN_SLOT_BYTES) + TEXT_BYTES
        slots = max((BLOCKS_AHEAD + 1) * window + 2 * num_workers, AHEAD_BYTES // slot_bytes)
        allowed = int(resources.available_memory() * MEMORY_SHARE)
        slots = min(slots, allowed // slot_bytes)
        if slots < 2:
            raise ResourceError(
                f"half of the free memory, {allowed / 2**20:.0f} MiB, does not hold two blocks of "
                f"{slot_bytes / 2**20:.1f} MiB; lower batch_size="
            )
        self.max_idle = slots // BLOCKS_AHEAD  # all their blocks fit
        self._pool = Pool(job, num_workers, stall_timeout_s)
        self._finalizer = weakref.finalize(self, self._pool.request_stop)
        self._finalizer.atexit = False
        _open_pools.add(self)
        try:
            self._pool.allocate(layout, slot_bytes - TEXT_BYTES, slots, max(1, slots - window))
        except BaseException:
            self.close()
            raise

    def open_pass(self) -> Pass:
        """Starts one pass over all shards: every generator is called again."""
        return Pass(self, self._pool)

    def statistics(self) -> Statistics:
        """Returns a frozen snapshot of the counters."""
        return self._pool.statistics()

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the living workers."""
        return self._pool.worker_pids

    def close(self) -> None:
        """Ends the workers and waits for them. May be called again, from any thread."""
        self._pool.close()


class Pass:
    """One pass over all shards. Streams are opened in the order of the shards, a window of them ahead.

    The parts of batches that remain at the ends of streams are kept apart and come last, in the order of the shards, so
    that no batch in the middle is short.
    """

    def __init__(self, pool: GeneratorPool, processes: Pool) -> None:
        self._owner = pool  # keeps the workers alive as long as somebody reads
        self._processes = processes
        self._number = processes.open_group(len(pool.job.inputs), BLOCKS_AHEAD, pool.window, pool.max_idle)
        self._rests: dict[int, Any] = {}
        self._left_ns = 0
        """When the consumer has got its last block; streams are read in turn, so it is one consumer."""
        # The finalizer must not refer to the pass, and takes no lock.
        self._finalizer = weakref.finalize(self, processes.cancel_group, self._number)
        self._finalizer.atexit = False

    def blocks(self, shard: int) -> Iterator[Any]:
        """Yields the blocks of one stream in order; with batches, only whole ones."""
        run = self._processes.series_of(self._number, shard)
        position, is_last = 0, False
        while not is_last:
            result = self._processes.next_batch(run, position, self._left_ns)
            self._left_ns = result.got_ns
            position, is_last = position + 1, result.is_last
            if result.samples and not self._keep(result):
                yield result.batch
            del result  # its slot must be free as soon as the consumer has dropped it
        self._processes.note_end(self._left_ns)

    def any_blocks(self) -> Iterator[Any]:
        """Yields blocks of all streams, whichever is ready first, of several in turn; with batches, only whole ones."""
        while (result := self._processes.next_of_group(self._number, self._left_ns)) is not None:
            self._left_ns = result.got_ns
            if result.samples and not self._keep(result):
                yield result.batch
            del result
        self._processes.note_end(self._left_ns)

    def rests(self) -> list[Any]:
        """Returns the incomplete batches at the ends of the streams, in the order of the shards."""
        return [self._rests[shard] for shard in sorted(self._rests)]

    def close(self) -> None:
        """Gives the rest of all streams up."""
        self._finalizer()

    def _keep(self, result: ReadyBatch) -> bool:
        if not self._owner.job.is_batched or result.samples == self._owner.layout.capacity:
            return False
        # A copy: a rest may wait long, and a slot must not.
        self._rests[_input(result)] = map_structure(np.array, result.batch)
        return True


def _input(result: ReadyBatch) -> int:
    assert result.input is not None, "a block is from an input"
    return result.input


_open_pools: weakref.WeakSet[GeneratorPool] = weakref.WeakSet()


def close_all() -> None:
    """Closes every pool that is still open; called when the interpreter exits."""
    for pool in list(_open_pools):
        pool.close()


atexit.register(close_all)
