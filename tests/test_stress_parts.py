"""The parts of the stress test that must not miss a fault: checker, conditions, faults and live view."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mploader import Loader
from mploader.monitoring.statistics import Statistics
from mploader.sampling.plan import Plan
from mploader.sampling.rng import SampleRandom
from mploader.sources import open_source

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "examples"))

from stress import chaos as chaos_module  # noqa: E402
from stress import conditions  # noqa: E402
from stress.background import Background  # noqa: E402
from stress.chaos import Chaos, Incident, Workers  # noqa: E402
from stress.checker import Checker, Tally  # noqa: E402
from stress.live import view  # noqa: E402
from stress.report import growth  # noqa: E402
from stress.sampling import Progress, Sample  # noqa: E402
from stress.workload import Indexed, Work  # noqa: E402


class Stream:
    """The batches of a small loader, made in this process."""

    def __init__(self, source: Indexed | None = None) -> None:
        self.source = source or Indexed(None, 100)
        self.work = Work(size=8, bad_rate=0.1)
        self.plan = Plan(len(self.source), 10, seed=3, shuffle=True)
        self.left_out: set[int] = set()
        self.tally = Tally()
        self.checker = Checker(self.plan, self.source, self.work, lambda: self.left_out, self.tally)

    def batch(self, epoch: int, batch_index: int) -> dict[str, Any]:
        random = SampleRandom(self.plan.seed)
        elements = []
        for index in map(int, self.plan.batch(epoch, batch_index)):
            try:
                elements.append(self.work(self.source[index], random(epoch, index)))
            except Exception:
                self.left_out.add(index)
        return {key: np.array([element[key] for element in elements]) for key in elements[0]}

    def faults(self) -> tuple[int, int, int]:
        return self.tally.lost, self.tally.duplicated, self.tally.corrupted


def test_the_check_accepts_what_the_plan_says() -> None:
    stream = Stream()
    for epoch, batch_index in ((0, 0), (0, 9), (1, 4)):
        stream.checker.check(epoch, batch_index, stream.batch(epoch, batch_index))
    assert stream.faults() == (0, 0, 0)
    assert stream.tally.samples + stream.tally.bad == 30


def test_the_check_sees_a_sample_that_is_lost_and_one_that_comes_twice() -> None:
    stream = Stream()
    batch = stream.batch(0, 0)
    for values in batch.values():
        values[2] = values[1]
    stream.checker.check(0, 0, batch)
    assert stream.faults() == (1, 1, 0)
    assert stream.tally.first_fault.startswith("epoch 0, batch 0: samples")


@pytest.mark.parametrize("key", ["image", "draw", "checksum"])
def test_the_check_sees_a_single_wrong_value(key: str) -> None:
    stream = Stream()
    batch = stream.batch(0, 0)
    batch[key].reshape(len(batch[key]), -1)[3, 0] ^= 1
    stream.checker.check(0, 0, batch)
    assert stream.faults() == (0, 0, 1)


def test_the_check_sees_the_batch_of_another_epoch() -> None:
    stream = Stream()
    stream.checker.check(0, 0, stream.batch(1, 0))
    assert stream.tally.lost > 0
    assert stream.tally.duplicated > 0


def test_the_check_sees_that_an_epoch_ends_early() -> None:
    stream = Stream()
    for batch_index in range(3):
        stream.checker.check(0, batch_index, stream.batch(0, batch_index))
    stream.checker.end_epoch(0, 3)
    assert stream.faults() == (sum(not stream.work.is_bad(index) for index in stream.plan.batches(0, 3, 10)), 0, 0)
    assert stream.tally.first_fault == "epoch 0: ended after 3 of 10 batches"


def test_the_check_sees_an_epoch_that_goes_on() -> None:
    stream = Stream()
    stream.checker.check(0, 10, batch := stream.batch(0, 4))
    assert stream.faults() == (0, len(batch["index"]), 0)


def test_the_check_sees_samples_in_another_order() -> None:
    stream = Stream()
    stream.checker.check(0, 0, {key: values[::-1] for key, values in stream.batch(0, 0).items()})
    assert stream.faults() == (0, 0, len(stream.batch(0, 0)["index"]) // 2 * 2)


@pytest.fixture
def pictures(tmp_path: pathlib.Path) -> pathlib.Path:
    colours = np.random.default_rng(0)
    for number in range(30):
        (tmp_path / "class").mkdir(exist_ok=True)
        Image.fromarray(colours.integers(0, 256, (12, 12, 3), np.uint8)).save(tmp_path / "class" / f"{number:02}.jpg")
    return tmp_path


def test_a_file_that_is_really_bad_is_bad_and_not_lost(pictures: pathlib.Path) -> None:
    (pictures / "class" / "07.jpg").write_bytes(b"no picture")
    stream = Stream(Indexed(open_source(pictures), 30))
    for batch_index in range(3):
        stream.checker.check(0, batch_index, stream.batch(0, batch_index))
    assert stream.faults() == (0, 0, 0)
    assert stream.tally.samples + stream.tally.bad == 30
    (bad,) = stream.checker.unreadable()
    assert not stream.work.is_bad(bad)
    assert stream.checker.wrongly_left_out() == []


def test_a_good_file_that_is_left_out_is_lost(pictures: pathlib.Path) -> None:
    stream = Stream(Indexed(open_source(pictures), 30))
    batch = stream.batch(0, 0)
    index = int(batch["index"][-1])
    stream.left_out.add(index)
    stream.checker.check(0, 0, {key: values[:-1] for key, values in batch.items()})
    assert stream.faults() == (1, 0, 0)
    assert stream.checker.wrongly_left_out() == [index]


def test_a_picture_is_compared_with_its_file_and_not_with_its_checksum_alone(pictures: pathlib.Path) -> None:
    stream = Stream(Indexed(open_source(pictures), 30))
    batch = stream.batch(0, 0)
    stream.checker.check(0, 0, batch)
    assert stream.faults() == (0, 0, 0)
    # Pictures of other samples, with checksums that belong to them.
    for key in ("image", "checksum"):
        batch[key] = np.roll(batch[key], 1, axis=0)
    stream.checker.check(0, 0, batch)
    assert stream.faults() == (0, 0, 1)


def counted(batches: int, samples: int, bad: int) -> Statistics:
    return Statistics(batches=batches, samples=samples, bad_samples=bad)


def test_statistics_have_to_agree_exactly() -> None:
    tally = Tally(batches=5, samples=48, bad=2)
    assert conditions.statistics_agree(counted(5, 48, 2), tally, False).ok
    for other in (counted(6, 58, 2), counted(4, 48, 2), counted(5, 49, 2), counted(5, 48, 1)):
        assert not conditions.statistics_agree(other, tally, False).ok
    assert "TensorFlow" not in conditions.statistics_agree(counted(5, 48, 2), tally, True).detail
    ahead = conditions.statistics_agree(counted(8, 78, 2), tally, True)
    assert ahead.ok
    assert ahead.detail.endswith("(5, 48, 2): TensorFlow holds the rest in 3 batches that are not consumed yet")
    assert not conditions.statistics_agree(counted(50, 480, 2), tally, True).ok


def look(**values: Any) -> Sample:
    nothing = dict.fromkeys((field.name for field in dataclasses.fields(Sample)), 0)
    return Sample(**{**nothing, **values})


def outcomes(checks: list[Any]) -> list[bool]:
    return [check.ok for check in checks]


def test_too_few_looks_tell_nothing() -> None:
    assert outcomes(conditions.resources([look()] * 7, [], 1)) == [None, None]
    assert outcomes(conditions.resources([look()] * 8, [], 1)) == [True, True]


def test_what_grows_is_seen() -> None:
    samples = [look(trainer_pss=number * 2**23, descriptors=number) for number in range(40)]
    assert outcomes(conditions.resources(samples, [], 1)) == [False, False]


def test_reports_of_bad_samples_are_no_leak() -> None:
    with Loader(range(100), fail_on_odd, batch_size=10, num_workers=1, on_bad_sample="drop") as loader:
        list(loader)
        reported = loader.bad_samples()
    each = sum(map(conditions.report_bytes, reported)) / len(reported)
    samples = [look(trainer_pss=int(number * 5_000 * each), bad_samples=number * 5_000) for number in range(40)]
    assert growth([sample.trainer_pss for sample in samples]) > conditions.GROWTH_BYTES
    assert outcomes(conditions.resources(samples, reported, 1)) == [True, True]


def fail_on_odd(index: int) -> int:
    if index % 2:
        raise ValueError(f"{index} is odd")
    return index


class Dies(Background):
    def _run(self) -> None:
        raise RuntimeError("the thread dies")


def test_threads_that_died_and_workers_that_were_not_replaced_are_told() -> None:
    chaos, sampler = make_chaos(), Dies("sampler")
    chaos.incidents += [Incident(1.0, "kill", 7), Incident(1.1, "kill", 7), Incident(2.0, "stall", 8),
                        Incident(3.0, "kill", 9)]  # fmt: skip
    assert outcomes(conditions.faults(chaos, sampler, restarts=2)) == [True, True, True, None]
    with sampler:
        pass
    checks = conditions.faults(chaos, sampler, restarts=1)
    assert outcomes(checks) == [False, True, False, None]
    assert "the thread dies" in checks[0].detail


def make_chaos(kills_per_minute: float = 0.0, stalls_per_minute: float = 0.0) -> Chaos:
    """One that looks at nothing by itself, for a ``stall_timeout`` of 2 s."""
    return Chaos(lambda: Workers([], [], 0), kills_per_minute, stalls_per_minute, 2.0, seed=0, start_s=0.0)


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """The signals that were sent, to nobody."""
    sent: list[tuple[int, str]] = []
    monkeypatch.setattr(chaos_module.os, "kill", lambda pid, number: sent.append((pid, number.name)))
    return sent


def test_a_worker_that_starts_and_the_last_one_that_runs_are_not_stopped(signals: list[tuple[int, str]]) -> None:
    chaos = make_chaos(stalls_per_minute=6_000)
    chaos.strike(Workers([11, 12, 13], [5, 0, 0], 3), 1.0)
    chaos.strike(Workers([11, 12, 13], [5, 1, 0], 3), 2.0)  # only 12 has made a batch, since it was seen first
    assert signals == []
    chaos.strike(Workers([11, 12], [6, 1, 0], 3), 3.0)  # one is missing: nobody knows whose batches these are
    assert signals == []
    chaos.strike(Workers([11, 12, 13], [6, 1, 0], 3), 4.0)
    chaos.strike(Workers([11, 12, 13], [6, 1, 0], 3), 6.0)
    assert [name for _, name in signals] == ["SIGSTOP"]
    assert signals[0][0] in (11, 12)


def test_the_only_worker_is_stopped_once_it_has_made_a_batch(signals: list[tuple[int, str]]) -> None:
    chaos = make_chaos(stalls_per_minute=1)
    chaos.strike(Workers([11], [0], 1), 1.0)
    chaos.strike(Workers([11], [1], 1), 1.1)
    assert signals == [(11, "SIGSTOP")]


def stopped(signals: list[tuple[int, str]], kills_per_minute: float = 0.0) -> Chaos:
    """A chaos that has stopped the only worker, 11, at 1 s."""
    chaos = make_chaos(kills_per_minute, stalls_per_minute=0.001)
    chaos._due_s["kill"] += 1.0
    chaos.note(Workers([11], [0], 1), 0.9)
    chaos.strike(Workers([11], [1], 1), 1.0)
    assert signals == [(11, "SIGSTOP")]
    return chaos


def test_a_stopped_worker_is_not_killed_before_the_loader_had_its_time(signals: list[tuple[int, str]]) -> None:
    chaos = stopped(signals, kills_per_minute=6_000)
    chaos.strike(Workers([11], [1], 1), 11.9)
    assert signals[1:] == []
    chaos.strike(Workers([11], [1], 1), 12.1)
    assert signals[1:] == [(11, "SIGKILL")]
    assert (chaos.recovered, chaos.overdue, chaos.killed) == (0, 1, 1)
    assert outcomes(conditions.faults(chaos, chaos, restarts=1)) == [True, True, True, False]


def test_a_stall_counts_once_the_loader_has_recovered_from_it(signals: list[tuple[int, str]]) -> None:
    chaos = stopped(signals)
    assert chaos.awaits_replacement
    assert outcomes(conditions.faults(chaos, chaos, restarts=0)) == [True, True, True, None]
    chaos.note(Workers([], [1], 1), 3.5)
    assert not chaos.awaits_replacement
    assert chaos.recovered == 1
    assert outcomes(conditions.faults(chaos, chaos, restarts=1)) == [True, True, True, True]


def test_a_stopped_worker_without_work_need_not_be_replaced(signals: list[tuple[int, str]]) -> None:
    chaos = stopped(signals)
    chaos.note(Workers([11], [1], 0), 3.5)
    assert not chaos.awaits_replacement
    chaos.note(Workers([11], [1], 1), 20.0)
    assert (chaos.recovered, chaos.overdue) == (0, 0)
    assert outcomes(conditions.faults(chaos, chaos, restarts=0)) == [True, True, True, None]


def test_the_live_view_shows_a_wait_that_lasts() -> None:
    progress = Progress()
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with progress.waiting("batch 3 of epoch 0"):
        progress._asked_s -= 60
        console.print(view("test", 0.0, [look()], Tally(), [], progress, 4))
    shown = console.export_text()
    assert "waiting 60." in shown
    assert "for batch 3 of epoch 0" in shown
    assert "4 workers replaced" in shown


def test_a_small_terminal_shows_what_matters_and_what_has_room() -> None:
    samples = [look(batches_per_s=float(number)) for number in range(100)]
    incidents = [Incident(1.0, "kill", 7)] * 13
    shown = {}
    for width, height in ((80, 24), (40, 10), (40, 7)):
        console = Console(width=width, height=height, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(view("test", 12.0, samples, Tally(1_234, 12_345, bad=24), incidents, Progress(), 11))
        shown[height] = console.export_text().splitlines()
        words = " ".join(" ".join(line.strip("│ ") for line in shown[height]).split())
        assert "1,234 batches, 12,345 samples checked: 0 lost, 0 duplicated, 0 corrupted" in words
        assert "13 kills, 0 stalls, 11 workers replaced; 12 s left" in words
        assert ("batches/s" in words, "descriptors" in words) == (height > 7, height > 10)
    assert (len(shown[24]), len(shown[10])) == (14, 10)
    assert not set("▁█") & set("".join(shown[10]))  # there is room for the number alone
    (rate,) = (line for line in shown[24] if "batches/s" in line)
    assert rate.rstrip("│ ").endswith("█")  # what was last, however little room there is


def test_growth_is_seen_and_the_start_is_not() -> None:
    assert growth([0.0, 50, 90, 100] + [100.0] * 20) == 0
    assert growth([float(value) for value in range(40)]) == pytest.approx(20, abs=2)
