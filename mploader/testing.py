"""Tools to test a pipeline against faults: inject them into workers, and count what is left behind.

Fault points
    A worker passes named places, and can be made to die, stop or fail at any of them by the environment variable
    ``MPLOADER_FAULT``, which :func:`faults` sets for the loaders that are made inside its ``with`` block. One fault is
    ``point:number:action`` or ``point:number:action:times``, several are separated by ``;``.

    ``point``
        "before hello", "after hello" (its start), "task received", "record opened" (a data file is open), "record half
        read", "mid decode" (a sample is read, the transform comes next), "slot half written", "result unsent", "result
        sent", "idle", "shutting down".
    ``number``
        the position of the batch in its epoch; of the generator, for ``from_generator``; before the first task, the
        worker's own index. ``*``: any.
    ``action``
        KILL, STOP, SEGV, ABRT, TERM or any other signal by its name without SIG; ``EXIT0``, ``EXIT1``...: leaves with
        that code; ``SLEEP0.5``: seconds; ``EIO``: an ``OSError`` with that code.
    ``times``
        strikes up to this attempt at the batch (before the first task: up to this start of the worker), and at most so
        often in one worker; 1 if it is left out; ``*``: always.

Example::

    from mploader.testing import Census, faults

    before = Census.take()
    with faults("mid decode:3:KILL", "slot half written:5:SEGV:2"), mploader.Loader(...) as loader:
        for batch in loader:  # as without the faults
            ...
    del batch
    assert before.settle() == []
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mploader.errors import ArgumentError
from mploader.faultpoints import POINTS, VARIABLE, Fault

__all__ = ["POINTS", "Census", "FlakySource", "faults"]

_MEMORY = "/memfd:mploader"
_POLL_S = 0.02


@contextlib.contextmanager
def faults(*texts: str) -> Iterator[None]:
    """Injects faults into the workers that are started inside the block, of loaders that are made there.

    Workers read the variable when they start: a worker that is replaced inside the block has the faults too.

    Args:
        texts: as the module's docstring says, such as "mid decode:3:KILL".

    Raises:
        ArgumentError: a text does not name a fault.
    """
    for text in texts:
        try:
            Fault.parse(text)
        except ValueError as error:
            raise ArgumentError(str(error)) from None
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = ";".join(texts)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


class FlakySource:
    """A source that fails with an ``OSError`` the first few times that a sample is read, in each worker.

    Args:
        samples: what it gives otherwise, any sequence.
        failures: how often each of the ``bad`` samples fails first.
        bad: indices of samples that fail; None: all.
        code: the error's ``errno``. EIO and others that tell of the machine are tried again, ENOENT is not.
    """

    def __init__(
        self, samples: Sequence[Any], failures: int = 1, bad: Sequence[int] | None = None, code: int = errno.EIO
    ) -> None:
        self._samples = samples
        self._failures = failures
        self._bad = None if bad is None else frozenset(bad)
        self._code = code
        self._failed: dict[int, int] = {}

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._samples)

    def __getitem__(self, index: int) -> Any:
        """Returns a sample, or fails."""
        if (self._bad is None or index in self._bad) and self._failed.get(index, 0) < self._failures:
            self._failed[index] = self._failed.get(index, 0) + 1
            raise OSError(self._code, os.strerror(self._code), self.describe(index))
        return self._samples[index]

    def describe(self, index: int) -> str:
        """Where a sample comes from."""
        return f"flaky source, item {index}"


@dataclass(frozen=True)
class Census:
    """What this process and those that it started hold of the machine at one moment. Linux only.

    Attributes:
        token: see :meth:`take`.
        processes: (process id, command) of the descendants of this process and of those that have the token.
        zombies: process ids of children that ended and were not collected.
        memory: (process id, inode) of each shared file of mploader that a process has open or mapped.
        descriptors: (number, what it refers to) of this process.
        threads: (identity, name) of this process's Python threads. Those of libraries are not counted: TensorFlow
            keeps its pools for ever.
        shared: names in /dev/shm.
    """

    token: str | None
    processes: frozenset[tuple[int, str]]
    zombies: frozenset[int]
    memory: frozenset[tuple[int, int]]
    descriptors: frozenset[tuple[int, str]]
    threads: frozenset[tuple[int, str]]
    shared: frozenset[str]

    @classmethod
    def take(cls, token: str | None = None) -> Census:
        """Counts now.

        Args:
            token: an entry of the environment, as "NAME=value". Set before a loader is made, it finds the loader's
                processes also when they are orphans, which are nobody's descendants. None: descendants only.
        """
        own, alive, zombies = os.getpid(), {}, set()
        parents = _parents()
        for pid, (parent, state) in parents.items():
            if state in "ZX":
                if parent == own:
                    zombies.add(pid)
            elif pid != own and (_descends(pid, own, parents) or (token and _has_token(pid, token))):
                alive[pid] = _command(pid)
        return cls(
            token,
            frozenset(alive.items()),
            frozenset(zombies),
            frozenset((pid, inode) for pid in (own, *alive) for inode in _shared_files(pid)),
            frozenset(_descriptors(own).items()),
            frozenset(
                (thread.ident or 0, thread.name)
                for thread in threading.enumerate()
                if not isinstance(thread, threading._DummyThread)  # a library's, that has called Python once
            ),
            frozenset(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else frozenset(),
        )

    def difference(self, other: Census) -> list[str]:
        """Says what is here and was not in an ``other``, earlier census: one line each, for people."""
        return [
            *(f"process {pid} is left: {command}" for pid, command in sorted(self.processes - other.processes)),
            *(f"process {pid} is a zombie" for pid in sorted(self.zombies - other.zombies)),
            *(f"process {pid} holds shared memory (inode {inode})"
              for pid, inode in sorted(self.memory - other.memory)),
            *(f"descriptor {number} is open: {target}"
              for number, target in sorted(self.descriptors - other.descriptors)),
            *(f"thread {name!r} runs" for _, name in sorted(self.threads - other.threads)),
            *(f"/dev/shm/{name} is left" for name in sorted(self.shared - other.shared)),
        ]  # fmt: skip

    def settle(self, timeout_s: float = 2.0) -> list[str]:
        """Waits until nothing is there that was not in this census.

        Collects garbage first, so that only what somebody still refers to is held against a loader. Names in /dev/shm,
        where other programs come and go, count only if they stay all the time.

        Returns:
            What is left after ``timeout_s`` seconds, as :meth:`difference` says it.
        """
        gc.collect()
        deadline_s = time.monotonic() + timeout_s
        now = Census.take(self.token)
        while left := now.difference(self):
            if time.monotonic() > deadline_s:
                return left
            time.sleep(_POLL_S)
            shared = now.shared
            now = Census.take(self.token)
            now = dataclasses.replace(now, shared=now.shared & shared)
        return []


def _parents() -> dict[int, tuple[int, str]]:
    """The parent and the state of every process."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                # The command may hold anything, so the fields are counted from its closing parenthesis.
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                found[int(name)] = int(parent), state.decode()
    return found


def _descends(pid: int, ancestor: int, parents: dict[int, tuple[int, str]]) -> bool:
    while pid in parents:
        pid = parents[pid][0]
        if pid == ancestor:
            return True
    return False


def _has_token(pid: int, token: str) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        return token.encode() in file.read().split(b"\0")
    return False


def _command(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read(500).replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def _descriptors(pid: int) -> dict[int, str]:
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # the one that the listing itself has used
                found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def _shared_files(pid: int) -> set[int]:
    """The inodes of mploader's shared files that a process has open or mapped."""
    found = set()
    for number, target in _descriptors(pid).items():
        if target.startswith(_MEMORY):
            with contextlib.suppress(OSError):
                found.add(os.stat(f"/proc/{pid}/fd/{number}").st_ino)
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as file:
        found |= {int(line.split()[4]) for line in file if _MEMORY in line}
    return found
