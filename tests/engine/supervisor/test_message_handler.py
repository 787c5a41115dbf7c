"""What a message of a worker does, and which make no sense: without a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mploader.batching.spec import ArraySpec
from mploader.engine.ipc import messages, sample_report, serialization
from mploader.engine.ipc.job import ProbeResult
from mploader.engine.ipc.sample_report import SampleReport
from mploader.engine.ipc.worker_status import TEXT_BYTES
from mploader.engine.scheduler.states import Assignment, Replay, SlotState
from mploader.engine.supervisor.channel_worker import map_overflow
from mploader.engine.supervisor.message_handler import MessageHandler
from mploader.engine.supervisor.worker_handle import Received
from mploader.engine.supervisor.worker_table import WorkerEntry
from mploader.errors import SampleError
from tests.engine.supervisor.fakes import BATCH_BYTES, SLOTS, FakeWorkerTable


@pytest.fixture
def fake() -> Iterator[FakeWorkerTable]:
    made = FakeWorkerTable()
    with made.state.lock:
        yield made
        made.close()


def accept(
    fake: FakeWorkerTable, entry: WorkerEntry, message: Any, overflow: np.ndarray[Any, Any] | None = None
) -> bool:
    return MessageHandler(fake.table).accept(entry, Received(message, overflow))


def made(assignment: Assignment, **changes: int) -> messages.Made:
    fields: dict[str, int] = dict.fromkeys(messages.Made.__dataclass_fields__, 0)
    fields |= {"task": assignment.task, "attempt": assignment.attempt, "slot": assignment.slot,
               "generation": assignment.generation, "samples": 8, "batch_bytes": 500}  # fmt: skip
    return messages.Made(**(fields | changes))


def failed(assignment: Assignment, report_bytes: int) -> messages.Failed:
    return messages.Failed(
        task=assignment.task, attempt=assignment.attempt, slot=assignment.slot, generation=assignment.generation,
        report_bytes=report_bytes,
    )  # fmt: skip


def report(**changes: Any) -> SampleReport:
    return SampleReport(**({"index": 7, "where": "a file", "kind": "ValueError", "error": "rotten", "traceback": "",
                            "group": "content"} | changes))  # fmt: skip


def write_report(fake: FakeWorkerTable, assignment: Assignment, **changes: Any) -> int:
    """Writes a report beside the slot and returns its length."""
    data = sample_report.encode([report(**changes)], 10_000)
    return fake.arena.slots.write_report(assignment.slot, data)


def assert_unchanged(fake: FakeWorkerTable, assignment: Assignment) -> None:
    assert fake.scheduler.assignments(0) == (assignment,)
    assert fake.scheduler.result_of(assignment.task) is None
    assert fake.scheduler.take(fake.series, 0) is None


def test_a_result_commits_its_batch(fake: FakeWorkerTable) -> None:
    assignment = fake.assigned()
    assert accept(fake, fake.entries[0], made(assignment))
    taken, ready = fake.taken()
    assert (taken.task, taken.slot, taken.failed) == (assignment.task, assignment.slot, False)
    assert (ready.samples, ready.size, ready.input, ready.is_last) == (8, 500, None, False)
    assert (list(ready.reports), ready.overflow, ready.error) == ([], None, None)


def test_a_result_of_a_generator_commits_what_it_has_given() -> None:
    fake = FakeWorkerTable(inputs=["a", "b"])
    with fake.state.lock:
        first = fake.assigned()
        assert (first.input, first.replay) == (0, Replay())
        assert accept(fake, fake.entries[0], made(first, elements=8, checksum=1234))
        taken, ready = fake.taken()
        assert (taken.task, ready.input, ready.is_last) == (first.task, 0, False)
        second = fake.assigned()
        assert (second.worker, second.replay) == (0, None), "its generator stands where the batch begins"
        fake.scheduler.worker_lost(0, has_begun=False)
        second = fake.assigned()
        assert (second.worker, second.replay) == (1, Replay(8, 1234)), "another worker goes on behind what is committed"
        assert accept(fake, fake.entries[1], made(second, samples=0, elements=8, checksum=1234, is_last=1))
        assert fake.taken(1)[1].is_last
        assert not fake.scheduler.has_series(fake.series)
        fake.close()


@pytest.mark.parametrize(
    "changes", [{"attempt": 9}, {"slot": 3}, {"generation": 9}, {"task": 99}, {"batch_bytes": 0},
                {"batch_bytes": 10**9}, {"samples": -1}, {"is_last": 1}],
)  # fmt: skip
def test_a_result_that_does_not_fit_the_assignment_is_refused_and_changes_nothing(
    fake: FakeWorkerTable, changes: dict[str, int]
) -> None:
    assignment = fake.assigned()
    assert not accept(fake, fake.entries[0], made(assignment, **changes))
    assert_unchanged(fake, assignment)


def test_the_result_of_another_worker_is_refused(fake: FakeWorkerTable) -> None:
    assignment = fake.assigned()
    assert not accept(fake, fake.entries[1], made(assignment))
    assert_unchanged(fake, assignment)


def test_a_result_comes_once(fake: FakeWorkerTable) -> None:
    assignment = fake.assigned()
    assert accept(fake, fake.entries[0], made(assignment))
    assert not accept(fake, fake.entries[0], made(assignment))


def test_the_late_result_of_a_worker_that_was_killed_is_passed_over(fake: FakeWorkerTable) -> None:
    assignment = fake.assigned()
    fake.handle(0).kill()
    fake.scheduler.worker_lost(0, has_begun=False)
    assert accept(fake, fake.entries[0], made(assignment))
    assert fake.scheduler.take(fake.series, 0) is None


def test_a_batch_that_is_larger_than_its_slot_is_what_came_along(fake: FakeWorkerTable) -> None:
    room = fake.arena.slots.data_bytes
    assert room >= BATCH_BYTES
    assignment, overflow = fake.assigned(), np.zeros(room + 1, np.uint8)
    assert not accept(fake, fake.entries[0], made(assignment, batch_bytes=room + 1)), "nothing came along"
    assert not accept(fake, fake.entries[0], made(assignment, batch_bytes=room + 2), overflow), "it is too short"
    assert_unchanged(fake, assignment)
    assert accept(fake, fake.entries[0], made(assignment, batch_bytes=room + 1), overflow)
    assert fake.taken()[1].overflow is overflow


def test_reports_of_bad_samples_are_read_before_the_slot_goes_to_another_task(fake: FakeWorkerTable) -> None:
    assignment = fake.assigned()
    size = write_report(fake, assignment)
    assert accept(fake, fake.entries[0], made(assignment, report_bytes=size))
    fake.arena.slots.write_report(assignment.slot, b"x" * size)
    assert list(fake.taken()[1].reports) == [report()]


def test_reports_that_are_too_long_are_at_the_end_of_what_came_along(fake: FakeWorkerTable) -> None:
    reports = [report(index=index, error="x" * 1000) for index in range(100)]
    data = sample_report.encode(reports, TEXT_BYTES)
    assert len(data) > TEXT_BYTES
    assignment, overflow = fake.assigned(), np.frombuffer(b"..." + data, np.uint8)
    assert accept(fake, fake.entries[0], made(assignment, report_bytes=len(data)), overflow)
    ready = fake.taken()[1]
    assert list(ready.reports) == reports
    assert ready.overflow is None, "the batch is in its slot"


def test_a_crash_is_reported_with_what_its_worker_printed(fake: FakeWorkerTable) -> None:
    assignment = fake.assigned()
    fake.table.last_words[7] = "Segmentation fault"
    size = write_report(fake, assignment, group="crash")
    assert accept(fake, fake.entries[0], made(assignment, report_bytes=size))
    assert fake.taken()[1].reports[0].traceback == "Segmentation fault"


def test_a_failure_is_the_error_of_its_batch(fake: FakeWorkerTable) -> None:
    assignment = fake.assigned()
    assert accept(fake, fake.entries[0], failed(assignment, write_report(fake, assignment)))
    taken, ready = fake.taken()
    assert taken.failed
    assert isinstance(ready.error, SampleError)
    assert "sample 7 (a file) failed in worker 0: ValueError: rotten" in str(ready.error)
    assert fake.scheduler.slots.count(SlotState.FREE) == SLOTS


@pytest.mark.parametrize("size", [0, 1, 10, 70_000])
def test_a_report_that_cannot_be_read_is_a_protocol_error(fake: FakeWorkerTable, size: int) -> None:
    assignment = fake.assigned()
    with pytest.raises(messages.ProtocolError):
        accept(fake, fake.entries[0], failed(assignment, size))
    assert_unchanged(fake, assignment)


def test_a_worker_says_hello_once_and_in_the_same_version(fake: FakeWorkerTable) -> None:
    entry = fake.entries[0]
    entry.is_ready = False
    assert not accept(fake, entry, messages.Hello(protocol=messages.PROTOCOL + 1, pid=1))
    assert not entry.is_ready
    assert accept(fake, entry, messages.Hello(protocol=messages.PROTOCOL, pid=1))
    assert entry.is_ready
    assert not accept(fake, entry, messages.Hello(protocol=messages.PROTOCOL, pid=1))


def test_a_worker_that_cannot_start_says_why(fake: FakeWorkerTable) -> None:
    entry = fake.entries[0]
    size = entry.handle.status.write_text(b"ImportError: no module")
    assert accept(fake, entry, messages.Broken(text_bytes=size))
    assert entry.broken == "ImportError: no module"


def test_a_probe_answers_the_consumer_that_asked(fake: FakeWorkerTable) -> None:
    entry = fake.entries[0]
    probed = ProbeResult(ArraySpec((3,), np.dtype(np.int64)), (24,))
    size = entry.handle.status.write_text(serialization.dumps(probed))

    def answer(sample_index: int) -> messages.Probed:
        return messages.Probed(sample_index=sample_index, ok=1, text_bytes=size)

    assert not accept(fake, entry, answer(5)), "no consumer has asked"
    fake.state.ask_for_probe(5)
    assert not accept(fake, entry, answer(5)), "another worker was asked"
    entry.is_probing = True
    assert not accept(fake, entry, answer(6)), "that is another sample"
    assert accept(fake, entry, answer(5))
    assert fake.state.probed == probed
    assert fake.state.to_probe is None
    assert not entry.is_probing


def test_a_probe_of_a_bad_sample_is_an_error(fake: FakeWorkerTable) -> None:
    entry = fake.entries[0]
    entry.is_probing = True
    fake.state.ask_for_probe(7)
    size = entry.handle.status.write_text(sample_report.encode([report()], TEXT_BYTES))
    assert accept(fake, entry, messages.Probed(sample_index=7, ok=0, text_bytes=size))
    assert isinstance(fake.state.probed, SampleError)


@pytest.mark.parametrize("data", [b"nonsense", serialization.dumps("another object")])
def test_a_probe_that_cannot_be_read_is_a_protocol_error(fake: FakeWorkerTable, data: bytes) -> None:
    entry = fake.entries[0]
    entry.is_probing = True
    fake.state.ask_for_probe(7)
    size = entry.handle.status.write_text(data)
    with pytest.raises(messages.ProtocolError):
        accept(fake, entry, messages.Probed(sample_index=7, ok=1, text_bytes=size))
    assert fake.state.probed is None


def test_a_file_that_cannot_be_mapped_is_a_protocol_error() -> None:
    read, write = os.pipe()
    with pytest.raises(messages.ProtocolError, match="cannot be mapped"):
        map_overflow(read)
    os.close(write)
    os.close(read)
