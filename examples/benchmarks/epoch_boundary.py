"""Is there a pause between two epochs?

    python examples/benchmarks/epoch_boundary.py --data PHOTOS

Photographs are decoded in epochs of 20 batches, while the loop does nothing else. The figure is the time that the
first six batches of an epoch take, minus six times the mean time of the other batches: the cost of the boundary, less
the work that was done ahead.

Latest, on two cores of an AMD EPYC beside other work, medians of five rounds, ms::

    mploader           172 (74 to 429)    PyTorch DataLoader             3
    mploader, NumPy     -1                Keras PyDataset              177
                                          Hugging Face to_tf_dataset  10,430

The rest of mploader's time is TensorFlow's: a new iterator takes 20 ms and its first batch 33 ms, and sometimes
Python's garbage collector runs through TensorFlow's objects meanwhile, for 0.2 s. Workers continue;
``as_dataset().repeat()`` has one iterator for all epochs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import common
import contenders
import equal_work
import peers
from common import Photographs
from contenders import Figures, Measure, SetUp
from decoding import SIZE, whole_image
from equal_work import First

EPOCH_BATCHES = 20
AFTER_BATCHES = 6


class Boundaries:
    """Measures how much longer the first batches of an epoch take than others."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches
        self.first = First.of([next(batches)])
        self._taken = 1

    def __call__(self, seconds: float) -> Figures:
        """Measures for some seconds and at least two epochs, after it has taken the batches made before its turn."""
        for _ in range(EPOCH_BATCHES):  # more than any contender makes ahead
            self._next()
        while self._taken % EPOCH_BATCHES:
            self._next()
        firsts: list[float] = []
        others: list[float] = []
        started = time.perf_counter()
        while time.perf_counter() - started < seconds or len(firsts) < 2:
            firsts.append(sum(self._next() for _ in range(AFTER_BATCHES)))
            others += [self._next() for _ in range(EPOCH_BATCHES - AFTER_BATCHES)]
        usual = statistics.mean(others)
        return {
            "ms": (statistics.median(firsts) - AFTER_BATCHES * usual) * 1e3, "a batch, usually, ms": usual * 1e3,
            "boundaries": len(firsts),
        }  # fmt: skip

    def _next(self) -> float:
        self._taken += 1
        return common.timed(lambda: next(self._batches))[0]


def through(peer: Any) -> SetUp:
    """Sets a peer up to run epochs."""

    def set_up(args: argparse.Namespace) -> Measure:
        source = Photographs(common.photographs(args.data), EPOCH_BATCHES * args.batch_size)
        return Boundaries(peer(peers.Work(source, whole_image, (*SIZE, 3), args.batch_size, args.workers)))

    return set_up


CONTENDERS: dict[str, SetUp] = {
    "mploader": through(peers.mploader_dataset),
    "mploader, NumPy": through(peers.mploader_numpy),
    "PyTorch DataLoader": through(peers.torch_loader),
    "Keras PyDataset": through(peers.keras_pydataset),
    "Hugging Face to_tf_dataset": through(peers.huggingface),
}


def main() -> None:
    """Runs the benchmark."""
    parser = common.parser(__doc__, rounds=5, seconds=4.0)
    common.add_loader_arguments(parser)
    contenders.add_arguments(parser)
    args = parser.parse_args()
    check = equal_work.same_pixels(4.0)
    rows = contenders.run(args, CONTENDERS, "ms", check=check, reference="mploader")
    common.report(args, f"The pause between epochs, {args.workers} workers", "ms", rows)


if __name__ == "__main__":
    main()
