"""``loader.batch(epoch, n)``: one batch again, outside the stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mploader import ArgumentError, ClosedError, Loader, SampleError
from mploader.batching.layout import BatchLayout
from tests.transforms import Squares, fail_at, noisy

pytestmark = pytest.mark.usefixtures("workers_in_threads")


def same(ours: Any, theirs: Any) -> bool:
    return all(np.array_equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("batch_size", [4, None])
@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
def test_it_is_the_batch_of_the_stream(batch_size: int | None, shard: tuple[int, int]) -> None:
    with Loader(range(22), noisy, batch_size=batch_size, shuffle=True, seed=3, shard=shard, num_workers=2) as loader:
        epochs = [[{**batch} for batch in loader] for _ in range(2)]
        state = loader.state_dict()
        for epoch, n in ((0, 0), (1, 2), (0, len(loader) - 1), (1, 1)):
            assert same(loader.batch(epoch, n), epochs[epoch][n]), (epoch, n)
        assert same(loader.batch(np.int64(7), 1), loader.batch(7, 1)), "an epoch that nobody has read"
        assert loader.state_dict() == state


def test_it_leaves_iterations_and_counts_alone() -> None:
    with Loader(Squares(40), fail_at(4, 25), batch_size=4, num_workers=2, on_bad_sample="drop") as loader:
        expected = [batch.tolist() for batch in loader]
        before = loader.statistics()
        loader.batch(0, 1)
        after = loader.statistics()
        for name in ("batches", "samples", "bad_samples", "waited_s", "bytes"):
            assert getattr(after, name) == getattr(before, name), name
        assert len(loader.bad_samples()) == 2
        found = []
        for n, batch in enumerate(loader):
            found.append(batch.tolist())
            assert loader.batch(0, len(loader) - 1 - n).tolist() == expected[-1 - n]
            assert loader.position.batch in (n + 1, 0)
        assert found == expected
        assert len(loader.bad_samples()) == 4


def test_many_batches_again_give_their_slots_back() -> None:
    with Loader(range(40), noisy, batch_size=4, num_workers=1, memory="200KiB") as loader:
        for _ in range(10):
            for n in range(len(loader)):
                assert loader.batch(0, n)["id"].tolist() == list(range(4 * n, 4 * n + 4))
        kept = [loader.batch(0, n) for n in range(len(loader))]
        assert [batch["id"][0] for batch in kept] == list(range(0, 40, 4))
        assert len(list(loader)) == 10


def test_an_error_does_not_end_the_loader() -> None:
    with Loader(Squares(40), fail_at(25), batch_size=4, num_workers=1) as loader:
        for _ in range(2):
            with pytest.raises(SampleError, match="rotten") as caught:
                loader.batch(0, 1)
            assert (caught.value.index, caught.value.kind) == (5, "ValueError")
        assert next(iter(loader))[:, 0].tolist() == [0, 1, 4, 9]


def test_an_element_that_was_dropped_says_why() -> None:
    with Loader(Squares(20), fail_at(25), batch_size=None, num_workers=1, on_bad_sample="drop") as loader:
        with pytest.raises(SampleError, match="sample 25 is rotten"):
            loader.batch(0, 5)
        assert loader.batch(0, 6)[0] == 36
        assert loader.bad_samples() == []


@pytest.mark.parametrize(("epoch", "n"), [(0, 10), (0, -1), (-1, 0), (0.0, 1), (0, True), (0, 10**9)])
def test_a_batch_that_does_not_exist_is_refused(epoch: Any, n: Any) -> None:
    with Loader(range(40), batch_size=4, num_workers=1) as loader:
        with pytest.raises(ArgumentError):
            loader.batch(epoch, n)
        assert len(list(loader)) == 10


def test_a_closed_loader_says_so() -> None:
    loader = Loader(range(40), batch_size=4, num_workers=1)
    loader.close()
    with pytest.raises(ClosedError):
        loader.batch(0, 0)


class Changing(list[int]):
    """Grows with every epoch."""

    def begin_epoch(self) -> None:
        self[:] = [number + 100 for number in self]

    def end_epoch(self) -> None:
        pass


def test_of_a_source_that_changes_only_the_epoch_that_is_read() -> None:
    with Loader(Changing(range(8)), batch_size=4, num_workers=1) as loader:
        with pytest.raises(ArgumentError, match="changes between epochs"):
            loader.batch(0, 0)
        epoch = iter(loader)
        assert next(epoch).tolist() == [100, 101, 102, 103]
        assert loader.batch(0, 1).tolist() == [104, 105, 106, 107]
        assert loader.batch(0, 0).tolist() == [100, 101, 102, 103]
        with pytest.raises(ArgumentError, match="changes between epochs"):
            loader.batch(1, 0)
        assert next(epoch).tolist() == [104, 105, 106, 107]


@pytest.mark.usefixtures("workers_in_threads")
@pytest.mark.parametrize("held", [0, 8], ids=["borrowed", "copied out"])
def test_a_batch_that_cannot_be_read_gives_its_slot_back_once(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with Loader(range(80), batch_size=2, num_workers=1) as loader:
        batches = iter(loader)
        kept = [next(batches) for _ in range(held)]

        def fail(*_: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(BatchLayout, "read", fail)
            for _ in range(2 * loader.statistics().slots):
                with pytest.raises(MemoryError):
                    loader.batch(0, 1)
        assert [batch.tolist() for batch in batches] == [[n, n + 1] for n in range(2 * held, 80, 2)]
        del kept
