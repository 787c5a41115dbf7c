"""Whatever user code raises arrives as a clear error or is counted, and is never the end of the data."""

from __future__ import annotations

import importlib
import pathlib
import re
import sys
import threading
from typing import Any

import pytest

from mploader import ArgumentError, Loader, LoaderError, ResourceError, SampleError, WorkerError
from mploader.testing import FlakySource
from tests.faults import raising


@pytest.mark.parametrize("kind", ["built_in", "strange"])
def test_every_exception_is_counted_and_costs_its_own_sample(kind: str) -> None:
    errors = getattr(raising, kind)()
    with Loader(
        range(2 * len(errors)), raising.RaiseOn(kind), batch_size=5, num_workers=2, on_bad_sample="drop"
    ) as loader:
        delivered = [sample for batch in loader for sample in batch.tolist()]
        bad = loader.bad_samples()
        assert loader.statistics().restarts == 0
    assert delivered == list(range(0, 2 * len(errors), 2))
    assert [sample.index for sample in bad] == list(range(1, 2 * len(errors), 2))
    assert [sample.error.partition(":")[0] for sample in bad] == [type(error).__name__ for error in errors]
    assert all(len(sample.error) < 3_000 and len(sample.traceback) < 20_000 for sample in bad)


def test_however_many_samples_of_a_batch_are_bad_each_is_told_with_its_place() -> None:
    source = raising.MostlyBad()
    with Loader(source, batch_size=3500, num_workers=2, on_bad_sample="drop") as loader:
        delivered = [len(text) for batch in loader for text in batch]
        bad = loader.bad_samples()
        slot_bytes = loader._core.slots.slot_bytes
        assert slot_bytes < source.LONG_BYTES, "the first of both batches is larger than its slot, too"
    good = [index for index in range(len(source)) if index % 1000 < source.GOOD]
    assert delivered == [source.LONG_BYTES if index == 2007 else 1 for index in good]
    assert [sample.index for sample in bad] == [index for index in range(len(source)) if index not in good]
    assert all(sample.where == source.where(sample.index) for sample in bad)
    assert all(sample.error.startswith(f"ValueError: picture {sample.index} is bad") for sample in bad)


@pytest.mark.parametrize(
    "error", [StopIteration, KeyboardInterrupt, SystemExit, GeneratorExit, ValueError, raising.MuteError]
)
def test_an_exception_is_a_sample_error_that_stays(error: type[BaseException]) -> None:
    with Loader(range(12), raising.RaiseOne(error), batch_size=4, num_workers=2) as loader:
        run = iter(loader)
        assert next(run).tolist() == [0, 1, 2, 3]
        texts = set()
        for _ in range(3):
            with pytest.raises(SampleError) as failure:
                next(run)
            texts.add(str(failure.value))
        with pytest.raises(SampleError):
            list(loader)
        (text,) = texts
    assert re.match(rf"sample 7 failed in worker [01]: {error.__name__}: ", text)
    assert "raising.py" in text


@pytest.mark.parametrize("error", raising.of_the_machine())
def test_a_fault_of_the_machine_is_tried_again_and_never_skipped(error: type[BaseException]) -> None:
    with (
        Loader(range(12), raising.Impatient(error), batch_size=4, num_workers=1, on_bad_sample="drop") as loader,
        pytest.raises(ResourceError, match=f"{error.__name__}: call 4\n.*tried several times"),
    ):
        list(loader)


def test_those_are_the_exceptions_that_tell_of_the_machine() -> None:
    assert {error.__name__ for error in raising.of_the_machine()} == {
        "BrokenPipeError", "ConnectionAbortedError", "ConnectionError", "ConnectionRefusedError",
        "ConnectionResetError", "MemoryError", "TimeoutError",
    }  # fmt: skip


@pytest.mark.parametrize("policy", ["raise", "drop", "replace"])
def test_a_read_that_fails_once_is_tried_again_and_delivered(policy: str) -> None:
    with Loader(
        FlakySource(range(12), failures=2, bad=[7]), batch_size=4, num_workers=2, on_bad_sample=policy
    ) as loader:
        assert [sample for batch in loader for sample in batch.tolist()] == list(range(12))
        assert loader.bad_samples() == []


def test_the_pauses_between_reads_are_no_stall() -> None:
    source = FlakySource(range(12), failures=10**6, bad=[7])
    with (
        Loader(source, batch_size=4, num_workers=2, on_bad_sample="drop", stall_timeout=0.5) as loader,
        pytest.raises(ResourceError, match=r"sample 7 .*Input/output error"),
    ):
        list(loader)


def test_no_descriptors_is_a_fault_of_the_machine() -> None:
    with (
        Loader(range(12), raising.exhaust_descriptors, batch_size=4, num_workers=1, on_bad_sample="replace") as loader,
        pytest.raises(ResourceError, match=r"(?s)sample 7 .*Too many open files.*fault of the machine"),
    ):
        list(loader)


def test_a_transform_that_cannot_be_pickled_is_refused_before_anything_starts() -> None:
    lock = threading.Lock()
    with pytest.raises(ArgumentError, match=r"transform cannot be sent to the worker processes: .*lock"):
        Loader(range(12), lambda sample: (lock, sample)[1], batch_size=4)


@pytest.mark.parametrize(("later", "kind"), [(None, "ModuleNotFoundError"), ("1 / 0", "ZeroDivisionError")])
def test_a_module_that_only_the_trainer_can_import(
    later: str | None, kind: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "only_here.py"
    module.write_text("def transform(sample):\n    return sample\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "only_here", raising=False)
    transform: Any = importlib.import_module("only_here").transform
    if later is None:
        module.unlink()
    else:
        module.write_text(later)
    with pytest.raises(WorkerError, match=f"(?s)cannot start: .*{kind}"):
        Loader(range(12), transform, batch_size=4, num_workers=2)


@pytest.mark.parametrize("error", [IndexError, StopIteration, KeyError])
def test_a_source_that_raises(error: type[Exception]) -> None:
    with Loader(raising.Source("getitem", error), batch_size=4, num_workers=2, on_bad_sample="drop") as loader:
        assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6], [8, 9, 10, 11]]
        assert [sample.where for sample in loader.bad_samples()] == ["item 7"]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_where_that_raises_spoils_only_its_text(error: type[BaseException]) -> None:
    with (
        Loader(raising.Source("where", error), batch_size=4, num_workers=1) as loader,
        pytest.raises(SampleError, match=r"sample 7 \(where\(\) raised from where\) failed"),
    ):
        list(loader)


def test_a_len_that_raises_is_the_users_own_error() -> None:
    with pytest.raises(ZeroDivisionError, match="from len"):
        Loader(raising.Source("len", ZeroDivisionError), batch_size=4)


def test_a_loader_whose_every_sample_is_bad_says_so_at_once() -> None:
    with pytest.raises(LoaderError, match=r"sample 0 failed .*some text"):
        Loader(range(1, 24, 2), raising.RaiseOn("built_in"), batch_size=4, num_workers=1, on_bad_sample="drop")
