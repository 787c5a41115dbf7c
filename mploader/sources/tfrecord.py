"""TFRecord shards.

A record is framed as (tensorflow/core/lib/io/record_writer.h)::

    uint64 length, uint32 masked CRC-32C of the length, the data, uint32 masked CRC-32C of the data

in little-endian order. Both checksums are verified at every read.
"""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING, ClassVar

import google_crc32c
import numpy as np

from mploader.sources.base import Pattern
from mploader.sources.scanner import Scanner
from mploader.sources.shard_table import ShardScan
from mploader.sources.shards import Shards, refuse_compressed, scanned

if TYPE_CHECKING:
    from mploader.sources.tf_example import Value

HEADER_BYTES = 12
FRAME_BYTES = 16  # header and footer

_LENGTH_AND_CRC = struct.Struct("<QI")
_CRC = struct.Struct("<I")


def masked_crc32c(data: bytes) -> int:
    """Returns the checksum of TFRecords: CRC-32C, rotated and shifted (``Mask`` of crc32c.h in TensorFlow)."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFF_FFFF


def header_problem(header: bytes, bytes_left: int) -> str | None:
    """Explains what is wrong with a record's header, or returns None.

    Args:
        header: up to HEADER_BYTES bytes.
        bytes_left: from the start of the record to the end of the shard.
    """
    if len(header) < HEADER_BYTES or bytes_left < FRAME_BYTES:
        return f"expected at least {FRAME_BYTES} bytes for a record, got {bytes_left}. The shard has been cut."
    length, checksum = _LENGTH_AND_CRC.unpack(header)
    if masked_crc32c(header[:8]) != checksum:
        return f"the checksum of the length field ({length}) is wrong. It is damaged, or this is not a TFRecord shard."
    if length > bytes_left - FRAME_BYTES:
        return f"expected a record of {length} bytes, got {bytes_left - FRAME_BYTES}. The shard has been cut."
    return None


class TFRecordShards(Shards):
    """The records of TFRecord shards, uncompressed.

    A sample is a dict of feature name to value, parsed from `tf.train.Example` without TensorFlow: a bytes
    feature with one value is bytes, one with none or several a list of bytes; int64 and float features are
    1-d arrays of int64 and float32, of length 1 for a single number; a feature that was never set is an
    empty list. With ``raw=True`` it is the record's bytes.

    After a damaged length field, or if the shard ends within a record, no further records can be found. This
    rest counts as one sample, which raises `SampleError` when it is read, so that ``on_bad_sample`` applies to it.

    Args:
        pattern: a path, a glob, a folder (its ``*.tfrecord``, ``*.tfrecords`` and ``*.tfrecord-*`` files),
            or a list of them.
        raw: whether to return the bytes of the records instead of parsing them.
        rebuild: whether to read all shards even if their index is current, and accept shards that were cut.
        save_index: whether to save the index, in the shards' folder or in the user's cache folder.

    Raises:
        SourceError: see `Shards`; the shards may also be compressed.
    """

    _kind: ClassVar[str] = "tfrecord"
    _endings: ClassVar[tuple[str, ...]] = ("*.tfrecord", "*.tfrecords", "*.tfrecord-*")
    _unit: ClassVar[str] = "record"

    def __init__(self, pattern: Pattern, raw: bool = False, *, rebuild: bool = False, save_index: bool = True):
        self._raw = raw
        super().__init__(pattern, rebuild=rebuild, save_index=save_index)

    @classmethod
    def scan(cls, path: str) -> ShardScan:
        """Finds the records by their length fields, without reading the data."""
        offsets = array("q")
        offset = 0
        with Scanner(path) as scanner:
            size = scanner.state.size
            while offset < size:
                header = scanner.read(offset, HEADER_BYTES)
                if header_problem(header, size - offset) is not None:
                    if not offset:
                        refuse_compressed(
                            path, header, "Write it without compression (JPEG and PNG gain nothing by it)."
                        )
                    break
                offsets.append(offset)
                offset += FRAME_BYTES + int.from_bytes(header[:8], "little")
            return scanned(scanner, np.array(offsets, np.int64), offset, damaged=offset < size)

    def _sample(self, record: bytes, shard: int, index: int) -> bytes | dict[str, Value]:
        length = int.from_bytes(record[:8], "little")
        if length != len(record) - FRAME_BYTES or masked_crc32c(record[:8]) != _CRC.unpack(record[8:12])[0]:
            raise self._error(
                index,
                f"expected a record of {len(record) - FRAME_BYTES} bytes, but its length field says {length}. The "
                "field is damaged, or the shard was replaced after the source was made.",
            )
        data = record[HEADER_BYTES:-4]
        if masked_crc32c(data) != _CRC.unpack(record[-4:])[0]:
            raise self._error(
                index,
                f"the checksum of its {length} bytes is wrong. The shard is damaged: copy it again.",
            )
        if self._raw:
            return data
        # Imported here, because protobuf costs a worker 20 ms and some MiB, and raw=True does not need it.
        from mploader.sources.tf_example import MalformedExampleError, parse_example

        try:
            return parse_example(data)
        except MalformedExampleError as error:
            raise self._error(
                index,
                f"its {length} bytes are not a tf.train.Example ({error}). For other records use raw=True.",
            ) from None

    def _why_unreadable(self, shard: int) -> str:
        start, size = int(self._offsets[self._starts[shard + 1] - 1]), int(self._sizes[shard])
        header = self._read(int(self._starts[shard + 1]) - 1, shard, start, HEADER_BYTES)
        return (
            header_problem(header, size - start) or "it was damaged when the shard was indexed and has changed since."
        )
