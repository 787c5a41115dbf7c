"""Starts, watches and ends one worker process.

A worker is a fresh interpreter, started by exec and never by fork, so neither TensorFlow's threads nor the user's
``__main__`` come along. Its death is a readable *pidfd*: not a closed pipe, which a grandchild may hold open, and not
an exit code, which says nothing about unfinished work. It leads a process group of its own, so Ctrl-C does not reach
it and its children end with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

from mploader._util import python_command
from mploader._util.platform_check import fcntl
from mploader.engine.ipc import messages
from mploader.engine.ipc.sample_report import UNKNOWN_ENDING
from mploader.engine.worker.loop import STACKS_SIGNAL
from mploader.errors import ResourceError

STDERR_BYTES = 16 * 1024
"""How much of what a worker prints to its standard error is kept for messages."""

DESCRIPTORS_PER_WORKER = 3
"""What a worker takes of the trainer's descriptors: its channel, its pidfd and its standard error."""

_SINGLE_THREADED = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"
)  # fmt: skip
_PROGRAM = (
    "from mploader.engine.worker.parent_death import die_with; die_with(int(sys.argv[1])); "
    "from mploader.engine.worker.loop import main; main()"
)


class WorkerProcess:
    """One incarnation of a worker, as the trainer sees it. Used by the supervising thread alone.

    Args:
        number: the incarnation; never used twice in a pool.
        index: which of the pool's workers this is; a replacement has the index of the worker that it replaces.
        start: how many times the worker with this index has been started, from 1.
        memory_fd: the arena's file.
        job_fd: the file with the pickled job.

    Raises:
        ResourceError: the machine grants no process or no descriptor.
    """

    def __init__(self, number: int, index: int, start: int, memory_fd: int, job_fd: int) -> None:
        self.number = number
        self.index = index
        self.start = start
        self.name = f"worker {index}"
        self.started_s = time.monotonic()
        self.is_closed_by_peer = False
        self.killed_s: float | None = None
        self._printed = b""
        with contextlib.ExitStack() as kept, contextlib.ExitStack() as handed_over:
            try:
                self._start(kept, handed_over, memory_fd, job_fd)
            except OSError as error:
                raise ResourceError(
                    f"cannot start worker {index}: {error.strerror}. A worker takes one process, and "
                    f"{DESCRIPTORS_PER_WORKER} descriptors in the trainer; lower num_workers= or raise the limits "
                    "(ulimit -n, ulimit -u, the container's pids limit)"
                ) from error
            kept.pop_all()

    def _start(
        self, kept: contextlib.ExitStack, handed_over: contextlib.ExitStack, memory_fd: int, job_fd: int
    ) -> None:
        """Opens what both sides need and starts the worker. The stacks close what was opened."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = kept.enter_context(ours)
        handed_over.enter_context(theirs)
        self.channel.setblocking(False)
        self.stderr_fd, stderr_write = os.pipe2(os.O_CLOEXEC)
        kept.callback(os.close, self.stderr_fd)
        handed_over.callback(os.close, stderr_write)
        os.set_blocking(self.stderr_fd, False)
        passed = [_above_standard(fd, handed_over) for fd in (theirs.fileno(), memory_fd, job_fd)]
        self._launch(kept, stderr_write, *passed)

    def _launch(
        self, kept: contextlib.ExitStack, stderr_fd: int, channel_fd: int, memory_fd: int, job_fd: int
    ) -> None:
        """Starts what is at the other end, with its own copies of these files; sets ``pid`` and ``pidfd``."""
        passed = channel_fd, memory_fd, job_fd
        self._popen = subprocess.Popen(
            python_command.command(_PROGRAM, os.getpid(), self.index, self.start, *passed),
            stdin=subprocess.DEVNULL,
            stderr=stderr_fd,
            pass_fds=passed,
            env=environment(),
            start_new_session=True,
        )
        self.pid = self._popen.pid
        kept.callback(self._give_up)
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            # It ended already, and the user's program reaps children that it did not start.
            self.pidfd, dead = os.pipe()
            os.close(dead)  # a pipe without a writer polls as an ended process does

    def _give_up(self) -> None:
        """Ends a process that was started but cannot be watched."""
        self._popen.kill()
        self._popen.wait()

    def send(self, message: messages.ToWorker, file: int | None = None) -> None:
        """Sends one message, and a file along with it if there is one.

        A worker that cannot take it has not read for long and is killed. Nothing is done to one that has closed its
        end: its pidfd tells how it ended, and that was not this process, or it is ended for the closing.
        """
        try:
            if file is None:
                self.channel.send(messages.encode(message))
            else:
                socket.send_fds(self.channel, [messages.encode(message)], [file])
        except (BrokenPipeError, ConnectionResetError):
            pass  # what it has been lent goes to others when its pidfd tells of its end
        except OSError:
            self.kill()

    def receive(self) -> tuple[messages.Message, int | None] | None:
        """Returns the next message and the file that came with it; None if there is none.

        Raises:
            messages.ProtocolError: the datagram is not a message.
        """
        try:
            data, fds, flags, _ = socket.recv_fds(self.channel, messages.MAX_BYTES, 1)
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
            return messages.decode(data), fds.pop() if fds else None
        finally:
            for fd in fds:
                os.close(fd)

    def read_stderr(self) -> bytes | None:
        """Returns some of what the worker has printed, and keeps the end of it for messages.

        b"": it has closed its standard error, and so has everything it has started. None: there is no more now.
        """
        try:
            data = os.read(self.stderr_fd, STDERR_BYTES)
        except BlockingIOError:
            return None
        self._printed = (self._printed + data)[-STDERR_BYTES:]
        return data

    @property
    def printed(self) -> str:
        """The end of what the worker printed to its standard error."""
        return self._printed.decode(errors="replace").strip()

    @property
    def state(self) -> str:
        """What the kernel says of the process, such as "T (stopped)" or "D (disk sleep)"."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return "ended"
        return status.partition("State:")[2].partition("\n")[0].strip()

    @property
    def is_dead(self) -> bool:
        """Whether the kernel has ended the process, so that it writes nowhere any more."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def ask_to_end(self) -> None:
        """Shuts the channel down: an idle worker leaves."""
        with contextlib.suppress(OSError):
            self.channel.shutdown(socket.SHUT_RDWR)

    def ask_for_stacks(self) -> None:
        """Makes the worker print its Python stacks to its standard error."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, STACKS_SIGNAL)

    def kill(self) -> None:
        """Kills the worker and what it has started; returns before they are gone."""
        if self.killed_s is None:
            self.killed_s = time.monotonic()
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self) -> int:
        """Collects the ended process and what is left of its group, and closes everything that belonged to it.

        Returns:
            Its exit code, minus the signal's number if a signal ended it; ``UNKNOWN_ENDING`` if somebody else has
            reaped it.
        """
        status = UNKNOWN_ENDING
        try:
            ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT)
            # The group is ended before the process is reaped: until then its number cannot be used again.
            self._kill_group()
            if ended is not None:
                status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        except OSError:
            # Somebody else has reaped it. A group keeps its number while it has members; if a process has the
            # number now, it is another one, and the group is gone.
            if not os.path.exists(f"/proc/{self.pid}"):
                self._kill_group()
        self._popen.returncode = status  # or its finalizer would warn and wait
        self.close()
        return status

    def _kill_group(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Closes the trainer's descriptors of this worker."""
        self.channel.close()
        os.close(self.pidfd)
        os.close(self.stderr_fd)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.index}: pid {self.pid}, start {self.start}>"


def _above_standard(fd: int, opened: contextlib.ExitStack) -> int:
    """The same file under a number above 2: a trainer without standard streams uses those, a worker cannot."""
    if fd > 2:
        return fd
    duplicate = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    opened.callback(os.close, duplicate)
    return duplicate


def environment() -> dict[str, str]:
    """The environment of a worker."""
    return dict.fromkeys(_SINGLE_THREADED, "1") | os.environ  # the workers together use all cores already
