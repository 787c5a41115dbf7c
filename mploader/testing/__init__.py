"""Tools to test a pipeline: without processes, and against faults.

Workers in threads
    Inside :func:`workers_in_threads` the workers of a loader are threads of this process, and everything else is the
    same. So a ``breakpoint()`` in the transform works, coverage is counted, and a loader starts in about 10 ms.

Fault points
    A worker passes named points. The environment variable ``MPLOADER_FAULT`` makes it die, stop or fail at any of them;
    :func:`faults` sets the variable for the loaders that are made inside its ``with`` block. A fault is
    ``point:number:action`` or ``point:number:action:times``; several are separated by ``;``.

    ``point``
        "before hello", "after hello" (its start), "task received", "record opened" (a data file is open), "record half
        read", "mid decode" (a sample is read, the transform comes next), "slot half written", "result unsent", "result
        sent", "idle", "shutting down".
    ``number``
        the batch index; for ``from_generator``, the number of the generator; before the first task, the worker's
        index. ``*``: any.
    ``action``
        KILL, STOP, SEGV, ABRT, TERM or any other signal by its name without SIG; ``EXIT0``, ``EXIT1``...: exits with
        that code; ``SLEEP0.5``: sleeps for so many seconds; ``EIO``: raises an ``OSError`` with that code.
    ``times``
        the fault occurs up to this attempt at the batch (before the first task: up to this start of the worker), and at
        most so many times in one worker. 1 if it is left out; ``*``: always.

Example::

    from mploader.testing import Census, faults

    before = Census.take()
    with faults("mid decode:3:KILL", "slot half written:5:SEGV:2"), mploader.Loader(...) as loader:
        for batch in loader:  # as without the faults
            ...
    del batch
    assert before.settle() == []
"""

from mploader._util.fault_points import POINTS
from mploader.testing.fault_injection import FlakySource, faults
from mploader.testing.leak_check import Census
from mploader.testing.thread_workers import ThreadWorker, WorkerEndedError, workers_in_threads

__all__ = ["POINTS", "Census", "FlakySource", "ThreadWorker", "WorkerEndedError", "faults", "workers_in_threads"]
