"""Kills a random worker again and again, and reports what became of the stream.

Question: does a loader whose workers are killed all the time deliver the same stream, without growing?
Command: ``python -m tests.faults.soak --seconds 300 --interval 0.2``
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from mploader import Loader
from tests.faults.streams import make_loader, read


@dataclass(frozen=True)
class Report:
    """What a soak has seen.

    Attributes:
        seconds: how long it took.
        epochs: epochs read.
        batches: batches read.
        kills: workers killed.
        restarts: workers replaced.
        longest_pause_s: the longest wait for a batch.
        streams_equal: every epoch was the one of a loader without faults.
        memory_growth_bytes: resident memory of the trainer at the end, less that after the first tenth of the time.
        descriptor_growth: the same for its open descriptors.
        thread_growth: the same for its threads.
    """

    seconds: float
    epochs: int
    batches: int
    kills: int
    restarts: int
    longest_pause_s: float
    streams_equal: bool
    memory_growth_bytes: int
    descriptor_growth: int
    thread_growth: int


class Killer:
    """A thread that kills a random worker at each interval."""

    def __init__(self, loader: Loader, interval_s: float, seed: int) -> None:
        self._loader = loader
        self._interval_s = interval_s
        self._random = random.Random(seed)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.kills = 0

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self._interval_s):
            pids = self._loader.worker_pids
            if pids:
                with suppress(ProcessLookupError):
                    os.kill(self._random.choice(pids), signal.SIGKILL)
                    self.kills += 1


@dataclass(frozen=True)
class _Usage:
    memory: int
    descriptors: int
    threads: int

    @classmethod
    def now(cls) -> _Usage:
        gc.collect()
        process = psutil.Process()
        return cls(process.memory_info().rss, process.num_fds(), process.num_threads())


def soak(seconds: float, interval_s: float, seed: int = 1) -> Report:
    """Reads epochs for so long while workers are killed, and compares each with the same epoch without faults."""
    equal, batches, epochs, longest = True, 0, 0, 0.0
    started = time.monotonic()
    early: _Usage | None = None
    with make_loader() as clean, make_loader() as loader, Killer(loader, interval_s, seed) as killer:
        while time.monotonic() - started < seconds:
            pauses: list[float] = []
            equal &= read(_watched(loader, pauses)).digest == read(clean).digest
            epochs, batches, longest = epochs + 1, batches + len(pauses), max(longest, *pauses)
            if early is None and time.monotonic() - started > seconds / 10:
                early = _Usage.now()
        late = _Usage.now()
        early = early or late
        return Report(
            time.monotonic() - started, epochs, batches, killer.kills, loader.statistics().restarts, longest, equal,
            late.memory - early.memory, late.descriptors - early.descriptors, late.threads - early.threads,
        )  # fmt: skip


def _watched(loader: Loader, pauses: list[float]) -> Any:
    before = time.monotonic()
    for batch in loader:
        pauses.append(time.monotonic() - before)
        yield batch
        before = time.monotonic()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--interval", type=float, default=0.2, help="seconds from one kill to the next")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of workers")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    logging.getLogger("mploader").setLevel(logging.ERROR)  # it says once for each kill that nothing is lost
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    report = asdict(soak(options.seconds, options.interval, options.seed))
    if options.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:<22}{value:>14,.2f}" if isinstance(value, float) else f"{name:<22}{value!s:>14}")


if __name__ == "__main__":
    main()
