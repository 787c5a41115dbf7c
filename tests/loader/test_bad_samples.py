"""The memory of bad samples: bounded, and its counts are those of a list that keeps everything."""

from __future__ import annotations

import itertools

import pytest

from mploader import Loader
from mploader.engine.ipc.sample_report import BadSample
from mploader.loader import bad_samples
from mploader.loader.bad_samples import EPOCHS_LISTED, INDICES_KEPT, LISTED, TRACEBACKS_KEPT, BadSampleRecord
from mploader.loader.position import Position
from tests.transforms import Squares, fail_at

pytestmark = pytest.mark.usefixtures("workers_in_threads")


def fill(record: BadSampleRecord, epochs: int, batches: int, each: int) -> list[tuple[Position, int]]:
    """Adds bad samples; returns all of them, with the places behind their batches."""
    added = []
    for epoch, batch in itertools.product(range(epochs), range(batches)):
        place = Position(epoch, batch + 1)
        indices = range(batch * each, (batch + 1) * each)
        record.add([BadSample(index, "", "ValueError: bad", "") for index in indices], place)
        added += [(place, index) for index in indices]
    return added


@pytest.mark.parametrize(("batches", "each", "listed"), [(30, 2, LISTED), (100, 20, EPOCHS_LISTED * 100 * 20)])
def test_a_long_run_lists_the_recent_ones_and_counts_all(batches: int, each: int, listed: int) -> None:
    record = BadSampleRecord()
    added = fill(record, 50, batches, each)
    assert [sample.index for sample in record.samples()] == [index for _, index in added[-listed:]]
    for consumed in (Position(50, 0), Position(49, 10), Position(48, 1), Position(47, 0)):
        before = [index for place, index in added if place <= consumed]
        count, indices, in_epoch = record.until(consumed)
        assert count == len(before)
        assert indices[-INDICES_KEPT:] == before[-INDICES_KEPT:]
        assert in_epoch == consumed.batch * each


def test_a_loader_says_the_same_wherever_the_list_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def states() -> list[object]:
        with Loader(
            Squares(12), fail_at(4, 25, 100), batch_size=4, num_workers=1, on_bad_sample="drop"
        ) as loader:
            told: list[object] = [loader.state_dict() for _ in range(20) for _ in loader]
            listed.append([sample.index for sample in loader.bad_samples()])
            return told

    listed: list[list[int]] = []
    everything = states()
    monkeypatch.setattr(bad_samples, "LISTED", 0)
    assert states() == everything
    assert listed == [[2, 5, 10] * 20, [2, 5, 10] * EPOCHS_LISTED]


def test_the_first_bad_samples_of_an_epoch_keep_their_tracebacks() -> None:
    with Loader(
        Squares(300), fail_at(*(n * n for n in range(1, 300))), batch_size=30, num_workers=1, on_bad_sample="drop"
    ) as loader:
        for _ in range(2):
            sum(1 for _ in loader)
        kept = [bool(sample.traceback) for sample in loader.bad_samples()]
        assert all("is rotten" in sample.error for sample in loader.bad_samples())
    assert kept == ([True] * TRACEBACKS_KEPT + [False] * (299 - TRACEBACKS_KEPT)) * 2
