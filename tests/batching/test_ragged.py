"""Shapes that vary: padded, ragged, apart, in buckets, and batches that are larger than their slot. NumPy side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mploader
from mploader import BucketBy, Loader, Pad, Ragged
from mploader.errors import ArgumentError, SampleError, SpecError
from tests.conftest import kill_one

pytestmark = pytest.mark.usefixtures("workers_in_threads")

LENGTHS = [3, 1, 0, 5, 2, 8, 1, 1, 4, 7, 0, 2, 6]
ROWS = [np.arange(10 * number, 10 * number + length, dtype=np.int32) for number, length in enumerate(LENGTHS)]


def batches(source: Any, transform: Any = None, **options: Any) -> list[Any]:
    options = {"batch_size": 4, "num_workers": 2, **options}
    with Loader(source, transform, **options) as loader:
        return list(loader)


def groups(size: int = 4) -> Iterator[list[Any]]:
    return (ROWS[start : start + size] for start in range(0, len(ROWS), size))


def padded(rows: list[Any], length: int, value: int) -> Any:
    return np.array([[*row, *[value] * (length - len(row))] for row in rows], np.int32).reshape(len(rows), length)


# Padding


def test_to_the_longest_of_the_batch() -> None:
    for got, rows in zip(batches(ROWS, pad=-1), groups(), strict=True):
        np.testing.assert_array_equal(got, padded(rows, max(map(len, rows)), -1))


def test_to_a_multiple() -> None:
    for got, rows in zip(batches(ROWS, pad=Pad(7, multiple_of=4)), groups(), strict=True):
        np.testing.assert_array_equal(got, padded(rows, -(-max(map(len, rows)) // 4) * 4, 7))


def test_to_a_given_shape_which_the_spec_tells() -> None:
    with Loader(ROWS, batch_size=4, num_workers=1, pad=Pad(shape=(9,))) as loader:
        assert loader.element_spec == mploader.ArraySpec((None, 9), np.dtype(np.int32))
        for got, rows in zip(loader, groups(), strict=True):
            np.testing.assert_array_equal(got, padded(rows, 9, 0))


def test_several_dimensions_some_of_them_given() -> None:
    images = [np.full((height, height + 1, 3), height, np.uint8) for height in (2, 5, 3, 1, 4)]
    for got in batches(images, batch_size=5, pad=Pad(9, shape=(None, 7, 3))):
        wanted = np.full((5, 5, 7, 3), 9, np.uint8)
        for place, image in zip(wanted, images, strict=True):
            place[: image.shape[0], : image.shape[1]] = image
        np.testing.assert_array_equal(got, wanted)


def test_one_larger_than_the_given_shape_is_named() -> None:
    with pytest.raises(SpecError, match=r"sample 5.*shape \(8,\).*\(7,\)"):
        batches(ROWS, pad=Pad(shape=(7,)))


def test_a_structure_says_what_is_padded_and_how() -> None:
    def element(row: Any) -> dict[str, Any]:
        return {"row": row, "length": len(row), "weight": row.astype(np.float16), "same": np.ones(2)}

    made = batches(ROWS, element, pad={"row": -1, "length": None, "weight": Pad(0.1), "same": None})
    for got, rows in zip(made, groups(), strict=True):
        longest = max(map(len, rows))
        np.testing.assert_array_equal(got["row"], padded(rows, longest, -1))
        np.testing.assert_array_equal(got["length"], list(map(len, rows)))
        assert got["weight"].dtype == np.float16
        assert got["same"].shape == (len(rows), 2)
        for weights, row in zip(got["weight"], rows, strict=True):
            assert (weights[len(row) :] == np.float16(0.1)).all()


def test_strings_are_padded_with_strings() -> None:
    def words(row: Any) -> Any:
        return np.array([f"w{value}" for value in row], object)

    for pad, filling in ((0, b""), ("<pad>", b"<pad>")):
        for got, rows in zip(batches(ROWS, words, pad=pad), groups(), strict=True):
            longest = max(map(len, rows))
            assert got.tolist() == [[b"w%d" % v for v in row] + [filling] * (longest - len(row)) for row in rows]


@pytest.mark.parametrize(
    ("pad", "message"),
    [
        (-1, "expected a value of uint8"),
        (0.5, "expected a value of uint8"),
        (256, "expected a value of uint8"),
        ("x", "expected a value of uint8"),
        (Pad(shape=(1, 2)), "1 dimensions"),
        (True, r"pad=True: expected the value to pad element with, such as pad=0"),
        (False, r"pad=False: expected the value"),
        (Pad(np.True_), r"expected the value to pad element with, such as pad=0"),
        ((0, 1), "components"),
        ({"x": 0}, "components"),
    ],
)
def test_invalid_padding(pad: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Loader([np.zeros(2, np.uint8)], batch_size=1, num_workers=1, pad=pad)


@pytest.mark.parametrize("shape", [(-1,), (1.5,), (True,), "ab", 5])
def test_an_invalid_shape_to_pad_to_is_refused(shape: Any) -> None:
    with pytest.raises(ArgumentError, match=r"Pad: shape=.*expected a tuple with a size >= 0 or None"):
        Pad(shape=shape)


def test_sizes_to_pad_to_may_be_of_numpy() -> None:
    assert Pad(shape=[np.int64(3), None], multiple_of=np.int64(2)) == Pad(shape=(3, None), multiple_of=2)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="multiple_of=True"):
        Pad(multiple_of=True)


def test_undeclared_shapes_that_vary_are_an_error_with_advice() -> None:
    with pytest.raises(SpecError, match=r"sample 1 failed in worker \d: SpecError: .*shape \(1,\).*pad= or ragged="):
        batches(ROWS)


# Ragged


def test_ragged_batches_hold_each_element_as_it_was() -> None:
    for got, rows in zip(batches(ROWS, ragged=True), groups(), strict=True):
        assert isinstance(got, Ragged)
        assert got.row_splits.tolist() == np.cumsum([0, *map(len, rows)]).tolist()
        np.testing.assert_array_equal(got.values, np.concatenate(rows))
        assert got.dtype == np.int32
        for element, row in zip(got, rows, strict=True):
            np.testing.assert_array_equal(element, row)
        np.testing.assert_array_equal(got[-1], rows[-1])
        with pytest.raises(IndexError):
            got[len(rows)]


def test_several_ragged_dimensions() -> None:
    images = [np.full((length, 1 + length % 3, 2), length, np.uint8) for length in LENGTHS]
    start = 0
    for got in batches(images, ragged=2):
        assert len(got.nested_row_splits) == 2
        for image in got:
            # How wide an image without rows is, nobody can tell.
            assert image.shape == (images[start].shape if image.size else (0, 0, 2))
            assert (image == LENGTHS[start]).all()
            start += 1
    assert start == len(images)


def test_boxes_beside_images_and_strings() -> None:
    def element(row: Any) -> dict[str, Any]:
        return {"image": np.full((4, 4), len(row), np.uint8), "boxes": np.repeat(row[:, None], 4, axis=1),
                "names": np.array([b"n%d" % value for value in row], object), "count": len(row)}  # fmt: skip

    options = {"ragged": {"image": False, "boxes": True, "names": True, "count": False}}
    with Loader(ROWS, element, batch_size=4, num_workers=2, **options) as loader:
        spec = loader.element_spec
        assert (spec["boxes"].shape, spec["boxes"].ragged_rank) == ((None, None, 4), 1)
        assert (spec["image"].shape, spec["image"].ragged_rank) == ((None, 4, 4), 0)
        for got, rows in zip(loader, groups(), strict=True):
            assert got["boxes"].values.shape[1:] == (4,)
            for place, row in enumerate(rows):
                np.testing.assert_array_equal(got["boxes"][place][:, 2], row)
                assert got["names"][place].tolist() == [b"n%d" % value for value in row]
                assert (got["image"][place] == len(row)).all()


def test_a_dimension_that_was_not_said_to_vary_is_an_error() -> None:
    with pytest.raises(SpecError, match=r"\(2, 3\)"):
        batches([np.ones((2, 2)), np.ones((2, 3))], ragged=True)


@pytest.mark.parametrize("ragged", ["yes", 2, -1, (True, True)])
def test_invalid_ragged_is_refused(ragged: Any) -> None:
    with pytest.raises(ArgumentError, match="ragged="):
        Loader([np.zeros(2)], batch_size=1, num_workers=1, ragged=ragged)


def test_padded_and_ragged_exclude_each_other() -> None:
    with pytest.raises(ArgumentError, match="either padded or ragged"):
        Loader(ROWS, batch_size=2, num_workers=1, pad=0, ragged=True)


# Without a batch size


@pytest.mark.parametrize("options", [{"ragged": True}, {"pad": 0}])
def test_elements_without_a_batch_size_stay_as_they_are(options: dict[str, Any]) -> None:
    def element(row: Any) -> tuple[Any, Any]:
        return row, np.array([b"x"] * len(row), object)

    got = batches(ROWS, element, batch_size=None, **options)
    for (row, words), wanted in zip(got, ROWS, strict=True):
        np.testing.assert_array_equal(row, wanted)
        assert words.tolist() == [b"x"] * len(wanted)


def test_elements_are_padded_each_by_itself() -> None:
    for row, wanted in zip(batches(ROWS, batch_size=None, pad=Pad(-1, multiple_of=3)), ROWS, strict=True):
        np.testing.assert_array_equal(row, padded([wanted], -(-len(wanted) // 3) * 3, -1)[0])


# What the writer must withstand


class SameBuffer:
    """A transform that returns views of one array which it overwrites, as one with ``out=`` does."""

    buffer: Any = None

    def __call__(self, row: Any) -> Any:
        if self.buffer is None:
            self.buffer = np.zeros(16, np.int32)
        self.buffer[: len(row)] = row
        return self.buffer[: len(row)]


@pytest.mark.parametrize("options", [{"ragged": True}, {"pad": -1}])
def test_a_transform_may_use_its_buffer_again(options: dict[str, Any]) -> None:
    wanted = [batch.tolist() if "pad" in options else [row.tolist() for row in batch]
              for batch in batches(ROWS, **options)]  # fmt: skip
    got = [batch.tolist() if "pad" in options else [row.tolist() for row in batch]
           for batch in batches(ROWS, SameBuffer(), **options)]  # fmt: skip
    assert got == wanted


class FailsAt:
    def __init__(self, bad: set[int]) -> None:
        self.bad = bad

    def __call__(self, row: Any) -> Any:
        if len(row) and int(row[0]) // 10 in self.bad:
            raise ValueError("bad row")
        return row


def test_a_batch_whose_samples_are_all_dropped_is_empty() -> None:
    for options in ({"ragged": True}, {"pad": 0}, {"pad": Pad(shape=(None,), multiple_of=8)}):
        made = batches([*ROWS[3:6], ROWS[0]], FailsAt({3, 4, 5}), batch_size=3, on_bad_sample="drop", **options)
        assert [len(batch) for batch in made] == [0, 1]


# Larger than the slot


def surprising(number: int) -> Any:
    """Small where the loader looks first, large elsewhere."""
    return np.full(200_000 if number % 5 == 3 else number % 7, number, np.int64)


@pytest.mark.parametrize("options", [{"ragged": True}, {"pad": -1}, {"ragged": True, "batch_size": None}])
def test_a_batch_larger_than_its_slot_comes_whole(options: dict[str, Any]) -> None:
    places = list(range(100))
    options = {"batch_size": 4, **options}
    with Loader(places, surprising, num_workers=2, memory="16MiB", **options) as loader:
        for _ in range(2):
            kept = list(loader)  # all at once: what is held must not change
            rows = kept if options["batch_size"] is None else [row for batch in kept for row in batch]
            for number, row in zip(places, rows, strict=True):
                wanted = surprising(number)
                np.testing.assert_array_equal(row[: len(wanted)], wanted)
                assert (row[len(wanted) :] == -1).all()
        statistics = loader.statistics()
        assert statistics.bytes > 16 * 2**20


def mixed(number: int) -> dict[str, Any]:
    return {"image": np.full((8, 8), number % 251, np.uint8), "row": surprising(number), "text": b"t%d" % number}


def test_components_of_one_shape_are_whole_in_a_batch_that_is_too_large() -> None:
    with Loader(list(range(40)), mixed, batch_size=4, num_workers=2, memory="4MiB",
                ragged={"image": False, "row": True, "text": False}) as loader:  # fmt: skip
        numbers = iter(range(40))
        for batch in loader:
            for place, row in enumerate(batch["row"]):
                number = next(numbers)
                assert (batch["image"][place] == number % 251).all()
                assert batch["text"][place] == b"t%d" % number
                np.testing.assert_array_equal(row, surprising(number))


@pytest.mark.processes
def test_batches_that_are_too_large_survive_the_death_of_their_workers() -> None:
    with Loader(list(range(120)), surprising, batch_size=4, num_workers=2, pad=-1, memory="16MiB") as loader:
        wanted = [batch.sum() for batch in loader]
        got = []
        for place, batch in enumerate(loader):
            if place % 6 == 2:
                kill_one(loader, place // 6 % 2)
            got.append(batch.sum())
        assert got == wanted
        assert loader.statistics().restarts > 0


def test_large_batches_leave_no_descriptors_behind() -> None:
    with Loader(list(range(60)), surprising, batch_size=4, num_workers=1, ragged=True) as loader:
        for _ in loader:
            pass
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(6):
            for _ in loader:
                pass
        # Batches that are made ahead, at most one a slot, have theirs.
        assert len(os.listdir("/proc/self/fd")) <= before + loader.statistics().slots


# Buckets


def test_buckets_hold_similar_lengths_and_every_sample_once_an_epoch() -> None:
    rows = [np.full(length, number) for number, length in enumerate(np.random.default_rng(0).integers(1, 40, 150))]
    with Loader(rows, batch_size=8, shuffle=True, num_workers=2, ragged=True,
                bucket_by=BucketBy(len, [10, 20, 30])) as loader:  # fmt: skip
        epochs = [list(loader), list(loader)]
        assert {len(epoch) for epoch in epochs} == {len(loader)}
    contents = []
    for epoch in epochs:
        for batch in epoch:
            buckets = {len(row) // 10 for row in batch}
            assert len(buckets) == 1
        contents.append([int(row[0]) for batch in epoch for row in batch])
        assert sorted(contents[-1]) == list(range(150))
    assert contents[0] != contents[1]


def test_buckets_do_not_depend_on_the_number_of_workers_or_on_who_measured() -> None:
    lengths = np.array(LENGTHS)
    first = batches(ROWS, pad=0, bucket_by=BucketBy(len, [2, 5]), shuffle=True, seed=4, num_workers=1)
    second = batches(ROWS, pad=0, bucket_by=BucketBy(lengths, [2, 5]), shuffle=True, seed=4, num_workers=3)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_hosts_share_each_batch_of_a_bucket() -> None:
    options: dict[str, Any] = {"shuffle": True, "seed": 2, "ragged": True}
    bucket_by = BucketBy(np.array(LENGTHS), [3], batch_sizes=[4, 2])
    whole = batches(ROWS, batch_size=None, bucket_by=bucket_by, **options)
    halves = [
        batches(ROWS, batch_size=None, bucket_by=BucketBy(np.array(LENGTHS), [3], batch_sizes=[2, 1]),
                shard=(index, 2), **options)
        for index in range(2)
    ]  # fmt: skip
    for batch, *parts in zip(whole, *halves, strict=True):
        assert [row.tolist() for row in batch] == [row.tolist() for part in parts for row in part]


def test_a_bad_sample_is_replaced_from_its_own_bucket() -> None:
    made = batches(ROWS, FailsAt({5}), ragged=True, on_bad_sample="replace", bucket_by=BucketBy(len, [5]))
    for batch in made:
        assert len({len(row) >= 5 for row in batch}) == 1
    assert sum(len(batch) for batch in made) == len(ROWS)


@pytest.mark.parametrize("policy", ["drop", "replace"])
def test_a_sample_whose_length_fails_is_bad(policy: str) -> None:
    def length(row: Any) -> int:
        return len(row) // (0 if len(row) and row[0] == ROWS[5][0] else 1)

    options: dict[str, Any] = {"pad": 0, "on_bad_sample": policy, "bucket_by": BucketBy(length, [3])}
    with Loader(ROWS, batch_size=4, num_workers=2, **options) as loader:
        assert sum(len(batch) for batch in loader) == len(ROWS) - (policy == "drop")
        (bad,) = loader.bad_samples()
    assert (bad.index, bad.error) == (5, "ZeroDivisionError: integer division or modulo by zero")
    assert ", in length" in bad.traceback


def test_a_position_in_buckets_is_resumed() -> None:
    def make() -> Loader:
        return Loader(ROWS, batch_size=2, num_workers=1, shuffle=True, pad=0, bucket_by=BucketBy(len, [1, 4]))

    with make() as loader:
        wanted = [batch.tolist() for batch in loader]
        for stop in (1, len(wanted) - 1):
            state = loader.state_dict()
            run = iter(loader)
            for _ in range(stop):
                next(run)
            state = loader.state_dict()
            rest = [batch.tolist() for batch in run]
            with make() as other:
                other.load_state_dict(state)
                assert [batch.tolist() for batch in other] == rest


def test_a_length_function_that_fails_names_the_sample() -> None:
    with pytest.raises(SampleError, match=r"sample 2 .*float"):
        batches(ROWS, pad=0, bucket_by=BucketBy(lambda row: len(row) or 0.5, [2]))


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((len, []), {}),
        ((len, [3, 3]), {}),
        ((len, [3.5]), {}),
        ((len, [3], [1, 2, 3]), {}),
        ((len, [3], [1, 0]), {}),
        ((np.ones(4), [3]), {}),
        ((np.ones(4, int), [3]), {}),  # thirteen samples
        ((len, [3]), {"batch_size": None}),
        ((len, [3], [1, 2]), {"batch_size": 2}),
    ],
)
def test_invalid_buckets_are_refused(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        batches(ROWS, pad=0, bucket_by=BucketBy(*arguments), **options)
