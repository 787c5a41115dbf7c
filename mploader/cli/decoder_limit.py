"""Measures the decoder's limit: how fast bare processes read and transform, without slots, batches or a trainer.

Each is a fresh interpreter, started under the conditions of a worker. It gets the job as a file descriptor, answers
"warm" after its first samples, waits for a line on its standard input, and answers with samples per second.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from mploader._util import python_command
from mploader._util.checks import transform_parameters
from mploader.engine.ipc import serialization
from mploader.engine.supervisor.channel_worker import OUTPUT_BYTES
from mploader.engine.supervisor.worker_process import environment
from mploader.engine.worker.main import STACKS_SIGNAL, keep_freed_memory
from mploader.engine.worker.parent_death import die_with
from mploader.errors import ResourceError, WorkerError
from mploader.sampling.rng import TransformArguments

WARM_UP = 4
"""Samples that a bare process makes before its time is taken: imports, caches."""
ANSWER_S = 300.0
"""How long a bare process may take beyond the time that it measures; as the ``stall_timeout`` of a loader."""
STACKS_S = 1.0
"""How long a process that hangs may take to print its stacks."""

_PROGRAM = "from mploader.cli.decoder_limit import main; main(*map(int, sys.argv[1:]))"


def decoder_limit(source: Any, transform: Callable[..., Any] | None, processes: int, seconds: float) -> float:
    """Returns how many samples a second bare processes read and transform, all of them together.

    Args:
        source: see :class:`mploader.Loader`.
        transform: see :class:`mploader.Loader`.
        processes: how many.
        seconds: how long each measures.

    Raises:
        ResourceError: the machine does not grant a process.
        WorkerError: a process ended early or hangs; the message holds what it printed.
    """
    with contextlib.ExitStack() as opened:
        job_fd = serialization.pack((source, transform, seconds))
        opened.callback(os.close, job_fd)
        running = [opened.enter_context(_BareProcess(job_fd, first, processes)) for first in range(processes)]
        for bare in running:
            bare.answer(ANSWER_S)  # "warm"
        for bare in running:
            bare.go()
        return sum(float(bare.answer(seconds + ANSWER_S)) for bare in running)


class _BareProcess:
    """One bare process, as the trainer sees it: a context manager that ends it.

    It prints to a file, which cannot fill up and block it as a pipe would.

    Args:
        job_fd: the file with (source, transform, seconds).
        first: the first sample that it makes.
        step: it makes every ``step``-th one.
    """

    def __init__(self, job_fd: int, first: int, step: int) -> None:
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        try:
            self._process = subprocess.Popen(
                python_command.command(_PROGRAM, os.getpid(), job_fd, first, step),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._printed, pass_fds=[job_fd],
                env=environment(), start_new_session=True,  # Ctrl-C interrupts the trainer alone, which then ends it
            )  # fmt: skip
        except OSError as error:
            self._printed.close()
            raise ResourceError(
                f"cannot start bare process {first} of {step}: {error}. Raise the limits (ulimit -n, ulimit -u, the "
                "container's pids limit)"
            ) from error

    def go(self) -> None:
        """Lets it measure."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: `answer` raises
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def answer(self, timeout_s: float) -> str:
        """Waits for its next line.

        Raises:
            WorkerError: it has ended, or printed no line within the time.
        """
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            self._process.send_signal(STACKS_SIGNAL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STACKS_S)
            raise WorkerError(
                f"a bare process that measures the decoder's limit gave no answer within {timeout_s:,.0f} s: "
                f"the source or the transform hangs. It printed:\n{self._last_words}"
            )
        line = self._process.stdout.readline().decode()
        if not line:
            code = self._process.wait()
            raise WorkerError(
                f"a bare process that measures the decoder's limit ended with exit code {code}. "
                f"It printed:\n{self._last_words}"
            )
        return line

    @property
    def _last_words(self) -> str:
        fd = self._printed.fileno()
        data = os.pread(fd, OUTPUT_BYTES, max(0, os.fstat(fd).st_size - OUTPUT_BYTES))
        return data.decode(errors="replace").strip()

    def __enter__(self) -> _BareProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._printed.close()


def main(trainer: int, job_fd: int, first: int, step: int) -> None:
    """The body of a bare process: makes every ``step``-th sample, again and again, for some seconds."""
    die_with(trainer)
    faulthandler.register(STACKS_SIGNAL, all_threads=True)
    keep_freed_memory()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the transform may print, and what it prints is not an answer
    source, transform, seconds = serialization.unpack(job_fd)
    arguments = TransformArguments(frozenset() if transform is None else transform_parameters(transform), seed=0)

    good, failure = 0, None

    def make(turn: int) -> None:
        nonlocal good, failure
        index = (first + turn * step) % len(source)
        try:
            sample = source[index]
            if transform is not None:
                transform(sample, **arguments(0, index))
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
