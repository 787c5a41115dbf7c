"""Opening and reading of regular files: every read of a data file ends here, except those of remote ones.

Reads use pread, so that no thread and no forked process moves another's file position.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import TypeVar

from mploader._util.environment_errors import is_environment
from mploader._util.retry import retried
from mploader.errors import SampleError
from mploader.sources.base import FileState
from mploader.sources.remote import is_remote, remote_state

MAX_READ_BYTES = 0x7FFF_F000
"""The most bytes that one pread returns on Linux (man 2 read); larger samples are refused."""

_Result = TypeVar("_Result")


def file_state(path: str) -> FileState:
    """Returns the state of a file or URL.

    Raises:
        OSError: from `os.stat` or the remote storage, after retries.
    """
    return remote_state(path) if is_remote(path) else with_retries(lambda: state_of(os.stat(path)))


def state_of(status: os.stat_result) -> FileState:
    """Returns the state of a local file."""
    return FileState(status.st_size, status.st_mtime_ns)


def with_retries(ask: Callable[[], _Result]) -> _Result:
    """Retries an operation that fails because of the machine. For the trainer: a worker retries whole samples."""
    return retried(ask, lambda error: isinstance(error, OSError) and is_environment(error))


def read_whole(path: str, index: int) -> bytes:
    """Returns the content of the file that is sample `index`.

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
        return read_record(descriptor, path, 0, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def open_regular(path: str) -> int:
    """Opens a regular file for reading and returns its descriptor.

    Raises:
        SampleError: the path is a folder, a pipe, a socket or a device; carries the file.
        OSError: the file cannot be opened.
    """
    # Without O_NONBLOCK the open of a named pipe would wait for a writer. Regular files ignore it.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        # For a regular file these mean that its disk is gone.
        if error.errno in (errno.ENXIO, errno.ENODEV) and not stat.S_ISREG(os.stat(path).st_mode):
            raise _not_regular(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return descriptor


def _not_regular(path: str) -> SampleError:
    return SampleError(
        f"{path} is not a regular file but a folder, a pipe, a socket or a device. Remove it from the data.", file=path
    )


def read_exactly(descriptor: int, path: str, offset: int, size: int) -> bytes:
    """Returns `size` bytes at `offset`, or fewer if the file ends before.

    Raises:
        OSError: from reading; carries the file's name.
    """
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
        error.filename = path  # errors of pread lack it
        raise


read_record: Callable[[int, str, int, int], bytes] = read_exactly
"""Reads a sample. Fault injection replaces it in a worker; see `mploader.engine.worker.read_faults`."""
