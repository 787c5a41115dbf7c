"""What the loader does, beside what Keras and TensorFlow show: scalars, a line an epoch, one timeline for both."""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mploader._util import resources
from mploader.errors import ArgumentError
from mploader.loader.loader import Loader, check_loader
from mploader.monitoring.bottleneck import explain
from mploader.monitoring.statistics import Statistics
from mploader.monitoring.trace_file import read_events

SCALARS: Mapping[str, Callable[[Statistics], float]] = {
    "loader/samples_per_s": lambda epoch: epoch.samples_per_s,
    "loader/waiting": lambda epoch: epoch.waiting,
    "loader/waited_s": lambda epoch: epoch.waited_s,
    "loader/computing_s": lambda epoch: epoch.computing_s,
    "loader/read_s": lambda epoch: sum(worker.read_s for worker in epoch.workers),
    "loader/transform_s": lambda epoch: sum(worker.transform_s for worker in epoch.workers),
    "loader/write_s": lambda epoch: sum(worker.write_s for worker in epoch.workers),
    "loader/batches_copied": lambda epoch: epoch.batches_copied,
    "loader/bad_samples": lambda epoch: epoch.bad_samples,
    "loader/restarts": lambda epoch: epoch.restarts,
}
"""What is written for each epoch; the names are those of :class:`mploader.Statistics`."""


# What tf.summary.scalar writes; that function itself needs TensorBoard to be installed where training runs.
_SCALAR = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "scalars"})


class StatisticsCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Tells of a loader during ``model.fit``: a line an epoch, scalars for TensorBoard, training steps in its timeline.

    Args:
        loader: the loader that training reads.
        log_dir: where TensorBoard looks; scalars are written to its sub-folder ``loader``, one point an epoch. None:
            none are written.
        print_line: called with the line of each epoch. None: no lines.
    """

    def __init__(
        self,
        loader: Loader,
        log_dir: str | os.PathLike[str] | None = None,
        print_line: Callable[[str], Any] | None = print,
    ) -> None:
        super().__init__()
        self._loader = check_loader("StatisticsCallback", loader)
        self._print_line = print_line
        self._folder = None if log_dir is None else os.path.join(os.fspath(log_dir), "loader")
        self._writer: Any = None
        self._before = loader.statistics()
        self._step_ns = 0

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Opens a file of scalars: one for each ``fit``."""
        if self._folder is not None:
            self._writer = tf.summary.create_file_writer(self._folder)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Remembers what was before the epoch."""
        self._before = self._loader.statistics()

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """A training step begins."""
        self._step_ns = time.monotonic_ns()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """A training step has ended."""
        trace = self._loader.current_trace
        if trace is not None:
            trace.add_span(f"step {batch}", self._step_ns, time.monotonic_ns())

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Writes the scalars and prints the line."""
        passed = self._loader.statistics().since(self._before)
        if self._writer is not None:
            with self._writer.as_default():
                for name, value in SCALARS.items():
                    tf.summary.write(name, np.float32(value(passed)), step=epoch, metadata=_SCALAR)
            self._writer.flush()
        if self._print_line is not None:
            self._print_line(f"epoch {epoch + 1}: {describe(passed)}")

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Closes the file of scalars."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def describe(statistics: Statistics) -> str:
    """Some statistics in one line."""
    diagnosis = explain(statistics, resources.usable_cpus())
    line = (
        f"{statistics.samples_per_s:,.0f} samples/s, training waited {diagnosis.waiting:.0%} of its time for data, "
        f"workers busy {diagnosis.busy:.0%}; bottleneck: {diagnosis.bottleneck.value}"
    )
    extras = [
        f"{count:,} {name}" for name, count in (("bad samples", statistics.bad_samples),
                                                ("workers replaced", statistics.restarts)) if count
    ]  # fmt: skip
    return "; ".join([line, *extras])


def merge_profile(
    trace: str | os.PathLike[str], log_dir: str | os.PathLike[str], output: str | os.PathLike[str]
) -> None:
    """Writes a loader's timeline and TensorFlow's profile of the same run into one file for https://ui.perfetto.dev.

    TensorFlow counts the times of a profile from its start, and keeps that start, in nanoseconds since 1970, beside
    the events (in the plane "Task Environment" of the ``.xplane.pb`` file, as ``profile_start_time``). The loader's
    timeline has times since 1970 of the same clock. So the start is all that it takes.

    Args:
        trace: what :meth:`mploader.Loader.trace` has written; it may be incomplete.
        log_dir: the folder given to ``tf.profiler.experimental.start`` or the TensorBoard callback; the newest profile
            in it is taken.
        output: where to write.

    Raises:
        ArgumentError: there is no profile, or a file cannot be read or written.
    """
    pattern = os.path.join(glob.escape(os.fspath(log_dir)), "**", "*.xplane.pb")
    profiles = sorted(glob.glob(pattern, recursive=True), key=os.path.getmtime)
    if not profiles:
        raise ArgumentError(f"no profile (*.xplane.pb) is below {os.fspath(log_dir)!r}")
    events = [*read_events(trace), *_profile_events(profiles[-1])]
    try:
        with open(output, "w") as file:
            json.dump(events, file, separators=(",", ":"))
    except OSError as error:
        raise ArgumentError(f"cannot write to {os.fspath(output)!r}: {error.strerror}") from error


def _profile_events(path: str) -> Iterator[dict[str, Any]]:
    from tensorflow.tsl.profiler.protobuf import xplane_pb2  # slow to import, and seldom wanted

    space = xplane_pb2.XSpace()
    with open(path, "rb") as file:
        space.ParseFromString(file.read())
    start_ns = _profile_start(space)
    for number, plane in enumerate(space.planes, 1):
        if not plane.lines:
            continue
        process = -number  # no process has such a number, so that the trainer's own tracks stay apart
        about = {"name": f"TensorFlow {plane.name}"}
        yield {"ph": "M", "pid": process, "tid": 0, "name": "process_name", "args": about}
        for track, line in enumerate(plane.lines):
            name = line.display_name or line.name
            yield {"ph": "M", "pid": process, "tid": track, "name": "thread_name", "args": {"name": name}}
            for event in line.events:
                begin_ns = start_ns + line.timestamp_ns + event.offset_ps // 1000
                end_ns = start_ns + line.timestamp_ns + (event.offset_ps + event.duration_ps) // 1000
                yield {
                    "ph": "X", "pid": process, "tid": track, "name": plane.event_metadata[event.metadata_id].name,
                    "ts": begin_ns // 1000, "dur": end_ns // 1000 - begin_ns // 1000,
                }  # fmt: skip


def _profile_start(space: Any) -> int:
    for plane in space.planes:
        for stat in plane.stats:
            if plane.stat_metadata[stat.metadata_id].name == "profile_start_time":
                return int(stat.uint64_value)
    raise ArgumentError("the profile does not say when it started (no profile_start_time); it is of another version")
