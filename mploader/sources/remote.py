"""Files behind a URL (``s3://``, ``gs://``, ``https://``, ...), read through fsspec. Needs ``mploader[remote]``.

A read in random order is one request for exactly its bytes. A shard that is read from front to back, as with
`mploader.ShardShuffle`, is read ahead in growing blocks, so that one request serves many samples.

A request that fails for a moment (a time-out, a lost connection, a short answer, an overloaded server) is tried four
times, and then raised as a `RetriedError`, an `OSError` of a broken storage: a worker does not try it again, and
ends the iteration without dropping a sample for it.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import posixpath
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mploader._util.retry import RETRY_PAUSES_S, RetriedError, retried
from mploader.errors import SourceError
from mploader.sources.base import FileState

MIN_AHEAD, MAX_AHEAD = 1 << 16, 1 << 21  # bytes that are read at once from a shard in order
_MAX_GAP = 1 << 20  # bytes that may be passed over: batches between two of one worker are read by others
_IN_ORDER = 3  # reads in a row that go forward, before more is read than was asked for
_MAX_OPEN = 32  # files whose last block is kept
_BUSY = frozenset({408, 425, 429})  # HTTP statuses below 500 that pass
_NETWORK_PACKAGES = frozenset({"aiohttp", "requests", "urllib3", "http", "botocore", "aiobotocore", "google", "azure"})

_Result = TypeVar("_Result")


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    scheme, separator, _ = path.partition("://")
    return bool(separator) and scheme.isascii() and scheme.replace("+", "").isalnum() and not path.startswith("/")


def matches(pattern: str, endings: Sequence[str]) -> list[str]:
    """The files that a URL means, sorted: itself, those of a glob, or those of a folder that `endings` fit.

    Over HTTP nothing tells a folder from a file: its URL ends in a slash, and the server must list it.

    Raises:
        SourceError: there is none, or the storage cannot be reached.
    """
    system, path = _open(pattern)
    if any(mark in path for mark in "*?["):
        found = _asking(pattern, lambda: system.glob(path))
    elif pattern.endswith("/") or _asking(pattern, lambda: system.info(path))["type"] == "directory":
        globs = [posixpath.join(path, ending) for ending in endings]
        found = [name for one in globs for name in _asking(pattern, functools.partial(system.glob, one))]
    else:
        found = [path]
    if not found:
        raise SourceError(f"no file matches {pattern!r}")
    return sorted({str(system.unstrip_protocol(name)) for name in found})


def remote_state(url: str) -> FileState:
    """Size and version of a file; the version is a hash of its ETag or time of change. OSError as the storage says."""
    system, path = _open(url)
    info = _with_retries(url, lambda: system.info(path))
    names = ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "updated", "created")
    marks = [str(info[name]) for name in names if info.get(name)]
    version = hashlib.blake2b("\0".join(marks).encode(), digest_size=8).digest()
    if info.get("size") is None:
        raise SourceError(f"{url}: the server does not tell its size, so it cannot be read in parts")
    return FileState(int(info["size"]), int.from_bytes(version, "little") >> 1)


class RemoteFile:
    """One file, read in parts; safe from several threads."""

    def __init__(self, url: str) -> None:
        self.state = remote_state(url)
        self._url = url
        self._buffer = b""
        self._start = 0
        self._ahead = MIN_AHEAD
        self._in_order = 0
        self._used = 0  # bytes of the buffer that were asked for
        self._lock = threading.Lock()

    def read(self, offset: int, size: int, ahead: int = 0) -> bytes:
        """`size` bytes at `offset`, or fewer where the file ends before. OSError from the storage.

        Args:
            offset: first byte.
            size: how many.
            ahead: read at least so many at once.
        """
        with self._lock:
            end = min(offset + size, self.state.size)
            if offset >= end:
                return b""
            at = offset - self._start
            if at < 0 or end - self._start > len(self._buffer):
                self._fetch(offset, end, ahead)
                at = 0
            self._used += end - offset
            return self._buffer[at : at + end - offset]

    def _fetch(self, offset: int, end: int, ahead: int) -> None:
        gap = offset - self._start - len(self._buffer)
        is_forward = bool(self._buffer) and -len(self._buffer) < gap <= _MAX_GAP
        self._in_order = self._in_order + 1 if is_forward else 0
        if self._in_order >= _IN_ORDER:
            # Other workers read most of a block, where they are many. A request costs as long as a megabyte or two, so
            # that much may be read in vain, but no more than three quarters.
            is_worth_it = 4 * self._used >= len(self._buffer)
            self._ahead = min(2 * self._ahead, MAX_AHEAD) if is_worth_it else self._ahead // 2
            ahead = max(ahead, self._ahead)
        else:
            self._ahead = MIN_AHEAD
        stop = min(max(end, offset + ahead), self.state.size)
        self._buffer = _read_range(self._url, offset, stop)
        self._start, self._used = offset, 0


class RemoteFiles:
    """The remote files of one source in this process, the least recently used one forgotten first."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, RemoteFile] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, url: str) -> RemoteFile:
        with self._lock:
            file = self._files.get(url)
            if file is not None:
                self._files.move_to_end(url)
                return file
        opened = RemoteFile(url)
        with self._lock:
            file = self._files.setdefault(url, opened)
            while len(self._files) > _MAX_OPEN:
                self._files.popitem(last=False)
        return file


def _read_range(url: str, start: int, stop: int) -> bytes:
    system, path = _open(url)

    def ask() -> bytes:
        data: bytes = system.cat_file(path, start=start, end=stop)
        if len(data) < stop - start:  # of a range within the file: the rest was lost on the way
            raise ConnectionError(f"{len(data)} bytes came of the {stop - start} at byte {start}")
        return data

    data = _with_retries(url, ask)
    if len(data) > stop - start:
        raise SourceError(
            f"{url}: the server sends all of the file ({len(data)} bytes) when {stop - start} are asked for. Samples "
            "can only be read from servers that support Range requests"
        )
    return data


@functools.lru_cache(maxsize=4096)
def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, one for each process and storage, and the path in it."""
    try:
        import fsspec
    except ModuleNotFoundError:
        raise SourceError(f"{url} needs fsspec, which is not installed: pip install mploader[remote]") from None
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:  # an unknown scheme, or one that needs another package
        raise SourceError(f"{url} cannot be opened: {error}") from error
    return system, path


def _asking(pattern: str, ask: Callable[[], _Result]) -> _Result:
    """An answer of the storage while a source is made, where failure is a SourceError."""
    try:
        return _with_retries(pattern, ask)
    except FileNotFoundError as error:
        raise SourceError(f"no file is at {pattern!r}") from error
    except OSError as error:
        raise SourceError(f"{pattern} cannot be listed: {error.strerror or error}") from error


def _with_retries(url: str, ask: Callable[[], _Result]) -> _Result:
    try:
        return retried(ask, _is_transient)
    except Exception as error:  # each storage has exceptions of its own
        what = f"{type(error).__name__}: {error}"
        if _is_transient(error):
            attempts = len(RETRY_PAUSES_S) + 1
            raise RetriedError(errno.EIO, f"failed {attempts} times, the last time with {what}", url) from error
        if isinstance(error, OSError):
            raise
        raise OSError(errno.EREMOTEIO, what, url) from error


def _is_transient(error: Exception) -> bool:
    """Whether the same request may succeed in a moment."""
    for name in ("status", "status_code", "code"):
        status = getattr(error, name, None)
        if isinstance(status, int) and 400 <= status < 600:
            return status >= 500 or status in _BUSY
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)):
        return False
    if isinstance(error, (TimeoutError, ConnectionError)) or "Timeout" in type(error).__name__:
        return True
    return type(error).__module__.partition(".")[0] in _NETWORK_PACKAGES
