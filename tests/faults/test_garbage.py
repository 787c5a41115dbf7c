"""Workers that talk nonsense, trainers whose surroundings are odd: what is not the plain death of a worker."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mploader.engine.ipc import messages
from tests.conftest import REPOSITORY, kill_one
from tests.faults.streams import element, make_loader, read


@pytest.fixture(scope="module")
def clean() -> str:
    """The digest of an epoch without faults."""
    with make_loader() as loader:
        return read(loader).digest


def with_grandchild(sample: Any, rng: np.random.Generator) -> Any:
    if not hasattr(with_grandchild, "child"):
        with_grandchild.child = subprocess.Popen(["sleep", "600"])  # type: ignore[attr-defined]
    return element(sample, rng)


def test_worker_with_a_live_grandchild(clean: str, recovery: Callable[[float], None]) -> None:
    with make_loader(transform=with_grandchild) as loader:
        epoch = read(loader, at={5: lambda: kill_one(loader, 0)})
    recovery(epoch.longest_pause_s)
    assert (epoch.digest, epoch.missing) == (clean, {})


def _run(program: str, *arguments: str) -> str:
    """What a program prints to its standard output; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=55,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("how", ["ignored", "reaped"])
def test_program_that_takes_the_exit_status_away(how: str, clean: str) -> None:
    program = """
import os, signal, sys, threading, time
from mploader.testing import Census
from tests.conftest import kill_one
from tests.faults.streams import make_loader, read
from tests.faults.test_garbage import with_grandchild
if sys.argv[1] == "ignored":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
else:
    def reap():
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                time.sleep(0.001)
    threading.Thread(target=reap, daemon=True).start()
before = Census.take()
with make_loader(transform=with_grandchild) as loader:
    print(read(loader, at={5: lambda: kill_one(loader, 0)}).digest)
print(before.settle())
"""
    assert _run(program, how).splitlines() == [clean, "[]"]


def _channel() -> socket.socket:
    """The worker's own channel, as broken native code in a transform could get hold of it."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            found = socket.socket(fileno=os.dup(fd))
        except OSError:
            continue
        if found.type == socket.SOCK_SEQPACKET:
            return found
    raise AssertionError("no channel")


def _message(kind: Any, **values: int) -> bytes:
    zeros = dict.fromkeys((field.name for field in dataclasses.fields(kind)), 0)
    return messages.encode(kind(**{**zeros, **values}))


GARBAGE = {
    "noise": [random.Random(1).randbytes(300)],
    "empty result": [_message(messages.Made)],
    "wrong slot": [_message(messages.Made, task=9, attempt=1, slot=2**40, generation=1, samples=16, batch_bytes=64)],
    "second hello": [_message(messages.Hello, protocol=messages.PROTOCOL)],
    "unasked probe": [_message(messages.Probed, ok=1, text_bytes=100)],
    "missing value": [_message(messages.Made, task=-(2**63))],
    "too long": [b"\4" * 5000],
    "of the other direction": [_message(messages.Make)],
}  # fmt: skip


class SendGarbage:
    """A transform that, once per data set, sends bytes on the worker's channel."""

    def __init__(self, flag: Path, parts: list[bytes]) -> None:
        self._flag = str(flag)
        self._parts = parts

    def __call__(self, sample: Any, rng: np.random.Generator) -> Any:
        if sample[0] == 77:
            try:
                os.close(os.open(self._flag, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return element(sample, rng)
            channel = _channel()
            for part in self._parts:
                channel.send(part)
        return element(sample, rng)


@pytest.mark.parametrize("name", GARBAGE)
def test_worker_that_sends_garbage_is_replaced(
    name: str, tmp_path: Path, clean: str, recovery: Callable[[float], None]
) -> None:
    with make_loader(transform=SendGarbage(tmp_path / "flag", GARBAGE[name])) as loader:
        epoch = read(loader)
        assert loader.statistics().restarts == 1
    recovery(epoch.longest_pause_s)
    assert (epoch.digest, epoch.missing) == (clean, {})


class ReportGarbage(SendGarbage):
    """Writes something else in the place of a report, and says so in a result that is otherwise right."""

    def __call__(self, sample: Any, rng: np.random.Generator) -> Any:
        if sample[0] == 77:
            try:
                os.close(os.open(self._flag, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return element(sample, rng)
            import mploader.engine.ipc.sample_report
            from mploader.errors import SampleError

            mploader.engine.ipc.sample_report.encode = lambda reports, limit: self._parts[0]
            raise SampleError("bad")
        return element(sample, rng)


@pytest.mark.parametrize("report", [b"{", b"[]", b"[1]", b'[{"index": 1}]', b"\xff\xfe", b"null", b"[" * 65_000])
def test_worker_whose_report_is_garbage_is_replaced(report: bytes, tmp_path: Path, clean: str) -> None:
    with make_loader(transform=ReportGarbage(tmp_path / "flag", [report])) as loader:
        epoch = read(loader)
        assert loader.statistics().restarts == 1
    assert (epoch.digest, epoch.missing) == (clean, {})


class CloseStderr:
    """A transform that closes the worker's standard error, or fills it."""

    def __init__(self, text: bytes | None) -> None:
        self._text = text

    def __call__(self, sample: Any, rng: np.random.Generator) -> Any:
        if sample[0] == 77:
            if self._text is None:
                os.close(2)
            else:
                os.write(2, self._text)
        return element(sample, rng)


def test_worker_without_standard_error(clean: str) -> None:
    with make_loader(transform=CloseStderr(None)) as loader:
        assert read(loader).digest == clean


def test_worker_that_prints_a_megabyte(clean: str, capfd: pytest.CaptureFixture[str]) -> None:
    with make_loader(transform=CloseStderr(b"x" * 2**20)) as loader:
        assert read(loader).digest == clean
    assert capfd.readouterr().err.count("x") >= 2**20


class _Angry:
    def write(self, text: str) -> int:
        raise KeyError("no standard error here")

    flush = write


def test_trainer_whose_stderr_raises(clean: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", _Angry())
    with make_loader(transform=CloseStderr(b"hello\n")) as loader:
        assert read(loader).digest == clean


@pytest.mark.slow
def test_random_worker_every_200_ms(recovery: Callable[[float], None]) -> None:
    report = json.loads(_run("from tests.faults import soak; soak.main(['--seconds', '6', '--json'])"))
    assert report["streams_equal"]
    assert report["restarts"] >= 6
    recovery(report["longest_pause_s"])
