"""The supervising thread: starts the workers, leases work to them, takes in results, deaths and stalls.

One thread waits for everything at once (messages, deaths, what workers print, wishes of consumers) and is the only one
that talks to workers. It lives as long as the pool, because the kernel kills a worker when the *thread* that started it
ends.

A worker may die, hang or send garbage at any moment. Whatever it is, the answer is the same: the worker is
killed; when the kernel says that it is dead, its channel is drained, what it had committed counts, and the rest of its
leases goes to others.
"""

from __future__ import annotations

import dataclasses
import logging
import mmap
import os
import pickle
import select
import sys
import time
import weakref
from collections.abc import Iterable
from contextlib import ExitStack, suppress

import numpy as np

from mploader import messages, reports
from mploader.arena import TEXT_BYTES, Arena, SlotMemory, WorkerArea
from mploader.batch import Array
from mploader.blame import DESCRIPTION, NO_TASK, Blame, InHand
from mploader.errors import LoaderError, ResourceError, StallError, WorkerError
from mploader.ledger import Ledger, Result
from mploader.payload import SharedFile
from mploader.process import WorkerProcess
from mploader.reports import STALLED, SampleReport, describe_condemned, describe_ending
from mploader.schedule import MAX_ATTEMPTS
from mploader.states import Lease, Lost, SlotState
from mploader.statistics import Counters
from mploader.worker import Description

log = logging.getLogger("mploader")

END_GRACE_S = 0.2
"""How long workers may take to leave by themselves when the pool ends."""
UNKILLABLE_S = 5.0
"""A worker that is not dead so long after SIGKILL hangs in the kernel: its slots are given up."""
START_TIMEOUT_S = 60.0
"""A worker may take at least so long to import what it needs, however soon a sample counts as stalled."""
CLOSED_S = 1.0
"""How long a worker may live on that has closed its channel: one that ends is dead by then."""
STACKS_S = 0.5
"""How long a stalled worker may take to print its stacks."""
RETRY_START_S = (0.1, 0.5, 2.0, 10.0)
"""When to try again to start a worker that the machine did not grant; the last one over and over."""
TICK_S = 0.25
"""Longest sleep of the thread: deadlines are looked at this often."""
STDERR_READS = 16
"""How often a dead worker's standard error is read: a pipe holds 64 KiB, and a grandchild may write without end."""


class _Worker:
    """What the supervisor remembers of one incarnation of a worker."""

    def __init__(self, process: WorkerProcess, area: WorkerArea) -> None:
        self.process = process
        self.area = area
        self.is_ready = False
        self.has_slots = False
        self.renewal: weakref.ref[SharedFile] | None = None
        self.describing = False
        self.broken: str | None = None
        self.is_distrusted = False
        """It has sent nonsense; nothing that it says counts any more."""
        self.progress = -1
        self.progress_s = time.monotonic()
        self.stacks_asked_s: float | None = None
        self.closed_s: float | None = None
        """When it was seen to have closed its channel."""
        self.is_abandoned = False


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

    Raises:
        OSError: no descriptor is left.
    """

    def __init__(
        self,
        ledger: Ledger,
        arena: Arena,
        counters: Counters,
        job_fd: int,
        num_workers: int,
        stall_timeout_s: float,
        blame: Blame,
    ) -> None:
        self._ledger = ledger
        self._arena = arena
        self._counters = counters
        self._job_fd = job_fd
        self._stall_timeout_s = stall_timeout_s
        self._start_timeout_s = max(stall_timeout_s, START_TIMEOUT_S)
        self._starts = [0] * num_workers
        self._workers: dict[int, _Worker] = {}
        self._epoll = select.epoll()
        self._epoll.register(ledger.wake_fd, select.EPOLLIN)
        self._next_number = 0
        self._start_after_s = 0.0
        self._failed_starts = 0
        self._ever_ready = False
        self._blame = blame
        self._last_words: dict[int, str] = {}
        """What the last worker printed that a condemned sample has killed, by sample."""
        self._stacks: dict[int, str] = {}
        """What the workers printed that have hung since a batch was made, by index."""
        self._starved_s: float | None = None
        """Since when no slot is left to work with."""
        self._to_print: list[str] = []
        self._to_log: list[str] = []

    def run(self) -> None:
        """The thread's body: returns when the pool is closed or has failed."""
        try:
            self._loop()
        except LoaderError as error:
            self._fail(error)
        except BaseException as error:  # our own bug: consumers must hear of it, not wait for ever
            text = reports.traceback_of(error)
            self._fail(WorkerError(f"mploader's supervising thread failed; please report this:\n{text}"))
        finally:
            with ExitStack() as last:  # in reverse order, each whatever becomes of the others
                last.callback(self._close_ledger)
                last.callback(self._arena.close)
                last.callback(os.close, self._job_fd)
                last.callback(self._epoll.close)
                self._end_all()
            self._say()

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
            self._say()
            before_s, seen_s = seen_s, time.monotonic()
            self._pass_over(seen_s - before_s - TICK_S)
            self._watch_progress(seen_s)

    def _close_ledger(self) -> None:
        with self._ledger.lock:
            self._ledger.close()

    def _say(self) -> None:
        """Prints and logs what has come up. Without the lock: handlers of the user may call the loader, or wait."""
        prints, self._to_print = self._to_print, []
        logs, self._to_log = self._to_log, []
        with suppress(Exception):  # of a stream or a handler that belongs to the user
            if prints and sys.stderr is not None:
                sys.stderr.write("".join(prints))
                sys.stderr.flush()
        with suppress(Exception):
            for text in logs:
                log.warning("%s", text)

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
        present = {worker.process.index for worker in self._workers.values() if not worker.is_abandoned}
        for index in range(len(self._starts)):
            if index in present or self._ledger.stopping:
                continue
            try:
                self._start(index)
            except ResourceError as error:
                if not present and (not self._ever_ready or self._failed_starts >= len(RETRY_START_S)):
                    raise
                if not self._failed_starts:
                    self._to_log.append(f"{error}. Going on with {len(present)} workers, and trying again")
                pause_s = RETRY_START_S[min(self._failed_starts, len(RETRY_START_S) - 1)]
                self._failed_starts += 1
                self._start_after_s = time.monotonic() + pause_s
                return
            present.add(index)
            self._failed_starts = 0

    def _start(self, index: int) -> None:
        area = self._arena.areas[index]
        area.take_up(NO_TASK)  # what the worker before had in hand is no business of this one
        process = WorkerProcess(self._next_number, index, self._starts[index] + 1, self._arena.fd, self._job_fd)
        self._next_number += 1
        self._starts[index] += 1
        if self._starts[index] > 1:
            self._counters.restarted(index)
        self._workers[process.number] = _Worker(process, area)
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
        for worker in self._workers.values():
            if worker.is_ready and not worker.has_slots:
                self._open_slots(worker)
            if worker.process.killed_s is not None:
                schedule.worker_dying(worker.process.number)
        schedule.is_ahead_held = self._blame.is_trying(schedule.has_task)
        while (lease := schedule.lease()) is not None:
            if lease.spilled >= 0:
                spilled = self._ledger.results[lease.spilled]
                if spilled.overflow is None:  # otherwise the batch was never in the slot
                    moved = self._arena.copy(lease.slot, spilled.size)
                    self._ledger.results[lease.spilled] = dataclasses.replace(spilled, overflow=moved)
            self._renew(self._workers[lease.worker], lease.epoch)
            self._workers[lease.worker].process.send(_order(lease))
        for number, run in schedule.partings():
            if number in self._workers:
                self._workers[number].process.send(messages.Forget(run))

    def _renew(self, worker: _Worker, epoch: int) -> None:
        """Tells a worker how the source is in an epoch, where that changes."""
        renewal = self._ledger.renewals.get(epoch)
        if renewal is not None and (worker.renewal is None or worker.renewal() is not renewal):
            worker.process.send(messages.Renew(epoch), renewal.fd)
            worker.renewal = weakref.ref(renewal)

    def _open_slots(self, worker: _Worker) -> None:
        slots, schedule = self._arena.slots, self._ledger.schedule
        assert slots is not None
        assert schedule is not None
        start, size = self._arena.layout_range
        worker.process.send(messages.Open(start, size, slots.offset, slots.slot_bytes, slots.count))
        for sentence in self._blame.condemned:
            worker.process.send(sentence)
        worker.has_slots = True
        schedule.worker_ready(worker.process.number)

    def _ask_for_description(self) -> None:
        if self._ledger.to_describe is None:
            return
        ready = [worker for worker in self._workers.values() if worker.is_ready and worker.process.killed_s is None]
        if ready and not any(worker.describing for worker in self._workers.values()):
            ready[0].describing = True
            ready[0].process.send(messages.Describe(self._ledger.to_describe))

    # Taking in events

    def _handle(self, events: list[tuple[int, int]]) -> None:
        self._ledger.drain_wake()
        fired = {fd for fd, _ in events}
        for worker in list(self._workers.values()):
            process = worker.process
            if process.stderr_fd in fired:
                self._forward_stderr(worker)
            if process.channel.fileno() in fired:
                self._receive(worker)
            if process.pidfd in fired:
                self._bury(worker)

    def _forward_stderr(self, worker: _Worker) -> bool:
        """Passes on some of what a worker has printed. Returns whether there may be more."""
        data = worker.process.read_stderr()
        if data is None:
            return False
        if not data:
            self._unregister(worker.process.stderr_fd)  # the worker has closed it
            return False
        if worker.stacks_asked_s is None:
            self._to_print.append(data.decode(errors="replace"))
        return True

    def _receive(self, worker: _Worker) -> None:
        """Takes in every message that a worker has sent; kills a worker that sends nonsense."""
        try:
            while not worker.is_distrusted and (received := worker.process.receive()) is not None:
                message, fd = received
                overflow = None if fd is None else _map(fd)
                if not self._accept(worker, message, overflow):
                    raise messages.ProtocolError(f"unexpected {message}")
        except messages.ProtocolError as error:
            self._to_log.append(f"{worker.process.name} breaks the protocol ({error}); it is replaced")
            worker.is_distrusted = True
            self._unregister(worker.process.channel.fileno())
            worker.process.kill()
        if worker.process.is_closed_by_peer:
            self._unregister(worker.process.channel.fileno())  # its pidfd tells the rest, or its deadline
            worker.closed_s = worker.closed_s or time.monotonic()

    def _accept(self, worker: _Worker, message: messages.Message, overflow: Array | None) -> bool:
        """Carries out one message. False: it makes no sense now."""
        if isinstance(message, messages.Hello):
            if worker.is_ready or message.protocol != messages.PROTOCOL:
                return False
            worker.is_ready = self._ever_ready = True
            return True
        if isinstance(message, messages.Broken):
            worker.broken = worker.area.read_text(message.text_bytes).decode(errors="replace")
            return True
        if isinstance(message, messages.Described):
            return self._accept_description(worker, message)
        if isinstance(message, (messages.Filled, messages.Drawn, messages.Failed)):
            return self._accept_result(worker, message, overflow)
        return False

    def _accept_description(self, worker: _Worker, message: messages.Described) -> bool:
        if not worker.describing or message.index != self._ledger.to_describe:
            return False
        data = worker.area.read_text(message.payload_bytes)
        name = worker.process.name
        self._answer_description(
            worker, _read_description(data) if message.ok else _read_reports(data)[0].to_error(name)
        )
        return True

    def _answer_description(self, worker: _Worker, answer: Description | LoaderError) -> None:
        worker.describing = False
        self._made(DESCRIPTION)
        self._ledger.to_describe, self._ledger.description = None, answer
        self._ledger.changed.notify_all()

    def _accept_result(
        self, worker: _Worker, message: messages.Filled | messages.Drawn | messages.Failed, overflow: Array | None
    ) -> bool:
        schedule, slots = self._ledger.schedule, self._arena.slots
        if schedule is None or slots is None:
            return False
        lease = schedule.current(
            worker.process.number, message.task, message.attempt, message.slot, message.generation
        )
        if lease is None:
            return worker.process.killed_s is not None  # too late, and so it counts for nothing; otherwise nonsense
        # What the slot says is read before the schedule may give the slot to somebody else.
        found: list[SampleReport] = []
        if message.report_bytes or isinstance(message, messages.Failed):
            found = self._with_last_words(_read_reports(_report(message, slots, overflow)))
        if isinstance(message, messages.Failed):
            schedule.failed(lease)
            result = Result(error=found[0].to_error(worker.process.name))
        else:
            if message.batch_bytes <= slots.data_bytes:
                overflow = None  # it holds the reports alone
            room = slots.data_bytes if overflow is None else overflow.nbytes
            if not 0 < message.batch_bytes <= room or message.samples < 0:
                return False
            is_last = isinstance(message, messages.Drawn) and bool(message.is_last)
            if isinstance(message, messages.Drawn):
                schedule.drawn(lease, elements=message.samples, is_last=is_last, checksum=message.checksum)
            else:
                schedule.filled(lease)
            result = Result(message.samples, message.batch_bytes, found, overflow, is_last)
            self._counters.filled(worker.process.index, message, time.monotonic_ns(), schedule.counts())
        self._made(message.task)
        if schedule.has_task(message.task):
            self._ledger.results[message.task] = result
            # Behind a stream that has ended another may be open, which a consumer that takes any does not know of.
            if result.is_last or schedule.is_waited_for(message.task):
                self._ledger.changed.notify_all()
        return True

    def _made(self, task: int) -> None:
        """A batch was made, or a sample described: whatever has hung or ended before, workers work."""
        self._blame.made(task)
        self._stacks.clear()

    def _with_last_words(self, found: list[SampleReport]) -> list[SampleReport]:
        """Adds to the reports on samples that have killed workers what the last of these printed."""
        return [
            dataclasses.replace(report, traceback=self._last_words.get(report.index, ""))
            if report.group in ("crash", "stall") else report
            for report in found
        ]  # fmt: skip

    # Deaths

    def _bury(self, worker: _Worker) -> None:
        """A worker is dead: its last words are heard, then its work goes to others."""
        process = worker.process
        self._receive(worker)
        for _ in range(STDERR_READS):
            if not self._forward_stderr(worker):
                break
        for fd in (process.channel.fileno(), process.pidfd, process.stderr_fd):
            self._unregister(fd)
        del self._workers[process.number]
        at = self._in_hand(worker)
        status = process.reap()
        if worker.stacks_asked_s is not None:
            status = STALLED
        if self._ledger.pids.get(process.index) == process.pid:
            del self._ledger.pids[process.index]
        if self._ledger.stopping:
            return
        if worker.stacks_asked_s is None and worker.broken is None:
            self._to_log.append(f"{process.name} (pid {process.pid}) {describe_ending(status)}; it is replaced and "
                                "nothing is lost")  # fmt: skip
        if worker.stacks_asked_s is not None and process.killed_s is None:
            self._count_stalls([worker])  # the request for its stacks has ended it, as a signal does without a handler
        if self._ledger.schedule is not None:
            # A worker that had not taken its first lease up says nothing about it by its end.
            lost = self._ledger.schedule.worker_lost(process.number, None if at.task == NO_TASK else at.ordinal)
            self._fail_hopeless(lost, worker, status)
        if not worker.is_abandoned:  # otherwise that was done when it was given up
            self._blame_for(worker, at, status)
        worker.describing = False

    def _in_hand(self, worker: _Worker) -> InHand:
        """What a worker was at."""
        area = worker.area
        if worker.describing:
            return InHand(DESCRIPTION, 0, area.ordinal, area.sample, depends_on_epoch=area.depends_on_epoch)
        schedule = self._ledger.schedule
        leases = () if schedule is None else schedule.leases(worker.process.number)
        if not leases or leases[0].task != area.task:
            return InHand()
        lease, place = leases[0], -1
        if lease.stream < 0 and area.ordinal >= 0:
            assert self._ledger.layout is not None
            place = lease.first + lease.position * self._ledger.layout.capacity + area.ordinal
        return InHand(area.task, lease.epoch, area.ordinal, area.sample, place, area.depends_on_epoch)

    def _blame_for(self, worker: _Worker, at: InHand, status: int) -> None:
        """Draws the conclusion from the end of a worker.

        Raises:
            WorkerError: workers end over and over.
            StallError: they hang over and over.
        """
        process = worker.process
        if worker.broken is not None and not self._ever_ready:
            raise WorkerError(f"{process.name} cannot start: the source or the transform cannot be loaded there.\n\n"
                              f"{worker.broken}")  # fmt: skip
        if at.ordinal < 0:
            if status == STALLED:
                return
            text = self._blame.ended_early(
                status, process.killed_s is not None, time.monotonic(), was_ready=self._ever_ready
            )
            if text is not None:
                raise WorkerError(f"{text} ({process.name}, pid {process.pid}).{_printed(process)}\n"
                                  f"{worker.broken or ''}".rstrip())  # fmt: skip
            return
        sentence = self._blame.crashed(at, status)
        if sentence is None:
            return
        self._last_words[at.sample] = process.printed
        if status == STALLED and self._blame.too_many_hang(at):
            raise self._general_stall("samples that stand side by side have each hung all their workers, so it is "
                                      "hardly the samples")  # fmt: skip
        if self._blame.too_many_condemned():
            raise WorkerError(
                f"many samples have each killed {MAX_ATTEMPTS} workers, so it is hardly the samples; the last worker, "
                f"{process.name}, {describe_ending(status)} on sample {at.sample}.{_printed(process)}"
            )
        for other in self._workers.values():
            if other.is_ready:
                other.process.send(sentence)
        if worker.describing:
            group = "stall" if status == STALLED else "crash"
            report = SampleReport(at.sample, "", "WorkerError", describe_condemned(status), process.printed, group)
            self._answer_description(worker, report.to_error(process.name))

    def _fail_hopeless(self, lost: Iterable[Lost], worker: _Worker, status: int) -> None:
        """Makes errors of the tasks that have lost their last attempt."""
        for item in lost:
            if item.failed:
                lease, kind = item.lease, StallError if status == STALLED else WorkerError
                what = f"has killed {MAX_ATTEMPTS} workers"
                if lease.stream >= 0:
                    what = f"the generator of shard {lease.stream} {what} at element {worker.area.ordinal}"
                else:
                    what = f"batch {lease.position} of epoch {lease.epoch} {what} outside any sample"
                last = f"the last, {worker.process.name}, {describe_ending(status)}.{_printed(worker.process)}"
                self._ledger.results[lease.task] = Result(error=kind(f"{what}; {last}"))
                self._ledger.changed.notify_all()

    # Stalls

    def _watch_progress(self, now: float) -> None:
        """Replaces workers that have work and make no progress.

        Raises:
            StallError: none does.
        """
        late = []
        for worker in list(self._workers.values()):
            if worker.process.killed_s is not None:
                self._watch_killed(worker, now)
            elif worker.closed_s is not None and now - worker.closed_s > CLOSED_S:
                self._to_log.append(f"{worker.process.name} (pid {worker.process.pid}, {worker.process.state}) has "
                                    "closed its channel and lives on; it is replaced")  # fmt: skip
                worker.process.kill()
            elif self._is_late(worker, now):
                late.append(worker)
        for worker in late:
            self._to_log.append(f"{worker.process.name} (pid {worker.process.pid}, {worker.process.state}) has made no "
                                f"progress for {self._patience_s(worker):g} s; it is replaced")  # fmt: skip
        self._count_stalls(late)
        for worker in late:
            worker.process.kill()
        self._watch_slots(now)

    def _count_stalls(self, hung: list[_Worker]) -> None:
        """Takes note of workers that have hung.

        Raises:
            StallError: that is no longer the fault of one sample or one worker.
        """
        for worker in hung:
            name, state = worker.process.name, worker.process.state
            printed = _printed(worker.process) or " It printed nothing."
            self._stacks[worker.process.index] = f"{name} ({state}):{printed}"
        for worker in hung:
            if self._blame.stalled(self._in_hand(worker), worker.process.index):
                when = "(stall_timeout)" if worker.is_ready else "at its start"
                raise self._general_stall(f"no worker has made progress for {self._patience_s(worker):g} s {when}")

    def _general_stall(self, what: str) -> StallError:
        return StallError(
            f"{what}. If reading or the transform may take so long for one sample, raise stall_timeout=; otherwise see "
            "where they hang:\n\n" + "\n".join(text for _, text in sorted(self._stacks.items()))
        )

    def _patience_s(self, worker: _Worker) -> float:
        """How long a worker may go without progress, in seconds."""
        return self._stall_timeout_s if worker.is_ready else self._start_timeout_s

    def _is_late(self, worker: _Worker, now: float) -> bool:
        """Whether a worker hangs, and has had the time to print its stacks."""
        schedule = self._ledger.schedule
        has_work = not worker.is_ready or worker.describing or bool(
            schedule is not None and schedule.leases(worker.process.number)
        )
        progress = worker.area.progress
        if progress != worker.progress or not has_work:
            worker.progress, worker.progress_s, worker.stacks_asked_s = progress, now, None
        elif worker.stacks_asked_s is not None:
            return now - worker.stacks_asked_s > STACKS_S
        elif now - worker.progress_s > self._patience_s(worker):
            worker.process.ask_for_stacks()
            worker.stacks_asked_s = now
        return False

    def _watch_killed(self, worker: _Worker, now: float) -> None:
        """Gives up the slots of a worker that does not die.

        Raises:
            StallError: no slot is left, or it is not the fault of one sample.
        """
        process = worker.process
        assert process.killed_s is not None
        if worker.is_abandoned or now - process.killed_s < UNKILLABLE_S:
            return
        worker.is_abandoned = True
        text = (
            f"{process.name} (pid {process.pid}, {process.state}) does not die of SIGKILL: it hangs in the kernel, as "
            "in a read from broken storage"
        )
        self._to_log.append(f"{text}. Its slots stay closed")
        with self._ledger.lock:
            at = self._in_hand(worker)
            schedule = self._ledger.schedule
            if schedule is not None:
                lost = schedule.worker_abandoned(process.number, None if at.task == NO_TASK else at.ordinal)
                self._fail_hopeless(lost, worker, STALLED)
            self._blame_for(worker, at, STALLED)
            worker.describing = False
            if self._arena.slots is not None and schedule is not None and (
                schedule.count(SlotState.QUARANTINED) >= self._arena.slots.count
            ):
                raise StallError(f"{text}, as do others: no slot is left to work with.{_printed(process)}")

    def _watch_slots(self, now: float) -> None:
        """Ends the run if the consumer waits and the last slots are those that it holds itself.

        It may drop them any time, as tf.data does behind it: only after ``stall_timeout`` it looks as if it will not.

        Raises:
            StallError: it does not.
        """
        with self._ledger.lock:
            schedule = self._ledger.schedule
            if schedule is None or not schedule.is_starved:
                self._starved_s = None
                return
            self._starved_s = self._starved_s or now
            if now - self._starved_s > self._stall_timeout_s:
                raise StallError(
                    f"no slot is left to work with: {schedule.count(SlotState.QUARANTINED)} belong to workers that do "
                    "not die of SIGKILL, as in a read from broken storage, and the consumer holds the batches in the "
                    f"other {schedule.count(SlotState.LENT)} while it waits for one more. Mend the storage, or hold "
                    "fewer batches"
                )

    def _pass_over(self, pause_s: float) -> None:
        """This process did not run for a time: that is not the fault of the workers, so their clocks stood still."""
        if pause_s <= 0:
            return
        if self._starved_s is not None:
            self._starved_s += pause_s
        for worker in self._workers.values():
            worker.progress_s += pause_s
            if worker.stacks_asked_s is not None:
                worker.stacks_asked_s += pause_s
            if worker.closed_s is not None:
                worker.closed_s += pause_s

    # Ending

    def _end_all(self) -> None:
        """Ends every worker: first all are asked, then all are killed, then all are collected."""
        processes = [worker.process for worker in self._workers.values()]
        for process in processes:
            process.ask_to_end()
        _wait_for_deaths(processes, END_GRACE_S)
        for process in processes:
            process.kill()
        _wait_for_deaths(processes, UNKILLABLE_S)
        for worker in self._workers.values():
            with suppress(OSError):
                self._forward_stderr(worker)
        for process in processes:
            if process.is_dead:
                process.reap()
            else:
                process.close()
        self._workers.clear()
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


def _map(fd: int) -> Array:
    """Maps the file of what did not fit into its slot; it goes with the last array that refers to it.

    Raises:
        ProtocolError: it is no such file, or there is no memory for it.
    """
    try:
        return np.frombuffer(mmap.mmap(fd, 0), np.uint8)
    except (OSError, ValueError) as error:
        raise messages.ProtocolError(f"a file that cannot be mapped: {error}") from error
    finally:
        os.close(fd)


def _report(
    message: messages.Filled | messages.Drawn | messages.Failed, slots: SlotMemory, overflow: Array | None
) -> bytes:
    """The reports on bad samples as the worker wrote them: beside the slot, or at the end of the file sent along."""
    if message.report_bytes <= TEXT_BYTES:
        return slots.read_report(message.slot, message.report_bytes)
    if overflow is None or overflow.nbytes < message.report_bytes:
        raise messages.ProtocolError("reports without the file that holds them")
    return overflow[-message.report_bytes :].tobytes()


def _read_reports(data: bytes) -> list[SampleReport]:
    try:
        return reports.decode(data)
    except ValueError as error:
        raise messages.ProtocolError(f"a report that cannot be read: {error}") from error


def _read_description(data: bytes) -> Description:
    try:
        description = pickle.loads(data)
    except Exception as error:  # unpickling raises anything
        raise messages.ProtocolError(f"a description that cannot be read: {error!r}") from error
    if not isinstance(description, Description):
        raise messages.ProtocolError("a description that is none")
    return description


def _printed(process: WorkerProcess) -> str:
    return f" It printed:\n{process.printed}" if process.printed else ""


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
