"""The index beside the shards: used while it is true, built again when not, and never needed."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mploader._util import fault_points, retry
from mploader.engine.worker import read_faults
from mploader.errors import SampleError, SourceError
from mploader.sources import TFRecordShards, files, open_source
from mploader.sources.scanner import Scanner
from mploader.sources.tfrecord_write import TFRecordWriter

INDEX = "tfrecord.mpl-index"


def write(path: Path, count: int, size: int = 10) -> Path:
    with TFRecordWriter(path) as writer:
        for number in range(count):
            writer.write(bytes([number % 256]) * size)
    return path


def raw(pattern: object) -> TFRecordShards:
    return TFRecordShards(pattern, raw=True)  # type: ignore[arg-type]


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the shards that were read through, in any order."""
    names: list[str] = []
    original = Scanner.__init__

    def counted(self: Scanner, path: str) -> None:
        names.append(os.path.basename(path))
        original(self, path)

    monkeypatch.setattr(Scanner, "__init__", counted)
    return names


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


class TestUse:
    def test_each_shard_is_read_through_once(self, tmp_path: Path, scans: list[str]) -> None:
        for number in range(3):
            write(tmp_path / f"{number}.tfrecord", number + 1)
        first = raw(tmp_path)
        assert sorted(scans) == ["0.tfrecord", "1.tfrecord", "2.tfrecord"]
        scans.clear()
        again = raw(tmp_path / "*.tfrecord")
        assert list(again) == list(first)
        assert raw([tmp_path / "2.tfrecord", tmp_path / "0.tfrecord"]).shard_sizes.tolist() == [3, 1]
        assert scans == []
        assert sorted(os.listdir(tmp_path)) == ["0.tfrecord", "1.tfrecord", "2.tfrecord", INDEX]

    def test_only_what_changed_is_read_again(self, tmp_path: Path, scans: list[str]) -> None:
        paths = [write(tmp_path / f"{number}.tfrecord", 2) for number in range(4)]
        raw(paths[:3])
        scans.clear()
        write(paths[1], 3)
        assert raw(tmp_path).shard_sizes.tolist() == [2, 3, 2, 2]
        assert sorted(scans) == ["1.tfrecord", "3.tfrecord"]
        scans.clear()
        os.utime(paths[2], ns=(5, 5))
        raw(paths[2])
        assert scans == ["2.tfrecord"]
        scans.clear()
        raw(tmp_path)  # the rows of the other shards were kept
        assert scans == []

    def test_shards_in_several_folders_keep_their_order(self, tmp_path: Path) -> None:
        names = ["b.tfrecord", "b/1.tfrecord", "b-/1.tfrecord", "c.tfrecord", "b/0.tfrecord"]
        for number, name in enumerate(names):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            write(tmp_path / name, number + 1)
        assert raw([tmp_path / name for name in names]).shard_sizes.tolist() == [1, 2, 3, 4, 5]
        assert raw(tmp_path / "**" / "*.tfrecord").shard_sizes.tolist() == [3, 1, 5, 2, 4]
        assert raw(tmp_path / "**" / "*.tfrecord")[3] == b"\0" * 10

    def test_shorter_but_written_anew(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.tfrecord", 5)
        raw(path)
        with TFRecordWriter(path) as writer:
            writer.write(b"\1" * 10)  # of the same size as before, so only the content tells
        assert list(raw(path)) == [b"\1" * 10]

    def test_growing_shard(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.tfrecord", 2)
        assert len(raw(path)) == 2
        path.write_bytes(path.read_bytes() * 2)
        assert len(raw(path)) == 4


class TestNotSaved:
    @pytest.mark.parametrize("pattern", ["d[1]", "{d,e}/*.tfrecord", "e"])
    def test_nothing_is_written_anywhere(self, pattern: str, tmp_path: Path, cache: Path) -> None:
        for folder in ("d", "d[1]", "e"):
            (tmp_path / folder).mkdir()
            write(tmp_path / folder / "a.tfrecord", 2)
        (tmp_path / "e" / INDEX).mkdir()  # the index of this one would go to the cache folder
        before = sorted(tmp_path.rglob("*"))
        assert len(open_source(tmp_path / pattern, save_index=False)) in (2, 4)
        assert sorted(tmp_path.rglob("*")) == before
        assert list(cache.iterdir()) == []

    def test_an_index_that_is_there_is_used_and_left_as_it_is(self, tmp_path: Path, scans: list[str]) -> None:
        raw(write(tmp_path / "a.tfrecord", 2))
        index = (tmp_path / INDEX).read_bytes()
        write(tmp_path / "b.tfrecord", 3)
        for _ in range(2):
            scans.clear()
            assert TFRecordShards(tmp_path, raw=True, save_index=False).shard_sizes.tolist() == [2, 3]
            assert scans == ["b.tfrecord"]
        assert (tmp_path / INDEX).read_bytes() == index


class TestDamage:
    def test_every_flipped_byte_and_every_length(self, tmp_path: Path, scans: list[str]) -> None:
        path = write(tmp_path / "a.tfrecord", 3)
        raw(path)
        good = (tmp_path / INDEX).read_bytes()
        spoilt = [good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :] for at in range(len(good))]
        spoilt += [good[:size] for size in range(0, len(good), 7)] + [good + b"\0", b""]
        for content in spoilt:
            (tmp_path / INDEX).write_bytes(content)
            scans.clear()
            assert len(raw(path)) == 3
            assert scans == ["a.tfrecord"]
            assert (tmp_path / INDEX).read_bytes() == good

    def test_index_is_a_folder(self, tmp_path: Path, cache: Path, scans: list[str]) -> None:
        path = write(tmp_path / "a.tfrecord", 3)
        (tmp_path / INDEX).mkdir()
        raw(path)
        assert len(os.listdir(cache / "mploader" / "index")) == 1
        scans.clear()
        assert len(raw(path)) == 3
        assert scans == []

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
    def test_disk_full_and_its_kind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, cache: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        for folder in ("x", "y"):
            (tmp_path / folder).mkdir()
            write(tmp_path / folder / "a.tfrecord", 3)

        def fails(descriptor: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fails)
        source = raw(tmp_path / "*" / "*.tfrecord")
        (record,) = caplog.records
        assert (record.name, record.levelname, record.args[:2]) == ("mploader", "WARNING", (2, 2))
        assert os.strerror(code) in record.getMessage()
        assert len(source) == 6
        left = [file for folder in (tmp_path, cache) for file in folder.rglob("*") if file.is_file()]
        assert sorted(left) == [tmp_path / "x" / "a.tfrecord", tmp_path / "y" / "a.tfrecord"]


class TestFaultsOfTheMachine:
    """A descriptor on a network goes stale for ever, while the file is well."""

    @pytest.fixture
    def stale(self, monkeypatch: pytest.MonkeyPatch) -> set[int]:
        """Files whose descriptors, as they are open now, fail from now on; by `os.stat_result.st_ino`."""
        found: set[int] = set()
        original = os.pread

        def pread(descriptor: int, size: int, offset: int) -> bytes:
            if found and os.fstat(descriptor).st_ino in found:
                found.clear()
                bad.add(descriptor)
            if descriptor in bad:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return original(descriptor, size, offset)

        bad: set[int] = set()
        close = os.close

        def forget(descriptor: int) -> None:
            bad.discard(descriptor)
            close(descriptor)

        monkeypatch.setattr(os, "pread", pread)
        monkeypatch.setattr(os, "close", forget)
        monkeypatch.setattr(retry, "RETRY_PAUSES_S", (0.0, 0.0))
        return found

    def test_the_next_read_opens_the_file_anew(self, tmp_path: Path, stale: set[int]) -> None:
        path = write(tmp_path / "a.tfrecord", 3)
        source = raw(path)
        assert source[0] == bytes(10)
        stale.add(path.stat().st_ino)
        with pytest.raises(OSError, match=r"[Ss]tale") as failure:
            source[1]
        assert failure.value.filename == str(path)
        assert source[1] == bytes([1]) * 10

    def test_the_index_is_built_all_the_same(self, tmp_path: Path, stale: set[int]) -> None:
        path = write(tmp_path / "a.tfrecord", 3)
        stale.add(path.stat().st_ino)
        assert len(raw(path)) == 3

    def test_an_index_of_two_files_is_never_built(self, tmp_path: Path, stale: set[int]) -> None:
        path, other = write(tmp_path / "a.tfrecord", 3), write(tmp_path / "new", 4)
        with Scanner(str(path)) as scanner:
            stale.add(path.stat().st_ino)
            os.replace(other, path)
            with pytest.raises(SourceError, match="has changed while it was indexed"):
                scanner.read(0, 12)

    @pytest.mark.parametrize(("code", "tries"), [(errno.EIO, 3), (errno.EACCES, 1)])
    def test_what_stays_broken_is_an_error(
        self, code: int, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write(tmp_path / "a.tfrecord", 3)
        tried = []

        def pread(*arguments: int) -> bytes:
            tried.append(arguments)
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "pread", pread)
        monkeypatch.setattr(retry, "RETRY_PAUSES_S", (0.0, 0.0))
        with pytest.raises(SourceError, match=f"{path} cannot be read at byte 0: {os.strerror(code)}"):
            raw(path)
        assert len(tried) == tries

    def test_a_socket_is_no_file_and_no_fault_of_the_machine(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "a.jpg"))
            with pytest.raises(SampleError, match="not a regular file") as failure:
                files.read_whole(str(tmp_path / "a.jpg"), 7)
        assert (failure.value.index, failure.value.file) == (7, str(tmp_path / "a.jpg"))


def test_the_fault_point_of_a_read_lies_in_its_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = raw(write(tmp_path / "a.tfrecord", 3))
    reads = []
    original = os.pread

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        reads.append((offset, size))
        return original(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(files, "read_record", files.read_record)  # restores it
    read_faults.install()
    monkeypatch.setattr(fault_points._State, "faults", (fault_points.Fault.parse("record half read:*:EIO"),))
    with pytest.raises(OSError, match="injected"):
        source[1]
    assert reads == [(26, 13)]
    monkeypatch.setattr(fault_points._State, "time", 2)  # the second attempt
    assert source[1] == bytes([1]) * 10
    assert reads == [(26, 13), (26, 13), (39, 13)]


def test_descriptors_are_bounded(tmp_path: Path) -> None:
    """200 shards through 64 descriptors, of which 40 are taken, by four threads; and none is left."""
    program = """
import gc, os, resource, sys
from concurrent.futures import ThreadPoolExecutor
from mploader.sources import TFRecordShards
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(40)]
before = len(os.listdir("/proc/self/fd"))
source = TFRecordShards(sys.argv[1], raw=True)
with ThreadPoolExecutor(4) as threads:
    order = [(7 * index) % 400 for index in range(400)] * 3
    assert list(threads.map(source.__getitem__, order)) == [bytes([index // 2]) * (1 + index % 2) for index in order]
during = len(os.listdir("/proc/self/fd"))
more = []
try:
    while True:
        more.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
assert source[10] == bytes([5])  # closes its own files where no descriptor is free
for descriptor in more:
    os.close(descriptor)
child = os.fork()
if child == 0:
    os._exit(0 if source[399] == bytes([199]) * 2 else 1)
assert os.waitpid(child, 0)[1] == 0
del source
gc.collect()
after = len(os.listdir("/proc/self/fd"))
print(during - before, after - before)
"""
    for number in range(200):
        with TFRecordWriter(tmp_path / f"{number:03}.tfrecord") as writer:
            writer.write(bytes([number]))
            writer.write(bytes([number]) * 2)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    kept, leaked = map(int, done.stdout.split())
    assert 1 <= kept <= 8
    assert leaked == 0


class TestPatterns:
    def test_braces_globs_lists_and_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(12):
            write(tmp_path / f"t-{number:02}.tfrecord", number + 1)
        write(tmp_path / "odd[1]{a}.tfrecord", 20)
        text = str(tmp_path)
        assert raw(f"{text}/t-{{09..11}}.tfrecord").shard_sizes.tolist() == [10, 11, 12]
        assert raw(f"{text}/t-{{00,05}}.tfrecord").shard_sizes.tolist() == [1, 6]
        assert raw(f"{text}/t-0{{8..9}}.tfrecord").shard_sizes.tolist() == [9, 10]
        assert raw(f"{text}/odd[1]{{a}}.tfrecord").shard_sizes.tolist() == [20]
        assert raw([f"{text}/t-1*", tmp_path / "t-00.tfrecord", f"{text}/t-?1.*"]).shard_sizes.tolist() == [
            11,
            12,
            1,
            2,
        ]
        monkeypatch.chdir(tmp_path)
        assert raw("t-0[12].tfrecord").paths[:] == ["t-01.tfrecord", "t-02.tfrecord"]
        assert len(raw("*")) == 12 * 13 // 2 + 20  # the index is no shard

    def test_what_matches_nothing(self, tmp_path: Path) -> None:
        write(tmp_path / "train.tfrecord", 1)
        (tmp_path / "sub.tfrecord").mkdir()
        with pytest.raises(
            SourceError, match=rf"no file matches .*x/\*.*The folder {tmp_path} holds sub\.tfrecord, train"
        ):
            raw(tmp_path / "x" / "*.tfrecord")
        with pytest.raises(SourceError, match=r"It matches 1 folders.*sub\.tfrecord, train"):
            raw(tmp_path / "s*")
        with pytest.raises(SourceError, match=r"is a folder without files named \*\.tfrecord.*is empty"):
            raw(tmp_path / "sub.tfrecord")
        with pytest.raises(SourceError, match="empty list"):
            raw([])
        with pytest.raises(SourceError, match="smaller number first"):
            raw("x-{9..0}")

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "a.tfrecord")
        with pytest.raises(SourceError, match="not a regular file"):
            raw(tmp_path / "a.tfrecord")
        (tmp_path / "b.tfrecord").symlink_to("nowhere")
        with pytest.raises(SourceError, match=r"b\.tfrecord cannot be opened: No such file"):
            raw(tmp_path / "b.tfrecord")


class TestOpenSource:
    def test_by_name_and_by_content(self, tmp_path: Path) -> None:
        import tarfile

        write(tmp_path / "records-00000-of-00001", 3)
        with tarfile.open(tmp_path / "archive", "w") as tar:
            tar.add(tmp_path / "records-00000-of-00001", "0.jpg")
        (tmp_path / "images" / "cat").mkdir(parents=True)
        (tmp_path / "images" / "cat" / "1.jpg").write_bytes(b"jpg")
        for name, expected in [
            ("records-*", "TFRecordShards: 3 records"),
            ("archive", "TarShards: 1 samples"),
            ("images", "ImageFolder"),
        ]:
            assert repr(open_source(tmp_path / name)).startswith(expected)
        (tmp_path / "shards").mkdir()
        write(tmp_path / "shards" / "a.tfrecord-00000-of-00001", 4)
        assert len(open_source(tmp_path / "shards")) == 4
        (tmp_path / "shards" / "a.tar").write_bytes((tmp_path / "archive").read_bytes())
        with pytest.raises(SourceError, match="both TFRecord and tar"):
            open_source(tmp_path / "shards")
        assert len(open_source(tmp_path / "shards" / "*.tar")) == 1

    def test_nothing_known(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("1,2,3\n" * 100)
        with pytest.raises(SourceError, match="neither TFRecord nor tar"):
            open_source(tmp_path / "a.csv")
        with pytest.raises(SourceError, match="no sub-folders"):
            open_source(tmp_path)
        with pytest.raises(SourceError, match="no file matches"):
            open_source(tmp_path / "none")
