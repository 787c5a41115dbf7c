"""What a message of a worker does, and which make no sense: without a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mploader.batching.spec import ArraySpec
from mploader.engine.ipc import messages, sample_report, serialization
from mploader.engine.ipc.sample_report import SampleReport
from mploader.engine.scheduler.states import Lease, SlotState
from mploader.engine.supervisor.message_handler import MessageHandler, map_file
from mploader.engine.worker.loop import Description
from mploader.errors import SampleError
from tests.engine.supervisor.fakes import FakeWorkerTable


@pytest.fixture
def crew() -> Iterator[FakeWorkerTable]:
    made = FakeWorkerTable()
    with made.ledger.lock:
        yield made
        made.close()


def leased(crew: FakeWorkerTable) -> Lease:
    lease = crew.schedule.lease()
    assert lease is not None
    return lease


def filled(lease: Lease, **changes: int) -> messages.Filled:
    fields: dict[str, int] = dict.fromkeys(messages.Filled.__dataclass_fields__, 0)
    fields |= {"task": lease.task, "attempt": lease.attempt, "slot": lease.slot, "generation": lease.generation,
               "samples": 8, "batch_bytes": 500, "epoch": lease.epoch, "position": lease.position}  # fmt: skip
    return messages.Filled(**(fields | changes))


def report(**changes: Any) -> SampleReport:
    return SampleReport(**({"index": 7, "where": "a file", "kind": "ValueError", "error": "rotten", "traceback": "",
                            "group": "content"} | changes))  # fmt: skip


def test_a_result_commits_its_batch(crew: FakeWorkerTable) -> None:
    lease = leased(crew)
    assert MessageHandler(crew.crew).accept(crew.members[0], filled(lease), None)
    assert crew.ledger.results[lease.task].samples == 8
    taken = crew.schedule.take(crew.run, 0)
    assert taken is not None
    assert taken.task == lease.task


@pytest.mark.parametrize(
    "changes", [{"attempt": 9}, {"slot": 3}, {"generation": 9}, {"task": 99}, {"batch_bytes": 0},
                {"batch_bytes": 10**9}, {"samples": -1}],
)  # fmt: skip
def test_a_result_that_is_not_that_of_the_lease_is_refused_and_changes_nothing(
    crew: FakeWorkerTable, changes: dict[str, int]
) -> None:
    lease = leased(crew)
    assert not MessageHandler(crew.crew).accept(crew.members[0], filled(lease, **changes), None)
    assert crew.schedule.leases(0) == (lease,)
    assert not crew.ledger.results


def test_the_result_of_another_worker_is_refused(crew: FakeWorkerTable) -> None:
    lease = leased(crew)
    assert not MessageHandler(crew.crew).accept(crew.members[1], filled(lease), None)
    assert crew.schedule.leases(0) == (lease,)


def test_the_late_result_of_a_worker_that_was_killed_is_passed_over(crew: FakeWorkerTable) -> None:
    lease = leased(crew)
    crew.process(0).kill()
    crew.schedule.worker_lost(0, None)
    assert MessageHandler(crew.crew).accept(crew.members[0], filled(lease), None)
    assert not crew.ledger.results


def test_reports_of_bad_samples_are_read_before_the_slot_goes_to_others(crew: FakeWorkerTable) -> None:
    lease = leased(crew)
    assert crew.arena.slots is not None
    data = sample_report.encode([report()], 10_000)
    size = crew.arena.slots.write_report(lease.slot, data)
    assert MessageHandler(crew.crew).accept(crew.members[0], filled(lease, report_bytes=size), None)
    assert crew.ledger.results[lease.task].reports == [report()]


def test_a_crash_is_reported_with_what_its_worker_printed(crew: FakeWorkerTable) -> None:
    lease = leased(crew)
    assert crew.arena.slots is not None
    crew.crew.last_words[7] = "Segmentation fault"
    size = crew.arena.slots.write_report(lease.slot, sample_report.encode([report(group="crash")], 10_000))
    assert MessageHandler(crew.crew).accept(crew.members[0], filled(lease, report_bytes=size), None)
    assert crew.ledger.results[lease.task].reports[0].traceback == "Segmentation fault"


def test_a_failure_is_the_error_of_its_batch(crew: FakeWorkerTable) -> None:
    lease = leased(crew)
    assert crew.arena.slots is not None
    size = crew.arena.slots.write_report(lease.slot, sample_report.encode([report()], 10_000))
    message = messages.Failed(lease.task, lease.attempt, lease.slot, lease.generation, size)
    assert MessageHandler(crew.crew).accept(crew.members[0], message, None)
    error = crew.ledger.results[lease.task].error
    assert isinstance(error, SampleError)
    assert "sample 7 (a file) failed in worker 0: ValueError: rotten" in str(error)
    assert crew.schedule.count(SlotState.FREE) == 4


@pytest.mark.parametrize("size", [1, 10, 70_000])
def test_a_report_that_cannot_be_read_is_a_breach_of_the_protocol(crew: FakeWorkerTable, size: int) -> None:
    lease = leased(crew)
    message = messages.Failed(lease.task, lease.attempt, lease.slot, lease.generation, size)
    with pytest.raises(messages.ProtocolError):
        MessageHandler(crew.crew).accept(crew.members[0], message, None)
    assert crew.schedule.leases(0) == (lease,)


def test_a_worker_says_hello_once_and_in_the_same_version(crew: FakeWorkerTable) -> None:
    intake, member = MessageHandler(crew.crew), crew.members[0]
    member.is_ready = False
    assert not intake.accept(member, messages.Hello(messages.PROTOCOL + 1, 1), None)
    assert not member.is_ready
    assert intake.accept(member, messages.Hello(messages.PROTOCOL, 1), None)
    assert not intake.accept(member, messages.Hello(messages.PROTOCOL, 1), None)


def test_a_description_answers_who_has_asked(crew: FakeWorkerTable) -> None:
    intake, member = MessageHandler(crew.crew), crew.members[0]
    description = Description(ArraySpec((3,), np.dtype(np.int64)), (24,))
    size = member.area.write_text(serialization.dumps(description))
    assert not intake.accept(member, messages.Described(5, 1, size), None), "nobody has asked"
    crew.ledger.ask_for_description(5)
    member.describing = True
    assert not intake.accept(member, messages.Described(6, 1, size), None), "that is another sample"
    assert intake.accept(member, messages.Described(5, 1, size), None)
    assert crew.ledger.description == description
    assert not member.describing


def test_what_only_the_trainer_says_makes_no_sense_from_a_worker(crew: FakeWorkerTable) -> None:
    assert not MessageHandler(crew.crew).accept(crew.members[0], messages.Describe(1), None)


def test_a_file_that_cannot_be_mapped_is_a_breach_of_the_protocol() -> None:
    read, write = os.pipe()
    with pytest.raises(messages.ProtocolError, match="cannot be mapped"):
        map_file(read)
    os.close(write)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(read)
