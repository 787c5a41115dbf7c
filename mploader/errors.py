"""Every error that mploader raises.

::

    LoaderError
    ├── ArgumentError    an argument is invalid (also a ValueError)
    ├── SampleError      bad data, or an exception in the transform
    │   └── SourceError  a source cannot be opened: no files, a missing or foreign shard
    ├── WorkerError      a worker process cannot be kept alive
    ├── StallError       no progress within ``stall_timeout``
    ├── SpecError        an element does not fit the loader's ``element_spec``
    ├── ResourceError    the machine does not grant memory, descriptors, processes or storage
    └── ClosedError      use after ``close()``

A message says what happened, the numbers, where (sample, file, byte, worker) and what to change. The same facts are
attributes, so that programs need not read messages. An error of a worker arrives with the worker's traceback as text
and names the original type. Exceptions never cross a process border as pickles: an exception that cannot be unpickled
would hide the fault that it reports.
"""

from __future__ import annotations

import copy
from typing import TypeVar

_Error = TypeVar("_Error", bound="LoaderError")


class LoaderError(Exception):
    """Base of every error that mploader raises on purpose.

    Args:
        message: what happened, where, and what to do.
        index: the sample's number in the source; of an element of a generator, its number in the output.
        file: path or URL of the file that the sample lies in.
        byte: offset of the sample in that file.
        kind: name of the original exception's class, as ``"ValueError"``.
        reason: message of the original exception.
        traceback: traceback of the original exception in the worker, as text.
        worker: name of the worker, as ``"worker 3"``.

    Each of these is an attribute as well, and None where it is unknown or has no meaning.
    """

    def __init__(
        self,
        message: str = "",
        *,
        index: int | None = None,
        file: str | None = None,
        byte: int | None = None,
        kind: str | None = None,
        reason: str | None = None,
        traceback: str | None = None,
        worker: str | None = None,
    ) -> None:
        super().__init__(message)
        self.index = index
        self.file = file
        self.byte = byte
        self.kind = kind
        self.reason = reason
        self.traceback = traceback
        self.worker = worker

    def again(self: _Error) -> _Error:
        """Returns a new error that equals this one, to be raised in its place.

        An error that is raised again and again grows by a traceback each time, and keeps the caller's frames alive,
        with the batches in them.
        """
        return copy.copy(self).with_traceback(None)


class ArgumentError(LoaderError, ValueError):
    """An argument is of the wrong type or out of range; the message says what was expected and what was given."""


class SampleError(LoaderError):
    """A sample is bad, or the transform raised on it; the message names the sample, its file and byte."""


class SourceError(SampleError):
    """A source cannot be opened: nothing matches, a shard is missing, or it is not of the expected format."""


class WorkerError(LoaderError):
    """A worker process cannot be kept alive; the message holds how it ended and what it printed."""


class StallError(LoaderError):
    """No worker made progress within ``stall_timeout``; the message holds the stacks of the workers."""


class SpecError(LoaderError):
    """An element does not fit ``element_spec``: another structure, dtype or shape than the first one had."""


class ResourceError(LoaderError):
    """The machine does not grant memory, descriptors, processes or storage; the message says how much was expected."""


class ClosedError(LoaderError):
    """The loader, or the epoch iterator, has been closed."""
