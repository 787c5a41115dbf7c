"""What workers report: each message is checked against what the trainer knows, and carried out or refused.

Called by the supervisor thread with the state's lock held.
"""

from __future__ import annotations

import dataclasses
import pickle

from mploader._util.shared_memory import Array
from mploader.batching.layout import BatchLayout
from mploader.engine.ipc import messages, sample_report
from mploader.engine.ipc.job import ProbeResult
from mploader.engine.ipc.sample_report import SampleReport
from mploader.engine.ipc.slots import Slots
from mploader.engine.ipc.worker_status import TEXT_BYTES
from mploader.engine.scheduler.states import Assignment, Replay
from mploader.engine.supervisor import events
from mploader.engine.supervisor.ready_batch import ReadyBatch
from mploader.engine.supervisor.worker_handle import Received
from mploader.engine.supervisor.worker_table import WorkerEntry, WorkerTable


class MessageHandler:
    """Takes in the messages of all workers."""

    def __init__(self, table: WorkerTable) -> None:
        self._table = table

    def accept(self, entry: WorkerEntry, received: Received) -> bool:
        """Carries out one message. Returns False if it makes no sense now.

        Raises:
            ProtocolError: the text that belongs to it cannot be read.
        """
        message = received.message
        if isinstance(message, messages.Hello):
            return self._hello(entry, message)
        if isinstance(message, messages.Broken):
            entry.broken = entry.handle.status.read_text(message.text_bytes).decode(errors="replace")
            return True
        if isinstance(message, messages.Probed):
            return self._probed(entry, message)
        return self._result(entry, message, received.overflow)

    def _hello(self, entry: WorkerEntry, message: messages.Hello) -> bool:
        if entry.is_ready or message.protocol != messages.PROTOCOL:
            return False
        entry.is_ready = self._table.was_ready = True
        return True

    def _probed(self, entry: WorkerEntry, message: messages.Probed) -> bool:
        if not entry.is_probing or message.sample_index != self._table.state.to_probe:
            return False
        data = entry.handle.status.read_text(message.text_bytes)
        if message.ok:
            self._table.answer_probe(entry, _read_probe(data))
        else:
            self._table.answer_probe(entry, _read_reports(data)[0].to_error(entry.handle.name, self._table.job.advice))
        return True

    def _result(
        self, entry: WorkerEntry, message: messages.Made | messages.Failed, overflow: Array | None
    ) -> bool:
        scheduler = self._table.state.scheduler
        if scheduler is None or not self._table.arena.has_slots:
            return False
        assignment = scheduler.current(entry.number, message.task, message.attempt, message.slot, message.generation)
        if assignment is None:
            return entry.is_killed  # too late, and so it counts for nothing; otherwise nonsense
        # What the slot says is read before the scheduler may give the slot to another task.
        slots = self._table.arena.slots
        reports: list[SampleReport] = []
        if message.report_bytes or isinstance(message, messages.Failed):
            reports = self._with_last_words(_read_reports(_report_bytes(message, slots, overflow)))
        if isinstance(message, messages.Failed):
            error = reports[0].to_error(entry.handle.name, self._table.job.advice)
            scheduler.failed(assignment, ReadyBatch(error=error))
        elif not self._made(entry, assignment, message, reports, overflow, slots):
            return False
        self._table.made(message.task)
        if scheduler.is_waited_for(message.task):
            self._table.state.changed.notify_all()
        return True

    def _made(
        self, entry: WorkerEntry, assignment: Assignment, message: messages.Made, reports: list[SampleReport],
        overflow: Array | None, slots: Slots,
    ) -> bool:  # fmt: skip
        scheduler = self._table.state.scheduler
        assert scheduler is not None
        if message.batch_bytes <= slots.data_bytes:
            overflow = None  # it holds the reports alone
        room = slots.data_bytes if overflow is None else overflow.nbytes
        if not 0 < message.batch_bytes <= room or message.samples < 0:
            return False
        if not all(_is_of_batch(report, self._table.state.layout) for report in reports):
            return False
        if message.is_last and assignment.input is None:
            return False  # the plan says how long an epoch is
        ready = ReadyBatch(
            samples=message.samples, size=message.batch_bytes, reports=reports, input=assignment.input,
            is_last=bool(message.is_last), overflow=overflow,
        )  # fmt: skip
        replay = Replay(message.elements, message.checksum) if assignment.input is not None else None
        if replay is not None and not scheduler.continues(assignment, replay, message.samples):
            return False  # after the worker's death, elements would be skipped or come twice
        scheduler.made(assignment, ready, replay=replay, is_last=ready.is_last)
        self._table.counters.made(events.batch_made(entry.handle.index, assignment, message, scheduler.slots))
        return True

    def _with_last_words(self, reports: list[SampleReport]) -> list[SampleReport]:
        """Adds to the reports on samples that have killed workers what the last of these printed."""
        return [
            dataclasses.replace(report, traceback=self._table.last_words.get(report.index, ""))
            if report.group in ("crash", "stall") and report.index is not None else report
            for report in reports
        ]  # fmt: skip


def _is_of_batch(report: SampleReport, layout: BatchLayout | None) -> bool:
    """Whether a report can be of a sample of a batch: it has a number, and an offset in the batch."""
    is_inside = report.offset is None or (layout is not None and 0 <= report.offset < layout.capacity)
    return report.index is not None and is_inside


def _report_bytes(message: messages.Made | messages.Failed, slots: Slots, overflow: Array | None) -> bytes:
    """The reports on bad samples as the worker wrote them: beside the slot, or at the end of the file sent along."""
    if message.report_bytes <= TEXT_BYTES:
        return slots.read_report(message.slot, message.report_bytes)
    if overflow is None or overflow.nbytes < message.report_bytes:
        raise messages.ProtocolError("reports without the file that holds them")
    return overflow[-message.report_bytes :].tobytes()


def _read_reports(data: bytes) -> list[SampleReport]:
    try:
        return sample_report.decode(data)
    except (ValueError, RecursionError) as error:
        raise messages.ProtocolError(f"a report that cannot be read: {error}") from error


def _read_probe(data: bytes) -> ProbeResult:
    try:
        probed = pickle.loads(data)
    except Exception as error:  # unpickling raises anything
        raise messages.ProtocolError(f"a probe that cannot be read: {error!r}") from error
    if not isinstance(probed, ProbeResult):
        raise messages.ProtocolError(f"expected a probed element, got a {type(probed).__name__}")
    return probed
