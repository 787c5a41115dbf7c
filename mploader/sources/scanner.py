"""One pass over a shard, with which the trainer indexes it."""

from __future__ import annotations

import os

from mploader.errors import SampleError, SourceError
from mploader.sources.files import open_regular, read_exactly, state_of, with_retries
from mploader.sources.remote import RemoteFile, is_remote

_MIN_AHEAD, _MAX_AHEAD = 4096, 1 << 20  # bytes of one read
_REMOTE_AHEAD = 1 << 20  # the same for remote files, where a request takes as long as a megabyte
_CROWDED = 4  # more pieces than this in one read: the next one is larger


class Scanner:
    """A file that is read once from front to back, in small pieces with gaps between them. A context manager.

    Reads ahead where the pieces lie close together, and only the pieces where they do not.

    Raises:
        SourceError: the file cannot be opened or read, after retries; carries the file, and the byte of a read.
    """

    def __init__(self, path: str):
        self._path = path
        self._descriptor = -1
        self._remote: RemoteFile | None = None
        try:
            if is_remote(path):
                self._remote = RemoteFile(path)
            else:
                self._descriptor = with_retries(lambda: open_regular(path))
        except OSError as error:
            raise SourceError(f"{path} cannot be opened: {error.strerror or error}", file=path) from error
        except SampleError as error:
            raise SourceError(str(error), file=path) from None
        self.state = self._remote.state if self._remote else state_of(os.fstat(self._descriptor))
        self._buffer = b""
        self._start = 0
        self._ahead = _MIN_AHEAD
        self._uses = 0  # reads that the buffer has served

    def read(self, offset: int, size: int) -> bytes:
        """Returns `size` bytes at `offset`, or fewer if the file ends before."""
        at = offset - self._start
        if at < 0 or at + size > len(self._buffer):
            crowded = self._uses > _CROWDED
            self._ahead = min(self._ahead * 4, _MAX_AHEAD) if crowded else max(self._ahead // 4, _MIN_AHEAD)
            self._buffer = self._read(offset, max(size, self._ahead))
            self._start, at, self._uses = offset, 0, 0
        self._uses += 1
        return self._buffer[at : at + size]

    def _read(self, offset: int, size: int) -> bytes:
        try:
            if self._remote is not None:
                return self._remote.read(offset, size, _REMOTE_AHEAD)
            return with_retries(lambda: self._read_or_close(offset, size))
        except OSError as error:
            raise SourceError(
                f"{self._path} cannot be read at byte {offset}: {error.strerror}", file=self._path, byte=offset
            ) from error

    def _read_or_close(self, offset: int, size: int) -> bytes:
        """Reads. A descriptor that failed may fail for ever (ESTALE): the next attempt opens another one."""
        if self._descriptor < 0:
            self._descriptor = open_regular(self._path)
            if state_of(os.fstat(self._descriptor)) != self.state:
                raise SourceError(
                    f"{self._path} has changed while it was indexed. Start again when it is complete.", file=self._path
                )
        try:
            return read_exactly(self._descriptor, self._path, offset, size)
        except OSError:
            self._close()
            raise

    def __enter__(self) -> Scanner:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
