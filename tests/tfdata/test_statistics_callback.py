"""The statistics callback for Keras, and one timeline with TensorFlow's profile."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

import mploader
from mploader.errors import ArgumentError
from mploader.monitoring.trace_file import read_events

pytestmark = pytest.mark.usefixtures("workers_in_threads")

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")


def vector_and_label(sample: int) -> tuple[np.ndarray, int]:
    if sample == 7:
        raise ValueError("a bad sample")
    return np.full(4, sample, np.float32), sample % 2


@pytest.mark.processes
def test_fit_prints_a_line_an_epoch_and_writes_scalars_and_steps(tmp_path: pathlib.Path) -> None:
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    lines: list[str] = []
    with mploader.Loader(
        range(40), vector_and_label, batch_size=8, num_workers=1, on_bad_sample="drop", trace=tmp_path / "run.json"
    ) as loader:
        callback = mploader.tfdata.StatisticsCallback(loader, tmp_path, lines.append)
        model.fit(loader.as_dataset(), epochs=2, verbose=0, callbacks=[callback])
    assert [line.split(":")[0] for line in lines] == ["epoch 1", "epoch 2"]
    assert all("samples/s" in line and "bottleneck: " in line for line in lines)
    assert "1 bad samples" in lines[1]
    written: dict[str, list[float]] = {}
    (file,) = (tmp_path / "loader").iterdir()
    for event in tf.compat.v1.train.summary_iterator(str(file)):
        for value in event.summary.value:
            written.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
    assert set(written) == set(mploader.tfdata.statistics_callback.SCALARS)
    assert written["loader/bad_samples"] == [1, 1]
    assert all(value > 0 for value in written["loader/samples_per_s"])
    steps = [event["name"] for event in read_events(tmp_path / "run.json") if event["name"].startswith("step ")]
    assert steps == [f"step {number}" for _ in range(2) for number in range(5)]


def test_one_callback_serves_one_fit_after_the_other(tmp_path: pathlib.Path) -> None:
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    lines: list[str] = []
    with mploader.Loader(range(4), vector_and_label, batch_size=2, num_workers=1) as loader:
        callback = mploader.tfdata.StatisticsCallback(loader, tmp_path, lines.append)
        dataset = loader.as_dataset()
        for first in range(2):
            model.fit(dataset, initial_epoch=first, epochs=first + 1, verbose=0, shuffle=False, callbacks=[callback])
    assert [line.split(":")[0] for line in lines] == ["epoch 1", "epoch 2"]
    steps = [
        event.step for file in sorted((tmp_path / "loader").iterdir())
        for event in tf.compat.v1.train.summary_iterator(str(file)) if event.summary.value
    ]  # fmt: skip
    assert set(steps) == {0, 1}


def test_the_profile_of_tensorflow_and_the_timeline_have_one_clock(tmp_path: pathlib.Path) -> None:
    with (
        mploader.Loader(range(40), batch_size=8, num_workers=1) as loader,
        loader.trace(tmp_path / "run.json") as trace,
    ):
        tf.profiler.experimental.start(str(tmp_path / "profile"))
        for number, _ in enumerate(loader):
            with trace.span(f"ours {number}"), tf.profiler.experimental.Trace(f"theirs {number}"):
                tf.constant(number) + 1
        tf.profiler.experimental.stop()
    mploader.tfdata.merge_profile(tmp_path / "run.json", tmp_path / "profile", tmp_path / "both.json")
    events = {event["name"]: event for event in json.loads((tmp_path / "both.json").read_text()) if event["ph"] == "X"}
    for number in range(5):
        ours, theirs = events[f"ours {number}"], events[f"theirs {number}"]
        assert ours["pid"] != theirs["pid"]
        # One encloses the other in the program, so it must in the file; clocks may be adjusted by some microseconds.
        assert ours["ts"] - 1_000 <= theirs["ts"]
        assert theirs["ts"] + theirs["dur"] <= ours["ts"] + ours["dur"] + 1_000


def test_a_folder_without_a_profile_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ArgumentError, match="no profile"):
        mploader.tfdata.merge_profile(tmp_path / "run.json", tmp_path, tmp_path / "both.json")


def test_a_timeline_that_was_cut_off_can_be_read(tmp_path: pathlib.Path) -> None:
    whole = '[\n{"ph":"X","name":"a"},\n{"ph":"X","name":"b"}'
    path = tmp_path / "run.json"
    for text, names in ((whole + "\n]\n", "ab"), (whole, "ab"), (whole[:-4], "a")):
        path.write_text(text)
        assert [event["name"] for event in read_events(path)] == list(names)
    path.write_text("no timeline")
    with pytest.raises(ArgumentError, match="cannot read the timeline"):
        read_events(path)
