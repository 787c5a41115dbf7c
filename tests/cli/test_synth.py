"""Synthetic photographs: read by the sources, the same for any number of workers, clean ends."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from PIL import Image

from mploader.cli import synthetic_data
from mploader.cli.synthetic_data import SynthReport, synthesize
from mploader.cli.synthetic_picture import encoded, label_of, picture
from mploader.errors import ArgumentError, LoaderError, ResourceError
from mploader.sources.image_folder import ImageFolder
from mploader.sources.tar import TarShards
from mploader.sources.tfrecord import TFRecordShards
from mploader.testing import faults


def files_of(directory: Path) -> dict[str, str]:
    """Every file below the directory, hidden ones too, with a hash of its bytes."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("format", ["folder", "tfrecord", "tar"])
def test_files_do_not_depend_on_the_number_of_workers(tmp_path: Path, format: str) -> None:
    written = []
    for num_workers in (1, 3):
        directory = tmp_path / str(num_workers)
        report = synthesize(
            directory, format=format, count=7, classes=3, shard_size=3, seed=4, num_workers=num_workers
        )
        written.append(files_of(directory))
        size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        assert report == SynthReport(files=7 if format == "folder" else 3, samples=7, bytes=size)
    assert written[0] == written[1]


@pytest.mark.usefixtures("workers_in_threads")
def test_an_image_folder_holds_the_pictures_by_class(tmp_path: Path) -> None:
    synthesize(tmp_path, count=5, classes=2, seed=1)
    assert list(files_of(tmp_path)) == [
        "class_00/000000.jpg", "class_00/000002.jpg", "class_00/000004.jpg",
        "class_01/000001.jpg", "class_01/000003.jpg",
    ]  # fmt: skip
    source = ImageFolder(tmp_path)
    assert list(source.class_names) == ["class_00", "class_01"]
    samples = [source[index] for index in range(len(source))]
    assert samples == [(encoded(1, index, 2), index % 2) for index in (0, 2, 4, 1, 3)]


@pytest.mark.usefixtures("workers_in_threads")
def test_tfrecord_shards_hold_examples_named_as_in_imagenet(tmp_path: Path) -> None:
    synthesize(tmp_path, format="tfrecord", count=5, classes=2, shard_size=2, seed=1)
    assert list(files_of(tmp_path)) == [f"train-{shard:05d}-of-00003.tfrecord" for shard in range(3)]
    source = TFRecordShards(str(tmp_path / "*.tfrecord"))
    assert len(source) == 5
    for index in range(5):
        sample: dict[str, Any] = source[index]
        assert sample["image/encoded"] == encoded(1, index, 2)
        assert np.ravel(sample["image/class/label"]).tolist() == [index % 2]
        assert sample["image/filename"] == b"%06d.jpg" % index


@pytest.mark.usefixtures("workers_in_threads")
def test_tar_shards_hold_pictures_and_labels_under_one_stem(tmp_path: Path) -> None:
    synthesize(tmp_path, format="tar", count=5, classes=2, shard_size=4, seed=1)
    assert list(files_of(tmp_path)) == ["train-000000.tar", "train-000001.tar"]
    source = TarShards(str(tmp_path / "*.tar"))
    assert len(source) == 5
    for index in range(5):
        sample = dict(source[index])
        assert sample.pop("__key__") == f"{index:06d}"
        assert sample == {"jpg": encoded(1, index, 2), "cls": b"%d" % (index % 2)}


@pytest.mark.usefixtures("workers_in_threads")
def test_progress_counts_every_picture(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    synthesize(
        tmp_path, format="tar", count=4, classes=2, shard_size=2, num_workers=2,
        progress=lambda done, count: seen.append((done, count)),
    )  # fmt: skip
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_size_and_dimensions_are_those_of_imagenet() -> None:
    data = [encoded(0, index, 10) for index in range(60)]
    dimensions = np.array([Image.open(io.BytesIO(jpeg)).size for jpeg in data])
    assert 85_000 < np.mean([len(jpeg) for jpeg in data]) < 140_000
    assert 150_000 < dimensions.prod(axis=1).mean() < 250_000
    assert np.median(dimensions.max(axis=1)) == 500
    assert len({tuple(size) for size in dimensions.tolist()}) > 8


def test_amplitudes_fall_as_in_photographs() -> None:
    slopes = []
    for index in range(12):
        grey = np.asarray(picture(0, index, 10).convert("L").resize((256, 256)), dtype=float)
        window = np.hanning(256)
        power = np.abs(np.fft.fft2((grey - grey.mean()) * window[:, None] * window[None, :])) ** 2
        frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None, :])
        ring = np.digitize(frequency, np.geomspace(4 / 256, 0.25, 12))
        mean_power = [power[ring == number].mean() for number in range(1, 12)]
        mean_frequency = [frequency[ring == number].mean() for number in range(1, 12)]
        slopes.append(np.polyfit(np.log(mean_frequency), np.log(mean_power), 1)[0] / 2)
    assert -1.5 < np.mean(slopes) < -0.7  # Field 1987: about -1; photographs range from -0.8 to -1.5


def test_the_class_can_be_learnt_from_the_colours() -> None:
    classes = 5

    def vivid_hues(index: int) -> npt.NDArray[np.float64]:
        pixels = np.asarray(picture(0, index, classes).resize((64, 64)).convert("HSV"))
        hue, saturation = pixels[:, :, 0], pixels[:, :, 1]
        counts = np.bincount(hue[saturation > 128] // 16, minlength=16).astype(np.float64)
        return np.divide(counts, max(1.0, float(counts.sum())))

    features = np.array([vivid_hues(index) for index in range(100)])
    labels = np.array([label_of(index, classes) for index in range(100)])
    centres = np.array([features[:50][labels[:50] == label].mean(axis=0) for label in range(classes)])
    distances = np.linalg.norm(features[50:, None] - centres[None], axis=2)
    assert (distances.argmin(axis=1) == labels[50:]).mean() > 0.7


def test_seeds_and_pictures_differ() -> None:
    assert len({encoded(seed, index, 2) for seed in (0, 2**70) for index in range(3)}) == 6


@pytest.mark.parametrize(
    ("format", "complete"),
    [
        ("folder", [f"class_{index % 2:02d}/{index:06d}.jpg" for index in (0, 2, 1, 3)]),
        ("tfrecord", ["train-00000-of-00003.tfrecord"]),
        ("tar", ["train-000000.tar"]),
    ],
)
def test_an_interrupted_run_leaves_complete_files_and_no_process(
    tmp_path: Path, format: str, complete: list[str]
) -> None:
    def interrupt(done: int, count: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    arguments: dict[str, Any] = {
        "format": format, "count": 9, "classes": 2, "shard_size": 3, "num_workers": 2,
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path, **arguments, progress=interrupt)
    interrupted = files_of(tmp_path)
    assert list(interrupted) == complete
    assert children() == []
    synthesize(tmp_path, **arguments)
    again = files_of(tmp_path)
    assert len(again) == (9 if format == "folder" else 3)
    assert {name: again[name] for name in complete} == interrupted


def children() -> list[psutil.Process]:
    return psutil.Process().children()


SCRIPT = """
import os, signal, sys
from mploader.cli.synthetic_data import synthesize

def progress(done, count):
    if done == 3:
        os.kill(os.getpid(), int(sys.argv[2]))

synthesize(sys.argv[1], format="tfrecord", count=6, classes=2, shard_size=2, progress=progress)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_a_script_without_a_guard_leaves_complete_files(
    tmp_path: Path, number: signal.Signals
) -> None:
    ended = subprocess.run(
        [sys.executable, "-", str(tmp_path), str(int(number))],
        input=SCRIPT.encode(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        timeout=60,
    )
    assert ended.returncode == -number, ended.stderr.decode()
    assert list(files_of(tmp_path)) == ["train-00000-of-00003.tfrecord"]


def test_modules_in_the_current_folder_are_not_taken_for_those_of_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "colorsys.py").write_text("raise ImportError('not this one')")
    monkeypatch.chdir(tmp_path)
    synthesize(tmp_path / "data", format="tar", count=1, classes=1)


@pytest.mark.usefixtures("workers_in_threads")
def test_what_a_killed_run_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f".train-00000-of-00001.tfrecord.{ended.pid}.tmp").write_bytes(b"half")
    (tmp_path / f".train-000000.tar.{os.getppid()}.tmp").write_bytes(b"being written")
    (tmp_path / ".mine.tmp").write_bytes(b"of another program")
    synthesize(tmp_path, format="tar", count=1, classes=1)
    live = f".train-000000.tar.{os.getppid()}.tmp"
    assert list(files_of(tmp_path)) == [".mine.tmp", live, "train-000000.tar"]


def test_a_worker_that_is_killed_changes_no_file(tmp_path: Path) -> None:
    def kill(done: int, count: int) -> None:
        if done == 3:
            for child in children():
                child.kill()

    for name, progress in (("killed", kill), ("whole", None)):
        synthesize(tmp_path / name, format="tar", count=40, classes=2, num_workers=1, progress=progress)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


@pytest.mark.processes
def test_workers_that_cannot_be_kept_alive_are_an_error_and_leave_no_file(tmp_path: Path) -> None:
    with faults("mid decode:*:KILL:*"), pytest.raises(LoaderError, match="SIGKILL"):
        synthesize(tmp_path, format="tar", count=9, classes=2, num_workers=1)
    assert files_of(tmp_path) == {}
    assert children() == []


def test_a_disk_that_is_full_is_an_error_and_leaves_complete_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.FileIO):
        """A file on a disk with room for one picture."""

        def write(self, data: Any) -> int:
            if "000002" in str(self.name):
                super().write(data[:100])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(synthetic_data, "open", Full, raising=False)
    with pytest.raises(ResourceError, match=r"after 2 of 6 pictures: .*No space left"):
        synthesize(tmp_path, count=6, classes=2, num_workers=1)
    assert list(files_of(tmp_path)) == ["class_00/000000.jpg", "class_01/000001.jpg"]
    assert children() == []


# SHA-256, shortened, of (name, zero byte, content) of all files. `not_drawn` stands for pictures: encoders change.
GOLDEN: list[tuple[dict[str, Any], str]] = [
    ({"format": "folder", "count": 7, "classes": 3}, "89f3ba83c052034f"),
    ({"format": "tfrecord", "count": 7, "classes": 3, "shard_size": 3}, "9f91e5de18b8f4fe"),
    ({"format": "tar", "count": 70, "classes": 12, "shard_size": 32}, "e11711447c16e795"),
]


def not_drawn(index: int) -> bytes:
    return b"picture %d" % index * (index + 1)


@pytest.mark.parametrize(("arguments", "golden"), GOLDEN, ids=["folder", "tfrecord", "tar"])
@pytest.mark.usefixtures("workers_in_threads")
def test_equal_arguments_give_the_files_that_were_recorded(
    arguments: dict[str, Any], golden: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic_data, "Draw", lambda seed, classes: not_drawn)
    synthesize(tmp_path, **arguments)
    content = hashlib.sha256()
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file():
            content.update(str(path.relative_to(tmp_path)).encode() + b"\0" + path.read_bytes())
    assert content.hexdigest()[:16] == golden


@pytest.mark.usefixtures("workers_in_threads")
def test_a_folder_with_other_data_is_refused(tmp_path: Path) -> None:
    synthesize(tmp_path, format="tar", count=2, classes=1, shard_size=1, num_workers=1)
    with pytest.raises(ArgumentError, match=r"train-000001.tar"):
        synthesize(tmp_path, format="tar", count=2, classes=1, shard_size=2)
    with pytest.raises(ArgumentError, match="train-00000"):
        synthesize(tmp_path, count=2, classes=1)
    assert sorted(files_of(tmp_path)) == ["train-000000.tar", "train-000001.tar"]


def test_a_folder_that_cannot_be_made_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="after 0 of 3 pictures"):
        synthesize(tmp_path / "file" / "data", count=3, classes=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "zip"}, "format='zip': expected one of 'folder', 'tfrecord', 'tar'"),
        ({"count": 0}, "count=0"),
        ({"classes": 0}, "classes=0"),
        ({"count": 3, "classes": 4}, "classes=4, count=3"),
        ({"shard_size": 0}, "shard_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"num_workers": 0}, "num_workers=0"),
    ],
)
def test_an_invalid_argument_is_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        synthesize(tmp_path / "data", **arguments)
    assert not (tmp_path / "data").exists()
