"""What all sources of sharded records share: numbers of samples to bytes of shards."""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import google_crc32c
import numpy as np

from mploader._util.location import Location
from mploader.errors import SampleError, SourceError
from mploader.sources.base import FileState, Int64Array, PackedStrings, Pattern, checked_index
from mploader.sources.file_patterns import expand
from mploader.sources.files import MAX_READ_BYTES
from mploader.sources.index import index_shards
from mploader.sources.open_files import FileChangedError, OpenFiles
from mploader.sources.scanner import Scanner
from mploader.sources.shard_table import ShardScan

_HEAD_BYTES = 1 << 16
_COMPRESSED = {b"\x1f\x8b\x08": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Shards:
    """Samples that lie behind each other in shards. Base of `TFRecordShards` and `TarShards`.

    State: the paths, one row of numbers a shard and one int64 a sample, all in NumPy arrays, so that
    pickling (protocol 5 with out-of-band buffers) copies nothing. Files are opened when first read, in the
    process that reads.

    A shard that changes while it is in use, by size or time of change, gives a `SampleError` for each
    sample that is read from then on: old and new samples are never mixed. A process that has a shard open
    when another file takes its place reads on in the old one.

    Args:
        pattern: a path, a glob, a folder, or a list of them; see `mploader.sources.file_patterns.expand`. Each
            shard is taken once, however many patterns match it.
        rebuild: read the shards through even if their index is current, and accept shards that were cut.
        save_index: keep the index of shards that were read through, beside them or in the user's cache folder.

    Raises:
        SourceError: nothing matches; a shard is missing, compressed, or was cut after it was indexed; the
            shards hold no sample, or none of them is of this format.
    """

    _kind: ClassVar[str]  # name of the index file
    _endings: ClassVar[tuple[str, ...]]  # globs of file names that belong to the format
    _unit: ClassVar[str]  # what a sample is called in messages

    def __init__(self, pattern: Pattern, *, rebuild: bool = False, save_index: bool = True):
        paths = expand(pattern, self._endings)
        table = index_shards(paths, self._kind, self.scan, rebuild=rebuild, save_index=save_index)
        self._paths = PackedStrings.of(paths)
        self._sizes = table.sizes
        self._mtimes_ns = table.mtimes_ns
        self._ends = np.where(table.damaged, table.sizes, table.ends)
        self._damaged = table.damaged
        self._starts = table.starts
        self._offsets = table.offsets
        self._files = OpenFiles()
        if not len(self):
            raise SourceError(f"{len(paths)} shards hold no {self._unit} at all, the first being {paths[0]}")
        if self._damaged.sum() == len(self):
            raise SourceError(
                f"not one {self._unit} can be read from {len(paths)} shards: they are damaged or of "
                f"another format. In {paths[0]}: {self._why_unreadable(0)}"
            )

    @classmethod
    @abstractmethod
    def scan(cls, path: str) -> ShardScan:
        """Finds the samples of one shard. Runs once a shard, in a thread of the trainer."""

    @abstractmethod
    def _sample(self, record: bytes, shard: int, index: int) -> Any:
        """The sample from its bytes in the shard."""

    @abstractmethod
    def _why_unreadable(self, shard: int) -> str:
        """What is wrong at the start of the unreadable rest of a shard."""

    @property
    def paths(self) -> Sequence[str]:
        """The path of each shard."""
        return self._paths

    @property
    def shard_sizes(self) -> Int64Array:
        """The number of samples in each shard, int64, shape (shards,); an unreadable rest counts as one."""
        return np.diff(self._starts)

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards together."""
        return int(self._sizes.sum())

    def empty_shards(self) -> list[str]:
        """The paths of the shards without a byte."""
        return [self._paths[shard] for shard in np.flatnonzero(self._sizes == 0).tolist()]

    def damaged_shards(self) -> dict[str, str]:
        """The path of each shard with an unreadable rest, and where and why, as far as it can be read now."""
        told = {}
        for shard in np.flatnonzero(self._damaged).tolist():
            index = int(self._starts[shard + 1]) - 1
            try:
                told[self._paths[shard]] = str(self._unreadable(index, shard))
            except SampleError as error:
                told[self._paths[shard]] = str(error)
            except OSError as error:
                told[self._paths[shard]] = f"{self.where(index)}: {error.strerror or error}"
        return told

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int, /) -> Any:
        """The sample with this number, read from its shard.

        Raises:
            IndexError: outside of the source.
            SampleError: the sample is damaged, or its shard is gone or has changed; names file and byte.
            OSError: the environment failed (EIO, EMFILE, ESTALE, ...); has the file's name.
        """
        position = checked_index(index, len(self))
        shard, start, end = self._locate(position)
        if self._damaged[shard] and position + 1 == self._starts[shard + 1]:
            raise self._unreadable(position, shard)
        if end - start > MAX_READ_BYTES:
            raise self._error(position, f"{end - start} bytes are more than the {MAX_READ_BYTES} of the largest sample")
        record = self._read(position, shard, start, end - start)
        if len(record) < end - start:  # cut at this very moment
            raise self._changed(position, f"it ends at byte {start + len(record)}")
        return self._sample(record, shard, position)

    def _unreadable(self, position: int, shard: int) -> SampleError:
        rest = int(self._sizes[shard] - self._offsets[position])
        return self._error(
            position, f"the rest of the shard, {rest} bytes, cannot be read: {self._why_unreadable(shard)}"
        )

    def _read(self, index: int, shard: int, offset: int, size: int) -> bytes:
        expected = FileState(int(self._sizes[shard]), int(self._mtimes_ns[shard]))
        try:
            return self._files.read(self._paths[shard], offset, size, expected)
        except FileNotFoundError as error:
            raise self._error(index, "the shard was there when the source was made and is gone now") from error
        except FileChangedError as error:
            raise self._changed(index, str(error)) from None

    def _changed(self, index: int, how: str) -> SampleError:
        return self._error(
            index, f"the shard has changed since the source was made: {how}. Copy it again, or start again with it."
        )

    def _locate(self, position: int) -> tuple[int, int, int]:
        """Shard, first byte and the byte after the last, of a sample."""
        shard = int(np.searchsorted(self._starts, position, side="right")) - 1
        is_last = position + 1 == self._starts[shard + 1]
        end = self._ends[shard] if is_last else self._offsets[position + 1]
        return shard, int(self._offsets[position]), int(end)

    def _error(self, index: int, what: str) -> SampleError:
        where = self.where(index)
        return SampleError(f"{where}: {what}", index=index, file=where.file, byte=where.byte)

    def where(self, index: int) -> Location:
        """Shard, number within the shard and first byte of a sample."""
        position = checked_index(index, len(self))
        shard, start, _ = self._locate(position)
        path, start = self._paths[shard], int(start)
        return Location(f"{path}, {self._unit} {position - self._starts[shard]} at byte {start}", path, start)

    def fingerprint(self) -> str:
        """Hashes of the shards' names without their folders, of their sizes, and of where the samples lie in them."""
        names = hashlib.sha256(self._kind.encode())
        for path in self._paths:
            names.update(path.rpartition("/")[2].encode("utf-8", "surrogateescape") + b"\0")
        samples = hashlib.sha256(self._starts.tobytes())
        samples.update(google_crc32c.value(self._offsets.tobytes()).to_bytes(4, "big"))
        sizes = hashlib.sha256(self._sizes.tobytes())
        hashes = (digest.hexdigest()[:16] for digest in (names, sizes, samples))
        return "names {}, sizes {}, record places {}".format(*hashes)

    def __repr__(self) -> str:
        shards = f"1 shard, {self._paths[0]}" if len(self._paths) == 1 else f"{len(self._paths)} shards"
        damaged = f", {damaged} of them damaged" if (damaged := int(self._damaged.sum())) else ""
        return f"{type(self).__name__}: {len(self)} {self._unit}s in {shards}{damaged}"


def scanned(scanner: Scanner, offsets: Int64Array, end: int, damaged: bool) -> ShardScan:
    """The result of a scan; `offsets` without the unreadable rest, which starts at `end`."""
    head = b""
    if len(offsets):
        first_end = int(offsets[1]) if len(offsets) > 1 else end
        head = scanner.read(int(offsets[0]), min(first_end - int(offsets[0]), _HEAD_BYTES))
    if damaged:
        offsets = np.append(offsets, end)
    return ShardScan(scanner.state, offsets, end, damaged, google_crc32c.value(head))


def refuse_compressed(path: str, start: bytes, remedy: str) -> None:
    """SourceError for a compressed shard: a sample in the middle of it cannot be reached."""
    name = next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)
    if name is None and start[:2] in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"):
        # Two bytes prove little: a damaged length field may begin so.
        with contextlib.suppress(zlib.error):
            zlib.decompressobj().decompress(start)
            name = "zlib"
    if name is not None:
        raise SourceError(f"{path} is compressed with {name}, so its samples cannot be read in any order. {remedy}")
