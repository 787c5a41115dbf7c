"""A set of workers with their slots, as the loader uses it.

It is longer than 300 lines: every consumer's call passes here, and one file shows which of them take the lock.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from typing import Any

from mploader._util.platform_check import resource
from mploader.batching.layout import BatchLayout
from mploader.engine.ipc import serialization
from mploader.engine.ipc.arena import Arena
from mploader.engine.ipc.job import Job, ProbeResult
from mploader.engine.ipc.sample_report import STALLED
from mploader.engine.ipc.slots import slot_bytes
from mploader.engine.scheduler.crash_policy import CrashPolicy
from mploader.engine.scheduler.scheduler import Scheduler
from mploader.engine.supervisor.channel_worker import DESCRIPTORS_PER_WORKER
from mploader.engine.supervisor.events import slot_counts
from mploader.engine.supervisor.hand_over import HandOver
from mploader.engine.supervisor.ready_batch import ReadyBatch
from mploader.engine.supervisor.shared_state import PoolState
from mploader.engine.supervisor.supervisor import Supervisor
from mploader.engine.supervisor.worker_handle import Launcher, chosen_launcher
from mploader.engine.supervisor.worker_process import ProcessLauncher
from mploader.engine.supervisor.worker_table import WorkerTable
from mploader.errors import ArgumentError, ClosedError, LoaderError, ResourceError
from mploader.monitoring.counters import Counters
from mploader.monitoring.events import SlotCounts
from mploader.monitoring.statistics import Statistics
from mploader.monitoring.trace import MAX_EVENTS, Trace

SPARE_DESCRIPTORS = 16
"""How many of the trainer's descriptors must be left for starting workers, and for the rest of the program."""
POOL_DESCRIPTORS = 6
"""How many a pool takes besides its workers: the arena and its mappings, the job, epoll and its wake-up."""

EXIT_S = 3.0
"""How long the end of the program waits for the threads of pools, in seconds."""

_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


class Pool:
    """The workers of one loader.

    Args:
        job: what the workers do.
        num_workers: how many.
        stall_timeout_s: seconds without progress before a worker is replaced.
        launcher: starts them. None: as processes of this machine, or as :func:`use_launcher` says.

    Raises:
        ArgumentError: the job cannot be pickled.
        ResourceError: the machine does not grant what is needed.
    """

    def __init__(self, job: Job, num_workers: int, stall_timeout_s: float, launcher: Launcher | None = None) -> None:
        self._owner_pid = os.getpid()
        launcher = launcher or chosen_launcher() or ProcessLauncher()
        check_descriptors(num_workers)
        with contextlib.ExitStack() as opened:
            self._arena = Arena(num_workers)
            opened.callback(self._arena.close)
            job_fd = serialization.pack(job, arguments=job.arguments)
            opened.callback(os.close, job_fd)
            self._job_fd = job_fd
            self._counters = Counters(num_workers)
            self._trace: Trace | None = None
            self._policy = CrashPolicy(num_workers, job.depends_on_epoch, job.skips_bad, STALLED)
            try:
                self._state = PoolState(self._arena, num_workers)
                opened.callback(self._close_state)
                self._hand_over = HandOver(self._state, self._arena, self._counters)
                table = WorkerTable(self._state, self._arena, self._counters, self._policy, job)
                supervisor = Supervisor(table, launcher, job_fd, stall_timeout_s)
                # A daemon thread: an interpreter that exits waits for others, and the workers end with the thread.
                self._thread = threading.Thread(target=supervisor.run, name="mploader supervisor", daemon=True)
                # Whatever happens to the pool, its workers end.
                weakref.finalize(self, self._state.request_stop).atexit = False
                self._start(opened.pop_all())
            except (OSError, RuntimeError) as error:
                raise ResourceError(
                    f"the machine grants no thread or no descriptor for the loader ({error}); raise the limits "
                    "(ulimit -u, ulimit -n, the container's pids limit)"
                ) from error
        _threads.add(self._thread)

    def _start(self, opened: contextlib.ExitStack) -> None:
        """Starts the thread, to which everything that was opened belongs from then on."""
        try:
            self._thread.start()
        except BaseException:
            if self._thread.ident is None:  # it never ran; an interrupt may also come when it does
                opened.close()
            else:
                self._state.request_stop()
            raise

    def _close_state(self) -> None:
        with self._state.lock:
            self._state.close()

    # Before the first batch

    def probe(self, sample_index: int) -> ProbeResult:
        """Has a worker make the element of one sample and returns its description.

        Raises:
            LoaderError: the sample is bad, or no worker can be kept alive.
        """
        self.check_process()
        state = self._state
        with state.lock:
            state.ask_for_probe(sample_index)
            while state.probed is None:
                state.check()
                state.changed.wait(1.0)
            answer = state.probed
        if isinstance(answer, LoaderError):
            raise answer
        return answer

    def allocate(
        self, layout: BatchLayout, batch_bytes: int, slots: int, reserved: int, wanted: int | None = None
    ) -> None:
        """Makes the slots; from now on series can be opened.

        Args:
            layout: how a batch lies in a slot.
            batch_bytes: room for a batch in each slot; a larger batch travels outside the slots.
            slots: how many.
            reserved: how many of them are never borrowed.
            wanted: how many there would be with memory enough; None: as many.

        Raises:
            ResourceError: the memory is not granted.
            LoaderError: the pool is closed or has failed.
        """
        with self._state.lock:
            self._state.check()  # an open pool has its memory's file, and keeps it open as long as the lock is held
            self._arena.store_layout(serialization.dumps(layout))
            self._arena.add_slots(slots, batch_bytes)
            self._counters.allocated(slots if wanted is None else wanted, slot_bytes(batch_bytes))
            self._state.layout = layout
            self._batch_bytes = batch_bytes
            self._state.scheduler = Scheduler(slots, reserved)
            self._state.wake()

    # While it runs

    def add_slots(self, count: int) -> None:
        """Makes more slots, in a segment of memory of their own; what there is stays where it is.

        Raises:
            ResourceError: the memory is not granted; nothing has changed.
            LoaderError: the pool is closed or has failed.
        """
        self.check_process()
        with self._state.lock:
            scheduler = self._open_scheduler()
            self._arena.add_slots(count, self._batch_bytes)
            scheduler.add_slots(count)
            self._state.wake()

    def add_workers(self, count: int) -> None:
        """Starts more workers beside those that there are.

        Raises:
            ResourceError: the memory or the descriptors are not granted; nothing has changed.
            LoaderError: the pool is closed or has failed.
        """
        self.check_process()
        check_descriptors(count)
        with self._state.lock:
            self._state.check()
            self._arena.add_statuses(count)
            self._counters.add_workers(count)
            self._policy.num_workers += count
            self._state.num_workers += count  # last: from now on the supervisor starts them
            self._state.wake()

    def open_series(self, epoch: int, length: int, start: int = 0, *, first: int = 0, claimed: bool = True) -> int:
        """Opens the batches of an epoch; see :meth:`Scheduler.open_series`."""
        self.check_process()
        with self._state.lock:
            series = self._open_scheduler().open_series(epoch, length, start, first=first, claimed=claimed)
            self._state.wake()
            return series

    def renew(self, epoch: int, source: Any) -> serialization.SharedFile:
        """Makes ``source`` the source of an epoch, for series over it that are opened from now on.

        It stays so as long as the caller keeps the returned file. Arrays that are the same as at the start are not sent
        again.

        Raises:
            ResourceError: the memory is not granted.
            LoaderError: the pool is closed or has failed.
        """
        self.check_process()
        with self._state.lock:
            self._open_scheduler()  # an open pool has its job's file
            job_fd = os.dup(self._job_fd)
        try:
            renewal = serialization.SharedFile(serialization.pack(source, job_fd, arguments={"source": source}))
        finally:
            os.close(job_fd)
        with self._state.lock:
            self._state.renewals[epoch] = renewal
        return renewal

    def claim(self, series: int) -> None:
        """A series that was opened ahead of time is read from now on."""
        self.check_process()
        with self._state.lock:
            self._open_scheduler().claim(series)
            self._state.wake()

    def cancel_series(self, series: int) -> None:
        """The rest of a series is not wanted. Takes no lock: finalizers call this, on any thread."""
        self._state.cancel_series(series)

    def open_group(self, inputs: int, max_ahead: int, window: int, max_idle: int) -> int:
        """Opens a pass over the output of generators; see :meth:`Scheduler.open_group`."""
        self.check_process()
        with self._state.lock:
            group = self._open_scheduler().open_group(inputs, max_ahead, window, max_idle)
            self._state.wake()
            return group

    def cancel_group(self, group: int) -> None:
        """The rest of a group is not wanted. Takes no lock: finalizers call this, on any thread."""
        self._state.cancel_group(group)

    def series_of(self, group: int, number: int) -> int:
        """Returns the series over one input of a group; see :meth:`Scheduler.series_of`."""
        self.check_process()
        with self._state.lock:
            scheduler = self._open_scheduler()
            _check_group(scheduler, group)
            series = scheduler.series_of(group, number)
            self._state.wake()
            return series

    # Batches

    def next_batch(self, series: int, batch_index: int, previous_ns: int | None = None) -> ReadyBatch:
        """Waits for a batch and returns it, with its arrays.

        The arrays are views of a slot, which is free again when the last of them is gone; or of memory of their own, if
        so many slots are borrowed that the workers would run out of them.

        Args:
            series: which series.
            batch_index: the batch's place in it.
            previous_ns: ``got_ns`` of the batch that the consumer has got before; None for its first.

        Raises:
            ArgumentError: it was delivered before.
            LoaderError: the batch cannot be made; every later call raises it again.
        """
        self.check_process()
        ready = self._hand_over.next(lambda _: {series: batch_index}, previous_ns)
        assert ready is not None, "a series has its batch"
        return ready

    def make_batch(self, epoch: int, batch_index: int, first: int = 0) -> ReadyBatch:
        """Makes one batch outside of any stream, for debugging, and waits for it.

        No consumer is counted as waiting, and a batch that cannot be made does not end the pool.

        Args:
            epoch: the epoch.
            batch_index: the batch's place in the epoch.
            first: see :meth:`Scheduler.open_series`.

        Raises:
            LoaderError: the batch cannot be made, or the pool is closed or has failed.
        """
        return self._hand_over.once(self.open_series(epoch, batch_index + 1, batch_index, first=first), batch_index)

    def next_of_group(self, group: int, previous_ns: int | None = None) -> ReadyBatch | None:
        """Waits for the first batch of any generator of a group; as :meth:`next_batch`.

        Of those that are ready, one of the generator that was served least recently comes first. None: all were
        delivered.
        """

        def heads(scheduler: Scheduler) -> dict[int, int]:
            _check_group(scheduler, group)
            return scheduler.heads(group)

        self.check_process()
        return self._hand_over.next(heads, previous_ns)

    def note_end(self, previous_ns: int | None) -> None:
        """A consumer has asked for more than there is; ``previous_ns``: see :meth:`next_batch`."""
        if previous_ns is not None and os.getpid() == self._owner_pid:
            self._hand_over.end(previous_ns)

    def fail(self, error: LoaderError) -> None:
        """Makes an error the answer to every call from now on, and ends the workers."""
        with self._state.lock:
            self._state.fail(error)

    # Watching

    def statistics(self) -> Statistics:
        """Returns the totals so far."""
        return self._counters.snapshot(self._slot_counts())

    def recent_statistics(self) -> Statistics:
        """Returns what has happened in about the last minute, without the start of the first series."""
        return self._counters.recent(self._slot_counts())

    def _slot_counts(self) -> SlotCounts:
        self.check_process()
        with self._state.lock:
            self._state.collect()
            return SlotCounts() if self._state.scheduler is None else slot_counts(self._state.scheduler.slots)

    @property
    def trace(self) -> Trace | None:
        """The timeline that is being written."""
        return None if self._trace is None or self._trace.is_over else self._trace

    def start_trace(self, path: str | os.PathLike[str], max_events: int = MAX_EVENTS) -> Trace:
        """Writes a timeline from now on, until it is stopped or the pool is closed; see :class:`Trace`.

        Raises:
            ArgumentError: the file cannot be written, or a trace is under way.
        """
        if self.trace is not None:
            raise ArgumentError(f"a trace is under way, to {self.trace.path!r}; stop it first")
        self._trace = Trace(path, self._state.num_workers, max_events)
        self._counters.listen(self._trace)
        return self._trace

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the living workers, in the order of their indices."""
        self.check_process()
        with self._state.lock:
            return [pid for _, pid in sorted(self._state.pids.items())]

    # The end

    def request_stop(self) -> None:
        """Asks the supervisor thread to end the workers. Takes no lock and waits for nothing."""
        self._state.request_stop()

    def close(self) -> None:
        """Ends the workers and waits until they are gone. May be called from any thread, any number of times.

        It does not wait where it cannot: in the supervisor thread, where the garbage collector may run a ``__del__`` of
        the user's, and while this thread holds the lock that the supervisor thread needs.
        """
        self.request_stop()
        can_wait = self._thread is not threading.current_thread() and not self._state.is_held()
        if can_wait and os.getpid() == self._owner_pid:
            self._thread.join()
            if self._trace is not None:
                self._trace.stop()

    def _open_scheduler(self) -> Scheduler:
        self._state.check()
        assert self._state.scheduler is not None, "the slots are made before the first series"
        return self._state.scheduler

    def check_process(self) -> None:
        """Raises ClosedError in a fork of the process that made the pool."""
        if os.getpid() != self._owner_pid:
            raise ClosedError(
                f"this loader belongs to process {self._owner_pid}, and this is its fork {os.getpid()}; "
                "a loader does not survive a fork: make one in this process"
            )


def _check_group(scheduler: Scheduler, group: int) -> None:
    if not scheduler.has_group(group):
        raise ClosedError(f"pass {group} over the generators is closed")


@atexit.register
def _wait_for_threads() -> None:
    """Waits for the threads of pools that were collected just now: one that is cut off while it prints is fatal.

    Exit handlers run in reverse order, so loaders have closed theirs before.
    """
    deadline = time.monotonic() + EXIT_S
    for thread in list(_threads):
        thread.join(max(0.0, deadline - time.monotonic()))


def check_descriptors(num_workers: int) -> None:
    """Checks that this process may open the descriptors that some workers need.

    Raises:
        ResourceError: it may not.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return
    in_use = len(os.listdir("/proc/self/fd"))
    needed = DESCRIPTORS_PER_WORKER * num_workers + POOL_DESCRIPTORS + SPARE_DESCRIPTORS
    if in_use + needed > limit:
        raise ResourceError(
            f"a loader with {num_workers} workers needs {needed} descriptors ({DESCRIPTORS_PER_WORKER} for each "
            f"worker), and of the {limit} that this process may have (ulimit -n) {in_use} are in use. Lower "
            "num_workers=, or raise the limit: resource.setrlimit(resource.RLIMIT_NOFILE, ...)"
        )
