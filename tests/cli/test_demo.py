"""``mploader demo``: what it reads, trains on and prints, and that it leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mploader import SampleError
from mploader.cli.commands import demo
from mploader.cli.demo_samples import Augment, count_classes, picture_and_label, plain_elements
from mploader.cli.synthetic_data import synthesize
from mploader.sources import ImageFolder, TarShards, TFRecordShards

ROOT = Path(__file__).parents[2]
COUNT = 48


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures of four classes in each format."""
    directory = tmp_path_factory.mktemp("data")
    for format in ("folder", "tfrecord", "tar"):
        synthesize(directory / format, format=format, count=COUNT, classes=4, shard_size=20)
    return directory


def files_below(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the command in a process of its own, whose temporary and home folders are under watch."""
    for folder in ("temporary", "home"):
        (tmp_path / folder).mkdir()

    def start(*arguments: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(tmp_path / "temporary"),
            "HOME": str(tmp_path / "home"),
            "COLUMNS": "100",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "mploader", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.mark.parametrize("format", ["folder", "tfrecord", "tar"])
def test_the_demo_reads_the_same_from_each_format(format: str, data: Path) -> None:
    source = {"folder": ImageFolder, "tfrecord": TFRecordShards, "tar": TarShards}[format](data / format)
    # Folders hold one class after the other, shards the pictures in the order in which they were drawn.
    drawn = [(data / "folder" / f"class_{index % 4:02d}" / f"{index:06d}.jpg").read_bytes() for index in range(COUNT)]
    expected = sorted((picture, index % 4) for index, picture in enumerate(drawn))
    assert sorted(picture_and_label(source[index]) for index in range(COUNT)) == expected
    assert count_classes(source) == 4


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_the_demo_counts_classes_past_what_is_damaged(damage: str, tmp_path: Path) -> None:
    synthesize(tmp_path, format="tfrecord", count=8, classes=4)
    (shard,) = tmp_path.iterdir()
    content = bytearray(shard.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 4
    else:
        del content[-100:]
    shard.write_bytes(content)
    source = TFRecordShards(tmp_path, save_index=False)
    with pytest.raises(SampleError):
        list(source)
    assert count_classes(source) == 4


def test_the_demo_without_a_single_label_reports_the_first_sample(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"none of the 2 samples .* The first: .* keys 'txt'"):
        count_classes([{"txt": b"x"}, {"png": b"x"}])


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"__key__": "a", "txt": b"x"}, "no picture with a label in a sample with the keys '__key__', 'txt'"),
        ({"jpg": b"x", "cls": b"cat"}, "label is b'cat'"),
        ({"image": b"x", "label": np.array([1, 2])}, "label is array"),
        ({"image": [], "label": np.array([1])}, "no picture"),
    ],
)
def test_the_demo_reports_samples_that_it_cannot_use(sample: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleError, match=re.escape(message)):
        picture_and_label(sample)


def test_the_demo_refuses_a_label_beyond_the_classes_that_it_found(data: Path) -> None:
    sample = ImageFolder(data / "folder")[COUNT - 1]
    picture, label = Augment(32, classes=4)(sample, np.random.default_rng(0))
    assert (picture.shape, picture.dtype, label) == ((32, 32, 3), np.uint8, 3)
    with pytest.raises(SampleError, match="the label is 3: expected one below 3"):
        Augment(32, classes=3)(sample, np.random.default_rng(0))


def test_the_plain_pipeline_skips_what_pillow_cannot_read(data: Path) -> None:
    good = ImageFolder(data / "folder")[0]
    elements = list(plain_elements([good, (b"no picture", 1), good], [0, 1, 2], Augment(32, 4), seed=0))
    assert [(picture.shape, picture.dtype, label) for picture, label in elements] == [((32, 32, 3), np.uint8, 0)] * 2


def test_demo_on_tfrecord_shards(data: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    # Shards in two folders, in one of which no index could be kept.
    for folder, names in (("a", "*-0000[01]-*"), ("b", "*-00002-*")):
        (tmp_path / folder).mkdir()
        for shard in (data / "tfrecord").glob(names):
            shutil.copy(shard, tmp_path / folder)
    (tmp_path / "b" / "tfrecord.mpl-index").mkdir()
    before = files_below(tmp_path)
    shards = f"{tmp_path}/{{a,b}}/*.tfrecord"
    out, err = finished(command("demo", "--data", shards, "--size", "64", "--batch-size", "16"))
    assert err == ""
    assert f"{COUNT} records in 3 shards" in out
    assert f"epoch 2: {COUNT} pictures in" in out
    check_table(out)
    assert files_below(tmp_path) == before


def test_demo_replaces_what_cannot_be_read_and_names_it(tmp_path: Path, command: Callable[..., Any]) -> None:
    synthesize(tmp_path / "data", format="tar", count=32, classes=2)
    (shard,) = (tmp_path / "data").iterdir()
    content = shard.read_bytes()
    first = content.index(b"\xff\xd8\xff")
    shard.write_bytes(content[:first] + bytes(3) + content[first + 3 :])
    before = files_below(tmp_path)
    out, err = finished(command("demo", "--data", str(shard), "--size", "64"))
    assert err == ""
    assert out.count(f"replaced: {shard}, sample 0 at byte 0: SampleError: ") == 1  # though it is bad in two epochs
    assert "replaced because they are bad: 1 sample" in out
    assert "process: 31 pictures in" in out
    check_table(out)
    assert files_below(tmp_path) == before


def test_demo_makes_data_and_leaves_nothing(tmp_path: Path, command: Callable[..., Any]) -> None:
    out, err = finished(command("demo", "--samples", "40", "--batch-size", "16", "--workers", "1", "--size", "64"))
    assert err == ""
    assert "40 images of 10 classes" in out
    assert "epoch 2: 32 pictures in" in out
    check_table(out)
    assert files_below(tmp_path) == {}


def test_demo_on_a_file_that_is_not_a_picture(tmp_path: Path, command: Callable[..., Any]) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "1.jpg").write_bytes(b"no picture")
    process = command("demo", "--data", str(tmp_path / "data"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("mploader demo: none of the samples that were tried could be made into an element")
    assert re.search(rf"sample 0 \({tmp_path}/data/a/1\.jpg\) failed in worker \d: SampleError: ", err), err
    assert "Traceback" not in err


def test_ctrl_c_ends_the_demo_quietly_and_leaves_nothing(tmp_path: Path, command: Callable[..., Any]) -> None:
    process = command("demo", "--samples", "64", "--size", "64")
    assert any(line.startswith("epoch 1: ") for line in process.stdout)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    assert files_below(tmp_path) == {}
    assert psutil.wait_procs(workers, timeout=2)[1] == []


def test_a_signal_to_terminate_leaves_nothing(tmp_path: Path, command: Callable[..., Any]) -> None:
    process = command("demo", "--samples", "100000")
    while not list(tmp_path.rglob("*.jpg")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, "")
    assert files_below(tmp_path) == {}


def test_ctrl_c_while_the_demo_tidies_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = shutil.rmtree

    def interrupted(*arguments: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        remove(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt), demo.temporary_folder() as folder:
        Path(folder, "file").write_bytes(b"")
    assert list(tmp_path.iterdir()) == []


def test_a_single_class_is_always_classified_correctly() -> None:
    from mploader.cli.demo_training import classifier

    model = classifier(16, classes=1, batch_size=2)
    model.layers[-1].bias.assign([5.0])  # whatever its output for the only class
    pictures, labels = np.zeros((2, 16, 16, 3), np.uint8), np.zeros(2, np.int64)
    assert model.train_on_batch(pictures, labels, return_dict=True)["accuracy"] == 1.0


def finished(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return out, err


def check_table(out: str) -> None:
    """Every row has a title and a figure for each of two epochs and for the plain pipeline."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    titles = (
        "images/s", "training waited for data", "CPU of the trainer, cores", "CPU of the workers, cores",
        "slots borrowed, at most", "batches copied", "workers restarted", "accuracy",
    )  # fmt: skip
    assert [row[0].partition(" (")[0] for row in rows] == list(titles)
    figures = {row[0].partition(" (")[0]: row[1:] for row in rows}
    assert all(re.fullmatch(r"[\d,]+", figure) for figure in figures["images/s"])
    assert all(re.fullmatch(r"\d+%", figure) for figure in figures["training waited for data"])
    assert all(re.fullmatch(r"\d+ of \d+", figure) for figure in figures["slots borrowed, at most"][:2])
    assert figures["workers restarted"] == ["0", "0", "-"]
    assert re.search(r"Epoch 2 was [\d.]+ times as fast", out)
