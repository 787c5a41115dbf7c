"""Objects on their way to the workers."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from mploader.engine.ipc import serialization
from mploader.errors import ArgumentError


def test_an_object_with_large_arrays_arrives_without_a_copy() -> None:
    value = {"rows": np.arange(100_000), "text": "x", "function": lambda x: x + 1, "empty": np.zeros(0)}
    fd = serialization.pack(value)
    try:
        copies = [serialization.unpack(fd) for _ in range(2)]
    finally:
        os.close(fd)
    for copy in copies:
        np.testing.assert_array_equal(copy["rows"], value["rows"])
        assert copy["function"](2) == 3
        assert not copy["rows"].flags.writeable, "all workers read the same memory"
        assert not copy["rows"].flags.owndata


def test_an_attribute_that_cannot_be_pickled_is_named() -> None:
    class Part:
        def __init__(self) -> None:
            self.handle = threading.Lock()

    class Whole:
        def __init__(self) -> None:
            self.fine = 1
            self.parts = [1, Part()]

    with pytest.raises(ArgumentError, match=r"transform\.parts\[1\]\.handle \(lock\) cannot be pickled"):
        serialization.check_picklable("transform", Whole())
    serialization.check_picklable("transform", lambda: serialization)


def test_a_variable_without_a_value_does_not_hide_another() -> None:
    def transform(sample: object) -> object:
        return early, lock

    lock = threading.Lock()
    with pytest.raises(ArgumentError, match=r"transform: variable 'lock' \(lock\) cannot be pickled"):
        serialization.check_picklable("transform", transform)
    early = 1
