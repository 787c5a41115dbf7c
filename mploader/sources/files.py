"""The only code of the sources that opens data files: by path, read at an offset.

Descriptors stay open between reads, because opening a file on a network costs more than reading a record.
How many is bounded for the process and not for each source (ten mixed sources must fit under RLIMIT_NOFILE
as one does), and they belong to the source's `OpenFiles`: when that goes, they are closed. Reads use pread,
so that no thread and no forked process moves another's file position.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TypeVar

from mploader._util import fault_points
from mploader._util.environment_errors import is_environment
from mploader._util.platform_check import resource
from mploader.errors import SampleError, SourceError
from mploader.sources.base import FileState
from mploader.sources.remote import RemoteFile, RemoteFiles, is_remote, remote_state

RETRY_PAUSES_S = (0.1, 0.5, 2.0)
"""Waits before the trainer tries again what failed for a reason of the machine while it indexes shards."""

MAX_READ_BYTES = 0x7FFF_F000  # what one pread returns at most on Linux (man 2 read); larger samples are refused

_MIN_AHEAD, _MAX_AHEAD = 4096, 1 << 20  # bytes that a Scanner reads at once
_REMOTE_AHEAD = 1 << 20  # the same for remote files, where a request takes as long as a megabyte
_CROWDED = 4  # pieces in one such read from which it pays to read more at once
_MAX_OPEN = 64
_SHARE_OF_LIMIT = 8  # the rest of RLIMIT_NOFILE is for the user's transform, TensorFlow and the pool

_Result = TypeVar("_Result")


class FileChangedError(Exception):
    """A file is not the one that was expected."""


def file_state(path: str) -> FileState:
    """The state of the file at `path`; OSError as `os.stat` or the remote storage raises it, after a few tries."""
    return remote_state(path) if is_remote(path) else _with_retries(lambda: _state(os.stat(path)))


def _state(status: os.stat_result) -> FileState:
    return FileState(status.st_size, status.st_mtime_ns)


def _with_retries(ask: Callable[[], _Result]) -> _Result:
    """Asks again what failed for a reason of the machine; for the trainer, a worker tries its reads again itself."""
    for pause_s in RETRY_PAUSES_S:
        try:
            return ask()
        except OSError as error:
            if not is_environment(error):
                raise
        time.sleep(pause_s)
    return ask()


def read_whole(path: str, index: int) -> bytes:
    """Returns the content of the file that sample `index` is.

    Raises:
        SampleError: the path is not a regular file; carries index and file.
        OSError: the file cannot be opened or read; carries the file's name.
    """
    try:
        descriptor = open_regular(path)
    except SampleError as error:
        error.index = index
        raise
    try:
        return _read_record(descriptor, path, 0, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def open_regular(path: str) -> int:
    """Opens a regular file for reading; SampleError for a folder, a pipe, a socket or a device.

    O_NONBLOCK, because the open of a named pipe without a writer would otherwise wait for ever. It means
    nothing for regular files.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        # Of a regular file this tells that its disk is gone.
        if error.errno in (errno.ENXIO, errno.ENODEV) and not stat.S_ISREG(os.stat(path).st_mode):
            raise _not_regular(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return descriptor


def _not_regular(path: str) -> SampleError:
    return SampleError(f"{path} is not a regular file (a folder, a pipe or a device). Remove it from the data.", file=path)


def read_exactly(descriptor: int, path: str, offset: int, size: int) -> bytes:
    """`size` bytes at `offset`, or fewer where the file ends before; OSError names the file."""
    try:
        data = os.pread(descriptor, size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]
        missing = size - len(data)
        while missing and (data := os.pread(descriptor, missing, offset + size - missing)):
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)
    except OSError as error:
        error.filename = path  # read errors come without it
        raise


def _read_record(descriptor: int, path: str, offset: int, size: int) -> bytes:
    fault_points.reach("record opened")
    if not fault_points.is_set("record half read"):
        return read_exactly(descriptor, path, offset, size)
    half = read_exactly(descriptor, path, offset, size // 2)
    fault_points.reach("record half read")
    return half + read_exactly(descriptor, path, offset + len(half), size - len(half))


class Scanner:
    """One pass over a file that looks at small pieces in ascending order and passes over what lies between.

    For the trainer, which indexes shards: what cannot be opened or read, after a few tries, is a
    SourceError. A context manager. Reads ahead where the pieces lie close together, and only the pieces
    where they do not.
    """

    def __init__(self, path: str):
        self._path = path
        self._descriptor = -1
        self._remote: RemoteFile | None = None
        try:
            if is_remote(path):
                self._remote = RemoteFile(path)
            else:
                self._descriptor = _with_retries(lambda: open_regular(path))
        except OSError as error:
            raise SourceError(f"{path} cannot be opened: {error.strerror or error}") from error
        except SampleError as error:
            raise SourceError(str(error)) from None
        self.state = self._remote.state if self._remote else _state(os.fstat(self._descriptor))
        self._buffer = b""
        self._start = 0
        self._ahead = _MIN_AHEAD
        self._uses = 0  # of the buffer

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, or fewer where the file ends before."""
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
            return _with_retries(lambda: self._read_or_close(offset, size))
        except OSError as error:
            raise SourceError(f"{self._path} cannot be read at byte {offset}: {error.strerror}") from error

    def _read_or_close(self, offset: int, size: int) -> bytes:
        """Reads; a descriptor that failed (ESTALE) may do so for ever, so the next try is with another one."""
        if self._descriptor < 0:
            self._descriptor = open_regular(self._path)
            if _state(os.fstat(self._descriptor)) != self.state:
                raise SourceError(f"{self._path} has changed while it was indexed. Start again when it is complete.")
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


class OpenFiles:
    """The files that one source has open in this process. Pickles as nothing: each process opens its own."""

    def __init__(self) -> None:
        self._owner = next(_owners)
        self._remote = RemoteFiles()
        weakref.finalize(self, _descriptors.forget, self._owner).atexit = False

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[()]]:
        return OpenFiles, ()

    def read(self, path: str, offset: int, size: int, expected: FileState) -> bytes:
        """`size` bytes at `offset`, or fewer where the file ends before.

        Raises:
            FileChangedError: the file is in another state than `expected`: what was opened under this name is
                another file, or somebody has written to it. Of a remote file, the state when it was opened counts.
            OSError: from opening and reading.
        """
        if is_remote(path):
            file = self._remote[path]
            _check_state(file.state, expected)
            return file.read(offset, size)
        handle = _descriptors.acquire(self._owner, path)
        try:
            _check_state(_state(os.fstat(handle.descriptor)), expected)
            return _read_record(handle.descriptor, path, offset, size)
        except OSError:
            # A descriptor that failed (ESTALE) may do so for ever: the next try is with another one.
            _descriptors.discard(self._owner, path, handle)
            raise
        finally:
            _descriptors.release(handle)


def _check_state(found: FileState, expected: FileState) -> None:
    if found.size != expected.size:
        raise FileChangedError(f"it has {found.size} bytes and had {expected.size}")
    if found != expected:
        raise FileChangedError("it was written to or replaced by another one of the same size")


class _Handle:
    __slots__ = ("descriptor", "evicted", "users")

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.users = 1
        self.evicted = False


class _Descriptors:
    """All open files of the process, the least recently used one closed first.

    A handle in use is never closed: its number could be given to another file while a thread still reads
    from it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handles: OrderedDict[tuple[int, str], _Handle] = OrderedDict()
        self._forgotten: deque[int] = deque()

    def acquire(self, owner: int, path: str) -> _Handle:
        key = (owner, path)
        with self._lock:
            if self._forgotten:
                self._close_forgotten()
            handle = self._handles.get(key)
            if handle is not None:
                self._handles.move_to_end(key)
                handle.users += 1
                return handle
        opened = _Handle(self._open(path))  # outside of the lock: an open may take seconds on a network
        with self._lock:
            handle = self._handles.setdefault(key, opened)
            if handle is not opened:  # another thread was faster
                os.close(opened.descriptor)
                handle.users += 1
                return handle
            self._evict(_open_limit())
        return opened

    def release(self, handle: _Handle) -> None:
        with self._lock:
            handle.users -= 1
            if handle.evicted and not handle.users:
                os.close(handle.descriptor)

    def discard(self, owner: int, path: str, handle: _Handle) -> None:
        """The next `acquire` opens the file anew."""
        with self._lock:
            if self._handles.get((owner, path)) is handle:
                self._drop((owner, path))

    def forget(self, owner: int) -> None:
        """Closes the files of an owner that is gone.

        Runs as a finalizer, so perhaps inside of `acquire` in this very thread: it must not wait for the
        lock.
        """
        self._forgotten.append(owner)
        if self._lock.acquire(blocking=False):
            try:
                self._close_forgotten()
            finally:
                self._lock.release()

    def after_fork_in_child(self) -> None:
        """A thread that the child does not have may have held the lock."""
        self._lock = threading.Lock()

    def _open(self, path: str) -> int:
        try:
            return open_regular(path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            with self._lock:
                self._evict(0)
            return open_regular(path)

    def _evict(self, keep: int) -> None:
        while len(self._handles) > keep:
            self._drop(next(iter(self._handles)))

    def _close_forgotten(self) -> None:
        while self._forgotten:
            owner = self._forgotten.popleft()
            for key in [key for key in self._handles if key[0] == owner]:
                self._drop(key)

    def _drop(self, key: tuple[int, str]) -> None:
        handle = self._handles.pop(key)
        handle.evicted = True
        if not handle.users:
            os.close(handle.descriptor)


def _open_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_OPEN if soft == resource.RLIM_INFINITY else max(1, min(_MAX_OPEN, soft // _SHARE_OF_LIMIT))


_owners = itertools.count()
_descriptors = _Descriptors()
os.register_at_fork(after_in_child=_descriptors.after_fork_in_child)
