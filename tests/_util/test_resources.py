"""Sizes in words, and what this process may use."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import psutil
import pytest

from mploader._util import resources
from mploader._util.checks import seconds, whole_number
from mploader.errors import ArgumentError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1), ("512", 512), ("1k", 1024), ("1.5 KiB", 1536), ("512MiB", 2**29), ("2 GB", 2**31), ("1t", 2**40),
        (np.int64(512), 512), (np.uint8(7), 7),
    ],
)  # fmt: skip
def test_sizes(text: int | str, size: int) -> None:
    assert resources.parse_bytes(text, "memory") == size


@pytest.mark.parametrize(
    "value", [0, -1, "", "much", "1 XB", "-5MiB", True, 1.5, None, "1e9", np.True_, np.float64(512), np.int64(0)]
)
def test_what_is_no_size(value: Any) -> None:
    with pytest.raises(ArgumentError, match="memory="):
        resources.parse_bytes(value, "memory")


def test_processors_and_memory() -> None:
    assert 1 <= resources.usable_cpus() <= len(os.sched_getaffinity(0))
    assert 0 < resources.available_memory() <= psutil.virtual_memory().total


def test_affinity_counts() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert resources.usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_numbers_and_seconds() -> None:
    assert whole_number("n", 3, 1) == 3
    assert seconds("t", 2) == 2.0
    for value in (np.int64(9), np.uint8(9), np.float32(9), np.float64(9)):
        assert (seconds("t", value), type(seconds("t", value))) == (9.0, float)
    for value in (0, True, 1.0, "1", None):
        with pytest.raises(ArgumentError, match="n="):
            whole_number("n", value, 1)
    for value in (0, -1, float("inf"), float("nan"), "1", True, None, np.True_, np.float32("nan"), 1j):
        with pytest.raises(ArgumentError, match="t="):
            seconds("t", value)
