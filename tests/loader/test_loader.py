"""The loader through its public interface, with workers that are threads and without TensorFlow."""

from __future__ import annotations

import pickle
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mploader
from mploader import BucketBy, Loader
from tests.transforms import Squares, digest, fail_at, ids, large, noisy, square

pytestmark = pytest.mark.usefixtures("workers_in_threads")


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


# Errors


def test_a_transform_that_always_fails_is_an_error_of_the_constructor() -> None:
    with pytest.raises(mploader.SampleError, match="is rotten"):
        Loader(range(5), fail_at(*range(5)), batch_size=2, num_workers=1)


def test_a_loader_that_may_drop_samples_says_why_it_cannot_begin() -> None:
    with pytest.raises(mploader.SampleError, match=r"(?s)none of the samples that were tried.*is rotten") as caught:
        Loader(range(5), fail_at(*range(5)), batch_size=2, num_workers=1, on_bad_sample="drop")
    assert "pass on_bad_sample=" not in str(caught.value)
    assert (caught.value.index, caught.value.kind) == (0, "ValueError")


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
        assert (bad[0].error, bad[0].kind) == ("ValueError: sample 4 is rotten", "ValueError")
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
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.0}, "batch_size=2.0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"num_workers": "two"}, "num_workers='two'"),
        ({"seed": -1}, "seed=-1"),
        ({"shuffle": "yes"}, "shuffle='yes'"),
        ({"shard": (2, 2)}, "shard"),
        ({"shard": 3}, "shard=3"),
        ({"on_bad_sample": "skip"}, "on_bad_sample='skip': expected one of 'raise', 'drop', 'replace'"),
        ({"memory": "much"}, "memory='much'"),
        ({"memory": -5}, "memory=-5"),
        ({"stall_timeout": 0}, "stall_timeout=0"),
        ({"stall_timeout": float("nan")}, "stall_timeout=nan"),
        ({"pad": (1, 2, 3)}, "pad"),
        ({"bucket_by": 5}, "bucket_by=5: expected a mploader.BucketBy or None"),
        ({"bucket_by": BucketBy}, "bucket_by=<class 'mploader.sampling.bucketing.BucketBy'>: expected"),
        ({"trace": 5}, "trace=5"),
        ({"trace": ""}, "trace=''"),
        ({"source": []}, "no samples"),
        ({"source": iter([1])}, "from_generator"),
        ({"source": 5}, "__getitem__"),
        ({"transform": 5}, "transform"),
        ({"transform": lambda: 1}, "()"),
        ({"transform": lambda a, b, c: 1}, "(a, b, c)"),
        ({"batch_size": 5, "drop_remainder": True}, "4 samples do not fill one batch of 5"),
    ],
)
def test_arguments_that_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"source": range(4), "transform": square, "batch_size": 2, "num_workers": 1, **options}
    with pytest.raises(mploader.ArgumentError, match=re.escape(message)):
        Loader(arguments.pop("source"), arguments.pop("transform"), **arguments)


def test_a_trace_that_is_no_name_is_refused_before_any_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mploader.loader.core.Pool", lambda *_: pytest.fail("workers were started"))
    with pytest.raises(mploader.ArgumentError, match="trace=5"):
        Loader(range(4), batch_size=2, trace=5)  # type: ignore[arg-type]


def test_memory_too_small_for_the_slots_says_how_much_is_needed() -> None:
    with pytest.raises(mploader.ResourceError, match=r'holds \d slots of .*memory="\d+MiB" or more'):
        Loader(range(4000), large, batch_size=1000, memory="16MiB", num_workers=1)


# Life and death of a loader


def test_a_loader_does_not_travel() -> None:
    with Loader(range(8), square, batch_size=2, num_workers=1) as loader:
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(loader)
        assert re.search(r"8 samples, batches of 2, 4 an epoch, 1 workers", repr(loader))


def test_a_closed_epoch_iterator_says_so() -> None:
    with Loader(range(100), square, batch_size=2, num_workers=1) as loader:
        run = loader._core.open_epoch()
        next(run)
        run.close()
        with pytest.raises(mploader.ClosedError, match="is closed"):
            next(run)
        assert len(list(loader)) == 50


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
