"""A stress test of the loader on this machine: loads batches, kills and stops workers, checks every batch, and reports.

    python examples/stress_test.py --minutes 10 --kill-rate 60
    python examples/stress_test.py --quick                      # less than a minute
    python examples/stress_test.py --source DIR --tensorflow    # your own pictures, through tf.data

Workers are killed and stopped at random times while every batch is compared with the plan: no sample may be lost,
duplicated or corrupted. A stopped worker is left alone until the loader has replaced it. Memory, processors,
descriptors, throughput and pauses are measured twice a second and shown live. At the end the test prints its checks and
a diagnosis, and writes report.json and report.html to a new temporary folder, or to --out. It also does so after
Ctrl-C, after an error of the loader, and after a wait longer than --pause-limit, which ends the test and prints the
stacks.

Exit status: 0 if no check failed; 1 if one failed, or after Ctrl-C; 2 for an invalid command line.
"""

from __future__ import annotations

import argparse
import contextlib
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
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text
from stress import conditions
from stress.chaos import Chaos, Incident, Workers
from stress.checker import Checker, Tally
from stress.live import view
from stress.options import START_S, parse
from stress.report import REPORTS, Check, Report
from stress.sampling import Progress, Sample, Sampler
from stress.watchdog import Watchdog, stacks
from stress.workload import Indexed, Work

from mploader import Loader
from mploader.sampling.plan import Plan
from mploader.sources import open_source

SYNTHETIC_SAMPLES = 20_000
REPLACED_S = 5.0
"""How long the start of the replacements of the workers that were killed last may take."""
LAST_LOOK_S = 2.0
"""How long a loader that hangs may take to return its statistics, and its workers to print their stacks."""
REFRESHES_PER_S = 4
INTERRUPTED = "interrupted by Ctrl-C"
COLOURS = {True: "green", False: "red", None: "yellow"}


@dataclass(frozen=True)
class Running:
    """The parts of the test while the loader is open."""

    loader: Loader
    checker: Checker
    sampler: Sampler
    chaos: Chaos


class StressTest:
    """One run of the test.

    Args:
        options: the command line.
        console: where to print.

    Attributes:
        progress: what the trainer waits for.
        tally: the results of the checks of the batches.
        ended_by: why it ended early; "" if it did not.
    """

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.progress = Progress()
        self.tally = Tally()
        self.ended_by = ""
        self._options = options
        self._console = console
        self._start_s = time.monotonic()
        self._end_s = math.inf
        """When the time is over. Set when loading begins, so that a slow start is not part of it."""
        self._due_s = 0.0
        self._restarts = 0
        """Workers replaced in the whole test: set at its end, when the sampler has ended."""
        self._before = conditions.held()
        self._running: Running | None = None
        self._samples: list[Sample] = []
        self._incidents: list[Incident] = []
        self._checks: list[Check] = []
        self._statistics = self._diagnosis = self._stacks = ""
        self._live = Live(
            console=console, get_renderable=self._view, refresh_per_second=REFRESHES_PER_S, transient=True
        )

    def run(self) -> Report:
        """Loads and checks until the time is over, or until the test is interrupted or fails."""
        with Watchdog(self.progress, self._pause_limit_s, self._give_up):
            try:
                self._stress()
            except KeyboardInterrupt:
                self.ended_by = INTERRUPTED
            except Exception as error:  # an error of the loader, or TensorFlow's around it
                self.ended_by, self._stacks = f"{type(error).__name__}: {error}", traceback.format_exc()
        self._checks += conditions.leftovers(self._before, self._options.tensorflow)
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
        """Loads epoch after epoch until the time is over."""
        self._end_s = time.monotonic() + 60 * self._options.minutes
        for epoch in itertools.count():
            self._load_epoch(epoch, running)
            if self._is_over:
                return

    def _load_epoch(self, epoch: int, running: Running) -> None:
        """Checks the batches of an epoch, at the speed of the consumer, until the epoch or the time is over."""
        loader = running.loader
        with self.progress.waiting(f"epoch {epoch} to begin"):
            batches = loader.as_dataset().as_numpy_iterator() if self._options.tensorflow else iter(loader)
        for batch_index in itertools.count():
            with self.progress.waiting(f"batch {batch_index} of epoch {epoch}"):
                batch = next(batches, None)
            if batch is None:
                running.checker.end_epoch(epoch, batch_index)
                return
            self.progress.got_batch()
            running.checker.check(epoch, batch_index, batch)
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
        """Waits until the loader has replaced the workers that were killed and, unless interrupted, those stopped."""
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
        """Runs the checks that need the loader. Those that take its locks come last, because they may hang."""
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
        self._statistics, self._diagnosis = str(statistics), str(loader.explain())

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
            os._exit(1)  # the main thread may wait for ever

    def _report(self) -> Report:
        self._console.print(self._view())
        options = self._options
        ended = Check("the test ran to its end", not self.ended_by, self.ended_by or f"{options.minutes:g} minutes")
        return Report(
            {**vars(options), "out": str(options.out)}, time.monotonic() - self._start_s,
            [ended, *self._checks], self._samples, self._incidents, self._statistics, self._diagnosis, self._stacks,
        )  # fmt: skip


def _workers(loader: Loader) -> Workers:
    pids, statistics = loader.worker_pids, loader.statistics()
    return Workers(pids, [worker.batches for worker in statistics.workers], statistics.slots_assigned)


def _prepare(out: pathlib.Path | None) -> pathlib.Path:
    """Returns the folder for the reports, after a check before the test that they can be written.

    Args:
        out: the folder; None: a new one in the temporary folder.

    Raises:
        OSError: they cannot be written.
    """
    folder = pathlib.Path(tempfile.mkdtemp(prefix="mploader-stress-")) if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    for name in REPORTS:
        if (folder / name).exists():
            (folder / name).open("a").close()
    tempfile.TemporaryFile(dir=folder).close()
    return folder


def conclude(report: Report, folder: pathlib.Path, console: Console) -> None:
    """Writes the reports, and prints the checks, the diagnosis and where the reports are."""
    report.write(folder)
    for check in report.checks:
        console.print(Text.assemble((check.state, COLOURS[check.ok]), f"  {check.name}: {check.detail}"))
    console.print(report.diagnosis, markup=False)
    console.print(f"Reports: {folder / 'report.html'} and {folder / 'report.json'}", markup=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Runs the test and returns the exit status."""
    options = parse(arguments)
    try:
        options.out = _prepare(options.out)
    except OSError as error:
        print(f"stress_test.py: error: --out {options.out}: cannot write the reports there: {error.strerror}",
              file=sys.stderr)  # fmt: skip
        return 2
    logging.getLogger("mploader").setLevel(logging.ERROR)  # each lost worker is a warning, and many are lost on purpose
    console = Console(highlight=False)
    if options.tensorflow:
        importlib.import_module("mploader.tfdata")  # now, because it takes longer than any wait for the loader
    test = StressTest(options, console)
    report = test.run()
    conclude(report, options.out, console)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
