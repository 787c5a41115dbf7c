"""A pool through its methods, with workers that are threads: what consumers get, and how it ends."""

from __future__ import annotations

import gc
import os
import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pytest

from mploader._util.platform_check import resource
from mploader.batching.choose_layout import make_layout
from mploader.batching.layout import BatchLayout
from mploader.batching.spec import ArraySpec
from mploader.engine.ipc.job import GeneratorJob, Job, SampleJob
from mploader.engine.ipc.on_bad_sample import OnBadSample
from mploader.engine.supervisor import pool as pool_module
from mploader.engine.supervisor.pool import Pool
from mploader.engine.supervisor.ready_batch import ReadyBatch
from mploader.errors import ArgumentError, ClosedError, LoaderError, ResourceError, SampleError, WorkerError
from mploader.sampling.plan import Plan
from tests.transforms import fail_at

BATCH = 4
SAMPLES = 40
INT64 = ArraySpec((), np.dtype(np.int64))
LAYOUT = make_layout(INT64, (8,), None, False, BATCH)

pytestmark = pytest.mark.usefixtures("workers_in_threads", "nothing_is_left")


def job(transform: Callable[..., Any] | None = None, policy: str = "raise", source: Any = None) -> SampleJob:
    return SampleJob(
        source=range(SAMPLES) if source is None else source, transform=transform,
        plan=Plan(SAMPLES, BATCH, 0, False, False), on_bad_sample=OnBadSample.of(policy), is_batched=True,
    )  # fmt: skip


def make_pool(
    work: Job, slots: int = 6, reserved: int = 2, layout: BatchLayout = LAYOUT, room: int | None = None,
    workers: int = 2,
) -> Pool:  # fmt: skip
    pool = Pool(work, workers, 60.0)
    pool.allocate(layout, room or layout.fixed_bytes, slots, reserved)
    return pool


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = make_pool(job())
    yield made
    made.close()


def values(ready: ReadyBatch) -> list[int]:
    return cast("list[int]", ready.batch.tolist())


# Batches


def test_a_sample_is_probed_by_a_worker() -> None:
    pool = Pool(job(lambda sample: {"x": np.zeros((2, 3), np.float32), "text": "ab"}), 1, 60.0)
    probed = pool.probe(7)
    pool.close()
    assert probed.structure["x"] == ArraySpec((2, 3), np.dtype(np.float32))
    assert sorted(probed.component_bytes) == [2, 24]


def test_a_sample_that_cannot_be_made_is_the_error_of_its_probe_and_the_pool_goes_on() -> None:
    pool = Pool(job(fail_at(3)), 1, 60.0)
    with pytest.raises(SampleError, match="sample 3 is rotten"):
        pool.probe(3)
    assert pool.probe(4).component_bytes == (16,)
    pool.close()


def test_batches_come_in_any_order_that_is_asked_for(pool: Pool) -> None:
    series = pool.open_series(0, 10)
    order = [1, 0, 3, 2, 4, 5, 6, 9, 8, 7]
    found = {batch_index: values(pool.next_batch(series, batch_index)) for batch_index in order}
    assert found == {batch_index: list(range(4 * batch_index, 4 * batch_index + 4)) for batch_index in range(10)}


def test_a_batch_comes_with_its_facts(pool: Pool) -> None:
    ready = pool.next_batch(pool.open_series(0, 10), 0)
    assert (ready.samples, list(ready.reports), ready.input, ready.is_last) == (4, [], None, False)
    assert (ready.error, ready.overflow) == (None, None)
    assert ready.got_ns > 0


def test_a_batch_is_delivered_once(pool: Pool) -> None:
    series = pool.open_series(0, 10)
    pool.next_batch(series, 0)
    with pytest.raises(ArgumentError, match="batch 0 was delivered before"):
        pool.next_batch(series, 0)
    assert values(pool.next_batch(series, 1)) == [4, 5, 6, 7]


def test_a_batch_lies_in_a_slot_as_long_as_slots_are_left_and_is_copied_out_then() -> None:
    pool = make_pool(job(), slots=5, reserved=2)
    series = pool.open_series(0, 10)
    held = [pool.next_batch(series, batch_index) for batch_index in range(10)]
    counted = pool.statistics()
    assert (counted.slots_borrowed, counted.batches_copied) == (3, 7)
    assert [values(ready) for ready in held] == [list(range(at, at + 4)) for at in range(0, SAMPLES, 4)]
    held.clear()
    gc.collect()
    pool.next_batch(pool.open_series(1, 10), 0)
    assert pool.statistics().slots_borrowed <= 1, "a slot is free when nothing refers to its batch any more"
    pool.close()


def test_a_batch_that_is_ready_makes_room_for_one_that_is_needed_without_the_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is copied out of its slot by the supervisor thread, while consumers may take others."""
    pool = make_pool(job(), slots=2, reserved=1)
    copy, copied = pool._arena.copy, []

    def note(slot: int, size: int) -> Any:
        if threading.current_thread().name == "mploader supervisor":
            copied.append(pool._state.is_held())
        return copy(slot, size)

    monkeypatch.setattr(pool._arena, "copy", note)
    series = pool.open_series(0, 10)
    found = {batch_index: values(pool.next_batch(series, batch_index)) for batch_index in reversed(range(10))}
    assert found == {batch_index: list(range(4 * batch_index, 4 * batch_index + 4)) for batch_index in range(10)}
    assert len(copied) >= 8, "the two slots do not hold all that is needed"
    assert not any(copied)
    pool.close()


def test_a_batch_that_is_larger_than_a_slot_travels_beside_it() -> None:
    def rows(sample: int) -> np.ndarray[Any, Any]:
        return np.full(1 if sample < 20 else 3000, sample, np.int64)

    layout = make_layout(ArraySpec((1,), np.dtype(np.int64)), (8,), None, True, BATCH)
    pool = make_pool(job(rows), layout=layout, room=4096)
    series = pool.open_series(0, 10)
    sizes = [len(pool.next_batch(series, batch_index).batch.values) for batch_index in range(10)]
    pool.close()
    assert sizes == [4] * 5 + [12_000] * 5


def test_bad_samples_are_reported_with_their_batch() -> None:
    pool = make_pool(job(fail_at(5), "drop"), layout=make_layout(ArraySpec((2,), INT64.dtype), (16,), None, False, 4))
    series = pool.open_series(0, 10)
    assert pool.next_batch(series, 0).reports == []
    ready = pool.next_batch(series, 1)
    pool.close()
    assert (ready.samples, [report.index for report in ready.reports]) == (3, [5])


def test_a_batch_that_cannot_be_made_is_the_error_of_every_later_call() -> None:
    pool = make_pool(job(fail_at(9)), layout=make_layout(ArraySpec((2,), INT64.dtype), (16,), None, False, 4))
    series = pool.open_series(0, 10)
    good = [pool.next_batch(series, batch_index).batch[:, 0].tolist() for batch_index in (0, 1)]
    assert good == [[0, 1, 2, 3], [4, 5, 6, 7]]
    calls = [lambda: pool.next_batch(series, 2), lambda: pool.next_batch(series, 3), lambda: pool.open_series(1, 10)]
    for call in calls:
        with pytest.raises(SampleError, match="sample 9 is rotten"):
            call()
    pool.close()


def test_a_series_that_is_cancelled_takes_its_batches_along(pool: Pool) -> None:
    first, second = pool.open_series(0, 10), pool.open_series(1, 10)
    pool.next_batch(first, 0)
    pool.cancel_series(first)
    assert [values(pool.next_batch(second, batch_index))[0] for batch_index in range(10)] == list(range(0, SAMPLES, 4))
    with pytest.raises(ClosedError, match="is closed"):
        pool.next_batch(first, 1)


def test_what_is_made_ahead_waits_until_it_is_claimed(pool: Pool) -> None:
    now, ahead = pool.open_series(0, 10), pool.open_series(1, 10, claimed=False)
    for batch_index in range(10):
        pool.next_batch(now, batch_index)
    pool.claim(ahead)
    assert values(pool.next_batch(ahead, 0)) == [0, 1, 2, 3]


def test_a_source_that_changes_reaches_the_workers_for_the_series_of_its_epoch() -> None:
    class Source(list[int]):
        def begin_epoch(self) -> None:
            """Makes it a source that changes."""

    pool = make_pool(job(source=Source(range(SAMPLES))))
    kept = [pool.renew(epoch, Source(range(100 * epoch, 100 * epoch + SAMPLES))) for epoch in range(3)]
    for epoch in range(3):
        series = pool.open_series(epoch, 10)
        assert values(pool.next_batch(series, 9)) == [100 * epoch + 36 + place for place in range(4)]
    assert len(kept) == 3
    pool.close()


def count(start: int) -> Iterator[int]:
    yield from range(start, start + 6)


def test_generators_give_their_elements_in_order() -> None:
    layout = make_layout(INT64, (8,), None, False, 4)
    pool = make_pool(GeneratorJob(generator=count, inputs=[0, 100], is_batched=True), layout=layout)
    group = pool.open_group(inputs=2, max_ahead=2, window=2, max_idle=4)
    series = [pool.series_of(group, number) for number in range(2)]
    found = [[pool.next_batch(one, batch_index) for batch_index in range(2)] for one in series]
    assert [[values(ready) for ready in blocks] for blocks in found] == [
        [[0, 1, 2, 3], [4, 5]], [[100, 101, 102, 103], [104, 105]]
    ]  # fmt: skip
    assert [[ready.is_last for ready in blocks] for blocks in found] == [[False, True]] * 2
    assert [[ready.input for ready in blocks] for blocks in found] == [[0, 0], [1, 1]]
    assert pool.next_of_group(group) is None
    pool.cancel_group(group)
    pool.close()


def test_a_group_that_is_cancelled_says_so() -> None:
    pool = make_pool(GeneratorJob(generator=count, inputs=[0, 100], is_batched=True))
    group = pool.open_group(inputs=2, max_ahead=2, window=2, max_idle=4)
    pool.cancel_group(group)
    for call in (lambda: pool.next_of_group(group), lambda: pool.series_of(group, 0)):
        with pytest.raises(ClosedError, match="is closed"):
            call()
    pool.close()


# Consumers that are interrupted


@pytest.mark.parametrize("moment", ["_arrays", "next"])
def test_an_interrupt_loses_no_batch_silently(moment: str, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    series = pool.open_series(0, 10)
    pool.next_batch(series, 0)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pool._hand_over, moment, interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.next_batch(series, 1)
    if moment == "next":  # nothing was taken yet
        assert values(pool.next_batch(series, 1)) == [4, 5, 6, 7]
    else:
        with pytest.raises(WorkerError, match=r"a batch was lost on its way to the consumer \(KeyboardInterrupt"):
            pool.next_batch(series, 2)


def test_an_error_of_the_consumers_side_ends_the_pool(pool: Pool) -> None:
    pool.fail(WorkerError("no use"))
    pool.fail(WorkerError("the second error is not kept"))
    with pytest.raises(WorkerError, match="no use"):
        pool.open_series(0, 10)


# The end


def test_a_closed_pool_says_so_and_can_be_closed_again(pool: Pool) -> None:
    series = pool.open_series(0, 10)
    pool.close()
    pool.close()
    calls: list[Callable[[], object]] = [
        lambda: pool.next_batch(series, 0), lambda: pool.open_series(1, 10), lambda: pool.probe(0),
        lambda: pool.claim(series), lambda: pool.renew(0, []), lambda: pool.allocate(LAYOUT, 64, 4, 1),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ClosedError, match="the loader is closed"):
            call()
    assert pool.worker_pids == []


def test_batches_outlive_the_pool(pool: Pool) -> None:
    held = pool.next_batch(pool.open_series(0, 10), 0)
    pool.close()
    assert values(held) == [0, 1, 2, 3]


def test_a_consumer_that_waits_while_another_thread_closes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(job())
    series = pool.open_series(0, 0, 0)
    waits = threading.Event()
    changed = pool._state.changed.wait

    def noted(timeout: float) -> bool:
        waits.set()
        return changed(timeout)

    monkeypatch.setattr(pool._state.changed, "wait", noted)
    errors: list[LoaderError] = []

    def wait() -> None:
        try:
            pool.next_batch(series, 0)  # never made: the series has no batch
        except LoaderError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    waits.wait()
    pool.close()
    thread.join(20)
    assert not thread.is_alive()
    assert len(errors) == 1


def test_a_pool_that_is_collected_ends() -> None:
    pool = make_pool(job())
    del pool
    gc.collect()  # the fixture sees that its thread and its workers go


def test_a_fork_is_told_to_make_its_own(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    series = pool.open_series(0, 10)
    with monkeypatch.context() as forked:
        forked.setattr(pool, "_owner_pid", 4194305)
        for call in (lambda: pool.next_batch(series, 0), lambda: pool.open_series(1, 10), lambda: pool.worker_pids):
            with pytest.raises(ClosedError, match=rf"belongs to process 4194305, and this is its fork {os.getpid()}"):
                call()


# What the machine does not grant


def test_descriptors_are_counted_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (50, 50))
    with pytest.raises(ResourceError, match=r"a loader with 40 workers needs 142 descriptors .*of the 50 that"):
        Pool(job(), 40, 60.0)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    Pool(job(), 2, 60.0).close()


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_a_thread_that_is_not_granted_leaves_nothing(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise error("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(pool_module.threading.Thread, "start", refuse)
        with pytest.raises(ResourceError, match="grants no thread or no descriptor"):
            Pool(job(), 2, 60.0)


def test_memory_that_is_not_granted_is_an_error_and_the_pool_can_be_closed() -> None:
    pool = Pool(job(), 2, 60.0)
    with pytest.raises(ResourceError, match="of shared memory"):
        pool.allocate(LAYOUT, 2**50, slots=4, reserved=1)
    pool.close()


# Traces


def test_one_trace_at_a_time(pool: Pool, tmp_path: pathlib.Path) -> None:
    assert pool.trace is None
    trace = pool.start_trace(tmp_path / "one.json")
    with pytest.raises(ArgumentError, match=r"a trace is under way, to '.*one.json'; stop it first"):
        pool.start_trace(tmp_path / "two.json")
    trace.stop()
    assert pool.trace is None
    pool.start_trace(tmp_path / "two.json")
    pool.close()
    assert pool.trace is None
