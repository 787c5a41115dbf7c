"""Workers that end or hang: whose fault it is, what becomes of their work, and when it is no use to go on.

Called by the supervising thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from mploader.engine.ipc.sample_report import STALLED, SampleReport, describe_condemned, describe_ending
from mploader.engine.scheduler.crash_policy import NO_TASK, InHand
from mploader.engine.scheduler.scheduler import MAX_ATTEMPTS
from mploader.engine.scheduler.states import Lost, SlotState
from mploader.engine.supervisor.shared_state import Result
from mploader.engine.supervisor.worker_table import WorkerEntry, WorkerTable, printed
from mploader.engine.worker.generators import generator_of
from mploader.errors import StallError, WorkerError

UNKILLABLE_S = 5.0
"""A worker that is not dead so long after SIGKILL hangs in the kernel: its slots are given up."""
START_TIMEOUT_S = 60.0
"""A worker may take at least so long to import what it needs, however soon a sample counts as stalled."""
STACKS_S = 0.5
"""How long a stalled worker may take to print its stacks."""
CLOSED_S = 1.0
"""How long a worker may live on that has closed its channel: one that ends is dead by then."""


class FailureHandler:
    """Draws the conclusions from workers that end, and watches for those that hang.

    Args:
        crew: the workers.
        stall_timeout_s: seconds without progress before a worker is replaced.
    """

    def __init__(self, crew: WorkerTable, stall_timeout_s: float) -> None:
        self._crew = crew
        self._stall_timeout_s = stall_timeout_s
        self._start_timeout_s = max(stall_timeout_s, START_TIMEOUT_S)
        self._starved_s: float | None = None
        """Since when no slot is left to work with."""

    def worker_ended(self, member: WorkerEntry, at: InHand, status: int) -> None:
        """A worker is dead and collected: its work goes to others.

        Args:
            member: the worker.
            at: what it was at.
            status: how it ended, as :func:`mploader.engine.ipc.sample_report.describe_ending` takes it.

        Raises:
            WorkerError: workers end over and over.
            StallError: they hang over and over.
        """
        process = member.process
        has_hung = member.stacks_asked_s is not None
        if not has_hung and member.broken is None:
            self._crew.warn(f"{process.name} (pid {process.pid}) {describe_ending(status)}; it is replaced and nothing "
                            "is lost")  # fmt: skip
        if has_hung and process.killed_s is None:
            self._count_stalls([member])  # the request for its stacks has ended it, as a signal does without a handler
        if self._crew.ledger.schedule is not None:
            # A worker that had not taken its first lease up says nothing about it by its end.
            lost = self._crew.ledger.schedule.worker_lost(process.number, None if at.task == NO_TASK else at.ordinal)
            self._fail_hopeless(lost, member, status)
        if not member.is_abandoned:  # otherwise that was done when it was given up
            self._blame_for(member, at, status)
        member.describing = False

    def _blame_for(self, member: WorkerEntry, at: InHand, status: int) -> None:
        """Draws the conclusion from the end of a worker.

        Raises:
            WorkerError: workers end over and over.
            StallError: they hang over and over.
        """
        process = member.process
        if member.broken is not None and not self._crew.ever_ready:
            raise WorkerError(f"{process.name} cannot start: the source or the transform cannot be loaded there.\n\n"
                              f"{member.broken}")  # fmt: skip
        if at.ordinal < 0:
            if status == STALLED:
                return
            text = self._crew.blame.ended_early(
                status, process.killed_s is not None, time.monotonic(), was_ready=self._crew.ever_ready
            )
            if text is not None:
                raise WorkerError(f"{text} ({process.name}, pid {process.pid}).{printed(process)}\n"
                                  f"{member.broken or ''}".rstrip())  # fmt: skip
            return
        sentence = self._crew.blame.crashed(at, status)
        if sentence is None:
            return
        self._crew.last_words[at.sample] = process.printed
        if status == STALLED and self._crew.blame.too_many_hang(at):
            raise self._general_stall("samples that stand side by side have each hung all their workers, so it is "
                                      "hardly the samples")  # fmt: skip
        if self._crew.blame.too_many_condemned():
            raise WorkerError(
                f"many samples have each killed {MAX_ATTEMPTS} workers, so it is hardly the samples; the last worker, "
                f"{process.name}, {describe_ending(status)} on sample {at.sample}.{printed(process)}"
            )
        for other in self._crew.members.values():
            if other.is_ready:
                other.process.send(sentence)
        if member.describing:
            group = "stall" if status == STALLED else "crash"
            report = SampleReport(at.sample, "", "WorkerError", describe_condemned(status), process.printed, group)
            self._crew.answer_description(member, report.to_error(process.name, self._crew.ledger.advice))

    def _fail_hopeless(self, lost: Iterable[Lost], member: WorkerEntry, status: int) -> None:
        """Makes errors of the tasks that have lost their last attempt."""
        for item in lost:
            if item.failed:
                lease, kind = item.lease, StallError if status == STALLED else WorkerError
                what, advice = f"has killed {MAX_ATTEMPTS} workers", ""
                if lease.stream >= 0:
                    what = f"{generator_of(self._crew.shards[lease.stream])} {what} at element {member.area.ordinal}"
                    advice = " An element cannot be left out: run the generator alone with this shard, and mend it"
                    advice += ", or raise stall_timeout= if it may take so long." if status == STALLED else "."
                else:
                    what = f"batch {lease.position} of epoch {lease.epoch} {what} outside any sample"
                last = f"the last, {member.process.name}, {describe_ending(status)}.{advice}{printed(member.process)}"
                self._crew.ledger.results[lease.task] = Result(error=kind(f"{what}; {last}"))
                self._crew.ledger.changed.notify_all()

    def watch(self, now: float) -> None:
        """Replaces workers that have work and make no progress.

        Raises:
            StallError: none does.
        """
        late = []
        for member in list(self._crew.members.values()):
            if member.process.killed_s is not None:
                self._watch_killed(member, now)
            elif member.closed_s is not None and now - member.closed_s > CLOSED_S:
                self._crew.warn(f"{member} has closed its channel and lives on; it is replaced")
                member.process.kill()
            elif self._is_late(member, now):
                late.append(member)
        for member in late:
            self._crew.warn(f"{member} has made no progress for {self._patience_s(member):g} s; it is replaced")
        self._count_stalls(late)
        for member in late:
            member.process.kill()
        self._watch_slots(now)

    def _count_stalls(self, hung: list[WorkerEntry]) -> None:
        """Takes note of workers that have hung.

        Raises:
            StallError: that is no longer the fault of one sample or one worker.
        """
        for member in hung:
            at = self._crew.in_hand(member)
            place = f", at sample {at.sample}" if at.ordinal >= 0 and at.sample >= 0 else ""
            text = printed(member.process) or " It printed nothing."
            self._crew.stacks[member.process.index] = f"{member.process.name} ({member.process.state}{place}):{text}"
        for member in hung:
            if self._crew.blame.stalled(self._crew.in_hand(member), member.process.index):
                when = "(stall_timeout)" if member.is_ready else "at its start"
                raise self._general_stall(f"no worker has made progress for {self._patience_s(member):g} s {when}")

    def _general_stall(self, what: str) -> StallError:
        return StallError(
            f"{what}. If reading or the transform may take so long for one sample, raise stall_timeout=; otherwise see "
            "where they hang:\n\n" + "\n".join(text for _, text in sorted(self._crew.stacks.items()))
        )

    def _patience_s(self, member: WorkerEntry) -> float:
        """How long a worker may go without progress, in seconds."""
        return self._stall_timeout_s if member.is_ready else self._start_timeout_s

    def _is_late(self, member: WorkerEntry, now: float) -> bool:
        """Whether a worker hangs, and has had the time to print its stacks."""
        schedule = self._crew.ledger.schedule
        has_work = not member.is_ready or member.describing or bool(
            schedule is not None and schedule.leases(member.process.number)
        )
        progress = member.area.progress
        if progress != member.progress or not has_work:
            member.progress, member.progress_s, member.stacks_asked_s = progress, now, None
        elif member.stacks_asked_s is not None:
            return now - member.stacks_asked_s > STACKS_S
        elif now - member.progress_s > self._patience_s(member):
            member.process.ask_for_stacks()
            member.stacks_asked_s = now
        return False

    def _watch_killed(self, member: WorkerEntry, now: float) -> None:
        """Gives up the slots of a worker that does not die.

        Raises:
            StallError: no slot is left, or it is not the fault of one sample.
        """
        process = member.process
        assert process.killed_s is not None
        if member.is_abandoned or now - process.killed_s < UNKILLABLE_S:
            return
        member.is_abandoned = True
        text = f"{member} does not die of SIGKILL: it hangs in the kernel, as in a read from broken storage"
        self._crew.warn(f"{text}. Its slots stay closed")
        with self._crew.ledger.lock:
            at = self._crew.in_hand(member)
            schedule = self._crew.ledger.schedule
            if schedule is not None:
                lost = schedule.worker_abandoned(process.number, None if at.task == NO_TASK else at.ordinal)
                self._fail_hopeless(lost, member, STALLED)
            self._blame_for(member, at, STALLED)
            member.describing = False
            if self._crew.arena.slots is not None and schedule is not None and (
                schedule.count(SlotState.QUARANTINED) >= self._crew.arena.slots.count
            ):
                raise StallError(f"{text}, as do others: no slot is left to work with.{printed(process)}")

    def _watch_slots(self, now: float) -> None:
        """Ends the run if the consumer waits and the last slots are those that it holds itself.

        It may drop them any time, as tf.data does behind it: only after ``stall_timeout`` it looks as if it will not.

        Raises:
            StallError: it does not.
        """
        schedule = self._crew.ledger.schedule
        if schedule is None or not schedule.count(SlotState.QUARANTINED):  # without the lock: asked all the time
            self._starved_s = None
            return
        with self._crew.ledger.lock:
            if not schedule.is_starved:
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

    def pass_over(self, pause_s: float) -> None:
        """This process did not run for a time: that is not the fault of the workers, so their clocks stood still."""
        if pause_s <= 0:
            return
        if self._starved_s is not None:
            self._starved_s += pause_s
        for member in self._crew.members.values():
            member.progress_s += pause_s
            if member.stacks_asked_s is not None:
                member.stacks_asked_s += pause_s
            if member.closed_s is not None:
                member.closed_s += pause_s
