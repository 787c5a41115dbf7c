"""A worker may die or hang at any instruction of a generator: every element comes once, in its place."""

from __future__ import annotations

import itertools
import os
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mploader import StallError, testing
from mploader.batching.codecs import Fixed, Strings
from mploader.batching.layout import BatchLayout
from mploader.batching.spec import STRING, ArraySpec
from mploader.engine.ipc.job import GeneratorJob
from mploader.loader.generator_pool import MIN_BLOCK_BYTES, GeneratorPool, Pass
from tests.faults import generating

SHARDS = 4
LAYOUT = BatchLayout((Fixed(ArraySpec((), np.dtype(np.int64))), Strings(ArraySpec((), STRING))), 4)
"""Three blocks of each input, the last one short."""


def open_pool(generator: Any, *args: Any, num_workers: int = 2, stall_timeout_s: float = 300.0) -> GeneratorPool:
    job = GeneratorJob(generator=generator, inputs=range(SHARDS), args=args)
    return GeneratorPool(job, LAYOUT, LAYOUT.fixed_bytes, num_workers, 3, stall_timeout_s)


def elements_of(blocks: Iterator[Any]) -> list[tuple[int, bytes]]:
    return [pair for numbers, texts in blocks for pair in zip(numbers.tolist(), texts.tolist(), strict=True)]


def elements(run: Pass, ordered: bool) -> list[tuple[int, bytes]]:
    """Those of all inputs, one after the other; sorted if they are taken as they come."""
    if not ordered:
        return sorted(elements_of(run.any_blocks()))
    return [pair for shard in range(SHARDS) for pair in elements_of(run.blocks(shard))]


def expected(text_bytes: int = 0) -> list[tuple[int, bytes]]:
    return [pair for shard in range(SHARDS) for pair in generating.plain(shard, text_bytes)]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("point", ["task received", "result unsent", "result sent"])
def test_a_kill_at_each_point_of_a_block(point: str, ordered: bool) -> None:
    with testing.faults(f"{point}:{generating.VICTIM}:KILL"):
        pool = open_pool(generating.plain)
        assert elements(pool.open_pass(), ordered) == expected()
        assert pool.statistics().restarts >= 1


@pytest.mark.parametrize("point", ["before hello", "after hello", "idle"])
def test_a_kill_of_a_worker_without_a_block(point: str) -> None:
    with testing.faults(f"{point}:0:KILL"):
        pool = open_pool(generating.plain, num_workers=1)  # with two, the other may have done it all before
        for _ in range(2):
            assert elements(pool.open_pass(), True) == expected()
        assert pool.statistics().restarts >= 1


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize(
    "places",
    [
        pytest.param((0,), id="before the first element"),
        pytest.param((4,), id="between two blocks"),
        pytest.param((6, 2, 4, 5), id="again while elements are left out"),
        pytest.param((generating.ELEMENTS,) * 2, id="at the end, behind the last element"),
    ],
)
def test_a_kill_inside_the_generator(places: tuple[int, ...], ordered: bool, tmp_path: pathlib.Path) -> None:
    pool = open_pool(generating.dying, str(tmp_path), places)
    assert elements(pool.open_pass(), ordered) == expected()
    assert pool.statistics().restarts == len(places) == len(list(tmp_path.iterdir()))


def test_a_child_that_a_generator_forks_does_no_work_of_the_worker() -> None:
    pool = open_pool(generating.forking)
    assert elements(pool.open_pass(), True) == expected()


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("point", ["result unsent", "result sent"])
def test_a_kill_over_blocks_that_are_larger_than_a_slot(point: str, ordered: bool) -> None:
    text_bytes = MIN_BLOCK_BYTES + 1
    with testing.faults(f"{point}:{generating.VICTIM}:KILL"):
        pool = open_pool(generating.plain, text_bytes)
        assert elements(pool.open_pass(), ordered) == expected(text_bytes)
        assert pool.statistics().restarts >= 1


def test_all_workers_at_once_again_and_again() -> None:
    pool = open_pool(generating.plain)
    run = pool.open_pass()
    found = []
    for shard in range(SHARDS):
        blocks = run.blocks(shard)
        found += elements_of(itertools.islice(blocks, 1))
        for pid in pool.worker_pids:
            os.kill(pid, signal.SIGKILL)
        found += elements_of(blocks)
    assert found == expected()


@pytest.mark.parametrize("ordered", [True, False])
def test_a_generator_that_stalls_is_begun_again_elsewhere(ordered: bool, tmp_path: pathlib.Path) -> None:
    pool = open_pool(generating.stalling, str(tmp_path), 1, stall_timeout_s=0.5)
    assert elements(pool.open_pass(), ordered) == expected()
    assert pool.statistics().restarts == 1


def test_a_generator_that_stalls_each_time_is_an_error_with_its_stack(tmp_path: pathlib.Path) -> None:
    pool = open_pool(generating.stalling, str(tmp_path), 100, stall_timeout_s=0.3)
    run = pool.open_pass()
    with pytest.raises(StallError, match=r"(?s)in hang_here"):
        elements(run, True)
