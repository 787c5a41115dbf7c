"""What workers on this machine have in common: a socket pair for messages and a pipe for what they print."""

from __future__ import annotations

import abc
import contextlib
import errno
import os
import select
import socket
import time

import numpy as np

from mploader._util import shared_memory
from mploader._util.platform_check import fcntl
from mploader._util.shared_memory import Array
from mploader.engine.ipc import messages
from mploader.engine.ipc.arena import Arena
from mploader.engine.supervisor.worker_handle import Received, WorkerStart
from mploader.errors import ResourceError

OUTPUT_BYTES = 16 * 1024
"""How much of what a worker prints to its standard error is kept for messages."""

DESCRIPTORS_PER_WORKER = 3
"""What a worker takes of the trainer's descriptors: its channel, its pidfd and its standard error."""


class ChannelWorker(abc.ABC):
    """A worker that shares the memory of the trainer; see :class:`WorkerHandle` for methods and attributes.

    A subclass starts what is at the other end and watches it.

    Args:
        start: which worker.
        arena: the shared memory.
        job_fd: the file with the pickled job.

    Raises:
        ResourceError: the machine grants no process or no descriptor.
    """

    pid: int
    exit_fd: int

    def __init__(self, start: WorkerStart, arena: Arena, job_fd: int) -> None:
        self.number = start.number
        self.index = start.index
        self.start = start.start
        self.name = f"worker {start.index}"
        self.status = arena.statuses[start.index]
        self.is_closed_by_peer = False
        self.killed_s: float | None = None
        self._printed = b""
        with contextlib.ExitStack() as kept, contextlib.ExitStack() as handed_over:
            try:
                self._start(kept, handed_over, arena, job_fd)
            except OSError as error:
                raise ResourceError(
                    f"cannot start {self.name}: {error.strerror}. A worker takes one process, and "
                    f"{DESCRIPTORS_PER_WORKER} descriptors in the trainer; lower num_workers= or raise the limits "
                    "(ulimit -n, ulimit -u, the container's pids limit)"
                ) from error
            kept.pop_all()

    def _start(
        self, kept: contextlib.ExitStack, handed_over: contextlib.ExitStack, arena: Arena, job_fd: int
    ) -> None:
        """Opens what both sides need and starts the worker. The stacks close what was opened."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = kept.enter_context(ours)
        handed_over.enter_context(theirs)
        self._channel.setblocking(False)
        self.output_fd, stderr_write = os.pipe2(os.O_CLOEXEC)
        kept.callback(os.close, self.output_fd)
        handed_over.callback(os.close, stderr_write)
        os.set_blocking(self.output_fd, False)
        channel_fd, memory_fd, job_fd = (
            _above_standard(fd, handed_over) for fd in (theirs.fileno(), arena.fd, job_fd)
        )
        self._launch(
            kept, stderr_fd=stderr_write, channel_fd=channel_fd, memory_fd=memory_fd,
            status_offset=arena.status_offset(self.index), job_fd=job_fd,
        )  # fmt: skip

    @abc.abstractmethod
    def _launch(
        self, kept: contextlib.ExitStack, *, stderr_fd: int, channel_fd: int, memory_fd: int, status_offset: int,
        job_fd: int,
    ) -> None:  # fmt: skip
        """Starts what is at the other end, with its own copies of these files; sets ``pid`` and ``exit_fd``."""

    @property
    def message_fd(self) -> int:
        """The channel."""
        return self._channel.fileno()

    def send(self, message: messages.ToWorker, file: int | None = None) -> None:
        """Sends one message, and a file along with it if there is one.

        A worker that cannot take it has not read for long and is killed. Nothing is done to one that has closed its
        end: ``exit_fd`` shows that it ended, and that was not this process, or it is ended for the closing.
        """
        try:
            if file is None:
                self._channel.send(messages.encode(message))
            else:
                socket.send_fds(self._channel, [messages.encode(message)], [file])
        except (BrokenPipeError, ConnectionResetError):
            pass  # its assignments go to others when its end is seen
        except OSError:
            self.kill()

    def receive(self) -> Received | None:
        """Returns the next message, with the file that came with it mapped; None if there is none.

        Raises:
            ProtocolError: the datagram is not a message of a worker.
        """
        try:
            data, fds, flags, _ = socket.recv_fds(self._channel, messages.MAX_BYTES, 1)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in (errno.ECONNRESET, errno.EPIPE):
                self.is_closed_by_peer = True
                return None
            raise
        try:
            if not data:  # the end of the channel, or nonsense that looks like it
                self.is_closed_by_peer = True
                return None
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise messages.ProtocolError("a message that is too long, or the trainer has no descriptor left for "
                                             "the file that belongs to it (ulimit -n)")  # fmt: skip
            message = messages.decode(data)
            if not isinstance(message, messages.FromWorker):
                raise messages.ProtocolError(f"unexpected {message}")
            return Received(message, map_overflow(fds[0]) if fds else None)
        finally:
            for fd in fds:
                os.close(fd)

    def read_output(self) -> bytes | None:
        """Returns some of what the worker has printed, and keeps the end of it for messages.

        b"": it has closed its standard error, and so has everything it has started. None: there is no more now.
        """
        try:
            data = os.read(self.output_fd, OUTPUT_BYTES)
        except BlockingIOError:
            return None
        self._printed = (self._printed + data)[-OUTPUT_BYTES:]
        return data

    @property
    def printed(self) -> str:
        """The end of what the worker printed to its standard error."""
        return self._printed.decode(errors="replace").strip()

    @property
    def is_dead(self) -> bool:
        """Whether it has ended for certain, so that it writes nowhere any more."""
        poll = select.poll()
        poll.register(self.exit_fd, select.POLLIN)
        return bool(poll.poll(0))

    def ask_to_end(self) -> None:
        """Shuts the channel down: an idle worker leaves."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    @abc.abstractmethod
    def kill(self) -> None:
        """Ends the worker; returns before it is gone."""

    def _note_kill(self) -> None:
        if self.killed_s is None:
            self.killed_s = time.monotonic()

    def close(self) -> None:
        """Closes the trainer's descriptors of this worker."""
        self._channel.close()
        os.close(self.exit_fd)
        os.close(self.output_fd)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.index}: pid {self.pid}, start {self.start}>"


def map_overflow(fd: int) -> Array:
    """Maps the file of what did not fit into a slot; the memory goes with the last array that refers to it.

    Raises:
        ProtocolError: it is not such a file, or there is no memory for it.
    """
    try:
        return np.frombuffer(shared_memory.map_file(fd), np.uint8)
    except (OSError, ValueError) as error:
        raise messages.ProtocolError(f"a file that cannot be mapped: {error}") from error


def _above_standard(fd: int, opened: contextlib.ExitStack) -> int:
    """The same file under a number above 2: a trainer without standard streams uses those, a worker cannot."""
    if fd > 2:
        return fd
    duplicate = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    opened.callback(os.close, duplicate)
    return duplicate
