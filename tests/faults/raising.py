"""Transforms and sources that raise everything there is, in a module that workers import without pytest."""

from __future__ import annotations

import builtins
import ctypes
import errno
import os
import time
from typing import Any

from mploader._util.environment_errors import is_environment
from mploader.engine.worker import samples

_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "UnicodeDecodeError": ("utf-8", b"x", 0, 1, "no reason"),
    "UnicodeEncodeError": ("utf-8", "x", 0, 1, "no reason"),
    "UnicodeTranslateError": ("x", 0, 1, "no reason"),
    "BaseExceptionGroup": ("a group", [KeyboardInterrupt()]),
    "ExceptionGroup": ("a group", [ValueError()]),
}


class UnpicklableError(Exception):
    """Neither pickles nor can be made again from its arguments."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__("cannot be pickled")
        self.callback = lambda: (first, second)

    def __reduce__(self) -> Any:
        raise TypeError("no")


class MuteError(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise SystemExit("not even its text")

    __repr__ = __str__


class LyingError(OSError):
    """Says that it is of the machine, on every question."""

    @property
    def errno(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no number")


def built_in() -> list[BaseException]:
    """One of each built-in exception but those that tell of the machine, which are tried again."""
    return [error for error in _all_built_in() if not is_environment(error)]


def of_the_machine() -> list[type[BaseException]]:
    """The others."""
    return [type(error) for error in _all_built_in() if is_environment(error)]


def _all_built_in() -> list[BaseException]:
    classes = [
        value for _, value in sorted(vars(builtins).items())
        if isinstance(value, type) and issubclass(value, BaseException)
    ]  # fmt: skip
    return [cls(*_ARGUMENTS.get(cls.__name__, ("some text",))) for cls in dict.fromkeys(classes)]


def strange() -> list[BaseException]:
    """Exceptions that are hard to report."""
    endless = ValueError("its cause is itself, by way of another")
    endless.__cause__ = KeyError("the other")
    endless.__cause__.__cause__ = endless
    return [
        UnpicklableError(1, 2),
        MuteError(),
        LyingError(),
        ValueError("x" * 100_000_000),
        ValueError("\udcff and \0 and \u2028"),
        endless,
    ]


class RaiseOn:
    """Raises the n-th of some exceptions on sample 2 n + 1; other samples are their own elements."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __call__(self, sample: int) -> int:
        if sample % 2:
            errors = built_in() if self._kind == "built_in" else strange()
            raise errors[sample // 2]
        return sample


class RaiseOne:
    """Raises one exception on one sample."""

    def __init__(self, error: type[BaseException], sample: int = 7) -> None:
        self._error = error
        self._sample = sample

    def __call__(self, sample: int) -> int:
        if sample == self._sample:
            raise self._error("on purpose")
        return sample


class Impatient(RaiseOne):
    """The same, in a worker that does not pause before it tries again; its error says how often it was called."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__(error)
        self._calls = 0

    def __call__(self, sample: int) -> int:
        samples.RETRY_PAUSES_S = (0.0,) * len(samples.RETRY_PAUSES_S)
        if sample == self._sample:
            self._calls += 1
            raise self._error(f"call {self._calls}")
        return sample


class Source:
    """A source of which one method raises."""

    def __init__(self, where: str, error: type[BaseException]) -> None:
        self._where = where
        self._error = error

    def __len__(self) -> int:
        return 12 if self._where != "len" else self._fail()

    def __getitem__(self, index: int) -> int:
        return index if index != 7 else self._fail()

    def where(self, index: int) -> str:
        return f"item {index}" if self._where != "where" else str(self._fail())

    def _fail(self) -> int:
        raise self._error(f"from {self._where}")


class MostlyBad:
    """A source of which only the first samples of every thousand are good, and one of these is long."""

    GOOD = 20
    LONG_BYTES = 400_000

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> bytes:
        if index % 1000 >= self.GOOD:
            raise ValueError(f"picture {index} is bad, " + "as bad as can be, " * 5)
        return b"x" * (self.LONG_BYTES if index == 2007 else 1)

    def where(self, index: int) -> str:
        return f"/data/{'a folder/' * 25}picture_{index}.tfrecord, record {index} at byte {64 * index}"


def exhaust_descriptors(sample: int) -> int:
    """As when the worker has no descriptor left."""
    if sample == 7:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return sample


def slow_poison(sample: int) -> int:
    """Kills its worker at sample 13, after a time in which another worker reaches it in the next epoch."""
    if sample == 13:
        time.sleep(0.4)
        ctypes.string_at(0)
    return sample
