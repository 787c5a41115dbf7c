"""The schedule, one rule after the other; ``test_schedule_search`` tries all interleavings of its events."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from mploader.engine.scheduler.scheduler import MAX_ATTEMPTS, Scheduler
from mploader.engine.scheduler.states import (
    SLOT_MOVES,
    TASK_MOVES,
    IllegalEventError,
    Lease,
    SlotState,
    Task,
    TaskState,
)


def started(slots: int = 4, reserved: int = 1, workers: int = 1, backlog: int = 2) -> Scheduler:
    schedule = Scheduler(slots, reserved, backlog)
    for worker in range(workers):
        schedule.worker_ready(worker)
    return schedule


def lease_all(schedule: Scheduler) -> list[Lease]:
    leases = []
    while (lease := schedule.lease()) is not None:
        leases.append(lease)
    return leases


def finish(schedule: Scheduler, lease: Lease) -> bool:
    return schedule.filled(lease)


def test_positions_are_leased_in_order_to_the_worker_with_the_least_to_do() -> None:
    schedule = started(slots=8, workers=2)
    schedule.open_run(0, 10)
    assert [(lease.worker, lease.position) for lease in lease_all(schedule)] == [(0, 0), (1, 1), (0, 2), (1, 3)]


def test_a_batch_is_delivered_once_and_its_slot_comes_back() -> None:
    schedule = started(slots=2)
    run = schedule.open_run(0, 1)
    assert schedule.take(run, 0) is None
    (lease,) = lease_all(schedule)
    assert schedule.is_waited_for(lease.task)
    assert finish(schedule, lease)
    assert not finish(schedule, lease), "a second result for the same lease counts for nothing"
    taken = schedule.take(run, 0)
    assert taken is not None
    assert (taken.failed, taken.copy, taken.slot) == (False, False, lease.slot)
    assert schedule.count(SlotState.LENT) == 1
    schedule.release(taken.slot, taken.generation)
    assert schedule.count(SlotState.FREE) == 2
    assert not schedule.has_run(run), "a run that is delivered completely is over"


def test_asking_for_a_delivered_position_again_is_illegal_and_changes_nothing() -> None:
    schedule = started()
    run = schedule.open_run(0, 3)
    first = lease_all(schedule)[0]
    finish(schedule, first)
    schedule.take(run, 0)
    before = schedule.snapshot()
    with pytest.raises(IllegalEventError, match="position 0 of run 0 was delivered before"):
        schedule.take(run, 0)
    assert schedule.snapshot() == before


@pytest.mark.parametrize("state", list(SlotState))
def test_every_slot_event_that_the_table_does_not_have_raises_and_changes_nothing(state: SlotState) -> None:
    schedule = started(slots=1)
    schedule._slots[0].state = state
    events = {event for _, event in SLOT_MOVES} - {event for before, event in SLOT_MOVES if before is state}
    before = schedule.snapshot()
    for event in events:
        with pytest.raises(IllegalEventError):
            schedule._move_slot(0, event)
    assert schedule.snapshot() == before


@pytest.mark.parametrize("state", list(TaskState))
def test_every_task_event_that_the_table_does_not_have_raises_and_changes_nothing(state: TaskState) -> None:
    task = Task(5, run=0, position=3, state=state, slot=1)
    before = copy.copy(task)
    events = {event for _, event in TASK_MOVES} - {event for before, event in TASK_MOVES if before is state}
    assert events
    for event in events:
        with pytest.raises(IllegalEventError, match=f"task 5 is {state.name}: {event} is impossible"):
            task.move(event)
    assert task == before


@pytest.mark.parametrize(
    "change",
    [
        lambda schedule, run: schedule.worker_dying(0),
        lambda schedule, run: schedule.claim(run),
        lambda schedule, run: schedule.close_run(run),
        lambda schedule, run: schedule.worker_lost(0, ordinal=1),
        lambda schedule, run: schedule.worker_abandoned(0, ordinal=1),
        lambda schedule, run: schedule.failed(schedule.leases(0)[0]),
        lambda schedule, run: schedule.filled(schedule.leases(0)[0]),
        lambda schedule, run: schedule.take(run, 0),
        lambda schedule, run: setattr(schedule, "is_ahead_held", True),
    ],
)
def test_a_snapshot_tells_of_every_change(change: Callable[[Scheduler, int], object]) -> None:
    schedule = started()
    run = schedule.open_run(0, 10, claimed=False)
    schedule.lease()
    before = schedule.snapshot()
    change(schedule, run)
    assert schedule.snapshot() != before


def test_a_snapshot_tells_streams_apart_by_what_was_drawn_and_what_is_to_be_forgotten() -> None:
    seen = set()
    for limit, checksum in ((2, 7), (2, 8), (3, 7)):
        schedule = started()
        run = schedule.open_stream(0, limit)
        (first, *_) = lease_all(schedule)
        schedule.drawn(first, elements=1, is_last=False, checksum=checksum)
        seen.add(schedule.snapshot())
        schedule.close_run(run)
        seen.add(schedule.snapshot())
        assert schedule.partings() == [(0, run)]
        seen.add(schedule.snapshot())
    assert len(seen) == 3 + 2, "three that are open, one that is to be forgotten, one that is"


def test_the_end_of_an_older_use_does_not_free_a_slot() -> None:
    schedule = started(slots=2)
    run = schedule.open_run(0, 1)
    finish(schedule, lease_all(schedule)[0])
    taken = schedule.take(run, 0)
    assert taken is not None
    before = schedule.snapshot()
    with pytest.raises(IllegalEventError, match=r"is in use 1, not 0"):
        schedule.release(taken.slot, taken.generation - 1)
    assert schedule.snapshot() == before


def test_a_lost_worker_gives_its_leases_back_with_the_next_attempt() -> None:
    schedule = started(slots=4)
    schedule.open_run(0, 10)
    old = lease_all(schedule)
    lost = schedule.worker_lost(0, ordinal=5)
    assert [item.lease for item in lost] == old
    schedule.worker_ready(1)
    new = lease_all(schedule)
    assert [(lease.position, lease.attempt) for lease in new] == [(0, 2), (1, 2)]
    assert not finish(schedule, old[0]), "the dead worker's result comes too late"
    assert finish(schedule, new[0])


def test_deaths_in_samples_of_a_batch_are_for_others_to_judge() -> None:
    schedule = started(slots=4, backlog=1)
    schedule.open_run(0, 10)
    for worker in range(3 * MAX_ATTEMPTS):
        lease_all(schedule)
        assert [item.failed for item in schedule.worker_lost(worker, ordinal=7)] == [False]
        schedule.worker_ready(worker + 1)


def test_an_element_that_kills_three_workers_fails_its_stream() -> None:
    schedule = started(slots=4, backlog=1)
    schedule.open_stream(0, limit=4)
    failed = []
    for worker, element in enumerate([7, 7, 8, 7]):
        lease_all(schedule)
        failed += [item.failed for item in schedule.worker_lost(worker, ordinal=element)]
        schedule.worker_ready(worker + 1)
    assert failed == [False, False, False, True]


def test_a_task_that_kills_three_workers_outside_any_sample_fails() -> None:
    schedule = started(slots=4, backlog=1)
    run = schedule.open_run(0, 10)
    failed = []
    for worker in range(MAX_ATTEMPTS):
        lease_all(schedule)
        failed += [item.failed for item in schedule.worker_lost(worker, ordinal=-1)]
        schedule.worker_ready(worker + 1)
    assert failed == [False, False, True]
    taken = schedule.take(run, 0)
    assert taken is not None
    assert taken.failed


def test_the_second_lease_of_a_dead_worker_is_not_blamed() -> None:
    schedule = started(slots=4, backlog=2)
    schedule.open_run(0, 2)
    for worker in range(2 * MAX_ATTEMPTS):
        lease_all(schedule)
        lost = schedule.worker_lost(worker, ordinal=worker)
        assert not lost[1].failed
        schedule.worker_ready(worker + 1)


def test_slots_beyond_the_low_water_mark_are_copied() -> None:
    schedule = started(slots=4, reserved=2, backlog=4)
    run = schedule.open_run(0, 10)
    copies = []
    for position in range(4):
        for lease in lease_all(schedule):
            finish(schedule, lease)
        taken = schedule.take(run, position)
        assert taken is not None
        copies.append(taken.copy)
        if taken.copy:
            schedule.release(taken.slot, taken.generation)
    assert copies == [False, False, True, True]


def test_an_abandoned_run_frees_what_it_had_and_what_is_still_being_written() -> None:
    schedule = started(slots=3, workers=1, backlog=2)
    run = schedule.open_run(0, 10)
    first, second = lease_all(schedule)
    finish(schedule, first)
    schedule.close_run(run)
    assert schedule.count(SlotState.FREE) == 2, "the slot being written stays closed"
    assert finish(schedule, second)
    assert schedule.count(SlotState.FREE) == 3
    schedule.close_run(run)  # a second time is harmless


def test_runs_side_by_side_share_the_slots() -> None:
    schedule = started(slots=8, workers=1, backlog=8)
    runs = [schedule.open_run(epoch, 100) for epoch in range(2)]
    leases = lease_all(schedule)
    assert [sum(lease.run == run for lease in leases) for run in runs] == [4, 4]


def test_a_run_made_ahead_gets_only_what_no_claimed_run_needs() -> None:
    schedule = started(slots=8, workers=1, backlog=8)
    ahead = schedule.open_run(1, 100, claimed=False)
    run = schedule.open_run(0, 3)
    assert [lease.run for lease in lease_all(schedule)] == [run] * 3 + [ahead] * 5


def test_nothing_is_made_ahead_while_a_sample_is_on_trial() -> None:
    schedule = started(slots=8, workers=2, backlog=2)
    run = schedule.open_run(0, 2)
    ahead = schedule.open_run(1, 100, claimed=False)
    held = [lease for lease in lease_all(schedule) if lease.worker == 0]
    schedule.worker_lost(0, ordinal=5)
    schedule.worker_ready(2)
    schedule.is_ahead_held = True
    assert {lease.run for lease in held} == {run, ahead}
    assert [(lease.run, lease.position) for lease in lease_all(schedule)] == [(run, 0)]
    schedule.claim(ahead)
    assert [lease.run for lease in lease_all(schedule)] == [ahead]
    schedule.is_ahead_held = False
    third = schedule.open_run(2, 100, claimed=False)
    for lease in schedule.leases(2):
        finish(schedule, lease)
    schedule.close_run(ahead)
    assert {lease.run for lease in lease_all(schedule)} == {third}


def test_a_waiting_consumer_gets_the_slot_of_a_batch_that_nobody_waits_for() -> None:
    schedule = started(slots=2, workers=1)
    idle = schedule.open_run(0, 10)
    for lease in lease_all(schedule):
        finish(schedule, lease)
    assert schedule.count(SlotState.READY) == 2
    busy = schedule.open_run(1, 10)
    assert schedule.lease() is None
    assert schedule.take(busy, 0) is None
    lease = schedule.lease()
    assert lease is not None
    assert (lease.run, lease.position) == (busy, 0)
    assert finish(schedule, lease)
    kept, moved = schedule.take(idle, 0), schedule.take(idle, 1)
    assert kept is not None
    assert moved is not None
    assert kept.slot >= 0
    assert (moved.slot, moved.task) == (-1, lease.spilled), "the batch needed last has made room"


def test_an_undying_worker_keeps_its_slots_and_loses_its_tasks() -> None:
    schedule = started(slots=3, workers=2, backlog=1)
    schedule.open_run(0, 10)
    hanging, _ = lease_all(schedule)
    schedule.worker_abandoned(0, ordinal=3)
    assert schedule.count(SlotState.QUARANTINED) == 1
    schedule.worker_ready(2)
    again = schedule.lease()
    assert again is not None
    assert (again.position, again.slot != hanging.slot) == (hanging.position, True)
    schedule.worker_lost(0, ordinal=3)
    assert schedule.count(SlotState.QUARANTINED) == 0


def test_a_worker_that_was_killed_gets_no_more_leases() -> None:
    schedule = started(slots=4, workers=2, backlog=1)
    schedule.open_run(0, 10)
    schedule.worker_dying(0)
    assert [lease.worker for lease in lease_all(schedule)] == [1]
    schedule.worker_lost(0, ordinal=None)
    schedule.worker_ready(2)
    assert [lease.worker for lease in lease_all(schedule)] == [2]
