"""The loop of one worker: receives an assignment, has the slot filled, reports.

A worker shares no lock with another process. Its only visible acts are bytes in the slot that it was assigned, one
message for each task, and its end; so it may be killed at any instruction.
"""

from __future__ import annotations

import os
import pickle
import socket
import time

import numpy as np

from mploader._util import fault_points, shared_memory
from mploader.batching.layout import BatchLayout
from mploader.batching.writer import BatchWriter
from mploader.engine.ipc import messages, sample_report, serialization
from mploader.engine.ipc.job import GeneratorJob
from mploader.engine.ipc.slots import Segment, Slots
from mploader.engine.ipc.worker_status import TEXT_BYTES, WorkerStatus
from mploader.engine.worker.generators import GeneratorMaker
from mploader.engine.worker.maker import Maker, Outcome, TaskFailedError
from mploader.engine.worker.samples import SampleMaker
from mploader.engine.worker.stage_timer import StageTimer


def serve(channel: socket.socket, memory_fd: int, status: WorkerStatus, job_fd: int) -> None:
    """A worker's life from its first word to the end of its channel.

    Args:
        channel: blocking; to the supervisor.
        memory_fd: the shared file.
        status: this worker's own.
        job_fd: the file with the pickled job.
    """
    status.step()
    fault_points.reach("before hello")
    try:
        job = serialization.unpack(job_fd)
        is_generator = isinstance(job, GeneratorJob)
        maker: Maker = GeneratorMaker(job, status) if is_generator else SampleMaker(job, status, job_fd)
    except BaseException as error:  # an import of user code may raise anything
        size = status.write_text(sample_report.traceback_of(error).encode(errors="backslashreplace"))
        channel.send(messages.encode(messages.Broken(text_bytes=size)))
        return
    channel.send(messages.encode(messages.Hello(protocol=messages.PROTOCOL, pid=os.getpid())))
    fault_points.reach("after hello")
    WorkerLoop(channel, memory_fd, status, maker).run()


class WorkerLoop:
    """Handles the messages of the trainer, one after the other.

    Args:
        channel: to the supervisor.
        memory_fd: the shared file.
        status: this worker's own.
        maker: makes the batches.
    """

    def __init__(self, channel: socket.socket, memory_fd: int, status: WorkerStatus, maker: Maker) -> None:
        self._channel = channel
        self._memory_fd = memory_fd
        self._status = status
        self._maker = maker
        self._timer = StageTimer()
        self._layout: BatchLayout | None = None
        self._slots = Slots()

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
        if isinstance(message, messages.Make):
            self._make(message)
        elif isinstance(message, messages.Cancel):
            self._maker.cancel(message.series)
        elif isinstance(message, messages.Condemn):
            self._maker.condemn(message)
        elif isinstance(message, messages.Renew):
            self._maker.renew(message, files[0])
        elif isinstance(message, messages.Open):
            self._open(message)
        elif isinstance(message, messages.AddSlots):
            self._add_slots(message)
        elif isinstance(message, messages.Probe):
            self._probe(message)

    def _open(self, message: messages.Open) -> None:
        memory = shared_memory.map_range(self._memory_fd, message.offset, message.size)
        self._layout = pickle.loads(memory[:])

    def _add_slots(self, message: messages.AddSlots) -> None:
        segment = Segment(message.first, message.count, message.offset, message.slot_bytes)
        self._slots.add(segment, shared_memory.map_range(self._memory_fd, segment.offset, segment.size))

    def _probe(self, message: messages.Probe) -> None:
        try:
            ok, data = True, self._maker.probe(message.sample_index)
        except TaskFailedError as failure:
            ok, data = False, sample_report.encode([failure.report], TEXT_BYTES)
        size = self._status.write_text(data)
        self._status.step()
        self._send(messages.Probed(sample_index=message.sample_index, ok=int(ok), text_bytes=size))

    def _make(self, task: messages.Make) -> None:
        assert self._layout is not None, "the layout comes before the first task"
        fault_points.enter(task.batch_index if task.input is None else task.input, task.attempt)
        fault_points.reach("task received")
        self._status.begin(task.task)
        timer, started_ns = self._timer, time.monotonic_ns()
        timer.start_batch(started_ns)
        writer = BatchWriter(self._layout, self._slots.data(task.slot))
        try:
            outcome = self._maker.make(task, writer, timer)
            self._status.step()
            timer.end_batch(before := time.monotonic_ns())
            used = writer.finish()
            report = sample_report.encode(list(outcome.reports), TEXT_BYTES) if outcome.reports else b""
            overflow = self._overflow(writer, used, report)
            ended_ns = time.monotonic_ns()
        except TaskFailedError as failure:
            self._fail(task, failure.report)
            return
        except Exception as error:  # the batch as a whole cannot be stored: no memory, or shapes that do not fit
            self._fail(task, sample_report.report_exception(None, self._maker.name_of(task), error))
            return
        if len(report) <= TEXT_BYTES:
            self._slots.write_report(task.slot, report)
        fault_points.reach("result unsent")
        timer.write_ns += ended_ns - before
        self._send(self._result(task, outcome, writer.count, used, len(report), started_ns, ended_ns), overflow)
        fault_points.reach("result sent")

    def _result(
        self, task: messages.Make, outcome: Outcome, samples: int, used: int, report_bytes: int, started_ns: int,
        ended_ns: int,
    ) -> messages.Made:  # fmt: skip
        timer, cpu = self._timer, self._timer.cpu_since_last(ended_ns)
        return messages.Made(
            task=task.task, attempt=task.attempt, slot=task.slot, generation=task.generation,
            samples=samples, batch_bytes=used, report_bytes=report_bytes,
            started_ns=started_ns, busy_ns=ended_ns - started_ns,
            read_ns=timer.read_ns, transform_ns=timer.transform_ns, write_ns=timer.write_ns,
            cpu_ns=cpu.used_ns, queued_ns=cpu.queued_ns,
            samples_read=timer.samples_read, bytes_read=timer.bytes_read,
            elements=outcome.replay.elements, checksum=outcome.replay.checksum, is_last=int(outcome.is_last),
        )  # fmt: skip

    def _fail(self, task: messages.Make, report: sample_report.SampleReport) -> None:
        self._status.step()
        size = self._slots.write_report(task.slot, sample_report.encode([report], TEXT_BYTES))
        self._send(
            messages.Failed(
                task=task.task, attempt=task.attempt, slot=task.slot, generation=task.generation, report_bytes=size
            )
        )

    def _overflow(self, writer: BatchWriter, batch_bytes: int, report: bytes) -> int | None:
        """Writes what is larger than its place in the slot to a file, which goes to the trainer with the result."""
        batch_bytes = batch_bytes if batch_bytes > self._slots.data_bytes else 0
        report = report if len(report) > TEXT_BYTES else b""
        if not batch_bytes and not report:
            return None
        size = batch_bytes + len(report)
        fd = shared_memory.create("mploader-batch", size)
        try:
            memory = shared_memory.map_range(fd, 0, size)
            if batch_bytes:
                writer.write_to(np.frombuffer(memory, np.uint8))
            memory[batch_bytes:] = report
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _send(self, message: messages.FromWorker, file: int | None = None) -> None:
        data = messages.encode(message)
        if file is None:
            self._channel.send(data)
        else:
            socket.send_fds(self._channel, [data], [file])
            os.close(file)
