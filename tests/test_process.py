"""A worker as the trainer sees it, without one: what becomes of a message that cannot be sent."""

from __future__ import annotations

import socket

import pytest

from mploader import messages
from mploader.process import WorkerProcess


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was killed."""
    names: list[str] = []
    monkeypatch.setattr(WorkerProcess, "kill", lambda process: names.append(process.name))
    return names


def worker(channel: socket.socket) -> WorkerProcess:
    process = WorkerProcess.__new__(WorkerProcess)
    process.channel, process.name = channel, "worker 0"
    return process


def test_a_worker_that_somebody_has_killed_was_not_killed_by_the_trainer(killed: list[str]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    with ours:
        worker(ours).send(messages.Forget(1))
    assert killed == [], "or three of them would count as workers that end by themselves, over and over"


def test_a_worker_that_reads_nothing_is_killed(killed: list[str]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs:
        while not killed:
            worker(ours).send(messages.Forget(1))
    assert killed == ["worker 0"]
