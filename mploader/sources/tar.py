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

    The archive is data: nothing is extracted or unpickled. A sample with a member that is a link, a device,
    a pipe or a sparse file, or whose name is absolute or has ``..`` in it, raises `SampleError` when it is
    read. So does a sample with two files of one name. Where a header is damaged or the archive has been
    cut, nothing behind it can be found: that rest, from the start of the sample that was being read, counts
    as one sample which raises `SampleError`. An archive without an end mark has been cut, too.

    Args:
        pattern: a path, a glob, a folder (its ``*.tar`` files), or a list of them.
        rebuild: read the shards through even if their index is current, and accept shards that were cut.
        save_index: keep the index of shards that were read through, beside them or in the user's cache folder.

    Raises:
        SourceError: see `Shards`; also compressed archives.
    """

    _kind: ClassVar[str] = "tar"
    _endings: ClassVar[tuple[str, ...]] = ("*.tar",)
    _unit: ClassVar[str] = "sample"

    @classmethod
    def scan(cls, path: str) -> ShardScan:
        """Finds the samples by the headers of the members; their contents are passed over."""
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
                # Unless another sample starts there, the one in hand may lack members that are behind the damage.
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
                raise self._error(index, "the shard was replaced after the source was made: samples are elsewhere now")
            extension = member.name[len(key) + 1 :].lower()
            if extension in sample:
                raise self._error(index, f"sample {key!r} has two files that end in {extension!r}")
            sample[extension] = record[member.data - start : member.data - start + member.size]
        if not sample:
            raise self._error(index, "the shard was replaced after the source was made: no sample is here now")
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
    """The key of the sample that a member belongs to; None if to none.

    A refused member that is no file of a sample is one by itself, so that it is shown: it was made to do harm.
    """
    key = None if member.is_directory else _key(member.name)
    return member.name if key is None and member.problem else key


def _key(name: str) -> str | None:
    """What stands before the first dot of a file's name, folder included; None where nothing does.

    As the expression ``^((?:.*/|)[^.]+)[.]([^/]*)$`` of webdataset/tariterators.py, whose time grows with the square of
    the name's length: an archive may hold names of a megabyte. By it a name that begins with a dot has its
    folder for a key, if no dot is in that.
    """
    folder, slash, file = name.rpartition("/")
    stem, dot, _ = file.partition(".")
    if not dot or (not stem and (not slash or "." in folder.rpartition("/")[2])):
        return None
    return folder + slash + stem
