"""What consumers and the supervisor thread share, with neither workers nor shared memory."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, cast

import pytest

from mploader.engine.ipc.arena import Arena
from mploader.engine.scheduler.scheduler import Scheduler
from mploader.engine.scheduler.states import SlotState, Taken
from mploader.engine.supervisor.ready_batch import ReadyBatch
from mploader.engine.supervisor.shared_state import PoolState
from mploader.errors import ArgumentError, ClosedError, LoaderError, SampleError, WorkerError

WAIT_S = 30.0


class FakeArena:
    def __init__(self) -> None:
        self.released: SimpleQueue[tuple[int, int]] = SimpleQueue()


@pytest.fixture
def arena() -> FakeArena:
    return FakeArena()


@pytest.fixture
def state(arena: FakeArena) -> Iterator[PoolState]:
    """A state with two slots and one worker that can be given assignments; there is no thread to wake."""
    made = PoolState(cast(Arena, arena), num_workers=1)
    made.scheduler = Scheduler(slots=2, reserved=1)
    made.scheduler.worker_ready(0)
    yield made
    with made.lock:
        made.close()


def scheduler_of(state: PoolState) -> Scheduler:
    assert state.scheduler is not None
    return state.scheduler


def make(state: PoolState, result: ReadyBatch) -> int:
    """Does what the supervisor thread does for one batch; returns the number of its task."""
    assignment = scheduler_of(state).assign()
    assert assignment is not None
    assert scheduler_of(state).made(assignment, result)
    state.changed.notify_all()
    return assignment.task


def is_woken(state: PoolState) -> bool:
    """Whether the supervisor thread would wake; a second call returns False."""
    woken = bool(select.select([state.wake_fd], [], [], 0)[0])
    if woken:
        state.drain_wake()
    return woken


def wants(heads: dict[int, int]) -> Callable[[Scheduler], dict[int, int]]:
    """What a consumer wants: a batch index for each series."""
    return lambda scheduler: heads


def take(state: PoolState, heads: dict[int, int]) -> tuple[int, Taken]:
    """Takes a batch that is ready: the series, and what was taken."""
    found = state.take(wants(heads))
    assert found is not None
    return found


def taking(state: PoolState, heads: dict[int, int]) -> tuple[threading.Thread, list[Any]]:
    """A consumer that waits for a batch, and what it has got."""
    got: list[Any] = []

    def take() -> None:
        with state.lock:
            try:
                got.append(state.take(wants(heads)))
            except LoaderError as error:
                got.append(error)

    consumer = threading.Thread(target=take)
    consumer.start()
    assert select.select([state.wake_fd], [], [], WAIT_S)[0], "it wakes the supervisor thread before it waits"
    return consumer, got


def test_a_batch_is_taken_with_its_result(state: PoolState) -> None:
    with state.lock:
        series = scheduler_of(state).open_series(0, 2)
        result = ReadyBatch(samples=4, size=100)
        task = make(state, result)
        assert scheduler_of(state).result_of(task) is result
        found, taken = take(state, {series: 0})
        assert (found, taken.result, taken.failed) == (series, result, False)
        assert scheduler_of(state).result_of(task) is None
        assert scheduler_of(state).slots.count(SlotState.BORROWED) == 1


def test_nothing_is_wanted_of_a_group_that_is_over(state: PoolState) -> None:
    with state.lock:
        assert state.take(wants({})) is None


def test_a_batch_is_delivered_once(state: PoolState) -> None:
    with state.lock:
        series = scheduler_of(state).open_series(0, 2)
        make(state, ReadyBatch(samples=4))
        take(state, {series: 0})
        with pytest.raises(ArgumentError, match="batch 0 was delivered before"):
            state.take(wants({series: 0}))


def test_of_several_series_the_one_that_is_ready_is_taken(state: PoolState) -> None:
    with state.lock:
        slow, quick = (scheduler_of(state).open_series(epoch, 2) for epoch in range(2))
        scheduler_of(state).take(quick, 0)  # it is waited for, so it is made first
        make(state, ReadyBatch(samples=9))
        series, taken = take(state, {slow: 0, quick: 0})
        assert (series, taken.result.samples) == (quick, 9)


def test_a_consumer_waits_until_its_batch_is_there(state: PoolState) -> None:
    with state.lock:
        series = scheduler_of(state).open_series(0, 2)
    consumer, got = taking(state, {series: 0})
    with state.lock:
        make(state, ReadyBatch(samples=3))
    consumer.join(WAIT_S)
    assert [(found, taken.result.samples) for found, taken in got] == [(series, 3)]


@pytest.mark.parametrize("end", ["fail", "stop"])
def test_a_consumer_that_waits_hears_of_the_end(state: PoolState, end: str) -> None:
    with state.lock:
        series = scheduler_of(state).open_series(0, 2)
    consumer, got = taking(state, {series: 0})
    with state.lock:
        if end == "fail":
            state.fail(WorkerError("all workers are gone"))
        else:
            state.close()
    consumer.join(WAIT_S)
    assert [type(error) for error in got] == [WorkerError if end == "fail" else ClosedError]


def test_an_error_is_the_answer_to_every_call_and_the_first_one_stays(state: PoolState) -> None:
    with state.lock:
        state.check()
        state.fail(SampleError("sample 5 is bad"))
        state.fail(WorkerError("and then the workers ended"))
        raised = []
        for call in (state.check, state.check, lambda: state.take(wants({0: 0}))):
            with pytest.raises(SampleError, match="sample 5 is bad") as caught:
                call()
            raised.append(caught.value)
        assert len(set(map(id, raised))) == 3, "each is a new one: a traceback keeps frames, and batches in them"
        assert state.is_stopping


def test_an_error_outlasts_the_close_and_a_closed_one_says_so(state: PoolState) -> None:
    with state.lock:
        state.request_stop()
        with pytest.raises(ClosedError, match="the loader is closed"):
            state.check()
        state.fail(SampleError("sample 5 is bad"))
        state.close()
        with pytest.raises(SampleError):
            state.check()


def test_a_series_that_is_over_says_so(state: PoolState) -> None:
    with state.lock:
        series = scheduler_of(state).open_series(0, 1)
        state.cancel_series(series)
        with pytest.raises(ClosedError, match=f"series {series} is closed"):
            state.take(wants({series: 0}))


def test_slots_series_and_groups_that_finalizers_have_left_are_collected(state: PoolState, arena: FakeArena) -> None:
    with state.lock:
        scheduler = scheduler_of(state)
        kept, dropped = scheduler.open_series(0, 2), scheduler.open_series(1, 2)
        group = scheduler.open_group(inputs=3, max_ahead=1, window=1, max_idle=1)
        member = scheduler.series_of(group, 0)
        make(state, ReadyBatch(samples=1))
        task = make(state, ReadyBatch(samples=2))
        _, taken = take(state, {kept: 0})
        assert scheduler.has_task(task), "of the series that was cancelled"
        assert taken.slot is not None
        arena.released.put((taken.slot, taken.generation))
        state.cancel_series(dropped)
        state.cancel_group(group)
        assert scheduler.slots.count(SlotState.FREE) == 0, "a finalizer decides nothing itself"
        assert scheduler.has_group(group)
        state.collect()
        assert (scheduler.has_task(task), scheduler.result_of(task)) == (False, None)
        assert scheduler.slots.count(SlotState.FREE) == 2
        assert [scheduler.has_series(series) for series in (kept, dropped, member)] == [True, False, False]
        assert not scheduler.has_group(group)


def test_what_was_made_ahead_goes_with_the_end(state: PoolState) -> None:
    with state.lock:
        scheduler_of(state).open_series(0, 2)
        task = make(state, ReadyBatch(samples=1))
        state.close()
        assert scheduler_of(state).result_of(task) is None, "it may be a file of its own"


def test_the_supervisor_thread_is_woken_only_for_workers_that_can_take_work(state: PoolState) -> None:
    with state.lock:
        scheduler_of(state).open_series(0, 9)
        state.wake_for_work()
        assert is_woken(state)
        while scheduler_of(state).assign() is not None:
            pass
        state.wake_for_work()
        assert not is_woken(state)


def test_it_is_woken_for_a_probe_and_for_the_end(state: PoolState) -> None:
    with state.lock:
        state.ask_for_probe(7)
        assert (state.to_probe, state.probed, is_woken(state)) == (7, None, True)
        assert not is_woken(state)
    state.request_stop()
    assert is_woken(state)


def test_waking_a_thread_that_is_gone_is_harmless(state: PoolState) -> None:
    with state.lock:
        state.close()
    state.wake()
    state.request_stop()


def test_a_thread_knows_whether_it_holds_the_lock(state: PoolState) -> None:
    assert not state.is_held()
    with state.lock:
        assert state.is_held()
        found: list[bool] = []
        other = threading.Thread(target=lambda: found.append(state.is_held()))
        other.start()
        other.join()
    assert found == [False]
