"""Runs contenders in turn, each in a process of its own that is stopped while another is measured.

A benchmark names its contenders: functions that set something up and return a function that measures it for some
seconds. Each is set up once, in a fresh interpreter (the benchmark itself, started with ``--serve NAME``), and then
measured in every round: A B C, A B C, ... Between its turns a contender and all its workers are stopped by a signal, so
that work that one does ahead of time does not slow down another.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, Protocol

import numpy as np
import psutil
from common import Row
from equal_work import Check, First
from rich.console import Console

Figures = dict[str, float]


class Measure(Protocol):
    """A contender that is set up."""

    first: First
    """Its first batches."""

    def __call__(self, seconds: float) -> Figures:
        """Measures for some seconds."""
        ...


SetUp = Callable[[argparse.Namespace], Measure]
"""Sets a contender up and returns the function that measures it. After a ModuleNotFoundError it is skipped."""

Once = Callable[[argparse.Namespace], Figures]
"""Measures something that can be measured once in a process, such as a start."""

SETTLE_S = 1.0
FIRST_BATCHES = 2
"""How many batches are compared between contenders: two, as one of two workers may make every second sample."""


def run(
    args: argparse.Namespace, contenders: Mapping[str, SetUp], figure: str, *, check: Check, reference: str
) -> list[Row]:
    """Measures every contender ``args.rounds`` times, in turn. Does not return in the process of a contender.

    Args:
        args: the parsed options, with those of :func:`add_arguments`.
        contenders: by name, in the order of the table.
        figure: which figure is the value of the row. The medians of the others are in its ``extra``.
        check: compares the first batches of a contender with those of ``reference``.
        reference: name of the contender that the others are compared with.
    """
    if args.serve:
        _serve(args, contenders)
    names = [name for name in contenders if not args.only or name in args.only]
    rows = {name: Row(name) for name in names}
    others: dict[str, list[Figures]] = {name: [] for name in names}
    progress = Console(stderr=True)
    started: dict[str, _Contender] = {}
    try:
        for name in names:
            progress.print(f"setting up {name}", style="dim")
            try:
                contender = _Contender(name)
            except ContenderError as error:
                progress.print(error)
                rows[name].note = "failed: " + str(error).rpartition("\n")[2]
                continue
            if contender.skipped:
                rows[name].note = contender.skipped
                contender.close()
            else:
                started[name] = contender
        for name, contender in started.items():
            if reference in started:
                rows[name].note = check(contender.first, started[reference].first)
        for number in range(args.rounds):
            for name, contender in list(started.items()):
                figures = contender.measure(args.seconds)
                rows[name].values.append(figures.pop(figure))
                others[name].append(figures)
                progress.print(f"round {number + 1}: {name} {rows[name].values[-1]:,.1f}", style="dim")
    finally:
        for contender in started.values():
            contender.close()
    _add_medians(rows, others)
    return list(rows.values())


def run_fresh(args: argparse.Namespace, contenders: Mapping[str, Once], figure: str) -> list[Row]:
    """As :func:`run`, with a fresh interpreter for every measurement."""
    if args.serve:
        _serve_once(args, contenders)
    names = [name for name in contenders if not args.only or name in args.only]
    rows = {name: Row(name) for name in names}
    others: dict[str, list[Figures]] = {name: [] for name in names}
    progress = Console(stderr=True)
    for number in range(args.rounds):
        for name in names:
            if rows[name].note:
                continue
            done = subprocess.run([sys.executable, *sys.argv, "--serve", name], capture_output=True, text=True,
                                  env=_environment(), check=False)  # fmt: skip
            if done.returncode:
                progress.print(done.stderr[-2000:], markup=False)
                rows[name].note = "failed: " + done.stderr.strip().rpartition("\n")[2]
                continue
            figures = json.loads(done.stdout)
            if "skipped" in figures:
                rows[name].note = figures["skipped"]
                continue
            rows[name].values.append(figures.pop(figure))
            others[name].append(figures)
            progress.print(f"round {number + 1}: {name} {rows[name].values[-1]:,.1f}", style="dim")
    _add_medians(rows, others)
    return list(rows.values())


def _serve_once(args: argparse.Namespace, contenders: Mapping[str, Once]) -> NoReturn:
    """The body of the process of one measurement of :func:`run_fresh`."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        figures: dict[str, Any] = contenders[args.serve](args)
    except ModuleNotFoundError as error:
        figures = {"skipped": f"skipped: not installed ({error})"}
    print(json.dumps(figures), file=answers)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(0)


def _add_medians(rows: Mapping[str, Row], others: Mapping[str, list[Figures]]) -> None:
    for name, row in rows.items():
        for heading in others[name][0] if others[name] else ():
            row.extra[heading] = f"{np.median([figures[heading] for figures in others[name]]):,.2f}"


def _environment() -> dict[str, str]:
    # One thread of OpenCV in each process, as in mploader's workers: the processes already use all processors.
    return os.environ | {
        "TF_CPP_MIN_LOG_LEVEL": "2", "TOKENIZERS_PARALLELISM": "false", "OPENCV_FOR_THREADS_NUM": "1",
    }  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of :func:`run` and :func:`run_fresh`."""
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure only these")
    parser.add_argument("--serve", help=argparse.SUPPRESS)


def _serve(args: argparse.Namespace, contenders: Mapping[str, SetUp]) -> NoReturn:
    """The body of a contender's process: sets it up, then measures for each number of seconds that it reads."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is not an answer
    try:
        measure = contenders[args.serve](args)
    except ModuleNotFoundError as error:
        print(json.dumps({"skipped": f"skipped: not installed ({error})"}), file=answers)
        sys.exit()
    with tempfile.NamedTemporaryFile(suffix=".npz", delete=False) as file:
        np.savez(file, **measure.first._asdict())
    print(json.dumps({"skipped": "", "first": file.name}), file=answers)
    for line in sys.stdin:
        print(json.dumps(measure(float(line))), file=answers)
    os._exit(0)  # some peers wait for ever for their own workers


class Stream:
    """Measures an endless stream of batches ``(images, labels)``.

    Batches that were made before its turn are taken first, until the consumer has waited ``SETTLE_S`` in all. The
    trainer's CPU is that of the contender's process with all its threads, without its worker processes.

    Attributes:
        first: the first batches.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self._iterator: Iterator[Any] = iter(batches)
        self.first = First.of(next(self._iterator) for _ in range(FIRST_BATCHES))

    def __call__(self, seconds: float) -> Figures:
        """Measures for some seconds."""
        waited = 0.0
        while waited < min(SETTLE_S, seconds):
            before = time.perf_counter()
            next(self._iterator)
            waited += time.perf_counter() - before
        count = samples = 0
        cpu, started = time.process_time(), time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            samples += len(next(self._iterator)[0])
            count += 1
        cpu = time.process_time() - cpu
        return {
            "samples/s": samples / elapsed, "batches/s": count / elapsed, "trainer CPU ms a batch": cpu / count * 1e3
        }  # fmt: skip


class ContenderError(Exception):
    """A contender's process has ended. The message holds what it printed."""


class _Contender:
    """The benchmark's side of one contender."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  goes with the process
        self._process = subprocess.Popen(
            [sys.executable, *sys.argv, "--serve", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, text=True, bufsize=1, env=_environment(),
        )  # fmt: skip
        answer = self._answer()
        self.skipped: str = answer["skipped"]
        if not self.skipped:
            self._signal(signal.SIGSTOP)
            with np.load(answer["first"]) as first:
                self.first = First(**first)
            os.unlink(answer["first"])

    def measure(self, seconds: float) -> Figures:
        """Lets the contender run for one measurement."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        figures: Figures = self._answer()
        self._signal(signal.SIGSTOP)
        return figures

    def close(self) -> None:
        """Ends the contender and its workers."""
        process = psutil.Process(self._process.pid)
        members = [*process.children(recursive=True), process]
        for member in members:
            member.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise ContenderError(f"{self.name} ended: {self._errors.read().strip()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _signal(self, number: int) -> None:
        process = psutil.Process(self._process.pid)
        members = [process, *process.children(recursive=True)]
        for member in members if number == signal.SIGSTOP else members[::-1]:
            member.send_signal(number)
