"""Generators in worker processes, as their consumer sees them: the trainer's side of ``from_generator``.

No TensorFlow here: :mod:`mploader.tfdata.generator` turns the blocks into a dataset.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from mploader.batching.spec import map_structure
from mploader.batching.writer import BatchLayout
from mploader.engine.supervisor.pool import Delivery, Pool
from mploader.engine.worker.generators import StreamJob
from mploader.loader import open_pools, sizing
from mploader.monitoring.statistics import Statistics

BLOCKS_AHEAD = 2
"""Blocks that each stream may have ready: one is consumed from while the other is made."""
MIN_BLOCK_BYTES = 2**18
"""Room for a block in a slot, at least."""
AHEAD_BYTES = 2**24
"""What slots take together, at least, so that short streams can be made ahead behind a long one."""


class GeneratorPool:
    """Worker processes that run generators.

    Args:
        job: the generators.
        layout: how a block of elements lies in a slot.
        block_bytes: room for a block, in bytes; a larger one travels outside the slots.
        num_workers: how many processes.
        window: how many streams are opened ahead whose generators have not ended, at least as many as the consumer
            merges. While the consumer waits, streams that keep no worker busy do not count, up to as many as the slots
            hold.
        stall_timeout_s: seconds without progress before a worker is replaced.

    Raises:
        ArgumentError: the generator cannot be sent to a worker.
        ResourceError: the machine does not grant memory, processes or descriptors.
    """

    def __init__(
        self,
        job: StreamJob,
        layout: BatchLayout,
        block_bytes: int,
        num_workers: int,
        window: int,
        stall_timeout_s: float,
    ) -> None:
        self.job = job
        self.layout = layout
        self.window = window
        room = max(block_bytes, MIN_BLOCK_BYTES)
        wanted = max((BLOCKS_AHEAD + 1) * window + 2 * num_workers, AHEAD_BYTES // sizing.slot_bytes(room))
        slots = sizing.slots_for_blocks(room, wanted, window)
        self.most_made = slots.count // BLOCKS_AHEAD  # all their blocks fit
        self._pool = Pool(job, num_workers, stall_timeout_s)
        open_pools.add(self._pool)
        try:
            self._pool.allocate(layout, slots.batch_bytes, slots.count, slots.reserved)
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
        self._owner = pool
        self._processes = processes
        self._number = processes.open_pass(len(pool.job.shards), BLOCKS_AHEAD, pool.window, pool.most_made)
        self._rests: dict[int, Any] = {}
        self._left_ns = 0
        """When the consumer got its last block; streams are read in turn, so it is one consumer."""
        # The finalizer must not refer to the pass, and takes no lock.
        self._finalizer = weakref.finalize(self, processes.give_up_pass, self._number)
        self._finalizer.atexit = False

    def blocks(self, shard: int) -> Iterator[Any]:
        """Yields the blocks of one stream in order; with batches, only whole ones."""
        run = self._processes.run_of(self._number, shard)
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
        while (result := self._processes.next_of_pass(self._number, self._left_ns)) is not None:
            self._left_ns = result.got_ns
            if result.samples and not self._keep(result):
                yield result.batch
            del result
        self._processes.note_end(self._left_ns)

    def rests(self) -> list[Any]:
        """Returns the incomplete batches at the ends of the streams, in the order of the shards."""
        return [self._rests[shard] for shard in sorted(self._rests)]

    def close(self) -> None:
        """Cancels the rest of all streams."""
        self._finalizer()

    def _keep(self, result: Delivery) -> bool:
        if not self._owner.job.is_batched or result.samples == self._owner.layout.capacity:
            return False
        # A copy: a rest may wait long, and a slot must not.
        self._rests[result.stream] = map_structure(np.array, result.batch)
        return True
