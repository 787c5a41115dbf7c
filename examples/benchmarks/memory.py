"""How much memory does a worker take, and does the trainer grow?

    python examples/benchmarks/memory.py --data PHOTOS

The first figure is the proportional set size (PSS) of a worker that decodes photographs: its private memory and its
share of shared memory, without the memory that batches travel in. The second is the growth of the trainer's private
memory over 10,000 batches of 64 small samples, after 2,000 to warm up.

Latest, on two cores of an AMD EPYC: a worker of mploader takes 39.3 MiB, and the trainer grows by 0.0 MiB.
"""

from __future__ import annotations

import argparse
import itertools
import re
import statistics
from collections.abc import Iterator
from typing import Any

import common
import contenders
import numpy as np
import peers
import psutil
from common import Photographs
from contenders import Figures, Once
from decoding import SIZE, whole_image
from handoff import Numbers

SMALL = np.zeros((8, 8, 3), np.uint8)
WARM_BATCHES = 2_000
TRANSPORT = re.compile(r"/memfd:mploader(-batch)? |/dev/shm/|/torch_")
"""Names of mappings that batches travel in. Others count: mploader-job is the source and the transform."""
MIB = 1024


def small(_: Any) -> Any:
    """The transform of the batches over which growth is measured."""
    return SMALL, 0


def through(peer: Any) -> Once:
    """Runs a peer and measures its memory."""

    def measure(args: argparse.Namespace) -> Figures:
        source = Photographs(common.photographs(args.data), args.samples)
        batches: Iterator[Any] = peer(peers.Work(source, whole_image, (*SIZE, 3), args.batch_size, args.workers))
        _skip(batches, args.batches // 250 + 8)
        workers = [process for process in psutil.Process().children() if _is_worker(process)]
        sizes = [pss_kib(process.pid) / MIB for process in workers]
        figures = {"MiB": statistics.median(sizes) if sizes else 0.0}
        batches = peer(peers.Work(Numbers(64_000_000), small, SMALL.shape, args.batch_size, args.workers))
        _skip(batches, min(WARM_BATCHES, args.batches))
        before = psutil.Process().memory_full_info().uss
        _skip(batches, args.batches)
        after = psutil.Process().memory_full_info().uss
        return figures | {f"trainer's growth over {args.batches:,} batches, MiB": (after - before) / 2**20}

    return measure


def _skip(batches: Iterator[Any], count: int) -> None:
    for _ in itertools.islice(batches, count):
        pass


def _is_worker(process: psutil.Process) -> bool:
    return "resource_tracker" not in " ".join(process.cmdline())


def pss_kib(pid: int) -> int:
    """Returns the PSS of a process without the memory that batches travel in."""
    total, counted = 0, True
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                counted = TRANSPORT.search(line) is None
            elif line.startswith("Pss:") and counted:
                total += int(line.split()[1])
    return total


CONTENDERS: dict[str, Once] = {
    "mploader": through(peers.mploader_dataset),
    "PyTorch DataLoader": through(peers.torch_loader),
    "Grain": through(peers.grain_loader),
}


def main() -> None:
    """Runs the benchmark."""
    parser = common.parser(__doc__, rounds=1)
    common.add_loader_arguments(parser)
    contenders.add_arguments(parser)
    parser.add_argument("--batches", type=int, default=10_000, help="over which the trainer's growth is measured")
    parser.add_argument("--samples", type=int, default=24_000, help="length of an epoch; the files are repeated")
    args = parser.parse_args()
    rows = contenders.run_fresh(args, CONTENDERS, "MiB")
    common.report(args, "Memory of a worker that decodes photographs (PSS)", "MiB", rows)


if __name__ == "__main__":
    main()
