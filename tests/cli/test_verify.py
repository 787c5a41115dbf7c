"""`mploader verify`: what is bad in real, damaged files, through the command."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mploader.cli.main import main
from mploader.cli.synthetic_data import synthesize
from mploader.sources import TFRecordShards

pytestmark = pytest.mark.usefixtures("workers_in_threads")

COUNT = 40
PER_SHARD = 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same good pictures in each format."""
    directory = tmp_path_factory.mktemp("data")
    for format in ("folder", "tfrecord", "tar"):
        synthesize(directory / format, format=format, count=COUNT, classes=2, shard_size=PER_SHARD, num_workers=1)
    return directory


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "data"))


def verify(capsys: pytest.CaptureFixture[str], path: Path, *options: str, status: int) -> dict[str, Any]:
    assert main(["verify", str(path), "--workers", "2", "--json", *options]) == status
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert facts["bad"] == len(facts["findings"]) == sum(facts["summary"].values())
    return facts


def flip(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("format", ["folder", "tfrecord", "tar"])
def test_good_files_are_good(format: str, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = verify(capsys, whole / format, status=0)
    assert (facts["samples"], facts["findings"]) == (COUNT, [])


@pytest.mark.processes
def test_an_image_folder(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((data / "folder" / "class_01").iterdir())
    files[2].write_bytes(files[2].read_bytes()[:-500])
    files[5].write_bytes(b"")
    files[7].write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    facts = verify(capsys, data / "folder", status=1)
    assert facts["samples"] == COUNT
    first, empty, foreign = facts["findings"]
    assert [finding["file"] for finding in facts["findings"]] == [str(files[at]) for at in (2, 5, 7)]
    assert [finding["index"] for finding in facts["findings"]] == [COUNT // 2 + at for at in (2, 5, 7)]
    assert "truncated" in first["error"]
    assert empty["summary"].startswith("is empty (# bytes)")
    assert "not a supported image: got EPS" in foreign["error"]


@pytest.mark.processes
def test_the_same_for_any_number_of_workers_and_if_all_is_bad(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (data / "folder").rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:-2])
    reports = [verify(capsys, data / "folder", "--workers", workers, status=1) for workers in ("1", "3")]
    assert [report.pop("seconds") >= 0 for report in reports] == [True, True]
    assert reports[0] == reports[1]
    assert reports[0]["bad"] == COUNT
    (summary,) = reports[0]["summary"]
    assert summary == "8-bit colour JPEG, # x #, # bytes: truncated, the end-of-image marker is missing"


def test_tfrecord_shards(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = sorted((data / "tfrecord").glob("*.tfrecord"))
    starts = [int(TFRecordShards(shard).where(4).rpartition(" ")[2]) for shard in shards]
    (data / "tfrecord" / "tfrecord.mpl-index").unlink(missing_ok=True)
    flip(shards[0], starts[0] + 100)  # in the data of one record
    flip(shards[1], starts[1] + 1)  # in a length field: the rest of the shard cannot be found
    facts = verify(capsys, data / "tfrecord", status=1)
    data_finding, rest_finding = facts["findings"]
    assert (data_finding["index"], data_finding["file"], data_finding["byte"]) == (4, str(shards[0]), starts[0])
    assert data_finding["summary"] == "the checksum of its # bytes is wrong"
    assert (rest_finding["file"], rest_finding["byte"]) == (str(shards[1]), starts[1])
    assert "length field" in rest_finding["error"]
    assert facts["samples"] == COUNT - (PER_SHARD - 5), "an unreadable rest counts as one"


def test_a_shard_that_was_cut_at_a_border_and_the_others_all_the_same(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = sorted((data / "tfrecord").glob("*.tfrecord"))
    border = int(TFRecordShards([str(shard) for shard in shards]).where(6).rpartition(" ")[2])
    os.truncate(shards[0], border)
    flip(shards[2], 500)
    facts = verify(capsys, data / "tfrecord", status=1)
    cut, flipped = facts["findings"]
    assert (cut["file"], cut["index"], cut["byte"]) == (str(shards[0]), None, None)
    assert f"has been cut: it held {PER_SHARD} samples" in cut["error"]
    assert flipped["file"] == str(shards[2])
    assert facts["samples"] == COUNT - PER_SHARD


def test_tar_shards(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = data / "tar" / "train-000009.tar"
    with tarfile.open(hostile, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in (("0.jpg", b"no picture"), ("1.txt", b"anything"), ("2.pkl", b"cos\nsystem\n")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("../../3.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    facts = verify(capsys, data / "tar", status=1)
    assert [finding["file"] for finding in facts["findings"]] == [str(hostile)] * 2
    picture, refused = facts["findings"]
    assert (picture["index"], picture["byte"]) == (COUNT, 0)
    assert "text that begins with 'no picture'" in picture["error"]
    assert "is refused" in refused["error"]


@pytest.mark.parametrize("format", ["tfrecord", "tar"])
def test_a_shard_without_a_byte_is_bad(format: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = sorted((data / format).glob(f"*.{format}"))
    os.truncate(shards[1], 0)
    for is_indexed in (False, True):
        facts = verify(capsys, data / format, status=1)
        (finding,) = facts["findings"]
        assert (finding["file"], finding["index"], finding["byte"]) == (str(shards[1]), None, None), is_indexed
        assert finding["error"] == "is empty (0 bytes), perhaps from a copy that was interrupted"
        assert facts["samples"] == COUNT - PER_SHARD
    assert main(["verify", str(data / format), "--workers", "1"]) == 1
    assert capsys.readouterr().out.startswith(f"{shards[1]}: is empty (0 bytes), perhaps")


def test_shards_of_which_none_has_a_byte_are_bad(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = sorted((data / "tar").glob("*.tar"))
    for shard in shards:
        os.truncate(shard, 0)
    facts = verify(capsys, data / "tar", status=1)
    assert [finding["file"] for finding in facts["findings"]] == list(map(str, shards))
    assert facts["summary"] == {"is empty (# bytes), perhaps from a copy that was interrupted": len(shards)}
    facts = verify(capsys, shards[0], status=1)
    assert (facts["samples"], list(facts["summary"].values())) == (0, [1])


def test_a_name_with_control_characters_stays_in_its_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = data / "folder" / "class_00"
    names = ("00 gr\u00fcn\n\x1b[31m.jpg", os.fsdecode(b"00 \xff.jpg"), "00 \u65e5.jpg")
    for name in names:
        (folder / name).write_bytes(b"")
    assert main(["verify", str(data / "folder"), "--workers", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()[: len(names)]
    shown = ["00 gr\u00fcn\\n\\x1b[31m.jpg", "00 \u65e5.jpg", "00 \\udcff.jpg"]
    assert [line.partition(", sample ")[0] for line in lines] == [f"{folder}/{name}" for name in shown]


def test_what_people_read(data: Path) -> None:
    bad = data / "folder" / "class_00" / "000000.jpg"
    bad.write_bytes(bad.read_bytes()[:1000])
    done = subprocess.run(
        [sys.executable, "-m", "mploader", "verify", str(data / "folder")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{bad}, sample 0: ")
    assert f"{COUNT} samples in " in done.stdout
    assert "1 bad" in done.stdout
    assert lines[-1].split()[0] == "1"


def test_a_check_of_ones_own(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = verify(capsys, whole / "folder", "--transform", "tests.transforms:odd_labels_are_bad", status=1)
    assert facts["summary"] == {"label # is odd: so the test says": COUNT // 2}


def test_nothing_there_is_an_error_and_no_option_is_a_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "missing")]) == 1
    assert "missing" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["verify"])
    assert ended.value.code == 2
