"""The permutation behind shuffling: one-to-one at every size, well mixed, and the same for ever."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import numpy.typing as npt
import pytest

from mploader.errors import ArgumentError
from mploader.sampling.permutation import MAX_SIZE, Permutation, digest


def excess(counts: npt.NDArray[np.float64]) -> float:
    """Chi-square against equal counts, in standard deviations above its mean."""
    expected = counts.mean()
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    freedom = counts.size - 1
    return float((chi_square - freedom) / np.sqrt(2 * freedom))


def test_every_item_comes_once_at_every_size_up_to_1000() -> None:
    for size in range(1, 1001):
        items = Permutation(size, 5, size)(np.arange(size))
        assert items.dtype == np.int64
        assert np.array_equal(np.sort(items), np.arange(size)), size


@pytest.mark.parametrize("size", [1023, 1024, 1025, 65_536, 99_999, 300_000])
def test_every_item_comes_once_on_both_sides_of_the_change_of_rounds(size: int) -> None:
    assert np.array_equal(np.sort(Permutation(size, 1, 2)(np.arange(size))), np.arange(size))


@pytest.mark.parametrize("size", [10**9, 10**12, 10**12 + 39, 2**40 - 1, MAX_SIZE - 1, MAX_SIZE])
def test_no_item_repeats_in_samples_of_a_large_range(size: int) -> None:
    permutation = Permutation(size, 3, 1)
    positions = np.concatenate([np.arange(100_000), size - 1 - np.arange(100_000)])
    items = permutation(positions)
    assert items.min() >= 0
    assert items.max() < size
    assert np.unique(items).size == items.size


def test_items_and_positions_of_a_large_range_are_spread_evenly() -> None:
    size = 10**12
    items = Permutation(size, 0, 0)(np.arange(200_000))
    for divisor in (256, 251):
        low_part = np.bincount(items % divisor, minlength=divisor).astype(float)
        assert abs(excess(low_part)) < 4.5, divisor
    high_part = np.bincount(items // (size // 256) % 256, minlength=256).astype(float)
    assert abs(excess(high_part)) < 4.5


def test_where_an_item_lands_is_uniform_over_keys() -> None:
    size, keys = 50, 5_000
    landed = np.zeros((3, size))
    for key in range(keys):
        items = Permutation(size, 11, key)(np.array([0, 1, size - 1]))
        landed[np.arange(3), items] += 1
    for row in landed:
        assert abs(excess(row)) < 4.5


def test_neighbours_do_not_stay_neighbours() -> None:
    items = Permutation(10**6, 4, 4)(np.arange(100_000)).astype(float)
    assert abs(np.corrcoef(items[:-1], items[1:])[0, 1]) < 0.015
    # Differences of neighbours: an affine or weakly mixed map repeats a few of them.
    assert np.unique(np.diff(items)).size > 90_000


@pytest.mark.parametrize("other", [(7, 1), (8, 0), (8, 1), (7, 2**32), (7 + 2**64, 0), (0, 7)])
def test_other_seeds_and_epochs_are_not_correlated(other: tuple[int, int]) -> None:
    size = 10**6
    positions = np.arange(100_000)
    one = Permutation(size, 7, 0)(positions)
    two = Permutation(size, *other)(positions)
    assert abs(np.corrcoef(one.astype(float), two.astype(float))[0, 1]) < 0.015
    assert (one == two).sum() <= 6  # 0.1 expected by chance
    shift = np.bincount((one - two) % 997, minlength=997).astype(float)
    assert abs(excess(shift)) < 4.5


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_all_permutations_of_few_items_are_equally_likely(size: int) -> None:
    number = {order: i for i, order in enumerate(itertools.permutations(range(size)))}
    counts = np.zeros(len(number))
    for key in range(4_000):
        counts[number[tuple(Permutation(size, 1, key)(np.arange(size)).tolist())]] += 1
    assert abs(excess(counts)) < 4.5


def test_golden_values_that_saved_positions_rely_on() -> None:
    """If this fails, runs saved by a released version would resume on another order: change FUNCTION too."""
    assert Permutation(10, 1, 2)(np.arange(10)).tolist() == [7, 1, 9, 0, 4, 6, 8, 3, 5, 2]
    assert Permutation(1_281_167, 0, 0)(np.arange(6)).tolist() == [
        1097359,
        427679,
        509238,
        702823,
        455660,
        35809,
    ]
    assert Permutation(10**12, 2**70, 3)(np.arange(4)).tolist() == [
        862026357035,
        991985259683,
        572566628163,
        749076821682,
    ]


def test_a_position_does_not_depend_on_the_others_asked_for() -> None:
    permutation = Permutation(777, 1)
    whole = permutation(np.arange(777))
    assert [int(permutation(position)) for position in (0, 5, 776)] == whole[[0, 5, 776]].tolist()
    assert permutation(np.arange(12).reshape(3, 4)).tolist() == whole[:12].reshape(3, 4).tolist()
    assert permutation(np.empty(0, np.int64)).shape == (0,)


def test_pickled_it_is_small_and_the_same() -> None:
    permutation = Permutation(10**12, 1, 2)
    pickled = pickle.dumps(permutation)
    assert len(pickled) < 1024
    assert np.array_equal(pickle.loads(pickled)(np.arange(50)), permutation(np.arange(50)))


@pytest.mark.parametrize("size", [0, -1, MAX_SIZE + 1])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ArgumentError, match=str(size)):
        Permutation(size, 1)


def test_a_negative_key_is_refused() -> None:
    with pytest.raises(ArgumentError, match="-3"):
        Permutation(5, -3)


@pytest.mark.parametrize("positions", [[-1], [0, 5]])
def test_a_position_out_of_range_is_refused(positions: list[int]) -> None:
    with pytest.raises(IndexError, match="of 5 items"):
        Permutation(5, 1)(positions)


def test_digest_separates_numbers_and_purposes() -> None:
    inputs: list[tuple[str, tuple[int, ...]]] = [
        ("a", (1, 23)),
        ("a", (12, 3)),
        ("a", (123,)),
        ("a", (1, 23, 0)),
        ("b", (1, 23)),
        ("a", (2**64,)),
        ("a", (0, 1)),
    ]
    digests = {digest(purpose, *numbers) for purpose, numbers in inputs}
    assert len(digests) == len(inputs)
