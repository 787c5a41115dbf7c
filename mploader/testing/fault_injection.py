"""Injects faults into workers, and into a source."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from typing import Any

from mploader._util.fault_points import VARIABLE, Fault
from mploader.errors import ArgumentError


@contextlib.contextmanager
def faults(*texts: str) -> Iterator[None]:
    """Injects faults into the workers that are started inside the block, of loaders that are made there.

    Workers read the variable when they start, so a worker that is replaced inside the block has the faults too.

    Args:
        texts: faults, such as "mid decode:3:KILL"; see the docstring of :mod:`mploader.testing`.

    Raises:
        ArgumentError: a text is not a fault.
    """
    for text in texts:
        try:
            Fault.parse(text)
        except ValueError as error:
            raise ArgumentError(str(error)) from None
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = ";".join(texts)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


class FlakySource:
    """A source that fails with an ``OSError`` the first few times that a sample is read, in each worker.

    Args:
        samples: any sequence; what the source gives otherwise.
        failures: how many times each of the ``bad`` samples fails first.
        bad: indices of samples that fail; None: all.
        code: the error's ``errno``. Reading is retried for errors of the machine such as EIO, not for ENOENT.
    """

    def __init__(
        self, samples: Sequence[Any], failures: int = 1, bad: Sequence[int] | None = None, code: int = errno.EIO
    ) -> None:
        self._samples = samples
        self._failures = failures
        self._bad = None if bad is None else frozenset(bad)
        self._code = code
        self._failed: dict[int, int] = {}

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._samples)

    def __getitem__(self, index: int) -> Any:
        """Returns a sample, or raises the ``OSError``."""
        if (self._bad is None or index in self._bad) and self._failed.get(index, 0) < self._failures:
            self._failed[index] = self._failed.get(index, 0) + 1
            raise OSError(self._code, os.strerror(self._code), self.where(index))
        return self._samples[index]

    def where(self, index: int) -> str:
        """Where a sample comes from."""
        return f"flaky source, item {index}"
