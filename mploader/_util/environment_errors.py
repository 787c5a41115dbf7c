"""Tells apart errors of the machine or the storage, which may pass, and errors of the data."""

from __future__ import annotations

import errno

from mploader.errors import ResourceError

_ENVIRONMENT_ERRNOS = frozenset(
    {
        errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EAGAIN,
        errno.EBUSY, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNRESET, errno.ECONNREFUSED,
        errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN, errno.EREMOTEIO, errno.ENODEV, errno.ENXIO,
    }
)  # fmt: skip


def is_environment(error: BaseException) -> bool:
    """Whether an exception is of the machine or the storage, and so may pass, rather than of the data."""
    if isinstance(error, (MemoryError, TimeoutError, ConnectionError, ResourceError)):
        return True
    if not isinstance(error, OSError):
        return False
    number = vars(OSError)["errno"].__get__(error)  # as OSError keeps it, whatever a class of the user calls errno
    return isinstance(number, int) and number in _ENVIRONMENT_ERRNOS
