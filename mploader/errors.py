"""Every error that mploader raises.

::

    LoaderError
    ├── ArgumentError    an argument that cannot be meant (also a ValueError)
    ├── SampleError      bad data, or an exception in the transform
    │   └── SourceError  a source that cannot be opened: no files, a missing or foreign shard
    ├── WorkerError      a worker process that cannot be kept alive
    ├── StallError       no progress within ``stall_timeout``
    ├── SpecError        an element that does not fit the loader's ``element_spec``
    ├── ResourceError    memory, descriptors, processes or storage that the machine does not grant
    └── ClosedError      use after ``close()``

A message says what happened, the numbers, where (sample, file, byte, worker) and what to change. Errors of a
worker arrive with the worker's traceback as text and name the original type: exceptions never cross a process
border as pickles, because an exception that cannot be unpickled would hide the fault that it reports.
"""


class LoaderError(Exception):
    """Base of every error that mploader raises on purpose."""


class ArgumentError(LoaderError, ValueError):
    """An argument is of the wrong type or out of range; the message says what was given and what is wanted."""


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
    """The machine does not grant memory, descriptors, processes or storage; the message says how much was wanted."""


class ClosedError(LoaderError):
    """The loader, or the run, has been closed."""
