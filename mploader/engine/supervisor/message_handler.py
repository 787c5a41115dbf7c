"""What workers say: each message is checked against what the trainer knows and carried out, or makes no sense.

Called by the supervising thread with the ledger's lock held.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import pickle
import time

import numpy as np

from mploader.batching.writer import Array
from mploader.engine.ipc import messages, sample_report
from mploader.engine.ipc.arena import TEXT_BYTES, SlotMemory
from mploader.engine.ipc.sample_report import SampleReport
from mploader.engine.supervisor.shared_state import Result
from mploader.engine.supervisor.worker_table import WorkerEntry, WorkerTable
from mploader.engine.worker.loop import Description


class MessageHandler:
    """Takes in the messages of all workers."""

    def __init__(self, crew: WorkerTable) -> None:
        self._crew = crew

    def accept(self, member: WorkerEntry, message: messages.Message, overflow: Array | None) -> bool:
        """Carries out one message. False: it makes no sense now."""
        if isinstance(message, messages.Hello):
            if member.is_ready or message.protocol != messages.PROTOCOL:
                return False
            member.is_ready = self._crew.ever_ready = True
            return True
        if isinstance(message, messages.Broken):
            member.broken = member.area.read_text(message.text_bytes).decode(errors="replace")
            return True
        if isinstance(message, messages.Described):
            return self._accept_description(member, message)
        if isinstance(message, (messages.Filled, messages.Drawn, messages.Failed)):
            return self._accept_result(member, message, overflow)
        return False

    def _accept_description(self, member: WorkerEntry, message: messages.Described) -> bool:
        if not member.describing or message.index != self._crew.ledger.to_describe:
            return False
        data = member.area.read_text(message.payload_bytes)
        if message.ok:
            self._crew.answer_description(member, _read_description(data))
        else:
            error = _read_reports(data)[0].to_error(member.process.name, self._crew.ledger.advice)
            self._crew.answer_description(member, error)
        return True

    def _accept_result(
        self, member: WorkerEntry, message: messages.Filled | messages.Drawn | messages.Failed, overflow: Array | None
    ) -> bool:
        schedule, slots = self._crew.ledger.schedule, self._crew.arena.slots
        if schedule is None or slots is None:
            return False
        lease = schedule.current(
            member.process.number, message.task, message.attempt, message.slot, message.generation
        )
        if lease is None:
            return member.process.killed_s is not None  # too late, and so it counts for nothing; otherwise nonsense
        # What the slot says is read before the schedule may give the slot to somebody else.
        found: list[SampleReport] = []
        if message.report_bytes or isinstance(message, messages.Failed):
            found = self._with_last_words(_read_reports(_report(message, slots, overflow)))
        if isinstance(message, messages.Failed):
            schedule.failed(lease)
            result = Result(error=found[0].to_error(member.process.name, self._crew.ledger.advice))
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
            self._crew.counters.filled(member.process.index, message, time.monotonic_ns(), schedule.counts())
        self._crew.made(message.task)
        if schedule.has_task(message.task):
            self._crew.ledger.results[message.task] = result
            if schedule.is_waited_for(message.task):
                self._crew.ledger.changed.notify_all()
        return True

    def _with_last_words(self, found: list[SampleReport]) -> list[SampleReport]:
        """Adds to the reports on samples that have killed workers what the last of these printed."""
        return [
            dataclasses.replace(report, traceback=self._crew.last_words.get(report.index, ""))
            if report.group in ("crash", "stall") else report
            for report in found
        ]  # fmt: skip


def map_file(fd: int) -> Array:
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
        return sample_report.decode(data)
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
