"""Workers that end or hang: what is to blame, what becomes of their work, and when it is no use to go on.

Called by the supervisor thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from mploader.engine.ipc.job import generator_name
from mploader.engine.ipc.messages import Condemn
from mploader.engine.ipc.sample_report import STALLED, SampleReport, describe_condemned, describe_ending
from mploader.engine.scheduler.crash_policy import InHand, Sentence
from mploader.engine.scheduler.scheduler import MAX_ATTEMPTS
from mploader.engine.scheduler.states import Assignment, Lost, SlotState
from mploader.engine.supervisor.ready_batch import ReadyBatch
from mploader.engine.supervisor.worker_table import WorkerEntry, WorkerTable, printed
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
        table: the workers.
        stall_timeout_s: seconds without progress before a worker is replaced.
    """

    def __init__(self, table: WorkerTable, stall_timeout_s: float) -> None:
        self._table = table
        self._stall_timeout_s = stall_timeout_s
        self._start_timeout_s = max(stall_timeout_s, START_TIMEOUT_S)
        self._starved_s: float | None = None
        """Since when no slot is left to work with."""

    # Workers that have ended

    def worker_ended(self, entry: WorkerEntry, at: InHand, status: int) -> None:
        """A worker is dead and collected: its work goes to others. Called with the state's lock.

        Args:
            entry: the worker.
            at: what it was doing.
            status: how it ended, as :func:`sample_report.describe_ending` takes it.

        Raises:
            WorkerError: workers end over and over.
            StallError: they hang over and over.
        """
        handle = entry.handle
        has_hung = entry.stacks_asked_s is not None
        if not has_hung and entry.broken is None:
            self._table.warn(f"{handle.name} (pid {handle.pid}) {describe_ending(status)}; it is replaced and nothing "
                             "is lost")  # fmt: skip
        if has_hung and not entry.is_killed:
            self._count_stalls([entry])  # the request for its stacks has ended it, as a signal does without a handler
        scheduler = self._table.state.scheduler
        if scheduler is not None:
            # A worker that had not begun its first assignment says nothing about it by its end.
            lost = scheduler.worker_lost(entry.number, has_begun=at.task is not None, offset=at.offset)
            self._fail_hopeless(lost, entry, status)
        if not entry.is_abandoned:  # otherwise that was done when it was abandoned
            self._judge(entry, at, status)
        entry.is_probing = False

    def _judge(self, entry: WorkerEntry, at: InHand, status: int) -> None:
        """Draws the conclusion from the end of a worker.

        Raises:
            WorkerError: workers end over and over.
            StallError: they hang over and over.
        """
        handle = entry.handle
        if entry.broken is not None and not self._table.was_ready:
            raise WorkerError(
                f"{handle.name} cannot start: the source or the transform cannot be loaded there.\n\n{entry.broken}",
                worker=handle.name, traceback=entry.broken,
            )  # fmt: skip
        if at.offset is None:
            self._judge_outside(entry, status)
            return
        sentence = self._table.policy.crashed(at, status)
        if sentence is None:
            return
        self._table.last_words[sentence.sample_index] = handle.printed
        if status == STALLED and self._table.policy.too_many_hang(at):
            raise self._general_stall("samples that stand side by side have each hung all their workers, so it is "
                                      "hardly the samples")  # fmt: skip
        if self._table.policy.too_many_condemned():
            raise WorkerError(
                f"many samples have each killed {MAX_ATTEMPTS} workers, so it is hardly the samples; the last worker, "
                f"{handle.name}, {describe_ending(status)} on sample {at.sample_index}.{printed(handle)}",
                worker=handle.name, index=at.sample_index,
            )  # fmt: skip
        self._pronounce(sentence)
        if entry.is_probing:
            group = "stall" if status == STALLED else "crash"
            report = SampleReport(
                sentence.sample_index, "", "WorkerError", describe_condemned(status), handle.printed, group
            )
            self._table.answer_probe(entry, report.to_error(handle.name, self._table.job.advice))

    def _judge_outside(self, entry: WorkerEntry, status: int) -> None:
        """A worker has ended outside any sample.

        Raises:
            WorkerError: that was one too many in a row.
        """
        if status == STALLED:
            return
        handle = entry.handle
        count = self._table.policy.ended_early(
            status, entry.is_killed, time.monotonic(), was_ready=self._table.was_ready
        )
        if count is not None:
            text = (
                f"{count} workers have ended in a row before a batch was made; the last {describe_ending(status)} "
                f"({handle.name}, pid {handle.pid}).{printed(handle)}\n{entry.broken or ''}"
            )
            raise WorkerError(text.rstrip(), worker=handle.name, traceback=entry.broken)

    def _pronounce(self, sentence: Sentence) -> None:
        for entry in self._table.entries.values():
            if entry.is_ready:
                entry.handle.send(condemn(sentence))

    def _fail_hopeless(self, lost: Iterable[Lost], entry: WorkerEntry, status: int) -> None:
        """Makes errors of the tasks that have lost their last attempt."""
        state = self._table.state
        assert state.scheduler is not None
        for item in lost:
            if item.failed:
                kind = StallError if status == STALLED else WorkerError
                error = kind(self._hopeless_text(item.assignment, entry, status), worker=entry.handle.name)
                state.scheduler.give_up(item.assignment.task, ReadyBatch(error=error))
                state.changed.notify_all()

    def _hopeless_text(self, assignment: Assignment, entry: WorkerEntry, status: int) -> str:
        what = f"has killed {MAX_ATTEMPTS} workers"
        advice = ""
        if assignment.input is None:
            what = f"batch {assignment.batch_index} of epoch {assignment.epoch} {what} outside any sample"
        else:
            name = generator_name(self._table.job.inputs[assignment.input])
            what = f"{name} {what} at element {entry.handle.status.offset}"
            advice = " An element cannot be left out: run the generator alone with this shard, and correct it"
            advice += ", or raise stall_timeout= if it may take so long." if status == STALLED else "."
        last = f"the last, {entry.handle.name}, {describe_ending(status)}.{advice}{printed(entry.handle)}"
        return f"{what}; {last}"

    # Workers that hang

    def watch(self, now: float) -> None:
        """Replaces workers that have work and make no progress.

        Raises:
            StallError: that is no longer the fault of one sample or one worker.
        """
        late = []
        with self._table.state.lock:
            for entry in list(self._table.entries.values()):
                if entry.is_killed:
                    self._watch_killed(entry, now)
                elif entry.closed_s is not None and now - entry.closed_s > CLOSED_S:
                    self._table.warn(f"{entry} has closed its channel and lives on; it is replaced")
                    entry.handle.kill()
                elif self._is_late(entry, now):
                    late.append(entry)
            for entry in late:
                self._table.warn(f"{entry} has made no progress for {self._patience_s(entry):g} s; it is replaced")
            self._count_stalls(late)
            for entry in late:
                entry.handle.kill()
            self._watch_slots(now)

    def _count_stalls(self, hung: list[WorkerEntry]) -> None:
        """Counts workers that have hung.

        Raises:
            StallError: that is no longer the fault of one sample or one worker.
        """
        for entry in hung:
            at, handle = self._table.in_hand(entry), entry.handle
            is_in_sample = at.offset is not None and at.sample_index is not None
            place = f", at sample {at.sample_index}" if is_in_sample else ""
            text = printed(handle) or " It printed nothing."
            self._table.stacks[handle.index] = f"{handle.name} ({handle.state}{place}):{text}"
        for entry in hung:
            if self._table.policy.stalled(self._table.in_hand(entry), entry.handle.index):
                when = "(stall_timeout)" if entry.is_ready else "at its start"
                raise self._general_stall(f"no worker has made progress for {self._patience_s(entry):g} s {when}")

    def _general_stall(self, what: str) -> StallError:
        stacks = "\n".join(text for _, text in sorted(self._table.stacks.items()))
        return StallError(
            f"{what}. If reading or the transform may take so long for one sample, raise stall_timeout=; otherwise see "
            f"where they hang:\n\n{stacks}", traceback=stacks,
        )  # fmt: skip

    def _patience_s(self, entry: WorkerEntry) -> float:
        """How long a worker may go without progress, in seconds."""
        return self._stall_timeout_s if entry.is_ready else self._start_timeout_s

    def _is_late(self, entry: WorkerEntry, now: float) -> bool:
        """Whether a worker hangs, and has had the time to print its stacks."""
        scheduler = self._table.state.scheduler
        has_work = not entry.is_ready or entry.is_probing or bool(
            scheduler is not None and scheduler.assignments(entry.number)
        )
        progress = entry.handle.status.progress
        if progress != entry.progress or not has_work:
            entry.progress, entry.progress_s, entry.stacks_asked_s = progress, now, None
        elif entry.stacks_asked_s is not None:
            return now - entry.stacks_asked_s > STACKS_S
        elif now - entry.progress_s > self._patience_s(entry):
            entry.handle.ask_for_stacks()
            entry.stacks_asked_s = now
        return False

    def _watch_killed(self, entry: WorkerEntry, now: float) -> None:
        """Gives up the slots of a worker that does not die.

        Raises:
            StallError: no slot is left, or it is not the fault of one sample.
        """
        handle = entry.handle
        assert handle.killed_s is not None
        if entry.is_abandoned or now - handle.killed_s < UNKILLABLE_S:
            return
        entry.is_abandoned = True
        text = f"{entry} does not die of SIGKILL: it hangs in the kernel, as in a read from broken storage"
        self._table.warn(f"{text}. Its slots stay closed")
        at = self._table.in_hand(entry)
        scheduler = self._table.state.scheduler
        if scheduler is not None:
            lost = scheduler.worker_abandoned(entry.number, has_begun=at.task is not None, offset=at.offset)
            self._fail_hopeless(lost, entry, STALLED)
        self._judge(entry, at, STALLED)
        entry.is_probing = False
        if scheduler is not None and scheduler.slots.count(SlotState.QUARANTINED) >= len(scheduler.slots):
            raise StallError(
                f"{text}, as do others: no slot is left to work with.{printed(handle)}", worker=handle.name
            )

    def _watch_slots(self, now: float) -> None:
        """Ends the iteration if the consumer waits and the last slots are those that it holds itself.

        It may drop them any time, as tf.data does behind it: only after ``stall_timeout`` it looks as if it will not.

        Raises:
            StallError: it does not.
        """
        scheduler = self._table.state.scheduler
        if scheduler is None or not scheduler.is_starved:
            self._starved_s = None
            return
        self._starved_s = self._starved_s or now
        if now - self._starved_s > self._stall_timeout_s:
            raise StallError(
                f"no slot is left to work with: {scheduler.slots.count(SlotState.QUARANTINED)} belong to workers that "
                "do not die of SIGKILL, as in a read from broken storage, and the consumer holds the batches in the "
                f"other {scheduler.slots.count(SlotState.BORROWED)} while it waits for one more. Repair the storage, "
                "or hold fewer batches"
            )

    def pass_over(self, pause_s: float) -> None:
        """This process did not run for a time: that is not the fault of the workers, so their clocks stood still."""
        if pause_s <= 0:
            return
        if self._starved_s is not None:
            self._starved_s += pause_s
        for entry in self._table.entries.values():
            entry.progress_s += pause_s
            if entry.stacks_asked_s is not None:
                entry.stacks_asked_s += pause_s
            if entry.closed_s is not None:
                entry.closed_s += pause_s


def condemn(sentence: Sentence) -> Condemn:
    """The message that tells a worker of a sentence."""
    return Condemn(sample_index=sentence.sample_index, epoch=sentence.epoch, status=sentence.status)
