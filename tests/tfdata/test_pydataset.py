"""``from_pydataset`` against Keras. Most datasets do not derive from its class, so that workers start quickly."""

from __future__ import annotations

import os
import time
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

import mploader
from tests import keras_pydatasets, pydatasets
from tests.conftest import kill_one
from tests.shapes_data import lies_in_a_slot

pytestmark = pytest.mark.usefixtures("workers_in_threads")


def assert_equal(ours: tf.data.Dataset, original: Any) -> None:
    """The batches are those that Keras makes of the same object, and so are the spec and their number."""
    theirs = PyDatasetAdapter(original).get_tf_dataset()
    tf.nest.assert_same_structure(ours.element_spec, theirs.element_spec)
    for got, wanted in zip(tf.nest.flatten(ours.element_spec), tf.nest.flatten(theirs.element_spec), strict=True):
        assert got.dtype == wanted.dtype
        assert got.shape.is_compatible_with(wanted.shape)
    count = 0
    for got, wanted in zip(ours, theirs, strict=True):
        for one, other in zip(tf.nest.flatten(got), tf.nest.flatten(wanted), strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())
        count += 1
    assert count == int(ours.cardinality()) == 6


def test_arrays_alone() -> None:
    dataset = mploader.from_pydataset(pydatasets.Single(), num_workers=1)
    assert_equal(dataset, keras_pydatasets.Single())
    dataset.loader.close()


def test_dicts_with_text() -> None:
    dataset = mploader.from_pydataset(pydatasets.AsDict(), num_workers=1)
    texts = [text.numpy() for batch in dataset for text in batch["text"]]
    assert texts == [f"row {place // 4}.{place % 4}".encode() for place in range(23)]
    dataset.loader.close()


def test_nested_structures_and_shapes_that_vary() -> None:
    original = pydatasets.Structured()
    dataset = mploader.from_pydataset(original, num_workers=1)
    inputs, targets, _ = dataset.element_spec
    assert inputs["tokens"].shape.as_list() == [None, None]
    assert inputs["x"].shape.as_list() == [None, 3]
    assert isinstance(targets, tuple)  # a list becomes a tuple: tf.data would stack it
    for index, (x, (y, half), weights) in enumerate(dataset):
        wanted = original[index]
        np.testing.assert_array_equal(x["tokens"], wanted[0]["tokens"])
        np.testing.assert_array_equal(y, wanted[1][0])
        np.testing.assert_array_equal(half, wanted[1][1])
        np.testing.assert_array_equal(weights, wanted[2])
    dataset.loader.close()


def test_epochs_begin_and_end_in_this_process_and_what_they_change_reaches_the_workers() -> None:
    original = pydatasets.Reshuffling()
    dataset = mploader.from_pydataset(original, num_workers=2)
    assert original.calls == []
    orders = []
    for epoch in range(3):
        order = original.order.copy()
        rows = [(x.numpy(), y.numpy()) for x, y in dataset]
        labels = np.concatenate([y for _, y in rows])
        np.testing.assert_array_equal(labels, order)
        np.testing.assert_array_equal(np.concatenate([x for x, _ in rows]), original.x[order] + 1000 * epoch)
        assert original.calls == ["begin", "end"] * (epoch + 1)
        orders.append(labels.tolist())
    assert orders[0] != orders[1] != orders[2]
    # The same through NumPy; and what somebody else changes between epochs counts too.
    original.difficulty = 50
    assert all(x.min() >= 50_000 for x, _ in dataset.loader)
    assert original.calls == ["begin", "end"] * 4
    dataset.loader.close()


def test_an_epoch_that_is_given_up_has_no_end_and_a_peek_changes_nothing() -> None:
    original = pydatasets.Reshuffling()
    dataset = mploader.from_pydataset(original, num_workers=1)
    run = iter(dataset)
    first = next(run)[1].numpy()
    peek = next(iter(dataset.take(1)))[1].numpy()  # another run at the same time
    np.testing.assert_array_equal(first, peek)
    rest = [y.numpy() for _, y in run]
    assert sorted(np.concatenate([first, *rest])) == list(range(23))
    assert original.calls == ["begin", "begin", "end"]
    dataset.loader.close()


@pytest.mark.processes
def test_a_worker_that_dies_knows_the_epoch_again() -> None:
    original = pydatasets.Reshuffling()
    dataset = mploader.from_pydataset(original, num_workers=1)
    list(dataset.loader)
    order = original.order.copy()
    run = iter(dataset.loader)
    labels = [next(run)[1].copy()]
    kill_one(dataset.loader, 0)
    labels += [y.copy() for _, y in run]
    np.testing.assert_array_equal(np.concatenate(labels), order)
    dataset.loader.close()


@pytest.mark.processes
def test_only_what_changed_is_sent_again() -> None:
    def shared_memory() -> int:
        """Bytes of the anonymous files that this process holds open."""
        total = 0
        for name in os.listdir("/proc/self/fd"):
            try:
                if "memfd:mploader" in os.readlink(f"/proc/self/fd/{name}"):
                    total += os.stat(f"/proc/self/fd/{name}").st_size
            except FileNotFoundError:
                pass
        return total

    dataset = mploader.from_pydataset(pydatasets.Large(), num_workers=1, memory="8MiB")
    before = shared_memory()
    assert before >= 40_000_000
    runs = [iter(dataset.loader) for _ in range(3)]
    for run in runs:
        next(run)
    assert shared_memory() - before < 1_000_000
    del run, runs
    deadline_s = time.monotonic() + 5
    while shared_memory() > before and time.monotonic() < deadline_s:
        time.sleep(0.01)  # the supervising thread may be about to send the last one
    assert shared_memory() == before
    dataset.loader.close()


def test_shuffled_batches_come_once_each_in_another_order_each_epoch() -> None:
    dataset = mploader.from_pydataset(pydatasets.Plain(), num_workers=1, shuffle=True, seed=3)
    epochs = [[int(y[0]) for _, y in dataset] for _ in range(3)]
    assert all(sorted(epoch) == [0, 4, 8, 12, 16, 20] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    dataset.loader.close()


@pytest.mark.processes
def test_the_workers_make_the_batches() -> None:
    dataset = mploader.from_pydataset(pydatasets.WithPid(), num_workers=1)
    assert {int(pid) for _, pids in dataset for pid in pids} == set(dataset.loader.worker_pids)
    dataset.loader.close()


def test_an_exception_names_the_batch() -> None:
    dataset = mploader.from_pydataset(pydatasets.Failing(), num_workers=1)
    with pytest.raises(mploader.SampleError, match=r"Failing\[3\].*no such picture"):
        list(dataset.loader)
    with pytest.raises(mploader.SampleError, match="no such picture"):
        list(dataset.loader)


def test_a_batch_of_another_shape_is_named() -> None:
    dataset = mploader.from_pydataset(pydatasets.Uneven(), num_workers=1)
    with pytest.raises(mploader.SpecError, match=r"Uneven\[3\].*\(4, 2\)"):
        list(dataset.loader)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 3, "PyDataset"), (pydatasets.Infinite, "infinite"), (lambda: iter([1]), "PyDataset"),
        (lambda: pydatasets.Plain, "got the class Plain"), (pydatasets.Empty, "Empty: expected at least one batch"),
    ],
)  # fmt: skip
def test_what_is_no_dataset_is_refused(make: Any, message: str) -> None:
    with pytest.raises(mploader.ArgumentError, match=message):
        mploader.from_pydataset(make())


def test_a_sequence_without_keras_needs_no_keras() -> None:
    """The protocol is enough; the class need not derive from one of Keras."""

    class Squares:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            return np.full((2, 2), index * index)

    dataset = mploader.from_pydataset(Squares(), num_workers=1)
    assert [int(x[0, 0]) for (x,) in dataset] == [0, 1, 4]
    dataset.loader.close()


def model_of_three() -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e-5), "mse", jit_compile=False)
    return model


def test_batches_spec_fit_evaluate_and_predict_are_those_of_keras() -> None:
    original = keras_pydatasets.Plain()
    dataset = mploader.from_pydataset(original, num_workers=1)
    assert dataset.element_spec == PyDatasetAdapter(original).get_tf_dataset().element_spec
    assert_equal(dataset, original)
    assert_equal(dataset, original)  # another epoch
    assert all(lies_in_a_slot(x) for x, _ in dataset)  # not copied

    model = model_of_three()
    assert model.evaluate(dataset, verbose=0) == pytest.approx(model.evaluate(original, verbose=0), rel=1e-6)
    np.testing.assert_allclose(model.predict(dataset, verbose=0), model.predict(original.x, verbose=0), rtol=1e-5)
    weights = model.get_weights()
    ours = model.fit(dataset, epochs=2, verbose=0).history["loss"]
    model.set_weights(weights)
    assert ours == pytest.approx(model.fit(original, epochs=2, verbose=0, shuffle=False).history["loss"], rel=1e-5)
    dataset.loader.close()


def test_fit_begins_and_ends_each_epoch_and_sees_what_changes() -> None:
    original = keras_pydatasets.Reshuffling()
    dataset = mploader.from_pydataset(original, num_workers=1)
    losses = model_of_three().fit(dataset, epochs=3, verbose=0).history["loss"]
    assert original.calls == ["begin", "end"] * 3
    assert losses[0] != losses[1]
    dataset.loader.close()
