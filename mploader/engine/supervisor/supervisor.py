"""The supervisor thread: starts the workers, assigns work to them, takes in messages and deaths, and ends them.

What a message does stands in ``message_handler``, what follows from a death or a stall in ``failure_handler``; they
share a ``worker_table``.

One thread waits for everything at once (messages, deaths, what workers print, wishes of consumers) and is the only one
that talks to workers. It lives as long as the pool, because the kernel kills a worker when the *thread* that started it
ends.

A worker may die, hang or send garbage at any moment. Whatever it is, the answer is the same: the worker is
killed; when it is dead for certain, its channel is drained, what it had committed counts, and the rest of its
assignments goes to others.

It is longer than 300 lines: one thread, from its first worker to its last, stands in one place.
"""

from __future__ import annotations

import dataclasses
import os
import select
import time
import weakref
from contextlib import ExitStack, suppress

from mploader.engine.ipc import messages, sample_report
from mploader.engine.ipc.arena import Arena
from mploader.engine.ipc.sample_report import STALLED
from mploader.engine.scheduler.states import Assignment
from mploader.engine.supervisor import failure_handler
from mploader.engine.supervisor.failure_handler import FailureHandler, condemn
from mploader.engine.supervisor.message_handler import MessageHandler
from mploader.engine.supervisor.shared_state import PoolState
from mploader.engine.supervisor.worker_handle import Launcher, WorkerHandle, WorkerStart
from mploader.engine.supervisor.worker_table import WorkerEntry, WorkerTable
from mploader.errors import LoaderError, ResourceError, WorkerError
from mploader.monitoring.events import WorkerRestarted

END_GRACE_S = 0.2
"""How long workers may take to leave by themselves when the pool ends."""
RETRY_START_S = (0.1, 0.5, 2.0, 10.0)
"""When to try again to start a worker that the machine did not grant; the last one over and over."""
TICK_S = 0.25
"""Longest sleep of the thread: deadlines are looked at this often."""
OUTPUT_READS = 16
"""How often a dead worker's standard error is read: a pipe holds 64 KiB, and a grandchild may write without end."""


class Supervisor:
    """Runs the workers of one pool.

    Args:
        table: the workers, none yet, and what they share.
        launcher: starts workers.
        job_fd: the file with the pickled job; closed at the end.
        stall_timeout_s: seconds without progress before a worker is replaced.

    Raises:
        OSError: no descriptor is left.
    """

    def __init__(self, table: WorkerTable, launcher: Launcher, job_fd: int, stall_timeout_s: float) -> None:
        self._table = table
        self._state: PoolState = table.state
        self._arena: Arena = table.arena
        self._launcher = launcher
        self._job_fd = job_fd
        self._messages = MessageHandler(table)
        self._failures = FailureHandler(table, stall_timeout_s)
        self._epoll = select.epoll()
        self._epoll.register(self._state.wake_fd, select.EPOLLIN)
        self._starts: dict[int, int] = {}
        """How often a worker was started, by index."""
        self._next_number = 0
        self._start_after_s = 0.0
        self._failed_starts = 0

    def run(self) -> None:
        """The thread's body: returns when the pool is closed or has failed."""
        try:
            self._loop()
        except LoaderError as error:
            self._fail(error)
        except BaseException as error:  # our own bug: consumers must hear of it, not wait for ever
            text = sample_report.traceback_of(error)
            self._fail(WorkerError(f"mploader's supervisor thread failed; please report this:\n{text}", traceback=text))
        finally:
            with ExitStack() as last:  # in reverse order, each whatever becomes of the others
                last.callback(self._close_shared)
                last.callback(self._epoll.close)
                self._end_all()
            self._table.flush()

    def _loop(self) -> None:
        seen_s, watched_s = time.monotonic(), 0.0
        while not self._state.is_stopping:
            self._start_missing()
            self._assign_work()
            events = self._epoll.poll(TICK_S)
            with self._state.lock:
                self._handle(events)
            self._table.flush()
            before_s, seen_s = seen_s, time.monotonic()
            self._failures.pass_over(seen_s - before_s - TICK_S)
            if seen_s - watched_s > TICK_S / 10:  # not for every batch: its deadlines are as long as a tick or longer
                self._failures.watch(seen_s)
                watched_s = seen_s

    def _close_shared(self) -> None:
        with self._state.lock:  # no consumer may be using what is closed here
            try:
                os.close(self._job_fd)
                self._arena.close()
            finally:
                self._state.close()

    def _fail(self, error: LoaderError) -> None:
        with self._state.lock:
            self._state.fail(error)

    # Starting

    def _start_missing(self) -> None:
        """Starts a worker for every index that has none.

        Raises:
            ResourceError: the machine does not grant a single one.
        """
        if time.monotonic() < self._start_after_s:
            return
        present = {entry.handle.index for entry in self._table.entries.values() if not entry.is_abandoned}
        for index in range(self._state.num_workers):
            if index in present or self._state.is_stopping:
                continue
            try:
                self._start(index)
            except ResourceError as error:
                if not present and (not self._table.was_ready or self._failed_starts >= len(RETRY_START_S)):
                    raise
                if not self._failed_starts:
                    self._table.warn(f"{error}. Going on with {len(present)} workers, and trying again")
                pause_s = RETRY_START_S[min(self._failed_starts, len(RETRY_START_S) - 1)]
                self._failed_starts += 1
                self._start_after_s = time.monotonic() + pause_s
                return
            present.add(index)
            self._failed_starts = 0

    def _start(self, index: int) -> None:
        self._arena.statuses[index].begin(None)  # what the worker before had in hand does not concern this one
        starts = self._starts.get(index, 0) + 1
        handle = self._launcher.launch(
            WorkerStart(number=self._next_number, index=index, start=starts), self._arena, self._job_fd
        )
        self._next_number += 1
        self._starts[index] = starts
        self._table.entries[handle.number] = WorkerEntry(handle)  # first: the end of the pool ends it from now on
        if starts > 1:
            self._table.counters.restarted(WorkerRestarted(worker=index, at_ns=time.monotonic_ns()))
        for fd in (handle.message_fd, handle.exit_fd, handle.output_fd):
            self._epoll.register(fd, select.EPOLLIN)
        with self._state.lock:
            self._state.pids[index] = handle.pid

    # Giving work

    def _assign_work(self) -> None:
        """Sends every ready worker as much work as it may hold.

        What is decided under the lock is carried out without it: consumers do not wait for a copy, or for a message.
        """
        with self._state.lock:
            self._state.collect()
            self._ask_for_probe()
            scheduler = self._state.scheduler
            if scheduler is None:
                return
            self._open_slots()
            for entry in self._table.entries.values():
                if entry.is_killed:
                    scheduler.worker_dying(entry.number)
            scheduler.is_ahead_held = self._table.policy.is_trying(scheduler.has_task)
            assignments = []
            while (assignment := scheduler.assign()) is not None:
                assignments.append(assignment)
            cancelled = scheduler.cancelled()
        for assignment in assignments:
            if assignment.spilled is not None:
                self._move_out(assignment)
            entry = self._table.entries[assignment.worker]
            self._renew(entry, assignment.epoch)
            entry.handle.send(_make(assignment))
        for number, series in cancelled:
            if number in self._table.entries:
                self._table.entries[number].handle.send(messages.Cancel(series=series))

    def _move_out(self, assignment: Assignment) -> None:
        """Copies a batch out of a slot that is assigned to another task."""
        scheduler, task = self._state.scheduler, assignment.spilled
        assert scheduler is not None
        assert task is not None
        with self._state.lock:
            ready = scheduler.result_of(task)
        if ready is None:
            return  # it is not wanted any more
        if ready.overflow is None:  # otherwise the batch was never in the slot
            ready.overflow = self._arena.copy(assignment.slot, ready.size)
        with self._state.lock:
            scheduler.moved_out(task, ready)
            self._state.changed.notify_all()

    def _renew(self, entry: WorkerEntry, epoch: int) -> None:
        """Gives a worker the source as it is in an epoch, where that changes."""
        renewal = self._state.renewals.get(epoch)
        if renewal is not None and (entry.renewal is None or entry.renewal() is not renewal):
            entry.handle.send(messages.Renew(epoch=epoch), renewal.fd)
            entry.renewal = weakref.ref(renewal)

    def _open_slots(self) -> None:
        """Tells every ready worker of the slots that it does not know; it gets work from then on."""
        segments = self._arena.slots.segments
        scheduler = self._state.scheduler
        assert scheduler is not None
        for entry in self._table.entries.values():
            if not entry.is_ready or entry.segments == len(segments):
                continue
            is_new = entry.segments == 0
            if is_new:
                offset, size = self._arena.layout_range
                entry.handle.send(messages.Open(offset=offset, size=size))
            for segment in segments[entry.segments :]:
                entry.handle.send(messages.AddSlots(**dataclasses.asdict(segment)))
            entry.segments = len(segments)
            if is_new:
                for sentence in self._table.policy.condemned:
                    entry.handle.send(condemn(sentence))
                scheduler.worker_ready(entry.number)

    def _ask_for_probe(self) -> None:
        if self._state.to_probe is None:
            return
        entries = self._table.entries.values()
        ready = [entry for entry in entries if entry.is_ready and not entry.is_killed]
        if ready and not any(entry.is_probing for entry in entries):
            ready[0].is_probing = True
            ready[0].handle.send(messages.Probe(sample_index=self._state.to_probe))

    # Taking in events

    def _handle(self, events: list[tuple[int, int]]) -> None:
        self._state.drain_wake()
        fired = {fd for fd, _ in events}
        for entry in list(self._table.entries.values()):
            handle = entry.handle
            if handle.output_fd in fired:
                self._forward_output(entry)
            if handle.message_fd in fired:
                self._receive(entry)
            if handle.exit_fd in fired:
                self._bury(entry)

    def _forward_output(self, entry: WorkerEntry) -> bool:
        """Passes on some of what a worker has printed. Returns whether there may be more."""
        data = entry.handle.read_output()
        if data is None:
            return False
        if not data:
            self._unregister(entry.handle.output_fd)  # the worker has closed it
            return False
        if entry.stacks_asked_s is None:
            self._table.print(data.decode(errors="replace"))
        return True

    def _receive(self, entry: WorkerEntry) -> None:
        """Takes in every message that a worker has sent; kills a worker that sends nonsense."""
        handle = entry.handle
        try:
            while not entry.is_distrusted and (received := handle.receive()) is not None:
                if not self._messages.accept(entry, received):
                    raise messages.ProtocolError(f"unexpected {received.message}")
        except messages.ProtocolError as error:
            self._table.warn(f"{handle.name} breaks the protocol ({error}); it is replaced")
            entry.is_distrusted = True
            self._unregister(handle.message_fd)
            handle.kill()
        if handle.is_closed_by_peer:
            self._unregister(handle.message_fd)  # its end shows the rest, or its deadline
            entry.closed_s = entry.closed_s or time.monotonic()

    # Deaths

    def _bury(self, entry: WorkerEntry) -> None:
        """A worker is dead: its last words are heard, then its work goes to others."""
        handle = entry.handle
        self._receive(entry)
        for _ in range(OUTPUT_READS):
            if not self._forward_output(entry):
                break
        for fd in (handle.message_fd, handle.exit_fd, handle.output_fd):
            self._unregister(fd)
        del self._table.entries[handle.number]
        at = self._table.in_hand(entry)
        status = handle.reap()
        if self._state.pids.get(handle.index) == handle.pid:
            del self._state.pids[handle.index]
        if not self._state.is_stopping:
            self._failures.worker_ended(entry, at, status if entry.stacks_asked_s is None else STALLED)

    # Ending

    def _end_all(self) -> None:
        """Ends every worker: first all are asked, then all are killed, then all are collected."""
        handles = [entry.handle for entry in self._table.entries.values()]
        for handle in handles:
            handle.ask_to_end()
        _wait_for_deaths(handles, END_GRACE_S)
        for handle in handles:
            handle.kill()
        _wait_for_deaths(handles, failure_handler.UNKILLABLE_S)
        for entry in self._table.entries.values():
            with suppress(OSError):
                self._forward_output(entry)
        for handle in handles:
            if handle.is_dead:
                handle.reap()
            else:
                handle.close()
        self._table.entries.clear()
        with self._state.lock:
            self._state.pids.clear()

    def _unregister(self, fd: int) -> None:
        with suppress(OSError, ValueError):
            self._epoll.unregister(fd)


def _make(assignment: Assignment) -> messages.Make:
    """The message that tells a worker of its assignment."""
    replay = assignment.replay
    return messages.Make(
        task=assignment.task, attempt=assignment.attempt, slot=assignment.slot, generation=assignment.generation,
        series=assignment.series, epoch=assignment.epoch, batch_index=assignment.batch_index, first=assignment.first,
        input=assignment.input, skip=None if replay is None else replay.elements,
        checksum=0 if replay is None else replay.checksum,
    )  # fmt: skip


def _wait_for_deaths(handles: list[WorkerHandle], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    poll = select.poll()
    alive = {handle.exit_fd for handle in handles}
    for fd in alive:
        poll.register(fd, select.POLLIN)
    while alive and (left_s := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(left_s * 1000):
            poll.unregister(fd)
            alive.discard(fd)
