"""Slots of workers that do not die: what is left is kept for the workers, and when nothing is left, that is known."""

from __future__ import annotations

from mploader.engine.scheduler.scheduler import Scheduler
from mploader.engine.scheduler.states import Assignment, SlotState, Taken


def started(slots: int, reserved: int) -> Scheduler:
    scheduler = Scheduler(slots, reserved)
    scheduler.worker_ready(0)
    return scheduler


def assignment(scheduler: Scheduler) -> Assignment:
    found = scheduler.assign()
    assert found is not None
    return found


def take(scheduler: Scheduler, series: int, position: int) -> Taken:
    taken = scheduler.take(series, position)
    assert taken is not None
    return taken


def moved_out(scheduler: Scheduler, assignment: Assignment, series: int) -> Taken:
    """The spilled batch of an assignment, which is batch 0 of a series."""
    assert assignment.spilled is not None
    scheduler.moved_out(assignment.spilled, None)
    return take(scheduler, series, 0)


def hang(scheduler: Scheduler, worker: int) -> None:
    """A worker hangs in the kernel, and another one takes its place."""
    scheduler.worker_abandoned(worker, has_begun=True, offset=0)
    scheduler.worker_ready(worker + 1)


def test_a_slot_in_quarantine_counts_as_one_that_is_lent() -> None:
    scheduler = started(slots=4, reserved=1)
    series = scheduler.open_series(0, 10)
    first, _ = assignment(scheduler), assignment(scheduler)
    scheduler.made(first, None)
    assert not take(scheduler, series, 0).copy
    hang(scheduler, 0)
    scheduler.made(assignment(scheduler), None)
    assert not take(scheduler, series, 1).copy
    last = assignment(scheduler)
    scheduler.made(last, None)
    taken = take(scheduler, series, 2)
    assert taken.copy, "one slot is in quarantine, two are lent, and the last one is kept for the workers"
    scheduler.release(taken.slot, taken.generation)
    assert assignment(scheduler).slot == last.slot


def test_slots_in_quarantine_and_lent_ones_together_starve_who_waits() -> None:
    scheduler = started(slots=2, reserved=1)
    series = scheduler.open_series(0, 5)
    first, _ = assignment(scheduler), assignment(scheduler)
    scheduler.made(first, None)
    lent = take(scheduler, series, 0)
    hang(scheduler, 0)
    assert not lent.copy
    assert not scheduler.is_starved, "nobody waits"
    assert scheduler.take(series, 1) is None
    assert scheduler.assign() is None
    assert scheduler.is_starved
    scheduler.release(lent.slot, lent.generation)
    assert not scheduler.is_starved, "the lent slot came back"
    assert assignment(scheduler).batch_index == 1


def test_a_worker_that_dies_after_all_ends_the_famine() -> None:
    scheduler = started(slots=2, reserved=1)
    series = scheduler.open_series(0, 5)
    first, _ = assignment(scheduler), assignment(scheduler)
    scheduler.made(first, None)
    take(scheduler, series, 0)
    hang(scheduler, 0)
    scheduler.take(series, 1)
    assert scheduler.is_starved
    scheduler.worker_lost(0, has_begun=False)
    assert scheduler.slots.count(SlotState.QUARANTINED) == 0
    assert not scheduler.is_starved
    assert assignment(scheduler).batch_index == 1


def test_a_ready_batch_can_make_room_so_nobody_starves() -> None:
    scheduler = started(slots=2, reserved=1)
    idle = scheduler.open_series(0, 5)
    first, _ = assignment(scheduler), assignment(scheduler)
    scheduler.made(first, None)
    hang(scheduler, 0)
    busy = scheduler.open_series(1, 5)
    assert scheduler.take(busy, 0) is None
    assert not scheduler.is_starved
    given = assignment(scheduler)
    assert (given.series, given.batch_index, given.spilled is not None) == (busy, 0, True)
    assert moved_out(scheduler, given, idle).slot is None


def test_lent_slots_alone_starve_nobody() -> None:
    """They cannot be all: some are never lent."""
    scheduler = started(slots=2, reserved=1)
    series = scheduler.open_series(0, 5)
    scheduler.made(assignment(scheduler), None)
    take(scheduler, series, 0)
    assert scheduler.take(series, 1) is None
    assert not scheduler.is_starved
