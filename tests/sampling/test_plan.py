"""The plan: every sample once an epoch, the same global batches for any number of hosts, replacements."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest

from mploader.errors import ArgumentError
from mploader.sampling.bucketing import BucketBy
from mploader.sampling.plan import Plan


def epoch_of(plan: Plan, epoch: int = 0) -> list[int]:
    return [int(index) for position in range(plan.num_batches) for index in plan.batch(epoch, position)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("num_samples", [0, 1, 2, 7, 8, 9, 64, 65])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_every_sample_comes_once_an_epoch(num_samples: int, batch_size: int, shuffle: bool) -> None:
    plan = Plan(num_samples, batch_size, seed=1, shuffle=shuffle)
    for epoch in range(2):
        assert sorted(epoch_of(plan, epoch)) == list(range(num_samples))


def test_without_shuffle_the_order_is_that_of_the_source() -> None:
    plan = Plan(10, 4)
    assert [plan.batch(3, position).tolist() for position in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert plan.batch(0, 0).dtype == np.int64


def test_drop_remainder_leaves_out_the_last_partial_batch_only() -> None:
    whole, dropped = Plan(11, 4, seed=2, shuffle=True), Plan(11, 4, seed=2, shuffle=True, drop_remainder=True)
    assert (whole.num_batches, dropped.num_batches) == (3, 2)
    assert epoch_of(dropped) == epoch_of(whole)[:8]
    assert Plan(12, 4, drop_remainder=True).num_batches == 3
    assert Plan(3, 4, drop_remainder=True).num_batches == 0


def test_epochs_and_seeds_differ_and_repeat_exactly() -> None:
    plan = Plan(500, 32, seed=1, shuffle=True)
    orders = {tuple(epoch_of(plan, epoch)) for epoch in range(20)}
    orders |= {tuple(epoch_of(Plan(500, 32, seed=seed, shuffle=True))) for seed in range(2, 12)}
    assert len(orders) == 30
    assert epoch_of(Plan(500, 32, seed=1, shuffle=True), 7) == epoch_of(plan, 7)


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    orders = [epoch_of(Plan(101, batch_size, seed=4, shuffle=True), 2) for batch_size in (1, 7, 32, 1000)]
    assert all(order == orders[0] for order in orders)


def test_golden_batch_that_saved_positions_rely_on() -> None:
    assert Plan(1_281_167, 4, seed=0, shuffle=True).batch(0, 0).tolist() == [1097359, 427679, 509238, 702823]


@pytest.mark.parametrize("num_samples", [0, 1, 5, 12, 24, 25, 29, 47, 100])
@pytest.mark.parametrize("drop_remainder", [False, True])
def test_global_batches_are_the_same_for_every_number_of_hosts(
    num_samples: int, drop_remainder: bool
) -> None:
    alone = Plan(num_samples, 12, seed=9, shuffle=True, drop_remainder=drop_remainder)
    for count in (1, 2, 3, 4, 6, 12):
        hosts = [
            Plan(num_samples, 12 // count, 9, True, drop_remainder, shard=(index, count))
            for index in range(count)
        ]
        assert {host.num_batches for host in hosts} == {alone.num_batches}
        for position in range(alone.num_batches):
            shares = [host.batch(1, position) for host in hosts]
            assert np.concatenate(shares).tolist() == alone.batch(1, position).tolist()
            sizes = [len(share) for share in shares]
            assert max(sizes) - min(sizes) <= 1
            assert {share.dtype for share in shares} == {np.dtype(np.int64)}


@pytest.mark.parametrize("drop_remainder", [False, True])
@pytest.mark.parametrize("in_buckets", [False, True])
def test_a_host_knows_the_samples_of_its_epoch(drop_remainder: bool, in_buckets: bool) -> None:
    for index in range(3):
        plan = Plan(47, 4, 9, True, drop_remainder, shard=(index, 3))
        if in_buckets:
            lengths = np.arange(47) % 10
            plan = BucketBy(lengths, [2, 5], batch_sizes=[4, 3, 1]).plan(plan, lengths)
        batches = [plan.batch(0, position) for position in range(plan.num_batches)]
        assert plan.num_host_samples == sum(map(len, batches))


def test_a_host_without_a_sample_in_the_last_batch_makes_an_empty_one() -> None:
    hosts = [Plan(9, 2, shard=(index, 4)) for index in range(4)]
    assert [host.num_batches for host in hosts] == [2, 2, 2, 2]
    assert sorted(host.batch(0, 1).shape for host in hosts) == [(0,), (0,), (0,), (1,)]


@pytest.mark.parametrize("position", [-1, 3, 4])
def test_a_position_outside_the_epoch_is_an_index_error(position: int) -> None:
    plan = Plan(10, 4)
    with pytest.raises(IndexError, match="of 3 batches"):
        plan.batch(0, position)


def test_a_negative_epoch_is_refused() -> None:
    with pytest.raises(ArgumentError, match="epoch=-1"):
        Plan(10, 4).batch(-1, 0)


@pytest.mark.parametrize("num_samples", [2, 3, 10, 50])
def test_replacements_visit_every_other_sample_before_they_repeat(num_samples: int) -> None:
    plan = Plan(num_samples, 4, seed=5)
    for index in range(num_samples):
        visited = [plan.replacement(0, index, attempt) for attempt in range(1, num_samples)]
        assert sorted(visited) == [other for other in range(num_samples) if other != index]
        assert plan.replacement(0, index, num_samples) == visited[0]


def test_replacements_depend_on_seed_epoch_and_sample() -> None:
    def walk(seed: int, epoch: int, index: int) -> tuple[int, ...]:
        plan = Plan(10**9, 4, seed=seed, shuffle=True)
        return tuple(plan.replacement(epoch, index, attempt) for attempt in (1, 2, 3))

    walks = {walk(seed, epoch, index) for seed in (0, 1) for epoch in (0, 1) for index in (0, 1, 2)}
    assert len(walks) == 12
    assert walk(1, 1, 1) == walk(1, 1, 1)


def test_the_replacement_of_an_only_sample_is_itself() -> None:
    assert Plan(1, 4).replacement(0, 0, 1) == 0


def test_replacement_refuses_arguments_out_of_range() -> None:
    plan = Plan(5, 2)
    with pytest.raises(IndexError, match="sample 5 of 5"):
        plan.replacement(0, 5, 1)
    with pytest.raises(ArgumentError, match="attempt=0"):
        plan.replacement(0, 1, 0)


def test_fingerprint_names_what_the_global_batches_depend_on_and_nothing_else() -> None:
    plan = Plan(1000, 8, seed=2**80, shuffle=True, shard=(1, 4))
    fingerprint = plan.fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert fingerprint == Plan(1000, 16, seed=2**80, shuffle=True, shard=(0, 2)).fingerprint()
    others: list[dict[str, Any]] = [
        {"num_samples": 1001}, {"batch_size": 9}, {"seed": 1}, {"shuffle": False}, {"drop_remainder": True},
    ]  # fmt: skip
    same: dict[str, Any] = {
        "num_samples": 1000,
        "batch_size": 8,
        "seed": 2**80,
        "shuffle": True,
        "shard": (1, 4),
    }
    for other in others:
        differing = Plan(**{**same, **other}).fingerprint()
        assert sum(differing[name] != fingerprint[name] for name in fingerprint) == 1


def test_a_plan_is_small_and_the_same_after_pickling() -> None:
    plan = Plan(10**9, 64, seed=1, shuffle=True, shard=(1, 2))
    pickled = pickle.dumps(plan)
    assert len(pickled) < 512
    again = pickle.loads(pickled)
    assert again == plan
    assert np.array_equal(again.batch(3, 10**6), plan.batch(3, 10**6))


def test_numpy_integers_are_taken_and_kept_as_plain_ones() -> None:
    plan = Plan(np.int32(2**31 - 1), np.uint8(200), shard=(np.uint8(1), np.uint8(200)))  # type: ignore[arg-type]
    assert plan == Plan(2**31 - 1, 200, shard=(1, 200))
    assert plan.num_batches == -(-(2**31 - 1) // 40_000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": -1}, "num_samples=-1"),
        ({"num_samples": 1.0}, "num_samples=1.0: expected"),
        ({"num_samples": 2**63}, "num_samples"),
        ({"batch_size": 0}, "batch_size=0: expected an integer >= 1"),
        ({"batch_size": True}, "batch_size=True"),
        ({"batch_size": None}, "batch_size=None"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": "x"}, "seed='x': expected"),
        ({"shuffle": 3}, "shuffle=3"),
        ({"drop_remainder": "no"}, "drop_remainder='no'"),
        ({"shard": (2, 2)}, "shard=(2, 2), (index, count) of hosts: index=2: expected an integer >= 0 and"),
        ({"shard": (-1, 2)}, "shard=(-1, 2), (index, count) of hosts: index=-1: expected"),
        ({"shard": (0, 0)}, "shard=(0, 0), (index, count) of hosts: count=0: expected an integer >= 1"),
        ({"shard": ("a", 2)}, "shard=('a', 2), (index, count) of hosts: index='a': expected"),
        ({"shard": 3}, "shard=3"),
        ({"shard": (0, 1, 2)}, "expected (index, count)"),
    ],
)
def test_an_invalid_argument_is_refused_with_its_value(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Plan(**{"num_samples": 10, "batch_size": 2, **arguments})
    assert message in str(caught.value)
