"""Sends an object to all workers of a pool at once: pickled into an anonymous file that every worker maps.

Functions travel by value (cloudpickle), so lambdas and functions of ``__main__`` work without importing the user's
script again. NumPy arrays inside the object are not copied into each worker: they lie in the file (pickle protocol 5,
out-of-band buffers), and every worker reads the same memory. They arrive read-only: a transform that changed its source
would make a batch depend on what its worker has done before.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mploader._util import shared_memory
from mploader._util.shared_memory import align
from mploader.errors import ArgumentError, ResourceError

_COUNT = struct.Struct("<q")
_PIECE_BYTES = 2**20


def check_picklable(name: str, value: Any) -> None:
    """Checks that one argument can travel to a worker.

    Raises:
        ArgumentError: it cannot; the message names the attribute that is to blame, as far as it can be found.
    """
    try:
        _dumps(value, lambda _: None)
    except Exception as error:  # user classes raise anything from __reduce__
        culprit = _find_culprit(name, value)
        raise ArgumentError(
            f"{name} cannot be sent to the worker processes: {culprit} cannot be pickled "
            f"({type(error).__name__}: {error}). Create it inside the function, on first use in the worker, "
            "or leave it out with __getstate__"
        ) from error


def _find_culprit(name: str, value: Any, depth: int = 3) -> str:
    parts: dict[str, Any] = {}
    function = getattr(value, "__func__", value)
    if getattr(function, "__closure__", None):
        parts |= {f"{name}: variable {key!r}": part for key, part in _variables(function).items()}
    if hasattr(function, "__code__"):
        parts |= {f"{name}: global {key!r}": function.__globals__[key]
                  for key in function.__code__.co_names if key in function.__globals__}  # fmt: skip
    if isinstance(getattr(value, "__dict__", None), dict):
        parts |= {f"{name}.{key}": part for key, part in vars(value).items()}
    if isinstance(value, (list, tuple)):
        parts |= {f"{name}[{place}]": part for place, part in enumerate(value[:100])}
    for part_name, part in parts.items():
        try:
            _dumps(part, lambda _: None)
        except Exception:  # this is the one
            return _find_culprit(part_name, part, depth - 1) if depth else f"{part_name} ({type(part).__name__})"
    return f"{name} ({type(value).__name__})"


def _variables(function: Any) -> dict[str, Any]:
    """The variables that a function takes from around it, those that have no value yet left out."""
    variables = {}
    for key, cell in zip(function.__code__.co_freevars, function.__closure__, strict=True):
        with contextlib.suppress(ValueError):  # the cell is empty
            variables[key] = cell.cell_contents
    return variables


def dumps(value: Any) -> bytes:
    """Pickles a small value in one piece."""
    return _dumps(value, None)


def _dumps(value: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None) -> bytes:
    from mploader.engine.ipc import function_pickling  # cloudpickle is large, and it is the trainer that pickles

    return function_pickling.dumps(value, buffer_callback)


class SharedFile:
    """A packed object and the descriptor of its file, which is closed when nothing refers to this any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._finalizer = weakref.finalize(self, os.close, fd)
        self._finalizer.atexit = False


def pack(value: Any, base_fd: int | None = None, *, arguments: Mapping[str, Any] | None = None) -> int:
    """Pickles ``value`` into a new anonymous file and returns its descriptor.

    Args:
        value: any object that cloudpickle takes.
        base_fd: a file that was packed before: arrays that are the same there are not stored again.
        arguments: the parts of ``value`` that the user passed, by name. They are pickled again, one by one, if pickling
            fails, so that the error can name the one to blame.

    Raises:
        ArgumentError: one of ``arguments`` cannot be pickled.
        ResourceError: the memory is not granted.
    """
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = _dumps(value, buffers.append)
    except Exception:  # user classes raise anything from __reduce__
        for name, argument in (arguments or {}).items():
            check_picklable(name, argument)
        raise
    parts = [memoryview(data), *(buffer.raw() for buffer in buffers)]
    old = [] if base_fd is None else _parts(base_fd)
    borrowed = [place < len(old) and place > 0 and _same(part, old[place]) for place, part in enumerate(parts)]
    # The size of a part that lies in the base is stored as -1.
    sizes = [-1 if is_borrowed else part.nbytes for part, is_borrowed in zip(parts, borrowed, strict=True)]
    parts = [part for part, is_borrowed in zip(parts, borrowed, strict=True) if not is_borrowed]
    header = b"".join(_COUNT.pack(number) for number in (len(sizes), *sizes))
    offsets, end = [], align(len(header))
    for part in parts:
        offsets.append(end)
        end = align(end + part.nbytes)
    fd = -1
    try:
        fd = shared_memory.create("mploader-job", end)
        os.pwrite(fd, header, 0)
        for offset, part in zip(offsets, parts, strict=True):
            _write_all(fd, part, offset)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise ResourceError(
            f"the machine does not grant {end / 2**20:.0f} MiB of shared memory for the source and the transform "
            f"({error.strerror}); keep large data in files rather than in the source object"
        ) from error
    return fd


def _write_all(fd: int, part: memoryview, offset: int) -> None:
    written = 0
    while written < part.nbytes:  # one call writes at most 2 GiB
        written += os.pwrite(fd, part[written:], offset + written)


def unpack(fd: int, base_fd: int | None = None) -> Any:
    """Returns the object in the file; its arrays are read-only views of the file and its base."""
    parts = _parts(fd, base_fd)
    return pickle.loads(parts[0], buffers=parts[1:])


def _parts(fd: int, base_fd: int | None = None) -> list[memoryview]:
    memory = memoryview(shared_memory.map_file(fd, read_only=True))
    (count,) = _COUNT.unpack_from(memory)
    sizes = [_COUNT.unpack_from(memory, 8 * (1 + place))[0] for place in range(count)]
    old = _parts(base_fd) if base_fd is not None and -1 in sizes else []
    parts, end = [], align(8 * (1 + count))
    for place, size in enumerate(sizes):
        if size < 0:
            parts.append(old[place])
            continue
        parts.append(memory[end : end + size])
        end = align(end + size)
    return parts


def _same(part: memoryview, other: memoryview) -> bool:
    """Compares a piece at a time, so that no array of truth values as large as the data is made."""
    if part.nbytes != other.nbytes:
        return False
    one, two = np.frombuffer(part, np.uint8), np.frombuffer(other, np.uint8)
    return all(
        np.array_equal(one[start : start + _PIECE_BYTES], two[start : start + _PIECE_BYTES])
        for start in range(0, len(one), _PIECE_BYTES)
    )
