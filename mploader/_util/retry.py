"""Trying again what failed for a reason of the machine or the storage, and may pass."""

from __future__ import annotations

RETRY_PAUSES_S = (0.1, 0.5, 2.0)
"""Waits before a request or a read that failed is tried again, in seconds; so each is tried four times."""


class RetriedError(OSError):
    """A request to the storage that has failed as often as it is tried: a caller need not try it again."""
