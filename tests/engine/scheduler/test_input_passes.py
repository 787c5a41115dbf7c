"""Passes over many generators: which streams are opened when, where they begin, and in which order they are served."""

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

from mploader.batching.spec import ArraySpec
from mploader.batching.writer import BatchLayout, Fixed
from mploader.engine.scheduler.scheduler import Scheduler
from mploader.engine.scheduler.states import IllegalEventError, Lease, SlotState
from mploader.engine.worker.generators import StreamJob
from mploader.loader.generator_pool import GeneratorPool
from tests.generators import log_of_shards, same

pytestmark = pytest.mark.usefixtures("workers_in_threads")

DEADLINE_S = 20.0


def started(slots: int = 16, workers: int = 2, backlog: int = 2) -> Scheduler:
    schedule = Scheduler(slots, 1, backlog)
    for worker in range(workers):
        schedule.worker_ready(worker)
    return schedule


def lease_all(schedule: Scheduler) -> list[Lease]:
    leases = []
    while (lease := schedule.lease()) is not None:
        leases.append(lease)
    return leases


def draw(schedule: Scheduler, lease: Lease, *, is_last: bool = False) -> None:
    assert schedule.drawn(lease, elements=0 if is_last else 1, is_last=is_last, checksum=0)


def streams_and_workers(leases: list[Lease]) -> list[tuple[int, int]]:
    return [(lease.stream, lease.worker) for lease in leases]


def test_of_ready_streams_the_one_served_least_recently_comes_first() -> None:
    schedule = started(workers=1)
    number = schedule.open_pass(3, limit=2, window=3, most_made=1)
    served = []
    for _ in range(9):
        while leases := lease_all(schedule):
            for lease in leases:
                draw(schedule, lease)
        run, position = next(iter(schedule.heads(number).items()))
        taken = schedule.take(run, position)
        assert taken is not None
        schedule.release(taken.slot, taken.generation)
        served.append(taken.stream)
    assert served == [0, 1, 2] * 3


def test_a_stream_begins_in_a_worker_with_nothing_in_hand() -> None:
    schedule = started()
    schedule.open_pass(3, limit=2, window=3, most_made=1)
    first = lease_all(schedule)
    assert streams_and_workers(first) == [(0, 0), (1, 1), (0, 0), (1, 1)], "stream 2 waits for a worker"
    for lease in (first[1], first[3]):
        draw(schedule, lease, is_last=True)
    assert streams_and_workers(lease_all(schedule)) == [(2, 1), (2, 1)]


def test_no_worker_gets_a_second_lease_while_a_stream_is_waited_for() -> None:
    schedule = started(workers=1)
    number = schedule.open_pass(2, limit=4, window=2, most_made=1)
    (first, second) = lease_all(schedule)
    assert schedule.take(schedule.run_of(number, 1), 0) is None
    draw(schedule, first)
    assert schedule.lease() is None
    draw(schedule, second)
    assert [lease.stream for lease in lease_all(schedule)] == [1, 1]


def test_streams_that_have_ended_make_room_for_others_up_to_a_limit() -> None:
    schedule = started(workers=1)
    number = schedule.open_pass(9, limit=1, window=2, most_made=3)
    assert len(schedule.heads(number)) == 2
    ended = 0
    while leases := lease_all(schedule):
        for lease in leases:
            draw(schedule, lease, is_last=True)
            ended += 1
    assert ended == len(schedule.heads(number)) == 4, "no more are opened with 3 ended, and one more was open"
    taken = schedule.take(schedule.run_of(number, 0), 0)
    assert taken is not None
    assert len(schedule.heads(number)) == 3
    taken = schedule.take(schedule.run_of(number, 1), 0)
    assert taken is not None
    assert len(schedule.heads(number)) == 4, "two that have ended, two to go on with"


def test_streams_that_keep_no_worker_busy_make_room_only_while_the_consumer_waits() -> None:
    schedule = started(workers=1)
    number = schedule.open_pass(9, limit=1, window=2, most_made=3)
    (lease,) = lease_all(schedule)
    draw(schedule, lease)
    (lease,) = lease_all(schedule)
    draw(schedule, lease)
    assert lease_all(schedule) == [], "both have made what they may, and nobody waits"
    run = schedule.run_of(number, 0)
    assert schedule.take(run, 0) is not None
    assert schedule.take(run, 1) is None
    assert [lease.stream for lease in lease_all(schedule)] == [0]
    (lease,) = schedule.leases(0)
    schedule.worker_ready(1)
    assert [lease.stream for lease in lease_all(schedule)] == [2]


def test_a_stream_that_is_asked_for_is_opened_and_a_delivered_one_is_not_opened_again() -> None:
    schedule = started()
    number = schedule.open_pass(6, limit=1, window=1, most_made=1)
    run = schedule.run_of(number, 3)
    assert schedule.run_of(number, 3) == run
    assert len(schedule.heads(number)) == 4
    assert schedule.take(run, 0) is None
    lease = lease_all(schedule)[0]
    draw(schedule, lease, is_last=True)
    assert schedule.take(run, 0) is not None
    with pytest.raises(IllegalEventError, match="stream 3 of pass 0 was delivered before"):
        schedule.run_of(number, 3)


def test_a_closed_pass_leaves_nothing() -> None:
    schedule = started(slots=4)
    number = schedule.open_pass(6, limit=2, window=3, most_made=1)
    leases = lease_all(schedule)
    draw(schedule, leases[0])
    schedule.close_pass(number)
    assert not schedule.has_pass(number)
    for lease in leases[1:]:
        draw(schedule, lease)
    assert schedule.count(SlotState.FREE) == 4
    assert lease_all(schedule) == []
    schedule.close_pass(number)  # a second time is harmless


class World:
    """A pool that reads generators in miniature; the consumer merges two streams at once, block by block."""

    def __init__(self, lengths: tuple[int, ...], slots: int, kills: int) -> None:
        self.schedule = started(slots)
        self.lengths = lengths
        self.kills = kills
        self.inboxes: dict[int, deque[Lease]] = {0: deque(), 1: deque()}
        self.number = self.schedule.open_pass(len(lengths), limit=2, window=2, most_made=1)
        self.open = [0, 1]
        self.ever_open = {0, 1}
        self.turn = 0
        self.taken = [0] * len(lengths)

    def events(self) -> list[Callable[[World], None]]:
        """Every event that can happen next."""
        found: list[Callable[[World], None]] = [World.lease, World.take]
        found += [partial(World.work, worker=worker) for worker, inbox in self.inboxes.items() if inbox]
        return found + [partial(World.kill, worker=worker) for worker in self.inboxes if self.kills]

    def lease(self) -> None:
        lease = self.schedule.lease()
        if lease is not None:
            if lease.position == 0:
                assert len(self.schedule.leases(lease.worker)) == 1, "a stream begins behind another's batch"
            self.inboxes[lease.worker].append(lease)

    def work(self, worker: int) -> None:
        lease = self.inboxes[worker].popleft()
        is_last = lease.position + 1 >= self.lengths[lease.stream]
        self.schedule.drawn(lease, elements=1, is_last=is_last, checksum=0)

    def kill(self, worker: int) -> None:
        self.kills -= 1
        self.schedule.worker_lost(worker, ordinal=0)
        del self.inboxes[worker]
        self.inboxes[worker + 2] = deque()
        self.schedule.worker_ready(worker + 2)

    def take(self) -> None:
        stream = self.open[self.turn]
        taken = self.schedule.take(self.schedule.run_of(self.number, stream), self.taken[stream])
        if taken is None:
            return
        if taken.slot >= 0:
            self.schedule.release(taken.slot, taken.generation)
        self.taken[stream] += 1
        if self.taken[stream] == self.lengths[stream]:
            following = max(self.ever_open) + 1
            self.open[self.turn : self.turn + 1] = [following] if following < len(self.lengths) else []
            self.ever_open.update(self.open)
        self.turn = (self.turn + 1) % max(1, len(self.open))

    def key(self) -> tuple[object, ...]:
        held = [
            (worker % 2, tuple((lease.run, lease.position, lease.slot) for lease in inbox))
            for worker, inbox in sorted(self.inboxes.items(), key=lambda item: item[0] % 2)
        ]
        return (self.schedule.snapshot(), tuple(held), tuple(self.open), self.turn, tuple(self.taken), self.kills)


@pytest.mark.parametrize(("lengths", "slots", "kills"), [((2, 1, 1), 2, 0), ((1, 2, 1), 3, 0), ((2, 1), 2, 1)])
def test_every_interleaving_of_a_pass_comes_to_its_end(lengths: tuple[int, ...], slots: int, kills: int) -> None:
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
    job = StreamJob(generator, shards, args, is_batched=options.get("capacity", 0) > 4, prepare=None)
    layout = BatchLayout(Fixed(ArraySpec((), np.dtype(np.int64))), options.get("capacity", 4))
    return GeneratorPool(job, layout, layout.fixed_bytes, 2, options["window"], 300.0)


def test_a_slow_consumer_that_takes_any_gets_all_streams_in_turn() -> None:
    pool = open_pool(same, [0, 1, 2, 3], window=4)
    blocks = pool.open_pass().any_blocks()
    served = []
    for _ in range(12):
        deadline = time.monotonic() + DEADLINE_S
        while pool.statistics().slots_ready < 8:  # two blocks of each: whatever the workers do, all are ready
            assert time.monotonic() < deadline, "the workers do not fill all streams"
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
    run = pool.open_pass()
    counts = [sum(len(block) for block in run.blocks(shard)) for shard in range(len(shards))]
    assert counts == [1, *[count] * 8]
    pool.close()


def test_no_worker_is_idle_while_a_shard_waits_behind_a_long_block(tmp_path: pathlib.Path) -> None:
    shards = [("first", 40, ("second", "third")), ("second", 1, ()), ("third", 40, ())]
    pool = open_pool(log_of_shards, shards, (str(tmp_path),), window=3, capacity=40)
    run = pool.open_pass()
    assert [[len(block) for block in run.blocks(shard)] for shard in range(3)] == [[40], [], [40]]
    assert [len(rest) for rest in run.rests()] == [1]
    pool.close()
