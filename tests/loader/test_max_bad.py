"""`max_bad_samples=`: it trips at the same batch in every run, and not before."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from mploader import ArgumentError, Loader, SampleError
from tests.transforms import Squares, fail_at

pytestmark = pytest.mark.usefixtures("workers_in_threads")

SAMPLES = 100
BAD = [index for index in range(SAMPLES) if index % 7 == 3]  # 14 of them


def loader_of(limit: Any, **options: Any) -> Loader:
    transform = fail_at(*[index * index for index in BAD])
    options = {"batch_size": 5, "num_workers": 2, "on_bad_sample": "drop", "seed": 3, **options}
    return Loader(Squares(SAMPLES), transform, max_bad_samples=limit, **options)


def batches_before_the_error(limit: Any, **options: Any) -> tuple[int, str]:
    with loader_of(limit, **options) as loader:
        run = loader._core.open_epoch()
        with pytest.raises(SampleError) as failure:
            list(run)
        with pytest.raises(SampleError, match=re.escape(str(failure.value))) as again:
            next(iter(loader))
        assert again.value.index == failure.value.index in BAD
        assert failure.value.kind == "ValueError"
        assert "is rotten" in (failure.value.traceback or "")
        return run.delivered, str(failure.value)


@pytest.mark.parametrize("workers", [1, 3])
def test_it_trips_in_place_of_the_batch_with_one_too_many(workers: int) -> None:
    for limit in (0, 5):
        count, text = batches_before_the_error(limit, num_workers=workers)
        assert count == BAD[limit] // 5
        assert text.startswith(
            f"{limit + 1} samples of epoch 0 are bad, more than allowed (max_bad_samples={limit}). The first are:\n"
            "  sample 3 (squares.txt, line 4 at byte 24): ValueError: sample 9 is rotten\n"
        )
        assert text.count("is rotten") == min(limit + 1, 5)


@pytest.mark.parametrize("policy", ["drop", "replace"])
def test_the_decision_does_not_depend_on_the_workers(policy: str) -> None:
    found = {
        batches_before_the_error(6, num_workers=workers, on_bad_sample=policy, shuffle=True)
        for workers in (1, 3)
    }
    assert len(found) == 1


@pytest.mark.parametrize(("limit", "trips"), [(14, False), (13, True), (0.14, False), (0.1399, True), (1.0, False)])
def test_as_many_as_allowed_are_no_error(limit: Any, trips: bool) -> None:
    with loader_of(limit) as loader:
        if trips:
            with pytest.raises(SampleError, match=r"14 samples of epoch 0 .*max_bad_samples="):
                list(loader)
        else:
            for _ in range(2):  # each epoch is judged by itself
                assert sum(len(batch) for batch in loader) == SAMPLES - len(BAD)
            assert len(loader.bad_samples()) == 2 * len(BAD)


def test_what_takes_the_place_of_a_bad_sample_counts_in_its_own_place_only() -> None:
    half_are_bad = fail_at(*[index * index for index in range(1, SAMPLES, 2)])
    for _ in range(2):
        with Loader(
            Squares(SAMPLES), half_are_bad, batch_size=5, num_workers=2, on_bad_sample="replace", max_bad_samples=50
        ) as loader:
            assert sum(len(batch) for batch in loader) == SAMPLES
            assert [bad.index for bad in loader.bad_samples()] == list(range(1, SAMPLES, 2))
            assert loader.statistics().bad_samples == 50


@pytest.mark.parametrize(("share", "most"), [(0.29, 29), (0.07, 7), (0.57, 57), (0.001, 0), (1 / 3, 33)])
def test_a_share_is_taken_as_it_is_written(share: float, most: int) -> None:
    with loader_of(share) as loader:
        assert loader._core.description.max_bad.most == most


def test_without_a_batch_size_and_on_a_host_of_two() -> None:
    with loader_of(0.14, batch_size=None) as loader:
        assert len(list(loader)) == SAMPLES - len(BAD)
    with loader_of(0.16, shard=(0, 2)) as loader:
        assert loader._core.description.max_bad.most == 8
        assert sum(len(batch) for batch in loader) == 50 - sum(index // 5 % 2 == 0 for index in BAD)


def test_a_resumed_epoch_counts_what_was_bad_before() -> None:
    with loader_of(7) as loader:
        iterator = iter(loader)
        for _ in range(6):
            next(iterator)
        state = json.loads(json.dumps(loader.state_dict()))
    assert state["bad_in_epoch"] == sum(index < 30 for index in BAD)
    with loader_of(7) as loader:
        loader.load_state_dict(state)
        again = iter(loader)
        for position in range(6, BAD[7] // 5):
            assert isinstance(next(again), np.ndarray), position
        with pytest.raises(SampleError, match="8 samples of epoch 0 are bad"):
            next(again)


@pytest.mark.parametrize("limit", [-1, True, 1.5, 0.0, float("nan"), "3", 2.0])
def test_what_is_neither_a_count_nor_a_share_is_refused(limit: Any) -> None:
    with pytest.raises(ArgumentError, match=r"max_bad_samples=.*expected an integer >= 0, or a share"):
        loader_of(limit)


def test_a_limit_without_a_policy_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r'max_bad_samples=3 has no meaning with on_bad_sample="raise"'):
        loader_of(3, on_bad_sample="raise")
