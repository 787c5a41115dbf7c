"""One timeline from the loader's trace and TensorFlow's profile."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator
from typing import Any

from mploader.errors import ArgumentError
from mploader.monitoring.trace_file import read_events


def merge_profile(
    trace: str | os.PathLike[str], log_dir: str | os.PathLike[str], output: str | os.PathLike[str]
) -> None:
    """Writes a loader's timeline and TensorFlow's profile of the same run into one file for https://ui.perfetto.dev.

    TensorFlow counts the times of a profile from its start, and stores that start, in nanoseconds since 1970, with the
    events (``profile_start_time`` in the plane "Task Environment" of the ``.xplane.pb`` file). The loader's timeline
    has times since 1970 on the same clock, so adding the start is enough.

    Args:
        trace: the file that :meth:`mploader.Loader.trace` has written; it may be incomplete.
        log_dir: the folder given to ``tf.profiler.experimental.start`` or the TensorBoard callback; its newest profile
            is used.
        output: the file to write.

    Raises:
        ArgumentError: there is no profile, or a file cannot be read or written.
    """
    pattern = os.path.join(glob.escape(os.fspath(log_dir)), "**", "*.xplane.pb")
    profiles = sorted(glob.glob(pattern, recursive=True), key=os.path.getmtime)
    if not profiles:
        raise ArgumentError(f"log_dir={os.fspath(log_dir)!r}: found no profile (*.xplane.pb) below it")
    events = [*read_events(trace), *_profile_events(profiles[-1])]
    try:
        with open(output, "w") as file:
            json.dump(events, file, separators=(",", ":"))
    except OSError as error:
        raise ArgumentError(f"cannot write to {os.fspath(output)!r}: {error.strerror}") from error


def _profile_events(path: str) -> Iterator[dict[str, Any]]:
    from tensorflow.tsl.profiler.protobuf import xplane_pb2  # slow to import, and seldom needed

    space = xplane_pb2.XSpace()
    with open(path, "rb") as file:
        space.ParseFromString(file.read())
    start_ns = _profile_start(space)
    for number, plane in enumerate(space.planes, 1):
        if not plane.lines:
            continue
        process = -number  # no process has such a number, so the trainer's own tracks stay separate
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
    raise ArgumentError("the profile has no profile_start_time: its version of TensorFlow is not supported")
