"""What do order and shuffling cost as the number of samples grows?

    python examples/benchmarks/plan_scale.py

The time to compute the sample indices of one shuffled batch of 64, at random positions of many epochs, and the memory
of the plan with everything that it keeps, up to 10^9 samples. A shuffled array of indices would take 8 bytes per
sample.

Latest, on two cores of an AMD EPYC::

            1,000 samples   0.29 ms a batch    7 KiB   (small sets take more rounds, and epochs of few batches)
          100,000 samples   0.09 ms           13 KiB
       10,000,000 samples   0.08 ms           15 KiB
    1,000,000,000 samples   0.08 ms           15 KiB
"""

from __future__ import annotations

import random
import time
import tracemalloc

import common
from common import Row

from mploader.sampling.plan import Plan

BATCHES = 300


def main() -> None:
    """Runs the benchmark."""
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**3, 10**5, 10**7, 10**9])
    args = parser.parse_args()
    rows = {size: Row(f"{size:,} samples") for size in args.sizes}
    Plan(64, 64, shuffle=True).batch(0, 0)  # imports and first calls are not the question
    for _ in range(args.rounds):
        for size, row in rows.items():
            row.values.append(milliseconds(size))
    for size, row in rows.items():
        row.extra["KiB, most"] = f"{peak_kib(size):,.0f}"
        row.extra["KiB, an array of indices"] = f"{8 * size / 1024:,.0f}"
    common.report(args, "A shuffled batch of 64 samples", "ms", list(rows.values()), decimals=3)


def milliseconds(size: int) -> float:
    """Returns the mean time of a batch, including the start of its epoch if the epoch is new."""
    plan = Plan(size, 64, shuffle=True)
    positions = [(random.randrange(4), random.randrange(plan.num_batches)) for _ in range(BATCHES)]
    started = time.perf_counter()
    for epoch, batch_index in positions:
        plan.batch(epoch, batch_index)
    return (time.perf_counter() - started) / BATCHES * 1e3


def peak_kib(size: int) -> float:
    """Returns the peak memory."""
    tracemalloc.start()
    try:
        milliseconds(size)
        return tracemalloc.get_traced_memory()[1] / 1024
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    main()
