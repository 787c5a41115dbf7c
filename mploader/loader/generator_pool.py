"""Generators in worker processes, as their consumer sees them: the trainer's side of ``from_generator``.

No TensorFlow here: :mod:`mploader.tfdata.generator` turns the blocks into a dataset.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from mploader._util.trees import map_structure
from mploader.batching.layout import BatchLayout
from mploader.engine.ipc.job import GeneratorJob
from mploader.engine.ipc.slots import slot_bytes
from mploader.engine.supervisor.pool import Pool
from mploader.engine.supervisor.ready_batch import ReadyBatch
from mploader.loader import open_pools, sizing
from mploader.monitoring.statistics import Statistics

BLOCKS_AHEAD = 2
"""Blocks that each generator may have ready: one is consumed from while the other is made."""
MIN_BLOCK_BYTES = 2**18
"""Room for a block in a slot, at least."""
AHEAD_BYTES = 2**24
"""What slots take together, at least, so that short outputs can be made ahead behind a long one."""


class GeneratorPool:
    """Worker processes that run generators.

    Args:
        job: the generators.
        layout: how a block of elements lies in a slot.
        block_bytes: room for a block, in bytes; a larger one travels outside the slots.
        num_workers: how many processes.
        window: how many generators are opened ahead that have not ended, at least as many as the consumer merges. While
            the consumer waits, those that keep no worker busy do not count, up to as many as the slots hold.
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
        self.job = job
        self.layout = layout
        self.window = window
        room = max(block_bytes, MIN_BLOCK_BYTES)
        wanted = max((BLOCKS_AHEAD + 1) * window + 2 * num_workers, AHEAD_BYTES // slot_bytes(room))
        slots = sizing.slots_for_blocks(room, wanted, window)
        self.max_idle = slots.count // BLOCKS_AHEAD  # all their blocks fit
        self._pool = Pool(job, num_workers, stall_timeout_s)
        open_pools.add(self._pool)
        try:
            self._pool.allocate(layout, slots.batch_bytes, slots.count, slots.reserved)
        except BaseException:
            self.close()
            raise

    def open_pass(self) -> Pass:
        """Starts one pass over all inputs: every generator is called again."""
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
    """One pass over all inputs. Generators are opened in the order of the inputs, a window of them ahead.

    The parts of batches that remain at the ends of generators are kept apart and come last, in the order of the inputs,
    so that no batch in the middle is short.
    """

    def __init__(self, owner: GeneratorPool, pool: Pool) -> None:
        self._owner = owner
        self._pool = pool
        self._group = pool.open_group(len(owner.job.inputs), BLOCKS_AHEAD, owner.window, owner.max_idle)
        self._rests: dict[int, Any] = {}
        self._previous_ns: int | None = None
        """When the consumer got its last block; generators are read in turn, so it is one consumer."""
        # The finalizer must not refer to the pass, and takes no lock.
        self._finalizer = weakref.finalize(self, pool.cancel_group, self._group)
        self._finalizer.atexit = False

    def blocks(self, number: int) -> Iterator[Any]:
        """Yields the blocks of one input's generator in order; with batches, only whole ones."""
        series = self._pool.series_of(self._group, number)
        batch_index, is_last = 0, False
        while not is_last:
            ready = self._pool.next_batch(series, batch_index, self._previous_ns)
            self._previous_ns = ready.got_ns
            batch_index, is_last = batch_index + 1, ready.is_last
            if ready.samples and not self._keep(ready):
                yield ready.batch
            del ready  # its slot must be free as soon as the consumer has dropped it
        self._pool.note_end(self._previous_ns)

    def any_blocks(self) -> Iterator[Any]:
        """Yields blocks of all inputs, whichever is ready first, of several in turn; with batches, only whole ones."""
        while (ready := self._pool.next_of_group(self._group, self._previous_ns)) is not None:
            self._previous_ns = ready.got_ns
            if ready.samples and not self._keep(ready):
                yield ready.batch
            del ready
        self._pool.note_end(self._previous_ns)

    def rests(self) -> list[Any]:
        """Returns the incomplete batches at the ends of the generators, in the order of the inputs."""
        return [self._rests[number] for number in sorted(self._rests)]

    def close(self) -> None:
        """Cancels the rest of all generators."""
        self._finalizer()

    def _keep(self, ready: ReadyBatch) -> bool:
        """Keeps a batch that is not full; returns whether it did."""
        if not self._owner.job.is_batched or ready.samples == self._owner.layout.capacity:
            return False
        assert ready.input is not None, "a block is from an input"
        # A copy: a rest may wait long, and a slot must not.
        self._rests[ready.input] = map_structure(np.array, ready.batch)
        return True
