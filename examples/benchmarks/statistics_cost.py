"""How much time do the loader's statistics take?

    python examples/benchmarks/statistics_cost.py

Measures everything that is done for the statistics alone: in a worker for a batch of 64 samples, in the trainer for
each batch. Processor time of one thread. The shares below the table use the least of 15 rounds, which a busy machine
disturbs little, and compare it with the time of such a batch: 64 photographs on one core (1,028 images a second with
two workers), and the hand-off goal of 400 batches a second with two workers whose transform returns an existing array.

Latest, on two cores with other load::

    trainer: 1.9 us when a batch is made, 3.2 us when it is delivered: 0.20 % of one core at 400 batches/s
    worker, 64 samples: 50 us if each is timed, 9.3 us if one in nineteen is; processor time 2.1 us
    of a batch of photographs (124,500 us): 0.042 %
    of a batch at the hand-off goal (5,000 us): 0.20 %
"""

from __future__ import annotations

import time
from collections.abc import Callable

import common
from common import Row

from mploader.engine.ipc import messages
from mploader.engine.scheduler.slot_table import SlotTable
from mploader.engine.scheduler.states import Assignment
from mploader.engine.supervisor.events import batch_made, slot_counts
from mploader.engine.worker.stage_timer import STRIDE, StageTimer, sample_bytes
from mploader.monitoring.counters import Counters
from mploader.monitoring.events import BatchDelivered

SAMPLES = 64
PHOTOGRAPHS_US = 1e6 * SAMPLES / (1028 / 2)
HAND_OFF_US = 1e6 / (400 / 2)
REPEATS = 200


def cost_us(function: Callable[[], object]) -> float:
    """Returns the processor time of one call in microseconds."""
    started_ns = time.thread_time_ns()
    for _ in range(REPEATS):
        function()
    return (time.thread_time_ns() - started_ns) / REPEATS / 1e3


def worker_batch(timer: StageTimer, is_quick: bool) -> None:
    """The work of a worker for the statistics of one batch."""
    sample = (bytes(110_000), 3)
    timer._is_quick = is_quick
    timer.start_batch(time.monotonic_ns())
    for _ in range(SAMPLES):
        timer.start_sample()
        timer.samples_read += 1
        if timer.is_timed:
            started = time.perf_counter_ns()
            read = time.perf_counter_ns()
            timer.bytes_read += sample_bytes(sample)
            timer.read_ns += read - started
            timer.transform_ns += time.perf_counter_ns() - read
            before = time.perf_counter_ns()
            timer.write_ns += time.perf_counter_ns() - before
    timer.end_batch(time.monotonic_ns())


def work() -> dict[str, Callable[[], object]]:
    """The functions to measure, by name."""
    counters, slots, timer = Counters(2), SlotTable(10, 4), StageTimer()
    message = messages.Made(**dict.fromkeys(messages.Made.__dataclass_fields__, 1))
    assignment = Assignment(worker=1, task=1, attempt=1, slot=1, generation=1, series=1, epoch=1, batch_index=1)

    def deliver() -> None:
        times = time.monotonic_ns(), time.monotonic_ns(), time.monotonic_ns()
        counters.asked(times[0], times[0])
        counters.delivered(
            BatchDelivered(
                series=0, batch_index=5, samples=SAMPLES, size=9_000_000, bad=0, copied=False, previous_ns=times[0],
                asked_ns=times[0], taken_ns=times[1], got_ns=times[2], slots=slot_counts(slots),
            )
        )  # fmt: skip
        counters.stop_waiting()

    return {
        "trainer, a batch is made": lambda: counters.made(batch_made(0, assignment, message, slots)),
        "trainer, a batch is delivered": deliver,
        "worker, a batch, each sample timed": lambda: worker_batch(timer, False),
        f"worker, a batch, one in {STRIDE} timed": lambda: worker_batch(timer, True),
        "worker, its processor time is read": timer._clock.read,
    }


def main() -> None:
    """Entry point."""
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
