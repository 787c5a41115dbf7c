"""Tar shards in the layout of WebDataset."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from mploader.sources.scanner import Scanner
from mploader.sources.shard_table import ShardScan
from mploader.sources.shards import Shards, refuse_compressed, scanned
from mploader.sources.tar_format import BLOCK, TarDamageError, WorkerEntry, members


class TarShards(Shards):
    """The samples of uncompressed tar archives: neighbouring files that share their name up to its first dot.

    A sample is a dict: the rest of each file's name (in lower case, without the dot) to its content as
    bytes, and ``"__key__"`` to the shared part, folder included. So ``a/1.jpg`` and ``a/1.cls`` give
    ``{"__key__": "a/1", "jpg": ..., "cls": ...}``. As in WebDataset, files without a dot in their name, or
    with one in front, belong to no sample.

    Nothing is extracted or unpickled. A sample with a member that is a link, a device, a pipe or a sparse file,
    or whose name is absolute or has ``..`` in it, raises `SampleError` when it is read. So does a sample with
    two files of the same name. After a damaged header, or in an archive that has been cut, no further samples
    can be found: this rest, from the start of the last incomplete sample, counts as one sample that raises
    `SampleError`. An archive without an end mark has been cut, too.

    Args:
        pattern: a path, a glob, a folder (its ``*.tar`` files), or a list of them.
        rebuild: whether to read all shards even if their index is current, and accept shards that were cut.
        save_index: whether to save the index, in the shards' folder or in the user's cache folder.

    Raises:
        SourceError: see `Shards`; the archives may also be compressed.
    """

    _kind: ClassVar[str] = "tar"
    _endings: ClassVar[tuple[str, ...]] = ("*.tar",)
    _unit: ClassVar[str] = "sample"

    @classmethod
    def scan(cls, path: str) -> ShardScan:
        """Finds the samples by the headers of the members, without reading their contents."""
        offsets = array("q")
        last_key = None
        end = 0
        damaged = False
        with Scanner(path) as scanner:
            size = scanner.state.size
            refuse_compressed(path, scanner.read(0, BLOCK)[:64], "Decompress it (JPEG and PNG gain nothing by it).")
            try:
                for member in members(scanner.read, 0, size) if size else ():
                    key = _sample_key(member)
                    if key is not None and key != last_key:
                        offsets.append(member.start)
                        last_key = key
                    end = member.end
            except TarDamageError as error:
                damaged, end = True, error.offset
                # Unless another sample starts there, the last one may lack members beyond the damage.
                if offsets and (error.name is None or _key(error.name) == last_key):
                    end = offsets.pop()
            return scanned(scanner, np.array(offsets, np.int64), end, damaged)

    def _sample(self, record: bytes, shard: int, index: int) -> dict[str, bytes | str]:
        start = self._locate(index)[1]
        sample: dict[str, bytes | str] = {}
        for member in self._members(record, start, index):
            key = _sample_key(member)
            if key is None:
                continue
            if member.problem is not None:
                raise self._error(
                    index,
                    f"{member.name!r} at byte {member.start} is refused: {member.problem}.",
                )
            if sample.setdefault("__key__", key) != key:
                raise self._error(
                    index, "the shard was replaced after the source was made: another sample starts here now"
                )
            extension = member.name[len(key) + 1 :].lower()
            if extension in sample:
                raise self._error(index, f"sample {key!r} has two files that end in {extension!r}")
            sample[extension] = record[member.data - start : member.data - start + member.size]
        if not sample:
            raise self._error(index, "the shard was replaced after the source was made: expected a sample here")
        return sample

    def _members(self, record: bytes, start: int, index: int) -> Iterator[WorkerEntry]:
        def read(offset: int, size: int) -> bytes:
            return record[offset - start : offset - start + size]

        try:
            yield from members(read, start, start + len(record), is_part=True)
        except TarDamageError as error:
            raise self._error(index, f"{error}; it was readable when the shard was indexed") from None

    def _why_unreadable(self, shard: int) -> str:
        index = int(self._starts[shard + 1]) - 1
        start, size = int(self._offsets[index]), int(self._sizes[shard])
        try:
            for _ in members(lambda offset, size: self._read(index, shard, offset, size), start, size):
                pass
        except TarDamageError as error:
            return str(error)
        return "it was damaged when the shard was indexed and has changed since"


def _sample_key(member: WorkerEntry) -> str | None:
    """Returns the key of the sample that a member belongs to, or None.

    A refused member outside all samples becomes a sample by itself, so that it is reported: it may be an attack.
    """
    key = None if member.is_directory else _key(member.name)
    return member.name if key is None and member.problem else key


def _key(name: str) -> str | None:
    """Returns a file's name up to its first dot, folder included; None if that is empty.

    Equals the expression ``^((?:.*/|)[^.]+)[.]([^/]*)$`` of webdataset/tariterators.py, without its time that grows
    with the square of the name's length: an archive may hold names of a megabyte. By it the key of a name that begins
    with a dot is its folder, if that has no dot.
    """
    folder, slash, file = name.rpartition("/")
    stem, dot, _ = file.partition(".")
    if not dot or (not stem and (not slash or "." in folder.rpartition("/")[2])):
        return None
    return folder + slash + stem
