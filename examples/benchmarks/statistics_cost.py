"""What do the loader's statistics cost?

    python examples/benchmarks/statistics_cost.py

Takes the time of everything that is done for the statistics alone: in a worker for a batch of 64 samples, in the
trainer for each batch. Processor time of one thread, the least of 15 rounds, so that a busy machine disturbs it little.
Beside it stands what such a batch takes: 64 photographs on one core (1,028 images a second with two workers), and the
hand-off goal of 400 batches a second with two workers whose transform returns an array that it has ready.

Latest, on two cores with other load::

    trainer: 3.1 us when a batch is made, 4.6 us when it is delivered: 0.31 % of one core at 400 batches/s
    worker, 64 samples: 84.6 us if each is timed, 12.6 us if one in sixteen is; processor time 3.9 us
    of a batch of photographs (124,500 us): 0.071 %
    of a batch at the hand-off goal (5,000 us): 0.27 %
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mploader import messages
from mploader.schedule import Schedule
from mploader.stages import STRIDE, Stages, sample_bytes
from mploader.statistics import Counters, Handover

SAMPLES = 64
PHOTOGRAPHS_US = 1e6 * SAMPLES / (1028 / 2)
HAND_OFF_US = 1e6 / (400 / 2)


def cost_us(function: Callable[[], object], repeats: int = 1000, rounds: int = 15) -> float:
    """Returns the processor time of one call in microseconds, the least of some rounds."""
    least = float("inf")
    for _ in range(rounds):
        started_ns = time.thread_time_ns()
        for _ in range(repeats):
            function()
        least = min(least, (time.thread_time_ns() - started_ns) / repeats / 1e3)
    return least


def worker_batch(stages: Stages, stride: int) -> None:
    """What a worker does for the statistics of one batch."""
    sample = (bytes(110_000), 3)
    stages._stride = stride
    stages.start_batch(time.monotonic_ns())
    for _ in range(SAMPLES):
        stages.start_sample()
        stages.samples_read += 1
        if stages.is_timed:
            started = time.perf_counter_ns()
            read = time.perf_counter_ns()
            stages.bytes_read += sample_bytes(sample)
            stages.read_ns += read - started
            stages.transform_ns += time.perf_counter_ns() - read
            before = time.perf_counter_ns()
            stages.write_ns += time.perf_counter_ns() - before
    stages.end_batch(time.monotonic_ns())


def main() -> None:
    """Measures and prints."""
    counters, schedule, stages = Counters(2), Schedule(10, 4), Stages()
    message = messages.Filled(*([1] * len(messages.Filled.__dataclass_fields__)))

    def deliver() -> None:
        times = time.monotonic_ns(), time.monotonic_ns(), time.monotonic_ns()
        counters.delivered(Handover(0, 5, SAMPLES, 9_000_000, 0, False, times[0], *times), schedule.counts())

    made = cost_us(lambda: counters.filled(0, message, time.monotonic_ns(), schedule.counts()))
    delivered = cost_us(deliver)
    each = cost_us(lambda: worker_batch(stages, 1), 200)
    some = cost_us(lambda: worker_batch(stages, STRIDE), 200)
    processor = cost_us(stages._clock.read)
    share = 400 * (made + delivered) / 1e6
    print(f"trainer: {made:.1f} us when a batch is made, {delivered:.1f} us when it is delivered: {share:.2%} of one "
          "core at 400 batches/s")  # fmt: skip
    print(f"worker, {SAMPLES} samples: {each:.1f} us if each is timed, {some:.1f} us if one in {STRIDE} is; processor "
          f"time {processor:.1f} us")  # fmt: skip
    print(f"of a batch of photographs ({PHOTOGRAPHS_US:,.0f} us): {(each + processor) / PHOTOGRAPHS_US:.3%}")
    print(f"of a batch at the hand-off goal ({HAND_OFF_US:,.0f} us): {(some + processor / 4) / HAND_OFF_US:.2%}")


if __name__ == "__main__":
    main()
