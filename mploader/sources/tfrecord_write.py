"""TFRecord shards for tests, `mploader synth` and conversions."""

from __future__ import annotations

import os
import struct
from types import TracebackType

from mploader.sources.base import PathLike
from mploader.sources.tf_example import encode_example
from mploader.sources.tfrecord import masked_crc32c

__all__ = ["TFRecordWriter", "encode_example"]


class TFRecordWriter:
    """Writes one shard, which appears under its name only when it is complete.

    A context manager: an exception in its block removes the unfinished shard. A killed program leaves at most
    a file whose name starts with a dot and ends in ``.tmp``, which no pattern of mploader matches.

    Args:
        path: of the shard; an existing file is replaced.
    """

    def __init__(self, path: PathLike):
        self._path = os.fspath(path)
        folder, name = os.path.split(self._path)
        self._temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
        self._file = open(self._temporary, "wb")  # noqa: SIM115  closed by close() or abort()

    def write(self, record: bytes) -> None:
        """Appends one record."""
        length = struct.pack("<Q", len(record))
        self._file.write(length + struct.pack("<I", masked_crc32c(length)))
        self._file.write(record)
        self._file.write(struct.pack("<I", masked_crc32c(record)))

    def close(self) -> None:
        """Flushes to the disk and gives the shard its name. A second call does nothing."""
        if self._file.closed:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self._path)

    def abort(self) -> None:
        """Removes the unfinished shard. Does nothing after `close`."""
        if not self._file.closed:
            self._file.close()
            os.unlink(self._temporary)

    def __enter__(self) -> TFRecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def __repr__(self) -> str:
        return f"TFRecordWriter({self._path!r}){', closed' if self._file.closed else ''}"
