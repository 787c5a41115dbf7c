"""The scheduler, one rule after the other; ``test_search`` tries all interleavings of its events."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from mploader.engine.scheduler.scheduler import MAX_ATTEMPTS, Scheduler
from mploader.engine.scheduler.states import (
    SLOT_MOVES,
    TASK_MOVES,
    Assignment,
    IllegalEventError,
    Replay,
    SlotState,
    Task,
    TaskState,
)
from tests.engine.scheduler.scheduler_world import snapshot


def started(slots: int = 4, reserved: int = 1, workers: int = 1, backlog: int = 2) -> Scheduler:
    scheduler = Scheduler(slots, reserved, backlog)
    for worker in range(workers):
        scheduler.worker_ready(worker)
    return scheduler


def assign_all(scheduler: Scheduler) -> list[Assignment]:
    assignments = []
    while (assignment := scheduler.assign()) is not None:
        assignments.append(assignment)
    return assignments


def finish(scheduler: Scheduler, assignment: Assignment) -> bool:
    return scheduler.made(assignment, None)


def test_batches_are_assigned_in_order_to_the_worker_with_the_least_to_do() -> None:
    scheduler = started(slots=8, workers=2)
    scheduler.open_series(0, 10)
    held = [(assignment.worker, assignment.batch_index) for assignment in assign_all(scheduler)]
    assert held == [(0, 0), (1, 1), (0, 2), (1, 3)]


def test_a_batch_is_delivered_once_and_its_slot_comes_back() -> None:
    scheduler = started(slots=2)
    series = scheduler.open_series(0, 1)
    assert scheduler.take(series, 0) is None
    (assignment,) = assign_all(scheduler)
    assert scheduler.is_waited_for(assignment.task)
    assert finish(scheduler, assignment)
    assert not finish(scheduler, assignment), "a second result for the same assignment counts for nothing"
    taken = scheduler.take(series, 0)
    assert taken is not None
    assert (taken.failed, taken.copy, taken.slot) == (False, False, assignment.slot)
    assert scheduler.slots.count(SlotState.BORROWED) == 1
    scheduler.release(taken.slot, taken.generation)
    assert scheduler.slots.count(SlotState.FREE) == 2
    assert not scheduler.has_series(series), "a series that is delivered completely is over"


def test_asking_for_a_delivered_batch_again_is_illegal_and_changes_nothing() -> None:
    scheduler = started()
    series = scheduler.open_series(0, 3)
    first = assign_all(scheduler)[0]
    finish(scheduler, first)
    scheduler.take(series, 0)
    before = snapshot(scheduler)
    with pytest.raises(IllegalEventError, match="batch 0 of series 0 was delivered before"):
        scheduler.take(series, 0)
    assert snapshot(scheduler) == before


@pytest.mark.parametrize("state", list(SlotState))
def test_every_slot_event_that_the_table_does_not_have_raises_and_changes_nothing(state: SlotState) -> None:
    scheduler = started(slots=1)
    scheduler.slots[0].state = state
    events = {event for _, event in SLOT_MOVES} - {event for before, event in SLOT_MOVES if before is state}
    before = snapshot(scheduler)
    for event in events:
        with pytest.raises(IllegalEventError):
            scheduler.slots.move(0, event)
    assert snapshot(scheduler) == before


@pytest.mark.parametrize("state", list(TaskState))
def test_every_task_event_that_the_table_does_not_have_raises_and_changes_nothing(state: TaskState) -> None:
    task = Task(5, series=0, batch_index=3, state=state, slot=1)
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
        lambda scheduler, series: scheduler.worker_dying(0),
        lambda scheduler, series: scheduler.claim(series),
        lambda scheduler, series: scheduler.close_series(series),
        lambda scheduler, series: scheduler.worker_lost(0, has_begun=True, offset=1),
        lambda scheduler, series: scheduler.worker_abandoned(0, has_begun=True, offset=1),
        lambda scheduler, series: scheduler.failed(scheduler.assignments(0)[0], None),
        lambda scheduler, series: scheduler.made(scheduler.assignments(0)[0], None),
        lambda scheduler, series: scheduler.take(series, 0),
        lambda scheduler, series: setattr(scheduler, "is_ahead_held", True),
    ],
)
def test_a_snapshot_shows_every_change(change: Callable[[Scheduler, int], object]) -> None:
    scheduler = started()
    series = scheduler.open_series(0, 10, claimed=False)
    scheduler.assign()
    before = snapshot(scheduler)
    change(scheduler, series)
    assert snapshot(scheduler) != before


def test_a_snapshot_distinguishes_generators_by_what_is_committed_and_what_is_to_be_closed() -> None:
    seen = set()
    for max_ahead, checksum in ((2, 7), (2, 8), (3, 7)):
        scheduler = started()
        series = scheduler.open_input(0, max_ahead)
        (first, *_) = assign_all(scheduler)
        scheduler.made(first, None, replay=Replay(1, checksum))
        seen.add(snapshot(scheduler))
        scheduler.close_series(series)
        seen.add(snapshot(scheduler))
        assert scheduler.cancelled() == [(0, series)]
        seen.add(snapshot(scheduler))
    assert len(seen) == 3 + 2, "three that are open, one that is to be closed, one that is"


def test_the_end_of_an_older_use_does_not_free_a_slot() -> None:
    scheduler = started(slots=2)
    series = scheduler.open_series(0, 1)
    finish(scheduler, assign_all(scheduler)[0])
    taken = scheduler.take(series, 0)
    assert taken is not None
    before = snapshot(scheduler)
    with pytest.raises(IllegalEventError, match=r"is in use 1, not 0"):
        scheduler.release(taken.slot, taken.generation - 1)
    assert snapshot(scheduler) == before


def test_a_lost_worker_gives_its_assignments_back_with_the_next_attempt() -> None:
    scheduler = started(slots=4)
    scheduler.open_series(0, 10)
    old = assign_all(scheduler)
    lost = scheduler.worker_lost(0, has_begun=True, offset=5)
    assert [item.assignment for item in lost] == old
    scheduler.worker_ready(1)
    new = assign_all(scheduler)
    assert [(assignment.batch_index, assignment.attempt) for assignment in new] == [(0, 2), (1, 2)]
    assert not finish(scheduler, old[0]), "the dead worker's result comes too late"
    assert finish(scheduler, new[0])


def test_deaths_in_samples_of_a_batch_are_for_the_crash_policy() -> None:
    scheduler = started(slots=4, backlog=1)
    scheduler.open_series(0, 10)
    for worker in range(3 * MAX_ATTEMPTS):
        assign_all(scheduler)
        assert [item.failed for item in scheduler.worker_lost(worker, has_begun=True, offset=7)] == [False]
        scheduler.worker_ready(worker + 1)


def test_an_element_that_kills_three_workers_fails_its_generator() -> None:
    scheduler = started(slots=4, backlog=1)
    scheduler.open_input(0, max_ahead=4)
    failed = []
    for worker, element in enumerate([7, 7, 8, 7]):
        assign_all(scheduler)
        failed += [item.failed for item in scheduler.worker_lost(worker, has_begun=True, offset=element)]
        scheduler.worker_ready(worker + 1)
    assert failed == [False, False, False, True]


def test_a_task_that_kills_three_workers_outside_any_sample_fails() -> None:
    scheduler = started(slots=4, backlog=1)
    series = scheduler.open_series(0, 10)
    failed = []
    for worker in range(MAX_ATTEMPTS):
        assign_all(scheduler)
        failed += [item.failed for item in scheduler.worker_lost(worker, has_begun=True)]
        scheduler.worker_ready(worker + 1)
    assert failed == [False, False, True]
    taken = scheduler.take(series, 0)
    assert taken is not None
    assert taken.failed


def test_the_second_assignment_of_a_dead_worker_is_not_blamed() -> None:
    scheduler = started(slots=4, backlog=2)
    scheduler.open_series(0, 2)
    for worker in range(2 * MAX_ATTEMPTS):
        assign_all(scheduler)
        lost = scheduler.worker_lost(worker, has_begun=True, offset=worker)
        assert not lost[1].failed
        scheduler.worker_ready(worker + 1)


def test_slots_beyond_the_low_water_mark_are_copied() -> None:
    scheduler = started(slots=4, reserved=2, backlog=4)
    series = scheduler.open_series(0, 10)
    copies = []
    for position in range(4):
        for assignment in assign_all(scheduler):
            finish(scheduler, assignment)
        taken = scheduler.take(series, position)
        assert taken is not None
        copies.append(taken.copy)
        if taken.copy:
            scheduler.release(taken.slot, taken.generation)
    assert copies == [False, False, True, True]


def test_a_closed_series_frees_what_it_had_and_what_is_still_being_written() -> None:
    scheduler = started(slots=3, workers=1, backlog=2)
    series = scheduler.open_series(0, 10)
    first, second = assign_all(scheduler)
    finish(scheduler, first)
    scheduler.close_series(series)
    assert scheduler.slots.count(SlotState.FREE) == 2, "the slot being written stays closed"
    assert finish(scheduler, second)
    assert scheduler.slots.count(SlotState.FREE) == 3
    scheduler.close_series(series)  # a second time is harmless


def test_series_side_by_side_share_the_slots() -> None:
    scheduler = started(slots=8, workers=1, backlog=8)
    series = [scheduler.open_series(epoch, 100) for epoch in range(2)]
    assignments = assign_all(scheduler)
    assert [sum(assignment.series == series for assignment in assignments) for series in series] == [4, 4]


def test_a_series_made_ahead_gets_only_what_no_claimed_series_needs() -> None:
    scheduler = started(slots=8, workers=1, backlog=8)
    ahead = scheduler.open_series(1, 100, claimed=False)
    series = scheduler.open_series(0, 3)
    assert [assignment.series for assignment in assign_all(scheduler)] == [series] * 3 + [ahead] * 5


def test_nothing_is_made_ahead_while_a_sample_is_on_trial() -> None:
    scheduler = started(slots=8, workers=2, backlog=2)
    series = scheduler.open_series(0, 2)
    ahead = scheduler.open_series(1, 100, claimed=False)
    held = [assignment for assignment in assign_all(scheduler) if assignment.worker == 0]
    scheduler.worker_lost(0, has_begun=True, offset=5)
    scheduler.worker_ready(2)
    scheduler.is_ahead_held = True
    assert {assignment.series for assignment in held} == {series, ahead}
    assert [(assignment.series, assignment.batch_index) for assignment in assign_all(scheduler)] == [(series, 0)]
    scheduler.claim(ahead)
    assert [assignment.series for assignment in assign_all(scheduler)] == [ahead]
    scheduler.is_ahead_held = False
    third = scheduler.open_series(2, 100, claimed=False)
    for assignment in scheduler.assignments(2):
        finish(scheduler, assignment)
    scheduler.close_series(ahead)
    assert {assignment.series for assignment in assign_all(scheduler)} == {third}


def test_a_waiting_consumer_gets_the_slot_of_a_batch_that_is_not_waited_for() -> None:
    scheduler = started(slots=2, workers=1)
    idle = scheduler.open_series(0, 10)
    for assignment in assign_all(scheduler):
        finish(scheduler, assignment)
    assert scheduler.slots.count(SlotState.READY) == 2
    busy = scheduler.open_series(1, 10)
    assert scheduler.assign() is None
    assert scheduler.take(busy, 0) is None
    assignment = scheduler.assign()
    assert assignment is not None
    assert (assignment.series, assignment.batch_index) == (busy, 0)
    assert assignment.spilled is not None
    assert scheduler.take(idle, 1) is None, "its bytes are still on the way"
    scheduler.moved_out(assignment.spilled, "copied")
    assert finish(scheduler, assignment)
    kept, moved = scheduler.take(idle, 0), scheduler.take(idle, 1)
    assert kept is not None
    assert moved is not None
    assert kept.slot is not None
    assert (moved.slot, moved.task, moved.result) == (None, assignment.spilled, "copied")


def test_an_undying_worker_keeps_its_slots_and_loses_its_tasks() -> None:
    scheduler = started(slots=3, workers=2, backlog=1)
    scheduler.open_series(0, 10)
    hanging, _ = assign_all(scheduler)
    scheduler.worker_abandoned(0, has_begun=True, offset=3)
    assert scheduler.slots.count(SlotState.QUARANTINED) == 1
    scheduler.worker_ready(2)
    again = scheduler.assign()
    assert again is not None
    assert (again.batch_index, again.slot != hanging.slot) == (hanging.batch_index, True)
    scheduler.worker_lost(0, has_begun=True, offset=3)
    assert scheduler.slots.count(SlotState.QUARANTINED) == 0


def test_a_worker_that_was_killed_gets_no_more_assignments() -> None:
    scheduler = started(slots=4, workers=2, backlog=1)
    scheduler.open_series(0, 10)
    scheduler.worker_dying(0)
    assert [assignment.worker for assignment in assign_all(scheduler)] == [1]
    scheduler.worker_lost(0, has_begun=False)
    scheduler.worker_ready(2)
    assert [assignment.worker for assignment in assign_all(scheduler)] == [2]


def test_added_slots_are_used_and_may_be_borrowed() -> None:
    scheduler = started(slots=2, backlog=8)
    series = scheduler.open_series(0, 10)
    first = assign_all(scheduler)
    scheduler.add_slots(2)
    more = assign_all(scheduler)
    assert [assignment.slot for assignment in (*first, *more)] == [0, 1, 2, 3]
    for assignment in (*first, *more):
        scheduler.made(assignment, None)
    taken = [scheduler.take(series, batch_index) for batch_index in range(4)]
    assert [item is not None and item.copy for item in taken] == [False, False, False, True]
