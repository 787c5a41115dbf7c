"""Sources made of sources: exact proportions, any place at once, and the loader's guarantees through all of them."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from mploader import Loader
from mploader.errors import ArgumentError
from mploader.sampling.mixture import pattern_of, whole_weights, window_error
from mploader.sampling.plan import Plan
from mploader.sampling.samplers import ShardShuffle, ShardWindowSampler
from mploader.sources import Concat, Map, Mix, Subset, TFRecordShards
from mploader.sources.choose_sampler import sampler_for
from mploader.sources.tfrecord_write import TFRecordWriter

LETTERS = [[f"{letter}{number}" for number in range(count)] for letter, count in (("a", 60), ("b", 25), ("c", 10))]


def mix_of(*weights: float, length: int | None = None) -> Mix:
    return Mix(list(zip(LETTERS, weights, strict=False)), length=length)


def drawn(source: Any, epochs: int, *, seed: int = 0, shuffle: Any = True) -> list[list[Any]]:
    """The samples of some epochs as a loader with this seed reads them, worked out in this process."""
    order = sampler_for(source, len(source), seed, shuffle)
    positions = np.arange(len(source))
    return [[source[int(index)] for index in order.indices(epoch, positions)] for epoch in range(epochs)]


@pytest.mark.parametrize(
    "weights", [(1, 1), (3, 1), (1, 3), (7, 2), (0.7, 0.3), (1, 99), (5, 7), (1,), (1281167, 50000)], ids=str
)
def test_with_two_sources_every_window_is_exact_to_less_than_one_sample(weights: tuple[float, ...]) -> None:
    whole = whole_weights(weights)
    sources, _ = pattern_of(whole).locate(np.arange(3_000))
    for source, weight in enumerate(whole):
        excess = np.concatenate([[0], np.cumsum(sources == source)]) * sum(whole) - np.arange(3_001) * weight
        assert int(excess.max() - excess.min()) < sum(whole)  # in 1 / sum(whole) samples, so without rounding


@pytest.mark.parametrize(
    "weights",
    [(1, 1, 1), (2, 1, 1), (4, 2, 1), (5, 3, 2), (0.7, 0.2, 0.1), (50, 30, 15, 5), (10, 5, 3, 1), (100, 1, 1, 1, 1)],
    ids=str,
)
def test_with_more_sources_windows_from_the_start_are_exact_and_others_within_two(weights: tuple[float, ...]) -> None:
    whole = whole_weights(weights)
    sources, _ = pattern_of(whole).locate(np.arange(sum(whole)))
    from_start, anywhere = window_error(sources, whole)
    assert from_start < 1
    assert anywhere < 2
    assert np.bincount(sources).tolist() == list(whole)  # a period holds them exactly, so it goes on like that


@pytest.mark.parametrize("weights", [(1, 1, 1), (2, 1, 1), (4, 2, 1), (8, 4, 2, 1)], ids=str)
def test_where_a_pattern_exact_in_every_window_exists_it_is_found(weights: tuple[int, ...]) -> None:
    sources, _ = pattern_of(weights).locate(np.arange(sum(weights)))
    assert window_error(sources, weights)[1] < 1


def test_random_weights_keep_the_bounds() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        whole = whole_weights([int(weight) for weight in random.integers(1, 50, random.integers(3, 8))])
        sources, _ = pattern_of(whole).locate(np.arange(sum(whole)))
        from_start, anywhere = window_error(sources, whole)
        assert from_start < 1
        assert anywhere < 2


@pytest.mark.parametrize("weights", [(1,), (2, 1), (50000, 1281167), (3, 2, 2), (40_000, 20_000, 5_536)], ids=str)
def test_places_and_samples_are_found_from_each_other_however_far(weights: tuple[int, ...]) -> None:
    pattern = pattern_of(weights)
    for start in (0, 12_345, 2**45):
        places = np.arange(start, start + 2_000)
        sources, ordinals = pattern.locate(places)
        for source in range(len(weights)):
            is_here = sources == source
            assert np.array_equal(pattern.samples_of(source, ordinals[is_here]), places[is_here])
            assert (np.diff(ordinals[is_here]) == 1).all()


def test_golden_patterns_that_saved_positions_rely_on() -> None:
    def text(*weights: int) -> str:
        return "".join("abcd"[source] for source in pattern_of(weights).locate(np.arange(sum(weights)))[0])

    assert text(3, 2) == "ababa"
    assert text(5, 3, 2) == "abacabacba"
    assert text(4, 2, 1) == "abacaba"


def test_weights_are_ratios_however_they_are_written() -> None:
    assert whole_weights([0.7, 0.3]) == whole_weights([7, 3]) == whole_weights([70.0, 30.0]) == (7, 3)
    assert whole_weights([1 / 3, 2 / 3]) == (1, 2)
    assert whole_weights([0.1, 0.2, 0.7]) == (1, 2, 7)
    kept = np.array(whole_weights([3**0.5, 2**0.5, 1.0]))
    assert np.abs(kept / kept.sum() - np.array([3**0.5, 2**0.5, 1]) / (3**0.5 + 2**0.5 + 1)).max() < 2 / 65_536


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "2", True, None])
def test_weights_that_cannot_be_meant_are_refused(weight: Any) -> None:
    with pytest.raises(ArgumentError, match="weight="):
        Mix([([1], 1), ([2], weight)])


def test_a_mix_is_a_sequence_of_an_epoch_and_ends_with_its_first_source() -> None:
    mix = mix_of(3, 1)
    samples = list(mix)
    assert len(samples) == len(mix)
    assert [sample for sample in samples if sample[0] == "a"] == LETTERS[0]  # all 60, and the next place needs the 61st
    assert mix[len(mix)] == "a0"
    assert mix[-1] == samples[-1]
    assert len(mix_of(3, 1, length=500)) == 500


def test_a_source_comes_whole_before_it_starts_again_in_another_order() -> None:
    mix = mix_of(5, 3, 2, length=37)
    stream = [sample for epoch in drawn(mix, 40, seed=1) for sample in epoch]
    for letters in LETTERS:
        own = [sample for sample in stream if sample[0] == letters[0][0]]
        passes = [tuple(own[at : at + len(letters)]) for at in range(0, len(own), len(letters))]
        assert all(sorted(once) == sorted(letters) for once in passes[:-1])
        assert len(set(passes)) == len(passes) > 2
    # The proportions hold across epochs, though 37 is no multiple of the period.
    assert sum(sample[0] == "a" for sample in stream) == 740


def test_shuffling_keeps_the_pattern_and_a_mix_without_it_goes_on_in_order() -> None:
    mix = mix_of(3, 1)
    (shuffled,) = drawn(mix, 1)
    assert [sample[0] for sample in shuffled] == [sample[0] for sample in mix]
    assert shuffled != list(mix)
    plain = drawn(mix, 2, shuffle=False)
    assert plain[0] == list(mix)
    assert [sample for epoch in plain for sample in epoch] == [mix[place] for place in range(2 * len(mix))]


def test_each_appearance_of_a_sample_has_a_number_of_its_own() -> None:
    mix = mix_of(1, 1, length=400)
    order = sampler_for(mix, len(mix), 0, True)
    numbers = order.indices(0, np.arange(400))
    assert len(set(numbers.tolist())) == 400  # 85 samples, so each comes several times
    assert len({mix[int(number)] for number in numbers}) == 85


def test_mixes_of_mixes_keep_their_proportions() -> None:
    inner = mix_of(3, 1)
    outer = Mix([(inner, 1), (LETTERS[2], 1)], length=160)
    for samples in drawn(outer, 3, seed=4):
        letters = "".join(sample[0] for sample in samples)
        assert letters.count("c") == 80
        assert letters.count("a") == 60
        for start, stop in itertools.combinations(range(0, 161, 20), 2):
            assert abs(letters[start:stop].count("a") - (stop - start) * 3 / 8) < 2
    assert outer.where(0).startswith("sample 0 of a list")


def test_a_bad_sample_of_a_mix_is_replaced_by_one_of_its_source() -> None:
    mix = mix_of(5, 3, 2)
    plan = Plan(len(mix), 4, sampler=sampler_for(mix, len(mix), 0, True))
    for number in plan.batch(3, 2).tolist():
        others = [mix[plan.replacement(3, number, attempt)] for attempt in range(1, 10)]
        assert {other[0] for other in others} == {mix[number][0]}
        assert len(set(others)) == 9
        assert mix[number] not in others


def test_hosts_and_batch_sizes_make_the_same_mix() -> None:
    mix = mix_of(5, 3, 2)
    order = sampler_for(mix, len(mix), 2, True)
    alone = Plan(len(mix), 8, sampler=order)
    for count in (2, 4):
        hosts = [Plan(len(mix), 8 // count, shard=(index, count), sampler=order) for index in range(count)]
        for position in range(alone.num_batches):
            shares = np.concatenate([host.batch(1, position) for host in hosts])
            assert shares.tolist() == alone.batch(1, position).tolist()


def test_concat_subset_and_map_read_describe_and_pickle_through_each_other() -> None:
    numbers = Concat([range(100), range(1000, 1010)])
    assert [numbers[0], numbers[99], numbers[100], numbers[-1]] == [0, 99, 1000, 1009]
    evens = Subset(numbers, slice(None, None, 2))
    assert len(evens) == 55
    assert evens[50] == 1000
    tripled = Map(evens, lambda number: number * 3)
    assert tripled[51] == 3006
    assert tripled.where(51) == "sample 2 of a range"
    backwards = Map(tripled, index=lambda place: 54 - place)
    assert backwards[0] == tripled[54]
    assert Subset(numbers, [-1, 0, 0])[0] == 1009
    assert list(Subset(range(4), np.array([True, False, False, True]))) == [0, 3]
    again = cloudpickle.loads(cloudpickle.dumps(backwards))
    assert [again[place] for place in range(55)] == [backwards[place] for place in range(55)]
    for source in (numbers, evens, tripled, backwards):
        assert str(len(source)) in repr(source) or "Map" in repr(source)
        with pytest.raises(IndexError):
            source[len(source)]


def test_what_is_made_of_a_mix_ends_after_an_epoch_when_it_is_iterated() -> None:
    mix = mix_of(3, 1)
    mapped = Map(mix, str.upper)
    assert list(itertools.islice(mapped, 1_000)) == [sample.upper() for sample in mix]
    assert mapped[len(mix)] == mix[len(mix)].upper()  # though its numbers go on
    assert list(itertools.islice(Concat([mix, mapped]), 1_000)) == [*mix, *mapped]
    assert list(itertools.islice(Subset(mapped, slice(3)), 1_000)) == list(mapped)[:3]


def test_fingerprints_tell_algebra_apart() -> None:
    base = list(range(30))
    sources = [
        Concat([base]), Concat([base, base]), Subset(base, range(10)), Subset(base, range(1, 11)),
        Subset(base, [3, 1]), Map(base, str), Map(base, repr), Mix([(base, 1), (base, 2)]), Mix([(base, 2), (base, 1)]),
        Mix([(base, 1), (base, 2)], length=7),
    ]  # fmt: skip
    assert len({source.fingerprint() for source in sources}) == len(sources)
    assert Concat([base]).fingerprint() == Concat([list(base)]).fingerprint()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mix({}), "at least one source"),
        (lambda: Mix([([], 1)]), "no samples"),
        (lambda: Mix([3]), "pairs"),  # type: ignore[list-item]
        (lambda: Mix([([1], 1)], length=0), "length=0"),
        (lambda: Mix([([1], 1)], length=1.5), "length=1.5: expected an integer"),  # type: ignore[arg-type]
        (lambda: Mix(5), "Mix: sources=5: expected a dict of source to weight"),  # type: ignore[arg-type]
        (lambda: Concat(5), "Concat: sources=5: expected a list of sources"),  # type: ignore[arg-type]
        (lambda: Concat([]), "at least one source"),
        (lambda: Concat([7]), "expected a source"),
        (lambda: Subset([1, 2], []), "choose none"),
        (lambda: Subset([1, 2], [0.5]), "expected integers"),
        (lambda: Subset(range(20), [3, 100, 20]), "2 of the indices, .* 100, .*: expected -20 to 19"),
        (lambda: Subset(range(20), [-21]), "Subset: 1 of the indices, .* -21, "),
        (lambda: Subset(range(20), range(15, 30)), "Subset: 10 of the indices, .* 20, "),
        (lambda: Map([1], 3), "function=3: expected a callable"),  # type: ignore[arg-type]
        (lambda: Map([1], length=3), "length=3"),
    ],
)
def test_invalid_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


def shards_of(folder: Path, sizes: Sequence[int]) -> TFRecordShards:
    for number, size in enumerate(sizes):
        with TFRecordWriter(folder / f"{number:02d}.tfrecord") as writer:
            for place in range(size):
                writer.write(f"{number}:{place}".encode())
    return TFRecordShards(folder, raw=True)


def test_a_shard_shuffle_reads_each_shard_once_in_one_direction_within_its_window(tmp_path: Path) -> None:
    sizes = [7, 1, 12, 9, 30, 4, 4, 11]
    source = shards_of(tmp_path, sizes)
    epochs = drawn(source, 3, seed=5, shuffle=ShardShuffle(window=3))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for epoch in epochs:
        read = [tuple(map(int, sample.decode().split(":"))) for sample in epoch]
        assert sorted(read) == [(shard, place) for shard, size in enumerate(sizes) for place in range(size)]
        places = {shard: [place for other, place in read if other == shard] for shard in range(len(sizes))}
        assert all(found == sorted(found) for found in places.values())
        first = {shard: read.index((shard, 0)) for shard in range(len(sizes))}
        windows = [sorted(first, key=first.__getitem__)[at : at + 3] for at in (0, 3, 6)]
        for window in windows:
            span = [at for at, (shard, _) in enumerate(read) if shard in window]
            assert span == list(range(span[0], span[0] + len(span)))
    # Within a window the shards take turns at random, not one after the other.
    assert sum(one[0] != other[0] for one, other in itertools.pairwise(read)) > len(sizes)


def test_a_shard_shuffle_is_a_function_of_the_position_and_travels_small(tmp_path: Path) -> None:
    source = shards_of(tmp_path, [10] * 6)
    order = sampler_for(source, 60, 0, ShardShuffle(2))
    whole = order.indices(1, np.arange(60))
    again = pickle.loads(pickle.dumps(order))
    for position in (0, 7, 33, 59):
        assert again.indices(1, np.array([position])) == whole[position]
    assert again.name == order.name != sampler_for(source, 60, 0, ShardShuffle(3)).name


class Sharded(Sequence[int]):
    """Some shards of one size."""

    def __init__(self, shards: int, size: int) -> None:
        self.shard_sizes = np.full(shards, size, np.int64)

    def __len__(self) -> int:
        return int(self.shard_sizes.sum())

    def __getitem__(self, index: Any) -> Any:
        return range(len(self))[index]


def test_each_source_of_a_mix_keeps_its_own_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    dealt = []
    deal = ShardWindowSampler._deal

    def noting(order: ShardWindowSampler, epoch: int, window: int) -> Any:
        dealt.append((id(order), epoch, window))
        return deal(order, epoch, window)

    monkeypatch.setattr(ShardWindowSampler, "_deal", noting)
    mix = Mix([(Sharded(8, 40), 1) for _ in range(9)])
    order: Any = sampler_for(mix, len(mix), 0, ShardShuffle(2))
    batches = [order.indices(0, np.arange(start, start + 36)) for start in range(0, len(mix), 36)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(mix)))
    assert len(dealt) == len(set(dealt)) == 9 * 4  # each window of each source once
    one = order.orders[0]
    assert len(one._windows) == 4
    for epoch in range(3):
        one.indices(epoch, np.arange(320))
    assert (len(one._windows), len(one._epochs)) == (4, 3)
    assert len(pickle.dumps(one)) < 1_000  # neither travels


def test_shards_are_found_through_the_algebra(tmp_path: Path) -> None:
    source = shards_of(tmp_path, [5, 7, 3])
    assert Subset(source, range(2, 14, 2)).shard_sizes.tolist() == [2, 3, 1]
    assert Map(source, bytes.decode).shard_sizes.tolist() == [5, 7, 3]
    assert Concat([source, source]).shard_sizes.tolist() == [5, 7, 3, 5, 7, 3]
    mix = Mix([(source, 2), (Map(source, bytes.upper), 1)])
    samples = drawn(mix, 1, shuffle=ShardShuffle(2))[0]
    assert len(samples) == len(mix)
    with pytest.raises(ArgumentError, match=r"ShardShuffle\(window=16\): expected a source with shard_sizes"):
        sampler_for([1, 2], 2, 0, ShardShuffle())
    with pytest.raises(ArgumentError, match="window=0"):
        ShardShuffle(0)
    with pytest.raises(ArgumentError, match="shuffle='yes'"):
        sampler_for([1, 2], 2, 0, "yes")  # type: ignore[arg-type]


def test_a_loader_reads_a_mix_and_draws_other_numbers_for_each_appearance() -> None:
    mix = Mix([(list(range(6)), 1), (list(range(100, 130)), 1)], length=40)

    def transform(sample: int, rng: np.random.Generator) -> tuple[int, float]:
        return sample, float(rng.random())

    with Loader(mix, transform, batch_size=8, shuffle=True, seed=3, num_workers=2) as loader:
        batches = list(loader)
        samples = np.concatenate([batch[0] for batch in batches]).tolist()
        assert samples == drawn(mix, 1, seed=3)[0]
        assert len(set(np.concatenate([batch[1] for batch in batches]).tolist())) == 40
        assert np.concatenate([batch[0] for batch in loader]).tolist() == drawn(mix, 2, seed=3)[1]
