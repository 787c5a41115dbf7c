"""A worker may die at any instruction: the stream stays what it would have been."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from mploader import Loader, WorkerError, testing
from mploader._util import fault_points
from mploader.sources import TFRecordShards
from mploader.sources.tfrecord_write import TFRecordWriter
from tests.conftest import is_in_time, kill_all, kill_one
from tests.faults import work

OPTIONS: dict[str, Any] = {"batch_size": work.BATCH, "shuffle": True, "seed": 11}


@pytest.fixture(scope="module")
def expected() -> list[str]:
    with Loader(range(work.SAMPLES), work.element, num_workers=1, **OPTIONS) as loader:
        return [work.digest(loader) for _ in range(2)]


def streams(**options: Any) -> tuple[list[str], int]:
    with Loader(range(work.SAMPLES), options.pop("transform", work.element), **OPTIONS, **options) as loader:
        return [work.digest(loader) for _ in range(2)], loader.statistics().restarts


IN_A_TASK = ("task received", "mid decode", "slot half written", "result unsent", "result sent")


@pytest.mark.parametrize("point", IN_A_TASK)
@pytest.mark.parametrize("position", ["0", "5", "*"])
def test_a_kill_at_each_point_of_a_task(point: str, position: str, expected: list[str]) -> None:
    with testing.faults(f"{point}:{position}:KILL"):
        found, restarts = streams(num_workers=2)
    assert found == expected
    assert restarts >= 1


@pytest.mark.parametrize("point", ["before hello", "after hello", "idle"])
def test_a_kill_of_a_worker_without_a_task(point: str, expected: list[str]) -> None:
    with testing.faults(f"{point}:0:KILL:2"):
        found, restarts = streams(num_workers=1)  # with two, the other may have done it all before
        assert found == expected
        assert restarts >= 1


def test_a_kill_while_shutting_down(expected: list[str]) -> None:
    with testing.faults("shutting down:*:KILL:*"):
        assert streams(num_workers=2)[0] == expected


@pytest.mark.parametrize("point", ["record opened", "record half read"])
def test_a_kill_in_the_middle_of_a_read(point: str, tmp_path: pathlib.Path) -> None:
    with TFRecordWriter(tmp_path / "data.tfrecord") as writer:
        for number in range(60):
            writer.write(b"%06d" % number * 20)
    with testing.faults(f"{point}:3:KILL"):
        source = TFRecordShards(tmp_path / "data.tfrecord", raw=True)
        with Loader(source, batch_size=6, num_workers=2) as loader:
            records = [bytes(record) for batch in loader for record in batch]
            assert loader.statistics().restarts >= 1
    assert records == [b"%06d" % number * 20 for number in range(60)]


@pytest.mark.parametrize(
    "what", ["exit_0", "sys_exit", "abort", "segfault", "leave_a_grandchild", "close_the_channel", "send_garbage"]
)
def test_a_worker_that_ends_in_a_sample(what: str, tmp_path: pathlib.Path, expected: list[str]) -> None:
    transform = work.Once(tmp_path, what)
    found, restarts = streams(transform=transform, num_workers=2, stall_timeout=2)
    assert found == expected
    assert restarts == 1, "an end without a goodbye is a death, whatever the exit code"


@pytest.mark.parametrize("what", ["close_the_channel", "send_nothing"])
def test_a_worker_without_a_channel_is_not_waited_for_until_it_counts_as_stalled(
    what: str, tmp_path: pathlib.Path, expected: list[str]
) -> None:
    assert streams(transform=work.Once(tmp_path, what), num_workers=2) == (expected, 1)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGKILL"])
def test_any_signal_to_a_worker(name: str, expected: list[str]) -> None:
    with Loader(range(work.SAMPLES), work.slow_element, num_workers=2, **OPTIONS) as loader:
        run = iter(loader)
        batches = [next(run)]
        kill_one(loader, 0, signal.Signals[name])
        assert work.digest([*batches, *run]) == expected[0]


def test_all_workers_at_once_again_and_again(expected: list[str]) -> None:
    with Loader(range(work.SAMPLES), work.slow_element, num_workers=3, **OPTIONS) as loader:
        run = iter(loader)
        batches = []
        for place in range(work.BATCHES):
            batches.append(next(run))
            if place % 3 == 0:
                kill_all(loader)
        assert work.digest(batches) == expected[0]


def test_kills_while_workers_and_slots_are_added(expected: list[str]) -> None:
    with Loader(range(work.SAMPLES), work.slow_element, num_workers=1, **OPTIONS) as loader:
        iterator = iter(loader)
        batches = []
        for batch_index in range(work.BATCHES):
            batches.append(next(iterator))
            if batch_index % 4 == 1:
                loader._core.pool.add_workers(1)
                loader._core.pool.add_slots(2)
                kill_one(loader, len(loader.statistics().workers) - 1)
            if batch_index % 4 == 3:
                kill_all(loader)
        assert work.digest(batches) == expected[0]
        assert work.digest(loader) == expected[1]
        rows = loader.statistics().workers
        assert len(loader.worker_pids) == len(rows) == 1 + (work.BATCHES + 2) // 4
        assert loader.statistics().restarts >= len(rows) - 1


def test_a_replacement_is_at_work_soon(recovery: Callable[[float], None]) -> None:
    with Loader(range(10_000), work.slow_element, batch_size=4, num_workers=2) as loader:
        run = iter(loader)
        next(run)

        def recover() -> float:
            started_s, restarts = time.monotonic(), loader.statistics().restarts
            kill_one(loader, 0)
            while loader.statistics().restarts == restarts:
                next(run)
            made = loader.statistics().workers[0].batches
            while loader.statistics().workers[0].batches == made:
                next(run)
            took_s = time.monotonic() - started_s
            recovery(took_s)
            return took_s

        assert is_in_time(recover, 3)


def test_a_worker_that_dies_at_every_start_is_an_error_with_what_it_printed(tmp_path: pathlib.Path) -> None:
    class Deadly:
        def __reduce__(self) -> Any:
            return (exit_loudly, ())

        def __call__(self, sample: int) -> int:
            return sample

    with pytest.raises(WorkerError, match=r"(?s)3 workers have ended in a row.*exited with code 7.*the reason is here"):
        Loader(range(4), Deadly(), batch_size=2, num_workers=2)


def exit_loudly() -> None:
    print("the reason is here", file=sys.stderr, flush=True)
    os._exit(7)


def test_fault_points_do_nothing_without_the_variable(monkeypatch: pytest.MonkeyPatch, expected: list[str]) -> None:
    monkeypatch.delenv(fault_points.VARIABLE, raising=False)
    assert streams(num_workers=2) == (expected, 0)
