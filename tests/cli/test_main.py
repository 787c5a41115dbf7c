"""The command line, ``mploader synth`` and ``mploader index``: what they print, and their exit status."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mploader.cli.commands import demo
from mploader.cli.main import main
from mploader.cli.synthetic_data import synthesize
from mploader.sources import TFRecordShards
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
def test_an_invalid_command_line_is_status_2(
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
def test_index_reports_what_it_cannot_index(
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


def test_a_closed_output_ends_it_quietly(data: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mploader", "index", str(data / "tar")]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_ctrl_c_while_commands_are_imported_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(subparsers: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "add_parser", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr() == ("", "")
