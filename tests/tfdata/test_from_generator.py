"""``mploader.from_generator`` against that of ``tf.data``: same elements, same order, other processes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import mploader
from mploader._util import fault_points
from mploader.engine.ipc.job import generator_name
from tests.generators import (
    count_up,
    crashes,
    fails,
    forever,
    given_then_fails,
    has_tensorflow,
    plain,
    process_ids,
    ragged_rows,
    rich,
    rows,
    scaled,
    slow_count,
    unrepeatable,
)

pytestmark = pytest.mark.usefixtures("workers_in_threads")

LENGTHS = [5, 0, 17, 3, 1, 40, 2, 2]
SIGNATURE = (tf.TensorSpec((3,), tf.float32), tf.TensorSpec((), tf.int64))


def reference(
    generator: Callable[..., Any], shards: list[Any], signature: Any, cycle: int, block: int
) -> tf.data.Dataset:
    def stream(shard: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.from_generator(generator, output_signature=signature, args=(shard,))

    return tf.data.Dataset.from_tensor_slices(shards).interleave(
        stream, cycle_length=cycle, block_length=block, num_parallel_calls=cycle, deterministic=True
    )


def numbers(dataset: tf.data.Dataset) -> list[int]:
    return [int(number) for _, number in dataset]


@pytest.mark.processes
@pytest.mark.parametrize(("cycle", "block"), [(1, 1), (3, 1), (3, 2), (8, 4), (20, 1)])
def test_the_order_is_that_of_interleave_for_any_number_of_workers(cycle: int, block: int) -> None:
    expected = numbers(reference(count_up, LENGTHS, SIGNATURE, cycle, block))
    for workers in (1, 3):
        dataset = mploader.from_generator(
            count_up, shards=LENGTHS, output_signature=SIGNATURE, cycle_length=cycle, block_length=block,
            num_workers=workers,
        )  # fmt: skip
        assert dataset.element_spec == SIGNATURE
        assert numbers(dataset) == expected
        assert numbers(dataset) == expected, "a second iteration calls every generator again"


def test_without_cycle_length_the_order_does_not_depend_on_the_number_of_workers() -> None:
    shards = [2, 0, 1] * 6
    expected = numbers(reference(count_up, shards, SIGNATURE, 16, 1))
    for workers in (1, 2, 3):
        dataset = mploader.from_generator(count_up, shards=shards, output_signature=SIGNATURE, num_workers=workers)
        assert numbers(dataset) == expected


def test_unordered_gives_every_element_once() -> None:
    dataset = mploader.from_generator(
        count_up, shards=LENGTHS, output_signature=SIGNATURE, ordered=False, num_workers=2
    )
    expected = sorted(1000 * length + number for length in LENGTHS for number in range(length))
    assert sorted(numbers(dataset)) == expected
    assert set(numbers(dataset.take(10))) <= set(expected)


@pytest.mark.parametrize("ordered", [True, False])
def test_workers_batch_and_no_batch_in_the_middle_is_short(ordered: bool) -> None:
    def whole_batches(length: int) -> Iterator[Any]:
        yield from itertools.islice(count_up(length), length // 4 * 4)

    dataset = mploader.from_generator(
        count_up,
        shards=LENGTHS,
        output_signature=SIGNATURE,
        batch_size=4,
        cycle_length=3,
        num_workers=2,
        ordered=ordered,
    )
    assert dataset.element_spec[0].shape.as_list() == [None, 3]
    batches = [labels.numpy().tolist() for _, labels in dataset]
    assert [len(batch) for batch in batches] == [4] * 17 + [2]
    whole = [
        labels.numpy().tolist()
        for _, labels in tf.data.Dataset.from_tensor_slices(LENGTHS).interleave(
            lambda length: tf.data.Dataset.from_generator(
                whole_batches, output_signature=SIGNATURE, args=(length,)
            ).batch(4),
            cycle_length=3,
        )
    ]
    rests = [1000 * length + number for length in LENGTHS for number in range(length // 4 * 4, length)]
    if ordered:
        assert batches[: len(whole)] == whole
        assert [number for batch in batches[len(whole) :] for number in batch] == rests
    assert sorted(itertools.chain(*batches)) == sorted([*itertools.chain(*whole), *rests])


def test_drop_remainder_leaves_out_the_short_batch_only() -> None:
    dataset = mploader.from_generator(
        count_up, shards=LENGTHS, output_signature=SIGNATURE, batch_size=4, drop_remainder=True, num_workers=2
    )
    assert [spec.shape.as_list() for spec in dataset.element_spec] == [[4, 3], [4]], "what XLA compiles for"
    assert [len(labels) for _, labels in dataset] == [4] * 17


RICH_SIGNATURE = {
    "any": tf.TensorSpec((2, None), tf.int32),
    "text": tf.TensorSpec((), tf.string),
    "texts": tf.TensorSpec((2,), tf.string),
    "flag": tf.TensorSpec((), tf.bool),
    "half": tf.TensorSpec((), tf.float16),
    "brain": tf.TensorSpec((1,), tf.bfloat16),
    "pair": (tf.TensorSpec((), tf.uint8), tf.TensorSpec((2,), tf.float32)),
}


def assert_equal_elements(left: tf.data.Dataset, right: tf.data.Dataset) -> None:
    count = 0
    for ours, theirs in itertools.zip_longest(left, right):
        tf.nest.assert_same_structure(ours, theirs)
        for one, other in zip(tf.nest.flatten(ours), tf.nest.flatten(theirs), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one.numpy(), other.numpy())
        count += 1
    assert count


@pytest.mark.processes
def test_every_kind_of_component_arrives_as_in_tensorflow() -> None:
    dataset = mploader.from_generator(
        rich, shards=[3, 4], output_signature=RICH_SIGNATURE, num_workers=2, cycle_length=2
    )
    assert dataset.element_spec == RICH_SIGNATURE
    assert_equal_elements(dataset, reference(rich, [3, 4], RICH_SIGNATURE, 2, 1))


def test_components_of_known_shape_arrive_as_in_tensorflow_when_blocks_are_taken_apart() -> None:
    signature = {key: spec for key, spec in RICH_SIGNATURE.items() if key != "any"}

    dataset = mploader.from_generator(plain, shards=[3, 4], output_signature=signature, num_workers=2, cycle_length=2)
    assert_equal_elements(dataset, reference(plain, [3, 4], signature, 2, 1))


def test_unknown_sizes_are_batched_like_dataset_batch() -> None:
    signature = tf.TensorSpec((None,), tf.int64)
    dataset = mploader.from_generator(rows, shards=[4, 4], output_signature=signature, batch_size=5, num_workers=2)
    assert_equal_elements(dataset, reference(rows, [4, 4], signature, 2, 1).batch(5))


def test_ragged_components() -> None:
    signature = (tf.RaggedTensorSpec((None, None), tf.int32), tf.TensorSpec((), tf.int64))
    dataset = mploader.from_generator(
        ragged_rows, shards=[3, 4], output_signature=signature, num_workers=2, cycle_length=1
    )
    values = [(ragged.to_list(), int(number)) for ragged, number in dataset]
    assert values == [([[1] * size for size in range(number)], number) for shard in (3, 4) for number in range(shard)]


def test_args_are_passed_on() -> None:
    dataset = mploader.from_generator(
        scaled, shards=[1, 2], args=(10, 5), output_signature=tf.TensorSpec((), tf.int64), num_workers=1, cycle_length=1
    )
    assert [int(value) for value in dataset] == [15, 15, 25, 25]


@pytest.mark.processes
@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_killed_worker_costs_nothing(monkeypatch: pytest.MonkeyPatch, batch_size: int | None) -> None:
    def make() -> tf.data.Dataset:
        return mploader.from_generator(
            slow_count, shards=[30, 40, 50], output_signature=tf.TensorSpec((), tf.int64),
            cycle_length=2, num_workers=2, batch_size=batch_size,
        )  # fmt: skip

    def values(dataset: tf.data.Dataset) -> list[int]:
        return [int(value) for element in dataset for value in np.atleast_1d(element.numpy())]

    expected = values(make())
    # The worker dies at the first attempt at each block of stream 1, again and again.
    monkeypatch.setenv(fault_points.VARIABLE, "result unsent:1:KILL")
    faulted = make()
    assert values(faulted) == expected
    assert faulted._mploader_owner.statistics().restarts >= 3


@pytest.mark.processes
def test_a_generator_that_does_not_repeat_itself_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fault_points.VARIABLE, "result unsent:0:KILL")
    dataset = mploader.from_generator(
        unrepeatable, shards=[7], output_signature=tf.TensorSpec((), tf.int64), num_workers=1
    )
    with pytest.raises(tf.errors.UnknownError, match=r"generator\(7\).*must give the same elements"):
        list(dataset)


def test_a_generator_that_fails_names_shard_and_element() -> None:
    dataset = mploader.from_generator(
        fails, shards=["a.csv"], output_signature=tf.TensorSpec((), tf.int64), num_workers=1
    )
    for _ in range(2):
        with pytest.raises(tf.errors.OpError, match=r"element 2 of generator\('a.csv'\).*RuntimeError: no more"):
            list(dataset)


def until_error(dataset: tf.data.Dataset) -> list[Any]:
    elements = []
    with pytest.raises(tf.errors.OpError):  # noqa: PT012
        for element in dataset:
            elements.append(element.numpy().tolist())  # noqa: PERF401
    return elements


@pytest.mark.processes
@pytest.mark.parametrize("fault", ["", "result unsent:*:KILL", "result sent:*:KILL"])
@pytest.mark.parametrize("elements", [[], [1, 2], [1, 2, "three"], list(range(300))])
def test_what_came_before_a_failure_is_delivered(
    monkeypatch: pytest.MonkeyPatch, elements: list[Any], fault: str
) -> None:
    monkeypatch.setenv(fault_points.VARIABLE, fault)
    signature = tf.TensorSpec((), tf.int64)
    dataset = mploader.from_generator(
        given_then_fails, shards=[elements], output_signature=signature, num_workers=1, ordered=len(elements) != 2
    )
    theirs = tf.data.Dataset.from_generator(lambda: given_then_fails(elements), output_signature=signature)
    assert until_error(dataset) == until_error(theirs)
    assert until_error(dataset) == [], "the error stays"


def test_whole_batches_before_a_failure_are_delivered() -> None:
    signature = tf.TensorSpec((), tf.int64)
    dataset = mploader.from_generator(
        given_then_fails, shards=[[1, 2, 3, 4, 5]], output_signature=signature, num_workers=1, batch_size=2
    )
    assert until_error(dataset) == [[1, 2], [3, 4]]


def test_an_element_that_fits_half_leaves_nothing_behind() -> None:
    elements = [([1], 1), ([2, 2], 2), ([3], "three")]
    signature = (tf.TensorSpec((None,), tf.int64), tf.TensorSpec((), tf.int64))
    dataset = mploader.from_generator(given_then_fails, shards=[elements], output_signature=signature, num_workers=1)
    found = []
    with pytest.raises(tf.errors.OpError, match="element 2 of"):  # noqa: PT012
        for values, number in dataset:
            found.append((values.numpy().tolist(), int(number)))
    assert found == elements[:2]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
def test_no_error_of_a_generator_is_followed_by_an_end(ordered: bool, shards: int) -> None:
    dataset = mploader.from_generator(
        fails, shards=["a.csv"] * shards, output_signature=tf.TensorSpec((), tf.int64), num_workers=1, ordered=ordered
    )
    first = iter(dataset)
    with pytest.raises(tf.errors.OpError, match="no more"):
        list(first)
    second = iter(dataset)
    for _ in range(4):
        for iterator in (first, second):
            with pytest.raises(tf.errors.OpError, match="no more"):
                next(iterator)


@pytest.mark.processes
def test_a_generator_that_crashes_its_worker_is_named() -> None:
    dataset = mploader.from_generator(
        crashes, shards=["/data/a.txt"], output_signature=tf.TensorSpec((), tf.int64), num_workers=1
    )
    message = r"generator\('/data/a.txt'\) has killed 3 workers at element 1.*SIGABRT.*run the generator alone"
    with pytest.raises(tf.errors.OpError, match=message):
        list(dataset)


def test_a_shard_that_cannot_be_printed_has_a_name() -> None:
    class Silent:
        def __repr__(self) -> str:
            raise ValueError("no words")

    assert (generator_name("a.txt"), generator_name(Silent())) == ("generator('a.txt')", "generator(a Silent)")


def test_an_element_that_does_not_fit_is_named() -> None:
    dataset = mploader.from_generator(
        count_up,
        shards=[3],
        output_signature=(tf.TensorSpec((4,), tf.float32), tf.TensorSpec((), tf.int64)),
        num_workers=1,
    )
    with pytest.raises(tf.errors.OpError, match=r"element 0 of generator\(3\).*shape \(3,\)"):
        list(dataset)


def test_a_generator_without_end_and_more_workers_than_shards() -> None:
    dataset = mploader.from_generator(
        forever, shards=[0, 100], output_signature=tf.TensorSpec((), tf.int64), num_workers=4, cycle_length=2
    )
    for _ in range(3):
        assert [int(value) for value in dataset.take(6)] == [0, 100, 1, 101, 2, 102]


@pytest.mark.processes
def test_a_generator_stays_in_one_worker_and_none_gets_all() -> None:
    signature = (tf.TensorSpec((), tf.int64), tf.TensorSpec((), tf.int64))
    dataset = mploader.from_generator(
        process_ids, shards=[300] + [3] * 20, output_signature=signature, num_workers=2, cycle_length=2
    )
    elements = [(int(number), int(pid)) for number, pid in dataset]
    assert len(elements) == 360
    assert len({pid for _, pid in elements}) == 2
    long = {pid for number, pid in elements if number >= 3}
    assert len(long) == 1


@pytest.mark.parametrize("ordered", [True, False])
def test_elements_without_values_are_elements(ordered: bool) -> None:
    def empty(shard: int) -> Iterator[Any]:
        return iter([(np.zeros((0, 3), np.float32), number) for number in range(3)])

    signature = (tf.TensorSpec((0, 3), tf.float32), tf.TensorSpec((), tf.int64))
    dataset = mploader.from_generator(empty, shards=[0], output_signature=signature, ordered=ordered, num_workers=1)
    assert [(x.shape, int(number)) for x, number in dataset] == [((0, 3), 0), ((0, 3), 1), ((0, 3), 2)]
    with mploader.Loader([np.zeros((0, 3))] * 3, batch_size=None, num_workers=1) as loader:
        assert [x.shape for x in loader.as_dataset()] == [(0, 3)] * 3


@pytest.mark.parametrize(
    ("element", "message"),
    [
        ([1, 2, 3], r"shape \(3,\), but the signature has \(2,\)$"),
        ("text", "(?s)ValueError.*An element cannot be left out: mend the generator"),
    ],
)
def test_an_error_advises_what_a_generator_can_do(element: Any, message: str) -> None:
    dataset = mploader.from_generator(
        lambda shard: iter([element]), shards=[0], output_signature=tf.TensorSpec((2,), tf.int64), num_workers=1
    )
    with pytest.raises(tf.errors.OpError) as caught:
        list(dataset)
    text = str(caught.value)
    assert re.search(message, text, re.MULTILINE)
    assert "on_bad_sample" not in text
    assert "pad=" not in text


@pytest.mark.processes
def test_workers_do_not_import_tensorflow() -> None:
    dataset = mploader.from_generator(
        has_tensorflow, shards=[0], output_signature=tf.TensorSpec((), tf.bool), num_workers=1
    )
    assert [bool(value) for value in dataset] == [False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": []}, "shards is empty"),
        ({"shards": "abc"}, "shards='abc'"),
        ({"shards": 5}, "iterable"),
        ({"generator": 5}, "expected a callable"),
        ({"generator": lambda: iter(())}, "cannot be called with a shard"),
        ({"args": (1,)}, "cannot be called with a shard and 1 args"),
        ({"args": 2}, r"args=2: expected a tuple of further arguments, such as \(2,\)"),
        ({"ordered": "no"}, "ordered='no'"),
        ({"drop_remainder": 1}, "drop_remainder=1"),
        ({"drop_remainder": True}, "drop_remainder=True: expected batch_size="),
        ({"batch_size": 0}, "batch_size=0"),
        ({"cycle_length": 0}, "cycle_length=0"),
        ({"block_length": True}, "block_length=True"),
        ({"num_workers": 1.5}, "num_workers=1.5"),
        ({"stall_timeout": -1}, "stall_timeout=-1"),
        ({"output_signature": tf.TensorSpec(None, tf.int64)}, "output_signature: .*known rank"),
        ({"output_signature": [tf.int64]}, "output_signature: expected a structure"),
        ({"output_signature": ()}, "output_signature: .*empty"),
    ],
)
def test_invalid_arguments(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"generator": count_up, "shards": [1], "output_signature": SIGNATURE, **change}
    with pytest.raises(mploader.ArgumentError, match=message):
        mploader.from_generator(arguments.pop("generator"), **arguments)
