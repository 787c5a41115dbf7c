"""A timeline of a loader, for Perfetto (https://ui.perfetto.dev) and chrome://tracing.

Tracks: one for each worker (its batches, and within each what reading, the transform and writing took together), the
slots as a stacked counter, and one for each consumer at work at the same time (waiting for a batch, and the time until
it asks for the next: the training step).

A worker reports one sum a batch and stage; telling of each sample would cost more than it is worth. The slices of a
batch therefore lie end to end: their lengths are measured, their order within the batch is not.

Times are microseconds since 1970 (UTC), the clock of TensorFlow's profiler. Its files count from the start of the
profile; :func:`mploader.tfdata.merge_profile` puts both into one file.

The file is in the JSON array form, which readers accept without its end. A thread of the trace's own writes whole lines
every quarter of a second, so a trainer that is killed leaves a readable file. Storage that hangs or is full ends the
trace and holds up nobody: what waits to be written is bounded, and closing waits for it a few seconds at most.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Any

from mploader._util.checks import path_text, whole_number
from mploader.errors import ArgumentError
from mploader.monitoring.consumer_time import SlotCounts
from mploader.monitoring.statistics import Handover

log = logging.getLogger("mploader")

MAX_EVENTS = 1_000_000
"""Events after which a trace stops by itself: about 130 MB, which Perfetto still opens."""
MAX_PENDING = 50_000
"""Events that may wait to be written, about 40 MB; several seconds of a loader at its fastest."""
WRITE_S = 0.25
"""How often events are written."""
STOP_S = 5.0
"""How long :meth:`Trace.stop` waits for storage at most."""

SHOWN_NS = 100_000
"""Shorter stretches of idleness are not shown: a message on its way."""

_WORKER_TRACK = 1
_SPAN_TRACK = 1_000_000
_STREAM_TRACK = 2_000_000

Event = dict[str, Any]


class Trace:
    """Writes the timeline of one loader to a file, until it is stopped or full.

    Args:
        path: the file; replaced if it exists.
        num_workers: how many worker tracks to name.
        max_events: events after which the trace stops and says so in its last event.

    Raises:
        ArgumentError: the file cannot be written, or this is no name of one.
    """

    def __init__(self, path: str | os.PathLike[str], num_workers: int, max_events: int = MAX_EVENTS) -> None:
        self.path = path_text("path", path, "the name of a file")
        whole_number("max_events", max_events, 1)  # before the file is emptied
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ArgumentError(f"cannot write the trace to {self.path!r}: {error.strerror}") from error
        # Two clocks are read once, so that all events have the steady one's distances.
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self._left = max_events
        self._max_events = max_events
        self._pid = os.getpid()
        self._writer = _Writer(fd, self.path)
        self._lock = threading.RLock()  # a signal handler or a finalizer may come back while it is held
        self._ended: dict[int, int] = {}
        """When the last slice of each track ended, on the monotonic clock."""
        self._lanes: list[int] = []
        """The run that each stream track showed last."""
        self._stop_by_s = 0.0
        """Until when :meth:`stop` waits, on the monotonic clock; 0 before the first call."""
        self._name_tracks(num_workers)
        self._finalizer = weakref.finalize(self, self._writer.end)
        self._finalizer.atexit = False

    @property
    def is_over(self) -> bool:
        """Whether nothing is recorded any more: it is stopped or full, or storage does not take it."""
        return self._writer.is_over

    def stop(self) -> None:
        """Writes what is left and closes the file. May be called again.

        Storage that does not answer for five seconds is left alone, with a warning; the file may lack its end then.
        """
        with self._lock:
            is_first = not self._stop_by_s
            if is_first:
                self._stop_by_s = time.monotonic() + STOP_S
            self._finalizer()
        self._writer.thread.join(max(0.0, self._stop_by_s - time.monotonic()))
        if is_first and self._writer.thread.is_alive():
            log.warning("the trace %s may lack its end: its storage has not answered for %g s", self.path, STOP_S)

    def __enter__(self) -> Trace:
        """Returns the trace itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stops the trace."""
        self.stop()

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Shows the time within a ``with`` block on the track "training", such as a training step.

        Spans of one trace must not overlap, except that one lies within another.
        """
        started_ns = time.monotonic_ns()
        try:
            yield
        finally:
            self.add_span(name, started_ns, time.monotonic_ns())

    def add_span(self, name: str, started_ns: int, ended_ns: int) -> None:
        """Shows a stretch of time on the track "training"; times of ``time.monotonic_ns()``."""
        if self.is_over:
            return
        self._put([self._slice(_SPAN_TRACK, name, started_ns, ended_ns)])

    # What the counters tell; see mploader.statistics.Listener

    def filled(self, worker: int, assignment: Any, message: Any, now_ns: int, slots: SlotCounts) -> None:
        """A worker has made a batch."""
        if self.is_over:
            return
        track = _WORKER_TRACK + worker
        start, end = message.started_ns, message.started_ns + message.busy_ns
        events = []
        with self._lock:
            idle_since = self._ended.get(track, end)
            self._ended[track] = max(end, idle_since)
        if start - idle_since > SHOWN_NS:
            events.append(self._slice(track, "idle", idle_since, start))
        if assignment.input is None:
            name = f"batch {assignment.epoch}:{assignment.batch_index}"
        else:
            name = f"block of task {message.task}"
        facts = {"samples": message.samples, "bytes": message.batch_bytes, "attempt": message.attempt,
                 "slot": message.slot, "cpu ms": message.cpu_ns / 1e6}  # fmt: skip
        events.append(self._slice(track, name, start, end, facts))
        at = start
        for stage, length in (("read", message.read_ns), ("transform", message.transform_ns),
                              ("write", message.write_ns)):  # fmt: skip
            length = min(length, end - at)
            if length > 0:
                events.append(self._slice(track, stage, at, at + length))
            at += length
        self._put([*events, self._counter(now_ns, slots)])

    def restarted(self, worker: int, now_ns: int) -> None:
        """A worker is replaced."""
        if self.is_over:
            return
        track = _WORKER_TRACK + worker
        with self._lock:
            self._ended[track] = now_ns
        self._put([{**self._event("i", track, "worker replaced", now_ns), "s": "t"}])

    def delivered(self, handover: Handover, slots: SlotCounts) -> None:
        """A consumer has got a batch."""
        if self.is_over:
            return
        track = self._lane(handover)
        events = []
        if handover.left_ns:
            events.append(self._slice(track, "training step", handover.left_ns, handover.asked_ns))
        name = f"wait for batch {handover.position}"
        facts = {"run": handover.run, "samples": handover.samples, "copied": handover.copied, "bad": handover.bad}
        events.append(self._slice(track, name, handover.asked_ns, handover.got_ns, facts))
        self._put([*events, self._counter(handover.got_ns, slots)])

    # Inside

    def _lane(self, handover: Handover) -> int:
        """The track of a run: one on which nothing overlaps, the same as before where possible."""
        start = handover.left_ns or handover.asked_ns
        with self._lock:
            fitting = [
                lane for lane in range(len(self._lanes)) if self._ended[_STREAM_TRACK + lane] <= start
            ]  # fmt: skip
            fitting.sort(key=lambda lane: self._lanes[lane] != handover.run)
            lane = fitting[0] if fitting else len(self._lanes)
            track = _STREAM_TRACK + lane
            is_new = lane == len(self._lanes)
            if is_new:
                self._lanes.append(handover.run)
            self._lanes[lane] = handover.run
            self._ended[track] = handover.got_ns
        if is_new:
            self._put([self._name(track, f"stream {lane}")])
        return track

    def _name_tracks(self, num_workers: int) -> None:
        names = {_WORKER_TRACK + index: f"worker {index}" for index in range(num_workers)}
        events = [self._name(track, name) for track, name in {**names, _SPAN_TRACK: "training"}.items()]
        about = {"name": "mploader"}
        self._put([{"ph": "M", "pid": self._pid, "tid": 0, "name": "process_name", "args": about}, *events])

    def _name(self, track: int, name: str) -> Event:
        return {"ph": "M", "pid": self._pid, "tid": track, "name": "thread_name", "args": {"name": name}}

    def _event(self, kind: str, track: int, name: str, at_ns: int) -> Event:
        return {"ph": kind, "pid": self._pid, "tid": track, "name": name, "ts": (self._epoch_ns + at_ns) // 1000}

    def _slice(self, track: int, name: str, start: int, end: int, facts: Event | None = None) -> Event:
        # Start and end are cut to whole microseconds alike. Readers that keep times since 1970 in a double would round
        # a fraction, and Perfetto drops a slice that then reaches beyond the one around it.
        event = self._event("X", track, name, start)
        event["dur"] = max(0, (self._epoch_ns + end) // 1000 - event["ts"])
        return event if facts is None else {**event, "args": facts}

    def _counter(self, at_ns: int, slots: SlotCounts) -> Event:
        return {**self._event("C", 0, "slots", at_ns), "args": {state.name.lower(): n for state, n in slots.items()}}

    def _put(self, events: list[Event]) -> None:
        with self._lock:
            if self.is_over:
                return
            self._left -= len(events)
            self._writer.put(events)
            if self._left <= 0:
                self._end_early(f"it is full after {self._max_events:,} events; pass more max_events= to see further")
            elif self._writer.pending > MAX_PENDING:
                self._end_early(f"its storage is so slow that {MAX_PENDING:,} events wait for it")

    def _end_early(self, why: str) -> None:
        name = f"the trace stops here: {why}"
        self._writer.put([{**self._event("i", 0, name, time.monotonic_ns()), "s": "g"}])
        self._writer.end(why)


class _Writer:
    """A file and the thread that writes it. It does not refer to the trace, so that a trace that nobody holds ends.

    Args:
        fd: the open file; closed by the thread.
        path: its name, for messages.

    Attributes:
        is_over: whether nothing is taken any more.
        thread: ends once everything is written, or storage refuses it.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.is_over = False
        self._fd = fd
        self._path = path
        self._why = ""
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="mploader trace", daemon=True)
        self.thread.start()

    @property
    def pending(self) -> int:
        """How many events wait to be written."""
        return self._queue.qsize()

    def put(self, events: list[Event]) -> None:
        """Lets events be written."""
        for event in events:
            self._queue.put(event)

    def end(self, why: str = "") -> None:
        """Nothing comes any more; ``why``, if it is worth a warning. Takes no lock: finalizers call this."""
        self._why = self._why or why
        self.is_over = True
        self._queue.put(None)

    def _run(self) -> None:
        try:
            self._write_events()
            if self._why:  # told here, because events are counted under locks that everybody waits for
                log.warning("the trace %s stops here: %s", self._path, self._why)
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
            # Sleeps until something comes, then gathers what else there is.
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
    """Writes lines. If there is no room for all of them, the file ends with the last that is whole."""
    written = 0
    try:
        while written < len(data):
            written += os.write(fd, data[written:])
    except OSError:
        with contextlib.suppress(OSError):  # a pipe, say, cannot be cut
            end = os.lseek(fd, 0, os.SEEK_CUR) - written + max(0, data.rfind(b",\n", 0, written))
            os.ftruncate(fd, end)
            os.lseek(fd, end, os.SEEK_SET)
            os.write(fd, b"\n]\n" if end else b"[]\n")
        raise


def read_events(path: str | os.PathLike[str]) -> list[Event]:
    """Reads a timeline, also one that was cut off by the end of the trainer; what came before any event is none.

    Raises:
        ArgumentError: the file cannot be read, or is no timeline.
    """
    try:
        with open(path) as file:
            text = file.read().rstrip()
        try:
            return _parse(text)
        except ValueError:
            # Cut within an event. Each has a line of its own, so the last line is what is incomplete.
            return _parse(text[: max(0, text.rfind("\n"))] if text.startswith("[") else text)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"cannot read the timeline {os.fspath(path)!r}: {error}") from error


def _parse(text: str) -> list[Event]:
    """Reads an array of events that may lack its end, or all but its end."""
    if not text:
        return []
    return list(json.loads(text if text.endswith("]") else text.rstrip(",\n") + "]"))
