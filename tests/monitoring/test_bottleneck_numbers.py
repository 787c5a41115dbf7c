"""The diagnosis on made-up numbers, without a loader: ten seconds of two workers and a consumer on two processors."""

from __future__ import annotations

from typing import Any

import pytest

from mploader import Bottleneck, Statistics
from mploader.monitoring.bottleneck import explain
from mploader.monitoring.statistics import WorkerStatistics

BUSY: dict[str, float] = {"batches": 50, "busy_s": 9.5, "transform_s": 9.0, "cpu_s": 9.4}
"""A worker that decodes all the time."""
IDLE: dict[str, float] = {"batches": 50, "busy_s": 2.0, "transform_s": 1.9, "cpu_s": 2.0}


def numbers(*workers: dict[str, float], waited_s: float = 9.0, **changes: Any) -> Statistics:
    """100 batches of 8 samples, delivered in ten seconds."""
    facts: dict[str, Any] = {
        "batches": 100, "samples": 800, "bytes": 10**6, "waited_s": waited_s, "computing_s": 10 - waited_s,
        "seconds": 10.0, "slots": 10, "slots_wanted": 10, "slot_bytes": 2**20, "slots_borrowed": 1, "slots_free": 9,
        "batches_copied": 0, "bad_samples": 0, "start_s": 0.3,
        "workers": tuple(WorkerStatistics(**worker) for worker in workers),
    }  # fmt: skip
    return Statistics(**(facts | changes))


@pytest.mark.parametrize(
    ("statistics", "bottleneck", "change"),
    [
        (numbers(IDLE, IDLE, waited_s=0.1), Bottleneck.TRAINING, "num_workers=1 is enough"),
        (numbers(BUSY, BUSY), Bottleneck.DECODING, "transform cheaper"),
        (numbers(BUSY, batches=50), Bottleneck.TOO_FEW_WORKERS, "num_workers=2"),
        (numbers(*[BUSY | {"transform_s": 0.5, "read_s": 9.0, "cpu_s": 1.0}] * 2), Bottleneck.READING, "num_workers=4"),
        (numbers(*[BUSY | {"transform_s": 0.5, "read_s": 9.0}] * 2), Bottleneck.READING, "reading cheaper"),
        (numbers(*[BUSY | {"transform_s": 0.5, "write_s": 9.0}] * 2), Bottleneck.WRITING, "elements smaller"),
        (numbers(*[BUSY | {"cpu_s": 4.7, "queued_s": 4.7}] * 2), Bottleneck.DECODING, "more processors"),
        (numbers(IDLE, IDLE, slots=2, full_s=8.0, full_waited_s=8.0), Bottleneck.TOO_LITTLE_MEMORY, 'memory="10MiB"'),
        (
            numbers(IDLE, IDLE, batches_copied=90, copied_s=2.0, waited_s=7.0, full_s=9.0, borrowed_slot_s=70.0),
            Bottleneck.SLOTS_HELD, "keep fewer batches",
        ),
        (numbers(*[IDLE | {"restarts": 20}] * 2), Bottleneck.WORKERS_LOST, "see the log"),
        (numbers(IDLE, IDLE, batches=5000, samples=5000), Bottleneck.HANDING_OVER, "larger batch_size="),
        (numbers(IDLE, IDLE, full_s=8.0, full_waited_s=1.0), Bottleneck.TRAINING, "spread the slow work"),
        (
            numbers(IDLE, IDLE, full_s=8.0, full_waited_s=8.0, borrowed_slot_s=10.0),
            Bottleneck.DECODING, "even out the work",
        ),
        (numbers(IDLE, IDLE, batches=1), Bottleneck.NOTHING_MEASURED, "take some batches first"),
    ],
)  # fmt: skip
def test_each_bottleneck_is_found_by_its_numbers(statistics: Statistics, bottleneck: Bottleneck, change: str) -> None:
    diagnosis = explain(statistics, cpus=2)
    assert diagnosis.bottleneck is bottleneck, diagnosis
    assert change in diagnosis.change
    assert diagnosis.samples_per_s == pytest.approx(statistics.samples / 10, rel=0.2)
    assert diagnosis.expected >= diagnosis.samples_per_s


def test_no_change_promises_more_than_training_can_take() -> None:
    diagnosis = explain(numbers(BUSY, batches=50, waited_s=1.0), cpus=8)
    assert diagnosis.expected == pytest.approx(diagnosis.samples_per_s / 0.9)
    assert "where training becomes the bottleneck" in diagnosis.effect


def test_a_loss_that_costs_little_is_reported_beside_the_bottleneck() -> None:
    diagnosis = explain(numbers(BUSY | {"restarts": 1}, BUSY), cpus=2)
    assert diagnosis.bottleneck is Bottleneck.DECODING
    assert "1 worker was lost, which costs little" in diagnosis.reason


def test_more_workers_than_processors_are_not_advised() -> None:
    crowded = numbers(*[BUSY | {"cpu_s": 4.7, "queued_s": 4.7}] * 4)
    assert "num_workers=2 is as fast" in explain(crowded, cpus=2).change
