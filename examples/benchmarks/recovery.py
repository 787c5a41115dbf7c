"""How long does a loader take to reach full speed again after a worker is killed?

    python examples/benchmarks/recovery.py --data PHOTOS

While photographs are decoded, a worker gets SIGKILL. The figure is the time from the signal until its replacement has
made its first batch, minus the usual time of a batch: from then on all workers work again. The longest gap is the
longest wait of the consumer for a batch in the three seconds after the signal.

Latest, on two cores of an AMD EPYC, medians of five rounds::

    to full speed                  346 ms (281 - 368)
    longest gap after the signal   245 ms (231 - 354)
    a batch, usually                58 ms
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Iterator
from typing import Any

import common
from common import Photographs, Row
from decoding import whole_image

import mploader

WATCH_S = 3.0


def main() -> None:
    """Runs the benchmark."""
    parser = common.parser(__doc__, rounds=5)
    common.add_loader_arguments(parser)
    parser.add_argument("--samples", type=int, default=240_000, help="length of an epoch; the files are repeated")
    parser.add_argument("--watch", type=float, default=WATCH_S, help="seconds after the signal to look for gaps")
    args = parser.parse_args()
    source = Photographs(common.photographs(args.data), args.samples)
    recovered, usual, longest = Row("to full speed"), Row("a batch, usually"), Row("longest gap after the signal")
    with mploader.Loader(source, whole_image, batch_size=args.batch_size, num_workers=args.workers) as loader:
        batches = iter(loader)
        for _ in range(args.rounds):
            gaps = [common.timed(lambda: next(batches))[0] for _ in range(4 * args.workers)]
            usual.values.append(statistics.median(gaps) * 1e3)
            recovery_s, gap_s = kill_one(loader, batches, busy_s(loader), args.watch)
            recovered.values.append(recovery_s * 1e3)
            longest.values.append(gap_s * 1e3)
    common.report(args, f"SIGKILL of one of {args.workers} workers", "ms", [recovered, longest, usual], decimals=0)


def busy_s(loader: mploader.Loader) -> float:
    """Seconds that a worker takes for a batch."""
    workers = loader.statistics().workers
    busy: float = sum(worker.busy_s for worker in workers)
    batches: int = sum(worker.batches for worker in workers)
    return busy / max(1, batches)


def kill_one(loader: mploader.Loader, batches: Iterator[Any], batch_s: float, watch_s: float) -> tuple[float, float]:
    """Kills worker 0 and returns how long it takes to recover, and the longest gap between batches."""
    before = loader.statistics().workers[0]
    started = last = time.perf_counter()
    os.kill(loader.worker_pids[0], signal.SIGKILL)
    longest_s = recovered_s = 0.0
    made_before = None
    while not recovered_s or last - started < watch_s:
        next(batches)
        now = time.perf_counter()
        longest_s, last = max(longest_s, now - last), now
        worker = loader.statistics().workers[0]
        if worker.restarts > before.restarts and made_before is None:
            made_before = worker.batches  # by workers that have ended
        if not recovered_s and made_before is not None and worker.batches > made_before:
            recovered_s = max(now - started - batch_s, 1e-9)
    return recovered_s, longest_s


if __name__ == "__main__":
    main()
