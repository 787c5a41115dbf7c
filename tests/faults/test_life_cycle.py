"""Loaders and runs are begun, left and forgotten in every order."""

from __future__ import annotations

import gc
import os
import threading
from typing import Any

import pytest

from mploader import ArgumentError, ClosedError, Loader
from mploader.sampling.plan import Plan
from tests.conftest import kill_one
from tests.faults import work

OPTIONS: dict[str, Any] = {"batch_size": work.BATCH, "shuffle": True, "seed": 11, "num_workers": 2}


def test_a_hundred_times_abandoned_runs_and_a_full_epoch() -> None:
    batches, size, seed = 6, 4, 11
    plan = Plan(batches * size, size, seed, True)
    with Loader(range(batches * size), abs, batch_size=size, shuffle=True, seed=seed, num_workers=2) as loader:
        epoch = 0
        for _ in range(100):
            for count in (0, 1, 3, batches - 1, batches):
                run = iter(loader)
                read = [int(number) for _ in range(count) for number in next(run)]
                assert read == list(map(int, plan.batches(epoch, 0, count)))
                del run
                epoch += 1


def test_two_loaders_and_two_iterators_of_each_at_once() -> None:
    def ids(batches: list[dict[str, Any]]) -> list[int]:
        return [int(number) for batch in batches for number in batch["id"]]

    with (
        Loader(range(work.SAMPLES), work.element, **OPTIONS) as one,
        Loader(range(work.SAMPLES), work.element, **{**OPTIONS, "seed": 12}) as other,
    ):
        together = [*zip(iter(one), iter(other), iter(one), iter(other), strict=True)]
        for place in range(4):
            assert sorted(ids([batches[place] for batches in together])) == list(range(work.SAMPLES))
    with Loader(range(work.SAMPLES), work.element, **OPTIONS) as alone:
        for place in (0, 2):
            assert work.digest(alone) == work.digest(batches[place] for batches in together)


def test_garbage_collection_at_every_moment() -> None:
    with Loader(range(work.SAMPLES), work.element, **OPTIONS) as loader:
        expected = [work.digest(loader) for _ in range(4)][-1]
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        with Loader(range(work.SAMPLES), work.element, **OPTIONS) as loader:
            for _ in range(3):
                run = iter(loader)
                kept = [next(run) for _ in range(5)]
                cycle: list[Any] = [run, kept]
                cycle.append(cycle)
                del run, kept, cycle
            assert work.digest(loader) == expected
    finally:
        gc.set_threshold(*threshold)


def test_no_samples_are_an_error_that_leaves_nothing() -> None:
    with pytest.raises(ArgumentError, match=r"source=.*at least one sample"):
        Loader(range(0), work.element, **OPTIONS)


def test_a_loader_that_was_made_in_a_thread_that_ends() -> None:
    loaders: list[Loader] = []
    thread = threading.Thread(target=lambda: loaders.append(Loader(range(work.SAMPLES), work.element, **OPTIONS)))
    thread.start()
    thread.join()
    with Loader(range(work.SAMPLES), work.element, **OPTIONS) as loader:
        expected = work.digest(loader)
    assert work.digest(loaders[0]) == expected
    assert loaders[0].statistics().restarts == 0
    loaders.clear()


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_fewer_samples_than_workers(samples: int) -> None:
    with Loader(range(samples), work.element, **{**OPTIONS, "num_workers": 5}) as loader:
        for _ in range(3):
            assert sorted(int(number) for batch in loader for number in batch["id"]) == list(range(samples))


def test_close_from_another_thread_while_a_consumer_waits() -> None:
    loader = Loader(range(1000), work.slow_element, batch_size=500, num_workers=1)
    closer = threading.Timer(0.2, loader.close)
    closer.start()
    with pytest.raises(ClosedError):
        list(loader)
    closer.join()
    threads = [threading.Thread(target=loader.close) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def test_close_during_start_from_another_thread() -> None:
    from mploader.loader import open_pools

    errors: list[BaseException] = []

    def make() -> None:
        try:
            Loader(range(1000), work.slow_element, batch_size=5, num_workers=2)
        except BaseException as error:
            errors.append(error)

    for pause in (0.0, 0.05, 0.15):
        thread = threading.Thread(target=make)
        thread.start()
        threading.Event().wait(pause)
        open_pools.close_all()
        thread.join(10)
        assert not thread.is_alive()
    assert all(isinstance(error, ClosedError) for error in errors)


def test_a_fork_that_exits_or_dies_does_not_disturb_the_trainer() -> None:
    with Loader(range(work.SAMPLES), work.element, **OPTIONS) as loader:
        expected = work.digest(loader)
    with Loader(range(work.SAMPLES), work.element, **OPTIONS) as loader:
        run = iter(loader)
        batches = [next(run)]
        for end in ("exit", "kill", "collect"):
            child = os.fork()
            if child == 0:
                if end == "kill":
                    os.kill(os.getpid(), 9)
                if end == "collect":
                    loader.close()
                    del run, loader
                    batches.clear()
                    gc.collect()
                os._exit(0)
            os.waitpid(child, 0)
            batches.append(next(run))
        assert work.digest([*batches, *run]) == expected


def test_another_part_of_the_program_collects_the_workers() -> None:
    import signal

    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with Loader(range(work.SAMPLES), work.slow_element, **OPTIONS) as loader:
            run = iter(loader)
            batches = [next(run)]
            kill_one(loader, 0)
            batches += run
            assert loader.statistics().restarts == 1
    finally:
        signal.signal(signal.SIGCHLD, before)
    with Loader(range(work.SAMPLES), work.element, **OPTIONS) as loader:
        assert work.digest(loader) == work.digest(batches)
