"""Raises one clear error at import if mploader cannot work on this system.

``fcntl`` and ``resource`` are imported from here alone. So a module that needs them fails with this error and not with
a missing module, whichever module of the package is imported first.
"""

from __future__ import annotations

import os
import platform
import sys


def require_linux() -> None:
    """Checks the system.

    Raises:
        ImportError: this is not Linux 5.4 or later.
    """
    missing = [name for name in ("memfd_create", "pidfd_open", "eventfd", "posix_fallocate") if not hasattr(os, name)]
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2] if part.isdigit())
    if not sys.platform.startswith("linux") or missing or release < (5, 4):
        raise ImportError(
            f"mploader needs Linux 5.4 or later (memfd, pidfd, eventfd), and this is {platform.system()} "
            f"{platform.release()}. On macOS or Windows, run it in a Linux container or in WSL 2"
        )


require_linux()

import fcntl  # noqa: E402  after the check
import resource  # noqa: E402

__all__ = ["fcntl", "resource"]
