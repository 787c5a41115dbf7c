"""The pools of this process that are still open, so that they end before the interpreter does."""

from __future__ import annotations

import atexit
import weakref

from mploader.engine.supervisor.pool import Pool

_open_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def add(pool: Pool) -> None:
    """Closes a pool when the interpreter exits. One that is collected earlier ends its workers by itself."""
    _open_pools.add(pool)


def count() -> int:
    """How many pools have not been collected."""
    return len(_open_pools)


def close_all() -> None:
    """Closes every pool; called when the interpreter exits."""
    for pool in list(_open_pools):
        pool.close()


atexit.register(close_all)
