"""The command: what it prints, its exit status, and that it leaves nothing behind."""

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
from mploader.cli.main import main
from mploader.cli.synthetic_data import synthesize
from mploader.sources import ImageFolder, TarShards, TFRecordShards
from tests.http_storage import serve

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


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    named = re.findall(r"^    (\w+)  ", capsys.readouterr().out, re.MULTILINE)
    modules = (ROOT / "mploader" / "cli" / "commands").glob("*.py")
    assert set(named) == {path.stem for path in modules if "def add_parser" in path.read_text()}


@pytest.mark.parametrize(
    "arguments", [[], ["nothing"], ["synth"], ["synth", "x", "--count", "0"], ["synth", "x", "--seed", "-1"]]
)
def test_a_command_line_that_cannot_be_meant_is_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: mploader" in capsys.readouterr().err


def test_synth_writes_what_the_library_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--format", "tar", "--count", "7", "--classes", "3", "--shard-size", "4", "--seed", "5"]
    assert main(["synth", str(tmp_path / "by command"), *options]) == 0
    synthesize(tmp_path / "by library", format="tar", count=7, classes=3, shard_size=4, seed=5)
    assert files_below(tmp_path / "by command") == files_below(tmp_path / "by library")
    assert capsys.readouterr().out.startswith("7 pictures of 3 classes, ")


@pytest.mark.parametrize(
    ("format", "counted"), [("tfrecord", "TFRecord shards, 9 records"), ("tar", "tar shards, 9 samples")]
)
def test_index_counts_shards_records_and_bytes(
    format: str, counted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = synthesize(tmp_path, format=format, count=9, shard_size=4, classes=2).bytes
    shards = [str(path) for path in sorted(tmp_path.iterdir())]
    for patterns in ([str(tmp_path)], [f"{tmp_path}/*"], shards):
        assert main(["index", *patterns]) == 0
        assert capsys.readouterr().out.startswith(f"3 {counted}, {size:,} bytes")
    assert (tmp_path / f"{format}.mpl-index").exists()


def test_index_reads_shards_over_http(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    size = synthesize(tmp_path / "data", format="tar", count=4, shard_size=2, classes=2).bytes
    with serve(tmp_path / "data") as storage:
        assert main(["index", f"{storage.url}/train-{{000000,000001}}.tar"]) == 0
    assert capsys.readouterr().out.startswith(f"2 tar shards, 4 samples, {size:,} bytes")


def test_index_refuses_a_shard_that_was_cut_until_told_to_rebuild(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthesize(tmp_path, format="tfrecord", count=4, classes=2)
    (shard,) = tmp_path.glob("*.tfrecord")
    assert main(["index", str(shard)]) == 0
    third = int(re.findall(r"at byte (\d+)", TFRecordShards(shard).where(2))[0])
    os.truncate(shard, third)
    capsys.readouterr()
    assert main(["index", str(shard)]) == 1
    refused = capsys.readouterr()
    assert refused.out == ""
    assert "has been cut" in refused.err
    assert "mploader index --rebuild" in refused.err
    assert main(["index", "--rebuild", str(shard)]) == 0
    assert capsys.readouterr().out.startswith("1 TFRecord shard, 2 records")


@pytest.mark.parametrize("format", ["tfrecord", "tar"])
def test_index_names_damaged_shards_and_keeps_its_index(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthesize(tmp_path, format=format, count=9, shard_size=3, classes=2)
    first, _, last = sorted(tmp_path.glob(f"*.{format}"))
    for shard in (first, last):
        os.truncate(shard, shard.stat().st_size - 20_000)
    for _ in ("read through", "from the index"):
        assert main(["index", str(tmp_path)]) == 1
        counted, *damaged = capsys.readouterr().out.splitlines()
        assert counted.startswith(f"3 {'TFRecord' if format == 'tfrecord' else 'tar'} shards, 9 ")
        for line, shard in zip(damaged, (first, last), strict=True):
            place = rf"{shard}, (record|sample) 2 at byte \d+: the rest of the shard, \d+ bytes, cannot be read: "
            assert re.match(place, line)
        assert (tmp_path / f"{format}.mpl-index").exists()


def test_a_damaged_shard_that_is_gone_is_named(tmp_path: Path) -> None:
    synthesize(tmp_path, format="tfrecord", count=6, shard_size=3, classes=2)
    shard = min(tmp_path.glob("*.tfrecord"))
    os.truncate(shard, shard.stat().st_size - 20_000)
    source = TFRecordShards(tmp_path)
    shard.unlink()
    (told,) = source.damaged_shards().items()
    assert told[0] == str(shard)
    assert "is gone now" in told[1]


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        (["folder"], "expected TFRecord or tar shards"),
        (["tar", "tfrecord/*.tfrecord"], "one kind at a time"),
        (["nothing"], "no file matches"),
    ],
)
def test_index_says_what_it_cannot_index(
    formats: list[str], message: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["index", *(str(data / format) for format in formats)]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("mploader index: ")
    assert message in printed


def test_a_warning_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    synthesize(tmp_path, format="tar", count=2, classes=2)
    # The places for the index are taken by folders, so that it cannot be kept.
    (tmp_path / "tar.mpl-index").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert main(["index", str(tmp_path / "*.tar")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mploader: warning: the index of 1 of 1 folders of shards cannot be kept")


def test_an_output_that_nobody_reads_ends_it_quietly(data: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mploader", "index", str(data / "tar")]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


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


def test_the_demo_without_a_single_label_says_what_is_wrong_with_the_first(tmp_path: Path) -> None:
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
def test_the_demo_says_what_it_cannot_train_on(sample: dict[str, Any], message: str) -> None:
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


def test_demo_on_what_is_no_data_at_all(tmp_path: Path, command: Callable[..., Any]) -> None:
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


def test_ctrl_c_while_commands_are_imported_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(subparsers: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "add_parser", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr() == ("", "")


def test_the_demo_on_a_single_class_tells_all_right() -> None:
    from mploader.cli.demo_training import classifier

    model = classifier(16, classes=1, batch_size=2)
    model.layers[-1].bias.assign([5.0])  # whatever it says of the one class, there is no other
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
