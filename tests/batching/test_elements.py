"""Runs without a batch size, and what a run reports at its end or when it fails."""

from __future__ import annotations

from typing import Any

import pytest

from mploader import Loader, SampleError
from mploader.engine.supervisor.pool import Pool
from tests.transforms import fail_at, identity

pytestmark = pytest.mark.usefixtures("workers_in_threads")


class Epochs:
    """A source that is told of epochs."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return index

    def begin_epoch(self) -> None:
        self.calls.append("begin")

    def end_epoch(self) -> None:
        self.calls.append("end")

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Unkind(Epochs):
    def end_epoch(self) -> None:
        raise RuntimeError("no end")


@pytest.mark.parametrize("bad", [3, 700])
def test_an_error_among_elements_comes_again_at_every_call(bad: int) -> None:
    with Loader(range(1000), fail_at(bad), batch_size=None, num_workers=2) as loader:
        elements = iter(loader)
        with pytest.raises(SampleError, match="is rotten"):
            list(elements)
        for _ in range(3):
            with pytest.raises(SampleError, match="is rotten"):
                next(elements)


def test_an_interrupt_does_not_end_the_elements_of_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter([False, True])
    deliver = Pool.next_batch

    def interrupted(*arguments: Any) -> Any:
        if next(calls, False):
            raise KeyboardInterrupt
        return deliver(*arguments)

    monkeypatch.setattr(Pool, "next_batch", interrupted)
    with Loader(range(1000), identity, batch_size=None, num_workers=2) as loader:
        elements, seen = iter(loader), list[int]()
        with pytest.raises(KeyboardInterrupt):
            seen.extend(map(int, elements))
        assert 0 < len(seen) < 1000
        assert loader.position.batch == len(seen)
        assert seen + list(map(int, elements)) == list(range(1000))
        assert next(elements, None) is None


@pytest.mark.parametrize("batch_size", [2, None])
def test_an_epoch_is_over_with_its_last_batch(batch_size: int | None) -> None:
    source = Epochs()
    with Loader(source, batch_size=batch_size, num_workers=1) as loader:
        for epoch in range(1, 3):
            for _ in zip(range(len(loader)), loader, strict=False):
                assert source.calls.count("begin") == epoch
            assert source.calls == ["begin", "end"] * epoch


def test_an_error_at_the_end_of_an_epoch_does_not_lose_its_last_batch_in_silence() -> None:
    with Loader(Unkind(), batch_size=4, num_workers=1) as loader:
        batches = iter(loader)
        next(batches)
        with pytest.raises(RuntimeError, match="no end"):
            next(batches)
        with pytest.raises(Exception, match=r"batch 1 was lost.*no end"):
            next(batches)


@pytest.mark.parametrize("policy", ["drop", "replace"])
def test_a_bad_element_counts_as_soon_as_the_next_one_is_consumed(policy: str) -> None:
    with Loader(range(40), fail_at(3, 20), batch_size=None, num_workers=1, on_bad_sample=policy) as loader:
        elements = iter(loader)
        counts = []
        for _ in range(22):
            next(elements)
            state = loader.state_dict()
            counts.append((state["samples"], state["bad_samples"], state["bad_in_epoch"]))
        assert state["bad_indices"] == [3, 20]
    if policy == "drop":
        assert counts[1:4] == [(2, 0, 0), (4, 1, 1), (5, 1, 1)]
    else:
        assert counts[1:5] == [(2, 0, 0), (3, 0, 0), (4, 1, 1), (5, 1, 1)]
    for samples, bad, in_epoch in counts:
        assert bad == in_epoch == (samples > 3) + (samples > 20)
