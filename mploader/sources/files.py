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
import weakref
from collections import OrderedDict, deque

from mploader import faultpoints
from mploader.errors import SampleError, SourceError
from mploader.platform_check import resource
from mploader.sources.base import FileState
from mploader.sources.remote import RemoteFile, RemoteFiles, is_remote, remote_state

MAX_READ_BYTES = 0x7FFF_F000  # what one pread returns at most on Linux (man 2 read); larger samples are refused

_MIN_AHEAD, _MAX_AHEAD = 4096, 1 << 20  # bytes that a Scanner reads at once
_REMOTE_AHEAD = 1 << 20  # the same for remote files, where a request takes as long as a megabyte
_CROWDED = 4  # pieces in one such read from which it pays to read more at once
_MAX_OPEN = 64
_SHARE_OF_LIMIT = 8  # the rest of RLIMIT_NOFILE is for the user's transform, TensorFlow and the pool


def file_state(path: str) -> FileState:
    """The state of the file at `path`; OSError as `os.stat` or the remote storage raises it."""
    return remote_state(path) if is_remote(path) else _state(os.stat(path))


def _state(status: os.stat_result) -> FileState:
    return FileState(status.st_size, status.st_mtime_ns)


def read_whole(path: str) -> bytes:
    """The content of a file that is read once. OSError names the file; SampleError for what is no file."""
    descriptor = open_regular(path)
    try:
        return _read_record(descriptor, path, 0, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def open_regular(path: str) -> int:
    """Opens a regular file for reading; SampleError for a folder, a pipe or a device.

    O_NONBLOCK, because the open of a named pipe without a writer would otherwise wait for ever. It means
    nothing for regular files.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SampleError(f"{path} is not a regular file (a folder, a pipe or a device). Remove it from the data.")
    return descriptor


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
    faultpoints.reach("record opened")
    data = read_exactly(descriptor, path, offset, size)
    faultpoints.reach("record half read")
    return data


class Scanner:
    """One pass over a file that looks at small pieces in ascending order and passes over what lies between.

    For the trainer, which indexes shards: what cannot be opened or read is a SourceError. A context
    manager. Reads ahead where the pieces lie close together, and only the pieces where they do not.
    """

    def __init__(self, path: str):
        self._path = path
        self._descriptor = -1
        self._remote: RemoteFile | None = None
        try:
            if is_remote(path):
                self._remote = RemoteFile(path)
            else:
                self._descriptor = open_regular(path)
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
            return read_exactly(self._descriptor, self._path, offset, size)
        except OSError as error:
            raise SourceError(f"{self._path} cannot be read at byte {offset}: {error.strerror}") from error

    def __enter__(self) -> Scanner:
        return self

    def __exit__(self, *error: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class OpenFiles:
    """The files that one source has open in this process. Pickles as nothing: each process opens its own."""

    def __init__(self) -> None:
        self._owner = next(_owners)
        self._remote = RemoteFiles()
        weakref.finalize(self, _descriptors.forget, self._owner).atexit = False

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[()]]:
        return OpenFiles, ()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, or fewer where the file ends before. OSError from opening and reading."""
        if is_remote(path):
            return self._remote[path].read(offset, size)
        handle = _descriptors.acquire(self._owner, path)
        try:
            return _read_record(handle.descriptor, path, offset, size)
        finally:
            _descriptors.release(handle)

    def state(self, path: str) -> FileState:
        """The state of the file as it is open, which is not the one at `path` when that has been replaced."""
        if is_remote(path):
            return self._remote[path].state
        handle = _descriptors.acquire(self._owner, path)
        try:
            return _state(os.fstat(handle.descriptor))
        finally:
            _descriptors.release(handle)


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
