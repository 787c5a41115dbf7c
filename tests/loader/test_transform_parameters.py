"""A transform takes ``rng``, ``epoch`` and ``index`` by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mploader import ArgumentError, Loader, apply_to
from mploader.engine.ipc.job import SampleJob
from mploader.sampling.plan import Plan
from mploader.sampling.rng import SampleRandom
from mploader.sources import Subset

SOURCE = np.arange(20) * 10


def epochs(transform: Any, number: int, source: Any = SOURCE, **options: Any) -> list[list[Any]]:
    options = {"batch_size": 4, "num_workers": 2, "seed": 5, **options}
    with Loader(source, transform, **options) as loader:
        return [[row.tolist() for batch in loader for row in batch] for _ in range(number)]


def test_index_is_the_number_that_the_source_was_asked_for() -> None:
    def numbered(sample: int, index: int) -> np.ndarray[Any, Any]:
        return np.array([sample, index])

    (rows,) = epochs(numbered, 1, shuffle=True)
    assert sorted(rows) == [[10 * index, index] for index in range(20)]
    assert rows != sorted(rows)
    (rows,) = epochs(numbered, 1, source=Subset(SOURCE, [7, 3]))
    assert rows == [[70, 0], [30, 1]]


def test_epoch_counts_from_zero_and_goes_on_after_a_resume() -> None:
    def dated(sample: int, *, epoch: int) -> np.ndarray[Any, Any]:
        return np.array([sample, epoch])

    assert epochs(dated, 3) == [[[10 * index, epoch] for index in range(20)] for epoch in range(3)]
    with Loader(SOURCE, dated, batch_size=4, num_workers=1) as loader:
        list(loader)
        next(iter(loader))
        state = loader.state_dict()
    with Loader(SOURCE, dated, batch_size=4, num_workers=1) as loader:
        loader.load_state_dict(state)
        assert [batch[:, 1].tolist() for batch in loader] == [[1] * 4] * 4
        assert next(iter(loader))[:, 1].tolist() == [2] * 4


def test_all_three_come_together_in_any_order() -> None:
    def all_of_them(sample: int, index: int, epoch: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        return np.array([index, epoch, rng.integers(1 << 30)])

    random = SampleRandom(5)
    assert epochs(all_of_them, 2) == [
        [[index, epoch, random(epoch, index).integers(1 << 30)] for index in range(20)] for epoch in range(2)
    ]


def test_a_default_keeps_its_value() -> None:
    def scaled(sample: int, epoch: int = 7, index: int = 8) -> np.ndarray[Any, Any]:
        return np.array([epoch, index])

    assert epochs(scaled, 1) == [[[7, 8]] * 20]


def test_a_component_of_a_sample_takes_them_too() -> None:
    def numbered(image: Any, epoch: int, index: int) -> Any:
        return image + 100 * epoch + index

    source = [(10 * number, number) for number in range(8)]
    with Loader(source, apply_to(0, numbered), batch_size=8, num_workers=1) as loader:
        assert [(one + two).tolist() for _ in range(2) for one, two in loader] == [
            [12 * number + 100 * epoch for number in range(8)] for epoch in range(2)
        ]


def test_a_replacement_has_its_own_index() -> None:
    def picky(sample: int, index: int) -> np.ndarray[Any, Any]:
        if index == 3:
            raise ValueError("bad")
        return np.array([sample, index])

    (rows,) = epochs(picky, 1, on_bad_sample="replace")
    assert rows[3][1] != 3
    assert all(sample == 10 * index for sample, index in rows)


def test_another_parameter_is_an_argument_error() -> None:
    with pytest.raises(ArgumentError, match="'generator', which has no default"):
        Loader(SOURCE, lambda sample, generator: sample, batch_size=4)


@pytest.mark.parametrize(
    ("transform", "parameters", "depends"),
    [
        (None, set(), False),
        (lambda sample: sample, set(), False),
        (lambda sample, index: sample, {"index"}, False),
        (lambda sample, epoch: sample, {"epoch"}, True),
        (lambda sample, rng, index: sample, {"rng", "index"}, True),
    ],
)
def test_only_rng_and_epoch_make_a_sample_depend_on_the_epoch(
    transform: Any, parameters: set[str], depends: bool
) -> None:
    job = SampleJob(source=[1], transform=transform, plan=Plan(1, 1), on_bad_sample="raise", is_batched=True)
    assert job.parameters == parameters
    assert job.depends_on_epoch == depends
