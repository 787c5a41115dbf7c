"""Starts, watches and ends one worker process.

A worker is a fresh interpreter, started by exec and never by fork, so neither TensorFlow's threads nor the user's
``__main__`` come along. Its death is a readable *pidfd*: not a closed pipe, which a grandchild may hold open, and not
an exit code, which says nothing about unfinished work. It leads a process group of its own, so Ctrl-C does not reach
it and its children end with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from mploader._util import python_command
from mploader.engine.ipc.arena import Arena
from mploader.engine.ipc.sample_report import UNKNOWN_ENDING
from mploader.engine.supervisor.channel_worker import ChannelWorker
from mploader.engine.supervisor.worker_handle import WorkerStart
from mploader.engine.worker.main import STACKS_SIGNAL

_SINGLE_THREADED = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"
)  # fmt: skip
_PROGRAM = (
    "from mploader.engine.worker.parent_death import die_with; die_with(int(sys.argv[1])); "
    "from mploader.engine.worker.main import main; main()"
)


class ProcessLauncher:
    """Starts workers as processes of this machine; see :class:`mploader.engine.supervisor.worker_handle.Launcher`."""

    def launch(self, start: WorkerStart, arena: Arena, job_fd: int) -> WorkerProcess:
        """Starts a process."""
        return WorkerProcess(start, arena, job_fd)


class WorkerProcess(ChannelWorker):
    """One incarnation of a worker that is a process of this machine; see :class:`WorkerHandle`."""

    def _launch(
        self, kept: contextlib.ExitStack, *, stderr_fd: int, channel_fd: int, memory_fd: int, status_offset: int,
        job_fd: int,
    ) -> None:  # fmt: skip
        self._popen = subprocess.Popen(
            python_command.command(
                _PROGRAM, os.getpid(), self.index, self.start, channel_fd, memory_fd, status_offset, job_fd
            ),
            stdin=subprocess.DEVNULL,
            stderr=stderr_fd,
            pass_fds=(channel_fd, memory_fd, job_fd),
            env=environment(),
            start_new_session=True,
        )
        self.pid = self._popen.pid
        kept.callback(self._give_up)
        try:
            self.exit_fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            # It ended already, and the user's program reaps children that it did not start.
            self.exit_fd, dead = os.pipe()
            os.close(dead)  # a pipe without a writer polls as an ended process does

    def _give_up(self) -> None:
        """Ends a process that was started but cannot be watched."""
        self._popen.kill()
        self._popen.wait()

    @property
    def state(self) -> str:
        """What the kernel says of the process, such as "T (stopped)" or "D (disk sleep)"."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return "ended"
        return status.partition("State:")[2].partition("\n")[0].strip()

    def ask_for_stacks(self) -> None:
        """Makes the worker print its Python stacks to its standard error."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.exit_fd, STACKS_SIGNAL)

    def kill(self) -> None:
        """Kills the worker and what it has started; returns before they are gone."""
        self._note_kill()
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.exit_fd, signal.SIGKILL)

    def reap(self) -> int:
        """Collects the ended process and what is left of its group, and closes everything that belonged to it.

        Returns:
            Its exit code, minus the signal's number if a signal ended it; ``UNKNOWN_ENDING`` if another part of the
            program has reaped it.
        """
        status = UNKNOWN_ENDING
        try:
            ended = os.waitid(os.P_PIDFD, self.exit_fd, os.WEXITED | os.WNOWAIT)
            # The group is ended before the process is reaped: until then its number cannot be used again.
            self._kill_group()
            if ended is not None:
                status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            os.waitid(os.P_PIDFD, self.exit_fd, os.WEXITED)
        except OSError:
            # It was reaped elsewhere. A group keeps its number while it has members; if a process has the number now,
            # it is another one, and the group is gone.
            if not os.path.exists(f"/proc/{self.pid}"):
                self._kill_group()
        self._popen.returncode = status  # or its finalizer would warn and wait
        self.close()
        return status

    def _kill_group(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)


def environment() -> dict[str, str]:
    """The environment of a worker."""
    return dict.fromkeys(_SINGLE_THREADED, "1") | os.environ  # the workers together use all cores already
