"""A third kind of worker, as from another machine: it shares no memory with the trainer, and its bytes arrive later.

The worker's real code runs in a thread with a shared file of its own. A relay thread takes what it sends off that file,
as a network would, and the handle writes it into the assigned slot when the supervisor receives the message.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import mmap
import os
import select
import signal
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from mploader._util import shared_memory
from mploader._util.shared_memory import Array
from mploader.engine.ipc import messages
from mploader.engine.ipc.arena import Arena
from mploader.engine.ipc.slots import Segment, Slots
from mploader.engine.ipc.worker_status import STATUS_BYTES, TEXT_BYTES, WorkerStatus
from mploader.engine.supervisor.worker_handle import Launcher, Received, WorkerHandle, WorkerStart
from mploader.engine.worker import loop

_pids = itertools.count(2**22 + 100_001)


@dataclass(frozen=True)
class Faults:
    """What goes wrong on the way.

    Attributes:
        dies_after: the connection is lost with this result of each worker (from 1), which does not arrive; with a later
            one, if this is of a task that was lost before.
        delay_s: how long each result travels.
        lie: changes a result before it arrives.
    """

    dies_after: int | None = None
    delay_s: float = 0.0
    lie: Any = None


@dataclass(frozen=True)
class Parcel:
    """A message with the bytes that belong to it, as they travel."""

    message: Any
    data: bytes = b""
    report: bytes = b""
    text: bytes = b""
    overflow: Array | None = None


class RelayedLauncher:
    """Starts relayed workers; or others for some indices.

    Args:
        faults: what goes wrong on the way.
        local: starts the workers with an even index. None: they are relayed, too.
    """

    def __init__(self, faults: Faults | None = None, local: Launcher | None = None) -> None:
        self.faults = faults or Faults()
        self.local = local
        self.launched: list[RelayedWorker] = []

    def launch(self, start: WorkerStart, arena: Arena, job_fd: int) -> WorkerHandle:
        if self.local is not None and start.index % 2 == 0:
            return self.local.launch(start, arena, job_fd)
        worker = RelayedWorker(start, arena, job_fd, self.faults)
        self.launched.append(worker)
        return worker


class RelayedWorker:
    """The handle of a worker elsewhere; see :class:`WorkerHandle`."""

    def __init__(self, start: WorkerStart, arena: Arena, job_fd: int, faults: Faults) -> None:
        self.number, self.index, self.start = start.number, start.index, start.start
        self.name = f"relayed worker {start.index}"
        self.pid = next(_pids)
        self.killed_s: float | None = None
        self.is_closed_by_peer = False
        self.printed = ""
        self._arena = arena
        self._faults = faults
        self._assigned: dict[tuple[int, int], messages.Make] = {}
        self._parcels: collections.deque[Parcel] = collections.deque()
        self._results = 0
        self._is_cut = threading.Event()
        self.message_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        self.exit_fd, self._alive_fd = os.pipe2(os.O_CLOEXEC)
        self.output_fd, self._output_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._mirror = WorkerStatus(mmap.mmap(-1, STATUS_BYTES))
        self._there = _Elsewhere(job_fd)
        threading.Thread(target=self._relay, name=f"relay of {self.name}", daemon=True).start()

    # What travels to the worker

    def send(self, message: messages.ToWorker, file: int | None = None) -> None:
        if isinstance(message, messages.Make):
            self._assigned[message.task, message.attempt] = message
        elif isinstance(message, messages.Open):
            layout = bytes(shared_memory.map_range(self._arena.fd, message.offset, message.size))
            message = self._there.store(layout)
        elif isinstance(message, messages.AddSlots):
            message = self._there.add_slots(message)
        self._there.send(message, file)

    # What travels back

    def _relay(self) -> None:
        try:
            while not self._is_cut.is_set() and (received := self._there.receive()) is not None:
                parcel = self._pack(*received)
                if isinstance(parcel.message, (messages.Made, messages.Failed)):
                    self._results += 1
                    is_first = parcel.message.attempt == 1  # a task that is lost three times is given up
                    if self._faults.dies_after is not None and self._results >= self._faults.dies_after and is_first:
                        return
                    self._is_cut.wait(self._faults.delay_s)
                if self._is_cut.is_set():
                    return
                self._parcels.append(parcel)
                os.eventfd_write(self.message_fd, 1)
        finally:
            self._there.hang_up()
            os.close(self._alive_fd)  # nothing arrives any more

    def _pack(self, message: Any, overflow: Array | None) -> Parcel:
        there = self._there
        data = report = text = b""
        if isinstance(message, messages.Made):
            data = there.slots.data(message.slot, min(message.batch_bytes, there.slots.data_bytes)).tobytes()
        if isinstance(message, (messages.Made, messages.Failed)) and message.report_bytes <= TEXT_BYTES:
            report = there.slots.read_report(message.slot, message.report_bytes)
        if isinstance(message, (messages.Probed, messages.Broken)):
            text = there.status.read_text(message.text_bytes)
        if self._faults.lie is not None and isinstance(message, messages.Made):
            message = self._faults.lie(self, message)
        return Parcel(message, data, report, text, None if overflow is None else overflow.copy())

    def receive(self) -> Received | None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.message_fd)
        if not self._parcels:
            return None
        parcel = self._parcels.popleft()
        self._mirror.write_text(parcel.text)
        message = parcel.message
        if isinstance(message, (messages.Made, messages.Failed)):
            made = self._assigned.pop((message.task, message.attempt), None)
            # A message about another slot, or about a task that it does not have, writes nowhere.
            if made is not None and (made.slot, made.generation) == (message.slot, message.generation):
                slots = self._arena.slots
                if parcel.overflow is None or message.report_bytes > TEXT_BYTES:
                    slots.data(made.slot)[: len(parcel.data)] = memoryview(parcel.data)
                slots.write_report(made.slot, parcel.report)
        return Received(message, parcel.overflow)

    @property
    def status(self) -> WorkerStatus:
        """As the last heart-beat showed it."""
        self._mirror._words[:] = self._there.status._words
        return self._mirror

    @property
    def state(self) -> str:
        return "elsewhere"

    def read_output(self) -> bytes | None:
        try:
            return os.read(self.output_fd, 1000)
        except BlockingIOError:
            return None

    @property
    def is_dead(self) -> bool:
        return bool(select.select([self.exit_fd], [], [], 0)[0])

    def ask_to_end(self) -> None:
        self._there.hang_up()

    def ask_for_stacks(self) -> None:
        self.printed = f"the stacks of {self.name}"

    def kill(self) -> None:
        """Cuts the connection. What the worker does from then on reaches nobody."""
        self.killed_s = self.killed_s or time.monotonic()
        self._is_cut.set()
        self._there.hang_up()

    def reap(self) -> int:
        self.close()
        return -signal.SIGKILL

    def close(self) -> None:
        for fd in (self.message_fd, self.exit_fd, self.output_fd, self._output_write):
            os.close(fd)


class _Elsewhere:
    """The other machine: a shared file of its own, and the worker's real code in a thread."""

    def __init__(self, job_fd: int) -> None:
        self._fd = shared_memory.create("mploader-elsewhere", STATUS_BYTES)
        self._bytes = STATUS_BYTES
        self.status = WorkerStatus(shared_memory.map_range(self._fd, 0, STATUS_BYTES))
        self.slots = Slots()
        self._here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        job = _copy_of(job_fd)
        threading.Thread(target=self._live, args=(there, os.dup(self._fd), job), daemon=True).start()

    def _live(self, channel: socket.socket, memory_fd: int, job_fd: int) -> None:
        with channel, contextlib.suppress(OSError):
            loop.serve(channel, memory_fd, WorkerStatus(shared_memory.map_range(memory_fd, 0, STATUS_BYTES)), job_fd)
        os.close(memory_fd)
        os.close(job_fd)

    def store(self, layout: bytes) -> messages.Open:
        start = self._grow(len(layout))
        shared_memory.map_range(self._fd, start, len(layout))[:] = layout
        return messages.Open(offset=start, size=len(layout))

    def add_slots(self, message: messages.AddSlots) -> messages.AddSlots:
        start = self._grow(message.count * message.slot_bytes)
        segment = Segment(message.first, message.count, start, message.slot_bytes)
        self.slots.add(segment, shared_memory.map_range(self._fd, start, segment.size))
        return dataclasses.replace(message, offset=start)

    def _grow(self, size: int) -> int:
        start, size = self._bytes, shared_memory.align(size, shared_memory.PAGE)
        os.posix_fallocate(self._fd, start, size)
        self._bytes += size
        return start

    def send(self, message: messages.ToWorker, file: int | None) -> None:
        with contextlib.suppress(OSError):
            if file is None:
                self._here.send(messages.encode(message))
            else:
                copy = _copy_of(file)
                socket.send_fds(self._here, [messages.encode(message)], [copy])
                os.close(copy)

    def receive(self) -> tuple[messages.Message, Array | None] | None:
        """The next message; None at the end."""
        try:
            data, fds, _, _ = socket.recv_fds(self._here, messages.MAX_BYTES, 1)
        except OSError:
            return None
        if not data:
            return None
        overflow = None
        for fd in fds:
            overflow = np.frombuffer(shared_memory.map_file(fd), np.uint8)
            os.close(fd)
        return messages.decode(data), overflow

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._here.shutdown(socket.SHUT_RDWR)

    def __del__(self) -> None:
        os.close(self._fd)
        self._here.close()


def _copy_of(fd: int) -> int:
    """A file of its own with the same bytes."""
    size = os.fstat(fd).st_size
    copy = shared_memory.create("mploader-copy", size)
    os.pwrite(copy, os.pread(fd, size, 0), 0)
    return copy
