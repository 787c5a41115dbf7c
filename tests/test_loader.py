"""The loader through its public interface, with real worker processes and without TensorFlow."""

from __future__ import annotations

import gc
import hashlib
import os
import pathlib
import pickle
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import psutil
import pytest

import mploader
from mploader import BucketBy, Loader
from mploader.spec import flatten
from tests.conftest import kill_all, kill_one
from tests.transforms import Squares, fail_at, identity, ids, large, noisy, process_id, square


def digest(batches: Iterable[Any]) -> str:
    """SHA-256 of a stream of batches: structure, dtypes, shapes, bytes and order."""
    stream = hashlib.sha256()
    for batch in batches:
        for leaf in flatten(batch):
            array = np.asarray(leaf)
            stream.update(f"{array.dtype}{array.shape}".encode())
            stream.update(array.tobytes())
    return stream.hexdigest()


# What a user gets


def test_one_epoch_in_order() -> None:
    with Loader(range(10), square, batch_size=4, num_workers=2) as loader:
        batches = list(loader)
        assert len(loader) == len(batches) == 3
        assert [labels.tolist() for _, labels in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert [values.shape for values, _ in batches] == [(4, 4, 4), (4, 4, 4), (2, 4, 4)]
        assert all((values == labels[:, None, None]).all() for values, labels in batches)
        assert loader.element_spec == (
            mploader.ArraySpec((None, 4, 4), np.dtype(np.float32)), mploader.ArraySpec((None,), np.dtype(np.int64)),
        )  # fmt: skip


def test_drop_remainder_gives_full_batches_and_says_so_in_the_spec() -> None:
    with Loader(range(10), square, batch_size=4, drop_remainder=True, num_workers=1) as loader:
        assert [labels.tolist() for _, labels in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert loader.element_spec[0].shape == (4, 4, 4)


@pytest.mark.parametrize("samples", [1, 3, 1000])
def test_elements_one_by_one(samples: int) -> None:
    with Loader(range(samples), square, batch_size=None, num_workers=2) as loader:
        assert len(loader) == samples
        assert loader.element_spec[0].shape == (4, 4)
        elements = list(loader)
        assert [int(label) for _, label in elements] == list(range(samples))
        assert all(values.shape == (4, 4) and (values == label).all() for values, label in elements)


def test_nested_elements_strings_and_numbers() -> None:
    def transform(sample: int) -> Any:
        return {"name": f"sample {sample}", "pair": (sample, {"flag": sample > 1}), "raw": b"x" * sample}

    with Loader(range(3), transform, batch_size=3, num_workers=1) as loader:
        (batch,) = loader
    assert batch["name"].tolist() == [b"sample 0", b"sample 1", b"sample 2"]
    assert batch["raw"].tolist() == [b"", b"x", b"xx"]
    assert batch["pair"][0].tolist() == [0, 1, 2]
    assert batch["pair"][1]["flag"].tolist() == [False, False, True]
    assert batch["pair"][1]["flag"].dtype == bool


def test_a_sequence_of_arrays_reaches_the_workers_without_a_transform() -> None:
    rows = np.arange(24, dtype=np.int16).reshape(6, 4)
    with Loader(rows, batch_size=4, num_workers=2) as loader:
        np.testing.assert_array_equal(np.concatenate(list(loader)), rows)


def test_components_keep_their_values_in_every_dtype() -> None:
    def transform(sample: int) -> Any:
        return tuple(
            np.asarray([sample, 1]).astype(dtype) for dtype in ("u1", "i2", ">i4", "i8", "f2", "f4", "f8", "?", "c8")
        )

    with Loader(range(5), transform, batch_size=5, num_workers=1) as loader:
        (batch,) = loader
    for component in batch:
        assert component.dtype.isnative
        np.testing.assert_array_equal(component, np.array([[sample, 1] for sample in range(5)]).astype(component.dtype))


# Determinism


def test_bytes_and_order_depend_on_neither_workers_nor_slots() -> None:
    slots = set()

    def epochs(**options: Any) -> list[str]:
        with Loader(Squares(100), noisy, batch_size=7, shuffle=True, seed=5, **options) as loader:
            slots.add(loader.statistics().slots)
            return [digest(loader) for _ in range(3)]

    expected = epochs(num_workers=1)
    assert len(set(expected)) == 3, "epochs differ"
    for workers in (2, 3, 5):
        assert epochs(num_workers=workers) == expected
    slots.clear()
    for memory in ("150KiB", "200KiB", "1MiB"):
        assert epochs(num_workers=2, memory=memory) == expected
    assert len(slots) >= 2, f"every memory holds as many slots: {slots}"


def test_an_epoch_has_every_sample_once_and_the_seed_decides_its_order() -> None:
    def order(seed: int) -> list[int]:
        with Loader(range(50), noisy, batch_size=8, shuffle=True, seed=seed, num_workers=2) as loader:
            first, second = ids(iter(loader)), ids(iter(loader))
        assert sorted(first) == sorted(second) == list(range(50))
        assert first != second
        return first

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_random_numbers_belong_to_the_sample_and_the_epoch() -> None:
    def noise(shuffle: bool) -> list[dict[int, bytes]]:
        with Loader(range(20), noisy, batch_size=6, shuffle=shuffle, num_workers=2) as loader:
            return [
                {
                    int(key): value.tobytes()
                    for batch in loader
                    for key, value in zip(batch["id"], batch["noise"], strict=True)
                }
                for _ in range(2)
            ]

    shuffled, plain = noise(True), noise(False)
    assert shuffled == plain, "where a sample stands does not change its random numbers"
    assert shuffled[0] != shuffled[1], "another epoch, other numbers"


def test_shards_of_hosts_make_up_the_global_batches() -> None:
    def host(index: int, count: int) -> list[list[int]]:
        with Loader(
            range(30), noisy, batch_size=8 // count, shuffle=True, shard=(index, count), num_workers=1
        ) as loader:
            return [batch["id"].tolist() for batch in loader]

    whole = host(0, 1)
    halves = [host(index, 2) for index in range(2)]
    assert [left + right for left, right in zip(*halves, strict=True)] == whole


# Runs


def test_workers_live_as_long_as_the_loader() -> None:
    with Loader(range(40), process_id, batch_size=2, num_workers=2) as loader:
        pids = set(loader.worker_pids)
        for _ in range(3):
            assert {int(pid) for batch in loader for pid in batch} <= pids
        assert set(loader.worker_pids) == pids


@pytest.mark.parametrize("taken", [0, 1, 5, 12])
def test_an_abandoned_run_changes_nothing_for_the_next(taken: int) -> None:
    with Loader(range(50), noisy, batch_size=4, shuffle=True, num_workers=2) as loader:
        expected = [digest(loader) for _ in range(4)]
    with Loader(range(50), noisy, batch_size=4, shuffle=True, num_workers=2) as loader:
        for epoch in range(4):
            if epoch % 2:
                assert digest(loader) == expected[epoch]
            else:
                run = iter(loader)
                for _ in range(taken):
                    next(run)
                del run


def test_runs_side_by_side_do_not_see_each_other() -> None:
    with Loader(range(60), noisy, batch_size=4, shuffle=True, num_workers=2) as loader:
        expected = [ids(iter(loader)) for _ in range(3)]
    with Loader(range(60), noisy, batch_size=4, shuffle=True, num_workers=2, memory="300KiB") as loader:
        runs = [iter(loader) for _ in range(3)]
        found: list[list[int]] = [[], [], []]
        for _ in range(len(loader)):
            for place, run in enumerate(runs):
                found[place] += next(run)["id"].tolist()
        assert found == expected


def test_a_run_that_is_left_open_does_not_stop_the_others() -> None:
    with Loader(range(60), noisy, batch_size=4, num_workers=2, memory="200KiB") as loader:
        peek = iter(loader)
        first = next(peek)["id"].tolist()
        for _ in range(5):
            assert ids(iter(loader)) == list(range(60))
        assert first + ids(peek) == list(range(60))


def test_every_batch_stays_as_it_is_while_somebody_holds_it() -> None:
    with Loader(range(200), large, batch_size=4, num_workers=2) as loader:
        kept = [batch for _ in range(3) for batch in loader]
        copied = loader.statistics().batches_copied
        loader.close()
    for place, batch in enumerate(kept):
        first = place % 50 * 4
        assert (batch == (np.arange(first, first + 4, dtype=np.uint8))[:, None, None, None]).all()
    assert copied >= 150 - 10, "more batches than slots are kept, so most were copied out"


def test_a_batch_may_be_changed_by_its_holder() -> None:
    with Loader(range(100), large, batch_size=4, num_workers=2) as loader:
        for _ in range(2):
            for place, batch in enumerate(loader):
                assert batch[0, 0, 0, 0] == place * 4 % 256
                batch[:] = 255


def test_the_next_epoch_is_begun_before_it_is_asked_for() -> None:
    with Loader(range(8), square, batch_size=4, num_workers=1) as loader:
        assert len(list(loader)) == 2
        deadline = time.monotonic() + 20
        while sum(worker.batches for worker in loader.statistics().workers) < 4:
            assert time.monotonic() < deadline, "the workers wait for the second epoch to be asked for"
            threading.Event().wait(0.01)


def test_a_batch_larger_than_its_slot_survives_making_room_for_others() -> None:
    # The first sample, from which the size of a slot is guessed, is small; the tenth does not fit.
    def rows(sample: int) -> np.ndarray[Any, Any]:
        return np.full(10_000 if 9 <= sample < 20 else 4, sample, np.int64)

    with Loader(range(200), rows, batch_size=1, ragged=True, num_workers=2, memory="700KiB") as loader:
        idle = iter(loader)
        for sample in range(9):
            np.testing.assert_array_equal(next(idle).values, rows(sample))
        deadline = time.monotonic() + 20
        while not loader.statistics().slots_ready:  # the idle run has a batch that it does not ask for
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
        others = [iter(loader) for _ in range(3)]
        for sample in range(30):
            for other in others:
                np.testing.assert_array_equal(next(other).values, rows(sample))
        for sample in range(9, 200):
            np.testing.assert_array_equal(next(idle).values, rows(sample))


# Kills


def test_killed_workers_cost_nothing() -> None:
    def transform(sample: int, rng: np.random.Generator) -> Any:
        import time

        time.sleep(0.002)
        return {"id": sample, "noise": rng.random(50)}

    with Loader(range(300), transform, batch_size=6, shuffle=True, num_workers=1) as loader:
        expected = [digest(loader) for _ in range(2)]
    with Loader(range(300), transform, batch_size=6, shuffle=True, num_workers=2) as loader:
        found, killed = [], list[int]()
        for _ in range(2):
            stream = []
            for position, batch in enumerate(loader):
                stream.append(batch)
                if position % 12 == 5:
                    killed.append(kill_one(loader, len(killed) % 2))
            found.append(digest(stream))
        assert found == expected
        assert loader.statistics().restarts >= len(set(killed)) - 1 >= 6


def test_all_workers_killed_at_once() -> None:
    with Loader(range(100), noisy, batch_size=4, num_workers=3) as loader:
        run = iter(loader)
        found = next(run)["id"].tolist()
        kill_all(loader)
        assert found + ids(run) == list(range(100))


# Errors


def gone(pids: list[int], seconds: float = 2.0) -> bool:
    """Whether processes end within some seconds."""
    deadline_s = time.monotonic() + seconds
    while any(map(psutil.pid_exists, pids)):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True


def test_an_exception_in_the_transform_names_the_sample_its_place_and_the_way_out() -> None:
    loader = Loader(Squares(40), fail_at(25), batch_size=4, num_workers=2)
    pids = loader.worker_pids
    run = iter(loader)
    assert next(run)[:, 0].tolist() == [0, 1, 4, 9]
    with pytest.raises(mploader.SampleError) as caught:
        next(run)
    text = str(caught.value)
    assert "sample 5 (squares.txt, line 6 at byte 40) failed in worker" in text
    assert "ValueError: sample 25 is rotten" in text
    assert 'on_bad_sample="drop"' in text
    assert 'raise ValueError(f"sample {sample} is rotten")' in text, "the worker's traceback with its source lines"
    for again in (lambda: next(run), lambda: iter(loader), lambda: list(loader)):
        with pytest.raises(mploader.SampleError, match="rotten"):
            again()
    assert gone(pids)


def test_a_transform_that_always_fails_is_an_error_of_the_constructor() -> None:
    with pytest.raises(mploader.SampleError, match="is rotten"):
        Loader(range(5), fail_at(*range(5)), batch_size=2, num_workers=1)


def test_a_loader_that_may_drop_samples_says_why_it_cannot_begin() -> None:
    with pytest.raises(mploader.SampleError, match=r"(?s)none of the samples that were tried.*is rotten") as caught:
        Loader(range(5), fail_at(*range(5)), batch_size=2, num_workers=1, on_bad_sample="drop")
    assert "pass on_bad_sample=" not in str(caught.value)


@pytest.mark.parametrize(
    "exception", [ValueError, StopIteration, KeyboardInterrupt, SystemExit, GeneratorExit, RecursionError, OSError]
)
def test_whatever_is_raised_is_an_error_and_no_end_of_data(exception: type[BaseException]) -> None:
    def transform(sample: int) -> int:
        if sample == 3:
            raise exception("stop here")
        return sample

    with Loader(range(8), transform, batch_size=2, num_workers=1) as loader:
        run = iter(loader)
        assert next(run).tolist() == [0, 1]
        with pytest.raises(mploader.SampleError, match=rf"{exception.__name__}: stop here"):
            next(run)


def test_bad_samples_can_be_dropped() -> None:
    with Loader(Squares(12), fail_at(4, 25, 100), batch_size=4, num_workers=2, on_bad_sample="drop") as loader:
        assert [batch[:, 0].tolist() for batch in loader] == [[0, 1, 9], [16, 36, 49], [64, 81, 121]]
        bad = loader.bad_samples()
        assert [sample.index for sample in bad] == [2, 5, 10]
        assert bad[0].where == "squares.txt, line 3 at byte 16"
        assert bad[0].error == "ValueError: sample 4 is rotten"
        assert "is rotten" in bad[0].traceback
        assert loader.statistics().bad_samples == 3


def test_bad_samples_can_be_replaced_and_the_seed_chooses_by_what() -> None:
    def run(workers: int, seed: int) -> list[int]:
        with Loader(
            range(40), fail_at(*range(0, 40, 3)), batch_size=8, num_workers=workers, on_bad_sample="replace", seed=seed
        ) as loader:
            batches = [batch[:, 0].tolist() for batch in loader]
        assert [len(batch) for batch in batches] == [8] * 5
        return [value for batch in batches for value in batch]

    first = run(1, 0)
    assert all(value % 3 for value in first)
    assert [value for place, value in enumerate(first) if place % 3] == [value for value in range(40) if value % 3]
    assert run(3, 0) == first
    assert run(1, 1) != first


def test_a_sample_that_kills_its_worker_is_found_and_the_rest_survives() -> None:
    def transform(sample: int) -> int:
        if sample == 5:
            os.kill(os.getpid(), signal.SIGSEGV)
        return sample

    with Loader(range(12), transform, batch_size=4, num_workers=2, on_bad_sample="drop") as loader:
        assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 6, 7], [8, 9, 10, 11]]
        (bad,) = loader.bad_samples()
        assert (bad.index, "killed its worker 3 times" in bad.error, "SIGSEGV" in bad.error) == (5, True, True)


def test_an_element_of_another_shape_says_what_to_do() -> None:
    def transform(sample: int) -> Any:
        return {"image": np.zeros((4 + (sample == 6), 4)), "label": sample}

    with Loader(range(8), transform, batch_size=4, num_workers=1) as loader:
        run = iter(loader)
        next(run)
        with pytest.raises(mploader.SpecError) as caught:
            next(run)
    assert re.search(
        r"sample 6 failed in worker 0: SpecError: element\['image'\] has shape \(5, 4\)"
        r".*the first element has \(4, 4\).*pad=",
        str(caught.value),
    )
    assert "innermost call last" in str(caught.value)


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (lambda sample: [sample], "is a list"),
        (lambda sample: None, "is a NoneType"),
        (lambda sample: object(), "dtype object"),
        (lambda sample: (), "has no components"),
    ],
)
def test_what_cannot_be_batched_is_refused_at_once(element: Callable[[int], Any], message: str) -> None:
    with pytest.raises(mploader.SpecError, match=message):
        Loader(range(4), element, batch_size=2, num_workers=1)


def test_an_element_of_another_structure_or_dtype_is_named() -> None:
    def structure(sample: int) -> Any:
        return {"a": 1, "b": 2} if sample < 3 else {"a": 1}

    def dtype(sample: int) -> Any:
        return np.zeros(3, np.float32 if sample < 3 else np.float64)

    for transform, message in ((structure, r"has the components \[\"element\['a'\]\"\]"), (dtype, "dtype float64")):
        loader = Loader(range(4), transform, batch_size=2, num_workers=1)
        with pytest.raises(mploader.SpecError, match=message):
            list(loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: wants a whole number of at least 1"),
        ({"batch_size": 2.0}, "batch_size=2.0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"num_workers": "two"}, "num_workers='two'"),
        ({"seed": -1}, "seed=-1"),
        ({"shuffle": "yes"}, "shuffle='yes'"),
        ({"shard": (2, 2)}, "shard"),
        ({"shard": 3}, "shard=3"),
        ({"on_bad_sample": "skip"}, "on_bad_sample='skip': wants one of raise, drop, replace"),
        ({"memory": "much"}, "memory='much'"),
        ({"memory": -5}, "memory=-5"),
        ({"stall_timeout": 0}, "stall_timeout=0"),
        ({"stall_timeout": float("nan")}, "stall_timeout=nan"),
        ({"pad": (1, 2, 3)}, "pad"),
        ({"bucket_by": 5}, "bucket_by=5: wants a mploader.BucketBy, or None"),
        ({"bucket_by": BucketBy}, "bucket_by=<class 'mploader.buckets.BucketBy'>: wants a mploader.BucketBy, or None"),
        ({"trace": 5}, "trace=5: wants the name of a file, as text or a path"),
        ({"trace": ""}, "trace='': wants the name of a file, as text or a path"),
        ({"source": []}, "no samples"),
        ({"source": iter([1])}, "from_generator"),
        ({"source": 5}, "__getitem__"),
        ({"transform": 5}, "transform is a int"),
        ({"transform": lambda: 1}, "Wanted is transform(sample) or transform(sample, rng), not ()"),
        ({"transform": lambda a, b, c: 1}, "not (a, b, c)"),
        ({"batch_size": 5, "drop_remainder": True}, "4 samples do not fill one batch of 5"),
    ],
)
def test_arguments_that_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"source": range(4), "transform": square, "batch_size": 2, "num_workers": 1, **options}
    with pytest.raises(mploader.ArgumentError, match=re.escape(message)):
        Loader(arguments.pop("source"), arguments.pop("transform"), **arguments)


def test_a_trace_that_is_no_name_is_refused_before_any_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mploader.loader.Pool", lambda *_: pytest.fail("workers were started"))
    with pytest.raises(mploader.ArgumentError, match="trace=5"):
        Loader(range(4), batch_size=2, trace=5)  # type: ignore[arg-type]


def test_an_unpicklable_transform_is_refused_before_any_process_starts() -> None:
    class Augment:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __call__(self, sample: int) -> int:
            return sample

    lock = threading.Lock()
    before = set(psutil.Process().children())
    for transform, culprit in ((Augment(), "transform.lock"), (lambda sample: (lock, sample)[1], "variable 'lock'")):
        with pytest.raises(mploader.ArgumentError, match=re.escape(culprit)):
            Loader(range(4), transform, batch_size=2, num_workers=1)
    assert set(psutil.Process().children()) == before


def test_memory_too_small_for_the_slots_says_how_much_is_needed() -> None:
    with pytest.raises(mploader.ResourceError, match=r'holds \d slots of .*memory="\d+MiB" or more'):
        Loader(range(4000), large, batch_size=1000, memory="16MiB", num_workers=1)


def test_a_module_that_workers_cannot_import_is_an_error_with_their_traceback(tmp_path: pathlib.Path) -> None:
    class Missing:
        def __reduce__(self) -> Any:
            return (__import__, ("a_module_that_is_not_there",))

        def __call__(self, sample: int) -> int:
            return sample

    with pytest.raises(mploader.WorkerError, match="No module named 'a_module_that_is_not_there'"):
        Loader(range(4), Missing(), batch_size=2, num_workers=2)


# Life and death of a loader


def test_a_closed_loader_says_so_and_can_be_closed_again() -> None:
    loader = Loader(range(100), square, batch_size=2, num_workers=2)
    pids = loader.worker_pids
    run = iter(loader)
    next(run)
    loader.close()
    loader.close()
    assert gone(pids)
    for use in (lambda: next(run), lambda: iter(loader)):
        with pytest.raises(mploader.ClosedError, match="closed"):
            use()


def test_a_loader_that_nobody_holds_ends_its_workers() -> None:
    loader = Loader(range(100), square, batch_size=2, num_workers=2)
    pids = loader.worker_pids
    batch = next(iter(loader))
    del loader
    gc.collect()
    assert gone(pids)
    assert batch[1].tolist() == [0, 1]


def test_descriptors_and_threads_come_back() -> None:
    def census() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    Loader(range(8), square, batch_size=2, num_workers=2).close()  # imports and caches
    gc.collect()
    before = census()
    for _ in range(3):
        with Loader(range(8), square, batch_size=2, num_workers=2) as loader:
            list(loader)
    del loader
    gc.collect()
    assert census() == before


def test_a_loader_does_not_travel() -> None:
    with Loader(range(8), square, batch_size=2, num_workers=1) as loader:
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(loader)
        assert re.search(r"8 samples, batches of 2, 4 an epoch, 1 workers", repr(loader))


def test_a_signal_handler_may_use_the_loader_at_any_moment() -> None:
    with Loader(range(1000), square, batch_size=1, num_workers=1) as loader:
        snapshots = []

        def handler(*_: object) -> None:
            snapshots.append((loader.statistics(), loader.state_dict()))

        end, main = threading.Event(), threading.main_thread().ident
        assert main is not None

        def send() -> None:
            while not end.wait(0.001):
                signal.pthread_kill(main, signal.SIGUSR1)

        sender = threading.Thread(target=send)
        before = signal.signal(signal.SIGUSR1, handler)  # not SIGALRM: that one ends a test that hangs
        try:
            sender.start()
            assert len(list(loader)) == 1000
        finally:
            end.set()
            sender.join()
            signal.signal(signal.SIGUSR1, before)
        assert snapshots


def test_a_closed_run_says_so() -> None:
    with Loader(range(100), square, batch_size=2, num_workers=1) as loader:
        run = loader.open_run()
        next(run)
        run.close()
        with pytest.raises(mploader.ClosedError, match="is closed"):
            next(run)
        assert len(list(loader)) == 50


def test_a_fork_of_the_trainer_is_told_to_make_its_own_loader() -> None:
    with Loader(range(100), square, batch_size=2, num_workers=1) as loader:
        run = iter(loader)
        next(run)
        child = os.fork()
        if child == 0:
            try:
                next(run)
            except mploader.ClosedError as error:
                os._exit(0 if "fork" in str(error) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(list(run)) == 49


def test_a_loader_made_in_a_thread_that_ends_lives_on() -> None:
    made: list[Loader] = []
    thread = threading.Thread(target=lambda: made.append(Loader(range(100), square, batch_size=2, num_workers=2)))
    thread.start()
    thread.join()
    assert ids(iter(made[0])) == list(range(100))


def test_a_loader_inside_a_worker_of_another() -> None:
    def transform(sample: int) -> int:
        with Loader([1, 2, 3], identity, batch_size=3, num_workers=1) as inner:
            return int(next(iter(inner)).sum()) + sample

    with Loader(range(4), transform, batch_size=2, num_workers=1) as loader:
        assert [batch.tolist() for batch in loader] == [[6, 7], [8, 9]]


def test_threads_may_share_a_loader() -> None:
    with Loader(range(120), square, batch_size=3, num_workers=2) as loader:
        found: list[list[int]] = [[], [], []]
        threads = [
            threading.Thread(target=lambda place: found[place].extend(ids(iter(loader))), args=(place,))
            for place in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [list(range(120))] * 3


# Scripts


@pytest.mark.parametrize("way", ["file", "standard input", "cell of a notebook"])
def test_a_script_needs_no_guard_and_its_workers_no_tensorflow(way: str, run_script: Callable[..., Any]) -> None:
    done = run_script(
        """
import sys
import tensorflow as tf
import mploader

offset = 5

def add(sample):
    return sample + offset, any(name.startswith("tensorflow") for name in sys.modules)

loader = mploader.Loader(range(6), add, batch_size=3, num_workers=2)
values = [(x.numpy().tolist(), imported.numpy().tolist()) for x, imported in loader.as_dataset()]
print(values)
doubled = mploader.Loader(range(6), lambda sample: 2 * sample, batch_size=6)
print([batch.tolist() for batch in doubled])
""",
        way=way,
    )
    assert done.stdout.splitlines() == [
        "[([5, 6, 7], [False, False, False]), ([8, 9, 10], [False, False, False])]", "[[0, 2, 4, 6, 8, 10]]"
    ]  # fmt: skip
    assert "Traceback" not in done.stderr


def test_import_mploader_is_light(run_script: Callable[..., Any]) -> None:
    done = run_script(
        "import mploader, sys\n"
        "mploader.Loader, mploader.sources.ImageFolder, mploader.images.Resize\n"
        "heavy = ('tensorflow', 'keras', 'cv2', 'PIL', 'google.protobuf', 'rich')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert done.stdout.strip() == "[]"
