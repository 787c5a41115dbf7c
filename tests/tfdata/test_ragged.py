"""Padded, ragged and bucketed batches against tf.data's own, element for element."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from mploader import BucketBy, Loader, Pad
from tests.shapes_data import LENGTHS, NUMBERS, element, lies_in_a_slot, row

pytestmark = pytest.mark.usefixtures("workers_in_threads")

SIGNATURE = {
    "row": tf.TensorSpec([None], tf.float32),
    "boxes": tf.TensorSpec([None, 4], tf.int16),
    "image": tf.TensorSpec([None, None, 3], tf.uint8),
    "words": tf.TensorSpec([None], tf.string),
    "label": tf.TensorSpec([], tf.int64),
    "name": tf.TensorSpec([], tf.string),
    "fixed": tf.TensorSpec([2, 3], tf.float16),
}


def original(order: Any = NUMBERS) -> tf.data.Dataset:
    return tf.data.Dataset.from_generator(lambda: map(element, order), output_signature=SIGNATURE)


def assert_equal(ours: tf.data.Dataset, theirs: tf.data.Dataset) -> None:
    count = 0
    for got, wanted in zip(ours, theirs, strict=True):
        assert list(got) == list(wanted)
        for key in got:
            assert type(got[key]) is type(wanted[key]), key
            assert got[key].dtype == wanted[key].dtype, key
            assert got[key].shape.as_list() == wanted[key].shape.as_list(), key
            if isinstance(got[key], tf.RaggedTensor):
                assert got[key].to_list() == wanted[key].to_list(), key
            else:
                np.testing.assert_array_equal(got[key].numpy(), wanted[key].numpy(), key)
        count += 1
    assert count == int(ours.cardinality())


@pytest.mark.parametrize("drop_remainder", [False, True])
def test_padded_batch(drop_remainder: bool) -> None:
    pad = {"row": -1.5, "boxes": Pad(shape=(None, 4)), "image": Pad(7, shape=(6, None, 3)), "words": "<pad>",
           "label": None, "name": None, "fixed": None}  # fmt: skip
    shapes = {"row": [None], "boxes": [None, 4], "image": [6, None, 3], "words": [None], "label": [], "name": [],
              "fixed": [2, 3]}  # fmt: skip
    values = {"row": tf.constant(-1.5), "boxes": tf.constant(0, tf.int16), "image": tf.constant(7, tf.uint8),
              "words": tf.constant("<pad>"), "label": tf.constant(0, tf.int64), "name": tf.constant(""),
              "fixed": tf.constant(0, tf.float16)}  # fmt: skip
    theirs = original().padded_batch(8, shapes, values, drop_remainder)
    with Loader(NUMBERS, element, batch_size=8, num_workers=2, pad=pad, drop_remainder=drop_remainder) as loader:
        ours = loader.as_dataset()
        assert ours.element_spec == theirs.element_spec
        assert_equal(ours, theirs)


@pytest.mark.parametrize("drop_remainder", [False, True])
def test_ragged_batch(drop_remainder: bool) -> None:
    ragged = {"row": True, "boxes": True, "image": 2, "words": True, "label": False, "name": False, "fixed": False}
    theirs = original().ragged_batch(8, drop_remainder)
    with Loader(NUMBERS, element, batch_size=8, num_workers=2, ragged=ragged, drop_remainder=drop_remainder) as loader:
        ours = loader.as_dataset()
        assert ours.element_spec == theirs.element_spec
        assert_equal(ours, theirs)
        assert_equal(ours, theirs)  # another epoch


def test_one_ragged_component_and_tuples_of_them() -> None:
    for transform, parts in ((row, 1), (lambda number: (row(number),) * 3, 3)):
        with Loader(NUMBERS, transform, batch_size=10, num_workers=1, ragged=True) as loader:
            batch = next(iter(loader.as_dataset()))
            for part in batch if parts > 1 else [batch]:
                assert part.to_list() == [row(number).tolist() for number in range(10)]


@pytest.mark.processes
def test_ragged_batches_reach_tensorflow_without_a_copy() -> None:
    with Loader([0] * 40, lambda _: np.ones(50_000, np.float32), batch_size=4, num_workers=1, ragged=True) as loader:
        assert all(lies_in_a_slot(batch.flat_values) for batch in loader.as_dataset())


@pytest.mark.parametrize("drop_remainder", [False, True])
@pytest.mark.parametrize("sizes", [None, [7, 4, 3, 2]])
@pytest.mark.parametrize("shuffle", [False, True])
def test_bucket_by_sequence_length(sizes: list[int] | None, drop_remainder: bool, shuffle: bool) -> None:
    boundaries = [5, 11, 20]
    bucket_by = BucketBy(lambda number: int(LENGTHS[number]), boundaries, sizes)
    # The order of two epochs, as the same loader gives it without buckets.
    options: dict[str, Any] = {"shuffle": shuffle, "seed": 3, "num_workers": 2}
    with Loader(NUMBERS, batch_size=None, **options) as loader:
        orders = [[int(number) for number in loader] for _ in range(2)]
    with Loader(NUMBERS, row, batch_size=None if sizes else 4, bucket_by=bucket_by,
                drop_remainder=drop_remainder, pad=-1, **options) as loader:  # fmt: skip
        dataset = loader.as_dataset()
        for order in orders:
            theirs = tf.data.Dataset.from_generator(
                lambda order=order: (row(number) for number in order),
                output_signature=tf.TensorSpec([None], tf.float32),
            ).bucket_by_sequence_length(
                tf.size, boundaries, sizes or [4] * 4, padding_values=-1.0, drop_remainder=drop_remainder
            )
            wanted = [batch.numpy() for batch in theirs]
            assert len(wanted) == len(loader) == int(dataset.cardinality())
            for got, batch in zip(dataset, wanted, strict=True):
                np.testing.assert_array_equal(got.numpy(), batch)


def test_elements_without_batches() -> None:
    ragged = {"row": True, "boxes": True, "image": 2, "words": True, "label": False, "name": False, "fixed": False}
    with Loader(NUMBERS, element, batch_size=None, num_workers=2, ragged=ragged) as loader:
        ours = loader.as_dataset()
        assert ours.element_spec == original().element_spec
        assert_equal(ours, original())
    with Loader(NUMBERS, lambda n: (np.full(5, n), b"%d" % n), batch_size=None, num_workers=2) as loader:
        ours = loader.as_dataset()
        assert [(int(row[4]), int(text.numpy())) for row, text in ours] == [(n, n) for n in NUMBERS]
        assert [int(row[0]) for row, _ in ours.take(5)] == NUMBERS[:5]


@pytest.mark.processes
def test_padded_batches_train_a_model() -> None:
    """Padded batches of different widths through a model, the everyday use."""
    model = tf.keras.Sequential([tf.keras.layers.Embedding(100, 4), tf.keras.layers.GlobalAveragePooling1D(),
                                 tf.keras.layers.Dense(1)])  # fmt: skip
    model.compile("sgd", "mse", jit_compile=False)
    tokens = [(np.arange(1 + number % 9) % 100, np.float32(number % 2)) for number in range(40)]
    with Loader(tokens, batch_size=8, num_workers=1, pad=(Pad(0, multiple_of=4), None)) as loader:
        history = model.fit(loader.as_dataset(), epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
