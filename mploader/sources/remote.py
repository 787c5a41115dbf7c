"""Files behind a URL (``s3://``, ``gs://``, ``https://``, ...), read through fsspec. Needs ``mploader[remote]``.

A read in random order is one request for exactly its bytes. A shard that is read from front to back, as with
`mploader.ShardShuffle`, is read ahead in growing blocks, so that one request serves many samples.

A request that fails for a reason that may pass (a time-out, a lost connection, a short answer, an overloaded server)
is made up to four times, then raises a `RetriedError`, an `OSError` of the storage: a worker does not retry it, and
ends the iteration instead of dropping a sample.
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

MIN_AHEAD, MAX_AHEAD = 1 << 16, 1 << 21  # bytes per request for a shard that is read in order
_MAX_GAP = 1 << 20  # bytes that may be skipped: other workers read the batches between
_IN_ORDER = 3  # forward reads in a row before reading ahead
_MAX_OPEN = 32  # files per source whose last block is kept
_BUSY = frozenset({408, 425, 429})  # HTTP statuses below 500 that may pass
_NETWORK_PACKAGES = frozenset({"aiohttp", "requests", "urllib3", "http", "botocore", "aiobotocore", "google", "azure"})

_Result = TypeVar("_Result")


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    scheme, separator, _ = path.partition("://")
    return bool(separator) and scheme.isascii() and scheme.replace("+", "").isalnum() and not path.startswith("/")


def matches(pattern: str, endings: Sequence[str]) -> list[str]:
    """Returns the files that a URL matches, sorted: itself, those of a glob, or those of a folder that match `endings`.

    Over HTTP a folder is recognised by a slash at the end of its URL, and the server must list it.

    Raises:
        SourceError: no file matches, or the storage cannot be reached.
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
        raise SourceError(f"no file matches {pattern!r}", file=pattern)
    return sorted({str(system.unstrip_protocol(name)) for name in found})


def remote_state(url: str) -> FileState:
    """Returns size and version of a file; the version is a hash of its ETag or time of change.

    Raises:
        SourceError: the server does not state the size.
        OSError: from the storage, after retries.
    """
    system, path = _open(url)
    info = _with_retries(url, lambda: system.info(path))
    names = ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "updated", "created")
    marks = [str(info[name]) for name in names if info.get(name)]
    version = hashlib.blake2b("\0".join(marks).encode(), digest_size=8).digest()
    if info.get("size") is None:
        raise SourceError(f"{url}: the server does not state the file's size, so it cannot be read in parts", file=url)
    return FileState(int(info["size"]), int.from_bytes(version, "little") >> 1)


class RemoteFile:
    """One file, read in parts; may be used by several threads."""

    def __init__(self, url: str) -> None:
        self.state = remote_state(url)
        self._url = url
        self._buffer = b""
        self._start = 0
        self._ahead = MIN_AHEAD
        self._in_order = 0
        self._used = 0  # requested bytes of the buffer
        self._lock = threading.Lock()

    def read(self, offset: int, size: int, ahead: int = 0) -> bytes:
        """Returns `size` bytes at `offset`, or fewer if the file ends before.

        Args:
            offset: first byte.
            size: number of bytes.
            ahead: least number of bytes to request.

        Raises:
            OSError: from the storage, after retries.
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
            # With many workers most of a block is for others. A request takes as long as a megabyte or two, so up to
            # three quarters of a block may be unused.
            is_worth_it = 4 * self._used >= len(self._buffer)
            self._ahead = min(2 * self._ahead, MAX_AHEAD) if is_worth_it else self._ahead // 2
            ahead = max(ahead, self._ahead)
        else:
            self._ahead = MIN_AHEAD
        stop = min(max(end, offset + ahead), self.state.size)
        self._buffer = _read_range(self._url, offset, stop)
        self._start, self._used = offset, 0


class RemoteFiles:
    """The remote files of one source in this process; the least recently used ones are forgotten first."""

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
        if len(data) < stop - start:  # the range lies within the file: bytes were lost
            raise ConnectionError(f"expected {stop - start} bytes at byte {start}, got {len(data)}")
        return data

    data = _with_retries(url, ask)
    if len(data) > stop - start:
        raise SourceError(
            f"{url}: expected {stop - start} bytes, but the server sends {len(data)}, the whole file. Samples can only "
            "be read from servers that support Range requests",
            file=url,
            byte=start,
        )
    return data


@functools.lru_cache(maxsize=4096)
def _open(url: str) -> tuple[Any, str]:
    """Returns the file system of a URL, one per process and storage, and the path in it."""
    try:
        import fsspec
    except ModuleNotFoundError:
        raise SourceError(
            f"{url} needs fsspec, which is not installed: pip install mploader[remote]", file=url
        ) from None
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:  # an unknown scheme, or one that needs another package
        raise SourceError(f"{url} cannot be opened: {error}", file=url) from error
    return system, path


def _asking(pattern: str, ask: Callable[[], _Result]) -> _Result:
    """Asks the storage while a source is made, and raises failures as SourceError."""
    try:
        return _with_retries(pattern, ask)
    except FileNotFoundError as error:
        raise SourceError(f"{pattern} does not exist", file=pattern) from error
    except OSError as error:
        raise SourceError(f"{pattern} cannot be listed: {error.strerror or error}", file=pattern) from error


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
