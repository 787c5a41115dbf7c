"""What consumers and the supervising thread share, with neither workers nor shared memory."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, cast

import pytest

from mploader.engine.ipc.arena import Arena
from mploader.engine.scheduler.scheduler import Scheduler
from mploader.engine.scheduler.states import SlotState
from mploader.engine.supervisor.shared_state import PoolState, Result
from mploader.errors import ClosedError, LoaderError, SampleError, WorkerError

WAIT_S = 30.0


class FakeArena:
    def __init__(self) -> None:
        self.released: SimpleQueue[tuple[int, int]] = SimpleQueue()


@pytest.fixture
def arena() -> FakeArena:
    return FakeArena()


@pytest.fixture
def ledger(arena: FakeArena) -> Iterator[PoolState]:
    """A ledger with two slots and one worker that can be given leases; nothing is to be woken."""
    made = PoolState(cast(Arena, arena))
    made.schedule = Scheduler(slots=2, reserved=1)
    made.schedule.worker_ready(0)
    yield made
    with made.lock:
        made.close()


def schedule_of(ledger: PoolState) -> Scheduler:
    assert ledger.schedule is not None
    return ledger.schedule


def fill(ledger: PoolState, result: Result) -> None:
    """Does what the supervising thread does for one batch."""
    lease = schedule_of(ledger).lease()
    assert lease is not None
    schedule_of(ledger).filled(lease)
    ledger.results[lease.task] = result
    ledger.changed.notify_all()


def is_woken(ledger: PoolState) -> bool:
    """Whether the supervising thread would wake; a second call says no."""
    woken = bool(select.select([ledger.wake_fd], [], [], 0)[0])
    if woken:
        ledger.drain_wake()
    return woken


def wants(heads: dict[int, int]) -> Callable[[Scheduler], dict[int, int]]:
    """What a consumer says that it wants: positions by run."""
    return lambda schedule: heads


def taking(ledger: PoolState, heads: dict[int, int]) -> tuple[threading.Thread, list[Any]]:
    """A consumer that waits for a batch, and what it has got."""
    got: list[Any] = []

    def take() -> None:
        with ledger.lock:
            try:
                got.append(ledger.take(wants(heads)))
            except LoaderError as error:
                got.append(error)

    consumer = threading.Thread(target=take)
    consumer.start()
    assert select.select([ledger.wake_fd], [], [], WAIT_S)[0], "it wakes the supervising thread before it waits"
    return consumer, got


def test_a_batch_is_taken_with_its_result(ledger: PoolState) -> None:
    with ledger.lock:
        run = schedule_of(ledger).open_run(0, 2)
        result = Result(samples=4, size=100)
        fill(ledger, result)
        found, taken, got = ledger.take(wants({run: 0}))
        assert (found, got, taken.failed) == (run, result, False)
        assert ledger.results == {}
        assert schedule_of(ledger).count(SlotState.LENT) == 1


def test_of_several_runs_the_one_that_is_ready_is_taken(ledger: PoolState) -> None:
    with ledger.lock:
        slow, quick = (schedule_of(ledger).open_run(epoch, 2) for epoch in range(2))
        schedule_of(ledger).take(quick, 0)  # it is waited for, so it is made first
        fill(ledger, Result(samples=9))
        run, _, result = ledger.take(wants({slow: 0, quick: 0}))
        assert (run, result.samples) == (quick, 9)


def test_a_consumer_waits_until_its_batch_is_there(ledger: PoolState) -> None:
    with ledger.lock:
        run = schedule_of(ledger).open_run(0, 2)
    consumer, got = taking(ledger, {run: 0})
    with ledger.lock:
        fill(ledger, Result(samples=3))
    consumer.join(WAIT_S)
    assert [(found, result.samples) for found, _, result in got] == [(run, 3)]


@pytest.mark.parametrize("end", ["fail", "stop"])
def test_a_consumer_that_waits_hears_of_the_end(ledger: PoolState, end: str) -> None:
    with ledger.lock:
        run = schedule_of(ledger).open_run(0, 2)
    consumer, got = taking(ledger, {run: 0})
    with ledger.lock:
        if end == "fail":
            ledger.fail(WorkerError("all workers are gone"))
        else:
            ledger.close()
    consumer.join(WAIT_S)
    assert [type(error) for error in got] == [WorkerError if end == "fail" else ClosedError]


def test_an_error_is_the_answer_to_every_call_and_the_first_one_stays(ledger: PoolState) -> None:
    with ledger.lock:
        ledger.check()
        ledger.fail(SampleError("sample 5 is bad"))
        ledger.fail(WorkerError("and then the workers ended"))
        raised = []
        for call in (ledger.check, ledger.check, lambda: ledger.take(wants({0: 0}))):
            with pytest.raises(SampleError, match="sample 5 is bad") as caught:
                call()
            raised.append(caught.value)
        assert len(set(map(id, raised))) == 3, "each is a new one: a traceback keeps frames, and batches in them"
        assert ledger.stopping


def test_an_error_outlasts_the_close_and_a_closed_one_says_so(ledger: PoolState) -> None:
    with ledger.lock:
        ledger.request_stop()
        with pytest.raises(ClosedError, match="the loader is closed"):
            ledger.check()
        ledger.fail(SampleError("sample 5 is bad"))
        ledger.close()
        with pytest.raises(SampleError):
            ledger.check()


def test_a_run_that_is_over_says_so(ledger: PoolState) -> None:
    with ledger.lock:
        run = schedule_of(ledger).open_run(0, 1)
        ledger.give_up_run(run)
        with pytest.raises(ClosedError, match=f"run {run} is closed"):
            ledger.take(wants({run: 0}))


def test_slots_and_runs_that_finalizers_have_left_are_collected(ledger: PoolState, arena: FakeArena) -> None:
    with ledger.lock:
        schedule = schedule_of(ledger)
        kept, dropped = schedule.open_run(0, 2), schedule.open_run(1, 2)
        fill(ledger, Result(samples=1))
        fill(ledger, Result(samples=2))
        _, taken, _ = ledger.take(wants({kept: 0}))
        assert ledger.results, "of the run that nobody holds any more"
        arena.released.put((taken.slot, taken.generation))
        ledger.give_up_run(dropped)
        assert schedule.count(SlotState.FREE) == 0, "a finalizer decides nothing itself"
        ledger.collect()
        assert ledger.results == {}
        assert schedule.count(SlotState.FREE) == 2
        assert (schedule.has_run(kept), schedule.has_run(dropped)) == (True, False)


def test_the_supervising_thread_is_woken_only_for_workers_that_can_take_work(ledger: PoolState) -> None:
    with ledger.lock:
        schedule_of(ledger).open_run(0, 9)
        ledger.wake_for_work()
        assert is_woken(ledger)
        while schedule_of(ledger).lease() is not None:
            pass
        ledger.wake_for_work()
        assert not is_woken(ledger)


def test_it_is_woken_for_a_description_and_for_the_end(ledger: PoolState) -> None:
    with ledger.lock:
        ledger.ask_for_description(7)
        assert (ledger.to_describe, ledger.description, is_woken(ledger)) == (7, None, True)
        assert not is_woken(ledger)
    ledger.request_stop()
    assert is_woken(ledger)


def test_waking_one_that_is_gone_is_harmless(ledger: PoolState) -> None:
    with ledger.lock:
        ledger.close()
    ledger.wake()
    ledger.request_stop()


def test_who_holds_the_lock(ledger: PoolState) -> None:
    assert not ledger.is_held()
    with ledger.lock:
        assert ledger.is_held()
        found: list[bool] = []
        other = threading.Thread(target=lambda: found.append(ledger.is_held()))
        other.start()
        other.join()
    assert found == [False]
