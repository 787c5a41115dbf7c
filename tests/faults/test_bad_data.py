"""Bad data through a whole loader: what is bad is counted and named, the rest delivered, by any number of workers."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import signal
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mploader import Loader, ResourceError, SampleError, SourceError, apply_to, images, testing
from mploader.images import Resize
from mploader.sources import ImageFolder, TarShards, TFRecordShards
from mploader.sources.tfrecord_write import TFRecordWriter, masked_crc32c
from tests.conftest import PHOTOS
from tests.faults import decoding

RECORDS = 12
BYTES = 40
FRAME = 16
FIELDS = {"length": 1, "length checksum": 9, "data": 20, "data checksum": 12 + BYTES + 1}


def record(number: int) -> bytes:
    return b"%08d" % number * (BYTES // 8)


def write_shard(path: pathlib.Path, first: int = 0, count: int = RECORDS) -> pathlib.Path:
    with TFRecordWriter(path) as writer:
        for number in range(first, first + count):
            writer.write(record(number))
    return path


@pytest.fixture
def shard(tmp_path: pathlib.Path) -> pathlib.Path:
    return write_shard(tmp_path / "a.tfrecord")


def flip(path: pathlib.Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 4
    path.write_bytes(content)


def raw(*paths: pathlib.Path) -> Any:
    return TFRecordShards(list(paths), raw=True)


def read(source: Any, policy: str, workers: int, transform: Any = None) -> tuple[list[Any], list[tuple[int, str, str]]]:
    """What is delivered in one epoch, and what is bad as (sample, place, error)."""
    with Loader(source, transform, batch_size=5, num_workers=workers, on_bad_sample=policy, stall_timeout=20) as loader:
        delivered = [element for batch in loader for element in np.asarray(batch).tolist()]
        return delivered, [(bad.index, bad.where, bad.error) for bad in loader.bad_samples()]


def read_alike(
    make_source: Callable[[], Any], policy: str = "drop", transform: Any = None
) -> tuple[list[Any], list[tuple[int, str, str]]]:
    """The same, and that one worker and three come to the same."""
    one = read(make_source(), policy, 1, transform)
    assert read(make_source(), policy, 3, transform) == one
    return one


@pytest.mark.parametrize(
    ("field", "is_indexed"), [*((field, False) for field in FIELDS), ("length", True), ("data", True)]
)
def test_a_flipped_bit_in_each_field_of_a_record(field: str, is_indexed: bool, shard: pathlib.Path) -> None:
    bad = 5
    if is_indexed:
        raw(shard)
        states = os.stat(shard)
    start = bad * (BYTES + FRAME)
    flip(shard, start + FIELDS[field])
    if is_indexed:
        os.utime(shard, ns=(states.st_atime_ns, states.st_mtime_ns))
    delivered, found = read_alike(lambda: raw(shard))
    # Without an index nothing can be found behind a damaged length: that rest counts as one sample.
    rest = [] if "length" in field and not is_indexed else [record(number) for number in range(bad + 1, RECORDS)]
    assert delivered == [record(number) for number in range(bad)] + rest
    ((index, where, error),) = found
    assert (index, where) == (bad, f"{shard}, record {bad} at byte {start}")
    assert error.startswith(f"SampleError: {where}: ")


def test_a_bad_record_under_the_other_policies(shard: pathlib.Path) -> None:
    start = 5 * (BYTES + FRAME)
    flip(shard, start + FIELDS["data"])
    with pytest.raises(SampleError, match=rf"sample 5 \({shard}, record 5 at byte {start}\) failed"):
        read(raw(shard), "raise", 2)
    delivered, found = read_alike(lambda: raw(shard), "replace")
    assert delivered[:5] + delivered[6:] == [record(number) for number in range(RECORDS) if number != 5]
    assert delivered[5] in delivered[:5] + delivered[6:]
    assert [index for index, _, _ in found] == [5]


def test_shards_that_end_at_every_byte_of_a_record(tmp_path: pathlib.Path) -> None:
    border = BYTES + FRAME
    paths = [write_shard(tmp_path / f"{at:02}.tfrecord", first=at, count=2) for at in range(1, border)]
    for at, path in enumerate(paths, 1):
        os.truncate(path, border + at)
    delivered, found = read_alike(lambda: raw(*paths))
    assert delivered == [record(at) for at in range(1, border)]
    assert [(index, where) for index, where, _ in found] == [
        (2 * number + 1, f"{path}, record 1 at byte {border}") for number, path in enumerate(paths)
    ]


def test_a_shard_that_was_cut_at_a_record_border_is_missed(shard: pathlib.Path) -> None:
    raw(shard)
    os.truncate(shard, 7 * (BYTES + FRAME))
    with pytest.raises(SourceError, match=f"{shard} has been cut: it held {RECORDS} samples .* the first 7 of them"):
        raw(shard)


def test_a_shard_that_is_cut_while_it_is_read(shard: pathlib.Path, tmp_path: pathlib.Path) -> None:
    source = raw(shard, write_shard(tmp_path / "b.tfrecord", first=100))
    os.truncate(shard, 7 * (BYTES + FRAME))
    delivered, found = read_alike(lambda: source)
    assert delivered == [record(100 + number) for number in range(RECORDS)]
    assert [index for index, _, _ in found] == list(range(RECORDS))
    assert all("the shard has changed since the source was made" in error for _, _, error in found)


@pytest.mark.parametrize("damage", ["missing", "a folder", "empty", "a pipe"])
def test_a_shard_that_is_gone_when_it_is_read(damage: str, shard: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = write_shard(tmp_path / "b.tfrecord", first=100)
    source = raw(shard, other)
    shard.unlink()
    if damage == "a folder":
        shard.mkdir()
    elif damage == "empty":
        shard.touch()
    elif damage == "a pipe":
        os.mkfifo(shard)
    delivered, found = read_alike(lambda: source)
    assert delivered == [record(100 + number) for number in range(RECORDS)]
    assert [index for index, _, _ in found] == list(range(RECORDS))
    assert all(str(shard) in where for _, where, _ in found)


def test_a_missing_shard_and_shards_without_a_record_at_the_start(shard: pathlib.Path, tmp_path: pathlib.Path) -> None:
    empty = tmp_path / "empty.tfrecord"
    empty.touch()
    assert read_alike(lambda: raw(empty, shard))[0] == [record(number) for number in range(RECORDS)]
    with pytest.raises(SourceError, match=r"no file matches '.*missing\.tfrecord'"):
        raw(shard, tmp_path / "missing.tfrecord")
    with pytest.raises(SourceError, match="hold no record at all"):
        raw(empty)
    with pytest.raises(SourceError, match="folder"):
        raw(tmp_path / "..")


def write_tar(path: pathlib.Path, first: int = 0, count: int = RECORDS) -> pathlib.Path:
    with tarfile.open(path, "w") as archive:
        for number in range(first, first + count):
            add(archive, f"{number:04}.txt", record(number))
    return path


@pytest.mark.parametrize("kind", ["tfrecord", "tar"])
def test_a_shard_that_is_replaced_while_it_is_open(kind: str, tmp_path: pathlib.Path) -> None:
    count, write = 60, {"tfrecord": write_shard, "tar": write_tar}[kind]
    shard = write(tmp_path / f"a.{kind}", count=count)
    source, transform = (raw(shard), None) if kind == "tfrecord" else (TarShards(shard), decoding.text_of)
    with Loader(source, transform, batch_size=1, num_workers=2, memory="1MiB", on_bad_sample="drop") as loader:
        run = iter(loader)
        batches = [next(run)]
        os.replace(write(tmp_path / "new", first=1000, count=count), shard)
        for pid in loader.worker_pids:  # those who come after them open the new one
            os.kill(pid, signal.SIGKILL)
        delivered = [bytes(data) for batch in [*batches, *run] for data in batch]
        bad = loader.bad_samples()
    old = [number for number in range(count) if number not in {sample.index for sample in bad}]
    assert delivered == [record(number) for number in old], "old and new records are never mixed"
    assert bad
    assert all("another one of the same size" in sample.error for sample in bad)


@pytest.mark.parametrize("length", [2**63, 2**31])
def test_a_length_that_lies(length: int, shard: pathlib.Path) -> None:
    field = struct.pack("<Q", length)
    content = bytearray(shard.read_bytes())
    start = 7 * (BYTES + FRAME)
    content[start : start + 12] = field + struct.pack("<I", masked_crc32c(field))
    shard.write_bytes(content)
    delivered, found = read_alike(lambda: raw(shard))
    assert delivered == [record(number) for number in range(7)]
    ((index, _, error),) = found
    assert index == 7
    assert f"the record has {length} bytes" in error


@pytest.mark.parametrize("policy", ["raise", "drop", "replace"])
def test_a_broken_disk_is_tried_again_and_nothing_is_skipped(policy: str, shard: pathlib.Path) -> None:
    with testing.faults("record opened:1:EIO", "record half read:2:EIO"):
        delivered, found = read(raw(shard), policy, 2)
    assert delivered == [record(number) for number in range(RECORDS)]
    assert found == []


def test_a_disk_that_stays_broken_is_an_error_under_every_policy(shard: pathlib.Path) -> None:
    with (
        testing.faults("record half read:1:EIO:*"),
        pytest.raises(ResourceError, match=r"(?s)sample 5 .*EIO|injected.*fault of the machine"),
    ):
        read(raw(shard), "drop", 2)


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


def test_a_hostile_tar(tmp_path: pathlib.Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("secret")
    path = tmp_path / "shards" / "a.tar"
    path.parent.mkdir()
    hostile: list[tuple[str, dict[str, Any]]] = [
        ("1.txt", {"type": tarfile.SYMTYPE, "linkname": str(outside)}),
        ("2.txt", {"type": tarfile.LNKTYPE, "linkname": "0.txt"}),
        ("3.txt", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
        ("4.txt", {"type": tarfile.FIFOTYPE}),
        ("../5.txt", {}),
        (f"{tmp_path}/6.txt", {}),
    ]
    with tarfile.open(path, "w") as archive:
        add(archive, "0.txt", b"good")
        for name, fields in hostile:
            add(archive, name, b"" if "type" in fields else b"evil", **fields)
        add(archive, "7.txt", b"cposix\nsystem\n(S'touch executed'\ntR.")
        add(archive, "8.txt", b"good")
    before = sorted(tmp_path.rglob("*"))
    delivered, found = read_alike(lambda: TarShards(path), transform=decoding.text_of)
    assert delivered == [b"good", b"cposix\nsystem\n(S'touch executed'\ntR.", b"good"]
    assert [index for index, _, _ in found] == list(range(1, 7))
    assert all("is refused" in error for _, _, error in found)
    assert set(tmp_path.rglob("*")) - set(before) <= {path.parent / "tar.mpl-index"}


def write_members(path: pathlib.Path, count: int) -> None:
    """A tar of empty files "0000000.txt" and so on, fifty times as fast as tarfile makes it."""
    block = bytearray(tarfile.TarInfo("0000000.txt").tobuf(tarfile.USTAR_FORMAT))
    rest = sum(block) - sum(block[:7]) - sum(block[148:156]) + 8 * ord(" ")
    with path.open("wb") as file:
        for number in range(count):
            block[:7] = b"%07d" % number
            block[148:156] = b"%06o\0 " % (rest + sum(block[:7]))
            file.write(block)
        file.write(bytes(1024))


def test_a_tar_with_many_members(tmp_path: pathlib.Path) -> None:
    count = 5_000
    write_members(tmp_path / "a.tar", count)
    with Loader(TarShards(tmp_path / "a.tar"), decoding.text_of, batch_size=500, num_workers=2) as loader:
        assert sum(len(batch) for batch in loader) == count


def test_the_index_of_100_000_members(tmp_path: pathlib.Path) -> None:
    """A tenth of a million, which is half a gigabyte and takes half a minute. The memory is eight bytes a member."""
    count = 100_000
    write_members(tmp_path / "a.tar", count)
    with peak_memory() as grown:
        source = TarShards(tmp_path / "a.tar")
    assert len(source) == count
    assert source[count - 1] == {"__key__": f"{count - 1:07d}", "txt": b""}
    assert grown[0] < 16 * 2**20


@contextlib.contextmanager
def peak_memory() -> Iterator[list[int]]:
    """How far the resident memory of this process rises inside the block, in bytes: what C code takes, too."""

    def resident(name: str) -> int:
        (line,) = [line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
        return int(line.split()[1]) * 1024

    grown: list[int] = []
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    yield grown
    grown.append(resident("VmHWM") - before)


def png_header(height: int, width: int) -> bytes:
    """A real PNG whose header announces another size."""
    data = small("PNG")
    chunk = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


def jpeg_header(height: int, width: int, precision: int = 8) -> bytes:
    return b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 17, precision, height, width, 3) + bytes(200) + b"\xff\xd9"


def gif_header(height: int, width: int) -> bytes:
    data = small("GIF")
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def webp_header(height: int, width: int) -> bytes:
    """A lossless WebP; 14 bits for each side (RFC 9649, section 3.4)."""
    data = small("WEBP", lossless=True)
    start = data.index(b"VP8L") + 9
    flags = int.from_bytes(data[start : start + 4], "little") >> 28 << 28
    return data[:start] + (flags | (height - 1) << 14 | (width - 1)).to_bytes(4, "little") + data[start + 4 :]


def tiff_header(height: int, width: int) -> bytes:
    data = bytearray(small("TIFF"))
    start = int.from_bytes(data[4:8], "little") + 2
    for entry in range(start, start + 12 * int.from_bytes(data[start - 2 : start], "little"), 12):
        side = {256: width, 257: height}.get(int.from_bytes(data[entry : entry + 2], "little"))
        if side is not None:
            data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, side)
    return bytes(data)


def small(kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, kind, **options)
    return stream.getvalue()


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.linspace(0, 255, 60 * 80 * 4).reshape(60, 80, 4).astype(np.uint8)
    image = Image.fromarray(pixels[..., :3]).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def ycck() -> bytes:
    """A CMYK JPEG whose Adobe marker says that it is YCCK."""
    data = bytearray(jpeg("CMYK"))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


GOOD: dict[str, bytes] = {
    "progressive": jpeg(progressive=True),
    "grayscale": jpeg("L"),
    "cmyk": jpeg("CMYK"),
    "ycck": ycck(),
    "exif": jpeg(exif=exif(6)),
    "plain": jpeg(),
    "trailing": jpeg() + b"\0" * 100,
}
BAD: dict[str, tuple[bytes, str]] = {
    "bomb_jpeg": (jpeg_header(65_535, 65_535), "limit of"),
    "bomb_png": (png_header(60_000, 60_000), "limit of"),
    "bomb_gif": (gif_header(60_000, 60_000), "limit of"),
    "bomb_webp": (webp_header(16_383, 16_383), "limit of"),
    "bomb_tiff": (tiff_header(60_000, 60_000), "limit of"),
    "cmyk_cut": (jpeg("CMYK")[:-900] + b"\xff\xd9", "premature end"),
    "empty": (b"", "is empty"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS"),
    "pdf": (b"%PDF-1.4\n1 0 obj\n", "no image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image"),
    "pickle": (b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix", "no image"),
    "precision": (jpeg_header(60, 80, precision=12), "12-bit"),
    "truncated": (jpeg()[:-200], "truncated"),
}


@pytest.fixture
def pictures(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "pictures" / "class"
    folder.mkdir(parents=True)
    for name, data in {**GOOD, **{name: data for name, (data, _) in BAD.items()}}.items():
        (folder / f"{name}.jpg").write_bytes(data)
    return folder


def test_every_kind_of_picture_is_decoded_or_named(pictures: pathlib.Path) -> None:
    names = sorted([*GOOD, *BAD])
    delivered, found = read_alike(lambda: ImageFolder(pictures.parent), transform=decoding.shape_of)
    assert len(delivered) == len(GOOD)
    assert all(pixels == [30, 40, 3] for pixels in delivered)
    assert [pathlib.Path(where).stem for _, where, _ in found] == sorted(BAD)
    assert [names[index] for index, _, _ in found] == sorted(BAD)
    for (_, _, error), name in zip(found, sorted(BAD), strict=True):
        assert BAD[name][1] in error, name


@pytest.mark.parametrize("kind", [name for name in BAD if name.startswith("bomb")])
def test_a_bomb_takes_no_memory(kind: str) -> None:
    for name in ("plain", kind):  # the good one first: what is imported is not the bomb's
        data = BAD[name][0] if name in BAD else small(kind.partition("_")[2].upper())
        with peak_memory() as grown, contextlib.suppress(SampleError):
            images.decode(data)
    assert grown[0] < 8 * 2**20


@pytest.mark.photos
def test_real_pictures_of_rare_kinds(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "rare"
    folder.mkdir()
    paths = [path for path in (*(PHOTOS / "jpeg").iterdir(), *(PHOTOS / "exif").iterdir()) if path.suffix == ".jpg"]
    assert len(paths) >= 4
    for path in paths:
        (folder / path.name).symlink_to(path)
    source = ImageFolder(tmp_path)
    delivered, found = read_alike(lambda: source, transform=decoding.shape_of)
    assert len(delivered) + len(found) == len(paths)
    assert {pathlib.Path(where).name for _, where, _ in found} <= {"monkey12.jpg", "testimgari.jpg"}
    assert all("12-bit" in error or "arithmetic" in error for _, _, error in found)


def test_elements_that_do_not_fit_are_spec_errors_and_pictures_of_one_size_do(pictures: pathlib.Path) -> None:
    with Loader(
        ImageFolder(pictures.parent), apply_to(0, Resize(16, 16)), batch_size=4, num_workers=2, on_bad_sample="replace"
    ) as loader:
        batches = [images.shape for images, _ in loader]
    assert sum(shape[0] for shape in batches) == len(GOOD) + len(BAD)
    assert {shape[1:] for shape in batches} == {(16, 16, 3)}
