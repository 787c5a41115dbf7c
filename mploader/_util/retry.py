"""Retries of operations that fail because of the machine or the storage."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

RETRY_PAUSES_S = (0.1, 0.5, 2.0)
"""Waits before the retries of a failed request or read, in seconds: four attempts in all."""

_Result = TypeVar("_Result")


class RetriedError(OSError):
    """A request to the storage that failed in every attempt: a caller need not retry it."""


def retried(operation: Callable[[], _Result], may_pass: Callable[[Exception], bool]) -> _Result:
    """Calls an operation, and again after each of :data:`RETRY_PAUSES_S` while it fails.

    Args:
        operation: what to call.
        may_pass: whether an error may pass, so that another attempt makes sense.

    Raises:
        Exception: the error that may not pass, or that of the last attempt.
    """
    for pause_s in RETRY_PAUSES_S:
        try:
            return operation()
        except Exception as error:
            if not may_pass(error):
                raise
        time.sleep(pause_s)
    return operation()
