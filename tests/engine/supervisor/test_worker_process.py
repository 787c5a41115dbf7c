"""A worker as the trainer sees it: its messages, its last words and its end, without a process.

What needs a process (signals, groups, exit codes, orphans) is in tests/faults.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mploader.engine.ipc import messages
from mploader.engine.ipc.arena import Arena
from mploader.engine.ipc.messages import Broken, Cancel, Hello, ProtocolError
from mploader.engine.ipc.sample_report import UNKNOWN_ENDING
from mploader.engine.ipc.worker_status import WorkerStatus
from mploader.engine.supervisor import channel_worker, worker_process
from mploader.engine.supervisor.channel_worker import OUTPUT_BYTES
from mploader.engine.supervisor.worker_handle import Received, WorkerStart
from mploader.engine.supervisor.worker_process import WorkerProcess
from mploader.errors import ResourceError
from mploader.testing import Census, ThreadWorker, WorkerEndedError

Script = Callable[["Scripted", socket.socket], None]
"""What the worker's side does."""
HELLO = Hello(protocol=1, pid=2)
START = WorkerStart(number=7, index=0, start=3)


class Scripted(ThreadWorker):
    """A worker that does what a test says, with its channel."""

    script: Script

    def serve(self, channel: socket.socket, memory_fd: int, status: WorkerStatus, job_fd: int) -> None:
        type(self).script(self, channel)


class Workers:
    """Starts workers, and collects each once."""

    def __init__(self) -> None:
        self._arena = Arena(1)
        self._alive: list[Scripted] = []

    def __call__(self, script: Script) -> Scripted:
        kind = type("Scripted", (Scripted,), {"script": script})
        self._alive.append(kind(START, self._arena, self._arena.fd))
        return self._alive[-1]

    def reap(self, worker: Scripted) -> int:
        self._alive.remove(worker)
        return worker.reap()

    def close(self) -> None:
        for worker in list(self._alive):
            worker.kill()
            self.reap(worker)
        self._arena.close()


@pytest.fixture
def start(nothing_is_left: None) -> Iterator[Workers]:
    workers = Workers()
    yield workers
    workers.close()


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline_s = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    return found


def idle(worker: Scripted, channel: socket.socket) -> None:
    """Waits until the trainer closes the channel."""
    while channel.recv(messages.MAX_BYTES):
        pass


# Messages


def test_messages_arrive_in_both_directions(start: Workers) -> None:
    def echo(worker: Scripted, channel: socket.socket) -> None:
        while data := channel.recv(messages.MAX_BYTES):
            message = messages.decode(data)
            assert isinstance(message, Cancel)
            channel.send(messages.encode(Broken(text_bytes=message.series)))

    worker = start(echo)
    assert worker.receive() is None, "there is none yet"
    worker.send(Cancel(series=5))
    worker.send(Cancel(series=6))
    received = [wait_for(worker.receive) for _ in range(2)]
    assert received == [Received(Broken(text_bytes=5)), Received(Broken(text_bytes=6))]
    assert not worker.is_closed_by_peer


def test_a_file_travels_along_with_its_message(start: Workers) -> None:
    def send_back(worker: Scripted, channel: socket.socket) -> None:
        data, files, _, _ = socket.recv_fds(channel, messages.MAX_BYTES, 1)
        assert messages.decode(data) == Cancel(series=5)
        socket.send_fds(channel, [messages.encode(HELLO)], files)
        os.close(files[0])
        idle(worker, channel)

    worker = start(send_back)
    file = os.memfd_create("a file")
    os.write(file, b"content")
    worker.send(Cancel(series=5), file)
    os.close(file)
    received = wait_for(worker.receive)
    assert received.message == HELLO
    assert bytes(received.overflow) == b"content"


def test_a_message_sent_before_the_end_is_received_after_it(start: Workers) -> None:
    def last_words(worker: Scripted, channel: socket.socket) -> None:
        channel.send(messages.encode(HELLO))
        raise WorkerEndedError(-signal.SIGSEGV)

    worker = start(last_words)
    wait_for(lambda: worker.is_dead)
    assert worker.receive() == Received(HELLO)
    assert worker.receive() is None
    assert worker.is_closed_by_peer


@pytest.mark.parametrize(
    "data",
    [
        b"", b"nonsense", messages.encode(HELLO)[:-1], messages.encode(Cancel(series=1)), b"\xff" * messages.MAX_BYTES,
        b"x" * 2000,
    ],
)  # fmt: skip
def test_bytes_that_are_not_a_message_of_a_worker_are_a_protocol_error(data: bytes, start: Workers) -> None:
    """Also with a file, which is closed."""

    def babble(worker: Scripted, channel: socket.socket) -> None:
        socket.send_fds(channel, [data], [channel.fileno()])
        idle(worker, channel)

    worker = start(babble)
    if data:
        with pytest.raises(ProtocolError):
            wait_for(worker.receive)
    else:  # an empty datagram is what the end of a channel looks like
        wait_for(lambda: worker.receive() or worker.is_closed_by_peer)


@pytest.mark.parametrize("kind", ["empty", "a pipe"])
def test_a_file_that_cannot_be_mapped_is_a_protocol_error_and_is_closed(kind: str, start: Workers) -> None:
    def send(worker: Scripted, channel: socket.socket) -> None:
        files = os.pipe() if kind == "a pipe" else (os.memfd_create("empty"),)
        socket.send_fds(channel, [messages.encode(HELLO)], files[:1])
        for file in files:
            os.close(file)
        idle(worker, channel)

    worker = start(send)
    with pytest.raises(ProtocolError, match="cannot be mapped"):
        wait_for(worker.receive)


def test_a_worker_that_has_closed_its_channel_is_told_nothing_and_not_killed(start: Workers) -> None:
    def close(worker: Scripted, channel: socket.socket) -> None:
        channel.close()

    worker = start(close)
    wait_for(lambda: worker.is_dead)
    worker.send(Cancel(series=1))
    assert worker.killed_s is None, "or three of them would count as workers that the trainer has ended"


def test_a_worker_that_reads_nothing_is_killed(start: Workers) -> None:
    def read_nothing(worker: Scripted, channel: socket.socket) -> None:
        wait_for(lambda: worker.killed_s)

    worker = start(read_nothing)
    for _ in range(100_000):  # the kernel holds a few hundred
        worker.send(Cancel(series=1))
        if worker.killed_s is not None:
            break
    assert worker.killed_s is not None
    wait_for(lambda: worker.is_dead)


# What it prints


def test_the_end_of_what_it_prints_is_kept(start: Workers) -> None:
    def talk(worker: Scripted, channel: socket.socket) -> None:
        worker.print("a" * OUTPUT_BYTES)
        worker.print("the end\n")

    worker = start(talk)
    wait_for(lambda: worker.is_dead)
    found = b"".join(iter(worker.read_output, None))
    assert found == b"a" * OUTPUT_BYTES + b"the end\n"
    assert worker.printed == "a" * (OUTPUT_BYTES - 8) + "the end"


def test_output_may_not_be_there_yet(start: Workers) -> None:
    assert start(idle).read_output() is None


def test_its_stacks_are_printed_on_demand(start: Workers) -> None:
    def greet(worker: Scripted, channel: socket.socket) -> None:
        channel.send(messages.encode(HELLO))
        idle(worker, channel)

    worker = start(greet)
    wait_for(worker.receive)
    worker.ask_for_stacks()
    assert wait_for(lambda: worker.read_output() and "in greet" in worker.printed)


# Its end


def test_the_end_of_a_worker_shows_with_its_status(start: Workers) -> None:
    def end(worker: Scripted, channel: socket.socket) -> None:
        idle(worker, channel)
        raise WorkerEndedError(3)

    worker = start(end)
    assert (worker.is_dead, worker.state) == (False, "a thread")
    assert repr(worker) == f"<Scripted 0: pid {worker.pid}, start 3>"
    worker.ask_to_end()
    wait_for(lambda: worker.is_dead)
    assert start.reap(worker) == 3
    assert worker.state == "ended"


def test_a_worker_that_is_killed_says_so(start: Workers) -> None:
    worker = start(idle)
    worker.kill()
    assert worker.killed_s is not None
    assert start.reap(worker) == -signal.SIGKILL


def test_a_worker_that_raises_prints_its_traceback_and_exits_with_1(start: Workers) -> None:
    def fail(worker: Scripted, channel: socket.socket) -> None:
        raise RuntimeError("a bug")

    worker = start(fail)
    wait_for(lambda: worker.is_dead)
    assert worker.read_output()
    assert "RuntimeError: a bug" in worker.printed
    assert start.reap(worker) == 1


def test_a_process_that_was_reaped_elsewhere_has_an_unknown_ending() -> None:
    """As a program does that waits for any child; here the process was never one."""
    gone, descriptor = os.pipe()
    os.close(descriptor)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    reaped = WorkerProcess.__new__(WorkerProcess)
    reaped._channel, reaped.exit_fd, reaped.output_fd, reaped.pid = ours, gone, os.dup(gone), 2**22 + 1
    reaped._popen = subprocess.Popen.__new__(subprocess.Popen)
    assert reaped.is_dead
    assert reaped.reap() == UNKNOWN_ENDING


# Its start


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
def test_a_process_that_is_not_granted_is_an_error_and_keeps_nothing(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    arena = Arena(5)
    before = Census.take()
    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(ResourceError, match=rf"cannot start worker 4: {os.strerror(code)}.*lower num_workers="):
        WorkerProcess(WorkerStart(number=1, index=4, start=1), arena, 0)
    assert before.settle() == []
    arena.close()


@pytest.mark.parametrize("call", ["socket.socketpair", "os.pipe2", "os.dup", "threading.Thread.start"])
def test_a_thread_that_is_not_granted_keeps_nothing(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread") if "Thread" in call else OSError(errno.EMFILE, "no more")

    arena = Arena(5)
    before = Census.take()
    with monkeypatch.context() as patch:
        patch.setattr(call, refuse)
        with pytest.raises(ResourceError, match="cannot start worker 4"):
            ThreadWorker(WorkerStart(number=1, index=4, start=1), arena, arena.fd)
    assert before.settle() == []
    arena.close()


def test_a_process_that_cannot_be_watched_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    class Popen:
        pid = 2**22 + 1

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def kill(self) -> None:
            ended.append("killed")

        def wait(self) -> None:
            ended.append("reaped")

    def no_descriptor(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setattr(os, "pidfd_open", no_descriptor)
    arena = Arena(1)
    with pytest.raises(ResourceError, match="raise the limits"):
        WorkerProcess(WorkerStart(number=1, index=0, start=1), arena, 0)
    arena.close()
    assert ended == ["killed", "reaped"]


def test_libraries_in_a_worker_use_one_thread_unless_the_user_wants_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environment = worker_process.environment()
    assert (environment["MKL_NUM_THREADS"], environment["OMP_NUM_THREADS"]) == ("3", "1")
    assert environment["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize("fd", [0, 1, 2])
def test_files_for_a_worker_never_have_the_numbers_of_its_standard_streams(fd: int) -> None:
    with contextlib.ExitStack() as opened:
        assert channel_worker._above_standard(fd, opened) > 2
        assert channel_worker._above_standard(17, opened) == 17
