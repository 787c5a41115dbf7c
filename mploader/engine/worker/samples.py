"""Batches of samples: reads them from the source, calls the transform, and skips or replaces bad ones."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

import numpy as np

from mploader._util import fault_points
from mploader._util.environment_errors import is_environment
from mploader._util.location import Location
from mploader._util.retry import RETRY_PAUSES_S, RetriedError
from mploader._util.trees import flatten
from mploader.batching.spec import describe_element
from mploader.batching.writer import BatchWriter
from mploader.engine.ipc import sample_report, serialization
from mploader.engine.ipc.job import ProbeResult, SampleJob
from mploader.engine.ipc.messages import Condemn, Make, Renew
from mploader.engine.ipc.sample_report import SampleReport
from mploader.engine.ipc.worker_status import TEXT_BYTES, WorkerStatus
from mploader.engine.worker.maker import Outcome, TaskFailedError
from mploader.engine.worker.parent_death import end_if_forked
from mploader.engine.worker.stage_timer import StageTimer, sample_bytes
from mploader.errors import SpecError
from mploader.sampling.plan import SampleRandom
from mploader.sources.protocols import location_of

STEP_S = 0.1
"""How often a worker that waits shows that it is not stuck, in seconds."""


class Samples:
    """Makes elements: reads a sample and calls the transform.

    Args:
        job: source, transform and plan.
        status: where the worker shows what it has in hand.
        job_file: the file that the job was unpickled from; a renewed source refers to arrays in it.
    """

    def __init__(self, job: SampleJob, status: WorkerStatus, job_file: int) -> None:
        self._job = job
        self._status = status
        self._job_file = job_file
        self._source = job.source
        self._renewal: serialization.SharedFile | None = None
        self._source_changes = job.source_changes
        self._random = SampleRandom(job.plan.seed) if job.takes_rng else None
        self._pid = os.getpid()

    def renew(self, file: int) -> None:
        """From now on the source is as in a file, which is read when the first sample is."""
        self._renewal = serialization.SharedFile(file)

    def element(self, epoch: int, index: int, timer: StageTimer) -> Any:
        """Returns the element of one sample.

        Raises:
            TaskFailedError: with a report, for whatever the source or the transform raised.
        """
        for pause_s in (*RETRY_PAUSES_S, None):
            try:
                return self._attempt(epoch, index, timer)
            except BaseException as error:  # user code: StopIteration and SystemExit included
                may_pass = is_environment(error) and not isinstance(error, RetriedError)
                if pause_s is None or not may_pass:
                    raise TaskFailedError(sample_report.report_exception(index, self.where(index), error)) from None
            finally:
                end_if_forked(self._pid)
            for _ in range(round(pause_s / STEP_S)):
                time.sleep(STEP_S)
                self._status.tick()

    def _attempt(self, epoch: int, index: int, timer: StageTimer) -> Any:
        timer.samples_read += 1
        if not timer.is_timed:
            return self._transform(epoch, index, self._read(index))
        started = time.perf_counter_ns()
        sample = self._read(index)
        read = time.perf_counter_ns()
        timer.bytes_read += sample_bytes(sample)
        element = self._transform(epoch, index, sample)
        timer.read_ns += read - started
        timer.transform_ns += time.perf_counter_ns() - read
        return element

    def _read(self, index: int) -> Any:
        if self._source_changes:
            self._status.enter_epoch()
        if self._renewal is not None:
            self._source = serialization.unpack(self._renewal.fd, self._job_file)
            self._renewal = None
        return self._source[index]

    def _transform(self, epoch: int, index: int, sample: Any) -> Any:
        fault_points.reach("mid decode")
        if self._job.transform is None:
            return sample
        if self._random is None:
            return self._job.transform(sample)
        self._status.enter_epoch()
        return self._job.transform(sample, self._random(epoch, index))

    def where(self, index: int) -> Location:
        """What the source says of a sample's place; never fails."""
        try:
            return location_of(self._source, index)
        except BaseException as error:  # user code, asked while another error is reported
            return Location(f"where() raised {sample_report.message_of(error)}")


class SampleMaker:
    """Makes the batches of a plan; see :class:`mploader.engine.worker.maker.Maker`.

    Args:
        job: source, transform and plan.
        status: where the worker shows what it has in hand.
        job_file: the file that the job was unpickled from.
    """

    def __init__(self, job: SampleJob, status: WorkerStatus, job_file: int) -> None:
        self._job = job
        self._status = status
        self._samples = Samples(job, status, job_file)
        self._condemned: dict[tuple[int | None, int], int] = {}
        """How the workers ended that a sample has killed, by (epoch or None, sample)."""

    def make(self, task: Make, writer: BatchWriter, timer: StageTimer) -> Outcome:
        """Fills one batch, sample by sample."""
        bad: list[SampleReport] = []
        indices = self._indices(task, writer.capacity)
        for offset, index in enumerate(indices):
            self._status.step(offset, index)
            timer.start_sample()
            self._add(task.epoch, index, offset, writer, timer, bad)
            if offset == len(indices) // 2:
                fault_points.reach("slot half written")
        return Outcome(reports=tuple(bad))

    def name_of(self, task: Make) -> str:
        """Names a batch by its index and epoch."""
        return f"the whole of batch {task.batch_index} of epoch {task.epoch}"

    def cancel(self, series: int) -> None:
        """An epoch leaves nothing open in a worker."""

    def condemn(self, sentence: Condemn) -> None:
        """From now on the sample is bad."""
        self._condemned[sentence.epoch, sentence.sample_index] = sentence.status

    def renew(self, message: Renew, file: int) -> None:
        """The source of another epoch is in a file."""
        self._samples.renew(file)

    def probe(self, sample_index: int) -> bytes:
        """Makes the element of one sample and describes it."""
        self._status.step(0, sample_index)
        element = self._samples.element(0, sample_index, StageTimer())
        try:
            structure = describe_element(element)
            sizes = tuple(_component_bytes(leaf) for leaf in flatten(element))
            data = serialization.dumps(ProbeResult(structure, sizes))
            if len(data) > TEXT_BYTES:
                raise SpecError(f"the element's structure takes {len(data)} bytes to describe, more than {TEXT_BYTES}")
        except BaseException as error:  # a SpecError, a class that cannot be pickled, or what user code raises
            raise TaskFailedError(
                sample_report.report_exception(sample_index, self._samples.where(sample_index), error)
            ) from None
        return data

    def _indices(self, task: Make, capacity: int) -> list[int]:
        plan = self._job.plan
        if self._job.is_batched:
            return list(map(int, plan.batch(task.epoch, task.batch_index)))
        start = task.first + task.batch_index * capacity
        return list(map(int, plan.batches(task.epoch, start, min(start + capacity, plan.num_batches))))

    def _add(
        self, epoch: int, index: int, offset: int, writer: BatchWriter, timer: StageTimer, bad: list[SampleReport]
    ) -> None:
        """Adds the element of one sample to a batch, or what ``on_bad_sample`` makes of a bad one.

        Args:
            epoch: of the batch.
            index: the sample.
            offset: its offset in the batch.
            writer: of the batch.
            timer: of the worker.
            bad: a report is added where the sample is bad.

        Raises:
            TaskFailedError: the batch cannot be made. The machine is at fault, or an element does not fit the spec:
                what is wrong then is the transform or the loader's arguments, and not a few samples.
        """
        policy = self._job.on_bad_sample
        for candidate in policy.candidates(self._job.plan, epoch, index):
            if candidate != index:
                self._status.step(offset, candidate)
            try:
                self._write(epoch, candidate, writer, timer)
                return
            except TaskFailedError as failure:
                if policy.raises or failure.report.group in ("environment", "spec"):
                    raise
                if candidate == index:  # another one is reported in its own place
                    bad.append(dataclasses.replace(failure.report, offset=offset))
        if not policy.drops:
            raise TaskFailedError(bad[-1])

    def _write(self, epoch: int, index: int, writer: BatchWriter, timer: StageTimer) -> None:
        """Makes one element and adds it to the batch.

        Raises:
            TaskFailedError: the sample is condemned or bad, or the element does not fit.
        """
        if self._condemned:
            self._refuse_condemned(epoch, index)
        element = self._samples.element(epoch, index, timer)
        before = time.perf_counter_ns() if timer.is_timed else 0
        try:
            writer.add(element)
        except BaseException as error:  # a SpecError, or what NumPy or an object's __array__ raises
            raise TaskFailedError(
                sample_report.report_exception(index, self._samples.where(index), error)
            ) from None
        if timer.is_timed:
            timer.write_ns += time.perf_counter_ns() - before

    def _refuse_condemned(self, epoch: int, index: int) -> None:
        status = self._condemned.get((None, index), self._condemned.get((epoch, index)))
        if status is not None:
            error = sample_report.describe_condemned(status)
            group = "stall" if status == sample_report.STALLED else "crash"
            where = self._samples.where(index)
            raise TaskFailedError(
                SampleReport(index, where, "WorkerError", error, "", group, *sample_report.file_and_byte(where))
            )


def _component_bytes(leaf: Any) -> int:
    if isinstance(leaf, (bytes, str)):
        return len(leaf.encode() if isinstance(leaf, str) else leaf)
    array = np.asarray(leaf)
    return sum(map(len, array.flat)) if array.dtype.hasobject or array.dtype.kind in "SU" else array.nbytes
