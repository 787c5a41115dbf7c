"""Where a consumer gets its batches: it waits, takes a batch out of the scheduler, and gets arrays for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mploader.engine.ipc.arena import Arena
from mploader.engine.scheduler.scheduler import Scheduler
from mploader.engine.scheduler.states import Taken
from mploader.engine.supervisor.events import slot_counts
from mploader.engine.supervisor.ready_batch import ReadyBatch
from mploader.engine.supervisor.shared_state import PoolState
from mploader.errors import ClosedError, LoaderError, WorkerError
from mploader.monitoring.counters import Counters
from mploader.monitoring.events import BatchDelivered


class HandOver:
    """Gives the batches of one pool to its consumers, on any thread.

    Args:
        state: what is shared with the supervisor thread.
        arena: the shared memory.
        counters: where the time of consumers is counted.
    """

    def __init__(self, state: PoolState, arena: Arena, counters: Counters) -> None:
        self._state = state
        self._arena = arena
        self._counters = counters

    def next(self, heads: Callable[[Scheduler], dict[int, int]], previous_ns: int | None) -> ReadyBatch | None:
        """Waits for a batch and returns it with its arrays; None if nothing is wanted.

        Args:
            heads: as :meth:`PoolState.take` takes it.
            previous_ns: ``got_ns`` of the batch that the consumer has got before; None for its first.

        Raises:
            LoaderError: the batch cannot be made; every later call raises it again.
        """
        state, asked_ns = self._state, time.monotonic_ns()
        wanted: dict[int, int] = {}

        def note(scheduler: Scheduler) -> dict[int, int]:
            nonlocal wanted
            wanted = heads(scheduler)
            return wanted

        try:
            self._counters.asked(asked_ns, previous_ns)
            with state.lock:
                found = state.take(note)
                if found is None:
                    return None
                series, taken = found
                taken_ns = time.monotonic_ns()
                ready: ReadyBatch = taken.result
                if ready.error is not None:
                    state.fail(ready.error)
                    state.check()
                assert state.scheduler is not None
                slots = slot_counts(state.scheduler.slots)
                state.wake_for_work()
            batch = self._arrays(taken, ready)
            got_ns = time.monotonic_ns()
            self._counters.delivered(
                BatchDelivered(
                    series=series, batch_index=wanted[series], samples=ready.samples, size=ready.size,
                    bad=len(ready.reports), copied=taken.copy, previous_ns=previous_ns, asked_ns=asked_ns,
                    taken_ns=taken_ns, got_ns=got_ns, slots=slots,
                )
            )  # fmt: skip
            ready.overflow, ready.batch, ready.got_ns = None, batch, got_ns
            return ready
        except LoaderError:
            raise
        except BaseException as error:
            # Ctrl-C at this moment, say. A batch that is taken cannot be given again, and an epoch with a hole in it
            # must not look like one without.
            with state.lock:
                scheduler = state.scheduler
                if scheduler is not None and any(map(scheduler.is_delivered, wanted, wanted.values())):
                    state.fail(WorkerError(f"a batch was lost on its way to the consumer ({error!r})"))
            raise
        finally:
            self._counters.stop_waiting()

    def once(self, series: int, batch_index: int) -> ReadyBatch:
        """Waits for one batch of a series that is read for it alone; the series is cancelled in any case.

        No consumer is counted as waiting, and a batch that cannot be made does not end the pool.

        Raises:
            LoaderError: the batch cannot be made, or the pool is closed or has failed.
        """
        try:
            with self._state.lock:
                found = self._state.take(lambda _: {series: batch_index})
            assert found is not None, "a series has its batch"
            _, taken = found
            ready: ReadyBatch = taken.result
            if ready.error is not None:
                raise ready.error.again()
            batch = self._arrays(taken, ready)
        finally:
            self._state.cancel_series(series)
        ready.overflow, ready.batch, ready.got_ns = None, batch, time.monotonic_ns()
        return ready

    def end(self, previous_ns: int) -> None:
        """A consumer has asked for more than there is; ``previous_ns`` as in :meth:`next`."""
        self._counters.ended(time.monotonic_ns(), previous_ns)

    def _arrays(self, taken: Taken, ready: ReadyBatch) -> Any:
        """Returns the arrays of a batch, in memory that stays as long as anything refers to them."""
        layout = self._state.layout
        assert layout is not None
        try:
            if taken.slot is None:
                assert ready.overflow is not None, "a batch is in its slot or beside it"
                return layout.read(ready.overflow)
            if ready.overflow is None and not taken.copy:
                return layout.read(self._arena.borrow(taken.slot, taken.generation, ready.size))
            try:
                root = self._arena.copy(taken.slot, ready.size) if ready.overflow is None else ready.overflow
            finally:  # whatever happens, and once: a borrowed slot is released by the finalizer of its array
                self._arena.released.put((taken.slot, taken.generation))
            return layout.read(root)
        except ClosedError:
            with self._state.lock:
                self._state.check()  # the memory went with the supervisor thread, for a reason of its own
            raise
