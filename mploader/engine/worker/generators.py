"""Generators in a worker: the worker's side of ``from_generator``.

The generator of an input lives in one worker, which writes its elements, some at a time, into slots. If the worker
dies, another one opens the generator again and leaves out the elements that are committed already; a checksum over
them finds a generator that does not repeat itself.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mploader._util.trees import pack_as
from mploader.batching.layout import BatchLayout
from mploader.batching.writer import BatchWriter
from mploader.engine.ipc import sample_report
from mploader.engine.ipc.job import GeneratorJob, generator_name
from mploader.engine.ipc.messages import Condemn, Make, Renew
from mploader.engine.ipc.sample_report import SampleReport
from mploader.engine.ipc.worker_status import WorkerStatus
from mploader.engine.scheduler.states import Replay
from mploader.engine.worker.input_values import checksum_of, convert
from mploader.engine.worker.maker import Outcome, TaskFailedError
from mploader.engine.worker.parent_death import end_if_forked
from mploader.engine.worker.stage_timer import StageTimer
from mploader.errors import SpecError

BLOCK_S = 0.05
"""A block of elements is sent off when it has taken so many seconds, so that slow generators do not hold theirs
back."""


@dataclass
class _Generator:
    """An open generator.

    Attributes:
        input: the number of its input.
        iterator: gives its elements.
        given: elements so far.
        checksum: over them.
        has_ended: the iterator is at its end.
        failure: why it cannot go on, while the elements before are on their way.
    """

    input: int
    iterator: Iterator[Any]
    given: int = 0
    checksum: int = 0
    has_ended: bool = False
    failure: SampleReport | None = None


class GeneratorMaker:
    """Makes blocks of the elements of generators; see :class:`mploader.engine.worker.maker.Maker`.

    Args:
        job: the generator and its inputs.
        status: where the worker shows what it has in hand.
    """

    def __init__(self, job: GeneratorJob, status: WorkerStatus) -> None:
        self._job = job
        self._status = status
        self._open: dict[int, _Generator] = {}
        """By series."""
        self._pid = os.getpid()

    def make(self, task: Make, writer: BatchWriter, timer: StageTimer) -> Outcome:
        """Writes the next elements of a generator; none, and ``is_last``, if it has ended before."""
        started_ns = time.monotonic_ns()
        if task.skip is not None:
            self._start(task, task.skip, writer.layout)
        generator = self._open.get(task.series)
        if generator is None:
            return Outcome(is_last=True)
        try:
            self._fill(generator, writer, timer, started_ns)
        except TaskFailedError as failure:
            if not writer.count:
                raise
            generator.failure = failure.report  # the next task is to fail; what came before is delivered
        if generator.has_ended:
            del self._open[task.series]
        return Outcome(replay=Replay(generator.given, generator.checksum), is_last=generator.has_ended)

    def name_of(self, task: Make) -> str:
        """Names a block by the generator's input."""
        assert task.input is not None
        return f"a block of elements of {generator_name(self._job.inputs[task.input])}"

    def cancel(self, series: int) -> None:
        """Closes a generator. What its ``finally`` raises is printed: no consumer waits for its elements any more."""
        generator = self._open.pop(series, None)
        close = getattr(generator and generator.iterator, "close", None)
        if close is None:
            return
        try:
            close()
        except BaseException as error:  # user code
            print(sample_report.traceback_of(error), file=sys.stderr)

    def condemn(self, sentence: Condemn) -> None:
        """Elements of a generator have no number in a source, so none is condemned."""

    def renew(self, message: Renew, file: int) -> None:
        """There is no source."""
        os.close(file)

    def probe(self, sample_index: int) -> bytes:
        """A generator is not probed: the signature describes its elements."""
        raise TaskFailedError(SampleReport(sample_index, "", "SpecError", "generators have no samples", "", "spec"))

    def _fill(self, generator: _Generator, writer: BatchWriter, timer: StageTimer, started_ns: int) -> None:
        """Writes elements until the block is full, old enough or the last."""
        if generator.failure is not None:
            raise TaskFailedError(generator.failure)
        while not generator.has_ended and writer.count < writer.capacity:
            before = time.monotonic_ns()
            if writer.count and not self._job.is_batched and before - started_ns > BLOCK_S * 1e9:
                break
            leaves = self._next(generator, writer.layout)
            made = time.monotonic_ns()
            timer.transform_ns += made - before
            if leaves is not None:
                timer.samples_read += 1
                self._pass_by(generator, leaves, writer.layout, writer)
            timer.write_ns += time.monotonic_ns() - made

    def _start(self, task: Make, skip: int, layout: BatchLayout) -> None:
        """Opens a generator, and leaves out the elements that are committed."""
        self.cancel(task.series)
        assert task.input is not None, "a task with elements to skip is a generator's"
        generator = _Generator(task.input, iter(()))
        self._status.step(0)
        try:
            generator.iterator = iter(self._job.generator(self._job.inputs[task.input], *self._job.args))
        except BaseException as error:  # user code
            raise TaskFailedError(self._report(generator, error)) from None
        self._open[task.series] = generator
        while generator.given < skip and not generator.has_ended:
            leaves = self._next(generator, layout)
            if leaves is not None:
                self._pass_by(generator, leaves, layout)
        if generator.given < skip or generator.checksum != task.checksum:
            raise TaskFailedError(self._report(generator, SpecError(
                f"its worker was lost, and when the generator was started again its first {skip} elements were "
                f"not the same (it gave {generator.given}). A generator must give the same elements each time it is "
                "called with the same shard: derive random numbers from the shard"
            )))  # fmt: skip

    def _next(self, generator: _Generator, layout: BatchLayout) -> list[Any] | None:
        """Returns the components of the next element in the dtypes of the signature; None at the end."""
        self._status.step(generator.given)
        try:
            element = next(generator.iterator)
        except StopIteration:
            generator.has_ended = True
            return None
        except BaseException as error:  # user code: SystemExit and KeyboardInterrupt included
            raise TaskFailedError(self._report(generator, error)) from None
        finally:
            end_if_forked(self._pid)
        try:
            if self._job.prepare is not None:
                element = self._job.prepare(element)
            return convert(element, layout)
        except Exception as error:
            raise TaskFailedError(self._report(generator, error)) from None

    def _pass_by(
        self, generator: _Generator, leaves: list[Any], layout: BatchLayout, writer: BatchWriter | None = None
    ) -> None:
        """Counts an element, and writes it if there is a writer."""
        try:
            checksum = checksum_of(leaves, generator.checksum)
            if writer is not None:
                writer.add(pack_as(layout.structure, leaves))
        except Exception as error:
            raise TaskFailedError(self._report(generator, error)) from None
        generator.checksum = checksum
        generator.given += 1

    def _report(self, generator: _Generator, error: BaseException) -> SampleReport:
        where = f"element {generator.given} of {generator_name(self._job.inputs[generator.input])}"
        report = sample_report.report_exception(generator.given, where, error)
        return dataclasses.replace(report, group="generator") if report.group == "content" else report
