"""``element_spec=``: what elements look like is said, not found out."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mploader import ArgumentError, ArraySpec, Loader, Pad, SpecError
from mploader.loader.declared_element import read_element_spec
from tests.transforms import square

pytestmark = pytest.mark.usefixtures("workers_in_threads")

Pair = namedtuple("Pair", "image label")
INT64 = np.dtype(np.int64)
SQUARE = (((4, 4), np.float32), ((), "int64"))


class Counting:
    """Notes each read in a file."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> int:
        with open(self._log, "a") as log:
            log.write(f"{index}\n")
        return index


@pytest.mark.parametrize("batch_size", [4, None])
def test_nothing_is_read_before_iteration(tmp_path: Path, batch_size: int | None) -> None:
    log = tmp_path / "reads"
    log.touch()
    with Loader(
        Counting(log), square, batch_size=batch_size, num_workers=2, element_spec=SQUARE
    ) as loader:
        assert loader.element_spec == loader.element_spec
        assert log.read_text() == ""
        found = list(loader)
        assert sorted(map(int, log.read_text().split()))[:1] == [0]
    with Loader(range(12), square, batch_size=batch_size, num_workers=2) as probed:
        assert probed.element_spec == loader.element_spec
        for ours, theirs in zip(found, probed, strict=True):
            np.testing.assert_array_equal(ours[0], theirs[0])
            np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (((3,), "f4"), ArraySpec((3,), np.dtype("f4"))),
        (ArraySpec((None,), np.dtype(">i8")), ArraySpec((None,), INT64)),
        ({"a": ((), bytes), "b": (((), int), ((), str))},
         {"a": ArraySpec((), np.dtype(object)), "b": (ArraySpec((), INT64), ArraySpec((), np.dtype(object)))}),
        ((((), int), ((), int)), (ArraySpec((), INT64), ArraySpec((), INT64))),
        (Pair(((2,), bool), ((), int)), Pair(ArraySpec((2,), np.dtype(bool)), ArraySpec((), INT64))),
    ],
)  # fmt: skip
def test_a_structure_of_specs_or_pairs_is_read(given: Any, expected: Any) -> None:
    found = read_element_spec(given)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "element_spec=5"),
        ((), "at least one component"),
        ({"a": [1]}, r"element_spec\['a'\]=\[1\]"),
        (((-1,), int), r"shape \(-1,\)"),
        (((2.0,), int), r"shape \(2.0,\)"),
        (((2,), "no dtype"), "dtype 'no dtype'"),
        (((2,), "M8[s]"), "dtype datetime64"),
        (ArraySpec((None, None), INT64, 1), "pass ragged="),
    ],
)
def test_an_invalid_spec_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Loader(range(4), batch_size=2, num_workers=1, element_spec=given)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda sample: np.zeros((3, 2)), r"has shape \(3, 2\), but element_spec= has \(3, 3\)"),
        (lambda sample: np.zeros((3, 3), np.float32), "dtype float32"),
        (lambda sample: (np.zeros((3, 3)), 1), "components"),
    ],
)
def test_an_element_that_does_not_fit_is_an_error(transform: Any, message: str) -> None:
    with Loader(range(4), transform, batch_size=2, num_workers=1, element_spec=((3, 3), float)) as loader:
        with pytest.raises(SpecError, match=message) as caught:
            next(iter(loader))
    assert caught.value.index == 0
    assert caught.value.kind == "SpecError"


def rows(sample: int) -> Any:
    return np.full((sample % 3 + 1, 2), sample, np.int32)


def test_sizes_that_vary_need_padding_or_ragged_batches() -> None:
    spec = ((None, 2), np.int32)
    with pytest.raises(ArgumentError, match=r"shape \(None, 2\).*pass pad= or ragged="):
        Loader(range(4), rows, batch_size=2, num_workers=1, element_spec=spec)
    with pytest.raises(ArgumentError, match=r"ragged=1 .*\(None, None\)"):
        Loader(range(4), rows, batch_size=2, num_workers=1, ragged=True, element_spec=((None, None), np.int32))
    with Loader(range(6), rows, batch_size=3, num_workers=1, pad=0, element_spec=spec) as loader:
        assert loader.element_spec.shape == (None, None, 2), "only what is None in the spec varies"
        assert [batch.shape for batch in loader] == [(3, 3, 2)] * 2
    with Loader(range(6), rows, batch_size=3, num_workers=1, ragged=True, element_spec=spec) as loader:
        assert [[len(element) for element in batch] for batch in loader] == [[1, 2, 3]] * 2
    with Loader(range(6), rows, batch_size=None, num_workers=1, element_spec=spec) as loader:
        assert [element.shape for element in loader] == [(1, 2), (2, 2), (3, 2)] * 2
    with Loader(range(6), rows, batch_size=3, num_workers=1, pad=Pad(shape=(4, 2)), element_spec=spec) as loader:
        assert loader.element_spec.shape == (None, 4, 2)
        assert next(iter(loader)).shape == (3, 4, 2)


def test_a_size_that_is_declared_does_not_vary_though_pad_is_given() -> None:
    with Loader(range(6), rows, batch_size=3, num_workers=1, pad=0, element_spec=((2, 2), np.int32)) as loader:
        assert loader.element_spec.shape == (None, 2, 2)
        with pytest.raises(SpecError, match=r"\(1, 2\)"):
            next(iter(loader))


def test_batches_larger_than_their_slots_come_all_the_same() -> None:
    def long(sample: int) -> Any:
        return np.full(200_000, sample, np.int64), b"x" * 100_000

    spec = (((None,), np.int64), ((), bytes))
    with Loader(range(8), long, batch_size=4, num_workers=1, pad=0, element_spec=spec) as loader:
        assert loader._core.slots.batch_bytes < 4 * 1_700_000
        for batch, (numbers, texts) in enumerate(loader):
            assert (numbers == np.arange(4 * batch, 4 * batch + 4)[:, np.newaxis]).all()
            assert set(map(len, texts)) == {100_000}
