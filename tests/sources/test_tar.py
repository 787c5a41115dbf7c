"""Tar shards: WebDataset's layout, every dialect of tar, and archives that mean harm."""

from __future__ import annotations

import io
import itertools
import os
import random
import re
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from mploader.errors import SampleError, SourceError
from mploader.sources import TarShards
from mploader.sources.tar import _key
from mploader.sources.tar_format import MAX_EXTENDED_BYTES, members

Members = list[tuple[str, bytes]]
SAMPLES: Members = [("a/0.jpg", b"zero" * 200), ("a/0.cls", b"0"), ("a/1.jpg", b"one" * 500), ("a/1.cls", b"1")]


def info(name: str, size: int = 0, **fields: Any) -> tarfile.TarInfo:
    result = tarfile.TarInfo(name)
    result.size = size
    for field, value in fields.items():
        setattr(result, field, value)
    return result


def archive(contents: list[tuple[str | tarfile.TarInfo, bytes]] | Members, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in contents:
            entry = name if isinstance(name, tarfile.TarInfo) else info(name, len(content))
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def shard(path: Path, contents: Any, **options: Any) -> Path:
    path.write_bytes(archive(contents, **options))
    return path


class TestLayout:
    def test_neighbours_of_one_stem_are_a_sample(self, tmp_path: Path) -> None:
        contents = [
            ("a.b/x.Seg.PNG", b"1"),
            ("a.b/x.cls", b""),
            ("README", b"no extension, no sample"),
            (".hidden.jpg", b"nor this"),
            ("x.cls", b"another folder"),
            (info("folder/", type=tarfile.DIRTYPE), b""),
            ("y.jpg", b"y"),
        ]
        source = TarShards(shard(tmp_path / "0.tar", contents))
        assert list(source) == [
            {"__key__": "a.b/x", "seg.png": b"1", "cls": b""},
            {"__key__": "x", "cls": b"another folder"},
            {"__key__": "y", "jpg": b"y"},
        ]
        assert source.where(1) == f"{tmp_path / '0.tar'}, sample 1 at byte {6 * 512 + 512 * 2 - 512}"

    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_dialects_and_long_names(self, tmp_path: Path, form: int) -> None:
        folders = "/".join(["folder" * 5] * 4)  # fits the prefix field of ustar
        names = [f"{folders}/x{number}" for number in range(3)]
        if form != tarfile.USTAR_FORMAT:
            names += ["é" * 80, "long" * 300]
        contents = [(name + extension, name.encode()) for name in names for extension in (".a", ".b")]
        source = TarShards(shard(tmp_path / "0.tar", contents, form=form))
        assert list(source) == [{"__key__": name, "a": name.encode(), "b": name.encode()} for name in names]

    def test_random_archives_read_as_tarfile_reads_them(self, tmp_path: Path) -> None:
        generator = random.Random(11)
        for number in range(10):
            form = generator.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
            contents = [
                (
                    f"d/{index}-{'n' * generator.randrange(60)}.{extension}",
                    generator.randbytes(generator.randrange(2000)),
                )
                for index in range(generator.randrange(1, 30))
                for extension in generator.sample(["jpg", "cls", "json"], generator.randrange(1, 4))
            ]
            path = shard(tmp_path / f"{number}.tar", contents, form=form)
            content = path.read_bytes()
            ours = members(lambda offset, size, content=content: content[offset : offset + size], 0, len(content))
            with tarfile.open(path) as tar:
                theirs = [(entry.name, entry.offset, entry.offset_data, entry.size) for entry in tar]
            assert [(member.name, member.start, member.data, member.size) for member in ours] == theirs

    def test_several_shards_and_an_empty_one(self, tmp_path: Path) -> None:
        shard(tmp_path / "0.tar", SAMPLES)
        shard(tmp_path / "1.tar", [])
        (tmp_path / "2.tar").touch()
        shard(tmp_path / "3.tar", [("z.txt", b"z")])
        source = TarShards(tmp_path / "{0..3}.tar")
        assert source.shard_sizes.tolist() == [2, 0, 0, 1]
        assert source[-1] == {"__key__": "z", "txt": b"z"}

    def test_keys_are_those_of_webdataset(self) -> None:
        theirs = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)
        for length in range(7):
            for letters in itertools.product("a./\n" if length < 6 else "a./", repeat=length):
                match = theirs.match(name := "".join(letters))
                assert _key(name) == (match and match[1]), repr(name)

    def test_a_name_of_a_megabyte_takes_no_time(self, tmp_path: Path) -> None:
        """Half a million folders took the expression above hours, in which no other thread could run."""
        name = "a/" * 500_000 + "x"
        source = TarShards(shard(tmp_path / "0.tar", [(name, b"no sample"), ("1.a", b"1")], form=tarfile.PAX_FORMAT))
        assert list(source) == [{"__key__": "1", "a": b"1"}]

    def test_two_files_of_one_name(self, tmp_path: Path) -> None:
        source = TarShards(shard(tmp_path / "0.tar", [("a.jpg", b"1"), ("a.jpg", b"2"), ("b.jpg", b"3")]))
        with pytest.raises(
            SampleError, match=r"0\.tar, sample 0 at byte 0: sample 'a' has two files that end in 'jpg'"
        ):
            source[0]
        assert source[1]["jpg"] == b"3"


class TestHarm:
    @pytest.mark.parametrize(
        ("entry", "reason"),
        [
            (info("0.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a link"),
            (info("0.png", type=tarfile.LNKTYPE, linkname="1.jpg"), "a hard link"),
            (info("0.png", type=tarfile.CHRTYPE), "a device"),
            (info("0.png", type=tarfile.BLKTYPE), "a device"),
            (info("0.png", type=tarfile.FIFOTYPE), "a named pipe"),
            (info("0.png", type=b"S"), "a sparse file"),
            (info("0.png", pax_headers={"GNU.sparse.major": "1"}), "a sparse file"),
            (info("0.png", type=b"Z"), "unknown type"),
        ],
    )
    def test_member_that_is_no_file_spoils_its_sample_only(
        self, tmp_path: Path, entry: tarfile.TarInfo, reason: str
    ) -> None:
        source = TarShards(shard(tmp_path / "0.tar", [("0.jpg", b"0"), (entry, b""), ("1.jpg", b"1")]))
        assert len(source) == 2
        with pytest.raises(
            SampleError, match=rf"sample 0 at byte 0: '0\.png' at byte 1024 is refused: it is .*{reason}"
        ):
            source[0]
        assert source[1] == {"__key__": "1", "jpg": b"1"}

    @pytest.mark.parametrize("name", ["/etc/0.jpg", "../0.jpg", "a/../../0.jpg", "../evil"])
    def test_names_that_leave_the_folder(self, tmp_path: Path, name: str) -> None:
        inside = tmp_path / "inside"
        inside.mkdir()
        source = TarShards(shard(inside / "0.tar", [(name, b"0"), ("1.jpg", b"1")]))
        with pytest.raises(SampleError, match="is refused: its name"):
            source[0]
        assert source[1]["jpg"] == b"1"
        assert sorted(os.listdir(inside)) == ["0.tar", "tar.mpl-index"]
        assert os.listdir(tmp_path) == ["inside"]

    def test_long_names_are_no_way_around(self, tmp_path: Path) -> None:
        for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            source = TarShards(
                shard(tmp_path / f"{form}.tar", [("x/" * 99 + "../0.jpg", b""), ("1.a", b"")], form=form)
            )
            with pytest.raises(SampleError, match=r"has '\.\.' in it"):
                source[0]

    def test_extended_headers_take_bounded_memory(self, tmp_path: Path) -> None:
        big = {"comment": "x" * MAX_EXTENDED_BYTES}
        source = TarShards(
            shard(tmp_path / "0.tar", [("0.jpg", b"0"), ("1.jpg", b"1"), (info("2.jpg", pax_headers=big), b"")])
        )
        assert source[0]["jpg"] == b"0"
        with pytest.raises(SampleError, match="extended headers take over 1048576 bytes"):
            source[len(source) - 1]

    @pytest.mark.parametrize(
        "size", [b"77777777777\0", b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7, b"\xff" * 12, b"12x45678901\0"]
    )
    def test_sizes_that_lie_take_no_memory(self, tmp_path: Path, size: bytes) -> None:
        content = bytearray(archive([("b.x", b""), *SAMPLES]))
        start = content.index(b"a/1.jpg")
        content[start + 124 : start + 136] = size
        content[start + 148 : start + 156] = b" " * 8
        content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
        path = tmp_path / "0.tar"
        path.write_bytes(content)
        source = TarShards(path)
        assert source[0] == {"__key__": "b", "x": b""}
        with pytest.raises(SampleError, match="the rest of the shard"):
            source[-1]

    def test_nothing_is_unpickled(self, tmp_path: Path) -> None:
        harm = b"cos\nsystem\n(S'touch harm'\ntR."
        source = TarShards(shard(tmp_path / "0.tar", [("0.pyd", harm), ("0.pickle", harm)]))
        assert source[0]["pyd"] == source[0]["pickle"] == harm


class TestDamage:
    def test_cut_at_every_block(self, tmp_path: Path) -> None:
        whole = archive(SAMPLES)
        with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
            first_of_second = tar.getmember("a/1.jpg").offset
            end = tar.getmember("a/1.cls").offset + 1024
        for size in range(first_of_second + 512, end + 512, 256):
            path = tmp_path / f"{size}.tar"
            path.write_bytes(whole[:size])
            source = TarShards(path)
            # At the border of a member, too: only the missing end mark shows that it has been cut.
            assert len(source) == 2
            assert source[0] == {"__key__": "a/0", "jpg": b"zero" * 200, "cls": b"0"}
            with pytest.raises(SampleError, match=f"sample 1 at byte {first_of_second}: the rest of the shard, "):
                source[1]

    def test_damaged_header(self, tmp_path: Path) -> None:
        content = bytearray(archive([*SAMPLES, ("b.jpg", b"b")]))
        content[content.index(b"b.jpg")] ^= 1
        (tmp_path / "0.tar").write_bytes(content)
        source = TarShards(tmp_path)
        # The damaged member may have been a third file of the second sample.
        assert len(source) == 2
        assert source[0]["cls"] == b"0"
        with pytest.raises(SampleError, match="checksum of a header is wrong"):
            source[1]

    def test_data_behind_the_end_mark_are_not_lost_silently(self, tmp_path: Path) -> None:
        (tmp_path / "0.tar").write_bytes(archive(SAMPLES) + archive([("b.jpg", b"b")]))
        with pytest.raises(SampleError, match="an end mark is followed by 14848 bytes"):
            TarShards(tmp_path)[-1]

    def test_cut_after_it_was_indexed(self, tmp_path: Path) -> None:
        path = shard(tmp_path / "0.tar", [(f"{number}.txt", b"x" * 700) for number in range(50)])
        TarShards(path)
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(SourceError, match="has been cut: it held 50 samples"):
            TarShards(path)
        assert TarShards(path, rebuild=True)[0]["txt"] == b"x" * 700

    def test_changed_while_open(self, tmp_path: Path) -> None:
        path = shard(tmp_path / "0.tar", SAMPLES)
        source = TarShards(path)
        assert source[0]["cls"] == b"0"
        with open(path, "r+b") as file:
            file.seek(512)
            file.write(b"ZERO")
        os.utime(path, ns=(1, 1))
        with pytest.raises(SampleError, match="the shard has changed since the source was made"):
            source[0]

    def test_foreign_and_compressed(self, tmp_path: Path) -> None:
        (tmp_path / "0.tar").write_bytes(random.Random(1).randbytes(5000))
        with pytest.raises(SourceError, match="not one sample can be read"):
            TarShards(tmp_path)
        with tarfile.open(tmp_path / "1.tar.gz", "w:gz") as tar:
            tar.addfile(info("a.jpg"))
        with pytest.raises(SourceError, match="compressed with gzip"):
            TarShards(tmp_path / "1.tar.gz")


def test_members_take_little_memory(tmp_path: Path) -> None:
    """Eight bytes a sample, which a million members (a gigabyte) would show no better."""
    block = archive([("0000000.x", b"")])[:512]
    count = 20_000
    with open(tmp_path / "0.tar", "wb") as file:
        for number in range(count):
            header = bytearray(block)
            header[:7] = b"%07d" % number
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            file.write(header)
        file.write(bytes(1024))
    tracemalloc.start()
    source = TarShards(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(source) == count
    assert source[count - 1] == {"__key__": f"{count - 1:07d}", "x": b""}
    assert peak < (4 << 20) + 60 * count
