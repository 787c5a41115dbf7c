"""The file of a timeline: written as it goes, and readable wherever it is cut off.

It holds an array of JSON objects, one on each line, so a trainer that is killed loses the last line at most. Tools that
show timelines accept the array without its end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from queue import Empty, SimpleQueue
from typing import Any

from mploader.errors import ArgumentError

log = logging.getLogger("mploader")

WRITE_S = 0.25
"""How often events are written, in seconds."""

Event = dict[str, Any]


class TraceFile:
    """A file that a thread of its own writes, because storage may be slow, full or hang and training must not.

    It does not refer to the trace, so that a trace without references ends.

    Args:
        fd: descriptor of the open file; the thread closes it.
        path: the name of the file, for messages.

    Attributes:
        is_over: whether no more events are taken.
        thread: ends once everything is written, or storage refuses it.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.is_over = False
        self._fd = fd
        self._path = path
        self._reason = ""
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="mploader trace", daemon=True)
        self.thread.start()

    @property
    def pending(self) -> int:
        """How many events wait to be written."""
        return self._queue.qsize()

    def put(self, events: list[Event]) -> None:
        """Adds events."""
        for event in events:
            self._queue.put(event)

    def end(self, reason: str = "") -> None:
        """Takes no more events; ``reason``: logged as a warning. Takes no lock: finalizers call this."""
        self._reason = self._reason or reason
        self.is_over = True
        self._queue.put(None)

    def _run(self) -> None:
        try:
            self._write_events()
            if self._reason:  # logged here, because events are counted while callers wait
                log.warning("the trace %s stops here: %s", self._path, self._reason)
        except OSError as error:
            log.warning("the trace %s ends here: %s", self._path, error.strerror)
        finally:
            self.is_over = True
            with contextlib.suppress(Empty):
                while True:
                    self._queue.get_nowait()
            os.close(self._fd)

    def _write_events(self) -> None:
        is_open, before = True, "[\n"
        while is_open:
            text: list[str] = []
            # It waits for one event and takes all others that are there. Then it sleeps: a write for each event would
            # compete with the trainer's threads for the interpreter.
            event = self._queue.get()
            with contextlib.suppress(Empty):
                while event is not None:
                    text += before, json.dumps(event, separators=(",", ":"))
                    before = ",\n"
                    event = self._queue.get_nowait()
                is_open = False
                text.append("\n]\n")
            _write_all(self._fd, "".join(text).encode())
            if is_open:
                time.sleep(WRITE_S)


def _write_all(fd: int, data: bytes) -> None:
    """Writes lines. If there is no room for all of them, the file ends with the last complete one."""
    written = 0
    try:
        while written < len(data):
            written += os.write(fd, data[written:])
    except OSError:
        with contextlib.suppress(OSError):  # a pipe, for example, cannot be truncated
            end = os.lseek(fd, 0, os.SEEK_CUR) - written + max(0, data.rfind(b",\n", 0, written))
            os.ftruncate(fd, end)
            os.lseek(fd, end, os.SEEK_SET)
            os.write(fd, b"\n]\n" if end else b"[]\n")
        raise


def read_events(path: str | os.PathLike[str]) -> list[Event]:
    """Reads a timeline, also one that was cut off by the end of the trainer. An empty file has no events.

    Raises:
        ArgumentError: the file cannot be read, or is not a timeline.
    """
    try:
        with open(path) as file:
            text = file.read().rstrip()
        try:
            return _parse(text)
        except ValueError:
            # Cut within an event. Each has a line of its own, so only the last line is incomplete.
            return _parse(text[: max(0, text.rfind("\n"))] if text.startswith("[") else text)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"cannot read the timeline {os.fspath(path)!r}: {error}") from error


def _parse(text: str) -> list[Event]:
    """Reads an array of events that may lack its end, or have nothing but its start."""
    if not text:
        return []
    return list(json.loads(text if text.endswith("]") else text.rstrip(",\n") + "]"))
