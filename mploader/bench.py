"""Measures how fast this machine loads some files: the library behind ``mploader bench``.

The limit is what bare processes reach that only read and transform: fresh interpreters without slots, batches or a
trainer. It is measured before and after the loaders, because a machine is rarely as fast a minute later.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import cloudpickle

from mploader.checks import takes_rng
from mploader.errors import ArgumentError, WorkerError
from mploader.explain import Verdict, explain
from mploader.loader import Loader
from mploader.plan import SampleRandom
from mploader.resources import usable_cpus

ENOUGH = 0.95
"""Fewer workers are recommended if they reach this part of the best."""
WARM_UP = 4
"""Samples that a bare process makes before its time is taken: imports, caches."""


@dataclass(frozen=True)
class Measured:
    """One number of workers.

    Attributes:
        workers: how many.
        samples_per_s: what they gave.
        verdict: what limited them.
    """

    workers: int
    samples_per_s: float
    verdict: Verdict


@dataclass(frozen=True)
class BenchReport:
    """What a benchmark has found.

    Attributes:
        cpus: processors that may be used.
        limit_samples_per_s: what as many bare processes reach.
        measured: one entry for each number of workers.
        batch_size: samples in a batch.
    """

    cpus: int
    limit_samples_per_s: float
    measured: tuple[Measured, ...]
    batch_size: int

    @property
    def best(self) -> Measured:
        """The fastest."""
        return max(self.measured, key=lambda one: one.samples_per_s)

    @property
    def recommended(self) -> Measured:
        """The fewest workers that are about as fast as the fastest."""
        enough = [one for one in self.measured if one.samples_per_s >= ENOUGH * self.best.samples_per_s]
        return min(enough, key=lambda one: one.workers)

    def __str__(self) -> str:
        rows = [f"{'workers':>7} {'samples/s':>10} {'of the limit':>12}  limit"]
        for one in self.measured:
            share = one.samples_per_s / self.limit_samples_per_s
            rows.append(f"{one.workers:>7} {one.samples_per_s:>10,.0f} {share:>12.0%}  {one.verdict.limit.value}")
        return "\n".join([
            *rows,
            f"limit of this machine for these files ({self.cpus} bare processes that read and transform): "
            f"{self.limit_samples_per_s:,.0f} samples/s",
            "",
            str(self.recommended.verdict),
            "",
            f"recommended: Loader(source, transform, batch_size={self.batch_size}, "
            f"num_workers={self.recommended.workers})",
        ])  # fmt: skip


def bench(
    source: Any,
    transform: Callable[..., Any] | None,
    *,
    batch_size: int = 64,
    workers: Sequence[int] | None = None,
    seconds: float = 5.0,
) -> BenchReport:
    """Measures a source and a transform with several numbers of workers.

    Args:
        source: see :class:`mploader.Loader`.
        transform: see :class:`mploader.Loader`.
        batch_size: samples in a batch.
        workers: numbers of workers to try. None: 1, the processors that may be used, and twice as many.
        seconds: how long each number is measured, and the limit twice.

    Raises:
        ArgumentError: an argument cannot be meant.
        SampleError: a sample cannot be made into an element.
        WorkerError: a bare process has ended before its time.
    """
    cpus = usable_cpus()
    counts = sorted({1, cpus, 2 * cpus} if workers is None else set(workers))
    if not counts or counts[0] < 1 or seconds <= 0:
        raise ArgumentError(f"workers={counts}, seconds={seconds}: wants numbers of at least 1 and a positive time")
    before = measure_limit(source, transform, cpus, seconds)
    measured = tuple(_measure(source, transform, batch_size, count, cpus, seconds) for count in counts)
    after = measure_limit(source, transform, cpus, seconds)
    return BenchReport(cpus, (before + after) / 2, measured, batch_size)


def _measure(
    source: Any, transform: Callable[..., Any] | None, batch_size: int, count: int, cpus: int, seconds: float
) -> Measured:
    with Loader(source, transform, batch_size=batch_size, shuffle=True, num_workers=count) as loader:
        batches = _endless(loader)
        for _ in range(count):
            next(batches)  # every worker has begun
        start, end_s = loader.statistics(), time.monotonic() + seconds
        while time.monotonic() < end_s or loader.statistics().batches < start.batches + 2:
            next(batches)
        window = loader.statistics().since(start)
        return Measured(count, window.samples / window.seconds, explain(window, cpus))


def _endless(loader: Loader) -> Iterator[Any]:
    while True:
        yield from loader


def measure_limit(source: Any, transform: Callable[..., Any] | None, processes: int, seconds: float) -> float:
    """Returns how many samples a second bare processes read and transform, all together.

    Raises:
        WorkerError: a process has ended before its time; the message holds what it printed.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment.setdefault(name, "1")
    command = [sys.executable, "-m", "mploader.bench"]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         env=environment)
        for _ in range(processes)
    ]  # fmt: skip
    try:
        for number, process in enumerate(running):
            _write(process, cloudpickle.dumps((source, transform, number, processes, seconds)))
        for process in running:
            _read(process)  # it is warm
        for process in running:
            _write(process, b"\n")
        return sum(float(_read(process)) for process in running)
    finally:
        for process in running:
            process.kill()
            process.communicate()


def _write(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(data)
        process.stdin.flush()
    except BrokenPipeError:
        _read(process)


def _read(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline().decode()
    if not line:
        text = process.stderr.read().decode(errors="replace").strip()
        how = f"a bare process that measures the limit has ended with code {process.wait()}"
        raise WorkerError(f"{how}. It printed:\n{text}")
    return line


def _bare(stdin: IO[bytes]) -> None:
    """The body of a bare process: reads and transforms every n-th sample, again and again, for some seconds."""
    source, transform, number, step, seconds = cloudpickle.load(stdin)
    random = SampleRandom(0) if transform is not None and takes_rng(transform) else None

    def make(turn: int) -> None:
        index = (number + turn * step) % len(source)
        sample = source[index]
        if random is not None:
            transform(sample, random(0, index))
        elif transform is not None:
            transform(sample)

    for turn in range(WARM_UP):
        make(turn)
    print("warm", flush=True)
    stdin.readline()
    start_s, turn = time.monotonic(), 0
    while time.monotonic() - start_s < seconds:
        make(turn)
        turn += 1
    print(turn / (time.monotonic() - start_s), flush=True)


if __name__ == "__main__":
    _bare(sys.stdin.buffer)
