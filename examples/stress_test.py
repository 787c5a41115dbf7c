"""A stress test of the loader on this machine: load, kill, stall, check every batch, and report.

    python examples/stress_test.py --minutes 10 --kill-rate 60
    python examples/stress_test.py --quick                      # under a minute
    python examples/stress_test.py --source DIR --tensorflow    # pictures of your own, through tf.data

While it runs, workers are killed and stopped at random moments, and every batch is compared with the plan: samples
lost, duplicated or corrupted must be 0. A stopped worker is left alone until the loader has replaced it. Memory,
processors, descriptors, throughput and pauses are sampled twice a second and shown live. At the end it prints a diagnosis
and writes report.json and report.html to --out. So it does after Ctrl-C, after an error of the loader, and after a wait
of more than --pause-limit, which ends the test and shows the stacks. Exit status: 0 if no check has failed, 1 if one
has, after Ctrl-C too; 2 if the command line cannot be meant.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import itertools
import logging
import math
import os
import pathlib
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import psutil
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text
from stress import conditions
from stress.chaos import Chaos, Incident, Workers
from stress.checker import Checker, Tally
from stress.live import view
from stress.report import REPORTS, Check, Report
from stress.sampling import Progress, Sample, Sampler
from stress.watchdog import Watchdog, stacks
from stress.workload import Indexed, Work

from mploader import ArgumentError, Loader
from mploader._util.resources import parse_bytes
from mploader.sampling.plan import Plan
from mploader.sources import open_source

SYNTHETIC_SAMPLES = 20_000
START_S = 20.0
"""How long a replacement may take to give its first batch, on a loaded machine, before a pause counts as too long."""
REPLACED_S = 5.0
"""How long the replacements of workers that were killed last may take to be started."""
LAST_LOOK_S = 2.0
"""How long a loader that hangs is given to tell its statistics, and its workers to print their stacks."""
REFRESHES_PER_S = 4
INTERRUPTED = "interrupted by Ctrl-C"
COLOURS = {True: "green", False: "red", None: "yellow"}


@dataclass(frozen=True)
class Running:
    """What is there while the loader is open."""

    loader: Loader
    checker: Checker
    sampler: Sampler
    chaos: Chaos


class StressTest:
    """One run of the test.

    Args:
        options: the command line.
        console: where to show it.

    Attributes:
        progress: what the trainer waits for.
        tally: what was found in the batches.
        ended_by: what has ended it before its time; "" if nothing has.
    """

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.progress = Progress()
        self.tally = Tally()
        self.ended_by = ""
        self._options = options
        self._console = console
        self._start_s = time.monotonic()
        self._end_s = math.inf
        """When the time is over: set when loading begins, so that a slow start takes nothing of it."""
        self._due_s = 0.0
        self._restarts = 0
        """Workers replaced in the whole test: known at its end, when nobody looks at the processes any more."""
        self._before = psutil.Process().num_fds(), threading.active_count()
        self._running: Running | None = None
        self._samples: list[Sample] = []
        self._incidents: list[Incident] = []
        self._checks: list[Check] = []
        self._statistics = self._verdict = self._stacks = ""
        self._live = Live(
            console=console, get_renderable=self._view, refresh_per_second=REFRESHES_PER_S, transient=True
        )

    def run(self) -> Report:
        """Loads and checks until the time is over, or until something ends it before."""
        with Watchdog(self.progress, self._pause_limit_s, self._give_up):
            try:
                self._stress()
            except KeyboardInterrupt:
                self.ended_by = INTERRUPTED
            except Exception as error:  # of the loader, or what TensorFlow makes of it
                self.ended_by, self._stacks = f"{type(error).__name__}: {error}", traceback.format_exc()
        self._checks += _leftovers(self._before, self._options.tensorflow)
        return self._report()

    def _stress(self) -> None:
        """Checks batches while workers are killed and everything is measured."""
        options = self._options
        source = self._source()
        work = Work(options.image_size, options.bad_rate)
        with self.progress.waiting("the loader to start"):
            loader = Loader(
                source, work, batch_size=options.batch_size, shuffle=True, seed=options.seed,
                num_workers=options.workers, on_bad_sample="drop", memory=options.memory,
                stall_timeout=options.stall_timeout,
            )  # fmt: skip
        plan = Plan(len(source), options.batch_size, options.seed, shuffle=True)
        running = self._running = Running(
            loader,
            Checker(plan, source, work, lambda: {bad.index for bad in loader.bad_samples()}, self.tally),
            Sampler(loader, self.progress, self._start_s),
            Chaos(lambda: _workers(loader), options.kill_rate, options.stall_rate, options.stall_timeout, options.seed,
                  self._start_s),
        )
        self._samples, self._incidents = running.sampler.samples, running.chaos.incidents
        try:
            with self._live if self._is_shown else contextlib.nullcontext(), running.sampler, running.chaos:
                self._load(running)
            self._checks.append(conditions.statistics_agree(loader.statistics(), self.tally, options.tensorflow))
        finally:
            self._await_replacements(running)
            self._take_stock(running)
            self._running = None
            with self.progress.waiting("the loader to close"):
                loader.close()

    def _source(self) -> Indexed:
        if self._options.source == "synthetic":
            return Indexed(None, SYNTHETIC_SAMPLES)
        source = open_source(self._options.source)
        return Indexed(source, len(source))

    def _load(self, running: Running) -> None:
        """Takes epoch after epoch until the time is over."""
        self._end_s = time.monotonic() + 60 * self._options.minutes
        for epoch in itertools.count():
            self._load_epoch(epoch, running)
            if self._is_over:
                return

    def _load_epoch(self, epoch: int, running: Running) -> None:
        """Checks the batches of an epoch, at the speed of the consumer, until it or the time is over."""
        loader = running.loader
        with self.progress.waiting(f"epoch {epoch} to begin"):
            batches = loader.as_dataset().as_numpy_iterator() if self._options.tensorflow else iter(loader)
        for position in itertools.count():
            with self.progress.waiting(f"batch {position} of epoch {epoch}"):
                batch = next(batches, None)
            if batch is None:
                running.checker.end_epoch(epoch, position)
                return
            self.progress.got_batch()
            running.checker.check(epoch, position, batch)
            del batch  # its slot is free before the next batch is asked for
            if self._is_over:
                return
            self._keep_pace()

    def _keep_pace(self) -> None:
        if self._options.speed:
            self._due_s = max(self._due_s, time.monotonic()) + 1 / self._options.speed
            time.sleep(max(0.0, self._due_s - time.monotonic()))

    @property
    def _is_over(self) -> bool:
        return time.monotonic() > self._end_s

    @property
    def _pause_limit_s(self) -> float:
        options = self._options
        return float(options.stall_timeout + START_S if options.pause_limit is None else options.pause_limit)

    @property
    def _is_shown(self) -> bool:
        return self._console.is_terminal and not self._options.no_live

    def _view(self) -> RenderableType:
        left_s = min(60 * self._options.minutes, max(0.0, self._end_s - time.monotonic()))
        seen = self._samples[-1].restarts if self._samples else 0
        return view(
            "mploader stress test", left_s, self._samples, self.tally, self._incidents, self.progress,
            max(seen, self._restarts),
        )  # fmt: skip

    def _await_replacements(self, running: Running) -> None:
        """Gives the loader the time to replace the workers that were killed or, unless it is interrupted, stopped."""
        chaos, is_whole = running.chaos, self._is_over
        end_s = time.monotonic() + REPLACED_S + (self._options.stall_timeout if is_whole else 0)
        while (now_s := time.monotonic()) < end_s:
            with self.progress.waiting("the replacement of the last workers"):
                chaos.note(_workers(running.loader), now_s)
                restarts = running.loader.statistics().restarts
            if restarts >= chaos.killed + chaos.recovered and not (is_whole and chaos.awaits_replacement):
                return
            time.sleep(0.05)

    def _take_stock(self, running: Running) -> None:
        """Draws the conclusions that need the loader. What needs its locks comes last: it may hang."""
        loader = running.loader
        pause_s, limit_s = self.progress.longest_pause_s, self._pause_limit_s
        self._checks.append(
            Check("no pause is too long", pause_s <= limit_s, f"{pause_s:.2f} s of at most {limit_s:.0f} s")
        )
        self._checks += conditions.content(self.tally, running.checker)
        statistics = loader.statistics()
        self._restarts = statistics.restarts
        self._checks += conditions.faults(running.chaos, running.sampler, statistics.restarts)
        self._checks += conditions.resources(self._samples, loader.bad_samples(), loader.num_workers)
        self._statistics, self._verdict = str(statistics), str(loader.explain())

    def _give_up(self, why: str) -> None:
        """Reports that the test hangs, and ends the process. Called in the watchdog's thread."""
        try:
            running = self._running
            self.ended_by, self._stacks = why, stacks([] if running is None else running.sampler.pids)
            if running is not None:
                last_look = threading.Thread(target=self._take_stock, args=(running,), daemon=True)
                last_look.start()
                last_look.join(LAST_LOOK_S)
            self._live.stop()
            conclude(self._report(), self._options.out, self._console)
            print(self._stacks, file=sys.stderr, flush=True)
        finally:
            os._exit(1)  # the trainer's own thread may wait for ever

    def _report(self) -> Report:
        self._console.print(self._view())
        options = self._options
        ended = Check("the test ran to its end", not self.ended_by, self.ended_by or f"{options.minutes:g} minutes")
        return Report(
            {**vars(options), "out": str(options.out)}, time.monotonic() - self._start_s,
            [ended, *self._checks], self._samples, self._incidents, self._statistics, self._verdict, self._stacks,
        )  # fmt: skip


def _workers(loader: Loader) -> Workers:
    pids, statistics = loader.worker_pids, loader.statistics()
    return Workers(pids, [worker.batches for worker in statistics.workers], statistics.slots_assigned)


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
    parser.add_argument("--minutes", type=_number(float, 0, above=True), default=5.0)
    parser.add_argument("--workers", type=_number(int, 1), default=None, help="None: as many as processors")
    parser.add_argument("--batch-size", type=_number(int, 1), default=32)
    parser.add_argument("--image-size", type=_number(int, 1), default=96, help="height and width, in pixels")
    parser.add_argument("--source", default="synthetic", help='"synthetic", or a path of pictures or shards')
    parser.add_argument("--kill-rate", type=_number(float, 0), default=30.0, help="workers killed a minute")
    parser.add_argument("--stall-rate", type=_number(float, 0), default=2.0, help="workers stopped a minute")
    parser.add_argument("--bad-rate", type=_number(float, 0, 1), default=0.01, help="part of the samples that are bad")
    parser.add_argument(
        "--speed", type=_number(float, 0), default=0.0, help="batches a second that the consumer takes; 0: all"
    )
    parser.add_argument("--memory", type=_memory, default=None, help='budget for slots, such as "64MiB"')
    parser.add_argument("--stall-timeout", type=_number(float, 0, above=True), default=5.0, help="seconds")
    limit = f"seconds that the trainer may wait for one thing; None: stall timeout + {START_S:.0f}"
    parser.add_argument("--pause-limit", type=_number(float, 0, above=True), default=None, help=limit)
    parser.add_argument("--tensorflow", action="store_true", help="through tf.data")
    parser.add_argument("--seed", type=_number(int, 0), default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("stress-report"))
    parser.add_argument("--no-live", action="store_true", help="no live view")
    parser.add_argument("--quick", action="store_true", help="a fifth of a minute with many faults")
    options = parser.parse_args(arguments)
    if options.quick:
        options.minutes, options.kill_rate, options.stall_rate, options.stall_timeout = 0.2, 60.0, 10.0, 2.0
        options.pause_limit = 12.0
        options.batch_size, options.image_size, options.bad_rate = 16, 32, 0.02
    return options


def _number(
    kind: type[int] | type[float], low: float, high: float = math.inf, *, above: bool = False
) -> Callable[[str], float]:
    """Returns what reads a number from ``low`` to ``high``; ``above``: it has to be more than ``low``."""
    wanted = f"a {'whole ' if kind is int else ''}number {'above' if above else 'of at least'} {low:g}"
    if high < math.inf:
        wanted = f"a number from {low:g} to {high:g}"

    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high or (above and number == low) or math.isinf(number):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return number

    return read


def _memory(text: str) -> str:
    """Checks a size in bytes."""
    try:
        parse_bytes(text, "memory")
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _prepare(folder: pathlib.Path) -> None:
    """Makes the folder of the reports, and sees that they can be written, before the test rather than after it.

    Raises:
        OSError: they cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in REPORTS:
        if (folder / name).exists():
            (folder / name).open("a").close()
    tempfile.TemporaryFile(dir=folder).close()


def conclude(report: Report, folder: pathlib.Path, console: Console) -> None:
    """Writes the reports and prints the diagnosis."""
    report.write(folder)
    for check in report.checks:
        console.print(Text.assemble((check.state, COLOURS[check.ok]), f"  {check.name}: {check.detail}"))
    console.print(report.diagnosis, markup=False)
    console.print(f"Reports: {folder / 'report.html'} and {folder / 'report.json'}", markup=False)


def main(arguments: list[str] | None = None) -> int:
    """Runs the test and returns the exit status."""
    options = parse(arguments)
    try:
        _prepare(options.out)
    except OSError as error:
        print(f"stress_test.py: error: --out {options.out}: reports cannot be written there: {error.strerror}",
              file=sys.stderr)  # fmt: skip
        return 2
    logging.getLogger("mploader").setLevel(logging.ERROR)  # each lost worker is a warning, and they are the point
    console = Console(highlight=False)
    if options.tensorflow:
        importlib.import_module("mploader.tfdata")  # which takes longer than anything that the loader does
    test = StressTest(options, console)
    report = test.run()
    conclude(report, options.out, console)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
