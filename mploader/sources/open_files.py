"""The files that sources keep open between reads: opening a file on a network costs more than reading a record.

Their number is bounded for the process and not for each source: ten mixed sources must fit under RLIMIT_NOFILE as one
does. They belong to the source's `OpenFiles`, and are closed with it.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
import weakref
from collections import OrderedDict, deque

from mploader._util.platform_check import resource
from mploader.sources import files
from mploader.sources.base import FileState
from mploader.sources.remote import RemoteFiles, is_remote

_MAX_OPEN = 64
_SHARE_OF_LIMIT = 8  # the rest of RLIMIT_NOFILE is for the user's transform, TensorFlow and the pool


class FileChangedError(Exception):
    """A file is not in the expected state; the text says how."""


class OpenFiles:
    """The files that one source has open in this process. Pickles without them: each process opens its own."""

    def __init__(self) -> None:
        self._owner = next(_owners)
        self._remote = RemoteFiles()
        weakref.finalize(self, _descriptors.forget, self._owner).atexit = False

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[()]]:
        return OpenFiles, ()

    def read(self, path: str, offset: int, size: int, expected: FileState) -> bytes:
        """Returns `size` bytes at `offset`, or fewer if the file ends before.

        Raises:
            FileChangedError: the state of the file is not `expected`: it was replaced or written to. Of a remote
                file, the state when it was opened counts.
            SampleError: the path is not a regular file.
            OSError: from opening and reading.
        """
        if is_remote(path):
            file = self._remote[path]
            _check_state(file.state, expected)
            return file.read(offset, size)
        handle = _descriptors.acquire(self._owner, path)
        try:
            _check_state(files.state_of(os.fstat(handle.descriptor)), expected)
            return files.read_record(handle.descriptor, path, offset, size)
        except OSError:
            # A descriptor that failed may fail for ever (ESTALE): the next attempt opens another one.
            _descriptors.discard(self._owner, path, handle)
            raise
        finally:
            _descriptors.release(handle)


def _check_state(found: FileState, expected: FileState) -> None:
    if found.size != expected.size:
        raise FileChangedError(f"expected {expected.size} bytes, got {found.size}")
    if found != expected:
        raise FileChangedError("it was written to, or replaced by another one of the same size")


class _Handle:
    __slots__ = ("descriptor", "evicted", "users")

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.users = 1
        self.evicted = False


class _Descriptors:
    """All open files of the process; the least recently used ones are closed first.

    A handle in use is never closed: the system could give its number to another file while a thread still reads.
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
        """Forgets a handle, so that the next `acquire` opens the file again."""
        with self._lock:
            if self._handles.get((owner, path)) is handle:
                self._drop((owner, path))

    def forget(self, owner: int) -> None:
        """Closes the files of an owner that no longer exists.

        Runs as a finalizer, perhaps inside `acquire` in this same thread: it must not wait for the lock.
        """
        self._forgotten.append(owner)
        if self._lock.acquire(blocking=False):
            try:
                self._close_forgotten()
            finally:
                self._lock.release()

    def after_fork_in_child(self) -> None:
        """Replaces the lock: a thread that the child does not have may have held it."""
        self._lock = threading.Lock()

    def _open(self, path: str) -> int:
        try:
            return files.open_regular(path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            with self._lock:
                self._evict(0)
            return files.open_regular(path)

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
