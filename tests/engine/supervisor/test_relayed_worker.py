"""The seam: workers that are elsewhere, by a handle of their own, give the same stream whatever happens to them."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mploader
from mploader.batching.codecs import Fixed
from mploader.batching.layout import BatchLayout
from mploader.batching.spec import ArraySpec
from mploader.engine.ipc import messages
from mploader.engine.ipc.job import GeneratorJob
from mploader.engine.supervisor.worker_handle import use_launcher
from mploader.engine.supervisor.worker_process import ProcessLauncher
from mploader.loader.generator_pool import GeneratorPool
from mploader.testing import workers_in_threads
from tests.engine.supervisor.relayed_worker import Faults, RelayedLauncher, RelayedWorker
from tests.test_golden_streams import STREAMS, digest_of

SAMPLES = 60
KINDS = {
    "honest": Faults(),
    "the connection is lost with every third result": Faults(dies_after=3),
    "the connection is lost with the first result of each": Faults(dies_after=2),
    "slow": Faults(delay_s=0.01),
}


def noisy(sample: int, rng: np.random.Generator) -> dict[str, Any]:
    return {"sample": sample, "noise": rng.random((40, 3)), "text": f"sample {sample}" * (sample % 5)}


def read(**options: Any) -> list[Any]:
    """Two epochs, whose batches are kept so that slots are borrowed."""
    settings = {"batch_size": 4, "num_workers": 3, "shuffle": True, "seed": 1} | options
    source, transform = settings.pop("source", range(SAMPLES)), settings.pop("transform", noisy)
    with mploader.Loader(source, transform, **settings) as loader:
        batches = [batch for _ in range(2) for batch in loader]
        bad = loader.bad_samples()
    return [digest_of([batch]) for batch in batches] + [(item.index, item.error) for item in bad]


def expected(**options: Any) -> list[Any]:
    with workers_in_threads():
        return read(**options)


@pytest.mark.parametrize("name", KINDS)
def test_the_stream_is_the_same(name: str) -> None:
    plain = expected()
    with use_launcher(RelayedLauncher(KINDS[name])):
        assert read() == plain


def test_processes_of_this_machine_work_beside_workers_elsewhere() -> None:
    plain = expected()
    launcher = RelayedLauncher(Faults(dies_after=4), local=ProcessLauncher())
    with use_launcher(launcher):
        assert read() == plain
    assert launcher.launched


@pytest.mark.parametrize("name", STREAMS)
def test_golden_streams_come_from_elsewhere_as_well(name: str) -> None:
    make, golden = STREAMS[name]
    with use_launcher(RelayedLauncher(Faults(dies_after=7))):
        assert digest_of(make()) == golden


def lies(worker: RelayedWorker) -> bool:
    """One worker and its replacement lie with their second result. All of them would end the iteration."""
    return worker.index == 1 and worker.start <= 2 and worker._results == 1


def other_slot(worker: RelayedWorker, message: messages.Made) -> messages.Made:
    """The slot of another worker, where there is one."""
    return dataclasses.replace(message, slot=(message.slot + 1) % 4) if lies(worker) else message


def other_task(worker: RelayedWorker, message: messages.Made) -> messages.Made:
    return dataclasses.replace(message, task=message.task + 1) if lies(worker) else message


def too_large(worker: RelayedWorker, message: messages.Made) -> messages.Made:
    return dataclasses.replace(message, batch_bytes=2**40) if lies(worker) else message


def twice(worker: RelayedWorker, message: messages.Made) -> messages.Made:
    """The result of the batch before, again."""
    before = worker.__dict__.setdefault("_before", message)
    worker.__dict__["_before"] = message
    return before if lies(worker) else message


@pytest.mark.parametrize("lie", [other_slot, other_task, too_large, twice])
def test_a_worker_that_lies_is_replaced_and_writes_into_no_slot_of_others(lie: Callable[..., Any]) -> None:
    plain = expected()
    launcher = RelayedLauncher(Faults(lie=lie))
    with use_launcher(launcher):
        assert read() == plain
    assert len(launcher.launched) > 3


def odd(sample: int, rng: np.random.Generator) -> dict[str, Any]:
    if sample % 7 == 0:
        raise ValueError("a bad sample")
    return noisy(sample, rng)


@pytest.mark.parametrize("policy", ["drop", "replace"])
def test_bad_samples_are_reported_from_elsewhere(policy: str) -> None:
    plain = expected(transform=odd, on_bad_sample=policy)
    with use_launcher(RelayedLauncher(Faults(dies_after=3))):
        assert read(transform=odd, on_bad_sample=policy) == plain


def test_a_bad_sample_is_the_same_error() -> None:
    with use_launcher(RelayedLauncher()), pytest.raises(mploader.SampleError) as caught:
        read(transform=odd)
    assert caught.value.index is not None
    assert caught.value.index % 7 == 0
    assert caught.value.kind == "ValueError"


def growing(sample: int) -> Any:
    return np.full((1 + 2000 * (sample == 59), 50), sample)


def test_a_batch_that_is_larger_than_its_slot_travels_as_well() -> None:
    options: dict[str, Any] = {"transform": growing, "pad": 0, "shuffle": False}
    plain = expected(**options)
    with use_launcher(RelayedLauncher(Faults(dies_after=5))):
        assert read(**options) == plain


def hanging(sample: int) -> Any:
    if sample == 20 and not hanging.has_hung.is_set():  # type: ignore[attr-defined]
        hanging.has_hung.set()  # type: ignore[attr-defined]
        hanging.may_end.wait()  # type: ignore[attr-defined]
    return np.full(3, sample)


@pytest.fixture
def hang() -> Iterator[None]:
    """A transform hangs once, until the test is over."""
    hanging.has_hung, hanging.may_end = threading.Event(), threading.Event()  # type: ignore[attr-defined]
    yield
    hanging.may_end.set()  # type: ignore[attr-defined]


class ByName:
    """Travels by name, so that the threads of this process share the events."""

    def __reduce__(self) -> Any:
        return ByName, ()

    def __call__(self, sample: int) -> Any:
        import tests.engine.supervisor.test_relayed_worker as module

        return module.hanging(sample)


def generate(number: int) -> Iterator[Any]:
    for step in range(number * 3 % 11 + 1):
        yield np.array([number, step])


def blocks(launcher: RelayedLauncher | None) -> list[list[Any]]:
    job = GeneratorJob(generator=generate, inputs=list(range(9)))
    layout = BatchLayout(Fixed(ArraySpec((2,), np.dtype(np.int64))), 2)
    with use_launcher(launcher) if launcher is not None else workers_in_threads():
        pool = GeneratorPool(job, layout, layout.fixed_bytes, 2, 3, 300.0)
    group = pool.open_pass()
    found = [[row.tolist() for block in group.blocks(number) for row in block] for number in range(9)]
    pool.close()
    return found


@pytest.mark.parametrize("dies_after", [None, 2, 3])
def test_generators_live_elsewhere_and_are_replayed(dies_after: int | None) -> None:
    assert blocks(RelayedLauncher(Faults(dies_after=dies_after))) == blocks(None)


def test_a_worker_that_hangs_elsewhere_is_replaced(hang: None) -> None:
    with workers_in_threads():
        hanging.has_hung.set()  # type: ignore[attr-defined]
        plain = read(transform=ByName())
    hanging.has_hung.clear()  # type: ignore[attr-defined]
    launcher = RelayedLauncher()
    with use_launcher(launcher):
        assert read(transform=ByName(), stall_timeout=0.3) == plain
    assert len(launcher.launched) > 3


def more_elements(worker: RelayedWorker, message: messages.Made) -> messages.Made:
    return dataclasses.replace(message, elements=message.elements + 1) if lies(worker) else message


def test_a_worker_that_miscounts_the_elements_of_a_generator_is_replaced() -> None:
    launcher = RelayedLauncher(Faults(lie=more_elements))
    assert blocks(launcher) == blocks(None)
    assert len(launcher.launched) > 2
