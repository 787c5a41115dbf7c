"""What follows from workers that end or hang, without a process and with a clock that the test winds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mploader.engine.ipc import messages
from mploader.engine.ipc.sample_report import STALLED
from mploader.engine.scheduler.crash_policy import NO_TASK, InHand
from mploader.engine.scheduler.states import SlotState
from mploader.engine.supervisor import failure_handler
from mploader.engine.supervisor.failure_handler import STACKS_S, UNKILLABLE_S, FailureHandler
from mploader.errors import StallError, WorkerError
from tests.engine.supervisor.fakes import FakeWorkerTable

STALL_S = 10.0
SEGV = -11


@pytest.fixture
def crew() -> Iterator[FakeWorkerTable]:
    made = FakeWorkerTable()
    with made.ledger.lock:
        yield made
        made.close()


def take_up(crew: FakeWorkerTable, worker: int, ordinal: int, sample: int) -> None:
    """A worker gets a lease and takes one of its samples in hand."""
    lease = crew.schedule.lease()
    assert lease is not None
    assert lease.worker == worker
    crew.crew.members[worker].area.take_up(lease.task)
    crew.crew.members[worker].area.step(ordinal, sample)


def end(crew: FakeWorkerTable, watch: FailureHandler, worker: int, status: int) -> None:
    member = crew.crew.members.pop(worker)
    watch.worker_ended(member, crew.crew.in_hand(member), status)


def test_the_work_of_a_dead_worker_goes_to_another(crew: FakeWorkerTable) -> None:
    take_up(crew, 0, ordinal=3, sample=40)
    assert crew.crew.in_hand(crew.members[0]) == InHand(0, 0, 3, 40, 3, crew.members[0].area.depends_on_epoch)
    end(crew, FailureHandler(crew.crew, STALL_S), 0, SEGV)
    lease = crew.schedule.lease()
    assert lease is not None
    assert (lease.worker, lease.position, lease.attempt) == (1, 0, 2)


def test_a_worker_that_had_nothing_in_hand_is_no_reason_to_blame_anything(crew: FakeWorkerTable) -> None:
    assert crew.crew.in_hand(crew.members[0]).task == NO_TASK
    end(crew, FailureHandler(crew.crew, STALL_S), 0, SEGV)
    assert crew.crew.blame.condemned == []


def test_a_sample_that_ends_three_workers_is_condemned_before_all_others() -> None:
    crew = FakeWorkerTable(workers=1, skips=True)
    watch = FailureHandler(crew.crew, STALL_S)
    with crew.ledger.lock:
        for number in range(3):
            if number:
                crew.join(number, area=0)
            take_up(crew, number, ordinal=2, sample=77)
            if number == 2:
                crew.join(9, area=0)  # somebody else, who must hear of it
            end(crew, watch, number, SEGV)
        assert [(one.index, one.status) for one in crew.crew.blame.condemned] == [(77, SEGV)]
        assert crew.process(9).sent == [messages.Condemn(77, -1, SEGV)]
        crew.close()


def test_three_workers_that_end_outside_any_sample_are_an_error(crew: FakeWorkerTable) -> None:
    watch = FailureHandler(crew.crew, STALL_S)
    end(crew, watch, 0, 1)
    end(crew, watch, 1, 1)
    crew.join(2, area=0)
    crew.process(2).printed = "No module named 'nowhere'"
    with pytest.raises(WorkerError, match=r"3 workers have ended in a row .*exited with code 1.*\n.*nowhere"):
        end(crew, watch, 2, 1)


def test_a_worker_without_progress_is_asked_for_its_stacks_and_then_killed(crew: FakeWorkerTable) -> None:
    take_up(crew, 0, ordinal=0, sample=0)
    watch, process = FailureHandler(crew.crew, STALL_S), crew.process(0)
    watch.watch(100.0)
    watch.watch(100.0 + STALL_S)
    assert process.stacks_asked == 0
    watch.watch(100.1 + STALL_S)
    assert (process.stacks_asked, process.killed_s) == (1, None)
    watch.watch(100.2 + STALL_S + STACKS_S)
    assert process.killed_s is not None
    assert crew.process(1).killed_s is None, "one without work does not hang"


def test_progress_is_what_a_worker_says_in_its_area(crew: FakeWorkerTable) -> None:
    take_up(crew, 0, ordinal=0, sample=0)
    watch = FailureHandler(crew.crew, STALL_S)
    for step in range(20):
        watch.watch(100.0 + 0.9 * STALL_S * step)
        crew.members[0].area.step(step, step)
    assert (crew.process(0).stacks_asked, crew.process(0).killed_s) == (0, None)


def test_time_in_which_this_process_stood_still_is_nobodys_fault(crew: FakeWorkerTable) -> None:
    take_up(crew, 0, ordinal=0, sample=0)
    watch = FailureHandler(crew.crew, STALL_S)
    watch.watch(100.0)
    watch.pass_over(1000.0)
    watch.watch(1100.0 + STALL_S)
    assert crew.process(0).stacks_asked == 0


def test_all_workers_hanging_is_an_error_with_their_stacks(crew: FakeWorkerTable) -> None:
    take_up(crew, 0, ordinal=0, sample=0)
    take_up(crew, 1, ordinal=0, sample=8)
    watch = FailureHandler(crew.crew, STALL_S)
    watch.watch(100.0)
    watch.watch(100.1 + STALL_S)
    with pytest.raises(StallError, match=r"(?s)no worker has made progress for 10 s .*stack of worker 0.*worker 1"):
        watch.watch(100.2 + STALL_S + STACKS_S)


def test_a_worker_that_has_closed_its_channel_and_lives_on_is_killed(crew: FakeWorkerTable) -> None:
    crew.members[0].closed_s = 100.0
    watch = FailureHandler(crew.crew, STALL_S)
    watch.watch(100.0 + failure_handler.CLOSED_S)
    assert crew.process(0).killed_s is None
    watch.watch(100.1 + failure_handler.CLOSED_S)
    assert crew.process(0).killed_s is not None


def test_the_slots_of_a_worker_that_does_not_die_stay_closed(crew: FakeWorkerTable) -> None:
    take_up(crew, 0, ordinal=0, sample=0)
    crew.process(0).killed_s = 100.0
    watch = FailureHandler(crew.crew, STALL_S)
    watch.watch(99.9 + UNKILLABLE_S)
    assert crew.schedule.count(SlotState.QUARANTINED) == 0
    watch.watch(100.1 + UNKILLABLE_S)
    assert crew.schedule.count(SlotState.QUARANTINED) == 1
    lease = crew.schedule.lease()
    assert lease is not None
    assert (lease.worker, lease.position) == (1, 0), "its work is done by another"
    end(crew, watch, 0, STALLED)
    assert crew.schedule.count(SlotState.QUARANTINED) == 0
