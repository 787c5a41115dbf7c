"""A timeline of a loader, for Perfetto (https://ui.perfetto.dev) and chrome://tracing.

Tracks: one for each worker (its batches, and within each the time in reading, the transform and writing), the slots as
a stacked counter, and one for each consumer at work at the same time (waiting for a batch, and the time until it asks
for the next: the training step).

A worker reports one sum for each stage of a batch, because a report on each sample would cost too much. The slices of
a batch therefore lie end to end: their lengths are measured, their order within the batch is not.

Times are microseconds since 1970 (UTC), on the clock of TensorFlow's profiler. The profiler's files count from the
start of the profile; :func:`mploader.tfdata.merge_profile` puts both into one file.

Storage that hangs or is full ends the trace and does not hold up training: the number of events that wait to be written
is bounded, and closing waits a few seconds at most.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator

from mploader._util.checks import path_text, whole_number
from mploader.errors import ArgumentError
from mploader.monitoring.events import BatchDelivered, BatchMade, SlotCounts, WorkerRestarted
from mploader.monitoring.trace_file import Event, TraceFile

log = logging.getLogger("mploader")

MAX_EVENTS = 1_000_000
"""Events after which a trace stops by itself: about 130 MB, which Perfetto still opens."""
MAX_PENDING = 50_000
"""Events that may wait to be written, about 40 MB; several seconds of a loader at its fastest."""
STOP_S = 5.0
"""How long :meth:`Trace.stop` waits for storage at most, in seconds."""

SHOWN_NS = 100_000
"""Idle times that are shorter are not shown: a message is on its way."""

_WORKER_TRACK = 1
_SPAN_TRACK = 1_000_000
_STREAM_TRACK = 2_000_000


class Trace:
    """Writes the timeline of one loader to a file, until it is stopped or full.

    Args:
        path: the file; it is replaced if it exists.
        num_workers: how many worker tracks to name.
        max_events: events after which the trace stops and says so in its last event.

    Raises:
        ArgumentError: the file cannot be written, or ``path`` is not a name.
    """

    def __init__(self, path: str | os.PathLike[str], num_workers: int, max_events: int = MAX_EVENTS) -> None:
        self.path = path_text("path", path, "the name of a file")
        whole_number("max_events", max_events, 1)  # before the file is emptied
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ArgumentError(f"cannot write the trace to {self.path!r}: {error.strerror}") from error
        # Both clocks are read once, so that the distances between events are those of the monotonic one.
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self._left = max_events
        self._max_events = max_events
        self._pid = os.getpid()
        self._writer = TraceFile(fd, self.path)
        self._lock = threading.RLock()  # a signal handler or a finalizer may come back while it is held
        self._ended: dict[int, int] = {}
        """When the last slice of each track ended, on the monotonic clock."""
        self._lanes: list[int] = []
        """The series that each stream track showed last."""
        self._stop_by_s = 0.0
        """Until when :meth:`stop` waits, on the monotonic clock; 0 before the first call."""
        self._num_named = num_workers
        """How many workers' tracks have a name."""
        self._name_tracks(num_workers)
        self._finalizer = weakref.finalize(self, self._writer.end)
        self._finalizer.atexit = False

    @property
    def is_over(self) -> bool:
        """Whether recording has ended: the trace is stopped or full, or its storage refuses more."""
        return self._writer.is_over

    def stop(self) -> None:
        """Writes the remaining events and closes the file. May be called again.

        If storage does not answer for five seconds, this warns and returns; the file may lack its end then.
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
        """Shows the time of a ``with`` block on the track "training", for example a training step.

        Spans of one trace must not overlap, except that one lies within another.
        """
        started_ns = time.monotonic_ns()
        try:
            yield
        finally:
            self.add_span(name, started_ns, time.monotonic_ns())

    def add_span(self, name: str, started_ns: int, ended_ns: int) -> None:
        """Shows a span on the track "training"; both times are those of ``time.monotonic_ns()``."""
        if self.is_over:
            return
        self._put([self._slice(_SPAN_TRACK, name, started_ns, ended_ns)])

    # Called by the counters; see mploader.monitoring.counters.Listener

    def made(self, event: BatchMade) -> None:
        """A worker has made a batch."""
        if self.is_over:
            return
        track = _WORKER_TRACK + event.worker
        start, end = event.started_ns, event.started_ns + event.busy_ns
        shown = []
        with self._lock:
            added = range(self._num_named, event.worker + 1)  # workers that were added since
            shown += [self._name(_WORKER_TRACK + index, f"worker {index}") for index in added]
            self._num_named = max(self._num_named, event.worker + 1)
            idle_since = self._ended.get(track, end)
            self._ended[track] = max(end, idle_since)
        if start - idle_since > SHOWN_NS:
            shown.append(self._slice(track, "idle", idle_since, start))
        if event.input is None:
            name = f"batch {event.epoch}:{event.batch_index}"
        else:
            name = f"input {event.input}, batch {event.batch_index}"
        facts = {"samples": event.samples, "bytes": event.batch_bytes, "attempt": event.attempt,
                 "slot": event.slot, "cpu ms": event.cpu_ns / 1e6}  # fmt: skip
        shown.append(self._slice(track, name, start, end, facts))
        at = start
        for stage, length in (("read", event.read_ns), ("transform", event.transform_ns), ("write", event.write_ns)):
            length = min(length, end - at)
            if length > 0:
                shown.append(self._slice(track, stage, at, at + length))
            at += length
        self._put([*shown, self._counter(event.at_ns, event.slots)])

    def restarted(self, event: WorkerRestarted) -> None:
        """A worker is replaced."""
        if self.is_over:
            return
        track = _WORKER_TRACK + event.worker
        with self._lock:
            self._ended[track] = event.at_ns
        self._put([{**self._event("i", track, "worker replaced", event.at_ns), "s": "t"}])

    def delivered(self, event: BatchDelivered) -> None:
        """A consumer has got a batch."""
        if self.is_over:
            return
        track = self._lane(event)
        shown = []
        if event.previous_ns is not None:
            shown.append(self._slice(track, "training step", event.previous_ns, event.asked_ns))
        name = f"wait for batch {event.batch_index}"
        facts = {"series": event.series, "samples": event.samples, "copied": event.copied, "bad": event.bad}
        shown.append(self._slice(track, name, event.asked_ns, event.got_ns, facts))
        self._put([*shown, self._counter(event.got_ns, event.slots)])

    # Inside

    def _lane(self, event: BatchDelivered) -> int:
        """The track of a series: one on which nothing overlaps, the same as before where possible."""
        start = event.asked_ns if event.previous_ns is None else event.previous_ns
        with self._lock:
            fitting = [lane for lane in range(len(self._lanes)) if self._ended[_STREAM_TRACK + lane] <= start]
            fitting.sort(key=lambda lane: self._lanes[lane] != event.series)
            lane = fitting[0] if fitting else len(self._lanes)
            track = _STREAM_TRACK + lane
            is_new = lane == len(self._lanes)
            if is_new:
                self._lanes.append(event.series)
            self._lanes[lane] = event.series
            self._ended[track] = event.got_ns
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
        # Start and end are both rounded down to whole microseconds. A reader that keeps times since 1970 in a double
        # would round a fraction, and Perfetto drops a slice that then exceeds the one around it.
        event = self._event("X", track, name, start)
        event["dur"] = max(0, (self._epoch_ns + end) // 1000 - event["ts"])
        return event if facts is None else {**event, "args": facts}

    def _counter(self, at_ns: int, slots: SlotCounts) -> Event:
        return {**self._event("C", 0, "slots", at_ns), "args": slots._asdict()}

    def _put(self, events: list[Event]) -> None:
        with self._lock:
            if self.is_over:
                return
            self._left -= len(events)
            self._writer.put(events)
            if self._left <= 0:
                self._end_early(f"it is full after {self._max_events:,} events; raise max_events= to record more")
            elif self._writer.pending > MAX_PENDING:
                self._end_early(f"its storage is so slow that {MAX_PENDING:,} events wait for it")

    def _end_early(self, reason: str) -> None:
        name = f"the trace stops here: {reason}"
        self._writer.put([{**self._event("i", 0, name, time.monotonic_ns()), "s": "g"}])
        self._writer.end(reason)
