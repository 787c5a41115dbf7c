"""Named points in a worker where a test can make it die, stop or fail; documented in ``mploader.testing``.

The environment variable is read once, when a worker starts. Without it :func:`reach` does nothing.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass

VARIABLE = "MPLOADER_FAULT"

POINTS = (
    "before hello",
    "after hello",
    "task received",
    "record opened",
    "record half read",
    "mid decode",
    "slot half written",
    "result unsent",
    "result sent",
    "idle",
    "shutting down",
)


_FORMAT = re.compile(r"(?P<point>[a-z ]+):(?P<number>\d+|\*):(?P<action>[A-Z0-9.]+)(:(?P<times>\d+|\*))?")
_NO_SIGNAL = re.compile(r"SLEEP\d+(\.\d+)?|EXIT\d+|EIO")


@dataclass(frozen=True)
class Fault:
    """One fault to inject: ``point:number:action:times`` (see ``mploader.testing``)."""

    point: str
    number: int | None
    action: str
    times: int | None

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Reads one fault.

        Raises:
            ValueError: ``text`` does not name a fault.
        """
        match = _FORMAT.fullmatch(text)
        if match is None or match["point"] not in POINTS or not _is_action(match["action"]):
            raise ValueError(f"{VARIABLE}={text!r}: expected point:number:action[:times] with a point of {POINTS}")
        number, times = match["number"], match["times"] or "1"
        return cls(
            match["point"],
            None if number == "*" else int(number),
            match["action"],
            None if times == "*" else int(times),
        )

    def strike(self) -> None:
        """Carries out the action in this process."""
        if self.action.startswith("SLEEP"):
            time.sleep(float(self.action[5:]))
        elif self.action.startswith("EXIT"):
            os._exit(int(self.action[4:]))
        elif self.action == "EIO":
            raise OSError(errno.EIO, "injected by " + VARIABLE)
        else:
            os.kill(os.getpid(), signal.Signals["SIG" + self.action])


def _is_action(text: str) -> bool:
    return _NO_SIGNAL.fullmatch(text) is not None or f"SIG{text}" in signal.Signals.__members__


class _State:
    faults: tuple[Fault, ...] = ()
    struck: Counter[Fault] = Counter()
    number = -1
    time = 1


def load() -> None:
    """Reads the environment variable; called once by a worker at its start."""
    text = os.environ.get(VARIABLE, "")
    _State.faults = tuple(Fault.parse(part) for part in text.split(";") if part)


def enter(number: int, time: int) -> None:
    """Sets what the worker works on: a task's batch index or input and its attempt, or its own index and start."""
    _State.number, _State.time = number, time


def is_set(point: str) -> bool:
    """Whether a fault is set for this point, at any number and time."""
    return any(fault.point == point for fault in _State.faults)


def reach(point: str) -> None:
    """Strikes if a fault is set for this point, this number and this time."""
    for fault in _State.faults:
        if (
            fault.point == point
            and fault.number in (None, _State.number)
            and (fault.times is None or max(_State.time, _State.struck[fault] + 1) <= fault.times)
        ):
            _State.struck[fault] += 1
            fault.strike()
