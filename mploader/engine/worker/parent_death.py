"""A worker does not outlive its trainer, and no child takes its place.

The first that a worker imports, before what takes time.
"""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Makes the kernel kill this process when the thread that started it ends; see docs/architecture.md.

    Args:
        parent: process id of the trainer.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def end_if_forked(owner: int) -> None:
    """Ends this process if it is a child that user code has forked and let come back: it must not do a worker's work.

    Args:
        owner: process id of the worker.
    """
    if os.getpid() != owner:
        os.write(2, b"a child that the transform or the source has forked came back from it; it is ended here "
                    b"(end a child by os._exit)\n")  # fmt: skip
        os._exit(1)
