"""TFRecord shards: read as TensorFlow reads them, and every damage is found and named."""

from __future__ import annotations

import gzip
import os
import pickle
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mploader.errors import SampleError, SourceError
from mploader.sources import Source, TFRecordShards
from mploader.sources.tf_example import MalformedExampleError, encode_example, parse_example
from mploader.sources.tfrecord import masked_crc32c
from mploader.sources.tfrecord_write import TFRecordWriter


def framed(record: bytes, length: int | None = None) -> bytes:
    field = struct.pack("<Q", len(record) if length is None else length)
    crcs = [struct.pack("<I", masked_crc32c(part)) for part in (field, record)]
    return field + crcs[0] + record + crcs[1]


def write_shard(path: Path, records: list[bytes]) -> Path:
    with TFRecordWriter(path) as writer:
        for record in records:
            writer.write(record)
    return path


def raw(path: Path | str, **options: Any) -> TFRecordShards:
    return TFRecordShards(path, raw=True, **options)


def outcome(source: TFRecordShards, index: int) -> bytes | None:
    try:
        return source[index]
    except SampleError:
        return None


class TestWithTensorFlow:
    def test_reads_what_tensorflow_writes(self, tmp_path: Path) -> None:
        tf = pytest.importorskip("tensorflow")
        path = tmp_path / "a.tfrecord"
        feature = {
            "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"\0\xff" * 50])),
            "names": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"a", b"b"])),
            "none": tf.train.Feature(bytes_list=tf.train.BytesList(value=[])),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[-(2**63)])),
            "box": tf.train.Feature(float_list=tf.train.FloatList(value=[0.1, 2.0])),
            "unset": tf.train.Feature(),
        }
        example = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(example)
            writer.write(b"")
        assert raw(path)[0] == example
        assert raw(path)[1] == b""
        sample = TFRecordShards(path)[0]
        assert sample["image"] == b"\0\xff" * 50
        assert sample["names"] == [b"a", b"b"]
        assert sample["none"] == [] == sample["unset"]
        assert sample["label"].dtype == np.int64
        assert sample["label"].tolist() == [-(2**63)]
        assert sample["box"].dtype == np.float32
        np.testing.assert_array_equal(sample["box"], np.float32([0.1, 2.0]))

    def test_tensorflow_reads_what_the_writer_writes(self, tmp_path: Path) -> None:
        tf = pytest.importorskip("tensorflow")
        features = {"image": b"\0a", "names": ["é", b"b"], "label": 7, "box": np.float64([[1, 2], [3, 4]]), "no": []}
        path = write_shard(tmp_path / "a.tfrecord", [encode_example(features), b"x" * 100_000])
        first, second = (record.numpy() for record in tf.data.TFRecordDataset(str(path)))
        assert second == b"x" * 100_000
        feature = tf.train.Example.FromString(first).features.feature
        assert list(feature["image"].bytes_list.value) == [b"\0a"]
        assert list(feature["names"].bytes_list.value) == ["é".encode(), b"b"]
        assert list(feature["label"].int64_list.value) == [7]
        assert list(feature["box"].float_list.value) == [1, 2, 3, 4]
        assert feature["no"].WhichOneof("kind") == "bytes_list"

    def test_random_examples_parse_as_in_tensorflow(self) -> None:
        tf = pytest.importorskip("tensorflow")
        generator = random.Random(3)
        for _ in range(200):
            features = {
                f"f{number}": generator.choice(
                    [
                        [generator.randbytes(generator.randrange(9)) for _ in range(generator.randrange(2, 5))],
                        [generator.randrange(-(2**63), 2**63) for _ in range(generator.randrange(1, 40))],
                        [generator.uniform(-9, 9) for _ in range(generator.randrange(1, 5))],
                    ]
                )
                for number in range(generator.randrange(6))
            }
            data = encode_example(features)
            theirs = tf.train.Example.FromString(data).features.feature
            ours = parse_example(data)
            assert set(ours) == set(theirs)
            for name, value in ours.items():
                kind = theirs[name].WhichOneof("kind")
                assert list(value) == list(getattr(theirs[name], kind).value)


class TestExample:
    def test_same_features_give_same_bytes(self) -> None:
        assert encode_example({"a": 1, "b": 2.5}) == encode_example({"b": 2.5, "a": 1})

    @pytest.mark.parametrize(
        ("value", "error"), [(None, TypeError), ({"x": 1}, TypeError), (2**63, OverflowError), (1j, TypeError)]
    )
    def test_what_no_example_holds(self, value: Any, error: type[Exception]) -> None:
        with pytest.raises(error):
            encode_example({"a": value})

    @pytest.mark.parametrize("data", [b"\x0a\xff", b"\x0a\x05abc", b"\x07", b"\xff" * 11])
    def test_other_bytes_are_refused(self, data: bytes) -> None:
        with pytest.raises(MalformedExampleError):
            parse_example(data)


class TestSequence:
    def test_records_of_several_shards_in_order(self, tmp_path: Path) -> None:
        for number, count in enumerate([3, 0, 2]):
            write_shard(tmp_path / f"{number}.tfrecord", [f"{number}/{i}".encode() for i in range(count)])
        source = raw(tmp_path / "*.tfrecord")
        assert isinstance(source, Source)
        assert list(source) == [b"0/0", b"0/1", b"0/2", b"2/0", b"2/1"]
        assert source.shard_sizes.tolist() == [3, 0, 2]
        assert source[-1] == b"2/1"
        assert source[np.int64(3)] == b"2/0"
        assert source.where(4) == f"{tmp_path / '2.tfrecord'}, record 1 at byte {16 + 3}"
        assert repr(source) == "TFRecordShards: 5 records in 3 shards"
        for index in (5, -6):
            with pytest.raises(IndexError, match="of 5 samples"):
                source[index]

    def test_random_records_in_random_order(self, tmp_path: Path) -> None:
        generator = random.Random(7)
        expected = []
        for number in range(5):
            sizes = [generator.choice([0, 1, 30, 5000, 200_000]) for _ in range(20)]
            records = [generator.randbytes(size) for size in sizes]
            write_shard(tmp_path / f"{number}.tfrecord", records)
            expected += records
        source = raw(tmp_path)
        for index in generator.sample(range(100), 100):
            assert source[index] == expected[index]

    def test_pickles_without_copying_and_without_descriptors(self, tmp_path: Path) -> None:
        source = raw(write_shard(tmp_path / "a.tfrecord", [b"%d" % i for i in range(10_000)]))
        source[3]
        buffers: list[pickle.PickleBuffer] = []
        state = pickle.dumps(source, protocol=5, buffer_callback=buffers.append)
        assert len(state) < 1000
        assert sum(buffer.raw().nbytes for buffer in buffers) >= 8 * 10_000
        again = pickle.loads(state, buffers=buffers)
        assert again[9_999] == b"9999"
        assert again.fingerprint() == source.fingerprint()

    def test_fingerprint_follows_the_data_and_not_its_place_or_age(self, tmp_path: Path) -> None:
        prints = []
        for folder, records in [("a", [b"x", b"y"]), ("b", [b"x", b"y"]), ("c", [b"x", b"yy"]), ("d", [b"xy", b""])]:
            (tmp_path / folder).mkdir()
            prints.append(raw(write_shard(tmp_path / folder / "0.tfrecord", records)).fingerprint())
        os.utime(tmp_path / "a" / "0.tfrecord", (1, 1))
        assert raw(tmp_path / "a").fingerprint() == prints[0] == prints[1]
        assert len(set(prints)) == 3


class TestDamage:
    records = (b"first" * 9, b"second" * 9, b"third" * 9)

    @pytest.mark.parametrize(
        ("field", "offset"), [("length", 3), ("length crc", 9), ("data", 20), ("data crc", 12 + 54 + 1)]
    )
    @pytest.mark.parametrize("before", [True, False], ids=["damaged before indexing", "damaged after"])
    def test_a_flipped_bit_in_each_field(self, tmp_path: Path, field: str, offset: int, before: bool) -> None:
        path = write_shard(tmp_path / "a.tfrecord", list(self.records))
        content = bytearray(path.read_bytes())
        start = 16 + len(self.records[0])
        content[start + offset] ^= 0x10
        source = None if before else raw(path)
        status = path.stat()
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # a disk that rots tells nobody
        source = source or raw(path)
        assert source[0] == self.records[0]
        with pytest.raises(SampleError, match=rf"a.tfrecord, record 1 at byte {start}: "):
            source[1]
        if before and field.startswith("length"):  # nothing tells where the next record is
            assert len(source) == 2
        else:
            assert len(source) == 3
            assert source[2] == self.records[2]

    def test_cut_at_every_byte_without_an_index(self, tmp_path: Path) -> None:
        whole = b"".join(map(framed, self.records))
        borders = [sum(len(record) + 16 for record in self.records[:count]) for count in range(4)]
        for size in range(borders[1], len(whole)):
            path = tmp_path / f"{size}.tfrecord"
            path.write_bytes(whole[:size])
            source = raw(path)
            readable = sum(border <= size for border in borders) - 1
            damaged = size not in borders
            assert len(source) == readable + damaged
            assert [source[i] for i in range(readable)] == list(self.records[:readable])
            if damaged:
                with pytest.raises(SampleError, match=f"at byte {borders[readable]}: the rest of the shard, "):
                    source[readable]

    def test_cut_at_every_byte_after_it_was_indexed(self, tmp_path: Path) -> None:
        whole = b"".join(map(framed, self.records))
        path = tmp_path / "a.tfrecord"
        path.write_bytes(whole)
        raw(path)
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            with pytest.raises(SourceError, match=f"has been cut: it held 3 samples in {len(whole)} bytes") as caught:
                raw(path)
            assert f"in {size} bytes are left" in str(caught.value)

    def test_cut_shard_is_accepted_on_request(self, tmp_path: Path) -> None:
        path = write_shard(tmp_path / "a.tfrecord", list(self.records))
        raw(path)
        path.write_bytes(path.read_bytes()[: -(16 + len(self.records[2]))])
        with pytest.raises(SourceError, match="the first 2 of them"):
            raw(path)
        assert len(raw(path, rebuild=True)) == 2
        assert len(raw(path)) == 2

    def test_cut_while_open(self, tmp_path: Path) -> None:
        path = write_shard(tmp_path / "a.tfrecord", list(self.records))
        source = raw(path)
        os.truncate(path, path.stat().st_size - 1)
        assert [outcome(source, index) for index in range(3)] == [None] * 3
        with pytest.raises(SampleError, match=r"record 1 at byte .*has changed since .* expected \d+ bytes, got"):
            source[1]

    @pytest.mark.parametrize("length", [0, 2**31, 2**63, 2**64 - 1])
    def test_length_fields_that_lie_take_no_memory(self, tmp_path: Path, length: int) -> None:
        path = tmp_path / "a.tfrecord"
        path.write_bytes(framed(b"good") + framed(b"x" * 40, length=length))
        source = raw(path)
        assert source[0] == b"good"
        with pytest.raises(SampleError, match="at byte 20: "):
            source[1]

    def test_replaced_while_in_use(self, tmp_path: Path) -> None:
        path = write_shard(tmp_path / "a.tfrecord", [b"a" * 40, b"b" * 40])
        source = raw(path)
        write_shard(path, [b"c" * 10, b"d" * 70])
        assert [outcome(source, index) for index in range(2)] == [None, None]

    def test_replaced_while_open_reads_on_as_it_was(self, tmp_path: Path) -> None:
        path = write_shard(tmp_path / "a.tfrecord", [b"a" * 40, b"b" * 40])
        source = raw(path)
        assert source[0] == b"a" * 40
        write_shard(path, [b"c" * 10, b"d" * 70])
        assert source[1] == b"b" * 40

    def test_replaced_by_one_that_looks_the_same_is_not_mixed_with_it(self, tmp_path: Path) -> None:
        path = write_shard(tmp_path / "a.tfrecord", [b"a" * 40, b"b" * 40])
        source = raw(path)
        write_shard(path, [b"c" * 40, b"d" * 40])
        with pytest.raises(SampleError, match=r"record 0 at byte 0: .*another one of the same size"):
            source[0]

    def test_written_to_while_open(self, tmp_path: Path) -> None:
        path = write_shard(tmp_path / "a.tfrecord", [b"a" * 40, b"b" * 40])
        source = raw(path)
        assert source[0] == b"a" * 40
        content = path.read_bytes()
        write_shard(tmp_path / "b.tfrecord", [b"c" * 40, b"d" * 40])
        path.write_bytes((tmp_path / "b.tfrecord").read_bytes())  # into the file that is open
        assert [outcome(source, index) for index in range(2)] == [None, None]
        path.write_bytes(content)
        os.utime(path, ns=(0, int(source._mtimes_ns[0])))
        assert source[1] == b"b" * 40

    def test_gone_or_a_folder_at_read(self, tmp_path: Path) -> None:
        path = write_shard(tmp_path / "a.tfrecord", [b"a"])
        source = raw(path)
        path.unlink()
        with pytest.raises(SampleError, match=r"record 0 at byte 0: the shard was there .* gone"):
            source[0]
        path.mkdir()
        with pytest.raises(SampleError, match="not a regular file"):
            source[0]

    def test_no_example(self, tmp_path: Path) -> None:
        source = TFRecordShards(write_shard(tmp_path / "a.tfrecord", [b"\xff\xff"]))
        with pytest.raises(SampleError, match=r"a.tfrecord, record 0 at byte 0: .* raw=True"):
            source[0]


class TestRefused:
    @pytest.mark.parametrize(("name", "compress"), [("gzip", gzip.compress), ("zlib", zlib.compress)])
    def test_compressed(self, tmp_path: Path, name: str, compress: Any) -> None:
        path = tmp_path / "a.tfrecord"
        path.write_bytes(compress(framed(b"x" * 1000)))
        with pytest.raises(SourceError, match=f"compressed with {name}.*without compression"):
            raw(path)

    def test_foreign_format(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tfrecord"
        path.write_bytes(b"\x89PNG and so on, for some bytes")
        with pytest.raises(SourceError, match="not one record can be read from 1 shards"):
            raw(path)

    def test_no_records_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "a.tfrecord").touch()
        with pytest.raises(SourceError, match="hold no record at all"):
            raw(tmp_path)

    def test_missing_shard_of_a_list(self, tmp_path: Path) -> None:
        path = write_shard(tmp_path / "a.tfrecord", [b"a"])
        with pytest.raises(SourceError, match=r"no file matches .*b\.tfrecord"):
            raw([path, tmp_path / "b.tfrecord"])  # type: ignore[arg-type]


class TestWriter:
    def test_nothing_is_left_of_a_failed_shard(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tfrecord"
        writer = TFRecordWriter(path)
        writer.write(b"x" * 100_000)
        assert not path.exists()
        writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        assert list(tmp_path.iterdir()) == []
