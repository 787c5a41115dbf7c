"""The supervisor thread and workers that do what a test says, without a process.

With real workers, killed in every way at every point, it is tested in tests/faults.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

from mploader.batching.choose_layout import make_layout
from mploader.batching.spec import ArraySpec
from mploader.engine.ipc import messages, serialization
from mploader.engine.ipc.arena import Arena
from mploader.engine.ipc.job import SampleJob
from mploader.engine.ipc.on_bad_sample import OnBadSample
from mploader.engine.ipc.worker_status import WorkerStatus
from mploader.engine.scheduler.crash_policy import MAX_EARLY_DEATHS
from mploader.engine.supervisor import failure_handler, supervisor
from mploader.engine.supervisor.pool import Pool
from mploader.engine.supervisor.worker_handle import WorkerStart
from mploader.engine.worker.loop import WorkerLoop
from mploader.engine.worker.samples import SampleMaker
from mploader.errors import LoaderError, ResourceError, StallError, WorkerError
from mploader.sampling.plan import Plan
from mploader.testing import ThreadWorker, WorkerEndedError, workers_in_threads

BATCHES = 12
BATCH = 4
ALL = list(range(BATCHES * BATCH))

pytestmark = pytest.mark.usefixtures("nothing_is_left")

LAYOUT = make_layout(ArraySpec((), np.dtype(np.int64)), (8,), None, False, BATCH)

Fault = Callable[["Faulty", socket.socket, messages.Make], None]
"""What a worker does when it gets an assignment, before it does the work."""


class Faulty(ThreadWorker):
    """A worker that does its work but at the first attempts at some batches."""

    faults: ClassVar[dict[int, Fault]] = {}
    attempts: ClassVar[int] = 1
    """How many of them meet with the fault."""
    protocol: ClassVar[int] = messages.PROTOCOL
    """What its hello says; 0: it says none."""

    def serve(self, channel: socket.socket, memory_fd: int, status: WorkerStatus, job_fd: int) -> None:
        maker = SampleMaker(serialization.unpack(job_fd), status, job_fd)
        loop = WorkerLoop(channel, memory_fd, status, maker)
        if self.protocol:
            channel.send(messages.encode(messages.Hello(protocol=self.protocol, pid=self.pid)))
        while data := channel.recv(messages.MAX_BYTES):
            message = messages.decode(data)
            if isinstance(message, messages.Make) and message.attempt <= self.attempts:
                fault = self.faults.get(message.batch_index)
                if fault is not None:
                    status.begin(message.task)
                    fault(self, channel, message)
            loop.handle(message, [])
            self.after(message)

    def after(self, message: messages.Message) -> None:
        """It has done what a message asks for."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds elsewhere."""
    monkeypatch.setattr(failure_handler, "STACKS_S", 0.02)
    monkeypatch.setattr(failure_handler, "CLOSED_S", 0.02)
    monkeypatch.setattr(failure_handler, "UNKILLABLE_S", 0.05)
    monkeypatch.setattr(supervisor, "TICK_S", 0.01)
    monkeypatch.setattr(supervisor, "RETRY_START_S", (0.01,) * 4)


def make_pool(
    faults: dict[int, Fault] | None = None, workers: int = 2, stall_timeout_s: float = 60.0,
    kind: type[Faulty] = Faulty, **attributes: Any,
) -> Pool:  # fmt: skip
    """A pool whose workers are of a kind, with some attributes of their class replaced."""
    changed = type(kind.__name__, (kind,), {"faults": faults or {}, **attributes})
    job = SampleJob(
        source=range(BATCHES * BATCH), transform=None, plan=Plan(BATCHES * BATCH, BATCH, 0, False, False),
        on_bad_sample=OnBadSample.RAISE, is_batched=True,
    )  # fmt: skip
    with workers_in_threads(changed):
        pool = Pool(job, workers, stall_timeout_s)
    try:
        pool.allocate(LAYOUT, LAYOUT.fixed_bytes, slots=6, reserved=2)
    except BaseException:
        pool.close()
        raise
    return pool


def read(pool: Pool) -> list[int]:
    """The samples of an epoch; the pool is closed."""
    try:
        series = pool.open_series(0, BATCHES)
        return [int(sample) for batch in range(BATCHES) for sample in pool.next_batch(series, batch).batch]
    finally:
        pool.close()


def end(status: int) -> Fault:
    def fault(worker: Faulty, channel: socket.socket, message: messages.Make) -> None:
        raise WorkerEndedError(status)

    return fault


def say(data: bytes) -> Fault:
    def fault(worker: Faulty, channel: socket.socket, message: messages.Make) -> None:
        channel.send(data)

    return fault


def hang(worker: Faulty, channel: socket.socket, message: messages.Make) -> None:
    """Until it is killed."""
    while worker.killed_s is None:
        time.sleep(0.001)


def close_channel(worker: Faulty, channel: socket.socket, message: messages.Make) -> None:
    channel.shutdown(socket.SHUT_RDWR)
    hang(worker, channel, message)


def test_workers_do_the_work() -> None:
    assert read(make_pool()) == ALL


@pytest.mark.parametrize("status", [0, 1, -signal.SIGKILL, -signal.SIGSEGV])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_work_of_workers_that_end_is_done_by_others(
    status: int, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool({0: end(status), 5: end(status), BATCHES - 1: end(status)}, workers)
    assert read(pool) == ALL
    assert pool.statistics().restarts == 3
    assert caplog.text.count("it is replaced and nothing is lost") == 3


def test_a_batch_that_was_reported_before_the_end_is_not_made_again() -> None:
    made: list[int] = []

    def end_sometimes(worker: Faulty, message: messages.Message) -> None:
        if isinstance(message, messages.Make):
            made.append(message.batch_index)
            if message.batch_index % 2:
                raise WorkerEndedError(-signal.SIGKILL)

    assert read(make_pool(after=end_sometimes)) == ALL
    assert sorted(made)[:BATCHES] == list(range(BATCHES))
    assert len(made) == len(set(made)), "a batch was made twice"


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense",
        messages.encode(messages.Hello(protocol=messages.PROTOCOL, pid=1)),
        messages.encode(messages.Probed(sample_index=0, ok=1, text_bytes=100)),
        messages.encode(messages.Failed(task=99, attempt=1, slot=0, generation=0, report_bytes=10)),
        messages.encode(messages.Probe(sample_index=0)),
        messages.encode(messages.Hello(protocol=-(2**63), pid=1)),
    ],
    ids=["not a message", "a second hello", "an unasked probe", "an unknown task", "the other direction", "no number"],
)
def test_a_worker_that_talks_nonsense_is_replaced(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert read(make_pool({3: say(data)})) == ALL
    assert "worker" in caplog.text
    assert "breaks the protocol" in caplog.text


def test_a_worker_that_closes_its_channel_and_lives_on_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    assert read(make_pool({3: close_channel})) == ALL
    assert "has closed its channel and lives on" in caplog.text


def test_a_worker_that_hangs_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    assert read(make_pool({3: hang}, stall_timeout_s=0.5)) == ALL
    assert "has made no progress for 0.5 s; it is replaced" in caplog.text


def test_workers_that_all_hang_are_an_error_with_their_stacks() -> None:
    with pytest.raises(StallError, match=r"(?s)no worker has made progress.*in hang"):
        read(make_pool(dict.fromkeys(range(BATCHES), hang), stall_timeout_s=0.1, attempts=99))


def test_a_worker_that_no_signal_ends_costs_its_slots_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    let_go = threading.Event()

    def hang_in_the_kernel(worker: Faulty, channel: socket.socket, message: messages.Make) -> None:
        let_go.wait()
        raise WorkerEndedError(-signal.SIGKILL)

    try:
        assert read(make_pool({3: hang_in_the_kernel}, stall_timeout_s=0.5)) == ALL
        assert "does not die of SIGKILL" in caplog.text
    finally:
        let_go.set()


def test_what_workers_print_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    def talk(worker: Faulty, channel: socket.socket, message: messages.Make) -> None:
        worker.print("hello from a worker\n")

    def die_with_words(worker: Faulty, channel: socket.socket, message: messages.Make) -> None:
        worker.print("my last words\n")
        raise WorkerEndedError(1)

    assert read(make_pool({2: talk, 4: die_with_words})) == ALL
    printed = capsys.readouterr().err
    assert "hello from a worker\n" in printed
    assert "my last words\n" in printed


def test_workers_that_end_over_and_over_are_an_error_with_their_last_words() -> None:
    def fail(worker: Faulty, channel: socket.socket, memory_fd: int, status: WorkerStatus, job_fd: int) -> None:
        worker.print("a library is missing\n")
        raise WorkerEndedError(127)

    with pytest.raises(WorkerError, match=rf"{MAX_EARLY_DEATHS} workers have ended in a row.*\n.*is missing"):
        read(make_pool(serve=fail))


def test_a_worker_of_another_version_is_not_trusted(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(LoaderError, match="workers have ended in a row"):
        read(make_pool(protocol=messages.PROTOCOL + 1))
    assert "breaks the protocol" in caplog.text


# Starting


class Grudging(Faulty):
    """The machine refuses some of the starts."""

    refused: ClassVar[list[int]]
    """Numbers of starts, from 0."""
    asked: ClassVar[list[int]]

    def __init__(self, start: WorkerStart, arena: Arena, job_fd: int) -> None:
        self.asked.append(len(self.asked))
        if self.asked[-1] in self.refused:
            raise ResourceError("cannot start worker: no process is left")
        super().__init__(start, arena, job_fd)


def make_grudging(refused: list[int], faults: dict[int, Fault] | None = None, workers: int = 2) -> Pool:
    return make_pool(faults, workers, kind=Grudging, refused=refused, asked=[])


def test_no_worker_at_all_is_an_error() -> None:
    with pytest.raises(ResourceError, match="no process is left"):
        read(make_grudging([0]))


def test_fewer_workers_than_asked_for_do_the_work_and_the_rest_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    pool = make_grudging([1, 2, 3])
    try:
        series = pool.open_series(0, BATCHES)
        found = [int(sample) for batch in range(BATCHES) for sample in pool.next_batch(series, batch).batch]
        deadline_s = time.monotonic() + 20
        while len(pool.worker_pids) < 2:
            assert time.monotonic() < deadline_s
            time.sleep(0.005)
    finally:
        pool.close()
    assert found == ALL
    assert caplog.text.count("Going on with 1 workers, and trying again") == 1


def test_a_machine_that_refuses_for_a_while_is_asked_again_when_no_worker_is_left() -> None:
    assert read(make_grudging([1, 2, 3], {4: end(-signal.SIGKILL)}, workers=1)) == ALL


def test_a_machine_that_keeps_refusing_is_an_error() -> None:
    with pytest.raises(ResourceError, match="no process is left"):
        read(make_grudging(list(range(1, 100)), {4: end(-signal.SIGKILL)}, workers=1))


# Ending


def test_a_bug_in_the_thread_is_an_error_for_consumers(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(supervisor.Supervisor, "_assign_work", broken)
    with pytest.raises(WorkerError, match=r"(?s)supervisor thread failed; please report this:.*a bug"):
        read(make_pool())


def test_a_handler_of_the_users_log_that_fails_changes_nothing() -> None:
    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("the disk is full")

    handler = Broken()
    logging.getLogger("mploader").addHandler(handler)
    try:
        assert read(make_pool({2: end(1)})) == ALL
    finally:
        logging.getLogger("mploader").removeHandler(handler)


def test_workers_leave_when_they_are_asked_and_need_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    had_left: list[bool] = []
    kill = Faulty.kill

    def note(worker: Faulty) -> None:
        had_left.append(worker.is_dead)
        kill(worker)

    monkeypatch.setattr(supervisor, "END_GRACE_S", 20.0)
    assert read(make_pool(kill=note)) == ALL
    assert had_left == [True, True]


def test_nothing_is_left_of_a_worker_that_never_said_hello() -> None:
    pool = make_pool(protocol=0)
    pool.close()
    with pytest.raises(LoaderError, match="closed"):
        pool.open_series(0, 1)
