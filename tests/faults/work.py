"""What the workers do under fault, in a module without TensorFlow; and the check that nothing was lost."""

from __future__ import annotations

import ctypes
import hashlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

SAMPLES = 96
BATCH = 8
BATCHES = SAMPLES // BATCH


def element(sample: int, rng: np.random.Generator) -> dict[str, Any]:
    """An element with its id, noise that depends on the sample, and a check over both."""
    noise = rng.integers(0, 256, 500).astype(np.uint8)
    return {"id": sample, "noise": noise, "check": int(noise.sum()) * 1000 + sample}


def slow_element(sample: int, rng: np.random.Generator) -> dict[str, Any]:
    time.sleep(0.003)
    return element(sample, rng)


def digest(batches: Iterable[dict[str, Any]]) -> str:
    """SHA-256 of a stream; checks on the way that every element is whole."""
    stream = hashlib.sha256()
    for batch in batches:
        sums = batch["noise"].sum(axis=1, dtype=np.int64) * 1000 + batch["id"]
        assert (sums == batch["check"]).all(), "a torn batch"
        for value in batch.values():
            stream.update(value.tobytes())
    return stream.hexdigest()


class Once:
    """Does something terrible at one sample, the first time that any worker comes to it."""

    def __init__(self, folder: pathlib.Path, what: str, sample: int = 30) -> None:
        self._flag = str(folder / "happened")
        self._what = what
        self._sample = sample

    def __call__(self, sample: int, rng: np.random.Generator) -> dict[str, Any]:
        if sample == self._sample and not os.path.exists(self._flag):
            with open(self._flag, "x"):
                pass
            getattr(self, self._what)()
        return element(sample, rng)

    def exit_0(self) -> None:
        os._exit(0)

    def sys_exit(self) -> None:
        os._exit(1)

    def abort(self) -> None:
        os.abort()

    def segfault(self) -> None:
        ctypes.string_at(0)

    def stack_overflow(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def sleep_holding_the_gil(self) -> None:
        ctypes.PyDLL(None).sleep(1000)

    def sleep(self) -> None:
        time.sleep(1000)

    def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def leave_a_grandchild(self) -> None:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        os.kill(os.getpid(), signal.SIGKILL)

    def close_the_channel(self) -> None:
        for descriptor in range(3, 256):
            try:
                os.close(descriptor)
            except OSError:
                continue
        time.sleep(1000)

    def send_nothing(self) -> None:
        """An empty datagram, which looks like the end of the channel."""
        for descriptor in range(3, 64):
            try:
                channel = socket.socket(fileno=os.dup(descriptor))
            except OSError:
                continue
            if channel.type == socket.SOCK_SEQPACKET:
                channel.send(b"")
        time.sleep(1000)

    def send_garbage(self) -> None:
        for descriptor in range(3, 64):
            try:
                channel = socket.socket(fileno=os.dup(descriptor))
                if channel.type == socket.SOCK_SEQPACKET:
                    channel.send(b"\x09garbage" * 20)
                channel.detach()
            except OSError:
                continue
        time.sleep(1000)


class Always:
    """Hangs for ever at some samples, in every worker; None: at all but the first."""

    def __init__(self, *samples: int | None) -> None:
        self._samples = samples

    def __call__(self, sample: int, rng: np.random.Generator) -> dict[str, Any]:
        if sample in self._samples or (None in self._samples and sample):
            hang_here()
        return element(sample, rng)


def hang_here() -> None:
    while True:
        time.sleep(1)
