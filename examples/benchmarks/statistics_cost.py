"""What do the loader's statistics cost?

    python examples/benchmarks/statistics_cost.py

Measures everything that is done for the statistics alone: in a worker for a batch of 64 samples, in the trainer for
each batch. The unit is CPU time of one thread. The shares below the table use the fastest of 15 rounds, which a busy
machine disturbs least. They are shares of the time of such a batch: 64 photographs on one core (1,028 images/s with
two workers), and the hand-off goal of 400 batches/s with two workers whose transform returns a constant array.

Latest, on two cores with other load::

    trainer: 3.1 us when a batch is made, 4.6 us when it is delivered: 0.31 % of one core at 400 batches/s
    worker, 64 samples: 84.6 us if each is timed, 12.6 us if one in sixteen is; processor time 3.9 us
    of a batch of photographs (124,500 us): 0.071 %
    of a batch at the hand-off goal (5,000 us): 0.27 %
"""

from __future__ import annotations

import time
from collections.abc import Callable

import common
from common import Row

from mploader.engine.ipc import messages
from mploader.engine.scheduler.scheduler import Scheduler
from mploader.engine.worker.stage_timer import STRIDE, StageTimer, sample_bytes
from mploader.monitoring.statistics import Counters, Handover

SAMPLES = 64
PHOTOGRAPHS_US = 1e6 * SAMPLES / (1028 / 2)
HAND_OFF_US = 1e6 / (400 / 2)
REPEATS = 200


def cost_us(function: Callable[[], object]) -> float:
    """Returns the CPU time of one call in microseconds."""
    started_ns = time.thread_time_ns()
    for _ in range(REPEATS):
        function()
    return (time.thread_time_ns() - started_ns) / REPEATS / 1e3


def worker_batch(stages: StageTimer, is_quick: bool) -> None:
    """The work of a worker for the statistics of one batch."""
    sample = (bytes(110_000), 3)
    stages._is_quick = is_quick
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


def work() -> dict[str, Callable[[], object]]:
    """The functions to measure, by name."""
    counters, schedule, stages = Counters(2), Scheduler(10, 4), StageTimer()
    message = messages.Filled(*([1] * len(messages.Filled.__dataclass_fields__)))

    def deliver() -> None:
        times = time.monotonic_ns(), time.monotonic_ns(), time.monotonic_ns()
        counters.asked(times[0], times[0])
        counters.delivered(Handover(0, 5, SAMPLES, 9_000_000, 0, False, times[0], *times), schedule.counts())
        counters.stop_waiting()

    return {
        "trainer, a batch is made": lambda: counters.filled(0, message, time.monotonic_ns(), schedule.counts()),
        "trainer, a batch is delivered": deliver,
        "worker, a batch, each sample timed": lambda: worker_batch(stages, False),
        f"worker, a batch, one in {STRIDE} timed": lambda: worker_batch(stages, True),
        "worker, its processor time is read": stages._clock.read,
    }


def main() -> None:
    """Runs the benchmark."""
    args = common.parser(__doc__, rounds=15).parse_args()
    functions = work()
    rows = {name: Row(name) for name in functions}
    for _ in range(args.rounds):
        for name, function in functions.items():
            rows[name].values.append(cost_us(function))
    made, delivered, each, some, processor = (min(row.values) for row in rows.values())
    notes = [
        f"trainer: {400 * (made + delivered) / 1e6:.2%} of one core at 400 batches/s",
        f"worker: {(each + processor) / PHOTOGRAPHS_US:.3%} of a batch of photographs ({PHOTOGRAPHS_US:,.0f} us)",
        f"worker: {(some + processor / 4) / HAND_OFF_US:.2%} of a batch at the hand-off goal ({HAND_OFF_US:,.0f} us)",
    ]
    common.report(args, f"The cost of statistics, batches of {SAMPLES}", "us", list(rows.values()), notes=notes)


if __name__ == "__main__":
    main()
