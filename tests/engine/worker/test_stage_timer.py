"""What a worker says of its stages where it times only some samples, on a clock that the test winds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mploader.engine.worker import stage_timer as timing
from mploader.engine.worker.stage_timer import QUICK_NS, STRIDE, StageTimer

Cost = Callable[[int], tuple[int, int, int]]
"""What reading, the transform and writing of a sample take, in nanoseconds."""


class Clock:
    """In place of the module ``time``."""

    def __init__(self) -> None:
        self.now_ns = 1

    def monotonic_ns(self) -> int:
        return self.now_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def work(stages: StageTimer, clock: Clock, cost: Cost, batch_size: int, samples: int) -> tuple[list[int], int]:
    """Makes batches; returns the sums of bytes, reading, transform and writing as reported, and how many were timed."""
    reported, timed = [0, 0, 0, 0], 0
    for first in range(0, samples, batch_size):
        started_ns = clock.now_ns
        stages.start_batch(started_ns)
        for sample in range(first, first + batch_size):
            stages.start_sample()
            stages.samples_read += 1
            costs = cost(sample)
            clock.now_ns += sum(costs) + 1_000
            if stages.is_timed:
                timed += 1
                stages.bytes_read += costs[0]
                stages.read_ns += costs[0]
                stages.transform_ns += costs[1]
                stages.write_ns += costs[2]
        stages.end_batch(clock.now_ns)
        assert stages.read_ns + stages.transform_ns + stages.write_ns <= clock.now_ns - started_ns
        for place, value in enumerate((stages.bytes_read, stages.read_ns, stages.transform_ns, stages.write_ns)):
            reported[place] += value
    return reported, timed


@pytest.mark.parametrize("batch_size", [1, 8, 32, 100])
@pytest.mark.parametrize("period", [5, 16, 17, 32])
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
    reported, timed = work(StageTimer(), clock, lambda sample: quick, 10, 1_600)
    assert timed <= 1_600 // STRIDE + 10  # and all of the first batch
    assert reported == pytest.approx([1_600 * value for value in (1_000, 1_000, 2_000, 3_000)], rel=0.01)


def test_what_changes_is_noticed(clock: Clock) -> None:
    stages = StageTimer()
    work(stages, clock, lambda sample: (QUICK_NS, QUICK_NS, QUICK_NS), 32, 3_200)
    work(stages, clock, lambda sample: (1_000, 1_000, 1_000), 32, 32_000)
    reported, timed = work(stages, clock, lambda sample: (1_000, 9_000, 1_000), 32, 32_000)
    assert timed == 32_000 // STRIDE
    assert reported[2] == pytest.approx(32_000 * 9_000, rel=0.05)
