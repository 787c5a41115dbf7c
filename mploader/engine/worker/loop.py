"""The child process: receives a lease, fills the slot, reports. Started by ``process``.

It is a fresh interpreter that imports what the user's functions need and nothing more. It shares no lock with
anybody. Its only visible acts are bytes in the slot that it was lent, one message for each task, and its end; so it
may be killed at any instruction.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import faulthandler
import mmap
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mploader._util import fault_points
from mploader._util.checks import takes_rng
from mploader._util.location import Location
from mploader.batching.spec import describe_element, flatten
from mploader.batching.writer import BatchLayout, BatchWriter
from mploader.engine.ipc import messages, sample_report, serialization
from mploader.engine.ipc.arena import NOTHING_IN_HAND, TEXT_BYTES, SlotMemory, WorkerArea
from mploader.engine.ipc.on_bad_sample import OnBadSample
from mploader.engine.ipc.sample_report import SampleReport
from mploader.engine.worker.generators import StreamFailedError, StreamJob, Streams
from mploader.engine.worker.parent_death import end_if_forked
from mploader.engine.worker.stage_timer import StageTimer, sample_bytes
from mploader.errors import SpecError
from mploader.sampling.plan import Plan, SampleRandom

RETRY_PAUSES_S = (0.1, 0.5, 2.0)
"""Waits before a read that failed for a reason of the machine is tried again."""
STEP_S = 0.1
"""How often a worker that waits shows that it is not stuck."""

STACKS_SIGNAL = signal.SIGUSR1
"""Makes a worker print the stacks of its threads, even while it is stuck in C code."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_HEAP_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Job:
    """What the workers of a loader do: everything that they need to fill any batch of any epoch."""

    source: Any
    transform: Callable[..., Any] | None
    plan: Plan
    on_bad_sample: OnBadSample
    is_batched: bool
    """False: a task is not a batch of the plan but a block of many, of one sample each."""

    def takes_rng(self) -> bool:
        """Whether the transform wants a random generator as its second argument."""
        return self.transform is not None and takes_rng(self.transform)

    def arguments(self) -> dict[str, Any]:
        """What the user passed, by the name of the argument."""
        return {"source": self.source, "transform": self.transform}

    def source_changes(self) -> bool:
        """Whether the source may be another one in each epoch."""
        return hasattr(self.source, "begin_epoch")


@dataclass(frozen=True)
class Description:
    """What one sample tells of the element: its structure of ``ArraySpec``, and the bytes of each component."""

    structure: Any
    component_bytes: tuple[int, ...]


class _SampleFailedError(Exception):
    """A sample cannot be made into an element; carries the report."""

    def __init__(self, report: SampleReport) -> None:
        super().__init__(report)
        self.report = report


class Samples:
    """Makes elements: reads a sample and calls the transform; ``stages`` has the time that both took."""

    def __init__(self, job: Job, area: WorkerArea) -> None:
        self._job = job
        self._area = area
        self._source = job.source
        self._renewal: tuple[serialization.SharedFile, int] | None = None
        self._source_changes = job.source_changes()
        self._random = SampleRandom(job.plan.seed) if job.takes_rng() else None
        self._pid = os.getpid()
        self.stages = StageTimer()

    def renew(self, file: int, job_file: int) -> None:
        """From now on the source is as in a file, which is read when the first sample is."""
        self._renewal = serialization.SharedFile(file), job_file

    def _read(self, index: int) -> Any:
        if self._source_changes:
            self._area.enter_epoch()
        if self._renewal is not None:
            file, job_file = self._renewal
            self._source = serialization.unpack(file.fd, job_file)
            self._renewal = None
        return self._source[index]

    def element(self, epoch: int, index: int) -> Any:
        """Returns the element of one sample.

        Raises:
            _SampleFailedError: with a report, for whatever the source or the transform raised.
        """
        for pause_s in (*RETRY_PAUSES_S, None):
            try:
                return self._attempt(epoch, index)
            except BaseException as error:  # user code: StopIteration and SystemExit included
                if pause_s is None or not sample_report.is_environment(error):
                    raise _SampleFailedError(sample_report.report_exception(index, self.where(index), error)) from None
            finally:
                end_if_forked(self._pid)
            for _ in range(round(pause_s / STEP_S)):
                time.sleep(STEP_S)
                self._area.step(self._area.ordinal, index)

    def _attempt(self, epoch: int, index: int) -> Any:
        stages = self.stages
        stages.samples_read += 1
        if not stages.is_timed:
            return self._transform(epoch, index, self._read(index))
        started = time.perf_counter_ns()
        sample = self._read(index)
        read = time.perf_counter_ns()
        stages.bytes_read += sample_bytes(sample)
        element = self._transform(epoch, index, sample)
        stages.read_ns += read - started
        stages.transform_ns += time.perf_counter_ns() - read
        return element

    def _transform(self, epoch: int, index: int, sample: Any) -> Any:
        fault_points.reach("mid decode")
        if self._job.transform is None:
            return sample
        if self._random is None:
            return self._job.transform(sample)
        self._area.enter_epoch()
        return self._job.transform(sample, self._random(epoch, index))

    def where(self, index: int) -> str:
        """What the source says of a sample's place; never fails."""
        where = getattr(self._source, "where", None)
        if where is None:
            return ""
        try:
            place = where(index)
            return place if isinstance(place, Location) else str(place)
        except BaseException as error:  # user code, asked while another error is reported
            return f"where() raised {sample_report.message_of(error)}"


class Worker:
    """The loop of one worker process."""

    def __init__(
        self, channel: socket.socket, memory_fd: int, area: WorkerArea, job: Job | StreamJob, job_fd: int
    ) -> None:
        self._channel = channel
        self._memory_fd = memory_fd
        self._area = area
        self._job_fd = job_fd
        if isinstance(job, StreamJob):
            self._streams = Streams(job, area)
        else:
            self._job = job
            self._samples = Samples(job, area)
        self._layout: BatchLayout | None = None
        self._slots: SlotMemory | None = None
        self._condemned: dict[tuple[int, int], int] = {}
        """How the workers ended that a sample has killed, by (epoch or -1, sample)."""

    def run(self) -> None:
        """Serves until the trainer closes the channel."""
        while True:
            fault_points.reach("idle")
            data, files, _, _ = socket.recv_fds(self._channel, messages.MAX_BYTES, 1)
            if not data:
                return  # the trainer has closed its end, or is gone
            self.handle(messages.decode(data), files)

    def handle(self, message: messages.Message, files: list[int]) -> None:
        """Does what one message asks for; ``files`` are the descriptors that came with it."""
        if isinstance(message, messages.Fill):
            self._fill(message)
        elif isinstance(message, messages.Draw):
            self._draw(message)
        elif isinstance(message, messages.Forget):
            self._streams.forget(message.run)
        elif isinstance(message, messages.Condemn):
            self._condemned[message.epoch, message.index] = message.status
        elif isinstance(message, messages.Renew):
            self._samples.renew(files[0], self._job_fd)
        elif isinstance(message, messages.Open):
            self._open(message)
        elif isinstance(message, messages.Describe):
            self._describe(message)

    def _open(self, message: messages.Open) -> None:
        memory = mmap.mmap(self._memory_fd, message.slots_offset + message.slots * message.slot_bytes)
        start = message.layout_offset
        self._layout = pickle.loads(memory[start : start + message.layout_bytes])
        self._slots = SlotMemory(memory, message.slots_offset, message.slot_bytes, message.slots)

    def _describe(self, message: messages.Describe) -> None:
        self._area.step(0, message.index)
        try:
            element = self._samples.element(0, message.index)
            try:
                structure = describe_element(element)
                sizes = tuple(_component_bytes(leaf) for leaf in flatten(element))
                data = serialization.dumps(Description(structure, sizes))
            except BaseException as error:  # a SpecError, a class that cannot be pickled, or what user code raises
                where = self._samples.where(message.index)
                raise _SampleFailedError(sample_report.report_exception(message.index, where, error)) from None
            ok = len(data) <= TEXT_BYTES
            if not ok:
                too_long = SpecError(f"the element's structure takes {len(data)} bytes to describe: too much")
                raise _SampleFailedError(sample_report.report_exception(message.index, "", too_long))
        except _SampleFailedError as failure:
            ok, data = False, sample_report.encode([failure.report], TEXT_BYTES)
        size = self._area.write_text(data)
        self._area.step(NOTHING_IN_HAND)
        self._channel.send(messages.encode(messages.Described(message.index, int(ok), size)))

    def _fill(self, message: messages.Fill) -> None:
        assert self._layout is not None
        assert self._slots is not None
        fault_points.enter(message.position, message.attempt)
        fault_points.reach("task received")
        self._area.take_up(message.task)
        started_ns, stages = time.monotonic_ns(), self._samples.stages
        stages.start_batch(started_ns)
        writer = BatchWriter(self._layout, self._slots.data(message.slot))
        bad: list[SampleReport] = []
        indices = self._indices(message)
        try:
            for ordinal, index in enumerate(indices):
                self._area.step(ordinal, index)
                stages.start_sample()
                self._add_sample(writer, message.epoch, index, ordinal, bad)
                if ordinal == len(indices) // 2:
                    fault_points.reach("slot half written")
            self._area.step(NOTHING_IN_HAND)
            stages.end_batch(before := time.monotonic_ns())
            used = writer.finish()
            report = sample_report.encode(bad, TEXT_BYTES) if bad else b""
            overflow = self._overflow(writer, used, report)
            ended_ns = time.monotonic_ns()
        except _SampleFailedError as failure:
            self._fail(message, failure.report)
            return
        except Exception as error:  # the batch as a whole cannot be stored: no memory, or shapes that do not fit
            last = indices[-1] if indices else -1
            self._fail(message, sample_report.report_exception(last, "the whole batch", error))
            return
        if len(report) <= TEXT_BYTES:
            self._slots.write_report(message.slot, report)
        fault_points.reach("result unsent")
        cpu = stages.cpu_since_last(ended_ns)
        self._send(
            messages.Filled(
                message.task, message.attempt, message.slot, message.generation, writer.count, used,
                len(report), started_ns, ended_ns - started_ns, stages.read_ns, stages.transform_ns,
                stages.write_ns + ended_ns - before, cpu.used_ns, cpu.queued_ns, stages.samples_read,
                stages.bytes_read, message.epoch, message.position,
            ),
            overflow,
        )  # fmt: skip
        fault_points.reach("result sent")

    def _draw(self, message: messages.Draw) -> None:
        assert self._layout is not None
        assert self._slots is not None
        fault_points.enter(message.stream, message.attempt)
        fault_points.reach("task received")
        self._area.take_up(message.task)
        try:
            writer, result = self._streams.draw(message, self._layout, self._slots.data(message.slot))
            used = result.batch_bytes
            overflow = self._overflow(writer, used, b"")
        except StreamFailedError as failure:
            self._fail(message, failure.report)
            return
        except Exception as error:  # the block as a whole cannot be stored: no memory, or shapes that do not fit
            where = f"a block of generator number {message.stream}"
            self._fail(message, sample_report.report_exception(-1, where, error))
            return
        fault_points.reach("result unsent")
        self._send(result, overflow)
        fault_points.reach("result sent")

    def _fail(self, message: messages.Fill | messages.Draw, report: SampleReport) -> None:
        assert self._slots is not None
        self._area.step(NOTHING_IN_HAND)
        size = self._slots.write_report(message.slot, sample_report.encode([report], TEXT_BYTES))
        self._send(messages.Failed(message.task, message.attempt, message.slot, message.generation, size))

    def _overflow(self, writer: BatchWriter, batch_bytes: int, report: bytes) -> int | None:
        """Writes what is larger than its place in the slot to a file, which goes to the trainer with the result."""
        assert self._slots is not None
        batch_bytes = batch_bytes if batch_bytes > self._slots.data_bytes else 0
        report = report if len(report) > TEXT_BYTES else b""
        if not batch_bytes and not report:
            return None
        fd = os.memfd_create("mploader-batch", os.MFD_CLOEXEC)
        try:
            size = batch_bytes + len(report)
            os.posix_fallocate(fd, 0, size)
            memory = mmap.mmap(fd, size)
            if batch_bytes:
                writer.write_to(np.frombuffer(memory, np.uint8))
            memory[batch_bytes:] = report
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _indices(self, message: messages.Fill) -> list[int]:
        plan = self._job.plan
        if self._job.is_batched:
            return list(map(int, plan.batch(message.epoch, message.position)))
        assert self._layout is not None
        start = message.first + message.position * self._layout.capacity
        return list(map(int, plan.batches(message.epoch, start, min(start + self._layout.capacity, plan.num_batches))))

    def _add_sample(self, writer: BatchWriter, epoch: int, index: int, offset: int, bad: list[SampleReport]) -> None:
        """Adds the element of one sample to a batch, or what ``on_bad_sample`` makes of a bad one.

        Args:
            writer: of the batch.
            epoch: of the batch.
            index: the sample.
            offset: its offset in the batch.
            bad: a report is added where the sample is bad.

        Raises:
            _SampleFailedError: the batch cannot be made. The machine is at fault, or an element does not fit the
                spec: what is wrong then is the transform or the loader's arguments, and not a few samples.
        """
        policy = self._job.on_bad_sample
        for candidate in policy.candidates(self._job.plan, epoch, index):
            if candidate != index:
                self._area.step(self._area.ordinal, candidate)
            try:
                if self._condemned:
                    self._refuse_condemned(epoch, candidate)
                self._write(writer, self._samples.element(epoch, candidate), candidate)
                return
            except _SampleFailedError as failure:
                if policy.raises or failure.report.group in ("environment", "spec"):
                    raise
                if candidate == index:  # another one is reported in its own place
                    bad.append(dataclasses.replace(failure.report, offset=offset))
        if not policy.drops:
            raise _SampleFailedError(bad[-1])

    def _write(self, writer: BatchWriter, element: Any, index: int) -> None:
        stages = self._samples.stages
        before = time.perf_counter_ns() if stages.is_timed else 0
        try:
            writer.add(element)
        except BaseException as error:  # a SpecError, or what NumPy or an object's __array__ raises
            raise _SampleFailedError(sample_report.report_exception(index, self._samples.where(index), error)) from None
        if stages.is_timed:
            stages.write_ns += time.perf_counter_ns() - before

    def _refuse_condemned(self, epoch: int, index: int) -> None:
        status = self._condemned.get((-1, index), self._condemned.get((epoch, index)))
        if status is not None:
            error = sample_report.describe_condemned(status)
            group = "stall" if status == sample_report.STALLED else "crash"
            where = self._samples.where(index)
            raise _SampleFailedError(
                SampleReport(index, where, "WorkerError", error, "", group, *sample_report.file_and_byte(where))
            )

    def _send(self, message: messages.Filled | messages.Drawn | messages.Failed, overflow: int | None = None) -> None:
        data = messages.encode(message)
        if overflow is None:
            self._channel.send(data)
        else:
            socket.send_fds(self._channel, [data], [overflow])
            os.close(overflow)


def _component_bytes(leaf: Any) -> int:
    if isinstance(leaf, (bytes, str)):
        return len(leaf.encode() if isinstance(leaf, str) else leaf)
    array = np.asarray(leaf)
    return sum(map(len, array.flat)) if array.dtype.hasobject or array.dtype.kind in "SU" else array.nbytes


def keep_freed_memory() -> None:
    """Lets the C library keep what is freed, up to 32 MiB.

    A decoder frees and asks again for the same half a megabyte with every image. Given back to the kernel each time,
    it costs a page fault for every 4 KiB of it: 9 % of a worker's time.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_HEAP_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_HEAP_BYTES)


def main() -> None:
    """Entry point; the arguments are PARENT INDEX START CHANNEL_FD MEMORY_FD JOB_FD."""
    index, start, channel_fd, memory_fd, job_fd = map(int, sys.argv[2:7])
    keep_freed_memory()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # what the trainer blocks and ignores is inherited
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL, all_threads=True, chain=False)
    fault_points.load()
    fault_points.enter(index, start)
    channel = socket.socket(fileno=channel_fd)
    channel.setblocking(True)
    area = WorkerArea(mmap.mmap(memory_fd, 0), index)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the trainer has closed its end, or is gone
        serve(channel, memory_fd, area, job_fd)
    fault_points.reach("shutting down")


def serve(channel: socket.socket, memory_fd: int, area: WorkerArea, job_fd: int) -> None:
    """A worker's life from its first word to the end of its channel."""
    area.step(NOTHING_IN_HAND)
    fault_points.reach("before hello")
    try:
        worker = Worker(channel, memory_fd, area, serialization.unpack(job_fd), job_fd)
    except BaseException as error:  # an import of user code may raise anything
        size = area.write_text(sample_report.traceback_of(error).encode(errors="backslashreplace"))
        channel.send(messages.encode(messages.Broken(size)))
        return
    channel.send(messages.encode(messages.Hello(messages.PROTOCOL, os.getpid())))
    fault_points.reach("after hello")
    worker.run()
