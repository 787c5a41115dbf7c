"""The base of all sources of sharded records: from the index of a sample to its bytes in a shard."""

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
    """Samples that lie one after the other in shards. Base of `TFRecordShards` and `TarShards`.

    The state is the paths, one row of numbers per shard and one int64 per sample, all in NumPy arrays, so that
    pickling (protocol 5 with out-of-band buffers) copies nothing. Each process opens files when it first reads them.

    If the size or time of change of a shard changes while it is in use, each sample that is read from then on raises
    `SampleError`: old and new samples are never mixed. A process that has a shard open when another file replaces it
    continues to read the old one.

    Args:
        pattern: a path, a glob, a folder, or a list of them; see `mploader.sources.file_patterns.expand`. Each
            shard is taken once, however many patterns match it.
        rebuild: whether to read all shards even if their index is current, and accept shards that were cut.
        save_index: whether to save the index, in the shards' folder or in the user's cache folder.

    Raises:
        SourceError: no file matches; a shard is missing, compressed, or was cut after it was indexed; the
            shards hold no samples, or none of them is of this format.
    """

    _kind: ClassVar[str]  # name of the index file
    _endings: ClassVar[tuple[str, ...]]  # globs of file names that belong to the format
    _unit: ClassVar[str]  # the word for a sample in messages

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
            raise SourceError(
                f"{len(paths)} shards hold no {self._unit} at all, the first being {paths[0]}", file=paths[0]
            )
        if self._damaged.sum() == len(self):
            raise SourceError(
                f"not one {self._unit} can be read from {len(paths)} shards: they are damaged or of "
                f"another format. In {paths[0]}: {self._why_unreadable(0)}",
                file=paths[0],
                byte=0,
            )

    @classmethod
    @abstractmethod
    def scan(cls, path: str) -> ShardScan:
        """Finds the samples of one shard. Runs once per shard, in a thread of the trainer."""

    @abstractmethod
    def _sample(self, record: bytes, shard: int, index: int) -> Any:
        """Returns the sample from its bytes in the shard."""

    @abstractmethod
    def _why_unreadable(self, shard: int) -> str:
        """Explains why the rest of a shard is unreadable."""

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
        """The size of all shards together, in bytes."""
        return int(self._sizes.sum())

    def empty_shards(self) -> list[str]:
        """Returns the paths of shards of 0 bytes."""
        return [self._paths[shard] for shard in np.flatnonzero(self._sizes == 0).tolist()]

    def damaged_shards(self) -> dict[str, str]:
        """Returns for the path of each shard with an unreadable rest, where that starts and why it is unreadable."""
        reasons = {}
        for shard in np.flatnonzero(self._damaged).tolist():
            index = int(self._starts[shard + 1]) - 1
            try:
                reasons[self._paths[shard]] = str(self._unreadable(index, shard))
            except SampleError as error:
                reasons[self._paths[shard]] = str(error)
            except OSError as error:
                reasons[self._paths[shard]] = f"{self.where(index)}: {error.strerror or error}"
        return reasons

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int, /) -> Any:
        """Returns a sample, read from its shard.

        Raises:
            IndexError: the index is outside the source.
            SampleError: the sample is damaged, or its shard was removed or has changed; carries index, file, byte.
            OSError: the machine failed (EIO, EMFILE, ESTALE, ...); carries the file's name.
        """
        index = checked_index(index, len(self))
        shard, start, end = self._locate(index)
        if self._damaged[shard] and index + 1 == self._starts[shard + 1]:
            raise self._unreadable(index, shard)
        if end - start > MAX_READ_BYTES:
            raise self._error(index, f"expected a sample of at most {MAX_READ_BYTES} bytes, got {end - start}")
        record = self._read(index, shard, start, end - start)
        if len(record) < end - start:  # cut since its state was checked
            raise self._changed(index, f"it ends at byte {start + len(record)}")
        return self._sample(record, shard, index)

    def _unreadable(self, index: int, shard: int) -> SampleError:
        rest = int(self._sizes[shard] - self._offsets[index])
        return self._error(index, f"the rest of the shard, {rest} bytes, cannot be read: {self._why_unreadable(shard)}")

    def _read(self, index: int, shard: int, offset: int, size: int) -> bytes:
        expected = FileState(int(self._sizes[shard]), int(self._mtimes_ns[shard]))
        try:
            return self._files.read(self._paths[shard], offset, size, expected)
        except FileNotFoundError as error:
            raise self._error(
                index,
                "the shard was there when the source was made and is gone now. Restore it, or make a new source",
            ) from error
        except FileChangedError as error:
            raise self._changed(index, str(error)) from None
        except SourceError:
            raise
        except SampleError as error:  # a folder or a pipe has its name now
            raise self._error(index, str(error)) from None

    def _changed(self, index: int, how: str) -> SampleError:
        return self._error(
            index, f"the shard has changed since the source was made: {how}. Copy it again, or make the source again."
        )

    def _locate(self, index: int) -> tuple[int, int, int]:
        """Returns the shard of a sample, its first byte, and the byte after its last."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        is_last = index + 1 == self._starts[shard + 1]
        end = self._ends[shard] if is_last else self._offsets[index + 1]
        return shard, int(self._offsets[index]), int(end)

    def _error(self, index: int, what: str) -> SampleError:
        where = self.where(index)
        return SampleError(f"{where}: {what}", index=index, file=where.file, byte=where.byte)

    def where(self, index: int) -> Location:
        """Returns the shard of a sample, its number in the shard, and its first byte."""
        index = checked_index(index, len(self))
        shard, start, _ = self._locate(index)
        path, start = self._paths[shard], int(start)
        return Location(f"{path}, {self._unit} {index - self._starts[shard]} at byte {start}", path, start)

    def fingerprint(self) -> str:
        """Hashes the shards' names without their folders, their sizes, and the offsets of the samples in them."""
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
    """Makes the result of a scan. `offsets` excludes the unreadable rest, which starts at `end`."""
    head = b""
    if len(offsets):
        first_end = int(offsets[1]) if len(offsets) > 1 else end
        head = scanner.read(int(offsets[0]), min(first_end - int(offsets[0]), _HEAD_BYTES))
    if damaged:
        offsets = np.append(offsets, end)
    return ShardScan(scanner.state, offsets, end, damaged, google_crc32c.value(head))


def refuse_compressed(path: str, start: bytes, remedy: str) -> None:
    """Raises SourceError for a compressed shard, in which no sample can be read without those before it."""
    name = next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)
    if name is None and start[:2] in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"):
        # Two bytes are weak evidence: a damaged length field may begin with them.
        with contextlib.suppress(zlib.error):
            zlib.decompressobj().decompress(start)
            name = "zlib"
    if name is not None:
        raise SourceError(
            f"{path} is compressed with {name}, so its samples cannot be read in any order. {remedy}", file=path
        )
