"""Anonymous shared memory: files without a name (*memfd*), mappings of them, and aligned private memory.

A memfd has no name, so nothing can leak or collide. It is freed with its last user, and the size of
``/dev/shm`` does not limit it. Its memory is reserved when the file grows, so that a machine without enough memory
reports an error at once, and not SIGBUS later.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

import numpy as np

from mploader._util.platform_check import fcntl

PAGE = mmap.PAGESIZE
"""Bytes of a page; offsets of mappings are multiples of it."""
ALIGNMENT = 64
"""TensorFlow adopts memory without a copy if its address is a multiple of this many bytes."""

Array = np.ndarray[Any, Any]


def align(size: int, to: int = ALIGNMENT) -> int:
    """Rounds ``size`` up to a multiple of ``to``."""
    return -(-size // to) * to


def create(name: str, size: int = 0) -> int:
    """Makes an anonymous file of ``size`` reserved bytes and returns its descriptor.

    Args:
        name: shown in ``/proc``, for people.
        size: in bytes.

    Raises:
        OSError: the machine does not grant the descriptor or the memory.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        if size:
            os.posix_fallocate(fd, 0, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def grow(fd: int, start: int, size: int) -> mmap.mmap:
    """Reserves ``size`` bytes from offset ``start`` on, and maps just these. Earlier mappings stay valid.

    Raises:
        OSError: the machine does not grant the memory.
    """
    os.posix_fallocate(fd, start, size)
    return map_range(fd, start, size)


def map_range(fd: int, start: int, size: int) -> mmap.mmap:
    """Maps a part of a file, to read and to write; ``start`` is a multiple of the page size.

    Raises:
        OSError: the machine does not grant the mapping.
        ValueError: the file is shorter.
    """
    return mmap.mmap(fd, size, offset=start)


def map_file(fd: int, *, read_only: bool = False) -> mmap.mmap:
    """Maps a whole file, which must not be empty.

    Raises:
        OSError: the machine does not grant the mapping.
        ValueError: the file is empty.
    """
    return mmap.mmap(fd, 0, prot=mmap.PROT_READ if read_only else mmap.PROT_READ | mmap.PROT_WRITE)


def forbid_shrinking(fd: int) -> None:
    """Forbids to shorten the file, which would be a SIGBUS in every process that has mapped it."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def aligned_empty(size: int) -> Array:
    """Returns ``size`` bytes of fresh private memory at a multiple of 64, as a 1-d uint8 array."""
    room: Array = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size]
