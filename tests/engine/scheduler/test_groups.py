"""Groups of generators: which inputs are opened when, where they begin, and in which order they are served."""

from __future__ import annotations

import copy
import pathlib
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from mploader.batching.codecs import Fixed
from mploader.batching.layout import BatchLayout
from mploader.batching.spec import ArraySpec
from mploader.engine.ipc.job import GeneratorJob
from mploader.engine.scheduler.scheduler import Scheduler
from mploader.engine.scheduler.states import Assignment, IllegalEventError, Replay, SlotState
from mploader.loader.generator_pool import GeneratorPool
from tests.engine.scheduler.scheduler_world import snapshot
from tests.generators import log_of_shards, same

pytestmark = pytest.mark.usefixtures("workers_in_threads")

DEADLINE_S = 20.0


def started(slots: int = 16, workers: int = 2, backlog: int = 2) -> Scheduler:
    scheduler = Scheduler(slots, 1, backlog)
    for worker in range(workers):
        scheduler.worker_ready(worker)
    return scheduler


def assign_all(scheduler: Scheduler) -> list[Assignment]:
    assignments = []
    while (assignment := scheduler.assign()) is not None:
        assignments.append(assignment)
    return assignments


def draw(scheduler: Scheduler, assignment: Assignment, *, is_last: bool = False) -> None:
    assert scheduler.made(assignment, assignment.input, replay=Replay(), is_last=is_last)


def inputs_and_workers(assignments: list[Assignment]) -> list[tuple[int, int]]:
    return [(assignment.input, assignment.worker) for assignment in assignments]


def test_of_ready_generators_the_one_served_least_recently_comes_first() -> None:
    scheduler = started(workers=1)
    number = scheduler.open_group(3, max_ahead=2, window=3, max_idle=1)
    served = []
    for _ in range(9):
        while assignments := assign_all(scheduler):
            for assignment in assignments:
                draw(scheduler, assignment)
        series, position = next(iter(scheduler.heads(number).items()))
        taken = scheduler.take(series, position)
        assert taken is not None
        scheduler.release(taken.slot, taken.generation)
        served.append(taken.result)
    assert served == [0, 1, 2] * 3


def test_a_generator_begins_in_a_worker_with_nothing_in_hand() -> None:
    scheduler = started()
    scheduler.open_group(3, max_ahead=2, window=3, max_idle=1)
    first = assign_all(scheduler)
    assert inputs_and_workers(first) == [(0, 0), (1, 1), (0, 0), (1, 1)], "input_ 2 waits for a worker"
    for assignment in (first[1], first[3]):
        draw(scheduler, assignment, is_last=True)
    assert inputs_and_workers(assign_all(scheduler)) == [(2, 1), (2, 1)]


def test_no_worker_gets_a_second_assignment_while_a_generator_is_waited_for() -> None:
    scheduler = started(workers=1)
    number = scheduler.open_group(2, max_ahead=4, window=2, max_idle=1)
    (first, second) = assign_all(scheduler)
    assert scheduler.take(scheduler.series_of(number, 1), 0) is None
    draw(scheduler, first)
    assert scheduler.assign() is None
    draw(scheduler, second)
    assert [assignment.input for assignment in assign_all(scheduler)] == [1, 1]


def test_generators_that_have_ended_make_room_for_others_up_to_a_limit() -> None:
    scheduler = started(workers=1)
    number = scheduler.open_group(9, max_ahead=1, window=2, max_idle=3)
    assert len(scheduler.heads(number)) == 2
    ended = 0
    while assignments := assign_all(scheduler):
        for assignment in assignments:
            draw(scheduler, assignment, is_last=True)
            ended += 1
    assert ended == len(scheduler.heads(number)) == 4, "no more are opened with 3 ended, and one more was open"
    taken = scheduler.take(scheduler.series_of(number, 0), 0)
    assert taken is not None
    assert len(scheduler.heads(number)) == 3
    taken = scheduler.take(scheduler.series_of(number, 1), 0)
    assert taken is not None
    assert len(scheduler.heads(number)) == 4, "two that have ended, two to go on with"


def test_generators_that_keep_no_worker_busy_make_room_only_while_the_consumer_waits() -> None:
    scheduler = started(workers=1)
    number = scheduler.open_group(9, max_ahead=1, window=2, max_idle=3)
    (assignment,) = assign_all(scheduler)
    draw(scheduler, assignment)
    (assignment,) = assign_all(scheduler)
    draw(scheduler, assignment)
    assert assign_all(scheduler) == [], "both have made what they may, and nobody waits"
    series = scheduler.series_of(number, 0)
    assert scheduler.take(series, 0) is not None
    assert scheduler.take(series, 1) is None
    assert [assignment.input for assignment in assign_all(scheduler)] == [0]
    (assignment,) = scheduler.assignments(0)
    scheduler.worker_ready(1)
    assert [assignment.input for assignment in assign_all(scheduler)] == [2]


def test_an_input_that_is_asked_for_is_opened_and_a_delivered_one_is_not_opened_again() -> None:
    scheduler = started()
    number = scheduler.open_group(6, max_ahead=1, window=1, max_idle=1)
    series = scheduler.series_of(number, 3)
    assert scheduler.series_of(number, 3) == series
    assert len(scheduler.heads(number)) == 4
    assert scheduler.take(series, 0) is None
    assignment = assign_all(scheduler)[0]
    draw(scheduler, assignment, is_last=True)
    assert scheduler.take(series, 0) is not None
    with pytest.raises(IllegalEventError, match="input 3 of group 0 was delivered before"):
        scheduler.series_of(number, 3)


def test_a_closed_group_leaves_nothing() -> None:
    scheduler = started(slots=4)
    number = scheduler.open_group(6, max_ahead=2, window=3, max_idle=1)
    assignments = assign_all(scheduler)
    draw(scheduler, assignments[0])
    scheduler.close_group(number)
    assert not scheduler.has_group(number)
    for assignment in assignments[1:]:
        draw(scheduler, assignment)
    assert scheduler.slots.count(SlotState.FREE) == 4
    assert assign_all(scheduler) == []
    scheduler.close_group(number)  # a second time is harmless


class World:
    """A pool that reads generators in miniature; the consumer merges two inputs at once, block by block."""

    def __init__(self, lengths: tuple[int, ...], slots: int, kills: int) -> None:
        self.scheduler = started(slots)
        self.lengths = lengths
        self.kills = kills
        self.inboxes: dict[int, deque[Assignment]] = {0: deque(), 1: deque()}
        self.number = self.scheduler.open_group(len(lengths), max_ahead=2, window=2, max_idle=1)
        self.open = [0, 1]
        self.ever_open = {0, 1}
        self.turn = 0
        self.taken = [0] * len(lengths)

    def events(self) -> list[Callable[[World], None]]:
        """Every event that can happen next."""
        found: list[Callable[[World], None]] = [World.assign, World.take]
        found += [partial(World.work, worker=worker) for worker, inbox in self.inboxes.items() if inbox]
        return found + [partial(World.kill, worker=worker) for worker in self.inboxes if self.kills]

    def assign(self) -> None:
        assignment = self.scheduler.assign()
        if assignment is not None:
            if assignment.batch_index == 0:
                assert len(self.scheduler.assignments(assignment.worker)) == 1, "a input_ begins behind another's batch"
            self.inboxes[assignment.worker].append(assignment)

    def work(self, worker: int) -> None:
        assignment = self.inboxes[worker].popleft()
        is_last = assignment.batch_index + 1 >= self.lengths[assignment.input]
        self.scheduler.made(assignment, None, replay=Replay(), is_last=is_last)

    def kill(self, worker: int) -> None:
        self.kills -= 1
        self.scheduler.worker_lost(worker, has_begun=True, offset=0)
        del self.inboxes[worker]
        self.inboxes[worker + 2] = deque()
        self.scheduler.worker_ready(worker + 2)

    def take(self) -> None:
        input_ = self.open[self.turn]
        taken = self.scheduler.take(self.scheduler.series_of(self.number, input_), self.taken[input_])
        if taken is None:
            return
        if taken.slot is not None:
            self.scheduler.release(taken.slot, taken.generation)
        self.taken[input_] += 1
        if self.taken[input_] == self.lengths[input_]:
            following = max(self.ever_open) + 1
            self.open[self.turn : self.turn + 1] = [following] if following < len(self.lengths) else []
            self.ever_open.update(self.open)
        self.turn = (self.turn + 1) % max(1, len(self.open))

    def key(self) -> tuple[object, ...]:
        held = [
            (worker % 2, tuple((assignment.series, assignment.batch_index, assignment.slot) for assignment in inbox))
            for worker, inbox in sorted(self.inboxes.items(), key=lambda item: item[0] % 2)
        ]
        return (snapshot(self.scheduler), tuple(held), tuple(self.open), self.turn, tuple(self.taken), self.kills)


@pytest.mark.parametrize(("lengths", "slots", "kills"), [((2, 1, 1), 2, 0), ((1, 2, 1), 3, 0), ((2, 1), 2, 1)])
def test_every_interleaving_of_a_group_comes_to_its_end(lengths: tuple[int, ...], slots: int, kills: int) -> None:
    first = World(lengths, slots, kills)
    found, before, complete = {first.key(): 0}, {0: set[int]()}, set[int]()
    frontier = deque([first])
    while frontier:
        world = frontier.popleft()
        number = found[world.key()]
        if not world.open:
            assert tuple(world.taken) == lengths
            complete.add(number)
            continue
        for event in world.events():
            after = copy.deepcopy(world)
            event(after)
            place = found.setdefault(after.key(), len(found))
            if place not in before:
                before[place] = set()
                frontier.append(after)
            if after.kills == world.kills:  # progress must be possible without a kill
                before[place].add(number)
    reached, todo = set(complete), list(complete)
    while todo:
        fresh = before[todo.pop()] - reached
        reached |= fresh
        todo += fresh
    assert complete
    assert not set(found.values()) - reached, "states that cannot reach the end"


def open_pool(generator: Any, shards: list[Any], args: tuple[Any, ...] = (), **options: Any) -> GeneratorPool:
    job = GeneratorJob(generator=generator, inputs=shards, args=args, is_batched=options.get("capacity", 0) > 4)
    layout = BatchLayout(Fixed(ArraySpec((), np.dtype(np.int64))), options.get("capacity", 4))
    return GeneratorPool(job, layout, layout.fixed_bytes, 2, options["window"], 300.0)


def test_a_slow_consumer_that_takes_any_gets_all_inputs_in_turn() -> None:
    pool = open_pool(same, [0, 1, 2, 3], window=4)
    blocks = pool.open_pass().any_blocks()
    served = []
    for _ in range(12):
        deadline = time.monotonic() + DEADLINE_S
        while pool.statistics().slots_ready < 8:  # two blocks of each: whatever the workers do, all are ready
            assert time.monotonic() < deadline, "the workers do not fill all inputs"
            time.sleep(0.002)
        served.append(int(next(blocks)[0]))
    assert served == [0, 1, 2, 3] * 3
    pool.close()


@pytest.mark.parametrize("count", [2, 8])
def test_no_worker_is_idle_while_a_shard_is_unopened_behind_short_ones(count: int, tmp_path: pathlib.Path) -> None:
    # The long one goes on when the last short one was opened. The consumer wants the long one first. Of 8 elements two
    # blocks are made, and nobody knows yet that there are no more.
    shards = [("long", 1, ("short 7",)), *[(f"short {number}", count, ()) for number in range(8)]]
    pool = open_pool(log_of_shards, shards, (str(tmp_path),), window=3)
    series = pool.open_pass()
    counts = [sum(len(block) for block in series.blocks(shard)) for shard in range(len(shards))]
    assert counts == [1, *[count] * 8]
    pool.close()


def test_no_worker_is_idle_while_a_shard_waits_behind_a_long_block(tmp_path: pathlib.Path) -> None:
    shards = [("first", 40, ("second", "third")), ("second", 1, ()), ("third", 40, ())]
    pool = open_pool(log_of_shards, shards, (str(tmp_path),), window=3, capacity=40)
    series = pool.open_pass()
    assert [[len(block) for block in series.blocks(shard)] for shard in range(3)] == [[40], [], [40]]
    assert [len(rest) for rest in series.rests()] == [1]
    pool.close()
