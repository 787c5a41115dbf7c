"""Generators that end their worker, in a module without TensorFlow."""

from __future__ import annotations

import os
import pathlib
import signal
import time
from collections.abc import Iterator

ELEMENTS = 10
VICTIM = 1
"""The shard at which things happen."""


def element(shard: int, place: int, text_bytes: int = 0) -> tuple[int, bytes]:
    return 1000 * shard + place, b"%d" % place * (place + 1) + b"." * text_bytes


def plain(shard: int, text_bytes: int = 0) -> Iterator[tuple[int, bytes]]:
    for place in range(ELEMENTS):
        yield element(shard, place, text_bytes)


def forking(shard: int) -> Iterator[tuple[int, bytes]]:
    """As plain; at its second element it forks a child that comes back."""
    for place, element in enumerate(plain(shard, 0)):
        if place == 1 and os.fork():
            os.wait()
        yield element


def dying(shard: int, folder: str, places: tuple[int, ...]) -> Iterator[tuple[int, bytes]]:
    """Kills its worker before one element after the other, one each time that it is called."""
    for place in range(ELEMENTS + 1):
        deaths = len(os.listdir(folder))
        if shard == VICTIM and place in places[deaths : deaths + 1]:
            pathlib.Path(folder, str(deaths)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if place < ELEMENTS:
            yield element(shard, place)


def stalling(shard: int, folder: str, times: int) -> Iterator[tuple[int, bytes]]:
    """Hangs before element 5, the first so many times."""
    for place in range(ELEMENTS):
        hangs = len(os.listdir(folder))
        if shard == VICTIM and place == 5 and hangs < times:
            pathlib.Path(folder, str(hangs)).touch()
            hang_here()
        yield element(shard, place)


def hang_here() -> None:
    while True:
        time.sleep(1)
