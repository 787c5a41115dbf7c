"""Does a loader slow down a training loop that is limited by Python in its own process?

    python examples/benchmarks/trainer.py

A training step here is 300,000 turns of a loop in pure Python, about 20 ms, which holds the interpreter's lock. Its
batches of 64 x 224 x 224 x 3 come from memory, or from a loader with one worker (so that the loop has a core of its
own) and a constant transform. A loader that works or copies in the trainer's process takes its time from the step.

Latest, on two cores of an AMD EPYC, medians of two or three rounds: steps/s, and the share of those from memory::

    from memory         46.2  1.00      Grain            30.1  0.65
    mploader, NumPy     41.9  0.91      SPDL, threads    19.3  0.42
    mploader            41.8  0.90      from_generator   18.0  0.39
    PyTorch DataLoader  37.7  0.82      Keras PyDataset  13.6  0.29
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from typing import Any

import common
import contenders
import equal_work
import peers
from contenders import Figures, Measure, SetUp
from equal_work import First
from handoff import SHAPE, Numbers, constant


class Steps:
    """Measures training steps a second over a stream of batches."""

    def __init__(self, batches: Iterator[Any], turns: int) -> None:
        self._batches = batches
        self._turns = turns
        self.first = First.of([next(batches)])

    def __call__(self, seconds: float) -> Figures:
        """Measures for some seconds."""
        steps, waited, started = 0, 0.0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            before = time.perf_counter()
            batch = next(self._batches)
            waited += time.perf_counter() - before
            work(self._turns)
            del batch
            steps += 1
        return {"steps/s": steps / elapsed, "ms in next() a step": waited / steps * 1e3}


def work(turns: int) -> int:
    """The training step: arithmetic that holds the interpreter's lock."""
    total = 0
    for number in range(turns):
        total += number * number & 7
    return total


def memory(work: peers.Work) -> Iterator[Any]:
    """One batch that is in memory already, again and again."""
    return itertools.repeat(work.batch(range(work.batch_size)))


def through(peer: Any) -> SetUp:
    """Sets a peer up to feed the loop."""

    def set_up(args: argparse.Namespace) -> Measure:
        made = peers.Work(Numbers(64_000), constant, SHAPE, args.batch_size, args.workers)
        return Steps(iter(peer(made)), args.turns)

    return set_up


CONTENDERS: dict[str, SetUp] = {
    "from memory": through(memory),
    "mploader": through(peers.mploader_dataset),
    "mploader, NumPy": through(peers.mploader_numpy),
    "PyTorch DataLoader": through(peers.torch_loader),
    "Grain": through(peers.grain_loader),
    "SPDL, threads": through(peers.spdl_pipeline),
    "Keras PyDataset": through(peers.keras_pydataset),
    "from_generator": through(peers.from_generator),
}


def main() -> None:
    """Runs the benchmark."""
    parser = common.parser(__doc__, rounds=5, seconds=2.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--turns", type=int, default=300_000, help="length of a training step")
    contenders.add_arguments(parser)
    args = parser.parse_args()
    check = equal_work.same_pixels(0.0)
    rows = contenders.run(args, CONTENDERS, "steps/s", check=check, reference="from memory")
    common.report(args, "A training loop of pure Python", "steps/s", rows, to="from memory")


if __name__ == "__main__":
    main()
