"""What generators may give for a component: strings, empty lists and ragged values, and the checksum over them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import mploader
from mploader.batching.spec import ArraySpec
from mploader.engine.worker.input_values import SplitRagged, checksum_of
from tests.generators import given

pytestmark = pytest.mark.usefixtures("workers_in_threads")

TEXTS = tf.TensorSpec((None,), tf.string)


def read(elements: list[Any], signature: Any, **options: Any) -> list[Any]:
    dataset = mploader.from_generator(
        given, shards=[elements], output_signature=signature, num_workers=1, **options
    )
    assert dataset.element_spec == signature or options
    return [as_lists(element) for element in dataset]


def reference(elements: list[Any], signature: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_generator(lambda: iter(elements), output_signature=signature)


def as_lists(element: Any) -> Any:
    if isinstance(element, tuple):
        return tuple(map(as_lists, element))
    return element.to_list() if isinstance(element, tf.RaggedTensor) else element.numpy().tolist()


@pytest.mark.parametrize(
    "elements",
    [
        pytest.param([["a"], ["b", "c"], [b"d", "e", "f"]], id="lists"),
        pytest.param([["a"], [], ["b"], ()], id="empty lists"),
        pytest.param([np.array([b"a", b"b\0"], object), np.array(["c"]), np.array([], object)], id="arrays"),
        pytest.param([["a\0", "\0"], ("b\0\0",)], id="zero bytes at the ends"),
    ],
)
def test_strings_of_unknown_number(elements: list[Any]) -> None:
    expected = [as_lists(element) for element in reference(elements, TEXTS)]
    assert read(elements, TEXTS) == expected
    assert read(elements, TEXTS, batch_size=1) == [[element] for element in expected]
    pairs = [(element, number) for number, element in enumerate(elements)]
    assert read(pairs, (TEXTS, tf.TensorSpec((), tf.int32))) == list(zip(expected, range(9), strict=False))


def test_zero_bytes_at_the_ends_of_strings_stay() -> None:
    elements = [[b"a\0", b"b\0\0"], ("\0", "")]
    expected = [[b"a\0", b"b\0\0"], [b"\0", b""]]
    assert read(elements, tf.TensorSpec((2,), tf.string)) == expected
    assert read(elements, tf.TensorSpec((2,), tf.string), batch_size=2) == [expected]
    ragged = tf.RaggedTensorSpec((None, None), tf.string)
    assert read([[[b"a\0"], [b"\0", b""]]], ragged) == [[[b"a\0"], [b"\0", b""]]]


@pytest.mark.parametrize(
    ("signature", "elements"),
    [
        (tf.RaggedTensorSpec((None, None), tf.string), [[[], [b"x"]], [[]], []]),
        (tf.RaggedTensorSpec((None, None), tf.float32), [[[], [1.5]], [[]], []]),
        (tf.RaggedTensorSpec((None, None, 2), tf.int32, ragged_rank=1), [[[[1, 2]], []], [[]], []]),
        (tf.RaggedTensorSpec((None, None, None), tf.int64), [[[[1], []], []], [[]], []]),
        (tf.RaggedTensorSpec((None, None, None), tf.int64, ragged_rank=1), [[[[1, 2]], []]]),
    ],
)
def test_empty_rows_of_ragged_components(signature: tf.RaggedTensorSpec, elements: list[Any]) -> None:
    assert read(elements, signature) == elements


def test_the_inner_sizes_of_an_empty_ragged_component_are_those_of_the_signature() -> None:
    signature = tf.RaggedTensorSpec((None, None, 2), tf.int32, ragged_rank=1)
    dataset = mploader.from_generator(given, shards=[[[]]], output_signature=signature, num_workers=1)
    (element,) = dataset
    assert element.flat_values.shape == (0, 2)


def test_numbers_are_no_strings() -> None:
    with pytest.raises(tf.errors.OpError, match=r"element 1 of generator.*bytes"):
        read([["a"], [1, 2]], TEXTS)


@pytest.mark.parametrize(
    ("element", "ragged_rank", "message"),
    [
        (5, 1, r"nested at least 2 deep are expected, got 5"),
        ([1, [2]], 1, r"nested at least 2 deep are expected, got \[1, \[2\]\]"),
        (["ab", "c"], 1, r"nested at least 2 deep are expected, got \['ab', 'c'\]"),
        ([[1, 2], [3]], 2, r"nested at least 3 deep are expected, got \[\[1, 2\], \[3\]\]"),
        (np.array(5), 1, "nested at least 2 deep"),
        (mploader.Ragged(np.arange(3), np.array([0, 3])), 2, "the generator gave a Ragged of ragged_rank 1"),
    ],
)
def test_a_ragged_component_that_is_too_shallow_is_named(element: Any, ragged_rank: int, message: str) -> None:
    split = SplitRagged({"x": ArraySpec((None,) * (ragged_rank + 1), np.dtype(np.int64), ragged_rank)})
    with pytest.raises(mploader.SpecError, match=rf"element\['x'\] has ragged_rank {ragged_rank} .*{message}"):
        split({"x": element})


def test_an_element_with_a_ragged_component_that_is_too_shallow_is_named() -> None:
    with pytest.raises(tf.errors.OpError, match=r"element 1 of generator\(.*SpecError: element has ragged_rank 1"):
        read([[[1]], [1]], tf.RaggedTensorSpec((None, None), tf.int32))


def test_a_ragged_component_of_rank_0_is_refused() -> None:
    with pytest.raises(mploader.ArgumentError, match=r"output_signature: .*tf\.TensorSpec"):
        read([[1]], tf.RaggedTensorSpec((None,), tf.int32, ragged_rank=0))


LONG = np.array([b"x"] * 2000, object)
LONG_CHANGED = np.array([b"x"] * 1000 + [b"y"] + [b"x"] * 999, object)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        pytest.param([b"ab", b"c"], [b"a", b"bc"], id="components of another length"),
        pytest.param([np.array([b"ab", b"c"], object)], [np.array([b"a", b"bc"], object)], id="strings"),
        pytest.param([np.zeros((2, 3))], [np.zeros((3, 2))], id="shape"),
        pytest.param([np.zeros(2, np.int32)], [np.zeros(2, np.float32)], id="dtype"),
        pytest.param([np.zeros(1), np.zeros(2)], [np.zeros(2), np.zeros(1)], id="arrays of another length"),
        pytest.param([LONG], [LONG_CHANGED], id="a long array of strings"),
    ],
)
def test_the_checksum_tells_elements_apart(left: list[Any], right: list[Any]) -> None:
    assert checksum_of(left, 0) != checksum_of(right, 0)


def test_the_checksum_of_equal_elements_is_equal() -> None:
    assert checksum_of(["a", np.array(["b", b"c"], object)], 5) == checksum_of([b"a", np.array([b"b", "c"], object)], 5)
    fortran = np.asfortranarray(np.arange(6).reshape(2, 3))
    assert checksum_of([fortran], 5) == checksum_of([np.arange(6).reshape(2, 3)], 5)
    assert checksum_of([fortran], 5) != checksum_of([fortran], 6)
