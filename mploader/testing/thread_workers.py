"""Workers that are threads of the trainer's process."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import itertools
import os
import signal
import socket
import threading
from collections.abc import Iterator

from mploader._util import shared_memory
from mploader._util.fault_points import VARIABLE
from mploader.engine.ipc import sample_report
from mploader.engine.ipc.arena import Arena
from mploader.engine.ipc.worker_status import STATUS_BYTES, WorkerStatus
from mploader.engine.supervisor.channel_worker import ChannelWorker
from mploader.engine.supervisor.worker_handle import WorkerStart, use_launcher
from mploader.engine.worker import loop
from mploader.errors import ArgumentError

_pids = itertools.count(2**22 + 1)
"""Beyond the kernel's highest process id, so that no signal that is meant for such a worker reaches a process."""


@contextlib.contextmanager
def workers_in_threads(kind: type[ThreadWorker] | None = None) -> Iterator[None]:
    """Lets the workers of all loaders that are made inside the block be threads of this process.

    Batches, order and errors are the same. What needs a process of its own is not: a transform that crashes takes this
    process along, one that hangs cannot be ended, fault points do not strike, and the threads share one GIL and the
    globals of the user's modules. Processor times are those of the whole process, so a diagnosis of them means nothing.

    There is one switch for the whole process: blocks of several threads must not overlap, except one within another.

    Args:
        kind: a subclass of :class:`ThreadWorker` that behaves otherwise. None: :class:`ThreadWorker`.

    Raises:
        ArgumentError: ``kind`` is not a subclass of :class:`ThreadWorker`.
    """
    if kind is not None and not (isinstance(kind, type) and issubclass(kind, ThreadWorker)):
        raise ArgumentError(f"workers_in_threads({kind!r}): expected a subclass of ThreadWorker, or None")
    with use_launcher(_ThreadLauncher(kind or ThreadWorker)):
        yield


class _ThreadLauncher:
    """Starts workers as threads; see :class:`mploader.engine.supervisor.worker_handle.Launcher`."""

    def __init__(self, kind: type[ThreadWorker]) -> None:
        self._kind = kind

    def launch(self, start: WorkerStart, arena: Arena, job_fd: int) -> ThreadWorker:
        return self._kind(start, arena, job_fd)


class WorkerEndedError(Exception):
    """Raised in :meth:`ThreadWorker.serve`: from here on the worker has ended, with an exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class ThreadWorker(ChannelWorker):
    """A worker whose code runs in a thread of the trainer.

    A subclass may do in :meth:`serve` whatever a process may do to its trainer: end at any place, hang, send nonsense.
    Its attributes are those of the worker: ``index`` among the workers, ``start`` from 1, ``number`` in the whole pool.
    """

    def _launch(
        self, kept: contextlib.ExitStack, *, stderr_fd: int, channel_fd: int, memory_fd: int, status_offset: int,
        job_fd: int,
    ) -> None:  # fmt: skip
        if os.environ.get(VARIABLE):
            raise ArgumentError(f"{VARIABLE} is set, and faults strike in processes only")
        self.pid = next(_pids)
        self._exit_status = 0
        # Its own description, which never waits: the thread that asks for stacks is the one that reads the pipe.
        self._stacks_fd = os.open(f"/proc/self/fd/{stderr_fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        kept.callback(os.close, self._stacks_fd)
        own = contextlib.ExitStack()  # what belongs to the thread, once it runs
        try:
            self.exit_fd, alive_fd = os.pipe2(os.O_CLOEXEC)  # without a writer it polls as an ended process does
            kept.callback(os.close, self.exit_fd)
            own.callback(os.close, alive_fd)
            self._stderr_fd, memory_fd, job_fd = (_copy(fd, own) for fd in (stderr_fd, memory_fd, job_fd))
            channel = own.enter_context(socket.socket(fileno=os.dup(channel_fd)))
            self._thread = threading.Thread(
                target=self._live, args=(own, channel, memory_fd, status_offset, job_fd),
                name=f"mploader {self.name}", daemon=True,
            )  # fmt: skip
            self._thread.start()
        except BaseException as error:
            own.close()
            if isinstance(error, RuntimeError):  # what Python makes of a thread that the machine does not grant
                raise OSError(errno.EAGAIN, str(error)) from error
            raise

    def _live(
        self, own: contextlib.ExitStack, channel: socket.socket, memory_fd: int, status_offset: int, job_fd: int
    ) -> None:
        with own:
            try:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the trainer has closed its end
                    status = WorkerStatus(shared_memory.map_range(memory_fd, status_offset, STATUS_BYTES))
                    self.serve(channel, memory_fd, status, job_fd)
                self._exit_status = 0 if self.killed_s is None else -signal.SIGKILL
            except WorkerEndedError as end:
                self._exit_status = end.status
            except BaseException as error:
                self._exit_status = 1
                with contextlib.suppress(OSError):  # the trainer has closed its end
                    self.print(f"{sample_report.traceback_of(error)}\n")

    def serve(self, channel: socket.socket, memory_fd: int, status: WorkerStatus, job_fd: int) -> None:
        """The worker's life; see :func:`mploader.engine.worker.loop.serve`."""
        loop.serve(channel, memory_fd, status, job_fd)

    def print(self, text: str) -> None:
        """Prints to the worker's standard error; to be called in :meth:`serve`."""
        os.write(self._stderr_fd, text.encode())

    @property
    def state(self) -> str:
        """In the place of what the kernel says of a process."""
        return "a thread" if self._thread.is_alive() else "ended"

    def ask_for_stacks(self) -> None:
        """Prints the Python stacks of all threads."""
        faulthandler.dump_traceback(self._stacks_fd)

    def kill(self) -> None:
        """Lets the worker end where it reads or writes its channel next; a thread cannot be ended from without."""
        self._note_kill()
        self.ask_to_end()

    def reap(self) -> int:
        """Collects the ended thread and returns its exit status."""
        self._thread.join()
        self.close()
        return self._exit_status

    def close(self) -> None:
        """Closes the trainer's descriptors of this worker."""
        super().close()
        os.close(self._stacks_fd)


def _copy(fd: int, opened: contextlib.ExitStack) -> int:
    copy = os.dup(fd)
    opened.callback(os.close, copy)
    return copy
