"""Signals that end a program, handled so that what it holds is cleaned up first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence


@contextlib.contextmanager
def unhandled_raise(signals: Sequence[signal.Signals], error: Callable[[int], BaseException]) -> Iterator[None]:
    """Raises an exception in the main thread for each of some signals that would otherwise end the program at once.

    Signals that the program handles itself are left alone. Does nothing outside the main thread.

    Args:
        signals: which signals.
        error: makes the exception from the number of the signal.
    """

    def raise_error(number: int, frame: object) -> None:
        raise error(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    unhandled = [one for one in signals if signal.getsignal(one) is signal.SIG_DFL]
    for one in unhandled:
        signal.signal(one, raise_error)
    try:
        yield
    finally:
        for one in unhandled:
            signal.signal(one, signal.SIG_DFL)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Handles SIGINT, SIGTERM and SIGHUP that arrive inside the block after it, so that nothing interrupts the block.

    Does nothing outside the main thread, as signals interrupt the main thread alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    handlers = {
        one: signal.signal(one, lambda number, _: arrived.append(number))
        for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
        for number in arrived:
            signal.raise_signal(number)
