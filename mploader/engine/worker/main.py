"""The entry point of a worker process: a fresh interpreter that imports what the user's functions need, and no more."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import signal
import socket
import sys

from mploader._util import fault_points, shared_memory
from mploader.engine.ipc.worker_status import STATUS_BYTES, WorkerStatus
from mploader.engine.worker.loop import serve

STACKS_SIGNAL = signal.SIGUSR1
"""Makes a worker print the stacks of its threads, even while it is stuck in C code."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_HEAP_BYTES = 32 * 2**20


def main() -> None:
    """Runs a worker; the arguments are PARENT INDEX START CHANNEL_FD MEMORY_FD STATUS_OFFSET JOB_FD."""
    index, start, channel_fd, memory_fd, status_offset, job_fd = map(int, sys.argv[2:8])
    keep_freed_memory()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # what the trainer blocks and ignores is inherited
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL, all_threads=True, chain=False)
    fault_points.load()
    fault_points.enter(index, start)
    if fault_points.is_set("record opened") or fault_points.is_set("record half read"):
        from mploader.engine.worker import read_faults  # imports sources, which most workers with faults do not need

        read_faults.install()
    channel = socket.socket(fileno=channel_fd)
    channel.setblocking(True)
    status = WorkerStatus(shared_memory.map_range(memory_fd, status_offset, STATUS_BYTES))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the trainer has closed its end, or is gone
        serve(channel, memory_fd, status, job_fd)
    fault_points.reach("shutting down")


def keep_freed_memory() -> None:
    """Lets the C library keep what is freed, up to 32 MiB.

    A decoder frees and asks again for the same half a megabyte with every image. Given back to the kernel each time,
    it costs a page fault for every 4 KiB of it: 9 % of a worker's time.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_HEAP_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_HEAP_BYTES)
