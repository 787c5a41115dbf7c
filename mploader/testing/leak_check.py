"""Counts the processes, memory, descriptors and threads that a process and its descendants hold, to find leaks."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import threading
import time
from dataclasses import dataclass

import psutil

_MEMORY = "/memfd:mploader"
_ENDING = "mploader-ending"
"""Name of the thread of ``mploader.tfdata.exit_guard``, which is not imported here because it imports TensorFlow."""
_POLL_S = 0.02


@dataclass(frozen=True)
class Census:
    """What this process and its descendants hold at one moment. Linux only.

    Attributes:
        token: see :meth:`take`.
        processes: (process id, command) of the descendants of this process and of those that have the token.
        zombies: process ids of children that ended and were not waited for.
        memory: (process id, inode) of each shared file of mploader that a process has open or mapped.
        descriptors: (number, what it refers to) of this process.
        threads: (identity, name) of this process's Python threads, without those that stay for the life of the process
            once a dataset was made: TensorFlow's pools, and the thread that ends its iterators at exit.
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
            token: an entry of the environment, as "NAME=value". If it is set before a loader is made, the loader's
                processes are found even as orphans, which are not descendants any more. None: descendants only.
        """
        own = os.getpid()
        alive, zombies = _processes(token)
        return cls(
            token,
            frozenset(alive.items()),
            frozenset(zombies),
            frozenset((pid, inode) for pid in (own, *alive) for inode in _shared_files(pid)),
            frozenset(_descriptors(own).items()),
            frozenset(
                (thread.ident or 0, thread.name)
                for thread in threading.enumerate()
                if not isinstance(thread, threading._DummyThread)  # of a library that called Python once
                and thread.name != _ENDING
            ),
            frozenset(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else frozenset(),
        )

    def difference(self, other: Census) -> list[str]:
        """Returns what is in this census and not in an earlier one: one line of text each."""
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
        """Waits until nothing is left that was not in this census.

        Collects garbage first, so that only objects that are still referred to count as leaks. Names in /dev/shm, which
        other programs create and remove, count only if they stay for the whole time.

        Returns:
            What is left after ``timeout_s`` seconds, as the lines of :meth:`difference`.
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


def _processes(token: str | None) -> tuple[dict[int, str], set[int]]:
    """The commands of the descendants of this process and of those with the token; the pids of its zombies."""
    own = psutil.Process()
    descendants = own.children(recursive=True)
    with_token = [] if token is None else [one for one in psutil.process_iter() if _has_token(one, token)]
    alive, zombies = dict[int, str](), set[int]()
    for process in {*descendants, *with_token} - {own}:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                alive[process.pid] = " ".join(process.cmdline())
            elif process.ppid() == own.pid:
                zombies.add(process.pid)
    return alive, zombies


def _has_token(process: psutil.Process, token: str) -> bool:
    name, _, value = token.partition("=")
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return process.environ().get(name) == value
    return False


def _descriptors(pid: int) -> dict[int, str]:
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed
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
