"""The timeline: the events in the file, its bounds, and that a killed trainer leaves a readable one."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mploader import Loader
from mploader.errors import ArgumentError
from mploader.monitoring import trace as tracing
from mploader.monitoring.events import BatchMade, SlotCounts
from mploader.monitoring.trace import Trace
from mploader.monitoring.trace_file import read_events

pytestmark = pytest.mark.usefixtures("workers_in_threads")

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def slow_picture(sample: int) -> np.ndarray:
    time.sleep(0.001)
    return np.full(64, sample % 256, np.uint8)


def events_of(path: pathlib.Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text()))


def tracks_of(events: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The slices of each track, by the track's name, in the order of their starts, outer slices first."""
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    slices = sorted((event for event in events if event["ph"] == "X"), key=lambda event: (event["ts"], -event["dur"]))
    return {name: [event for event in slices if event["tid"] == track] for track, name in names.items()}


def assert_nested(slices: list[dict[str, Any]]) -> None:
    """No two slices of a track overlap unless one lies within the other: Perfetto shows nothing else right."""
    open_ends: list[int] = []
    for piece in slices:
        assert type(piece["ts"]) is type(piece["dur"]) is int
        start, end = piece["ts"], piece["ts"] + piece["dur"]
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        assert not open_ends or end <= open_ends[-1], piece
        open_ends.append(end)


@pytest.mark.processes
def test_every_batch_is_on_its_tracks(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.json"
    before = time.time()
    with Loader(range(40), slow_picture, batch_size=4, num_workers=2, trace=path) as loader:
        for _ in loader:
            time.sleep(0.001)
    events = events_of(path)
    tracks = tracks_of(events)
    made = [event for name in ("worker 0", "worker 1") for event in tracks[name] if event["name"].startswith("batch")]
    assert {f"batch 0:{index}" for index in range(10)} <= {event["name"] for event in made}
    assert sum(event["args"]["samples"] for event in made if event["name"].startswith("batch 0:")) == 40
    waits = [event["name"] for event in tracks["stream 0"] if event["name"] != "training step"]
    assert waits == [f"wait for batch {index}" for index in range(10)]
    assert len(tracks["stream 0"]) - len(waits) == 9
    for slices in tracks.values():
        assert_nested(slices)
    # Every slot is in one state, at every moment.
    counts = [event["args"] for event in events if event["ph"] == "C"]
    assert len({sum(count.values()) for count in counts}) == 1
    times = [event["ts"] / 1e6 for event in events if "ts" in event]
    assert before <= min(times) <= max(times) <= time.time()


def test_workers_that_are_added_while_it_is_written_have_named_tracks(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.json"
    with Loader(range(80), slow_picture, batch_size=2, num_workers=1, trace=path) as loader:
        loader._core.pool.add_workers(1)
        loader._core.pool.add_slots(4)
        for _ in range(30):
            for _ in loader:
                pass
            if loader.statistics().workers[1].batches:
                break
    assert any(event["name"].startswith("batch") for event in tracks_of(events_of(path))["worker 1"])


def test_two_consumers_at_once_have_a_track_each(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.json"
    with Loader(range(20), slow_picture, batch_size=2, num_workers=2) as loader, loader.trace(path):
        for _ in zip(loader, loader, strict=True):
            pass
        for _ in loader:
            pass
    tracks = tracks_of(events_of(path))
    assert {name for name in tracks if name.startswith("stream")} == {"stream 0", "stream 1"}
    for slices in tracks.values():
        assert_nested(slices)


def test_a_span_of_training_is_shown(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.json"
    with Loader(range(8), slow_picture, batch_size=2, num_workers=1) as loader:
        with loader.trace(path) as trace:
            for _ in loader:
                with trace.span("step"), trace.span("update"):
                    pass
    shown = tracks_of(events_of(path))["training"]
    assert sorted(event["name"] for event in shown) == ["step"] * 4 + ["update"] * 4
    assert_nested(shown)


def test_a_trace_stops_when_it_is_full_and_says_so(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "run.json"
    with Loader(range(100), slow_picture, batch_size=1, num_workers=1) as loader:
        trace = loader.trace(path, max_events=50)
        sum(1 for _ in loader)
        assert trace.is_over
    events = events_of(path)
    assert 50 <= len(events) < 70
    assert events[-1]["name"].startswith("the trace stops here: it is full after 50 events")
    (warning,) = caplog.records
    assert "full after 50 events" in warning.message
    assert warning.threadName == "mploader trace"  # not a thread that others wait for


def test_one_trace_at_a_time(tmp_path: pathlib.Path) -> None:
    with Loader(range(8), slow_picture, batch_size=2, num_workers=1) as loader:
        first = loader.trace(tmp_path / "first.json")
        with pytest.raises(ArgumentError, match=r"a trace is under way, to .*first\.json"):
            loader.trace(tmp_path / "second.json")
        first.stop()
        first.stop()
        sum(1 for _ in loader)
        with loader.trace(tmp_path / "second.json"):
            sum(1 for _ in loader)
    assert not [event for event in events_of(tmp_path / "first.json") if event["ph"] == "X"]
    assert [event for event in events_of(tmp_path / "second.json") if event["ph"] == "X"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ArgumentError, match=r"cannot write the trace to .*: No such file"):
        Loader(range(8), slow_picture, batch_size=2, num_workers=1, trace=tmp_path / "missing" / "run.json")


def test_a_path_that_is_not_text_is_refused() -> None:
    with pytest.raises(ArgumentError, match="path=5"):
        Trace(5, num_workers=1)  # type: ignore[arg-type]


def test_no_file_is_touched_for_a_trace_of_no_events(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("kept")
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(ArgumentError, match="max_events=0"):
        Trace(path, num_workers=1, max_events=0)
    assert path.read_text() == "kept"
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_trace_without_references_is_closed(tmp_path: pathlib.Path) -> None:
    trace = Trace(tmp_path / "run.json", num_workers=1)
    thread = trace._writer.thread
    del trace
    thread.join(10)
    assert not thread.is_alive()
    assert events_of(tmp_path / "run.json")[0]["args"] == {"name": "mploader"}


@pytest.fixture
def stuck(tmp_path: pathlib.Path) -> Iterator[tuple[pathlib.Path, int]]:
    """A file whose storage hangs: a pipe that is not read, and its reading end."""
    path = tmp_path / "stuck"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    yield path, reader
    os.close(reader)


def rest_of(reader: int, trace: Trace) -> str:
    """Reads the rest that a trace writes, until its thread has ended."""
    os.set_blocking(reader, True)
    text = "".join(iter(lambda: os.read(reader, 2**16).decode(), ""))
    trace._writer.thread.join()
    return text


@pytest.mark.timeout(60)
def test_storage_that_hangs_does_not_hold_up_the_end(
    stuck: tuple[pathlib.Path, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "STOP_S", 0.01)
    path, reader = stuck
    loader = Loader(range(100), slow_picture, batch_size=1, num_workers=1)
    trace = loader.trace(path)
    sum(1 for _ in loader)
    loader.close()
    trace.stop()
    assert [record.message for record in caplog.records] == [
        f"the trace {path} may lack its end: its storage has not answered for 0.01 s"
    ]
    assert json.loads(rest_of(reader, trace))


@pytest.mark.timeout(60)
def test_storage_that_is_too_slow_ends_the_trace(
    stuck: tuple[pathlib.Path, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "MAX_PENDING", 100)
    path, reader = stuck
    trace = Trace(path, num_workers=1)
    while not trace.is_over:
        trace.add_span("step", 0, 1000)
    assert trace._writer.pending <= 103
    events = json.loads(rest_of(reader, trace))
    assert events[-1]["name"] == "the trace stops here: its storage is so slow that 100 events wait for it"
    assert "100 events wait" in caplog.text


def test_a_trace_that_cannot_be_written_is_over(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    with Loader(range(8), slow_picture, batch_size=2, num_workers=1) as loader:
        refused = loader.trace("/dev/full")
        refused._writer.thread.join()
        assert refused.is_over
        assert "the trace /dev/full ends here: No space left" in caplog.text
        sum(1 for _ in loader)
        assert refused._writer.pending == 0
        with loader.trace(tmp_path / "run.json"):
            sum(1 for _ in loader)
    assert [event for event in events_of(tmp_path / "run.json") if event["ph"] == "X"]


def test_every_cut_of_a_file_can_be_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.json"
    with Trace(path, num_workers=1) as trace:
        trace.made(BatchMade(**{**dict.fromkeys(BatchMade._fields, 1), "input": None, "slots": SlotCounts()}))  # type: ignore[arg-type]
        trace.add_span('a {"name": [1]}, \n]', 0, 1000)
        trace.add_span("[", 1000, 2000)
    whole = path.read_text()
    events = json.loads(whole)
    ends = [cut for cut in range(len(whole)) if whole[:cut].endswith("}") and whole[cut : cut + 2] in (",\n", "\n]")]
    assert len(ends) == len(events)
    for cut in range(len(whole) + 1):
        path.write_text(whole[:cut])
        assert read_events(path) == events[: sum(end <= cut for end in ends)], whole[:cut]


TRAINER = """
import sys, numpy as np, mploader
loader = mploader.Loader(range(64), lambda i: np.full(64, i, np.uint8), batch_size=4, num_workers=1, trace=sys.argv[1])
while True:
    for _ in loader:
        print("batch", flush=True)
"""


def test_a_killed_trainer_leaves_a_readable_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.json"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", TRAINER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as trainer:
        assert trainer.stdout is not None
        # It reads until part of the file is written, however slow the machine is; then it kills the trainer.
        for _ in itertools.takewhile(lambda line: line and path.stat().st_size < 20_000, trainer.stdout):
            pass
        trainer.send_signal(signal.SIGKILL)
        trainer.stdout.read()
    assert not path.read_text().rstrip().endswith("]")
    # Readers of the array form do without its end; the kernel may have cut the last event, too.
    assert [event for event in read_events(path) if event["name"].startswith("batch 0:")]


FULL = """
import json, resource, sys, numpy as np, mploader
with mploader.Loader(range(64), lambda i: np.full(64, i, np.uint8), batch_size=4, num_workers=1) as loader:
    next(iter(loader))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_001, hard))  # as a disk that is full then
    trace = loader.trace(sys.argv[1])
    while not trace.is_over:
        list(loader)
    trace.stop()
    print(len(json.load(open(sys.argv[1]))))
"""


def test_a_trace_on_a_full_disk_ends_with_its_last_whole_event(tmp_path: pathlib.Path, run_script: Any) -> None:
    done = run_script(FULL, str(tmp_path / "run.json"))
    assert int(done.stdout) > 50
    assert "run.json ends here: File too large" in done.stderr
    assert 19_000 < (tmp_path / "run.json").stat().st_size <= 20_001
