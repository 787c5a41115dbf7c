"""A set of worker processes with their slots, as the loader uses it."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mploader._util.platform_check import resource
from mploader.batching.writer import BatchLayout
from mploader.engine.ipc import serialization
from mploader.engine.ipc.arena import Arena
from mploader.engine.ipc.sample_report import SampleReport
from mploader.engine.scheduler.crash_policy import CrashPolicy
from mploader.engine.scheduler.scheduler import Scheduler
from mploader.engine.scheduler.states import SlotState, Taken
from mploader.engine.supervisor.shared_state import PoolState, Result
from mploader.engine.supervisor.supervisor import Supervisor
from mploader.engine.supervisor.worker_process import DESCRIPTORS_PER_WORKER
from mploader.engine.worker.generators import StreamJob
from mploader.engine.worker.loop import Description, Job
from mploader.errors import ArgumentError, ClosedError, LoaderError, ResourceError, WorkerError
from mploader.monitoring.statistics import Counters, Handover, Statistics
from mploader.monitoring.trace import MAX_EVENTS, Trace

SPARE_DESCRIPTORS = 16
"""What must be left of the trainer's descriptors for starting workers, and for the rest of the program."""
POOL_DESCRIPTORS = 6
"""What a pool takes besides its workers: the arena and its mappings, the job, epoll and its wake-up."""

EXIT_S = 3.0
"""How long the end of the program waits for the threads of pools."""

_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


@dataclass(frozen=True)
class Delivery:
    """A batch that a consumer has got.

    Attributes:
        batch: the structure of arrays.
        samples: samples in it.
        reports: the bad samples that were dropped or replaced.
        stream: the generator that it is from; -1 for batches of a plan.
        is_last: it is the last of its stream; always False for batches of a plan.
        got_ns: when it was handed over, on the monotonic clock.
    """

    batch: Any
    samples: int
    reports: list[SampleReport]
    stream: int
    is_last: bool
    got_ns: int


class Pool:
    """The workers of one loader.

    Args:
        job: what the workers do.
        num_workers: how many processes.
        stall_timeout_s: seconds without progress before a worker is replaced.

    Raises:
        ResourceError: the machine does not grant what is needed.
    """

    def __init__(self, job: Job | StreamJob, num_workers: int, stall_timeout_s: float) -> None:
        self._owner_pid = os.getpid()
        _check_descriptors(num_workers)
        with contextlib.ExitStack() as opened:
            self._arena = Arena(num_workers)
            opened.callback(self._arena.close)
            job_fd = serialization.pack(job, arguments=job.arguments())
            opened.callback(os.close, job_fd)
            self._job_fd = job_fd
            self._counters = Counters(num_workers)
            self._num_workers = num_workers
            self._trace: Trace | None = None
            blame = CrashPolicy(
                num_workers,
                per_epoch=isinstance(job, Job) and (job.takes_rng() or job.source_changes()),
                skips=isinstance(job, Job) and not job.on_bad_sample.raises,
            )
            try:
                self._ledger = PoolState(self._arena)
                if isinstance(job, Job):
                    self._ledger.advice = job.on_bad_sample.advice
                opened.callback(self._close_ledger)
                supervisor = Supervisor(
                    self._ledger, self._arena, self._counters, job_fd, num_workers, stall_timeout_s, blame,
                    job.shards if isinstance(job, StreamJob) else (),
                )  # fmt: skip
                # A daemon thread: an interpreter that exits waits for others, and the workers end with the thread.
                self._thread = threading.Thread(target=supervisor.run, name="mploader supervisor", daemon=True)
                # Whatever happens to the pool, its workers end.
                weakref.finalize(self, self._ledger.request_stop).atexit = False
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
                self._ledger.request_stop()
            raise

    def _close_ledger(self) -> None:
        with self._ledger.lock:
            self._ledger.close()

    def probe(self, index: int) -> Description:
        """Lets a worker make the element of one sample and returns its description.

        Raises:
            LoaderError: the sample is bad, or no worker can be kept alive.
        """
        self.check_process()
        ledger = self._ledger
        with ledger.lock:
            ledger.ask_for_description(index)
            while ledger.description is None:
                ledger.check()
                ledger.changed.wait(1.0)
            answer = ledger.description
        if isinstance(answer, LoaderError):
            raise answer
        return answer

    def allocate(
        self, layout: BatchLayout, batch_bytes: int, slots: int, reserved: int, wanted: int | None = None
    ) -> None:
        """Makes the slots; from now on runs can be opened.

        Args:
            layout: how a batch lies in a slot.
            batch_bytes: room for a batch in each slot; a larger batch travels outside the slots.
            slots: how many.
            reserved: how many of them are never lent.
            wanted: how many there would be with memory enough; None: as many.

        Raises:
            ResourceError: the memory is not granted.
            LoaderError: the pool is closed or has failed.
        """
        with self._ledger.lock:
            self._ledger.check()  # an open pool has its memory's file, and keeps it open as long as the lock is held
            memory = self._arena.add_slots(serialization.dumps(layout), slots, batch_bytes)
            self._counters.allocated(slots if wanted is None else wanted, memory.slot_bytes)
            self._ledger.layout = layout
            self._ledger.schedule = Scheduler(slots, reserved)
            self._ledger.wake()

    def open_run(self, epoch: int, length: int, start: int = 0, *, first: int = 0, claimed: bool = True) -> int:
        """Opens a run over the batches of an epoch; see :meth:`Scheduler.open_run`."""
        self.check_process()
        with self._ledger.lock:
            run = self._open_schedule().open_run(epoch, length, start, first=first, claimed=claimed)
            self._ledger.wake()
            return run

    def renew(self, epoch: int, source: Any) -> serialization.SharedFile:
        """Makes ``source`` the source of an epoch, for runs over it that are opened from now on.

        It stays so as long as the caller keeps what is returned. Arrays that are the same as at the start are not sent
        again.

        Raises:
            ResourceError: the memory is not granted.
            LoaderError: the pool is closed or has failed.
        """
        with self._ledger.lock:
            self._open_schedule()  # an open pool has its job's file
            job_fd = os.dup(self._job_fd)
        try:
            renewal = serialization.SharedFile(
                serialization.pack(source, job_fd, arguments={"source": source})
            )
        finally:
            os.close(job_fd)
        with self._ledger.lock:
            self._ledger.renewals[epoch] = renewal
        return renewal

    def claim(self, run: int) -> None:
        """A run that was opened ahead of time is asked for now."""
        self.check_process()
        with self._ledger.lock:
            self._open_schedule().claim(run)
            self._ledger.wake()

    def give_up_run(self, run: int) -> None:
        """Nobody wants the rest of a run. Takes no lock: finalizers call this, on any thread."""
        self._ledger.give_up_run(run)

    def open_pass(self, streams: int, limit: int, window: int, most_made: int) -> int:
        """Opens a pass over the output of generators; see :meth:`Scheduler.open_pass`."""
        self.check_process()
        with self._ledger.lock:
            number = self._open_schedule().open_pass(streams, limit, window, most_made)
            self._ledger.wake()
            return number

    def give_up_pass(self, number: int) -> None:
        """Nobody wants the rest of a pass. Takes no lock: finalizers call this, on any thread."""
        self._ledger.give_up_pass(number)

    def run_of(self, number: int, stream: int) -> int:
        """Returns the run over one stream of a pass; see :meth:`Scheduler.run_of`."""
        self.check_process()
        with self._ledger.lock:
            schedule = self._open_schedule()
            _check_pass(schedule, number)
            run = schedule.run_of(number, stream)
            self._ledger.wake()
            return run

    def next_batch(self, run: int, position: int, left_ns: int = 0) -> Delivery:
        """Waits for a batch and returns it.

        Args:
            run: the run.
            position: the batch's place in the epoch.
            left_ns: ``got_ns`` of the batch that the consumer has got before; 0 for its first.

        The arrays are views of a slot, which is free again when the last of them is gone; or of memory of their
        own, if so many slots are lent that the workers would run out of them.

        Raises:
            ArgumentError: it was given before.
            LoaderError: the batch cannot be made; every later call raises it again.
        """
        delivery = self._next(lambda _: {run: position}, left_ns)
        assert delivery is not None, "a run wants its batch"
        return delivery

    def make_batch(self, epoch: int, position: int, first: int = 0) -> Delivery:
        """Makes one batch outside of any stream, for debugging, and waits for it.

        No consumer is counted as waiting, and a batch that cannot be made does not end the pool.

        Args:
            epoch: the epoch.
            position: the batch's place in the epoch.
            first: see :meth:`Scheduler.open_run`.

        Raises:
            LoaderError: the batch cannot be made, or the pool is closed or has failed.
        """
        ledger, run = self._ledger, self.open_run(epoch, position + 1, position, first=first)
        taken: Taken | None = None
        try:
            with ledger.lock:
                found = ledger.take(lambda _: {run: position})
                assert found is not None, "a run wants its batch"
                _, taken, result = found
                if result.error is not None:
                    raise result.error.again()
            batch, taken = self._hand_over(taken, result), None
        finally:
            self.give_up_run(run)
            if taken is not None and taken.slot >= 0:  # an interrupt came before the batch had an owner
                self._arena.released.put((taken.slot, taken.generation))
        return Delivery(batch, result.samples, result.reports, -1, False, time.monotonic_ns())

    def next_of_pass(self, number: int, left_ns: int = 0) -> Delivery | None:
        """Waits for the first batch of any stream of a pass; as :meth:`next_batch`.

        Of those that are ready, one of the stream that was served least recently comes first. None: all were delivered.
        """

        def heads(schedule: Scheduler) -> dict[int, int]:
            _check_pass(schedule, number)
            return schedule.heads(number)

        return self._next(heads, left_ns)

    def _next(self, heads: Callable[[Scheduler], dict[int, int]], left_ns: int) -> Delivery | None:
        self.check_process()
        ledger, asked_ns = self._ledger, time.monotonic_ns()
        wanted: dict[int, int] = {}

        def note(schedule: Scheduler) -> dict[int, int]:
            nonlocal wanted
            wanted = heads(schedule)
            return wanted

        try:
            self._counters.asked(asked_ns, left_ns)
            with ledger.lock:
                found = ledger.take(note)
                if found is None:
                    return None
                run, taken, result = found
                taken_ns = time.monotonic_ns()
                if result.error is not None:
                    ledger.fail(result.error)
                    ledger.check()
                assert ledger.schedule is not None
                slots = ledger.schedule.counts()
                ledger.wake_for_work()
            try:
                batch = self._hand_over(taken, result)
            except ClosedError:
                with ledger.lock:
                    ledger.check()  # the memory went with the supervising thread, for a reason of its own
                raise
            got_ns = time.monotonic_ns()
            self._counters.delivered(
                Handover(run, wanted[run], result.samples, result.size, len(result.reports), taken.copy, left_ns,
                         asked_ns, taken_ns, got_ns),
                slots,
            )  # fmt: skip
            return Delivery(batch, result.samples, result.reports, taken.stream, result.is_last, got_ns)
        except LoaderError:
            raise
        except BaseException as error:
            # Ctrl-C at this moment, say. A batch that is taken cannot be given again, and an epoch with a hole in it
            # must not look like one without.
            with ledger.lock:
                if ledger.schedule is not None and any(map(ledger.schedule.is_delivered, wanted, wanted.values())):
                    ledger.fail(WorkerError(f"a batch was lost on its way to the consumer ({error!r})"))
            raise
        finally:
            self._counters.stop_waiting()

    def note_end(self, left_ns: int) -> None:
        """A consumer has asked for more than there is; ``left_ns``: see :meth:`next_batch`."""
        if left_ns and os.getpid() == self._owner_pid:
            self._counters.ended(time.monotonic_ns(), left_ns)

    def _hand_over(self, taken: Taken, result: Result) -> Any:
        """Returns the batch in memory that stays as long as somebody refers to it."""
        layout = self._ledger.layout
        assert layout is not None
        if result.overflow is not None:
            root = result.overflow
            if taken.slot >= 0:
                self._arena.released.put((taken.slot, taken.generation))
        elif taken.copy:
            root = self._arena.copy(taken.slot, result.size)
            self._arena.released.put((taken.slot, taken.generation))
        else:
            root = self._arena.lend(taken.slot, taken.generation, result.size)
        return layout.read(root)

    def fail(self, error: LoaderError) -> None:
        """Makes an error the answer to every call from now on, and ends the workers."""
        with self._ledger.lock:
            self._ledger.fail(error)

    def statistics(self) -> Statistics:
        """Returns the totals so far."""
        return self._counters.snapshot(self._slot_counts())

    def recent_statistics(self) -> Statistics:
        """Returns what has happened in about the last minute, without the start of the first run."""
        return self._counters.recent(self._slot_counts())

    def _slot_counts(self) -> dict[SlotState, int]:
        self.check_process()
        with self._ledger.lock:
            self._ledger.collect()
            return {} if self._ledger.schedule is None else self._ledger.schedule.counts()

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
        self._trace = Trace(path, self._num_workers, max_events)
        self._counters.listen(self._trace)
        return self._trace

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the living workers, in the order of their indices."""
        self.check_process()
        with self._ledger.lock:
            return [pid for _, pid in sorted(self._ledger.pids.items())]

    def request_stop(self) -> None:
        """Asks the supervising thread to end the workers. Takes no lock and waits for nothing."""
        self._ledger.request_stop()

    def close(self) -> None:
        """Ends the workers and waits until they are gone. May be called from any thread, any number of times.

        It does not wait where it cannot: in the supervising thread, where the garbage collector may run somebody's
        ``__del__``, and while this thread holds the lock that the supervising thread needs.
        """
        self.request_stop()
        can_wait = self._thread is not threading.current_thread() and not self._ledger.is_held()
        if can_wait and os.getpid() == self._owner_pid:
            self._thread.join()
            if self._trace is not None:
                self._trace.stop()

    def _open_schedule(self) -> Scheduler:
        self._ledger.check()
        assert self._ledger.schedule is not None, "the slots are made before the first run"
        return self._ledger.schedule

    def check_process(self) -> None:
        """Raises ClosedError in a fork of the process that made the pool."""
        if os.getpid() != self._owner_pid:
            raise ClosedError(
                f"this loader belongs to process {self._owner_pid}, and this is its fork {os.getpid()}; "
                "a loader does not survive a fork: make one in this process"
            )


def _check_pass(schedule: Scheduler, number: int) -> None:
    if not schedule.has_pass(number):
        raise ClosedError(f"pass {number} over the generators is closed")


@atexit.register
def _wait_for_threads() -> None:
    """Waits for the threads of pools that were collected just now: one that is cut off while it prints is fatal.

    Exit handlers run in reverse order, so loaders have closed theirs before.
    """
    deadline = time.monotonic() + EXIT_S
    for thread in list(_threads):
        thread.join(max(0.0, deadline - time.monotonic()))


def _check_descriptors(num_workers: int) -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return
    in_use = len(os.listdir("/proc/self/fd"))
    wanted = DESCRIPTORS_PER_WORKER * num_workers + POOL_DESCRIPTORS + SPARE_DESCRIPTORS
    if in_use + wanted > limit:
        raise ResourceError(
            f"a loader with {num_workers} workers wants {wanted} descriptors ({DESCRIPTORS_PER_WORKER} for each "
            f"worker), and of the {limit} that this process may have (ulimit -n) {in_use} are in use. Lower "
            "num_workers=, or raise the limit: resource.setrlimit(resource.RLIMIT_NOFILE, ...)"
        )
