"""Elements that cannot be stored: what is a bad sample, what is an error in any case, and nothing stored wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mploader import Loader, SampleError, SpecError

pytestmark = pytest.mark.usefixtures("workers_in_threads")


def with_text(number: Callable[[int], Any]) -> Callable[[int], Any]:
    """A text, whose component is kept until the end of the batch, and a number that may be refused behind it."""
    return lambda sample: (f"text {sample}", number(sample))


def too_large(sample: int) -> int:
    return 2**70 if sample == 5 else sample


@pytest.mark.parametrize(("policy", "texts"), [("drop", 7), ("replace", 8)])
def test_a_sample_whose_number_has_no_room_is_bad_and_leaves_nothing_behind(policy: str, texts: int) -> None:
    with Loader(range(8), with_text(too_large), batch_size=8, num_workers=1, on_bad_sample=policy) as loader:
        ((words, numbers),) = list(loader)
        assert [bad.index for bad in loader.bad_samples()] == [5]
    assert len(words) == texts
    assert words.tolist() == [b"text %d" % number for number in numbers]


def test_a_sample_whose_number_has_no_room_is_an_error_by_default() -> None:
    with Loader(range(8), too_large, batch_size=8, num_workers=1) as loader:
        with pytest.raises(SampleError, match=r"(?s)sample 5 failed in worker 0: OverflowError.*on_bad_sample"):
            list(loader)


@pytest.mark.parametrize("policy", ["raise", "drop", "replace"])
def test_an_element_that_does_not_fit_is_an_error_whatever_the_policy(policy: str) -> None:
    with Loader(
        range(8), with_text(lambda sample: None if sample == 5 else sample), batch_size=8, num_workers=1,
        on_bad_sample=policy,
    ) as loader:  # fmt: skip
        with pytest.raises(SpecError, match=r"sample 5 failed in worker 0: SpecError: element\[1\] is None"):
            list(loader)


@pytest.mark.parametrize(
    ("first", "later", "message"),
    [
        (np.array([b"a", b"b"], object), np.array([b"a", 3], object), "expected bytes or str, got 3, a int"),
        (np.float32(1), 1e300, "1e\\+300, which does not fit the dtype float32"),
        (np.int8(1), np.int64(300), "300.*does not fit the dtype int8"),
        (np.uint8(1), np.int64(-1), "does not fit the dtype uint8"),
        (np.zeros(2), [1.0, 2.0], r"\[1.0, 2.0\], which does not fit"),
        (np.zeros(2), np.ma.masked_array([1.0, 2.0], [True, False]), "masked array"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), 0, "masked array"),
    ],
)
def test_nothing_is_stored_as_something_else(first: Any, later: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        list(Loader(range(4), lambda sample: later if sample == 3 else first, batch_size=4, num_workers=1))


def test_numbers_that_fit_are_taken_as_they_come() -> None:
    values = [np.float32(1.5), 2, np.float64(0.1), True, np.inf, np.float16(3)]
    with Loader(range(6), lambda sample: values[sample], batch_size=6, num_workers=1) as loader:
        (batch,) = loader
    assert batch.dtype == np.float32
    assert batch.tolist() == np.array(values, np.float32).tolist()


def test_a_batch_size_beyond_the_data_takes_no_more_memory_than_the_data() -> None:
    def picture(sample: int) -> np.ndarray:
        return np.full((224, 224, 3), sample, np.uint8)

    with Loader(range(10), picture, batch_size=100_000, num_workers=1) as loader:
        assert [batch.shape for batch in loader] == [(10, 224, 224, 3)]
        assert loader.statistics().slot_bytes < 2 * 10 * 224 * 224 * 3
    with Loader(range(10), picture, batch_size=100_000, num_workers=1, shard=(1, 3)) as loader:
        assert [batch.shape for batch in loader] == [(3, 224, 224, 3)]
