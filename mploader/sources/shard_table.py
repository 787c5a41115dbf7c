"""Shards and their samples as columns of numbers, in memory and in an index file.

The file holds a header, the columns as little-endian int64 and the names, under a CRC-32C. Nothing in it is
executed or unpickled, so an index file that came with foreign data is as harmless as the data.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import google_crc32c
import numpy as np

from mploader.sources.base import FileState, Int64Array, PackedStrings

_HEADER = struct.Struct("<8sIIQQQ")
_MAGIC = b"MPLINDEX"
_VERSION = 1
_CHECKED_FROM = 16  # first byte that the checksum covers


@dataclass(frozen=True)
class ShardScan:
    """The result of reading one shard."""

    state: FileState
    offsets: Int64Array  # first byte of each sample, and of the unreadable rest if there is one
    end: int  # byte after the last readable sample
    damaged: bool  # the last of `offsets` is that of an unreadable rest up to the end of the file
    head: int  # CRC-32C of the start of the first sample: tells a cut shard from a new one


@dataclass(frozen=True)
class ShardTable:
    """Shards in columns, all int64 with one row per shard, and the samples of all shards in `offsets`."""

    names: PackedStrings
    sizes: Int64Array  # bytes
    mtimes_ns: Int64Array
    ends: Int64Array
    damaged: Int64Array  # 0 or 1
    heads: Int64Array
    counts: Int64Array
    offsets: Int64Array  # shape (sum of counts,)

    @classmethod
    def of(cls, names: Iterable[str], scans: Sequence[ShardScan]) -> ShardTable:
        """Makes the table of shards that were just read."""

        def column(values: Iterable[int]) -> Int64Array:
            return np.fromiter(values, np.int64, len(scans))

        return cls(
            names=PackedStrings.of(names),
            sizes=column(scan.state.size for scan in scans),
            mtimes_ns=column(scan.state.mtime_ns for scan in scans),
            ends=column(scan.end for scan in scans),
            damaged=column(scan.damaged for scan in scans),
            heads=column(scan.head for scan in scans),
            counts=column(len(scan.offsets) for scan in scans),
            offsets=np.concatenate([scan.offsets for scan in scans]) if scans else np.zeros(0, np.int64),
        )

    @property
    def starts(self) -> Int64Array:
        """The number of samples before each shard, and in total. int64, shape (shards + 1,)."""
        starts = np.zeros(len(self.counts) + 1, np.int64)
        np.cumsum(self.counts, out=starts[1:])
        return starts

    def take(self, rows: Int64Array) -> ShardTable:
        """Returns the table of these rows, in their order."""
        if np.array_equal(rows, np.arange(len(self.counts))):
            return self
        starts = self.starts
        parts = [self.offsets[starts[row] : starts[row + 1]] for row in rows.tolist()]
        columns = [getattr(self, column)[rows] for column in _COLUMNS]
        columns.append(np.concatenate(parts) if parts else np.zeros(0, np.int64))
        return ShardTable(PackedStrings.of(self.names[row] for row in rows.tolist()), *columns)

    @staticmethod
    def joined(tables: Sequence[ShardTable]) -> ShardTable:
        """Concatenates the rows of several tables."""
        if len(tables) == 1:
            return tables[0]
        return ShardTable(
            PackedStrings.of(name for table in tables for name in table.names),
            *(np.concatenate([getattr(table, column) for table in tables]) for column in (*_COLUMNS, "offsets")),
        )


_COLUMNS = tuple(field.name for field in fields(ShardTable))[1:-1]


def load_table(index_path: str) -> ShardTable | None:
    """Returns the table in an index file, or None if the file does not exist or is damaged."""
    try:
        with open(index_path, "rb") as file:
            content = file.read()
    except OSError:
        return None
    if len(content) < _HEADER.size:
        return None
    magic, version, checksum, shards, samples, name_bytes = _HEADER.unpack_from(content)
    columns = (*_COLUMNS, "offsets")
    lengths = [shards + 1, *[shards] * len(_COLUMNS), samples]
    if (magic, version) != (_MAGIC, _VERSION) or len(content) != _HEADER.size + name_bytes + 8 * sum(lengths):
        return None
    if google_crc32c.value(content[_CHECKED_FROM:]) != checksum:
        return None
    numbers = np.frombuffer(content, "<i8", sum(lengths), _HEADER.size).astype(np.int64, copy=False)
    name_offsets, *values = np.split(numbers, np.cumsum(lengths)[:-1])
    blob = np.frombuffer(content, np.uint8, name_bytes, len(content) - name_bytes)
    if values[_COLUMNS.index("counts")].sum() != samples or (numbers < 0).any():
        return None
    return ShardTable(PackedStrings(blob, name_offsets), **dict(zip(columns, values, strict=True)))


def save_table(index_path: str, table: ShardTable) -> None:
    """Writes an index file, which appears complete or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    numbers = [table.names.offsets, *(getattr(table, column) for column in (*_COLUMNS, "offsets"))]
    body = b"".join([*(array.astype("<i8").tobytes() for array in numbers), table.names.blob.tobytes()])
    header = bytearray(_HEADER.pack(_MAGIC, _VERSION, 0, len(table.names), len(table.offsets), len(table.names.blob)))
    checksum = google_crc32c.value(bytes(header[_CHECKED_FROM:]) + body)
    _HEADER.pack_into(header, 0, _MAGIC, _VERSION, checksum, *_HEADER.unpack(header)[3:])
    folder, name = os.path.split(index_path)
    if os.path.basename(folder) == "index":
        os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}-{threading.get_ident()}.tmp")
    # Not tempfile, which makes private files: all users who may read the shards may read their index.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(header)
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, index_path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
