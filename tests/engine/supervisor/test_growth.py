"""A pool that gets more slots and more workers while it is read: order and bytes stay what they were."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mploader._util.platform_check import resource
from mploader.batching.choose_layout import make_layout
from mploader.batching.spec import ArraySpec
from mploader.engine.ipc.arena import Arena
from mploader.engine.ipc.job import GeneratorJob, Job, SampleJob
from mploader.engine.ipc.on_bad_sample import OnBadSample
from mploader.engine.supervisor.pool import Pool
from mploader.engine.supervisor.worker_handle import Launcher, WorkerStart, chosen_launcher, use_launcher
from mploader.errors import ClosedError, ResourceError
from mploader.sampling.plan import Plan
from mploader.testing import ThreadWorker
from tests.transforms import noisy

BATCH = 4
BATCHES = 30
SAMPLES = BATCH * BATCHES
SPEC = {"noise": ArraySpec((5, 7, 3), np.dtype(np.uint8)), "id": ArraySpec((), np.dtype(np.int64)),
        "scale": ArraySpec((), np.dtype(np.float64))}  # fmt: skip
LAYOUT = make_layout(SPEC, (105, 8, 8), None, False, BATCH)
INT64 = ArraySpec((), np.dtype(np.int64))

pytestmark = pytest.mark.usefixtures("workers_in_threads", "nothing_is_left")


class ThreadLauncher:
    """Starts workers as threads and notes each start."""

    def __init__(self) -> None:
        self.starts: list[WorkerStart] = []

    def launch(self, start: WorkerStart, arena: Arena, job_fd: int) -> ThreadWorker:
        self.starts.append(start)
        return ThreadWorker(start, arena, job_fd)


def job() -> SampleJob:
    return SampleJob(
        source=range(SAMPLES), transform=noisy, plan=Plan(SAMPLES, BATCH, seed=5, shuffle=True),
        on_bad_sample=OnBadSample.RAISE, is_batched=True,
    )  # fmt: skip


@contextlib.contextmanager
def opened(
    workers: int, slots: int, reserved: int = 2, work: Job | None = None, launcher: Launcher | None = None
) -> Iterator[Pool]:
    pool = Pool(job() if work is None else work, workers, 60.0, launcher)
    try:
        layout = LAYOUT if work is None else make_layout(INT64, (8,), None, False, BATCH)
        pool.allocate(layout, layout.fixed_bytes, slots, reserved)
        yield pool
    finally:
        pool.close()


def bytes_of(batch: dict[str, np.ndarray[Any, Any]]) -> bytes:
    return b"".join(batch[name].tobytes() for name in sorted(batch))


def read(pool: Pool, epoch: int = 0, at: dict[int, Callable[[], object]] | None = None) -> list[bytes]:
    """The bytes of the batches of an epoch, in order; before some of them, calls a function."""
    series = pool.open_series(epoch, BATCHES)
    found = []
    for batch_index in range(BATCHES):
        if at is not None and batch_index in at:
            at[batch_index]()
        found.append(bytes_of(pool.next_batch(series, batch_index).batch))
    return found


def wait_for(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


@pytest.fixture
def expected() -> list[list[bytes]]:
    """The bytes of two epochs, as a pool gives them that does not grow."""
    with opened(workers=1, slots=3) as pool:
        return [read(pool, epoch) for epoch in range(2)]


@pytest.mark.parametrize("slots", [5, 12])
def test_workers_that_are_added_while_a_series_is_read_work(slots: int, expected: list[list[bytes]]) -> None:
    with opened(workers=1, slots=slots) as pool:
        wait_for(lambda: pool.worker_pids)
        before, earlier = pool.worker_pids, pool.statistics()
        assert read(pool, 0, {5: lambda: pool.add_workers(2), 20: lambda: pool.add_workers(1)}) == expected[0]
        wait_for(lambda: len(pool.worker_pids) == 4)
        pids = pool.worker_pids
        assert pids[:1] == before
        assert len(set(pids)) == 4
        wait_for(lambda: read(pool, 1) == expected[1] and all(row.batches for row in pool.statistics().workers))
        statistics = pool.statistics()
        assert len(statistics.workers) == 4
        assert sum(row.batches for row in statistics.workers) >= statistics.batches
        assert statistics.restarts == 0
        assert len(pool.recent_statistics().workers) == 4
        assert statistics.since(earlier).workers[1:] == statistics.workers[1:]


def test_slots_that_are_added_while_a_series_is_read_are_used(expected: list[list[bytes]]) -> None:
    with opened(workers=2, slots=3) as pool:
        assert read(pool, 0, {5: lambda: pool.add_slots(4), 20: lambda: pool.add_slots(2)}) == expected[0]
        assert pool.statistics().slots == 9
        series = pool.open_series(1, BATCHES)
        copied = pool.statistics().batches_copied
        held = [pool.next_batch(series, batch_index).batch for batch_index in range(9)]
        statistics = pool.statistics()
        assert (statistics.slots_borrowed, statistics.batches_copied - copied) == (7, 2), "2 of 9 slots are reserved"
        rest = [pool.next_batch(series, batch_index).batch for batch_index in range(9, BATCHES)]
        assert [bytes_of(batch) for batch in [*held, *rest]] == expected[1]


def test_a_batch_that_is_borrowed_stays_as_it_is_when_slots_are_added(expected: list[list[bytes]]) -> None:
    with opened(workers=1, slots=4) as pool:
        series = pool.open_series(0, BATCHES)
        held = pool.next_batch(series, 0).batch
        addresses = [held[name].ctypes.data for name in SPEC]
        for batch_index in range(1, BATCHES):
            if batch_index % 5 == 0:
                pool.add_slots(1)
                pool.add_workers(1)
            assert bytes_of(pool.next_batch(series, batch_index).batch) == expected[0][batch_index]
        assert bytes_of(held) == expected[0][0]
        assert [held[name].ctypes.data for name in SPEC] == addresses


def test_a_series_that_is_open_is_made_as_far_ahead_as_the_new_slots_allow() -> None:
    with opened(workers=1, slots=2, reserved=1) as pool:
        series = pool.open_series(0, BATCHES)
        wait_for(lambda: pool.statistics().slots_ready == 2)
        pool.add_slots(5)
        wait_for(lambda: pool.statistics().slots_ready == 7)
        assert pool.statistics().workers[0].batches == 7
        pool.next_batch(series, 0)


def test_a_worker_that_starts_later_knows_all_segments(expected: list[list[bytes]]) -> None:
    launcher = ThreadLauncher()
    with opened(workers=1, slots=2, reserved=1, launcher=launcher) as pool:
        pool.add_slots(2)
        pool.add_workers(1)
        pool.add_slots(2)
        assert read(pool) == expected[0]
        wait_for(lambda: len(pool.worker_pids) == 2)
    assert [(start.number, start.index, start.start) for start in launcher.starts] == [(0, 0, 1), (1, 1, 1)]


def count(start: int) -> Iterator[int]:
    for number in range(10):
        time.sleep(0.001)
        yield start + number


@pytest.mark.parametrize("as_they_come", [False, True])
def test_generators_go_on_when_slots_and_workers_are_added(as_they_come: bool) -> None:
    inputs = list(range(0, 1200, 100))
    work = GeneratorJob(generator=count, inputs=inputs, is_batched=True)
    with opened(workers=1, slots=6, work=work) as pool:
        group = pool.open_group(inputs=len(inputs), max_ahead=2, window=3, max_idle=3)
        found: dict[int, list[int]] = {number: [] for number in range(len(inputs))}

        def blocks() -> Iterator[Any]:
            if as_they_come:
                yield from iter(lambda: pool.next_of_group(group), None)
                return
            for number in range(len(inputs)):
                series, batch_index, is_last = pool.series_of(group, number), 0, False
                while not is_last:
                    ready = pool.next_batch(series, batch_index)
                    batch_index, is_last = batch_index + 1, ready.is_last
                    yield ready

        for place, ready in enumerate(blocks()):
            if place == 4:
                pool.add_workers(2)
                pool.add_slots(6)
            found[ready.input] += ready.batch.tolist() if ready.samples else []
        assert found == {number: list(range(start, start + 10)) for number, start in enumerate(inputs)}
        wait_for(lambda: len(pool.worker_pids) == 3)
        assert [len(pool.statistics().workers), pool.statistics().slots] == [3, 12]


def test_a_pool_grows_before_its_slots_are_made() -> None:
    with contextlib.closing(Pool(job(), 1, 60.0)) as pool:
        pool.add_workers(2)
        wait_for(lambda: len(pool.worker_pids) == 3)
        assert sorted(pool.probe(3).structure) == ["id", "noise", "scale"]


def test_growth_that_is_not_granted_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, expected: list[list[bytes]]
) -> None:
    with opened(workers=1, slots=3) as pool:
        with pytest.raises(ResourceError, match="of shared memory"):
            pool.add_slots(2**40)
        with monkeypatch.context() as patch:
            patch.setattr(resource, "getrlimit", lambda _: (50, 50))
            with pytest.raises(ResourceError, match="descriptors"):
                pool.add_workers(40)
        statistics = pool.statistics()
        assert (len(statistics.workers), statistics.slots) == (1, 3)
        assert read(pool) == expected[0]
        assert len(pool.worker_pids) == 1


def test_a_closed_pool_does_not_grow() -> None:
    with opened(workers=1, slots=3) as pool:
        pool.close()
        for grow in (pool.add_slots, pool.add_workers):
            with pytest.raises(ClosedError, match="the loader is closed"):
                grow(1)


# Who starts workers


def test_a_launcher_that_a_pool_is_given_starts_its_workers(expected: list[list[bytes]]) -> None:
    given, other = ThreadLauncher(), ThreadLauncher()
    with use_launcher(other), opened(workers=2, slots=4, launcher=given) as pool:
        assert read(pool) == expected[0]
    assert (len(given.starts), len(other.starts)) == (2, 0)


def test_the_innermost_launcher_in_use_starts_the_workers_of_pools_made_inside() -> None:
    outer, inner = ThreadLauncher(), ThreadLauncher()
    before = chosen_launcher()
    with use_launcher(outer):
        with use_launcher(inner):
            pool = Pool(job(), 2, 60.0)
        assert chosen_launcher() is outer
        with pytest.raises(RuntimeError), use_launcher(inner):
            raise RuntimeError
        assert chosen_launcher() is outer
    assert chosen_launcher() is before
    wait_for(lambda: len(pool.worker_pids) == 2)
    pool.add_workers(1)  # after the block
    wait_for(lambda: len(pool.worker_pids) == 3)
    pool.close()
    assert (len(inner.starts), len(outer.starts)) == (3, 0)
