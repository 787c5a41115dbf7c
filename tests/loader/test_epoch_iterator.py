"""One pass over an epoch, over a pool that gives what a test says: what counts as consumed, and when it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pytest

from mploader import ArgumentError, Loader, SampleError
from mploader.engine.ipc.sample_report import SampleReport
from mploader.engine.supervisor.pool import Pool
from mploader.engine.supervisor.ready_batch import ReadyBatch
from mploader.errors import LoaderError, WorkerError
from mploader.loader.epoch_iterator import Elements, EpochIterator
from mploader.loader.position import Position

SAMPLES = 20
BATCH = 4

pytestmark = pytest.mark.usefixtures("workers_in_threads")


class FakePool:
    """Gives the batches of the plan ``range(SAMPLES)``, with reports on some samples, and notes what it is told."""

    def __init__(self, size: int = BATCH, bad: dict[int, list[int]] | None = None) -> None:
        self.size = size
        self.bad = bad or {}
        """Samples that are reported with a batch, and left out of it if they are in it."""
        self.asked: list[int] = []
        self.errors: list[LoaderError] = []
        self.given_up: list[int] = []
        self.ends = 0

    def next_batch(self, run: int, position: int, previous_ns: int | None) -> ReadyBatch:
        self.asked.append(position)
        bad = self.bad.get(position, [])
        samples = [at for at in range(position * self.size, min((position + 1) * self.size, SAMPLES)) if at not in bad]
        reports = [
            SampleReport(
                index, "a file", "ValueError", "rotten", "a traceback", "content", offset=index - position * self.size
            )
            for index in bad
        ]
        return ReadyBatch(batch=np.array(samples), samples=len(samples), reports=reports, got_ns=1 + len(self.asked))

    def fail(self, error: LoaderError) -> None:
        self.errors.append(error)

    def cancel_series(self, run: int) -> None:
        self.given_up.append(run)

    def note_end(self, previous_ns: int | None) -> None:
        self.ends += previous_ns is not None


@pytest.fixture
def loader() -> Iterator[Loader]:
    with Loader(range(SAMPLES), batch_size=BATCH, num_workers=1) as made:
        yield made


def make_epoch(
    loader: Loader, pool: FakePool, epoch: int = 0, batch: int = 0, end_epoch: Callable[[], None] = int
) -> EpochIterator:
    core = loader._core
    return EpochIterator(core.description, core.progress, cast(Pool, pool), Position(epoch, batch), 7, end_epoch)


# Batches


def test_a_run_gives_every_batch_once_and_then_ends(loader: Loader) -> None:
    pool = FakePool()
    run = make_epoch(loader, pool)
    assert [batch.tolist() for batch in run] == [list(range(at, at + 4)) for at in range(0, SAMPLES, 4)]
    assert pool.asked == [0, 1, 2, 3, 4]
    assert (pool.given_up, pool.ends, pool.errors) == ([7], 1, [])
    assert next(run, None) is None
    assert repr(run) == "<EpochIterator: epoch 0, batch 5 of 5>"


def test_a_run_may_begin_anywhere(loader: Loader) -> None:
    pool = FakePool()
    run = make_epoch(loader, pool, 3, 4)
    assert (run.epoch, run.num_batches, run.first, run.length) == (3, 1, 4, 5)
    assert [batch.tolist() for batch in run] == [[16, 17, 18, 19]]


@pytest.mark.parametrize("position", [-1, 0, 5, 2.0, None])
def test_a_position_that_the_run_has_not_is_refused_at_once(position: Any, loader: Loader) -> None:
    with pytest.raises(ArgumentError, match="batch_index="):
        make_epoch(loader, FakePool(), batch=1).get(position)


def test_streams_share_the_positions_of_a_run(loader: Loader) -> None:
    pool = FakePool()
    run = make_epoch(loader, pool, batch=1)
    even, odd = run.batches(0, 2), run.batches(1, 2)
    found = [next(stream)[0] // BATCH for stream in (even, odd, even, odd)]
    assert (found, list(even), list(odd)) == ([1, 2, 3, 4], [], [])
    assert loader.position == Position(0, 0), "TensorFlow has taken them, and what it does with them is not known here"


def test_a_run_that_nobody_holds_is_given_up(loader: Loader) -> None:
    pool = FakePool()
    run = make_epoch(loader, pool)
    next(run)
    del run
    assert pool.given_up == [7]


# What counts as consumed


def test_the_place_is_behind_the_last_batch_and_at_the_end_in_the_next_epoch(loader: Loader) -> None:
    run = make_epoch(loader, FakePool())
    assert [loader.position for _ in run] == [Position(0, batch) for batch in range(1, 5)] + [Position(1, 0)]


@pytest.mark.parametrize("moment", ["consume", "settle"])
def test_an_interrupt_between_taking_and_returning_a_batch_loses_none_silently(
    monkeypatch: pytest.MonkeyPatch, moment: str, loader: Loader
) -> None:
    real = getattr(EpochIterator, moment)

    def interrupted(run: EpochIterator, *arguments: Any) -> None:
        monkeypatch.setattr(EpochIterator, moment, real)
        raise KeyboardInterrupt

    batches = iter(loader)
    assert next(batches).tolist() == [0, 1, 2, 3]
    monkeypatch.setattr(EpochIterator, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    if moment == "consume":
        assert [int(batch[0]) for batch in batches] == [4, 8, 12, 16]
        assert loader.state_dict()["epoch"] == 1
    else:  # the batch is gone, and the error says so at every call
        for _ in range(2):
            with pytest.raises(WorkerError, match="was lost on its way"):
                next(batches)


def test_the_end_of_an_epoch_is_told_once() -> None:
    class Source(list[int]):
        ended = 0

        def begin_epoch(self) -> None:
            pass

        def end_epoch(self) -> None:
            self.ended += 1

    source = Source(range(SAMPLES))
    with Loader(source, batch_size=BATCH, num_workers=1) as loader:
        run = make_epoch(loader, FakePool(), end_epoch=source.end_epoch)
        for place, _ in enumerate(run):
            assert source.ended == (place == 4), "the consumer that counts asks for no more than there is"
        run.close()
        run.settle()
    assert source.ended == 1


# Bad samples


def test_bad_samples_are_told_with_their_batch() -> None:
    with Loader(range(SAMPLES), batch_size=BATCH, num_workers=1, on_bad_sample="drop") as loader:
        run = make_epoch(loader, FakePool(bad={1: [5], 3: [12, 14]}))
        told = [[sample.index for sample in loader.bad_samples()] for _ in run]
        assert told == [[], [5], [5], [5, 12, 14], [5, 12, 14]]
        assert loader.bad_samples()[0].error == "ValueError: rotten"


def test_one_bad_sample_too_many_is_an_error_in_place_of_its_batch() -> None:
    pool = FakePool(bad={1: [5], 3: [12, 14]})
    options: dict[str, Any] = {"batch_size": BATCH, "num_workers": 1, "on_bad_sample": "drop"}
    with Loader(range(SAMPLES), max_bad_samples=2, **options) as loader:
        run = make_epoch(loader, pool)
        assert [len(next(run)) for _ in range(3)] == [4, 3, 4]
        with pytest.raises(SampleError, match=r"(?s)3 samples of epoch 0 are bad.*sample 5 \(a file\).*sample 14"):
            next(run)
    assert isinstance(pool.errors[0], SampleError)


# Elements


def test_elements_are_counted_one_by_one_and_those_left_out_are_passed_over() -> None:
    with Loader(range(SAMPLES), batch_size=None, num_workers=1, on_bad_sample="drop") as loader:
        size = loader._core.description.block_size
        assert size >= SAMPLES, "the epoch is one block"
        run = make_epoch(loader, FakePool(size, bad={0: [0, 3, 19]}))
        elements = run.elements()
        assert isinstance(elements, Elements)
        found = [(int(element), loader.position.batch) for element in elements]
        assert [element for element, _ in found] == [at for at in range(SAMPLES) if at not in (0, 3, 19)]
        assert [place for _, place in found[:4]] == [2, 4, 5, 6], "places of those left out are passed over"
        assert loader.position == Position(1, 0)
        assert run.countable == SAMPLES - 3


def test_a_bad_sample_counts_from_the_element_on_that_it_was_read_for() -> None:
    with Loader(range(SAMPLES), batch_size=None, num_workers=1, shuffle=True, on_bad_sample="replace") as loader:
        pool = FakePool(loader._core.description.block_size, bad={0: [2, 4]})  # offsets: the order does not matter
        pool.size, counted = SAMPLES, []
        elements = make_epoch(loader, pool).elements()
        for _ in range(6):
            next(elements)
            counted.append(loader.state_dict()["bad_indices"])
    assert counted == [[], [], [2], [2], [2, 4], [2, 4]]


def test_a_block_without_an_element_is_passed_over() -> None:
    blocks = iter([np.array([], np.int64), np.array([4, 5]), np.array([], np.int64)])
    assert [int(element) for element in Elements(blocks)] == [4, 5]


def test_an_error_among_elements_comes_again() -> None:
    class Blocks:
        def __init__(self) -> None:
            self.asked = 0

        def __iter__(self) -> Blocks:
            return self

        def __next__(self) -> Any:
            self.asked += 1
            if self.asked == 1:
                return np.array([1])
            raise WorkerError("no more")

    elements = Elements(cast("Iterator[Any]", Blocks()))
    assert next(elements) == 1
    for _ in range(2):
        with pytest.raises(WorkerError, match="no more"):
            next(elements)
