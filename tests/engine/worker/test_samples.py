"""How a worker makes elements, in this process: what it does with bad samples and with reads that fail."""

from __future__ import annotations

import errno
import mmap
import signal
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest

from mploader.batching.writer import BatchWriter
from mploader.engine.ipc import sample_report
from mploader.engine.ipc.job import SampleJob
from mploader.engine.ipc.messages import Condemn
from mploader.engine.ipc.on_bad_sample import OnBadSample
from mploader.engine.ipc.sample_report import SampleReport
from mploader.engine.ipc.worker_status import STATUS_BYTES, WorkerStatus
from mploader.engine.worker import samples as samples_module
from mploader.engine.worker.maker import TaskFailedError
from mploader.engine.worker.samples import RETRY_PAUSES_S, SampleMaker, Samples
from mploader.engine.worker.stage_timer import StageTimer
from mploader.sampling.plan import Plan
from mploader.testing import FlakySource
from tests.transforms import Squares, fail_at, identity, noisy

SAMPLES = 10
PLAN = Plan(SAMPLES, 4, seed=3, shuffle=True)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for; none is made."""
    asked: list[float] = []
    monkeypatch.setattr(samples_module.time, "sleep", asked.append)
    return asked


def status() -> WorkerStatus:
    return WorkerStatus(mmap.mmap(-1, STATUS_BYTES))


def job(source: Any, transform: Callable[..., Any] | None, policy: str = "raise") -> SampleJob:
    return SampleJob(
        source=source, transform=transform, plan=PLAN, on_bad_sample=OnBadSample.of(policy), is_batched=True
    )


def make(source: Any, transform: Callable[..., Any] | None, policy: str = "raise") -> SampleMaker:
    """What makes the batches of a worker, without a loop around it."""
    return SampleMaker(job(source, transform, policy), status(), -1)


def elements(
    made: SampleMaker, indices: Sequence[int], epoch: int = 0, timer: StageTimer | None = None
) -> tuple[list[Any], list[SampleReport]]:
    """The elements of some samples of a batch, those without one left out; and the reports."""
    bad: list[SampleReport] = []
    kept = Kept()
    for index in indices:
        made._add(epoch, index, 0, cast(BatchWriter, kept), timer or StageTimer(), bad)
    return kept.elements, bad


class Kept:
    """In the place of a slot's writer: keeps elements as they are."""

    def __init__(self) -> None:
        self.elements: list[Any] = []

    def add(self, element: Any) -> None:
        self.elements.append(element)


def failure(call: Callable[[], object]) -> SampleReport:
    with pytest.raises(TaskFailedError) as caught:
        call()
    return caught.value.report


def test_random_numbers_depend_on_epoch_and_sample_and_not_on_the_order() -> None:
    def random_numbers(order: list[tuple[int, int]]) -> dict[tuple[int, int], float]:
        samples = Samples(job(range(SAMPLES), noisy), status(), -1)
        return {key: samples.element(*key, StageTimer())["scale"] for key in order}

    keys = [(epoch, index) for epoch in range(2) for index in range(3)]
    assert random_numbers(keys) == random_numbers(keys[::-1])
    assert len(set(random_numbers(keys).values())) == 6


def test_a_bad_sample_is_an_error_with_its_place() -> None:
    report = failure(lambda: elements(make(Squares(SAMPLES), fail_at(16)), [3, 4]))
    assert (report.index, report.where, report.kind) == (4, "squares.txt, line 5 at byte 32", "ValueError")
    assert report.error == "sample 16 is rotten"
    assert "in transform" in report.traceback


def test_a_bad_sample_is_dropped() -> None:
    found, bad = elements(make(range(SAMPLES), fail_at(2, 5), "drop"), range(SAMPLES))
    assert [int(element[0]) for element in found] == [0, 1, 3, 4, 6, 7, 8, 9]
    assert [report.index for report in bad] == [2, 5]


def test_a_bad_sample_is_replaced_by_the_one_that_the_plan_says() -> None:
    first, second = (PLAN.replacement(1, 2, attempt) for attempt in (1, 2))
    found, bad = elements(make(range(SAMPLES), fail_at(2), "replace"), [2], epoch=1)
    assert ([int(element[0]) for element in found], [report.index for report in bad]) == ([first], [2])
    found, bad = elements(make(range(SAMPLES), fail_at(2, first), "replace"), [2], epoch=1)
    assert ([int(element[0]) for element in found], [report.index for report in bad]) == ([second], [2])


def test_a_source_without_a_good_sample_ends() -> None:
    report = failure(lambda: elements(make(range(SAMPLES), fail_at(*range(SAMPLES)), "replace"), [2]))
    assert report.kind == "ValueError"


@pytest.mark.parametrize("exception", [StopIteration, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_whatever_user_code_raises_costs_its_sample_alone(exception: type[BaseException]) -> None:
    def transform(sample: int) -> int:
        if sample == 5:
            raise exception("stop here")
        return sample

    found, bad = elements(make(range(SAMPLES), transform, "drop"), range(SAMPLES))
    assert found == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert [(report.kind, report.error) for report in bad] == [(exception.__name__, "stop here")]


@pytest.mark.parametrize("policy", ["raise", "drop", "replace"])
def test_a_read_that_fails_for_a_reason_of_the_machine_is_tried_again(policy: str, pauses: list[float]) -> None:
    made = make(FlakySource(range(SAMPLES), failures=len(RETRY_PAUSES_S), bad=[4]), identity, policy)
    before, timer = made._status.progress, StageTimer()
    assert elements(made, [3, 4], timer=timer) == ([3, 4], [])
    assert sum(pauses) == pytest.approx(sum(RETRY_PAUSES_S))
    assert made._status.progress - before >= len(pauses), "a worker that waits to try again is not one that hangs"
    assert timer.samples_read == 2 + len(RETRY_PAUSES_S)


@pytest.mark.parametrize("policy", ["raise", "drop", "replace"])
def test_a_machine_that_stays_broken_is_an_error_and_its_sample_never_skipped(policy: str) -> None:
    made = make(FlakySource(range(SAMPLES), failures=len(RETRY_PAUSES_S) + 1), identity, policy)
    report = failure(lambda: elements(made, [4]))
    assert (report.index, report.group, report.where) == (4, "environment", "flaky source, item 4")


def test_a_file_that_is_missing_is_bad_content_and_not_tried_again(pauses: list[float]) -> None:
    made = make(FlakySource(range(SAMPLES), failures=9, bad=[4], code=errno.ENOENT), identity, "drop")
    found, bad = elements(made, [3, 4])
    assert (found, [report.kind for report in bad], pauses) == ([3], ["FileNotFoundError"], [])


@pytest.mark.parametrize(("epoch", "found"), [(None, [3, 5]), (0, [3, 5]), (1, [3, 4, 5])])
def test_a_condemned_sample_is_not_touched_in_the_epochs_of_its_sentence(epoch: int | None, found: list[int]) -> None:
    made = make(range(SAMPLES), identity, "drop")
    made.condemn(Condemn(sample_index=4, epoch=epoch, status=-signal.SIGSEGV))
    delivered, bad = elements(made, [3, 4, 5])
    assert delivered == found
    assert [(report.index, report.group) for report in bad] == [(4, "crash")] * (3 - len(found))


def test_a_sample_condemned_for_hanging_is_a_stall() -> None:
    made = make(range(SAMPLES), identity)
    made.condemn(Condemn(sample_index=4, epoch=None, status=sample_report.STALLED))
    assert failure(lambda: elements(made, [4])).group == "stall"


def test_a_where_that_raises_spoils_only_its_text() -> None:
    class Source(Squares):
        def where(self, index: int) -> str:
            raise SystemExit("no idea")

    assert make(Source(SAMPLES), identity)._samples.where(1) == "where() raised no idea"
    assert make(np.arange(3), identity)._samples.where(1) == ""
