"""The statistics of a loader: sums that must agree with what the consumer has seen."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest

import mploader
from mploader import ArgumentError, Loader
from mploader.monitoring import counters as counting
from mploader.monitoring.counters import Counters
from mploader.monitoring.events import BatchDelivered, BatchMade, SlotCounts, WorkerRestarted
from mploader.monitoring.statistics import Statistics, WorkerStatistics
from mploader.monitoring.totals import state, total
from tests.conftest import kill_one

pytestmark = pytest.mark.usefixtures("workers_in_threads")


class Texts:
    """A source of texts of 100 bytes."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> bytes:
        return bytes([index]) * 100


def slow_picture(sample: bytes) -> np.ndarray:
    time.sleep(0.002)
    return np.full((8, 8), sample[0], np.uint8)


def faulty_picture(sample: bytes) -> np.ndarray:
    if sample[0] % 10 == 3:
        raise ValueError("a bad sample")
    return slow_picture(sample)


@pytest.mark.processes
def test_stages_and_consumer_add_up_to_what_was_delivered() -> None:
    with Loader(Texts(), slow_picture, batch_size=4, num_workers=2, drop_remainder=True) as loader:
        for _ in loader:
            time.sleep(0.001)
        statistics = loader.statistics()
    assert (statistics.batches, statistics.samples) == (10, 40)
    assert statistics.bytes >= 40 * 64
    # Workers run ahead into the next epoch, so they may have done more than was delivered, but never less.
    workers = statistics.workers
    assert sum(worker.batches for worker in workers) >= 10
    for worker in workers:
        assert worker.samples == 4 * worker.batches
        assert worker.read.samples == worker.transform.samples == worker.write.samples == worker.samples
        assert worker.read.bytes == 100 * worker.samples
        assert worker.write.bytes >= 64 * worker.samples
        assert worker.transform.seconds >= 0.002 * worker.samples
        assert worker.busy_s >= worker.read_s + worker.transform_s + worker.write_s
        assert worker.busy_s >= worker.cpu_s + worker.queued_s - 0.1  # different clocks
    assert statistics.computing_s >= 9 * 0.001
    assert statistics.waited_s >= statistics.started_s > 0
    assert statistics.seconds >= statistics.waited_s + statistics.computing_s
    assert statistics.slots == statistics.slots_wanted == (
        statistics.slots_borrowed + statistics.slots_ready + statistics.slots_assigned + statistics.slots_free
    )


def test_bad_samples_are_read_but_not_written() -> None:
    with Loader(Texts(), faulty_picture, batch_size=10, num_workers=1, on_bad_sample="drop") as loader:
        assert [len(batch) for batch in loader] == [9, 9, 9, 9]
        statistics = loader.statistics()
    worker = statistics.workers[0]
    assert (statistics.samples, statistics.bad_samples) == (36, 4)
    assert worker.samples_read * 9 == worker.samples * 10


@pytest.mark.processes
def test_a_lost_worker_is_counted_where_it_was() -> None:
    with Loader(Texts(), slow_picture, batch_size=2, num_workers=2) as loader:
        run = iter(loader)
        next(run)
        kill_one(loader, 0)
        assert sum(1 for _ in run) == 19
        for _ in loader:  # gives the replacement time to start, whenever the kernel reports the death
            if loader.statistics().restarts:
                break
        assert loader.statistics().restarts == 1


def test_the_difference_of_two_snapshots_is_what_happened_between_them() -> None:
    with Loader(Texts(), slow_picture, batch_size=4, num_workers=1) as loader:
        sum(1 for _ in loader)
        before = loader.statistics()
        for _ in zip(range(5), loader, strict=False):
            pass
        between = loader.statistics().since(before)
    assert (between.batches, between.samples) == (5, 20)
    assert between.slots == before.slots
    assert between.workers[0].batches <= 5 + before.slots
    assert 0 < between.seconds < before.seconds + 60


def test_arrays_that_are_kept_show_as_borrowed_slots_and_copies() -> None:
    with Loader(Texts(), slow_picture, batch_size=1, num_workers=1) as loader:
        kept = list(loader)
        statistics = loader.statistics()
        assert statistics.slots_borrowed + statistics.batches_copied == len(kept) == 40
        assert statistics.batches_copied > 0
        assert statistics.borrowed_slot_s > 0
        del kept
        assert loader.statistics().slots_borrowed == 0


def test_a_snapshot_is_frozen_and_shows_itself() -> None:
    with Loader(Texts(), slow_picture, batch_size=4, num_workers=2) as loader:
        sum(1 for _ in loader)
        statistics = loader.statistics()
        page = loader._repr_html_()
    with pytest.raises(dataclasses.FrozenInstanceError):
        statistics.batches = 0  # type: ignore[misc]
    text = str(statistics)
    assert "10 batches, 40 samples" in text
    assert len(text.splitlines()) == 4 + 1 + 2  # the summary, the head of the table, two workers
    assert page.count("<tr>") == 3
    assert "&lt;Loader: 40 samples" in page
    assert isinstance(statistics.workers[0].read, mploader.Stage)


FULL = SlotCounts(ready=2, borrowed=1)
MS = 1_000_000


class Consumer:
    """One of the consumers of some counters, at times in milliseconds since the counters were made."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.previous_ns: int | None = None

    def at(self, time_ms: int) -> int:
        return self.counters._made_ns + time_ms * MS

    def ask(self, time_ms: int) -> None:
        self.counters.asked(self.at(time_ms), self.previous_ns)

    def get(self, asked_ms: int, got_ms: int, copied_ms: int = 0) -> None:
        now = self.at(got_ms)
        self.counters.delivered(
            BatchDelivered(
                series=0, batch_index=0, samples=1, size=1, bad=0, copied=copied_ms > 0, previous_ns=self.previous_ns,
                asked_ns=self.at(asked_ms), taken_ns=now - copied_ms * MS, got_ns=now, slots=FULL,
            )
        )  # fmt: skip
        self.counters.stop_waiting()
        self.previous_ns = now

    def take(self, asked_ms: int, got_ms: int, copied_ms: int = 0) -> None:
        self.ask(asked_ms)
        self.get(asked_ms, got_ms, copied_ms)

    def end(self, time_ms: int) -> None:
        self.counters.ended(self.at(time_ms), self.previous_ns)
        self.previous_ns = None


def in_ms(counters: Counters) -> dict[str, int]:
    """How the time was spent, in milliseconds."""
    seen = counters.snapshot(FULL)
    names = "waited_s", "computing_s", "copied_s", "started_s", "active_s", "full_s", "borrowed_slot_s"
    return {name[:-2]: round(getattr(seen, name) * 1000) for name in names}


def test_the_step_on_the_last_batch_of_an_epoch_is_computing() -> None:
    counters = Counters(1)
    consumer = Consumer(counters)
    for start in range(0, 500, 100):  # epochs of one batch: 1 ms of waiting, 50 ms of training, then a pause
        consumer.take(start, start + 1)
        consumer.end(start + 51)
    assert in_ms(counters) == {
        "waited": 5, "computing": 250, "copied": 0, "started": 1, "active": 254, "full": 254, "borrowed_slot": 254
    }  # fmt: skip


def test_a_pause_counts_for_nothing() -> None:
    counters = Counters(1)
    consumer = Consumer(counters)
    consumer.take(0, 10)
    consumer.take(30, 35, copied_ms=2)
    consumer.end(40)
    consumer.end(900)  # asks once more
    consumer.take(1000, 1001)
    Consumer(counters).take(2000, 2001)  # the epoch before asks for nothing more
    assert in_ms(counters) == {
        "waited": 15, "computing": 25, "copied": 2, "started": 10, "active": 32, "full": 32, "borrowed_slot": 32
    }  # fmt: skip


def test_two_epoch_iterators_read_in_turn_count_as_one_consumer() -> None:
    counters = Counters(1)
    one, other = Consumer(counters), Consumer(counters)
    for start in range(0, 100, 10):  # each waits 3 ms, and a step of 4 ms has both batches
        one.take(start, start + 3)
        other.take(start + 3, start + 6)
    one.end(100)
    assert in_ms(counters)["waited"] == 60
    assert in_ms(counters)["computing"] == 40
    assert in_ms(counters)["active"] == 97


def test_two_threads_that_wait_at_the_same_time_wait_once() -> None:
    counters = Counters(1)
    one, other = Consumer(counters), Consumer(counters)
    one.take(0, 10)
    one.ask(30)
    thread = threading.Thread(target=lambda: (other.take(40, 50), other.ask(60)))
    thread.start()
    thread.join()
    one.get(30, 70)  # the other still waits, here and at the end
    one.ask(80)
    assert in_ms(counters)["waited"] == 10 + 50
    assert in_ms(counters)["computing"] == 20


class Over:
    """A listener that is over."""

    is_over = True


def test_a_listener_that_is_over_gets_no_events() -> None:
    counters = Counters(1)
    counters.listen(Over())  # type: ignore[arg-type]
    Consumer(counters).take(0, 10)
    counters.restarted(WorkerRestarted(worker=0, at_ns=1))
    assert counters._listener is None


@pytest.mark.parametrize("batch_size", [40, None])
def test_epochs_of_one_batch_show_what_training_takes(batch_size: int | None) -> None:
    with Loader(Texts(), slow_picture, batch_size=batch_size, num_workers=1) as loader:
        for _ in range(5):
            for _ in loader:
                time.sleep(0.02 if batch_size else 0.0005)
        statistics = loader.statistics()
    assert statistics.computing_s >= 5 * 0.02


def test_an_interrupt_leaves_no_consumer_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    with Loader(Texts(), slow_picture, batch_size=4, num_workers=1) as loader:
        batches = iter(loader)
        next(batches)
        with monkeypatch.context() as patch:
            patch.setattr(loader._core.pool._state, "take", lambda heads: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                next(batches)
        assert not loader._core.pool._counters._time._waiting
        assert sum(1 for _ in batches) == 9


def test_a_difference_needs_an_earlier_snapshot() -> None:
    with Loader(range(4), batch_size=1, num_workers=2) as loader:
        other = loader.statistics()
    with Loader(range(40), batch_size=4, num_workers=1) as loader:
        before = loader.statistics()
        list(loader)
        assert loader.statistics().since(before).batches == 10
        for wrong in (None, other, dataclasses.replace(loader.statistics(), batches=99)):
            with pytest.raises(ArgumentError, match="earlier"):
                loader.statistics().since(wrong)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoreOfWorkers(WorkerStatistics):
    """A statistic more, in one place."""

    attempts: int = total(BatchMade, "attempt", "attempts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class More(Statistics):
    """Two statistics more: a sum over events, and a number as it is now."""

    taken_s: float = total(BatchDelivered, "taken_ns", "delivered", "{:,.1f} s in all")
    slots_quarantined: int = state(SlotCounts, "quarantined", "slots", "{:,} quarantined")


def batch_made(**values: int) -> BatchMade:
    fields = {**dict.fromkeys(BatchMade._fields, 0), "input": None, "slots": SlotCounts(), **values}
    return BatchMade(**fields)  # type: ignore[arg-type]


def test_a_statistic_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "WorkerStatistics", MoreOfWorkers)
    monkeypatch.setattr(counting, "Statistics", More)
    counters = Counters(1)
    snapshots = []
    for count in (100, 150):  # more events than are added up at once
        for _ in range(count):
            counters.made(batch_made(attempt=3))
            counters.delivered(BatchDelivered(0, 0, 1, 1, 0, False, None, 0, 2 * 10**9, 0, SlotCounts()))
        snapshots.append(counters.snapshot(SlotCounts(quarantined=2)))
    difference = snapshots[1].since(snapshots[0])
    assert [seen.workers[0].attempts for seen in (*snapshots, difference)] == [300, 750, 450]
    assert [seen.taken_s for seen in (*snapshots, difference)] == [200.0, 500.0, 300.0]
    assert [seen.slots_quarantined for seen in (*snapshots, difference)] == [2, 2, 2]
    text = str(difference)
    assert "300.0 s in all" in text
    assert "2 quarantined" in text
    *_, head, row = text.splitlines()
    assert (head.split()[-1], row.split()[-1]) == ("attempts", "450")
    assert "<th>attempts</th>" in difference._repr_html_()


def test_a_worker_that_joins_counts_from_its_start() -> None:
    counters = Counters(1)
    before = counters.snapshot(SlotCounts())
    counters.add_workers(1)
    counters.made(batch_made(worker=1, samples=4))
    assert [worker.samples for worker in counters.snapshot(SlotCounts()).since(before).workers] == [0, 4]
