"""A thread beside the trainer's, which tells what ended it before its time."""

from __future__ import annotations

import threading
import traceback
from types import TracebackType

JOIN_S = 10.0
"""How long a thread may take to end: it may be waiting for a lock that nobody gives back."""


class Background:
    """A thread that runs while its block is entered. A daemon, so that one that is stuck keeps no process alive.

    Args:
        name: of the thread.

    Attributes:
        failure: why it did not run to the end; "" if it did.
    """

    def __init__(self, name: str) -> None:
        self.failure = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._body, name=name, daemon=True)

    def start(self) -> None:
        """Starts."""
        self._thread.start()

    def end(self) -> None:
        """Ends the thread and waits for it."""
        self._ended.set()
        self._thread.join(JOIN_S)
        if self._thread.is_alive():
            self.failure = f"it has not ended within {JOIN_S:.0f} s"

    def _run(self) -> None:
        """What the thread does, until ``_ended`` is set."""
        raise NotImplementedError

    def _body(self) -> None:
        try:
            self._run()
        except Exception:
            self.failure = traceback.format_exc()

    def __enter__(self) -> None:
        """Starts."""
        self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends."""
        self.end()
