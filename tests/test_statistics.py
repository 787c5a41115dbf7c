"""What a loader says of its work: sums that must agree with what the consumer has seen."""

from __future__ import annotations

import dataclasses
import os
import signal
import time

import numpy as np
import pytest

import mploader
from mploader import Loader


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
        statistics.slots_lent + statistics.slots_ready + statistics.slots_leased + statistics.slots_free
    )


def test_bad_samples_are_read_but_not_written() -> None:
    with Loader(Texts(), faulty_picture, batch_size=10, num_workers=1, on_bad_sample="drop") as loader:
        assert [len(batch) for batch in loader] == [9, 9, 9, 9]
        statistics = loader.statistics()
    worker = statistics.workers[0]
    assert (statistics.samples, statistics.bad_samples) == (36, 4)
    assert worker.samples_read * 9 == worker.samples * 10


def test_a_lost_worker_is_counted_where_it_was() -> None:
    with Loader(Texts(), slow_picture, batch_size=2, num_workers=2) as loader:
        run = iter(loader)
        next(run)
        os.kill(loader.worker_pids[0], signal.SIGKILL)
        assert sum(1 for _ in run) == 19
        for _ in loader:  # gives the replacement time to be started, whenever the kernel tells of the death
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


def test_arrays_that_are_kept_show_as_lent_slots_and_copies() -> None:
    with Loader(Texts(), slow_picture, batch_size=1, num_workers=1) as loader:
        kept = list(loader)
        statistics = loader.statistics()
        assert statistics.slots_lent + statistics.batches_copied == len(kept) == 40
        assert statistics.batches_copied > 0
        assert statistics.lent_slot_s > 0
        del kept
        assert loader.statistics().slots_lent == 0


def test_a_snapshot_is_frozen_and_shows_itself() -> None:
    with Loader(Texts(), slow_picture, batch_size=4, num_workers=2) as loader:
        sum(1 for _ in loader)
        statistics = loader.statistics()
        page = loader._repr_html_()
    with pytest.raises(dataclasses.FrozenInstanceError):
        statistics.batches = 0  # type: ignore[misc]
    text = str(statistics)
    assert "10 batches, 40 samples" in text
    assert len(text.splitlines()) == 4 + 1 + 2  # the loader, the head of the table, two workers
    assert page.count("<tr>") == 3
    assert "&lt;Loader: 40 samples" in page
    assert isinstance(statistics.workers[0].read, mploader.Stage)
