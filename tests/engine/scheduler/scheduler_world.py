"""A small world around the scheduler, for ``test_search``: workers, kernel and consumers, event by event."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mploader.engine.scheduler.scheduler import Scheduler
from mploader.engine.scheduler.states import Assignment, Replay, SlotState, Taken


def snapshot(scheduler: Scheduler) -> tuple[object, ...]:
    """Everything that decides about the future, hashable: two schedulers with one snapshot behave alike.

    Attempts, generations and the next free numbers are left out: they tell one use from another, and decide nothing.
    """
    slots = scheduler.slots
    return (
        tuple((slots[number].state, slots[number].task) for number in range(len(slots))),
        tuple(slots._free),
        scheduler.is_ahead_held,
        tuple(sorted(scheduler._dying)),
        tuple(scheduler._cancelled),
        tuple(
            (task.number, task.series, task.batch_index, task.state, task.slot, task.is_moving, tuple(task.crashes))
            for task in scheduler._tasks.values()
        ),
        tuple((worker, tuple(item.task for item in held)) for worker, held in sorted(scheduler._workers.items())),
        tuple((worker, tuple(item.slot for item in held)) for worker, held in sorted(scheduler._abandoned.items())),
        tuple(
            (number, series.epoch, series.length, series.claimed, series.max_ahead, series.frontier,
             tuple(sorted(series.pending)), tuple(sorted(series.waiting)), series.delivered, series.input,
             series.worker, series.replay, series.first)
            for number, series in scheduler._series.open.items()
        ),
        tuple(
            (number, group.opened, group.takes_any, tuple(group.members))
            for number, group in scheduler._series.groups.items()
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class Chances:
    """How often each event of the environment may still happen.

    Attributes:
        kills: workers die.
        hangs: workers are killed because they hang; each dies late or never.
        failures: batches turn out to be impossible.
        closes: consumers give up a series.
        holds: what is made ahead is held back, or no longer.
        growths: a slot is added.
    """

    kills: int = 0
    hangs: int = 0
    failures: int = 0
    closes: int = 0
    holds: int = 0
    growths: int = 0


@dataclass(frozen=True)
class Setting:
    """How a world begins.

    Attributes:
        lengths: batches of each series. The last one of a generator is empty, as its end is found after the last
            element.
        ahead: which series no consumer asks for at first.
        generators: which series are the output of a generator, one element a batch.
        offset: what dead workers have in hand, as :meth:`Scheduler.worker_lost` takes it.
        backwards: consumers ask for the last batch of a series first.
        max_ahead: how many batches of a generator may be made ahead.
    """

    chances: Chances
    workers: int = 2
    lengths: tuple[int, ...] = (3,)
    slots: int = 2
    reserved: int = 1
    backlog: int = 2
    ahead: frozenset[int] = frozenset()
    generators: frozenset[int] = frozenset()
    offset: int | None = 0
    backwards: bool = False
    max_ahead: int = 2


class State(enum.Enum):
    """How a worker is."""

    ALIVE = enum.auto()
    KILLED = enum.auto()
    """The supervisor has killed it; it may do anything until it dies."""
    ABANDONED = enum.auto()
    """It was killed, does not die, and is replaced."""
    DEAD = enum.auto()
    DEAD_LATE = enum.auto()
    """It was abandoned before."""


@dataclass(frozen=True)
class Answer:
    """What a worker sends."""

    assignment: Assignment
    failed: bool = False
    replay: Replay | None = None
    is_last: bool = False


Content = tuple[int, int] | None
"""What a slot or the trainer's memory holds: (series, batch), or None for rubbish."""


class World:
    """A pool in miniature: what the kernel, the workers and the consumers would do, one event at a time.

    The number of a worker that was buried is used again, so that incarnations do not multiply the states.
    """

    def __init__(self, setting: Setting) -> None:
        self.chances = setting.chances
        self.setting = setting
        self.scheduler = Scheduler(setting.slots, setting.reserved, setting.backlog)
        self.workers: dict[int, State] = {}
        self.inboxes: dict[int, deque[Assignment | int]] = {}
        """Assignments, and the series whose generators to close."""
        self.outboxes: dict[int, deque[Answer]] = {}
        self.generators: dict[tuple[int, int], int] = {}
        """Elements given so far, by (worker, series)."""
        self.slots: list[Content] = [None] * setting.slots
        self.moving: Assignment | None = None
        """The supervisor is copying a spilled batch out of the slot of this assignment, which is not sent yet."""
        self.memory: dict[int, Content] = {}
        self.failed: set[int] = set()
        self.held: list[tuple[int, int]] = []
        self.series = [self.open(number, length) for number, length in enumerate(setting.lengths)]
        self.taken = [0] * len(self.series)
        self.unclaimed = set(setting.ahead)
        for _ in range(setting.workers):
            self.start()

    def open(self, number: int, length: int) -> int:
        if number in self.setting.generators:
            return self.scheduler.open_input(number, self.setting.max_ahead)
        return self.scheduler.open_series(number, length, claimed=number not in self.setting.ahead)

    def start(self) -> None:
        worker = min(set(range(len(self.workers) + 1)) - self.workers.keys())
        self.workers[worker], self.inboxes[worker], self.outboxes[worker] = State.ALIVE, deque(), deque()
        self.scheduler.worker_ready(worker)

    def spend(self, name: str) -> None:
        self.chances = replace(self.chances, **{name: getattr(self.chances, name) - 1})

    # What can happen next

    def events(self) -> Iterator[tuple[str, int]]:
        # The supervisor does one thing at a time: while it copies, it takes in nothing and assigns nothing.
        yield ("move" if self.moving is not None else "assign"), 0
        for worker in sorted(self.workers):
            yield from ((event, worker) for event in self.events_of(worker))
        for number in self.open_series():
            yield "claim" if number in self.unclaimed else "take", number
            if self.chances.closes:
                yield "close", number
        for place in range(len(self.held)):
            yield "release", place
        if self.chances.holds and self.moving is None:
            yield "hold", 0
        if self.chances.growths:
            yield "grow", 0

    def events_of(self, worker: int) -> Iterator[str]:
        state, inbox = self.workers[worker], self.inboxes[worker]
        if inbox and state not in (State.DEAD, State.DEAD_LATE):
            yield "work"
            if self.chances.failures and isinstance(inbox[0], Assignment):
                yield "fail"
        if state is State.ALIVE and self.chances.kills:
            yield "kill"
        if state in (State.KILLED, State.ABANDONED):
            yield "die"
        if self.moving is None:
            yield from self.events_of_supervisor(worker)

    def events_of_supervisor(self, worker: int) -> Iterator[str]:
        state = self.workers[worker]
        if self.outboxes[worker]:
            yield "receive"
        if state is State.ALIVE and self.chances.hangs:
            yield "hang"
        if state is State.KILLED:
            yield "abandon"
        if state in (State.DEAD, State.DEAD_LATE):
            yield "bury"

    def open_series(self) -> list[int]:
        return [number for number, taken in enumerate(self.taken) if taken < self.setting.lengths[number]]

    # The trainer

    def assign(self, _: int) -> None:
        assignment = self.scheduler.assign()
        for worker, series in self.scheduler.cancelled():
            if worker in self.workers:
                self.inboxes[worker].append(series)
        if assignment is None:
            return
        # That a worker has died by itself may not be known yet.
        assert self.workers[assignment.worker] in (State.ALIVE, State.DEAD), "an assignment for an abandoned worker"
        writers = [item.slot for worker, state in self.workers.items() if state not in (State.DEAD, State.DEAD_LATE)
                   for item in self.inboxes[worker] if isinstance(item, Assignment)]  # fmt: skip
        assert assignment.slot not in writers, "two writers"
        assert all(assignment.slot != slot for slot, _ in self.held), "a slot that a consumer still reads"
        if assignment.spilled is not None:
            self.moving = assignment
        else:
            self.inboxes[assignment.worker].append(assignment)

    def move(self, _: int) -> None:
        assert self.moving is not None
        task = self.moving.spilled
        assert task is not None
        if self.scheduler.has_task(task):
            self.memory[task] = self.slots[self.moving.slot]
        self.scheduler.moved_out(task, "copied")
        self.inboxes[self.moving.worker].append(self.moving)
        self.moving = None

    def receive(self, worker: int) -> None:
        answer = self.outboxes[worker].popleft()
        assignment = answer.assignment
        is_current = self.workers[worker] not in (State.ABANDONED, State.DEAD_LATE)
        if answer.failed:
            assert self.scheduler.failed(assignment, "failed") == is_current
            if is_current and self.scheduler.has_task(assignment.task):
                self.failed.add(assignment.task)
        else:
            made = self.scheduler.made(assignment, "made", replay=answer.replay, is_last=answer.is_last)
            assert made == is_current
            assert not self.scheduler.made(assignment, "again"), "a second result for one assignment"

    def hang(self, worker: int) -> None:
        self.spend("hangs")
        self.workers[worker] = State.KILLED
        self.scheduler.worker_dying(worker)

    def abandon(self, worker: int) -> None:
        self.workers[worker] = State.ABANDONED
        lost = self.scheduler.worker_abandoned(worker, has_begun=True, offset=self.setting.offset)
        self.failed |= {item.assignment.task for item in lost if item.failed}
        self.start()

    def bury(self, worker: int) -> None:
        while self.outboxes[worker]:
            self.receive(worker)
        lost = self.scheduler.worker_lost(worker, has_begun=True, offset=self.setting.offset)
        self.failed |= {item.assignment.task for item in lost if item.failed}
        state = self.workers.pop(worker)
        del self.inboxes[worker], self.outboxes[worker]
        self.generators = {key: given for key, given in self.generators.items() if key[0] != worker}
        if state is State.DEAD:
            self.start()

    def hold(self, _: int) -> None:
        self.spend("holds")
        self.scheduler.is_ahead_held = not self.scheduler.is_ahead_held

    def grow(self, _: int) -> None:
        self.spend("growths")
        self.scheduler.add_slots(1)
        self.slots.append(None)

    # Workers and the kernel

    def work(self, worker: int) -> None:
        item = self.inboxes[worker].popleft()
        if not isinstance(item, Assignment):
            self.generators.pop((worker, item), None)
            return
        if self.workers[worker] is State.ABANDONED:
            assert self.scheduler.slots[item.slot].state is SlotState.QUARANTINED, "a writer that is not expected"
        self.slots[item.slot] = (item.series, item.batch_index)
        self.outboxes[worker].append(Answer(item) if item.input is None else self.draw(worker, item, item.input))

    def draw(self, worker: int, assignment: Assignment, number: int) -> Answer:
        """One element of a generator, or its end, where the generator stands and not where the assignment wants it."""
        key = (worker, assignment.series)
        if assignment.replay is not None:
            assert assignment.replay.checksum == assignment.replay.elements, "the checksum is of other elements"
            self.generators[key] = assignment.replay.elements
        last = self.setting.lengths[number] - 1
        given = self.generators.pop(key, last)
        self.slots[assignment.slot] = (assignment.series, given)
        if given == last:
            return Answer(assignment, replay=Replay(given, given), is_last=True)
        self.generators[key] = given + 1
        return Answer(assignment, replay=Replay(given + 1, given + 1))

    def fail(self, worker: int) -> None:
        self.spend("failures")
        assignment = self.inboxes[worker].popleft()
        assert isinstance(assignment, Assignment)
        self.slots[assignment.slot] = None
        self.outboxes[worker].append(Answer(assignment, failed=True))

    def kill(self, worker: int) -> None:
        self.spend("kills")
        self.die(worker)

    def die(self, worker: int) -> None:
        self.workers[worker] = State.DEAD_LATE if self.workers[worker] is State.ABANDONED else State.DEAD
        inbox = self.inboxes[worker]
        if inbox and isinstance(inbox[0], Assignment):
            self.slots[inbox[0].slot] = None  # half-written

    # Consumers

    def claim(self, number: int) -> None:
        self.unclaimed.discard(number)
        self.scheduler.claim(self.series[number])

    def take(self, number: int) -> None:
        taken = self.scheduler.take(self.series[number], self.wanted(number))
        if taken is not None:
            self.check(number, taken)
            self.taken[number] += 1

    def wanted(self, number: int) -> int:
        """The batch of a series that its consumer asks for next."""
        taken = self.taken[number]
        return self.setting.lengths[number] - 1 - taken if self.setting.backwards else taken

    def check(self, number: int, taken: Taken) -> None:
        if taken.failed:
            self.failed.remove(taken.task)
            return
        assert taken.task not in self.failed
        assert taken.result == ("copied" if taken.slot is None else "made")
        content = self.memory.pop(taken.task) if taken.slot is None else self.slots[taken.slot]
        assert content == (self.series[number], self.wanted(number)), "a batch with another's bytes"
        if taken.slot is None:
            return
        if taken.copy:
            self.scheduler.release(taken.slot, taken.generation)
            return
        self.held = sorted([*self.held, (taken.slot, taken.generation)])
        assert len(self.held) <= len(self.slots) - self.setting.reserved, "the low-water mark"

    def release(self, place: int) -> None:
        self.scheduler.release(*self.held.pop(place))

    def close(self, number: int) -> None:
        self.spend("closes")
        self.scheduler.close_series(self.series[number])
        self.taken[number] = self.setting.lengths[number]
        self.memory = {task: content for task, content in self.memory.items() if self.scheduler.has_task(task)}
        self.failed = {task for task in self.failed if self.scheduler.has_task(task)}

    # The search

    def settle(self) -> None:
        """Lets everything come to its end that is under way, and checks that nothing is left."""
        if self.moving is not None:
            self.move(0)
        self.assign(0)
        ends = ("work", "receive", "die", "bury", "release")
        while under_way := [event for event in self.events() if event[0] in ends]:
            self.do(*under_way[0])
        assert self.scheduler.slots.count(SlotState.FREE) == len(self.slots), f"a slot is lost: {self.scheduler}"
        assert not self.generators, "a generator that is not wanted is open"
        assert not self.memory
        assert not self.failed

    def do(self, event: str, number: int) -> None:
        getattr(self, event)(number)

    def key(self) -> tuple[object, ...]:
        """All that decides about the future."""
        return (
            snapshot(self.scheduler), self.chances, self.moving is not None,
            tuple(
                (worker, self.workers[worker],
                 tuple((item.task, item.slot, item.replay) if isinstance(item, Assignment) else item
                       for item in self.inboxes[worker]),
                 tuple((answer.assignment.task, answer.assignment.slot, answer.failed, answer.replay, answer.is_last)
                       for answer in self.outboxes[worker]))
                for worker in sorted(self.workers)
            ),
            tuple(self.slots), tuple(sorted(self.memory.items())), tuple(self.taken),
            tuple(slot for slot, _ in self.held), tuple(sorted(self.unclaimed)), tuple(sorted(self.failed)),
            tuple(sorted(self.generators.items())),
        )  # fmt: skip
