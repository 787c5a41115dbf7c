"""Structures, layouts and the writer, in plain memory without processes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from mploader._util.shared_memory import ALIGNMENT, align, aligned_empty
from mploader._util.trees import component_names, flatten, map_structure, pack_as
from mploader.batching.codecs import Fixed, Strings
from mploader.batching.layout import BatchLayout
from mploader.batching.spec import STRING, ArraySpec, Pad, describe_element
from mploader.batching.writer import BatchWriter
from mploader.errors import ArgumentError, SpecError


class Pair(NamedTuple):
    left: Any
    right: Any


NESTED = {"image": 1, "pair": Pair(2, (3, {"deep": 4}))}


def layout(element: Any, capacity: int) -> BatchLayout:
    specs = describe_element(element)
    return BatchLayout(map_structure(lambda spec: Strings(spec) if spec.is_string else Fixed(spec), specs), capacity)


def written(form: BatchLayout, elements: list[Any]) -> Any:
    memory = aligned_empty(1 << 16)
    memory[:] = 0xAA
    writer = BatchWriter(form, memory)
    for element in elements:
        writer.add(element)
    used = writer.finish()
    assert used <= len(memory)
    assert (memory[used:] == 0xAA).all(), "nothing is written behind what is reported as used"
    return form.read(memory)


def test_structures_are_taken_apart_and_put_together() -> None:
    assert flatten(NESTED) == [1, 2, 3, 4]
    assert pack_as(NESTED, flatten(NESTED)) == NESTED
    assert isinstance(map_structure(str, NESTED)["pair"], Pair)
    assert component_names(NESTED) == [
        "element['image']", "element['pair'][0]", "element['pair'][1][0]", "element['pair'][1][1]['deep']",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("leaf", "shape", "dtype"),
    [
        (3, (), np.int64), (2.5, (), np.float64), (True, (), np.bool_), (np.float32(1), (), np.float32),
        (np.zeros((2, 3), ">u2"), (2, 3), np.uint16), ("text", (), STRING), (b"raw", (), STRING),
        (np.array(["a", "bc"]), (2,), STRING), (np.array([b"a", "b"], object), (2,), STRING),
    ],
)  # fmt: skip
def test_what_a_component_is(leaf: Any, shape: tuple[int, ...], dtype: Any) -> None:
    assert describe_element(leaf) == ArraySpec(shape, np.dtype(dtype))


@pytest.mark.parametrize("leaf", [None, [1], {1, 2}, object(), np.array([None]), np.zeros(2, [("a", "i4")]),
                                  np.zeros(2, "V0")])  # fmt: skip
def test_what_a_component_is_not(leaf: Any) -> None:
    with pytest.raises(SpecError, match="element"):
        describe_element(leaf)


def test_a_batch_is_read_as_it_was_written() -> None:
    rng = np.random.default_rng(0)
    elements = [
        {"image": rng.integers(0, 255, (5, 3), np.uint8), "name": "x" * number, "pair": (number, np.float32(number))}
        for number in range(7)
    ]
    for count in (0, 1, 6, 7):
        batch = written(layout(elements[0], 7), elements[:count])
        assert [len(leaf) for leaf in flatten(batch)] == [count] * 4
        for place in range(count):
            np.testing.assert_array_equal(batch["image"][place], elements[place]["image"])
            assert batch["name"][place] == b"x" * place
            assert (batch["pair"][0][place], batch["pair"][1][place]) == (place, place)


def test_every_array_lies_where_tensorflow_adopts_it() -> None:
    batch = written(
        layout((np.zeros(3, np.uint8), 1, np.zeros((2, 2))), 5), [(np.ones(3, np.uint8), 2, np.ones((2, 2)))]
    )
    for leaf in flatten(batch):
        assert type(leaf) is np.ndarray
        assert leaf.ctypes.data % ALIGNMENT == 0
        assert leaf.flags.c_contiguous


def test_keys_may_come_in_any_order() -> None:
    batch = written(layout({"a": 1, "b": 2.0}, 2), [{"a": 1, "b": 2.0}, {"b": 4.0, "a": 3}])
    assert batch["a"].tolist() == [1, 3]
    assert batch["b"].tolist() == [2, 4]


@pytest.mark.parametrize(
    ("element", "message"),
    [
        ((np.zeros(3), 1, 2), "components"),
        (np.zeros(3), "components"),
        ({"a": np.zeros(3), "b": 1}, "components"),
        ((np.zeros(4), 1), r"element\[0\] has shape \(4,\)"),
        ((np.zeros((3, 1)), 1), r"element\[0\] has shape \(3, 1\)"),
        ((np.zeros(3, np.float32), 1), r"element\[0\] has dtype float32"),
        ((np.zeros(3), 1.5), r"element\[1\] is 1.5"),
        ((np.zeros(3), "1"), r"element\[1\]"),
        ((None, 1), r"element\[0\]"),
        (([0.0, 0.0], 1), r"element\[0\]"),
    ],
)
def test_an_element_unlike_the_first_is_refused_and_not_counted(element: Any, message: str) -> None:
    writer = BatchWriter(layout((np.zeros(3), 1), 4), aligned_empty(4096))
    writer.add((np.ones(3), 1))
    with pytest.raises(SpecError, match=message):
        writer.add(element)
    assert writer.count == 1


def test_a_batch_beyond_its_memory_is_measured_and_not_written() -> None:
    form = layout("text", 4)
    memory = aligned_empty(512)
    memory[:] = 0xAA
    writer = BatchWriter(form, memory)
    for _ in range(4):
        writer.add("x" * 300)
    used = writer.finish()
    assert used > 1200
    assert (memory == 0xAA).all()
    elsewhere = aligned_empty(used)
    writer.write_to(elsewhere)
    assert form.read(elsewhere).tolist() == [b"x" * 300] * 4


def test_rounding_up() -> None:
    assert [align(size) for size in (0, 1, 64, 65)] == [0, 64, 64, 128]
    with pytest.raises(ArgumentError, match="multiple_of=0"):
        Pad(multiple_of=0)
