"""What a process and those that it has started hold of the machine."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import threading
import time
from dataclasses import dataclass

_MEMORY = "/memfd:mploader"
_ENDING = "mploader-ending"
"""The thread of ``mploader.tfdata.exit_guard``, where TensorFlow is imported, as it is not here."""
_POLL_S = 0.02


@dataclass(frozen=True)
class Census:
    """What this process and those that it started hold of the machine at one moment. Linux only.

    Attributes:
        token: see :meth:`take`.
        processes: (process id, command) of the descendants of this process and of those that have the token.
        zombies: process ids of children that ended and were not collected.
        memory: (process id, inode) of each shared file of mploader that a process has open or mapped.
        descriptors: (number, what it refers to) of this process.
        threads: (identity, name) of this process's Python threads. Those are not counted that stay for ever once there
            was a dataset: TensorFlow's pools, and the one that ends its iterators when the program does.
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
                and thread.name != _ENDING
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
