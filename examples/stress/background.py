"""A thread beside the main thread, which keeps the error that ended it."""

from __future__ import annotations

import threading
import traceback
from types import TracebackType

JOIN_S = 10.0
"""How long a thread may take to end. It may wait for a lock that is never released."""


class Background:
    """A thread that runs inside its ``with`` block. A daemon, so that it keeps no process alive when it hangs.

    Args:
        name: name of the thread.

    Attributes:
        failure: why it did not run to its end; "" if it did.
    """

    def __init__(self, name: str) -> None:
        self.failure = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._body, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def end(self) -> None:
        """Ends the thread and waits for it."""
        self._ended.set()
        self._thread.join(JOIN_S)
        if self._thread.is_alive():
            self.failure = f"it has not ended within {JOIN_S:.0f} s"

    def _run(self) -> None:
        """Runs in the thread until ``_ended`` is set."""
        raise NotImplementedError

    def _body(self) -> None:
        try:
            self._run()
        except Exception:
            self.failure = traceback.format_exc()

    def __enter__(self) -> None:
        """Starts the thread."""
        self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the thread and waits for it."""
        self.end()
