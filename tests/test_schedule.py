"""The schedule: single rules first, then every interleaving of events in a small world."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator

import pytest

from mploader.schedule import MAX_ATTEMPTS, Schedule
from mploader.states import SLOT_MOVES, TASK_MOVES, IllegalEventError, Lease, SlotState


def started(slots: int = 4, reserved: int = 1, workers: int = 1, backlog: int = 2) -> Schedule:
    schedule = Schedule(slots, reserved, backlog)
    for worker in range(workers):
        schedule.worker_ready(worker)
    return schedule


def lease_all(schedule: Schedule) -> list[Lease]:
    leases = []
    while (lease := schedule.lease()) is not None:
        leases.append(lease)
    return leases


def finish(schedule: Schedule, lease: Lease) -> bool:
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
    assert {task for task, _ in TASK_MOVES}, "the table of tasks is not empty"


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


class World:
    """A pool in miniature: what the kernel, the workers and the consumers would do, one event at a time."""

    def __init__(self, workers: int, lengths: tuple[int, ...], slots: int, kills: int, reserved: int) -> None:
        self.schedule = Schedule(slots, reserved)
        self.kills = kills
        self.inboxes: dict[int, deque[Lease]] = {}
        self.outboxes: dict[int, deque[Lease]] = {}
        self.alive: dict[int, bool] = {}
        self.slots: list[tuple[int, int] | None] = [None] * slots
        self.memory: dict[int, tuple[int, int] | None] = {}
        self.positions = [0] * len(lengths)
        self.lengths = lengths
        self.held: list[tuple[int, int]] = []
        self.next_worker = 0
        self.runs = [self.schedule.open_run(epoch, length) for epoch, length in enumerate(lengths)]
        for _ in range(workers):
            self.start()

    def start(self) -> None:
        worker = self.next_worker
        self.next_worker += 1
        self.inboxes[worker], self.outboxes[worker], self.alive[worker] = deque(), deque(), True
        self.schedule.worker_ready(worker)

    def events(self) -> Iterator[tuple[str, int]]:
        """Every event that can happen next."""
        yield "lease", 0
        for worker, alive in self.alive.items():
            if alive and self.inboxes[worker]:
                yield "work", worker
            if self.outboxes[worker]:
                yield "receive", worker
            if alive and self.kills:
                yield "kill", worker
            if not alive:
                yield "bury", worker
        for number, position in enumerate(self.positions):
            if position < self.lengths[number]:
                yield "take", number
        if self.held:
            yield "release", 0

    def do(self, event: str, number: int) -> None:
        getattr(self, event)(number)

    def lease(self, _: int) -> None:
        lease = self.schedule.lease()
        if lease is None:
            return
        if lease.spilled >= 0:
            self.memory[lease.spilled] = self.slots[lease.slot]
        writers = [held.slot for worker, box in self.inboxes.items() if self.alive[worker] for held in box]
        assert lease.slot not in writers, "two writers"
        assert all(lease.slot != slot for slot, _ in self.held), "a slot that somebody still reads"
        self.inboxes[lease.worker].append(lease)

    def work(self, worker: int) -> None:
        lease = self.inboxes[worker].popleft()
        self.slots[lease.slot] = (lease.run, lease.position)
        self.outboxes[worker].append(lease)

    def kill(self, worker: int) -> None:
        self.kills -= 1
        self.alive[worker] = False
        if self.inboxes[worker]:  # it died over a half-written slot
            self.slots[self.inboxes[worker][0].slot] = None

    def receive(self, worker: int) -> None:
        lease = self.outboxes[worker].popleft()
        assert finish(self.schedule, lease)

    def bury(self, worker: int) -> None:
        while self.outboxes[worker]:
            self.receive(worker)
        self.schedule.worker_lost(worker, ordinal=self.kills)
        del self.alive[worker], self.inboxes[worker], self.outboxes[worker]
        self.start()

    def take(self, number: int) -> None:
        taken = self.schedule.take(self.runs[number], self.positions[number])
        if taken is None:
            return
        assert not taken.failed
        content = self.slots[taken.slot] if taken.slot >= 0 else self.memory.pop(taken.task)
        assert content == (self.runs[number], self.positions[number]), "a batch with another's bytes"
        self.positions[number] += 1
        if taken.slot < 0:
            return
        if taken.copy:
            self.schedule.release(taken.slot, taken.generation)
        else:
            self.held.append((taken.slot, taken.generation))

    def release(self, _: int) -> None:
        self.schedule.release(*self.held.pop(0))

    def is_complete(self) -> bool:
        return tuple(self.positions) == self.lengths

    def key(self) -> tuple[object, ...]:
        # Workers are told apart by their order only, so that incarnations do not multiply the states.
        names = {worker: place for place, worker in enumerate(self.alive)}
        return (
            self.schedule.snapshot()[:4],
            self.schedule.snapshot()[6],
            tuple(
                (names[worker], self.alive[worker],
                 tuple((lease.task, lease.slot) for lease in self.inboxes[worker]),
                 tuple((lease.task, lease.slot) for lease in self.outboxes[worker]),
                 tuple(lease.task for lease in self.schedule.leases(worker)))
                for worker in self.alive
            ),
            tuple(self.slots), tuple(self.memory.items()), tuple(self.positions),
            tuple(slot for slot, _ in self.held), self.kills,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("workers", "lengths", "slots", "kills", "reserved"),
    [
        pytest.param(2, (3,), 2, 2, 1, id="two workers, three tasks, two slots, two kills"),
        pytest.param(2, (3,), 1, 1, 1, id="one slot"),
        pytest.param(1, (2, 2), 2, 1, 1, id="two runs that want the same slots"),
        pytest.param(2, (2, 1), 2, 0, 2, id="nothing is ever lent"),
    ],
)
@pytest.mark.slow
def test_every_interleaving_delivers_each_task_once_and_none_is_stuck(
    workers: int, lengths: tuple[int, ...], slots: int, kills: int, reserved: int
) -> None:
    first = World(workers, lengths, slots, kills, reserved)
    found = {first.key(): 0}
    complete, before = set(), {0: set[int]()}
    frontier = deque([first])
    while frontier:
        world = frontier.popleft()
        number = found[world.key()]
        if world.is_complete():
            complete.add(number)
            continue
        for event, argument in world.events():
            after = copy.deepcopy(world)
            after.do(event, argument)
            key = after.key()
            if key not in found:
                found[key] = len(found)
                before[found[key]] = set()
                frontier.append(after)
            # A kill is the environment's; progress must be possible without one.
            if event != "kill":
                before[found[key]].add(number)
    reached = set(complete)
    todo = list(complete)
    while todo:
        for number in before[todo.pop()] - reached:
            reached.add(number)
            todo.append(number)
    assert complete
    stuck = set(found.values()) - reached
    assert not stuck, f"{len(stuck)} of {len(found)} states cannot reach the end"
