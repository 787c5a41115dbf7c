"""Slots of workers that do not die: what is left is kept for the workers, and when nothing is left, that is known."""

from __future__ import annotations

from mploader.engine.scheduler.scheduler import Scheduler
from mploader.engine.scheduler.states import Lease, SlotState, Taken


def started(slots: int, reserved: int) -> Scheduler:
    schedule = Scheduler(slots, reserved)
    schedule.worker_ready(0)
    return schedule


def lease(schedule: Scheduler) -> Lease:
    found = schedule.lease()
    assert found is not None
    return found


def take(schedule: Scheduler, run: int, position: int) -> Taken:
    taken = schedule.take(run, position)
    assert taken is not None
    return taken


def hang(schedule: Scheduler, worker: int) -> None:
    """A worker hangs in the kernel, and another one takes its place."""
    schedule.worker_abandoned(worker, 0)
    schedule.worker_ready(worker + 1)


def test_a_slot_in_quarantine_counts_as_one_that_is_lent() -> None:
    schedule = started(slots=4, reserved=1)
    run = schedule.open_run(0, 10)
    first, _ = lease(schedule), lease(schedule)
    schedule.filled(first)
    assert not take(schedule, run, 0).copy
    hang(schedule, 0)
    schedule.filled(lease(schedule))
    assert not take(schedule, run, 1).copy
    last = lease(schedule)
    schedule.filled(last)
    taken = take(schedule, run, 2)
    assert taken.copy, "one slot is in quarantine, two are lent, and the last one is kept for the workers"
    schedule.release(taken.slot, taken.generation)
    assert lease(schedule).slot == last.slot


def test_slots_in_quarantine_and_lent_ones_together_starve_who_waits() -> None:
    schedule = started(slots=2, reserved=1)
    run = schedule.open_run(0, 5)
    first, _ = lease(schedule), lease(schedule)
    schedule.filled(first)
    lent = take(schedule, run, 0)
    hang(schedule, 0)
    assert not lent.copy
    assert not schedule.is_starved, "nobody waits"
    assert schedule.take(run, 1) is None
    assert schedule.lease() is None
    assert schedule.is_starved
    schedule.release(lent.slot, lent.generation)
    assert not schedule.is_starved, "the lent slot came back"
    assert lease(schedule).position == 1


def test_a_worker_that_dies_after_all_ends_the_famine() -> None:
    schedule = started(slots=2, reserved=1)
    run = schedule.open_run(0, 5)
    first, _ = lease(schedule), lease(schedule)
    schedule.filled(first)
    take(schedule, run, 0)
    hang(schedule, 0)
    schedule.take(run, 1)
    assert schedule.is_starved
    schedule.worker_lost(0, None)
    assert schedule.count(SlotState.QUARANTINED) == 0
    assert not schedule.is_starved
    assert lease(schedule).position == 1


def test_a_ready_batch_can_make_room_so_nobody_starves() -> None:
    schedule = started(slots=2, reserved=1)
    idle = schedule.open_run(0, 5)
    first, _ = lease(schedule), lease(schedule)
    schedule.filled(first)
    hang(schedule, 0)
    busy = schedule.open_run(1, 5)
    assert schedule.take(busy, 0) is None
    assert not schedule.is_starved
    given = lease(schedule)
    assert (given.run, given.position, given.spilled >= 0) == (busy, 0, True)
    assert take(schedule, idle, 0).slot == -1


def test_lent_slots_alone_starve_nobody() -> None:
    """They cannot be all: some are never lent."""
    schedule = started(slots=2, reserved=1)
    run = schedule.open_run(0, 5)
    schedule.filled(lease(schedule))
    take(schedule, run, 0)
    assert schedule.take(run, 1) is None
    assert not schedule.is_starved
