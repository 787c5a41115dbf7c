"""A stress test of the loader on this machine: load, kill, stall, check every batch, and report.

    python examples/stress_test.py --minutes 10 --kill-rate 60
    python examples/stress_test.py --quick                      # under a minute
    python examples/stress_test.py --source DIR --tensorflow    # pictures of your own, through tf.data

While it runs, workers are killed and stopped at random moments, and every batch is compared with the plan: samples
lost, duplicated or corrupted must be 0. Memory, processors, descriptors, throughput and pauses are sampled twice a
second and shown live. At the end it prints a verdict and writes report.json and report.html to --out. Exit status: 0 if
every check has passed, 1 if not.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import pathlib
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
from rich.console import Console
from rich.live import Live
from stress.chaos import Chaos
from stress.live import view
from stress.report import Check, Report, growth
from stress.sampling import Progress, Sampler
from stress.workload import Checker, Indexed, Work

from mploader import Loader, Statistics, Verdict
from mploader.plan import Plan
from mploader.sources import open_source

SYNTHETIC_SAMPLES = 20_000
GROWTH_BYTES = 48 * 2**20
"""What the trainer may grow by between the second and the last quarter of the test: noise of the allocator."""
DESCRIPTORS_A_WORKER = 3
START_S = 20.0
"""How long a replacement may take to give its first batch, on a loaded machine, before a pause counts as too long."""


@dataclass(frozen=True)
class Outcome:
    """What is left of the loader once it is closed.

    Attributes:
        chaos: what was done to workers.
        sampler: what was measured.
        statistics: the loader's.
        verdict: what limited it.
        left_out: samples that it found bad.
    """

    chaos: Chaos
    sampler: Sampler
    statistics: Statistics
    verdict: Verdict
    left_out: set[int]


@dataclass
class StressTest:
    """One run of the test.

    Attributes:
        options: the command line.
        start_s: when it began, on ``time.monotonic()``.
        restarts: workers replaced so far.
        progress: what the consumer has got.
    """

    options: argparse.Namespace
    start_s: float = field(default_factory=time.monotonic)
    restarts: int = 0
    progress: Progress = field(default_factory=Progress)

    def run(self, console: Console) -> Report:
        """Loads and checks until the time is over."""
        options = self.options
        source = self._source()
        work = Work(options.image_size, options.bad_rate)
        plan = Plan(len(source), options.batch_size, options.seed, shuffle=True)
        checker = Checker(plan, work, is_synthetic=source.source is None)
        before = psutil.Process().num_fds(), threading.active_count()
        outcome = self._stress(source, checker, console)
        self.restarts = outcome.statistics.restarts
        console.print(self._view(outcome.sampler, checker, outcome.chaos))
        checks = [
            *self._content_checks(checker, outcome.left_out),
            *self._resource_checks(outcome.sampler, outcome.statistics.batches),
            *_leftovers(before, options.tensorflow),
        ]
        return Report(
            {name: str(value) for name, value in vars(options).items()}, time.monotonic() - self.start_s, checks,
            outcome.sampler.samples, outcome.chaos.incidents, str(outcome.statistics), str(outcome.verdict),
        )  # fmt: skip

    def _stress(self, source: Indexed, checker: Checker, console: Console) -> Outcome:
        """Checks batches while workers are killed and everything is measured."""
        options = self.options
        with Loader(
            source, checker.work, batch_size=options.batch_size, shuffle=True, seed=options.seed,
            num_workers=options.workers, on_bad_sample="drop", memory=options.memory,
            stall_timeout=options.stall_timeout,
        ) as loader:  # fmt: skip
            chaos = Chaos(lambda: loader.worker_pids, options.kill_rate, options.stall_rate, options.seed, self.start_s)
            sampler = Sampler(lambda: loader.worker_pids, self.progress, self.start_s)
            with self._live(console) as live, sampler, chaos:
                for epoch, position, batch in self._batches(loader):
                    checker.check(epoch, position, batch)
                    del batch  # its slot is free before the next batch is asked for
                    if live.is_started and self.progress.batches % 8 == 0:
                        self.restarts = loader.statistics().restarts
                        live.update(self._view(sampler, checker, chaos), refresh=True)
            left_out = {bad.index for bad in loader.bad_samples()}
            return Outcome(chaos, sampler, loader.statistics(), loader.explain(), left_out)

    def _source(self) -> Indexed:
        if self.options.source == "synthetic":
            return Indexed(None, SYNTHETIC_SAMPLES)
        source = open_source(self.options.source)
        return Indexed(source, len(source))

    def _batches(self, loader: Loader) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Yields (epoch, position, batch) at the speed of the consumer, until the time is over."""
        epoch = 0
        due_s = 0.0
        while True:
            dataset = loader.as_dataset().as_numpy_iterator() if self.options.tensorflow else loader
            batches = enumerate(dataset)
            while True:
                self.progress.ask()
                position, batch = next(batches, (-1, {}))
                if position < 0:
                    break
                self.progress.got()
                yield epoch, position, batch
                del batch
                if time.monotonic() > self.start_s + 60 * self.options.minutes:
                    return
                if self.options.speed:
                    due_s = max(due_s, time.monotonic()) + 1 / self.options.speed
                    time.sleep(max(0.0, due_s - time.monotonic()))
            epoch += 1

    def _live(self, console: Console) -> Live:
        return Live(console=console, auto_refresh=False, transient=True) if self._shows else _NoLive(console=console)

    @property
    def _shows(self) -> bool:
        return sys.stdout.isatty() and not self.options.no_live

    def _view(self, sampler: Sampler, checker: Checker, chaos: Chaos) -> Any:
        left_s = max(0.0, self.start_s + 60 * self.options.minutes - time.monotonic())
        return view("mploader stress test", left_s, sampler.samples, checker, chaos, self.restarts,
                    self.progress.longest_pause_s)  # fmt: skip

    def _content_checks(self, checker: Checker, left_out: set[int]) -> list[Check]:
        wrong = {index for index in left_out if not checker.work.is_bad(index)}
        lost = f"{checker.lost} of {checker.samples:,}. {checker.first_fault}"
        return [
            Check("no sample is lost", checker.lost == 0, lost),
            Check("no sample comes twice", checker.duplicated == 0, f"{checker.duplicated}"),
            Check("no sample is corrupted", checker.corrupted == 0, f"{checker.corrupted}"),
            Check("only bad samples are left out", not wrong, f"{checker.bad} bad ones; wrongly: {sorted(wrong)[:5]}"),
            Check("batches were delivered", checker.batches > 0, f"{checker.batches:,}"),
        ]

    def _resource_checks(self, sampler: Sampler, batches: int) -> list[Check]:
        limit_s = self.options.stall_timeout + START_S
        memory = growth([sample.trainer_pss for sample in sampler.samples])
        descriptors = growth([sample.descriptors for sample in sampler.samples])
        allowed = DESCRIPTORS_A_WORKER * (self.options.workers or 1)
        pause_s = self.progress.longest_pause_s
        return [
            Check("no pause is too long", pause_s <= limit_s, f"{pause_s:.2f} s of at most {limit_s:.0f} s"),
            Check("the trainer's memory is flat", memory <= GROWTH_BYTES, f"{memory / 2**20:+.1f} MiB"),
            Check("descriptors are flat", descriptors <= allowed, f"{descriptors:+.0f}"),
            Check("statistics agree", batches >= self.progress.batches, f"{batches:,} of {self.progress.batches:,}"),
        ]


class _NoLive(Live):
    """A live view where there is no terminal: nothing."""

    def start(self, refresh: bool = False) -> None:
        """Does nothing."""


def _leftovers(before: tuple[int, int], is_tensorflow: bool) -> list[Check]:
    """What must be gone once the loader is closed."""
    gc.collect()
    children = psutil.Process().children(recursive=True)
    checks = [Check("no worker is left", not children, f"{len(children)}")]
    if not is_tensorflow:  # which keeps threads and descriptors of its own
        after = psutil.Process().num_fds(), threading.active_count()
        checks.append(Check("descriptors and threads are as before", after == before, f"{before} and {after}"))
    return checks


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=None, help="None: as many as processors")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=96, help="height and width, in pixels")
    parser.add_argument("--source", default="synthetic", help='"synthetic", or a path of pictures or shards')
    parser.add_argument("--kill-rate", type=float, default=30.0, help="workers killed a minute")
    parser.add_argument("--stall-rate", type=float, default=2.0, help="workers stopped a minute")
    parser.add_argument("--bad-rate", type=float, default=0.01, help="part of the samples that are bad")
    parser.add_argument("--speed", type=float, default=0.0, help="batches a second that the consumer takes; 0: all")
    parser.add_argument("--memory", default=None, help='budget for slots, such as "64MiB"')
    parser.add_argument("--stall-timeout", type=float, default=5.0, help="seconds")
    parser.add_argument("--tensorflow", action="store_true", help="through tf.data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("stress-report"))
    parser.add_argument("--no-live", action="store_true", help="no live view")
    parser.add_argument("--quick", action="store_true", help="a fifth of a minute with many faults")
    options = parser.parse_args(arguments)
    if options.quick:
        options.minutes, options.kill_rate, options.stall_rate, options.stall_timeout = 0.2, 60.0, 10.0, 2.0
        options.batch_size, options.image_size, options.bad_rate = 16, 32, 0.02
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the test and returns the exit status."""
    options = parse(arguments)
    logging.getLogger("mploader").setLevel(logging.ERROR)  # each lost worker is a warning, and they are the point
    console = Console(highlight=False)
    with contextlib.suppress(KeyboardInterrupt):
        report = StressTest(options).run(console)
        report.write(options.out)
        for check in report.checks:
            mark = "[green]passed[/green]" if check.ok else "[red]FAILED[/red]"
            console.print(f"{mark}  {check.name}: {check.detail}")
        console.print(report.verdict)
        console.print(f"Reports: {options.out / 'report.html'} and {options.out / 'report.json'}")
        return 0 if report.ok else 1
    return 130


if __name__ == "__main__":
    sys.exit(main())
