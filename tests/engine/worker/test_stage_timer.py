"""The times of stages where only some samples are timed, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mploader.engine.worker import stage_timer as timing
from mploader.engine.worker.stage_timer import QUICK_NS, STRIDE, StageTimer

Cost = Callable[[int], tuple[int, int, int]]
"""The times of reading, the transform and writing of a sample, in nanoseconds."""


class Clock:
    """Replaces the module ``time``."""

    def __init__(self) -> None:
        self.now_ns = 1

    def monotonic_ns(self) -> int:
        return self.now_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def work(timer: StageTimer, clock: Clock, cost: Cost, batch_size: int, samples: int) -> tuple[list[int], int]:
    """Makes batches; returns the sums of bytes, reading, transform and writing as reported, and how many were timed."""
    reported, timed = [0, 0, 0, 0], 0
    for first in range(0, samples, batch_size):
        started_ns = clock.now_ns
        timer.start_batch(started_ns)
        for sample in range(first, first + batch_size):
            timer.start_sample()
            timer.samples_read += 1
            costs = cost(sample)
            clock.now_ns += sum(costs) + 1_000
            if timer.is_timed:
                timed += 1
                timer.bytes_read += costs[0]
                timer.read_ns += costs[0]
                timer.transform_ns += costs[1]
                timer.write_ns += costs[2]
        timer.end_batch(clock.now_ns)
        assert timer.read_ns + timer.transform_ns + timer.write_ns <= clock.now_ns - started_ns
        for stage, value in enumerate((timer.bytes_read, timer.read_ns, timer.transform_ns, timer.write_ns)):
            reported[stage] += value
    return reported, timed


@pytest.mark.parametrize("batch_size", [1, 8, 32, 100])
@pytest.mark.parametrize("period", [5, 13, 16, 17, 32, 34])
def test_a_source_that_is_slow_at_intervals_is_reported_as_it_is(clock: Clock, period: int, batch_size: int) -> None:
    def cost(sample: int) -> tuple[int, int, int]:
        return (1_000_000 if sample % period == 3 % period else 5_000), 20_000, 10_000

    samples = 8_000
    reported, timed = work(StageTimer(), clock, cost, batch_size, samples)
    read, transform, write = (sum(cost(sample)[stage] for sample in range(samples)) for stage in range(3))
    if 1_000_000 / period > QUICK_NS:
        assert timed == samples
    assert reported[1] == pytest.approx(read, rel=0.1)
    assert reported[0] == pytest.approx(read, rel=0.1)
    assert reported[2] == pytest.approx(transform, rel=0.3)
    assert reported[3] == pytest.approx(write, rel=0.3)


def test_slow_samples_are_all_timed_and_quick_ones_seldom(clock: Clock) -> None:
    slow, quick = (QUICK_NS, QUICK_NS, QUICK_NS), (1_000, 2_000, 3_000)
    reported, timed = work(StageTimer(), clock, lambda sample: slow, 10, 1_000)
    assert (reported, timed) == ([1_000 * QUICK_NS] * 4, 1_000)
    reported, timed = work(StageTimer(), clock, lambda sample: quick, 10, 1_520)
    assert timed <= 1_520 // STRIDE + 10  # and all of the first batch
    assert reported == pytest.approx([1_520 * value for value in (1_000, 1_000, 2_000, 3_000)], rel=0.01)


def test_a_change_of_the_source_is_noticed(clock: Clock) -> None:
    timer = StageTimer()
    work(timer, clock, lambda sample: (QUICK_NS, QUICK_NS, QUICK_NS), 32, 3_200)
    work(timer, clock, lambda sample: (1_000, 1_000, 1_000), 32, 30_400)
    reported, timed = work(timer, clock, lambda sample: (1_000, 9_000, 1_000), 32, 30_400)
    assert timed == 30_400 // STRIDE
    assert reported[2] == pytest.approx(30_400 * 9_000, rel=0.05)
