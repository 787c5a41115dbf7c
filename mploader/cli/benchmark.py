"""Measures how fast this machine loads some files: the library behind ``mploader bench``.

The limit is what bare processes reach that only read and transform: fresh interpreters as workers are, without slots,
batches or a trainer. It is measured before and after the loaders, because a machine is rarely as fast a minute later.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mploader._util.checks import takes_rng
from mploader._util.resources import usable_cpus
from mploader.engine.ipc import serialization
from mploader.engine.supervisor.channel_worker import OUTPUT_BYTES
from mploader.engine.supervisor.worker_process import environment
from mploader.engine.worker.main import STACKS_SIGNAL, keep_freed_memory
from mploader.errors import ArgumentError, WorkerError
from mploader.loader.loader import Loader
from mploader.monitoring.bottleneck import Bottleneck, Diagnosis, explain
from mploader.sampling.plan import SampleRandom

ENOUGH = 0.95
"""Fewer workers are recommended if they reach this part of the best."""
WARM_UP = 4
"""Samples that a bare process makes before its time is taken: imports, caches."""
ANSWER_S = 300.0
"""How long a bare process may take beyond the time that it measures; as the ``stall_timeout`` of a loader."""
STACKS_S = 1.0
"""How long one that hangs may take to print its stacks."""


@dataclass(frozen=True)
class Measured:
    """One number of workers.

    Attributes:
        workers: how many.
        samples_per_s: what they gave.
        diagnosis: what limited them.
    """

    workers: int
    samples_per_s: float
    diagnosis: Diagnosis


@dataclass(frozen=True)
class BenchReport:
    """What a benchmark has found.

    Attributes:
        cpus: processors that may be used.
        limit_samples_per_s: what as many bare processes reach.
        measured: one entry for each number of workers.
        batch_size: samples in a batch.
        has_bad: whether bad samples were left out.
    """

    cpus: int
    limit_samples_per_s: float
    measured: tuple[Measured, ...]
    batch_size: int
    has_bad: bool = False

    @property
    def best(self) -> Measured:
        """The fastest."""
        return max(self.measured, key=lambda one: one.samples_per_s)

    @property
    def recommended(self) -> Measured:
        """The fewest workers that are about as fast as the fastest."""
        enough = [one for one in self.measured if one.samples_per_s >= ENOUGH * self.best.samples_per_s]
        return min(enough, key=lambda one: one.workers)

    @property
    def _verdict(self) -> Diagnosis:
        """That of the recommended number, which must not advise a number that was measured to be no better."""
        diagnosis = self.recommended.diagnosis
        if diagnosis.bottleneck is not Bottleneck.TOO_FEW_WORKERS:
            return diagnosis
        if self.recommended.workers == max(one.workers for one in self.measured):
            return dataclasses.replace(diagnosis, change=f"{diagnosis.change} (measure it: --workers)")
        return dataclasses.replace(
            diagnosis, change="none", effect="more workers were measured and are not faster",
            expected=diagnosis.samples_per_s,
        )  # fmt: skip

    def __str__(self) -> str:
        rows = [f"{'workers':>7} {'samples/s':>10} {'of the limit':>12}  limit"]
        for one in self.measured:
            share = one.samples_per_s / self.limit_samples_per_s
            rows.append(f"{one.workers:>7} {one.samples_per_s:>10,.0f} {share:>12.0%}  {one.diagnosis.bottleneck.value}")
        return "\n".join([
            *rows,
            f"limit of this machine for these files ({self.cpus} bare processes that read and transform): "
            f"{self.limit_samples_per_s:,.0f} samples/s",
            *(["bad samples were left out: `mploader verify PATH` lists them"] if self.has_bad else []),
            "",
            str(self._verdict),
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

    Bad samples are left out.

    Raises:
        ArgumentError: an argument cannot be meant.
        SampleError: the first samples cannot be made into elements.
        WorkerError: a bare process has ended before its time, or hangs.
    """
    cpus = usable_cpus()
    counts = sorted({1, cpus, 2 * cpus} if workers is None else set(workers))
    if not counts or counts[0] < 1 or seconds <= 0:
        raise ArgumentError(f"workers={counts}, seconds={seconds}: wants numbers of at least 1 and a positive time")
    # Tells of a transform that fails with everything, by the sample's name.
    Loader(source, transform, batch_size=batch_size, num_workers=1, on_bad_sample="drop").close()
    before = measure_limit(source, transform, cpus, seconds)
    measured = tuple(_measure(source, transform, batch_size, count, cpus, seconds) for count in counts)
    after = measure_limit(source, transform, cpus, seconds)
    has_bad = any(one.diagnosis.statistics.bad_samples for one in measured)
    return BenchReport(cpus, (before + after) / 2, measured, batch_size, has_bad)


def _measure(
    source: Any, transform: Callable[..., Any] | None, batch_size: int, count: int, cpus: int, seconds: float
) -> Measured:
    with Loader(
        source, transform, batch_size=batch_size, shuffle=True, num_workers=count, on_bad_sample="drop"
    ) as loader:
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
        WorkerError: a process has ended before its time, or hangs; the message holds what it printed.
    """
    with contextlib.ExitStack() as opened:
        job_fd = serialization.pack((source, transform))
        opened.callback(os.close, job_fd)
        running = []
        for number in range(processes):
            running.append(_Bare(job_fd, number, processes, seconds))
            opened.callback(running[-1].close)
        for bare in running:
            bare.answer(ANSWER_S)  # it is warm
        for bare in running:
            bare.go()
        return sum(float(bare.answer(seconds + ANSWER_S)) for bare in running)


class _Bare:
    """One bare process, as the trainer sees it. What it prints goes to a file, which no amount of it fills."""

    def __init__(self, job_fd: int, number: int, step: int, seconds: float) -> None:
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  goes with the process
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mploader.cli.benchmark", *map(str, (job_fd, number, step, seconds))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._printed, pass_fds=[job_fd],
            env=environment() | {"PYTHONPATH": paths},
        )  # fmt: skip

    def go(self) -> None:
        """Lets it measure."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, as its answer will tell
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def answer(self, limit_s: float) -> str:
        """Waits for its next line.

        Raises:
            WorkerError: it has ended, or says nothing for so long.
        """
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        if not poll.poll(limit_s * 1000):
            self._process.send_signal(STACKS_SIGNAL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STACKS_S)
            raise WorkerError(f"a bare process that measures the limit has said nothing for {limit_s:,.0f} s: the "
                              f"source or the transform hangs. It printed:\n{self._last_words}")  # fmt: skip
        line = self._process.stdout.readline().decode()
        if not line:
            how = f"a bare process that measures the limit has ended with code {self._process.wait()}"
            raise WorkerError(f"{how}. It printed:\n{self._last_words}")
        return line

    @property
    def _last_words(self) -> str:
        fd = self._printed.fileno()
        data = os.pread(fd, OUTPUT_BYTES, max(0, os.fstat(fd).st_size - OUTPUT_BYTES))
        return data.decode(errors="replace").strip()

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.communicate()
        self._printed.close()


def _bare(job_fd: int, number: int, step: int, seconds: float) -> None:
    """The body of a bare process: reads and transforms every n-th sample, again and again, for some seconds."""
    faulthandler.register(STACKS_SIGNAL, all_threads=True)
    keep_freed_memory()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the transform prints is no answer
    source, transform = serialization.unpack(job_fd)
    random = SampleRandom(0) if transform is not None and takes_rng(transform) else None

    good, failure = 0, None

    def make(turn: int) -> None:
        nonlocal good, failure
        index = (number + turn * step) % len(source)
        try:
            sample = source[index]
            if random is not None:
                transform(sample, random(0, index))
            elif transform is not None:
                transform(sample)
            good += 1
        except Exception as error:
            failure = failure or error

    for turn in range(WARM_UP):
        make(turn)
    if failure is not None and not good:
        raise failure
    print("warm", file=answers)
    sys.stdin.readline()
    start_s, turn, good = time.monotonic(), 0, 0
    while time.monotonic() - start_s < seconds:
        make(turn)
        turn += 1
    print(good / (time.monotonic() - start_s), file=answers)


if __name__ == "__main__":
    _bare(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
