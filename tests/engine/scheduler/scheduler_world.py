"""A small world around the schedule, for ``test_schedule_search``: workers, kernel and consumers, event by event."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mploader.engine.scheduler.scheduler import Scheduler
from mploader.engine.scheduler.states import Lease, SlotState, Taken


@dataclass(frozen=True)
class Chances:
    """How often each event of the environment may still happen.

    Attributes:
        kills: workers die.
        hangs: workers are killed because they hang; each dies late or never.
        failures: batches turn out to be impossible.
        closes: consumers give up a run.
        holds: what is made ahead is held back, or no longer.
    """

    kills: int = 0
    hangs: int = 0
    failures: int = 0
    closes: int = 0
    holds: int = 0


@dataclass(frozen=True)
class Setting:
    """How a world begins.

    Attributes:
        lengths: batches of each run. The last one of a stream is empty, as the end is found after the last element.
        ahead: which runs nobody asks for at first.
        streams: which runs are the output of a generator, one element a batch.
        ordinal: what dead workers have in hand, as :meth:`Scheduler.worker_lost` wants it.
        backwards: consumers ask for the last batch of a run first.
    """

    chances: Chances
    workers: int = 2
    lengths: tuple[int, ...] = (3,)
    slots: int = 2
    reserved: int = 1
    backlog: int = 2
    ahead: frozenset[int] = frozenset()
    streams: frozenset[int] = frozenset()
    ordinal: int = 0
    backwards: bool = False


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

    lease: Lease
    failed: bool = False
    elements: int = 0
    checksum: int = 0
    is_last: bool = False


class World:
    """A pool in miniature: what the kernel, the workers and the consumers would do, one event at a time.

    What a slot or the trainer's memory holds is (run, position), or None for rubbish. The number of a worker that was
    buried is used again, so that incarnations do not multiply the states.
    """

    def __init__(self, setting: Setting) -> None:
        self.chances = setting.chances
        self.setting = setting
        self.schedule = Scheduler(setting.slots, setting.reserved, setting.backlog)
        self.workers: dict[int, State] = {}
        self.inboxes: dict[int, deque[Lease | int]] = {}
        """Leases, and the runs whose generators to forget."""
        self.outboxes: dict[int, deque[Answer]] = {}
        self.generators: dict[tuple[int, int], int] = {}
        """Elements drawn so far, by (worker, run)."""
        self.slots: list[tuple[int, int] | None] = [None] * setting.slots
        self.memory: dict[int, tuple[int, int] | None] = {}
        self.failed: set[int] = set()
        self.held: list[tuple[int, int]] = []
        self.runs = [self.open(number, length) for number, length in enumerate(setting.lengths)]
        self.positions = [0] * len(self.runs)
        self.unclaimed = set(setting.ahead)
        for _ in range(setting.workers):
            self.start()

    def open(self, number: int, length: int) -> int:
        if number in self.setting.streams:
            return self.schedule.open_stream(number, limit=2)
        return self.schedule.open_run(number, length, claimed=number not in self.setting.ahead)

    def start(self) -> None:
        worker = min(set(range(len(self.workers) + 1)) - self.workers.keys())
        self.workers[worker], self.inboxes[worker], self.outboxes[worker] = State.ALIVE, deque(), deque()
        self.schedule.worker_ready(worker)

    def spend(self, name: str) -> None:
        self.chances = replace(self.chances, **{name: getattr(self.chances, name) - 1})

    # What can happen next

    def events(self) -> Iterator[tuple[str, int]]:
        yield "lease", 0
        for worker in sorted(self.workers):
            yield from ((event, worker) for event in self.events_of(worker))
        for number in self.open_runs():
            yield "claim" if number in self.unclaimed else "take", number
            if self.chances.closes:
                yield "close", number
        for place in range(len(self.held)):
            yield "release", place
        if self.chances.holds:
            yield "hold", 0

    def events_of(self, worker: int) -> Iterator[str]:
        state, inbox = self.workers[worker], self.inboxes[worker]
        if inbox and state not in (State.DEAD, State.DEAD_LATE):
            yield "work"
            if self.chances.failures and isinstance(inbox[0], Lease):
                yield "fail"
        if self.outboxes[worker]:
            yield "receive"
        if state is State.ALIVE and self.chances.kills:
            yield "kill"
        if state is State.ALIVE and self.chances.hangs:
            yield "hang"
        if state is State.KILLED:
            yield "abandon"
        if state in (State.KILLED, State.ABANDONED):
            yield "die"
        if state in (State.DEAD, State.DEAD_LATE):
            yield "bury"

    def open_runs(self) -> list[int]:
        return [number for number, position in enumerate(self.positions) if position < self.setting.lengths[number]]

    # The trainer

    def lease(self, _: int) -> None:
        lease = self.schedule.lease()
        for worker, run in self.schedule.partings():
            if worker in self.workers:
                self.inboxes[worker].append(run)
        if lease is None:
            return
        # That a worker has died by itself may not be known yet.
        assert self.workers[lease.worker] in (State.ALIVE, State.DEAD), "a lease for a worker that was given up"
        if lease.spilled >= 0:
            self.memory[lease.spilled] = self.slots[lease.slot]
        writers = [item.slot for worker, state in self.workers.items() if state not in (State.DEAD, State.DEAD_LATE)
                   for item in self.inboxes[worker] if isinstance(item, Lease)]  # fmt: skip
        assert lease.slot not in writers, "two writers"
        assert all(lease.slot != slot for slot, _ in self.held), "a slot that somebody still reads"
        self.inboxes[lease.worker].append(lease)

    def receive(self, worker: int) -> None:
        answer = self.outboxes[worker].popleft()
        lease = answer.lease
        is_current = self.workers[worker] not in (State.ABANDONED, State.DEAD_LATE)
        if answer.failed:
            assert self.schedule.failed(lease) == is_current
            if is_current:
                self.failed.add(lease.task)
        elif lease.stream >= 0:
            assert is_current == self.schedule.drawn(
                lease, elements=answer.elements, is_last=answer.is_last, checksum=answer.checksum
            )
        else:
            assert self.schedule.filled(lease) == is_current
            assert not self.schedule.filled(lease), "a second result for one lease"

    def hang(self, worker: int) -> None:
        self.spend("hangs")
        self.workers[worker] = State.KILLED
        self.schedule.worker_dying(worker)

    def abandon(self, worker: int) -> None:
        self.workers[worker] = State.ABANDONED
        lost = self.schedule.worker_abandoned(worker, self.setting.ordinal)
        self.failed |= {item.lease.task for item in lost if item.failed}
        self.start()

    def bury(self, worker: int) -> None:
        while self.outboxes[worker]:
            self.receive(worker)
        lost = self.schedule.worker_lost(worker, self.setting.ordinal)
        self.failed |= {item.lease.task for item in lost if item.failed}
        state = self.workers.pop(worker)
        del self.inboxes[worker], self.outboxes[worker]
        self.generators = {key: drawn for key, drawn in self.generators.items() if key[0] != worker}
        if state is State.DEAD:
            self.start()

    def hold(self, _: int) -> None:
        self.spend("holds")
        self.schedule.is_ahead_held = not self.schedule.is_ahead_held

    # Workers and the kernel

    def work(self, worker: int) -> None:
        item = self.inboxes[worker].popleft()
        if not isinstance(item, Lease):
            self.generators.pop((worker, item), None)
            return
        if self.workers[worker] is State.ABANDONED:
            assert self.schedule._slots[item.slot].state is SlotState.QUARANTINED, "a writer that nobody expects"
        self.slots[item.slot] = (item.run, item.position)
        self.outboxes[worker].append(Answer(item) if item.stream < 0 else self.draw(worker, item))

    def draw(self, worker: int, lease: Lease) -> Answer:
        """One element of a generator, or its end, where the generator stands and not where the lease wants it."""
        key = (worker, lease.run)
        if lease.skip >= 0:
            assert lease.checksum == lease.skip, "the checksum is of other elements than those left out"
            self.generators[key] = lease.skip
        last = self.setting.lengths[lease.stream] - 1
        drawn = self.generators.pop(key, last)
        self.slots[lease.slot] = (lease.run, drawn)
        if drawn == last:
            return Answer(lease, is_last=True, checksum=drawn)
        self.generators[key] = drawn + 1
        return Answer(lease, elements=1, checksum=drawn + 1)

    def fail(self, worker: int) -> None:
        self.spend("failures")
        lease = self.inboxes[worker].popleft()
        assert isinstance(lease, Lease)
        self.slots[lease.slot] = None
        self.outboxes[worker].append(Answer(lease, failed=True))

    def kill(self, worker: int) -> None:
        self.spend("kills")
        self.die(worker)

    def die(self, worker: int) -> None:
        self.workers[worker] = State.DEAD_LATE if self.workers[worker] is State.ABANDONED else State.DEAD
        inbox = self.inboxes[worker]
        if inbox and isinstance(inbox[0], Lease):
            self.slots[inbox[0].slot] = None  # half-written

    # Consumers

    def claim(self, number: int) -> None:
        self.unclaimed.discard(number)
        self.schedule.claim(self.runs[number])

    def take(self, number: int) -> None:
        taken = self.schedule.take(self.runs[number], self.wanted(number))
        if taken is not None:
            self.check(number, taken)
            self.positions[number] += 1

    def wanted(self, number: int) -> int:
        """The position of a run that its consumer asks for next."""
        place = self.positions[number]
        return self.setting.lengths[number] - 1 - place if self.setting.backwards else place

    def check(self, number: int, taken: Taken) -> None:
        if taken.failed:
            self.failed.remove(taken.task)
            return
        assert taken.task not in self.failed
        content = self.slots[taken.slot] if taken.slot >= 0 else self.memory.pop(taken.task)
        assert content == (self.runs[number], self.wanted(number)), "a batch with another's bytes"
        if taken.slot < 0:
            return
        if taken.copy:
            self.schedule.release(taken.slot, taken.generation)
            return
        self.held = sorted([*self.held, (taken.slot, taken.generation)])
        assert len(self.held) <= self.setting.slots - self.setting.reserved, "the low-water mark"

    def release(self, place: int) -> None:
        self.schedule.release(*self.held.pop(place))

    def close(self, number: int) -> None:
        self.spend("closes")
        self.schedule.close_run(self.runs[number])
        self.positions[number] = self.setting.lengths[number]
        self.memory = {task: content for task, content in self.memory.items() if self.schedule.has_task(task)}
        self.failed = {task for task in self.failed if self.schedule.has_task(task)}

    # The search

    def settle(self) -> None:
        """Lets everything come to its end that is under way, and checks that nothing is left."""
        self.lease(0)
        ends = ("work", "receive", "die", "bury", "release")
        while under_way := [event for event in self.events() if event[0] in ends]:
            self.do(*under_way[0])
        assert self.schedule.count(SlotState.FREE) == self.setting.slots, f"a slot is lost: {self.schedule}"
        assert not self.generators, "a generator that nobody wants is open"
        assert not self.memory
        assert not self.failed

    def do(self, event: str, number: int) -> None:
        getattr(self, event)(number)

    def key(self) -> tuple[object, ...]:
        """All that decides about the future."""
        return (
            self.schedule.snapshot(), self.chances,
            tuple(
                (worker, self.workers[worker],
                 tuple((item.task, item.slot, item.skip) if isinstance(item, Lease) else item
                       for item in self.inboxes[worker]),
                 tuple((answer.lease.task, answer.lease.slot, answer.failed, answer.elements, answer.is_last)
                       for answer in self.outboxes[worker]))
                for worker in sorted(self.workers)
            ),
            tuple(self.slots), tuple(sorted(self.memory.items())), tuple(self.positions),
            tuple(slot for slot, _ in self.held), tuple(sorted(self.unclaimed)), tuple(sorted(self.failed)),
            tuple(sorted(self.generators.items())),
        )  # fmt: skip
