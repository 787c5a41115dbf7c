"""A timeline of a loader, for Perfetto (https://ui.perfetto.dev) and chrome://tracing.

Tracks: one for each worker (its batches, and within each what reading, the transform and writing took together), the
slots as a stacked counter, and one for each consumer at work at the same time (waiting for a batch, and the time until
it asks for the next: the training step).

A worker reports one sum a batch and stage; telling of each sample would cost more than it is worth. The slices of a
batch therefore lie end to end: their lengths are measured, their order within the batch is not.

Times are microseconds since 1970 (UTC), the clock of TensorFlow's profiler. Its files count from the start of the
profile; :func:`mploader.tfdata.merge_profile` puts both into one file.

The file is in the JSON array form, which readers accept without its end. A thread of the trace's own writes whole lines
every quarter of a second, so a trainer that is killed leaves a readable file, and storage that hangs holds up nobody.
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

from mploader import messages
from mploader.errors import ArgumentError
from mploader.statistics import Handover, SlotCounts

log = logging.getLogger("mploader")

MAX_EVENTS = 1_000_000
"""Events after which a trace stops by itself: about 130 MB, which Perfetto still opens."""
WRITE_S = 0.25
"""How often events are written."""

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
        ArgumentError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], num_workers: int, max_events: int = MAX_EVENTS) -> None:
        self.path = os.fspath(path)
        if max_events < 1:  # before the file is emptied
            raise ArgumentError(f"max_events={max_events}: wants at least 1")
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ArgumentError(f"cannot write the trace to {self.path!r}: {error.strerror}") from error
        # Two clocks are read once, so that all events have the steady one's distances.
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self._left = max_events
        self._max_events = max_events
        self._pid = os.getpid()
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._ended: dict[int, int] = {}
        """When the last slice of each track ended, on the monotonic clock."""
        self._lanes: list[int] = []
        """The run that each stream track showed last."""
        self._name_tracks(num_workers)
        self._thread = threading.Thread(target=_write, args=(self._queue, fd, self.path), name="mploader trace",
                                        daemon=True)  # fmt: skip
        self._thread.start()
        self._finalizer = weakref.finalize(self, self._queue.put, None)
        self._finalizer.atexit = False

    @property
    def is_over(self) -> bool:
        """Whether nothing is recorded any more: it is full, or stopped."""
        return self._left <= 0

    def stop(self) -> None:
        """Writes what is left and closes the file. May be called again."""
        with self._lock:
            self._left = 0
        self._finalizer()
        self._thread.join()

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
        self._put([self._slice(_SPAN_TRACK, name, started_ns, ended_ns)])

    # What the counters tell; see mploader.statistics.Listener

    def filled(self, worker: int, message: messages.Filled | messages.Drawn, now_ns: int, slots: SlotCounts) -> None:
        """A worker has made a batch."""
        track = _WORKER_TRACK + worker
        start, end = message.started_ns, message.started_ns + message.busy_ns
        events = []
        with self._lock:
            idle_since = self._ended.get(track, end)
            self._ended[track] = max(end, idle_since)
        if start - idle_since > SHOWN_NS:
            events.append(self._slice(track, "idle", idle_since, start))
        if isinstance(message, messages.Filled):
            name = f"batch {message.epoch}:{message.position}"
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
        track = _WORKER_TRACK + worker
        with self._lock:
            self._ended[track] = now_ns
        self._put([{**self._event("i", track, "worker replaced", now_ns), "s": "t"}])

    def delivered(self, handover: Handover, slots: SlotCounts) -> None:
        """A consumer has got a batch."""
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
            if self._left <= 0:
                return
            self._left -= len(events)
            is_full = self._left <= 0
        for event in events:
            self._queue.put(event)
        if is_full:
            name = f"the trace stops here: it has {self._max_events:,} events"
            self._queue.put({**self._event("i", 0, name, time.monotonic_ns()), "s": "g"})
            log.warning("the trace %s is full after %d events; pass more max_events= to see further", self.path,
                        self._max_events)  # fmt: skip
            self._queue.put(None)


def read_events(path: str | os.PathLike[str]) -> list[Event]:
    """Reads a timeline, also one that was cut off by the end of the trainer.

    Raises:
        ArgumentError: the file cannot be read, or is no timeline.
    """
    try:
        with open(path) as file:
            text = file.read().rstrip()
        complete = text if text.endswith("]") else text[: text.rfind("}") + 1] + "]"
        return list(json.loads(complete))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"cannot read the timeline {os.fspath(path)!r}: {error}") from error


def _write(queue: SimpleQueue[Event | None], fd: int, path: str) -> None:
    """The thread's body. It does not refer to the trace, so that a trace that nobody holds ends."""
    is_open, before = True, "[\n"
    try:
        while is_open:
            text: list[str] = []
            # Sleeps until something comes, then gathers what else there is.
            event = queue.get()
            with contextlib.suppress(Empty):
                while event is not None:
                    text += before, json.dumps(event, separators=(",", ":"))
                    before = ",\n"
                    event = queue.get_nowait()
                is_open = False
                text.append("\n]\n")
            _write_all(fd, "".join(text).encode())
            if is_open:
                time.sleep(WRITE_S)
    except OSError as error:
        log.warning("the trace %s ends here: %s", path, error.strerror)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data):]
