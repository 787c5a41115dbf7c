"""Generators for the tests, in a module without TensorFlow: a worker imports the module that its function is in."""

from __future__ import annotations

import itertools
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np


def count_up(length: int) -> Iterator[tuple[np.ndarray[Any, Any], int]]:
    for number in range(length):
        yield np.full((3,), number, np.float32), 1000 * length + number


def rich(shard: int) -> Iterator[dict[str, Any]]:
    for number in range(int(shard)):
        yield {
            "any": np.arange(number * 2, dtype=np.int32).reshape(2, number),
            "text": f"sample {number}",
            "texts": [b"a", b"b" * number],
            "flag": number % 2 == 0,
            "half": np.float16(number / 3),
            "brain": np.asarray([number], ml_dtypes.bfloat16),
            "pair": (number, [1.5, 2.5]),
        }


def slow_count(length: int) -> Iterator[int]:
    for number in range(length):
        time.sleep(0.005)  # several blocks of an input: a block is sent off after 50 ms
        yield 1000 * length + number


def plain(shard: int) -> Iterator[dict[str, Any]]:
    """As :func:`rich`, without the component of unknown size."""
    for element in rich(shard):
        del element["any"]
        yield element


def rows(shard: int) -> Iterator[Any]:
    for number in range(6):
        yield np.full((int(shard),), number)


def ragged_rows(shard: int) -> Iterator[Any]:
    for number in range(shard):
        yield [[1] * size for size in range(number)], number


def scaled(shard: int, factor: int, offset: int) -> Iterator[int]:
    yield from (shard * factor + offset for _ in range(2))


def unrepeatable(shard: int) -> Iterator[int]:
    for _ in range(40):
        time.sleep(0.005)
        yield os.getpid()


def fails(shard: str) -> Iterator[int]:
    yield 1
    yield 2
    raise RuntimeError("no more")


def crashes(shard: int) -> Iterator[int]:
    yield 1
    os.abort()


def forever(shard: int) -> Iterator[int]:
    return itertools.count(shard)


def process_ids(length: int) -> Iterator[tuple[int, int]]:
    for number in range(length):
        time.sleep(0.002)
        yield number, os.getpid()


def has_tensorflow(shard: int) -> Iterator[bool]:
    yield "tensorflow" in sys.modules


def given(elements: list[Any]) -> Iterator[Any]:
    """The shard is the list of its elements."""
    yield from elements


def given_then_fails(elements: list[Any]) -> Iterator[Any]:
    yield from elements
    raise RuntimeError("no more")


def same(shard: int) -> Iterator[int]:
    return itertools.repeat(shard)


def log_of_shards(shard: tuple[str, int, tuple[str, ...]], folder: str) -> Iterator[int]:
    """The shard is (its own name, how many elements, the shards that must be opened before it goes on)."""
    name, count, others = shard
    pathlib.Path(folder, name).touch()
    for number in range(count):
        for other in others:
            wait_for(pathlib.Path(folder, other))
        yield number


def wait_for(path: pathlib.Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path.name} was never opened")
        time.sleep(0.005)
