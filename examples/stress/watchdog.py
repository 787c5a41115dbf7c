"""Notices that the trainer waits too long, and returns the stacks of all threads and workers."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence

import psutil

from mploader.engine.worker.main import STACKS_SIGNAL
from stress.background import Background
from stress.sampling import Progress

TICK_S = 0.25


class Watchdog(Background):
    """A thread that checks whether the trainer waits too long.

    It reads nothing but ``progress``, because the part that hangs may hold a lock.

    Args:
        progress: progress of the trainer.
        limit_s: how many seconds it may wait for one thing.
        on_hang: called once, in this thread, with a text that says what the trainer waits for and how long.
    """

    def __init__(self, progress: Progress, limit_s: float, on_hang: Callable[[str], None]) -> None:
        super().__init__("watchdog")
        self._progress = progress
        self._limit_s = limit_s
        self._on_hang = on_hang

    def _run(self) -> None:
        while not self._ended.wait(TICK_S):
            awaited, waited_s = self._progress.awaited, self._progress.waited_s
            if waited_s > self._limit_s:
                self._on_hang(f"waited {waited_s:.1f} s of at most {self._limit_s:.0f} s for {awaited}")
                return


def stacks(pids: Sequence[int]) -> str:
    """Returns the Python stacks of this process and the state of each worker.

    The workers are asked to print their own stacks, which the loader passes on to the standard error.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [
        f"thread {names.get(number, number)!r} of the trainer:\n{''.join(traceback.format_stack(frame))}"
        for number, frame in sys._current_frames().items()
    ]
    for pid in pids:
        with contextlib.suppress(psutil.Error, ProcessLookupError):  # it may have ended since
            parts.append(f"worker {pid}: {psutil.Process(pid).status()}\n")
            os.kill(pid, STACKS_SIGNAL)
    return "\n".join(parts)
