"""How the supervisor knows workers: as handles, whatever is at the other end.

A local process is one implementation (:mod:`mploader.engine.supervisor.worker_process`), a thread for tests another
(:mod:`mploader.testing.thread_workers`). A worker on another machine is a third: its handle receives the bytes of a
batch over a connection and writes them into the assigned slot. Scheduler, supervisor and consumers see no difference.

A launcher starts workers. It is given to the pool, which passes it to its supervisor. Where none is given, the pool
takes the default one, which :func:`use_launcher` changes for a while.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from mploader._util.shared_memory import Array
from mploader.engine.ipc.arena import Arena
from mploader.engine.ipc.messages import FromWorker, ToWorker
from mploader.engine.ipc.worker_status import WorkerStatus


@dataclass(frozen=True, kw_only=True)
class WorkerStart:
    """Which worker is to be started.

    Attributes:
        number: of the incarnation; never used twice in a pool.
        index: which of the pool's workers this is; a replacement has the index of the worker that it replaces.
        start: how many times the worker with this index has been started, from 1.
    """

    number: int
    index: int
    start: int


@dataclass(frozen=True)
class Received:
    """What a worker has sent.

    Attributes:
        message: the message.
        overflow: the batch and the reports that did not fit into the slot, 1-d uint8; None if all did.
    """

    message: FromWorker
    overflow: Array | None = None


class WorkerHandle(Protocol):
    """One incarnation of a worker, as the supervisor sees it.

    All methods are called by the supervisor thread alone, and none of them waits. They raise only what they say: the
    end of a worker is no error but a fact that shows in ``exit_fd``.

    Who implements this owes the following. After ``exit_fd`` is readable nothing at the other end writes to any slot.
    :meth:`receive` then still returns what was sent before. The bytes of a batch, and of the report beside it, are in
    the slot that the worker was assigned before :meth:`receive` returns its message; a message about a slot that the
    worker was not assigned writes nothing, and is returned for the supervisor to judge.

    Attributes:
        number, index, start: see :class:`WorkerStart`.
        name: for messages, as "worker 3".
        pid: process id, or a number that no process has.
        status: what the worker shows of itself: its progress, what it has in hand, and its last text.
        killed_s: when it was killed, on the monotonic clock; None: it was not.
        is_closed_by_peer: it has closed its channel.
        message_fd, exit_fd, output_fd: descriptors that become readable when there is a message, when the worker is
            dead for certain, and when it has printed something.
    """

    number: int
    index: int
    start: int
    name: str
    pid: int
    status: WorkerStatus
    killed_s: float | None
    is_closed_by_peer: bool

    @property
    def message_fd(self) -> int:
        """See the class."""
        ...

    @property
    def exit_fd(self) -> int:
        """See the class."""
        ...

    @property
    def output_fd(self) -> int:
        """See the class."""
        ...

    def send(self, message: ToWorker, file: int | None = None) -> None:
        """Sends one message, and a copy of a file's descriptor with it. A worker that cannot take it is killed."""
        ...

    def receive(self) -> Received | None:
        """Returns the next message; None if there is none.

        Raises:
            ProtocolError: the worker sent something that is not a message.
        """
        ...

    def read_output(self) -> bytes | None:
        """Returns some of what the worker printed, and keeps the end of it. b"": no more will come. None: not now."""
        ...

    @property
    def printed(self) -> str:
        """The end of what the worker printed."""
        ...

    @property
    def state(self) -> str:
        """What the system says of the worker, such as "T (stopped)", for messages."""
        ...

    @property
    def is_dead(self) -> bool:
        """Whether it has ended for certain, so that it writes nowhere any more."""
        ...

    def ask_to_end(self) -> None:
        """Lets an idle worker leave."""
        ...

    def ask_for_stacks(self) -> None:
        """Makes the worker print the stacks of its threads."""
        ...

    def kill(self) -> None:
        """Ends the worker and what it has started; returns before they are gone."""
        ...

    def reap(self) -> int:
        """Collects the dead worker and closes everything that belonged to it.

        Returns:
            How it ended, as :func:`sample_report.describe_ending` takes it.
        """
        ...

    def close(self) -> None:
        """Closes the descriptors of this side, of a worker that does not die."""
        ...


class Launcher(Protocol):
    """Starts workers. Called by the supervisor thread alone."""

    def launch(self, start: WorkerStart, arena: Arena, job_fd: int) -> WorkerHandle:
        """Starts a worker and returns its handle.

        Args:
            start: which worker.
            arena: the shared memory; the worker's status is ``arena.statuses[start.index]``.
            job_fd: the file with the pickled job.

        Raises:
            ResourceError: the machine grants no process or no descriptor.
        """
        ...


_chosen: list[Launcher] = []


def chosen_launcher() -> Launcher | None:
    """The launcher of the innermost :func:`use_launcher`; None outside of all."""
    return _chosen[-1] if _chosen else None


@contextlib.contextmanager
def use_launcher(launcher: Launcher) -> Iterator[None]:
    """Has the workers of all pools that are made inside the block started by ``launcher``, in every thread.

    Blocks of several threads must not overlap, except one within another.
    """
    _chosen.append(launcher)
    try:
        yield
    finally:
        _chosen.pop()
