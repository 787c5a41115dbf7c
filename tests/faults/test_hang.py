"""A worker may hang instead of dying: it is replaced, and slow is not taken for stuck."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import threading
import time
from collections.abc import Callable
from multiprocessing import spawn
from typing import Any

import pytest

from mploader import Loader, StallError, testing
from mploader.engine.supervisor import failure_handler, supervisor
from mploader.engine.supervisor.pool import Pool
from tests.faults import work

OPTIONS: dict[str, Any] = {"batch_size": work.BATCH, "shuffle": True, "seed": 11}


@pytest.fixture(scope="module")
def expected() -> str:
    with Loader(range(work.SAMPLES), work.element, num_workers=1, **OPTIONS) as loader:
        return work.digest(loader)


@pytest.fixture
def no_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks more often for workers that hang, and does not wait until they have printed where."""
    monkeypatch.setattr(supervisor, "TICK_S", 0.05)
    monkeypatch.setattr(failure_handler, "STACKS_S", 0.05)


@pytest.mark.parametrize("point", ["mid decode", "slot half written", "result unsent"])
def test_a_stopped_worker_is_replaced(point: str, expected: str, recovery: Callable[[float], None]) -> None:
    with (
        testing.faults(f"{point}:4:STOP"),
        Loader(range(work.SAMPLES), work.element, num_workers=2, stall_timeout=1, **OPTIONS) as loader,
    ):
        started = time.monotonic()
        assert work.digest(loader) == expected
        recovery(time.monotonic() - started)
        assert loader.statistics().restarts >= 1  # the batch at this place of the next epoch is made ahead, perhaps


@pytest.mark.usefixtures("no_stacks")
@pytest.mark.parametrize("what", ["sleep_holding_the_gil", "sleep", "stop"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_transform_that_does_not_return(what: str, workers: int, tmp_path: pathlib.Path, expected: str) -> None:
    transform = work.Once(tmp_path, what)
    with Loader(range(work.SAMPLES), transform, num_workers=workers, stall_timeout=1, **OPTIONS) as loader:
        assert work.digest(loader) == expected


def test_all_workers_hanging_is_an_error_with_their_stacks() -> None:
    loader = Loader(range(work.SAMPLES), work.Always(None), num_workers=2, stall_timeout=1, **OPTIONS)
    with pytest.raises(StallError, match=r"(?s)no worker has made progress for 1 s.*, at sample \d+\).*in hang_here"):
        list(loader)
    with pytest.raises(StallError):
        iter(loader)


@pytest.mark.usefixtures("no_stacks")
def test_a_sample_that_always_hangs_is_found() -> None:
    with Loader(
        range(work.SAMPLES),
        work.Always(20),
        num_workers=3,
        stall_timeout=0.5,
        on_bad_sample="drop",
        batch_size=work.BATCH,
    ) as loader:
        ids = [int(number) for batch in loader for number in batch["id"]]
        assert ids == [number for number in range(work.SAMPLES) if number != 20]
        assert [bad.index for bad in loader.bad_samples()] == [20]


@pytest.mark.usefixtures("no_stacks")
@pytest.mark.parametrize(("workers", "samples"), [(1, (19, 21)), (2, (19, 27))])
def test_several_samples_that_always_hang_are_found_by_any_number_of_workers(
    workers: int, samples: tuple[int, ...]
) -> None:
    with Loader(
        range(work.SAMPLES),
        work.Always(*samples),
        num_workers=workers,
        stall_timeout=0.4,
        on_bad_sample="drop",
        batch_size=work.BATCH,
    ) as loader:
        ids = [int(number) for batch in loader for number in batch["id"]]
        assert ids == [number for number in range(work.SAMPLES) if number not in samples]
        assert [bad.index for bad in loader.bad_samples()] == list(samples)


@pytest.mark.slow
def test_all_workers_hanging_is_an_error_where_bad_samples_are_dropped_too() -> None:
    with (
        Loader(
            range(work.SAMPLES), work.Always(None), num_workers=2, stall_timeout=0.3, on_bad_sample="drop", batch_size=1
        ) as loader,
        pytest.raises(StallError, match=r"(?s)side by side.*in hang_here"),
    ):
        list(loader)


@pytest.mark.usefixtures("no_stacks")
def test_a_first_sample_that_hangs_is_passed_over() -> None:
    with Loader(
        range(work.SAMPLES), work.Always(0), num_workers=2, stall_timeout=0.4, on_bad_sample="drop", batch_size=6
    ) as loader:
        assert [bad.index for bad in loader.bad_samples()] == []
        assert [int(number) for batch in loader for number in batch["id"]] == list(range(1, work.SAMPLES))
        assert [bad.index for bad in loader.bad_samples()] == [0]


@pytest.mark.parametrize(("policy", "tried"), [("raise", [0]), ("drop", [0, 1, 2]), ("replace", [0, 1, 2])])
def test_first_samples_that_all_hang_are_an_error(
    policy: str, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def probe(self: Pool, index: int) -> None:
        asked.append(index)
        raise StallError(f"sample {index}")

    monkeypatch.setattr(Pool, "probe", probe)
    with pytest.raises(StallError, match=f"sample {tried[-1]}"):
        Loader(range(work.SAMPLES), num_workers=1, batch_size=6, on_bad_sample=policy)
    assert asked == tried


def test_workers_that_hang_before_they_can_print_stacks_are_an_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho the disk is gone >&2; exec sleep 1000\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(failure_handler, "START_TIMEOUT_S", 0.4)
    before = spawn.get_executable()
    spawn.set_executable(str(interpreter))
    try:
        with pytest.raises(StallError, match=r"(?s)at its start.*the disk is gone"):
            Loader(range(9), batch_size=3, num_workers=1, stall_timeout=0.4)
    finally:
        spawn.set_executable(before)


def test_a_stall_shows_the_stacks_of_workers_that_were_replaced_before(tmp_path: pathlib.Path) -> None:
    begin, hung = tmp_path / "begin", tmp_path / "hung"

    def transform(sample: int) -> int:
        if begin.exists():
            is_first = sample == 1 and create(hung)
            while is_first:
                first_hang()
            if sample == 2:
                time.sleep(0.6)
            while sample in (1, 3):
                second_hang()
        return sample

    def create(path: pathlib.Path) -> bool:
        with contextlib.suppress(FileExistsError):
            path.touch(exist_ok=False)
            return True
        return False

    def first_hang() -> None:
        time.sleep(1)

    def second_hang() -> None:
        time.sleep(1)

    with Loader(range(4), transform, batch_size=2, num_workers=2, stall_timeout=1) as loader:
        while not all(worker.batches for worker in loader.statistics().workers):
            list(loader)
        begin.touch()  # two idle workers take the two batches of an epoch
        with pytest.raises(StallError, match=r"(?s)in first_hang.*in second_hang|in second_hang.*in first_hang"):
            list(itertools.chain.from_iterable(loader for _ in range(5)))


def test_slow_storage_is_no_stall() -> None:
    class Slow:
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> int:
            time.sleep(0.4)
            return index

    # A batch takes longer than the limit, a sample far less.
    with Loader(Slow(), batch_size=6, num_workers=1, stall_timeout=2) as loader:
        assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3, 4, 5]]
        assert loader.statistics().restarts == 0


def test_a_consumer_that_pauses_is_no_stall(expected: str) -> None:
    with Loader(range(work.SAMPLES), work.element, num_workers=2, stall_timeout=0.5, **OPTIONS) as loader:
        run = iter(loader)
        batches = [next(run)]
        threading.Event().wait(2)
        assert work.digest([*batches, *run]) == expected
        assert loader.statistics().restarts == 0


def test_a_trainer_that_was_stopped_blames_no_worker(run_script: Callable[..., Any]) -> None:
    done = run_script(
        """
import os, signal, subprocess, time
import mploader

def slow(sample):
    time.sleep(0.05)
    return sample

loader = mploader.Loader(range(100), slow, batch_size=5, num_workers=2, stall_timeout=1)
run = iter(loader)
numbers = list(next(run))
# Somebody stops this process, and its workers, and lets them go on.
pids = [os.getpid(), *loader.worker_pids]
subprocess.Popen(["sh", "-c", f"kill -STOP {' '.join(map(str, pids))}; sleep 5; kill -CONT {' '.join(map(str, pids))}"])
numbers += [number for batch in run for number in batch]
print(numbers == list(range(100)), loader.statistics().restarts)
"""
    )
    assert done.stdout.split() == ["True", "0"], done.stderr


def test_closing_does_not_wait_for_a_worker_that_hangs(tmp_path: pathlib.Path) -> None:
    # Not shuffled: only the first batches are made, as they are not taken.
    transform = work.Once(tmp_path, "sleep_holding_the_gil")
    loader = Loader(range(work.SAMPLES), transform, num_workers=2, batch_size=work.BATCH)
    batches = iter(loader)
    while not (tmp_path / "happened").exists():
        threading.Event().wait(0.01)
    loader.close()  # the worker would sleep on for longer than a test may take
    assert loader.worker_pids == []
    del batches


def test_a_hanging_sample_under_raise_is_an_error_with_its_number_and_stack() -> None:
    with (
        Loader(range(work.SAMPLES), work.Always(20), num_workers=3, stall_timeout=0.5, batch_size=work.BATCH) as loader,
        pytest.raises(StallError, match=r"(?s)sample 20 .*in hang_here"),
    ):
        list(loader)
