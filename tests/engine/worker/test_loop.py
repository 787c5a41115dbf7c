"""The loop of a worker, message by message, in this thread: what it writes to slots and what it answers."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from mploader.batching.choose_layout import make_layout
from mploader.batching.spec import ArraySpec
from mploader.engine.ipc import messages, sample_report, serialization
from mploader.engine.ipc.arena import Arena
from mploader.engine.ipc.job import GeneratorJob, ProbeResult, SampleJob
from mploader.engine.ipc.messages import AddSlots, Cancel, Condemn, Failed, Hello, Made, Make, Open, Probe, Probed
from mploader.engine.ipc.on_bad_sample import OnBadSample
from mploader.engine.ipc.worker_status import TEXT_BYTES
from mploader.engine.worker.generators import GeneratorMaker
from mploader.engine.worker.loop import WorkerLoop, serve
from mploader.engine.worker.maker import Maker
from mploader.engine.worker.samples import SampleMaker
from mploader.sampling.plan import Plan
from tests.transforms import Squares, fail_at

BATCH = 4
SAMPLES = 10
LAYOUT = make_layout(ArraySpec((), np.dtype(np.int64)), (8,), None, False, BATCH)


class Trainer:
    """The trainer's side of one worker, and the loop of that worker."""

    def __init__(self, job: SampleJob | GeneratorJob) -> None:
        self.arena = Arena(1)
        self.channel, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.status = self.arena.statuses[0]
        maker: Maker = (
            GeneratorMaker(job, self.status) if isinstance(job, GeneratorJob) else SampleMaker(job, self.status, -1)
        )
        self.loop = WorkerLoop(self.theirs, self.arena.fd, self.status, maker)
        self._task = 0

    def tell(self, message: messages.ToWorker) -> None:
        self.loop.handle(messages.decode(messages.encode(message)), [])

    def open(self, *slots: int) -> None:
        """Tells the worker of the layout, and of a segment of so many slots each."""
        self.arena.store_layout(serialization.dumps(LAYOUT))
        offset, size = self.arena.layout_range
        self.tell(Open(offset=offset, size=size))
        for count in slots:
            self.arena.add_slots(count, LAYOUT.fixed_bytes)
            self.tell(AddSlots(**asdict(self.arena.slots.segments[-1])))

    def make(self, slot: int, batch_index: int, **changes: Any) -> Any:
        """Has the worker make a batch and returns its answer."""
        self._task += 1
        values: dict[str, Any] = {
            "task": self._task, "attempt": 1, "slot": slot, "generation": 7, "series": 3, "epoch": 0,
            "batch_index": batch_index, "first": 0,
        }  # fmt: skip
        self.tell(Make(**{**values, **changes}))
        answer = self.answer()
        assert (answer.task, answer.attempt, answer.slot, answer.generation) == (self._task, 1, slot, 7)
        return answer

    def answer(self) -> Any:
        return messages.decode(self.channel.recv(messages.MAX_BYTES, socket.MSG_DONTWAIT))

    def batch(self, made: Made) -> list[int]:
        found: list[int] = LAYOUT.read(self.arena.slots.data(made.slot, made.batch_bytes)).tolist()
        return found

    def report(self, failed: Made | Failed) -> sample_report.SampleReport:
        (report,) = sample_report.decode(self.arena.slots.read_report(failed.slot, failed.report_bytes))
        return report

    def close(self) -> None:
        self.channel.close()
        self.theirs.close()
        self.arena.close()


Start = Callable[[SampleJob | GeneratorJob], Trainer]


@pytest.fixture
def trainer_of() -> Iterator[Start]:
    with contextlib.ExitStack() as opened:
        yield lambda job: opened.enter_context(contextlib.closing(Trainer(job)))


def samples(transform: Callable[..., Any] | None = None, policy: str = "raise") -> SampleJob:
    return SampleJob(
        source=Squares(SAMPLES), transform=transform, plan=Plan(SAMPLES, BATCH, 0, False, False),
        on_bad_sample=OnBadSample.of(policy),
        is_batched=True,
    )  # fmt: skip


def numbers(start: int) -> Iterator[int]:
    yield from range(start, start + 6)


def make_blocks(trainer: Trainer, count: int, **first: Any) -> list[Made]:
    """The first blocks of input 0."""
    return [trainer.make(index % 2, index, input=0, **({} if index else first)) for index in range(count)]


# Samples


def test_a_batch_is_written_to_the_slot_of_the_assignment(trainer_of: Start) -> None:
    trainer = trainer_of(samples())
    trainer.open(3)
    before = trainer.status.progress
    made = trainer.make(2, 1)
    assert trainer.batch(made) == [16, 25, 36, 49]
    assert (made.samples, made.samples_read, made.report_bytes, made.is_last) == (4, 4, 0, 0)
    assert made.busy_ns > 0
    assert trainer.status.progress >= before + 5, "one step for each sample"
    assert (trainer.status.task, trainer.status.offset, trainer.status.sample_index) == (1, None, None)


def test_slots_of_segments_that_come_later_are_as_good_as_the_first(trainer_of: Start) -> None:
    trainer = trainer_of(samples())
    trainer.open(1)
    first = trainer.make(0, 0)
    for count in (2, 1):
        trainer.arena.add_slots(count, LAYOUT.fixed_bytes)
        trainer.tell(AddSlots(**asdict(trainer.arena.slots.segments[-1])))
    later = [trainer.make(slot, batch_index) for slot, batch_index in ((3, 1), (1, 2))]
    assert [trainer.batch(made) for made in (first, *later)] == [[0, 1, 4, 9], [16, 25, 36, 49], [64, 81]]


def test_a_bad_sample_fails_its_batch_with_a_report_beside_the_slot(trainer_of: Start) -> None:
    trainer = trainer_of(samples(fail_at(16)))
    trainer.open(2)
    failed = trainer.make(1, 1)
    assert isinstance(failed, Failed)
    report = trainer.report(failed)
    assert (report.index, report.where, report.kind) == (4, "squares.txt, line 5 at byte 32", "ValueError")


def test_a_condemned_sample_is_left_out_and_reported(trainer_of: Start) -> None:
    trainer = trainer_of(samples(policy="drop"))
    trainer.open(2)
    trainer.tell(Condemn(sample_index=5, epoch=None, status=-11))
    made = trainer.make(1, 1)
    assert trainer.batch(made) == [16, 36, 49]
    assert (made.samples, trainer.report(made).index, trainer.report(made).group) == (3, 5, "crash")


def test_an_element_is_probed_before_there_are_slots(trainer_of: Start) -> None:
    trainer = trainer_of(samples())
    trainer.tell(Probe(sample_index=3))
    answer = trainer.answer()
    assert (type(answer), answer.sample_index, answer.ok) == (Probed, 3, 1)
    probed = pickle.loads(trainer.status.read_text(answer.text_bytes))
    assert probed == ProbeResult(ArraySpec((), np.dtype(np.int64)), (8,))


def test_a_probe_of_a_bad_sample_is_answered_with_a_report(trainer_of: Start) -> None:
    trainer = trainer_of(samples(fail_at(9)))
    trainer.tell(Probe(sample_index=3))
    answer = trainer.answer()
    assert (answer.sample_index, answer.ok) == (3, 0)
    (report,) = sample_report.decode(trainer.status.read_text(answer.text_bytes))
    assert (report.index, report.kind) == (3, "ValueError")


# Generators


def test_blocks_of_a_generator_follow_each_other(trainer_of: Start) -> None:
    trainer = trainer_of(GeneratorJob(generator=numbers, inputs=[100], is_batched=True))
    trainer.open(2)
    first, second = make_blocks(trainer, 2, skip=0)
    assert [trainer.batch(first), trainer.batch(second)] == [[100, 101, 102, 103], [104, 105]]
    assert [(made.samples, made.elements, made.is_last) for made in (first, second)] == [(4, 4, 0), (2, 6, 1)]
    behind = trainer.make(0, 2, input=0)
    assert (behind.samples, behind.is_last) == (0, 1), "a block that was asked for ahead, behind the end"


def test_a_generator_is_begun_again_behind_what_is_committed(trainer_of: Start) -> None:
    job = GeneratorJob(generator=numbers, inputs=[100], is_batched=True)
    dead, other = trainer_of(job), trainer_of(job)
    dead.open(2)
    other.open(2)
    (first,) = make_blocks(dead, 1, skip=0)
    second = other.make(0, 1, input=0, skip=first.elements, checksum=first.checksum)
    assert other.batch(second) == [104, 105]
    expected = dead.make(1, 1, input=0)
    assert (second.elements, second.checksum, second.is_last) == (6, expected.checksum, 1)


def test_a_generator_that_does_not_repeat_itself_is_an_error(trainer_of: Start) -> None:
    trainer = trainer_of(GeneratorJob(generator=numbers, inputs=[100], is_batched=True))
    trainer.open(2)
    (first,) = make_blocks(trainer, 1, skip=0)
    failed = trainer.make(1, 1, input=0, skip=first.elements, checksum=first.checksum + 1)
    assert isinstance(failed, Failed)
    assert (trainer.report(failed).group, trainer.report(failed).index) == ("spec", 4)


def test_elements_before_a_failure_are_delivered(trainer_of: Start) -> None:
    def fails(start: int) -> Iterator[int]:
        yield from range(start, start + 2)
        raise RuntimeError("no more")

    trainer = trainer_of(GeneratorJob(generator=fails, inputs=[100]))
    trainer.open(2)
    made = trainer.make(0, 0, input=0, skip=0)
    assert (trainer.batch(made), made.is_last) == ([100, 101], 0)
    for slot in (1, 0):
        failed = trainer.make(slot, 1, input=0)
        assert isinstance(failed, Failed)
        report = trainer.report(failed)
        assert (report.group, report.index, report.where) == ("generator", 2, "element 2 of generator(100)")


def test_a_generator_that_is_cancelled_is_closed(trainer_of: Start, capfd: pytest.CaptureFixture[str]) -> None:
    closed = []

    def noted(start: int) -> Iterator[int]:
        try:
            yield from range(start, start + 100)
        finally:
            closed.append(start)
            raise ValueError("on closing")

    trainer = trainer_of(GeneratorJob(generator=noted, inputs=[100, 200]))
    trainer.open(2)
    for number in range(2):
        trainer.make(number, 0, input=number, series=number, skip=0)
    trainer.tell(Cancel(series=77))
    assert closed == []
    trainer.tell(Cancel(series=1))
    assert closed == [200]
    assert "ValueError: on closing" in capfd.readouterr().err
    assert trainer.batch(trainer.make(0, 1, input=0, series=0)) == [104, 105, 106, 107], "the other one goes on"
    trainer.tell(Cancel(series=0))


# A life


def test_a_worker_says_hello_and_leaves_when_the_channel_closes() -> None:
    arena, job_fd = Arena(1), serialization.pack(samples())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.shutdown(socket.SHUT_WR)
        serve(theirs, arena.fd, arena.statuses[0], job_fd)
        assert messages.decode(ours.recv(messages.MAX_BYTES)) == Hello(protocol=messages.PROTOCOL, pid=os.getpid())
    os.close(job_fd)
    arena.close()


def test_a_worker_that_cannot_load_its_job_says_why_and_ends() -> None:
    arena = Arena(1)
    job_fd = serialization.pack(samples(Unloadable()))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        serve(theirs, arena.fd, arena.statuses[0], job_fd)
        broken = messages.decode(ours.recv(messages.MAX_BYTES))
    assert isinstance(broken, messages.Broken)
    assert 0 < broken.text_bytes <= TEXT_BYTES
    assert b"ImportError: a library is missing" in arena.statuses[0].read_text(broken.text_bytes)
    os.close(job_fd)
    arena.close()


class Unloadable:
    """A transform that cannot be unpickled."""

    def __call__(self, sample: int) -> int:
        return sample

    def __reduce__(self) -> Any:
        return _fail_to_load, ()


def _fail_to_load() -> None:
    raise ImportError("a library is missing")
