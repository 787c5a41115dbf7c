"""The hand-off to TensorFlow, and the beliefs about TensorFlow that it rests on."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from mploader import Loader, SampleError
from mploader._util.shared_memory import aligned_empty
from mploader.testing import Census
from tests.transforms import Squares, digest, fail_at, identity, ids, large, loaded_modules, noisy, square

pytestmark = pytest.mark.usefixtures("workers_in_threads")


def flush() -> None:
    """Lets TensorFlow hand back the arrays that it has dropped: it does so when an eager tensor goes."""
    tf.constant(0.0)
    gc.collect()


# Beliefs about TensorFlow


def address(tensor: tf.Tensor) -> int:
    """Where the memory of a tensor lies; ``tensor.numpy()`` would be a copy."""
    return int(np.asarray(memoryview(tensor)).ctypes.data)


def passed_through(array: np.ndarray[Any, Any]) -> tf.Tensor:
    """The array as a consumer of ``from_generator`` gets it."""
    signature = tf.TensorSpec(array.shape, array.dtype)
    (tensor,) = tf.data.Dataset.from_generator(lambda: iter([array]), output_signature=signature)
    return tensor


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64, np.float16, np.bool_])
def test_tensorflow_adopts_an_array_at_a_multiple_of_64(dtype: type) -> None:
    memory = aligned_empty(64 * 1024)
    array = memory.view(dtype).reshape(16, -1)
    array[...] = 1
    assert address(passed_through(array)) == array.ctypes.data


def test_tensorflow_copies_an_array_elsewhere() -> None:
    memory = aligned_empty(64 * 1024 + 64)
    for offset in (16, 32, 1):
        array = memory[offset : offset + 64 * 1024]
        assert address(passed_through(array)) != array.ctypes.data


def test_the_finalizer_of_a_root_array_waits_for_the_last_tensor() -> None:
    released: list[int] = []

    def lend() -> Iterator[np.ndarray[Any, Any]]:
        root = np.frombuffer(memoryview(aligned_empty(4096)), np.uint8)
        weakref.finalize(root, released.append, 1).atexit = False
        view = root.reshape(64, 64)
        del root
        yield view

    (tensor,) = tf.data.Dataset.from_generator(lend, output_signature=tf.TensorSpec((64, 64), tf.uint8))
    part = tensor[:8]
    del tensor
    flush()
    assert address(part) % 64 == 0
    assert not released, "a slice of the tensor still uses the memory"
    del part
    flush()
    assert released == [1]


# The dataset


def test_batches_spec_and_cardinality() -> None:
    with Loader(range(10), square, batch_size=4, num_workers=2) as loader:
        dataset = loader.as_dataset()
        assert dataset.element_spec == (
            tf.TensorSpec((None, 4, 4), tf.float32),
            tf.TensorSpec((None,), tf.int64),
        )
        assert int(dataset.cardinality()) == 3
        for _ in range(2):
            assert [labels.numpy().tolist() for _, labels in dataset] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.processes
def test_the_stream_is_that_of_numpy_iteration_with_any_workers_and_slots() -> None:
    def numpy_of(batch: dict[str, tf.Tensor]) -> dict[str, Any]:
        return {key: tensor.numpy() for key, tensor in batch.items()}

    def epochs(workers: int, memory: str | None, slots: set[int]) -> tuple[list[str], list[str]]:
        """Two epochs through NumPy, then the same two through TensorFlow."""
        with Loader(
            Squares(100), noisy, num_workers=workers, memory=memory, batch_size=7, shuffle=True, seed=3
        ) as loader:
            slots.add(loader.statistics().slots)
            start, dataset = loader.state_dict(), loader.as_dataset()
            through_numpy = [digest(loader) for _ in range(2)]
            loader.load_state_dict(start)
            return through_numpy, [digest(map(numpy_of, dataset)) for _ in range(2)]

    slots: set[int] = set()
    expected, _ = epochs(1, None, set())
    assert expected[0] != expected[1]
    for workers in (1, 2, 3, 5):
        for memory in ("200KiB", "1MiB"):
            assert epochs(workers, memory, slots) == (expected, expected), (workers, memory)
    assert len(slots) >= 2, f"every memory holds as many slots: {slots}"


@pytest.mark.processes
def test_the_memory_of_a_slot_is_the_memory_of_the_tensor() -> None:
    with Loader(range(400), large, batch_size=4, num_workers=2) as loader:
        addresses = set()
        for batch in loader.as_dataset():
            addresses.add(address(batch))
        slots = loader.statistics().slots
        assert loader.statistics().batches_copied == 0
    assert len(addresses) <= slots, "100 batches lay in a few slots: none was copied"


@pytest.mark.processes
def test_kept_tensors_never_change_while_their_slots_would_be_written_again() -> None:
    with Loader(range(600), large, batch_size=4, num_workers=2) as loader:
        dataset = loader.as_dataset()
        kept = []
        for epoch in range(2):
            for place, batch in enumerate(dataset):
                if place % 5 == epoch:
                    kept.append((place, batch))
        assert len(kept) == 60
        for place, batch in kept:
            expected = np.arange(4 * place, 4 * place + 4).astype(np.uint8)
            assert (batch.numpy() == expected[:, None, None, None]).all()
        assert loader.statistics().batches_copied > 0


@pytest.mark.processes
def test_two_slots_that_tensorflow_holds_do_not_stop_it() -> None:
    with Loader(range(100), large, batch_size=2, num_workers=2, memory="260KiB") as loader:
        assert loader.statistics().slots == 2
        held = list(loader.as_dataset().cache())
        assert len(held) == 50


def test_strings_and_elements_one_by_one() -> None:
    def transform(sample: int) -> Any:
        return f"sample {sample}", sample

    with Loader(range(600), transform, batch_size=None, num_workers=2) as loader:
        dataset = loader.as_dataset()
        assert dataset.element_spec == (tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int64))
        assert int(dataset.cardinality()) == 600
        assert [(text.numpy(), int(number)) for text, number in dataset] == [
            (b"sample %d" % number, number) for number in range(600)
        ]


@pytest.mark.processes
def test_workers_of_a_process_with_tensorflow_have_none() -> None:
    with Loader(range(4), loaded_modules, batch_size=4, num_workers=1) as loader:
        assert [batch.tolist() for batch in loader] == [[False] * 4]


@pytest.mark.parametrize("batches", [0, 1, 2, 5, 24])
def test_a_dataset_that_is_left_early_leaves_nothing_open(batches: int) -> None:
    with Loader(range(100), noisy, batch_size=4, shuffle=True, num_workers=3) as loader:
        expected = [ids(iter(loader)) for _ in range(4)]
    loader = Loader(range(100), noisy, batch_size=4, shuffle=True, num_workers=3)
    dataset = loader.as_dataset()
    for epoch in range(4):
        if epoch % 2:
            assert ids(iter(dataset)) == expected[epoch]
        else:
            iterator = iter(dataset)
            for _ in range(batches):
                next(iterator)
            if batches == 0:
                next(iterator)
            del iterator
    gone = weakref.ref(loader._core.pool)
    del loader, dataset
    flush()
    assert gone() is None, "an iteration that was left early still holds the loader"


def test_a_census_does_not_count_the_thread_that_stays_for_iterators() -> None:
    with Loader(range(8), batch_size=4, num_workers=1) as loader:
        assert len(list(loader.as_dataset())) == 2
    assert "mploader-ending" in [thread.name for thread in threading.enumerate()]
    assert "mploader-ending" not in [name for _, name in Census.take().threads]


def test_zip_repeat_and_take() -> None:
    with Loader(range(20), square, batch_size=5, num_workers=2) as loader:
        labels = loader.as_dataset().map(lambda _, label: label)
        zipped = tf.data.Dataset.zip((labels, labels))
        assert [(left.numpy().tolist(), right.numpy().tolist()) for left, right in zipped] == [
            (list(range(start, start + 5)),) * 2 for start in range(0, 20, 5)
        ]
        assert [batch.numpy()[0] for batch in labels.repeat(3)] == [0, 5, 10, 15] * 3
        assert [batch.numpy()[0] for batch in labels.take(2)] == [0, 5]


def test_the_dataset_keeps_its_loader_alive() -> None:
    dataset = Loader(range(12), identity, batch_size=4, num_workers=1).as_dataset().map(lambda x: x + 1)
    gc.collect()
    assert [batch.numpy().tolist() for batch in dataset] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]


def test_an_error_comes_again_at_each_iteration() -> None:
    loader = Loader(range(20), fail_at(13), batch_size=4, num_workers=2)
    dataset = loader.as_dataset()
    iterator = iter(dataset)
    assert [next(iterator).numpy()[0, 0] for _ in range(3)] == [0, 4, 8]
    for _ in range(2):
        with pytest.raises(tf.errors.OpError, match=r"sample 13.*is rotten"):
            next(iterator)
    for _ in range(2):
        with pytest.raises(tf.errors.OpError, match=r"sample 13.*is rotten"):
            list(dataset)
    with pytest.raises(SampleError, match="is rotten"):
        iter(loader)


def varying(sample: int) -> Any:
    if sample == 700:
        raise ValueError("sample 700 is rotten")
    return np.zeros(sample % 3)


@pytest.mark.parametrize("shapes", ["equal", "varying"])
def test_no_error_among_elements_is_followed_by_an_end(shapes: str) -> None:
    # The error is the loader's and not a sample's, so that "drop" does not help.
    transform, pad = (fail_at(700), None) if shapes == "equal" else (varying, 0)
    loader = Loader(
        range(1000), transform, batch_size=None, num_workers=2, on_bad_sample="drop", max_bad_samples=0, pad=pad
    )
    dataset = loader.as_dataset()
    assert int(dataset.cardinality()) == tf.data.UNKNOWN_CARDINALITY
    first, second = iter(dataset), None
    with pytest.raises(tf.errors.OpError, match="rotten"):
        list(first)
    second = iter(dataset)
    for _ in range(4):
        for iterator in (first, second):
            with pytest.raises(tf.errors.OpError, match="rotten"):
                next(iterator)


def test_iterations_that_failed_leave_no_exceptions_behind() -> None:
    def errors() -> int:
        flush()
        return sum(isinstance(each, SampleError) for each in gc.get_objects())

    before = errors()  # of other tests
    loader = Loader(range(20), fail_at(13), batch_size=4, num_workers=1)
    dataset = loader.as_dataset()
    for _ in range(5):
        iterator = iter(dataset)
        with pytest.raises(tf.errors.OpError, match="is rotten"):
            list(iterator)
        del iterator
    most = before + 1  # the one that the loader raises again
    deadline_s = time.monotonic() + 10
    while errors() > most and time.monotonic() < deadline_s:
        time.sleep(0.01)  # a thread of TensorFlow may still hold the last one
    assert errors() <= most
    loader.close()


def test_a_dataset_whose_loader_is_gone_says_so_at_every_call() -> None:
    loader = Loader(range(8), identity, batch_size=4, num_workers=1)
    dataset = loader.as_dataset().map(lambda x: x)
    gone = weakref.ref(loader._core)
    iterator = iter(dataset)
    assert next(iterator).numpy().tolist() == [0, 1, 2, 3]
    loader.close()
    del loader
    assert gone() is not None
    for _ in range(3):
        with pytest.raises(tf.errors.OpError, match="closed"):
            list(iter(dataset))


@pytest.mark.processes
def test_closing_the_loader_ends_a_waiting_iterator() -> None:
    def slow(sample: int) -> int:
        import time

        time.sleep(0.2 if sample else 0)
        return sample

    loader = Loader(range(100), slow, batch_size=1, num_workers=1)
    iterator = iter(loader.as_dataset())
    next(iterator)
    threading.Timer(0.3, loader.close).start()
    with pytest.raises(tf.errors.OpError, match="the loader is closed"):
        list(iterator)


def test_one_thread_of_tensorflow_and_sixteen_streams(run_script: Callable[..., Any]) -> None:
    done = run_script(
        """
import tensorflow as tf
tf.config.threading.set_inter_op_parallelism_threads(1)
tf.config.threading.set_intra_op_parallelism_threads(1)
import mploader
loader = mploader.Loader(range(64), lambda sample: sample, batch_size=2, num_workers=16)
dataset = loader.as_dataset().map(lambda x: x + 1)
print(sum(int(tf.reduce_sum(batch)) for batch in dataset), sum(int(tf.reduce_sum(batch)) for batch in dataset))
"""
    )
    assert done.stdout.split() == ["2080", "2080"]


@pytest.mark.processes
def test_a_model_trains_from_the_dataset() -> None:
    import keras

    def transform(sample: int, rng: np.random.Generator) -> Any:
        x = rng.normal(size=8).astype(np.float32)
        return x, np.float32(x[:4].sum() > x[4:].sum())

    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(1, activation="sigmoid")])
    model.compile(keras.optimizers.Adam(0.05), "binary_crossentropy", metrics=["accuracy"])
    with Loader(range(512), transform, batch_size=32, shuffle=True, num_workers=2) as loader:
        history = model.fit(loader.as_dataset(), epochs=3, verbose=0)
    assert history.history["accuracy"][-1] > 0.9


def test_generators_inside_the_graph_do_not_keep_closed_loaders() -> None:
    references = []

    def use() -> None:
        loader = Loader(range(8), identity, batch_size=4, num_workers=1)
        assert len(list(loader.as_dataset())) == 2
        references.append(weakref.ref(loader))

    for _ in range(3):
        use()
    flush()
    assert [reference() for reference in references] == [None] * 3
