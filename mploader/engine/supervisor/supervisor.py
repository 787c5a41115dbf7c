"""The supervising thread: starts the workers, leases work to them, takes in messages and deaths, and ends them.

What a message does is told in ``intake``, what follows from a death or a stall in ``losses``; they share a ``crew``.

One thread waits for everything at once (messages, deaths, what workers print, wishes of consumers) and is the only one
that talks to workers. It lives as long as the pool, because the kernel kills a worker when the *thread* that started it
ends.

A worker may die, hang or send garbage at any moment. Whatever it is, the answer is the same: the worker is
killed; when the kernel says that it is dead, its channel is drained, what it had committed counts, and the rest of its
leases goes to others.
"""

from __future__ import annotations

import dataclasses
import os
import select
import time
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any, ClassVar

from mploader.engine.ipc import messages, sample_report
from mploader.engine.ipc.arena import Arena
from mploader.engine.ipc.sample_report import STALLED
from mploader.engine.scheduler.crash_policy import NO_TASK, CrashPolicy
from mploader.engine.scheduler.states import Lease
from mploader.engine.supervisor import failure_handler
from mploader.engine.supervisor.failure_handler import FailureHandler
from mploader.engine.supervisor.message_handler import MessageHandler, map_file
from mploader.engine.supervisor.shared_state import PoolState
from mploader.engine.supervisor.worker_process import WorkerProcess
from mploader.engine.supervisor.worker_table import WorkerEntry, WorkerTable
from mploader.errors import LoaderError, ResourceError, WorkerError
from mploader.monitoring.statistics import Counters

END_GRACE_S = 0.2
"""How long workers may take to leave by themselves when the pool ends."""
RETRY_START_S = (0.1, 0.5, 2.0, 10.0)
"""When to try again to start a worker that the machine did not grant; the last one over and over."""
TICK_S = 0.25
"""Longest sleep of the thread: deadlines are looked at this often."""
STDERR_READS = 16
"""How often a dead worker's standard error is read: a pipe holds 64 KiB, and a grandchild may write without end."""


class Supervisor:
    """Runs the workers of one pool.

    Args:
        ledger: the state that is shared with consumers.
        arena: the shared memory.
        counters: where work done is counted.
        job_fd: the file with the pickled job; closed at the end.
        num_workers: how many workers to keep alive.
        stall_timeout_s: seconds without progress before a worker is replaced.
        blame: finds out why workers end.
        shards: what the generators are called with, to name them in messages; empty without generators.

    Attributes:
        worker_class: what a worker of supervisors that are made from now on is started as; tests put another one here.

    Raises:
        OSError: no descriptor is left.
    """

    worker_class: ClassVar[type[WorkerProcess]] = WorkerProcess

    def __init__(
        self,
        ledger: PoolState,
        arena: Arena,
        counters: Counters,
        job_fd: int,
        num_workers: int,
        stall_timeout_s: float,
        blame: CrashPolicy,
        shards: Sequence[Any] = (),
    ) -> None:
        self._worker_class = self.worker_class
        self._ledger = ledger
        self._arena = arena
        self._job_fd = job_fd
        self._crew = WorkerTable(ledger, arena, counters, blame, shards)
        self._intake = MessageHandler(self._crew)
        self._losses = FailureHandler(self._crew, stall_timeout_s)
        self._epoll = select.epoll()
        self._epoll.register(ledger.wake_fd, select.EPOLLIN)
        self._starts = [0] * num_workers
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
            self._fail(WorkerError(f"mploader's supervising thread failed; please report this:\n{text}"))
        finally:
            with ExitStack() as last:  # in reverse order, each whatever becomes of the others
                last.callback(self._close_shared)
                last.callback(self._epoll.close)
                self._end_all()
            self._crew.say()

    def _loop(self) -> None:
        seen_s = time.monotonic()
        while not self._ledger.stopping:
            self._start_missing()
            with self._ledger.lock:
                self._ledger.collect()
                self._lease_work()
            events = self._epoll.poll(TICK_S)
            with self._ledger.lock:
                self._handle(events)
            self._crew.say()
            before_s, seen_s = seen_s, time.monotonic()
            self._losses.pass_over(seen_s - before_s - TICK_S)
            self._losses.watch(seen_s)

    def _close_shared(self) -> None:
        with self._ledger.lock:  # nobody may be at work with what is closed here
            try:
                os.close(self._job_fd)
                self._arena.close()
            finally:
                self._ledger.close()

    def _fail(self, error: LoaderError) -> None:
        with self._ledger.lock:
            self._ledger.fail(error)

    # Starting

    def _start_missing(self) -> None:
        """Starts a process for every index that has none.

        Raises:
            ResourceError: the machine does not grant a single one.
        """
        if time.monotonic() < self._start_after_s:
            return
        present = {member.process.index for member in self._crew.members.values() if not member.is_abandoned}
        for index in range(len(self._starts)):
            if index in present or self._ledger.stopping:
                continue
            try:
                self._start(index)
            except ResourceError as error:
                if not present and (not self._crew.ever_ready or self._failed_starts >= len(RETRY_START_S)):
                    raise
                if not self._failed_starts:
                    self._crew.warn(f"{error}. Going on with {len(present)} workers, and trying again")
                pause_s = RETRY_START_S[min(self._failed_starts, len(RETRY_START_S) - 1)]
                self._failed_starts += 1
                self._start_after_s = time.monotonic() + pause_s
                return
            present.add(index)
            self._failed_starts = 0

    def _start(self, index: int) -> None:
        area = self._arena.areas[index]
        area.take_up(NO_TASK)  # what the worker before had in hand is no business of this one
        process = self._worker_class(self._next_number, index, self._starts[index] + 1, self._arena.fd, self._job_fd)
        self._next_number += 1
        self._starts[index] += 1
        if self._starts[index] > 1:
            self._crew.counters.restarted(index)
        self._crew.members[process.number] = WorkerEntry(process, area)
        for fd in (process.channel.fileno(), process.pidfd, process.stderr_fd):
            self._epoll.register(fd, select.EPOLLIN)
        with self._ledger.lock:
            self._ledger.pids[index] = process.pid

    # Giving work

    def _lease_work(self) -> None:
        """Sends every ready worker as much work as it may hold."""
        self._ask_for_description()
        schedule = self._ledger.schedule
        if schedule is None:
            return
        for member in self._crew.members.values():
            if member.is_ready and not member.has_slots:
                self._open_slots(member)
            if member.process.killed_s is not None:
                schedule.worker_dying(member.process.number)
        schedule.is_ahead_held = self._crew.blame.is_trying(schedule.has_task)
        while (lease := schedule.lease()) is not None:
            if lease.spilled >= 0:
                spilled = self._ledger.results[lease.spilled]
                if spilled.overflow is None:  # otherwise the batch was never in the slot
                    moved = self._arena.copy(lease.slot, spilled.size)
                    self._ledger.results[lease.spilled] = dataclasses.replace(spilled, overflow=moved)
            self._renew(self._crew.members[lease.worker], lease.epoch)
            self._crew.members[lease.worker].process.send(_order(lease))
        for number, run in schedule.partings():
            if number in self._crew.members:
                self._crew.members[number].process.send(messages.Forget(run))

    def _renew(self, member: WorkerEntry, epoch: int) -> None:
        """Tells a worker how the source is in an epoch, where that changes."""
        renewal = self._ledger.renewals.get(epoch)
        if renewal is not None and (member.renewal is None or member.renewal() is not renewal):
            member.process.send(messages.Renew(epoch), renewal.fd)
            member.renewal = weakref.ref(renewal)

    def _open_slots(self, member: WorkerEntry) -> None:
        slots, schedule = self._arena.slots, self._ledger.schedule
        assert slots is not None
        assert schedule is not None
        start, size = self._arena.layout_range
        member.process.send(messages.Open(start, size, slots.offset, slots.slot_bytes, slots.count))
        for sentence in self._crew.blame.condemned:
            member.process.send(sentence)
        member.has_slots = True
        schedule.worker_ready(member.process.number)

    def _ask_for_description(self) -> None:
        if self._ledger.to_describe is None:
            return
        members = self._crew.members.values()
        ready = [member for member in members if member.is_ready and member.process.killed_s is None]
        if ready and not any(member.describing for member in members):
            ready[0].describing = True
            ready[0].process.send(messages.Describe(self._ledger.to_describe))

    # Taking in events

    def _handle(self, events: list[tuple[int, int]]) -> None:
        self._ledger.drain_wake()
        fired = {fd for fd, _ in events}
        for member in list(self._crew.members.values()):
            process = member.process
            if process.stderr_fd in fired:
                self._forward_stderr(member)
            if process.channel.fileno() in fired:
                self._receive(member)
            if process.pidfd in fired:
                self._bury(member)

    def _forward_stderr(self, member: WorkerEntry) -> bool:
        """Passes on some of what a worker has printed. Returns whether there may be more."""
        data = member.process.read_stderr()
        if data is None:
            return False
        if not data:
            self._unregister(member.process.stderr_fd)  # the worker has closed it
            return False
        if member.stacks_asked_s is None:
            self._crew.print(data.decode(errors="replace"))
        return True

    def _receive(self, member: WorkerEntry) -> None:
        """Takes in every message that a worker has sent; kills a worker that sends nonsense."""
        try:
            while not member.is_distrusted and (received := member.process.receive()) is not None:
                message, fd = received
                overflow = None if fd is None else map_file(fd)
                if not self._intake.accept(member, message, overflow):
                    raise messages.ProtocolError(f"unexpected {message}")
        except messages.ProtocolError as error:
            self._crew.warn(f"{member.process.name} breaks the protocol ({error}); it is replaced")
            member.is_distrusted = True
            self._unregister(member.process.channel.fileno())
            member.process.kill()
        if member.process.is_closed_by_peer:
            self._unregister(member.process.channel.fileno())  # its pidfd tells the rest, or its deadline
            member.closed_s = member.closed_s or time.monotonic()

    # Deaths

    def _bury(self, member: WorkerEntry) -> None:
        """A worker is dead: its last words are heard, then its work goes to others."""
        process = member.process
        self._receive(member)
        for _ in range(STDERR_READS):
            if not self._forward_stderr(member):
                break
        for fd in (process.channel.fileno(), process.pidfd, process.stderr_fd):
            self._unregister(fd)
        del self._crew.members[process.number]
        at = self._crew.in_hand(member)
        status = process.reap()
        if self._ledger.pids.get(process.index) == process.pid:
            del self._ledger.pids[process.index]
        if not self._ledger.stopping:
            self._losses.worker_ended(member, at, status if member.stacks_asked_s is None else STALLED)

    # Ending

    def _end_all(self) -> None:
        """Ends every worker: first all are asked, then all are killed, then all are collected."""
        processes = [member.process for member in self._crew.members.values()]
        for process in processes:
            process.ask_to_end()
        _wait_for_deaths(processes, END_GRACE_S)
        for process in processes:
            process.kill()
        _wait_for_deaths(processes, failure_handler.UNKILLABLE_S)
        for member in self._crew.members.values():
            with suppress(OSError):
                self._forward_stderr(member)
        for process in processes:
            if process.is_dead:
                process.reap()
            else:
                process.close()
        self._crew.members.clear()
        with self._ledger.lock:
            self._ledger.pids.clear()

    def _unregister(self, fd: int) -> None:
        with suppress(OSError, ValueError):
            self._epoll.unregister(fd)


def _order(lease: Lease) -> messages.Fill | messages.Draw:
    """The message that tells a worker of its lease."""
    if lease.stream >= 0:
        return messages.Draw(lease.task, lease.attempt, lease.slot, lease.generation, lease.run, lease.stream,
                             lease.skip, lease.checksum)  # fmt: skip
    return messages.Fill(lease.task, lease.attempt, lease.slot, lease.generation, lease.epoch, lease.position,
                         lease.first)  # fmt: skip


def _wait_for_deaths(processes: list[WorkerProcess], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    poll = select.poll()
    alive = {process.pidfd for process in processes}
    for fd in alive:
        poll.register(fd, select.POLLIN)
    while alive and (left_s := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(left_s * 1000):
            poll.unregister(fd)
            alive.discard(fd)
