"""What follows from workers that end or hang, without a process and with a clock that the test winds."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from mploader.engine.ipc import messages
from mploader.engine.ipc.sample_report import STALLED
from mploader.engine.scheduler.crash_policy import InHand, Probing
from mploader.engine.scheduler.scheduler import MAX_ATTEMPTS
from mploader.engine.scheduler.states import SlotState
from mploader.engine.supervisor import failure_handler
from mploader.engine.supervisor.failure_handler import STACKS_S, UNKILLABLE_S, FailureHandler
from mploader.errors import StallError, WorkerError
from tests.engine.supervisor.fakes import FakeWorkerTable

STALL_S = 10.0
SEGV = -11


@pytest.fixture
def fake() -> Iterator[FakeWorkerTable]:
    made = FakeWorkerTable()
    with made.state.lock:
        yield made
        made.close()


def take_in_hand(fake: FakeWorkerTable, worker: int, offset: int | None, sample: int | None = None) -> None:
    """A worker gets an assignment and begins one of its samples."""
    assignment = fake.assigned()
    assert assignment.worker == worker
    status = fake.table.entries[worker].handle.status
    status.begin(assignment.task)
    status.step(offset, sample)


def end(fake: FakeWorkerTable, failures: FailureHandler, worker: int, status: int) -> None:
    """A worker is dead and collected."""
    entry = fake.table.entries.pop(worker)
    failures.worker_ended(entry, fake.table.in_hand(entry), status)


def test_the_work_of_a_dead_worker_goes_to_another(fake: FakeWorkerTable) -> None:
    take_in_hand(fake, 0, offset=3, sample=40)
    assert fake.table.in_hand(fake.entries[0]) == InHand(
        task=0, epoch=0, offset=3, sample_index=40, place=3, depends_on_epoch=False
    )
    end(fake, FailureHandler(fake.table, STALL_S), 0, SEGV)
    assignment = fake.assigned()
    assert (assignment.worker, assignment.batch_index, assignment.attempt) == (1, 0, 2)


def test_the_place_of_a_sample_in_the_epoch_counts_the_batches_before(fake: FakeWorkerTable) -> None:
    take_in_hand(fake, 0, offset=0, sample=7)
    take_in_hand(fake, 1, offset=3, sample=40)
    fake.entries[1].handle.status.enter_epoch()
    assert fake.table.in_hand(fake.entries[1]) == InHand(
        task=1, epoch=0, offset=3, sample_index=40, place=11, depends_on_epoch=True
    )


def test_a_worker_that_probes_has_a_sample_in_hand_and_no_task(fake: FakeWorkerTable) -> None:
    fake.entries[0].is_probing = True
    fake.entries[0].handle.status.step(0, 5)
    at = fake.table.in_hand(fake.entries[0])
    assert (at.task, at.offset, at.sample_index, at.place) == (Probing.SAMPLE, 0, 5, None)


def test_a_worker_that_had_nothing_in_hand_blames_no_sample(fake: FakeWorkerTable) -> None:
    assert fake.table.in_hand(fake.entries[0]) == InHand()
    end(fake, FailureHandler(fake.table, STALL_S), 0, SEGV)
    assert fake.table.policy.condemned == []


def test_an_assignment_that_was_not_begun_is_not_in_hand(fake: FakeWorkerTable) -> None:
    fake.entries[0].handle.status.begin(77)  # another task, of long ago
    fake.entries[0].handle.status.step(3, 40)
    assert fake.assigned().worker == 0
    assert fake.table.in_hand(fake.entries[0]) == InHand()


def test_a_sample_that_ends_three_workers_is_condemned_before_all_others() -> None:
    fake = FakeWorkerTable(workers=1, skips=True)
    failures = FailureHandler(fake.table, STALL_S)
    with fake.state.lock:
        for number in range(3):
            if number:
                fake.join(number, index=0)
            take_in_hand(fake, number, offset=2, sample=77)
            if number == 2:
                fake.join(9, index=0)  # another worker, which must hear of it
            end(fake, failures, number, SEGV)
        assert [(one.sample_index, one.epoch, one.status) for one in fake.table.policy.condemned] == [(77, None, SEGV)]
        assert fake.handle(9).sent == [messages.Condemn(sample_index=77, epoch=None, status=SEGV)]
        fake.close()


def test_three_workers_that_end_outside_any_sample_are_an_error(fake: FakeWorkerTable) -> None:
    failures = FailureHandler(fake.table, STALL_S)
    end(fake, failures, 0, 1)
    end(fake, failures, 1, 1)
    fake.join(2, index=0)
    fake.handle(2).printed = "No module named 'nowhere'"
    with pytest.raises(WorkerError, match=r"3 workers have ended in a row .*exited with code 1.*\n.*nowhere") as caught:
        end(fake, failures, 2, 1)
    assert caught.value.worker == "worker 2"


@pytest.mark.parametrize(("status", "kind"), [(SEGV, WorkerError), (STALLED, StallError)])
def test_an_element_of_a_generator_that_ends_three_workers_is_the_error_of_its_block(
    status: int, kind: type[Exception]
) -> None:
    fake = FakeWorkerTable(workers=1, inputs=["a shard"])
    failures = FailureHandler(fake.table, STALL_S)
    with fake.state.lock:
        for number in range(MAX_ATTEMPTS):
            if number:
                fake.join(number, index=0)
            take_in_hand(fake, number, offset=5)
            assert fake.table.in_hand(fake.table.entries[number]).offset == 5
            end(fake, failures, number, status)
        taken, ready = fake.taken()
        assert taken.failed
        assert type(ready.error) is kind
        assert ready.error.worker == "worker 2"
        assert "generator('a shard') has killed 3 workers at element 5" in str(ready.error)
        assert fake.table.policy.condemned == []
        fake.close()


def test_a_worker_without_progress_is_asked_for_its_stacks_and_then_killed(fake: FakeWorkerTable) -> None:
    take_in_hand(fake, 0, offset=0, sample=0)
    failures, handle = FailureHandler(fake.table, STALL_S), fake.handle(0)
    failures.watch(100.0)
    failures.watch(100.0 + STALL_S)
    assert handle.stacks_asked == 0
    failures.watch(100.1 + STALL_S)
    assert (handle.stacks_asked, handle.killed_s) == (1, None)
    failures.watch(100.2 + STALL_S + STACKS_S)
    assert handle.killed_s is not None
    assert fake.handle(1).killed_s is None, "one without work does not hang"


def test_progress_is_what_a_worker_shows_in_its_status(fake: FakeWorkerTable) -> None:
    take_in_hand(fake, 0, offset=0, sample=0)
    failures = FailureHandler(fake.table, STALL_S)
    for step in range(20):
        failures.watch(100.0 + 0.9 * STALL_S * step)
        fake.entries[0].handle.status.step(step, step)
    assert (fake.handle(0).stacks_asked, fake.handle(0).killed_s) == (0, None)


def test_time_in_which_this_process_stood_still_is_not_the_fault_of_a_worker(fake: FakeWorkerTable) -> None:
    take_in_hand(fake, 0, offset=0, sample=0)
    failures = FailureHandler(fake.table, STALL_S)
    failures.watch(100.0)
    failures.pass_over(1000.0)
    failures.watch(1100.0 + STALL_S)
    assert fake.handle(0).stacks_asked == 0


def test_all_workers_hanging_is_an_error_with_their_stacks(fake: FakeWorkerTable) -> None:
    take_in_hand(fake, 0, offset=0, sample=0)
    take_in_hand(fake, 1, offset=0, sample=8)
    failures = FailureHandler(fake.table, STALL_S)
    failures.watch(100.0)
    failures.watch(100.1 + STALL_S)
    stacks = r"(?s)no worker has made progress for 10 s .*stack of worker 0.*worker 1"
    with pytest.raises(StallError, match=stacks) as caught:
        failures.watch(100.2 + STALL_S + STACKS_S)
    assert "stack of worker 1" in (caught.value.traceback or "")


def test_a_worker_that_has_closed_its_channel_and_lives_on_is_killed(fake: FakeWorkerTable) -> None:
    fake.entries[0].closed_s = 100.0
    failures = FailureHandler(fake.table, STALL_S)
    failures.watch(100.0 + failure_handler.CLOSED_S)
    assert fake.handle(0).killed_s is None
    failures.watch(100.1 + failure_handler.CLOSED_S)
    assert fake.handle(0).killed_s is not None


def test_the_slots_of_a_worker_that_does_not_die_stay_closed(fake: FakeWorkerTable) -> None:
    take_in_hand(fake, 0, offset=0, sample=0)
    fake.handle(0).killed_s = 100.0
    failures, slots = FailureHandler(fake.table, STALL_S), fake.scheduler.slots
    failures.watch(99.9 + UNKILLABLE_S)
    assert slots.count(SlotState.QUARANTINED) == 0
    failures.watch(100.1 + UNKILLABLE_S)
    assert slots.count(SlotState.QUARANTINED) == 1
    assignment = fake.assigned()
    assert (assignment.worker, assignment.batch_index) == (1, 0), "its work is done by another"
    end(fake, failures, 0, STALLED)
    assert slots.count(SlotState.QUARANTINED) == 0


def test_watching_takes_the_lock_itself() -> None:
    fake = FakeWorkerTable()
    failures = FailureHandler(fake.table, STALL_S)
    with fake.state.lock:
        take_in_hand(fake, 0, offset=0, sample=0)
        watcher = threading.Thread(target=failures.watch, args=(100.0,))
        watcher.start()
        watcher.join(0.1)
        assert watcher.is_alive(), "it waits for the lock"
        assert fake.entries[0].progress is None
    watcher.join(20)
    assert fake.entries[0].progress == 2
    assert not fake.state.is_held()
    with fake.state.lock:
        fake.close()
