"""The stress test, run as a user runs it, and its parts where a fault must not go unseen."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mploader import Loader, WorkerError
from mploader.monitoring.statistics import Statistics
from mploader.sampling.plan import Plan, SampleRandom
from mploader.sources import open_source

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "examples"))

import stress_test  # noqa: E402
from stress import chaos as chaos_module  # noqa: E402
from stress import conditions, sampling  # noqa: E402
from stress.background import Background  # noqa: E402
from stress.chaos import Chaos, Incident, Workers  # noqa: E402
from stress.checker import Checker, Tally  # noqa: E402
from stress.live import view  # noqa: E402
from stress.report import FEWEST_VALUES, Check, Report, growth  # noqa: E402
from stress.sampling import Progress, Sample  # noqa: E402
from stress.workload import Indexed, Work  # noqa: E402


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """The stress test silences the loader's log; not for the tests behind this one."""
    log = logging.getLogger("mploader")
    before = log.level
    yield
    log.setLevel(before)


@pytest.mark.slow
def test_a_quick_run_passes_and_leaves_its_reports(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "examples/stress_test.py", "--quick", "--workers", "2", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["ok"]
    checks = {check["name"]: check["ok"] for check in facts["checks"]}
    assert checks["no sample is lost"]
    assert checks["stopped workers are replaced"]
    assert facts["incidents"]
    assert len(facts["samples"]) > 5
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "http" not in page  # it needs nothing but itself


@pytest.mark.parametrize(
    ("option", "got", "wanted"),
    [
        ("--minutes", "0", "a number above 0"),
        ("--minutes", "-1", "a number above 0"),
        ("--minutes", "inf", "a number above 0"),
        ("--workers", "0", "a whole number of at least 1"),
        ("--workers", "1.5", "a whole number of at least 1"),
        ("--batch-size", "0", "a whole number of at least 1"),
        ("--image-size", "0", "a whole number of at least 1"),
        ("--kill-rate", "-5", "a number of at least 0"),
        ("--kill-rate", "nan", "a number of at least 0"),
        ("--stall-rate", "-1", "a number of at least 0"),
        ("--bad-rate", "2", "a number from 0 to 1"),
        ("--speed", "-1", "a number of at least 0"),
        ("--stall-timeout", "0", "a number above 0"),
        ("--pause-limit", "0", "a number above 0"),
        ("--seed", "-1", "a whole number of at least 0"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(
    option: str, got: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        stress_test.parse([option, got])
    assert ended.value.code == 2
    assert f"argument {option}: {got!r} is not {wanted}\n" in capsys.readouterr().err


def test_a_size_of_memory_that_cannot_be_meant_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        stress_test.parse(["--memory", "much"])
    assert "argument --memory: memory='much'" in capsys.readouterr().err


def test_reports_that_cannot_be_written_are_told_at_the_start(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stress_test, "StressTest", None)  # nothing may be run
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "report.html").mkdir(parents=True)
    for out in ("/proc/nowhere/reports", str(tmp_path / "file"), str(tmp_path / "folder")):
        assert stress_test.main(["--out", out]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"stress_test.py: error: --out {out}: reports cannot be written there: ")


def test_a_wrong_option_is_refused() -> None:
    command = [sys.executable, "examples/stress_test.py", "--kill-rate", "often"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True).returncode == 2


class Stream:
    """The batches of a small loader, made in this process."""

    def __init__(self, source: Indexed | None = None) -> None:
        self.source = source or Indexed(None, 100)
        self.work = Work(size=8, bad_rate=0.1)
        self.plan = Plan(len(self.source), 10, seed=3, shuffle=True)
        self.left_out: set[int] = set()
        self.tally = Tally()
        self.checker = Checker(self.plan, self.source, self.work, lambda: self.left_out, self.tally)

    def batch(self, epoch: int, position: int) -> dict[str, Any]:
        random = SampleRandom(self.plan.seed)
        elements = []
        for index in map(int, self.plan.batch(epoch, position)):
            try:
                elements.append(self.work(self.source[index], random(epoch, index)))
            except Exception:
                self.left_out.add(index)
        return {key: np.array([element[key] for element in elements]) for key in elements[0]}

    def faults(self) -> tuple[int, int, int]:
        return self.tally.lost, self.tally.duplicated, self.tally.corrupted


def test_the_check_accepts_what_the_plan_says() -> None:
    stream = Stream()
    for epoch, position in ((0, 0), (0, 9), (1, 4)):
        stream.checker.check(epoch, position, stream.batch(epoch, position))
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
    for position in range(3):
        stream.checker.check(0, position, stream.batch(0, position))
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
    for position in range(3):
        stream.checker.check(0, position, stream.batch(0, position))
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
    return Statistics(batches, samples, 0, 0.0, 0, 0, 0, 0, bad, ())


def test_statistics_have_to_agree_exactly() -> None:
    tally = Tally(batches=5, samples=48, bad=2)
    assert conditions.statistics_agree(counted(5, 48, 2), tally, False).ok
    for other in (counted(6, 58, 2), counted(4, 48, 2), counted(5, 49, 2), counted(5, 48, 1)):
        assert not conditions.statistics_agree(other, tally, False).ok
    assert "TensorFlow" not in conditions.statistics_agree(counted(5, 48, 2), tally, True).detail
    ahead = conditions.statistics_agree(counted(8, 78, 2), tally, True)
    assert ahead.ok
    assert ahead.detail.endswith("(5, 48, 2): TensorFlow holds what is more, in batches that were not consumed yet (3)")
    assert not conditions.statistics_agree(counted(50, 480, 2), tally, True).ok


def look(**values: Any) -> Sample:
    nothing = dict.fromkeys((field.name for field in dataclasses.fields(Sample)), 0)
    return Sample(**{**nothing, **values})


def verdicts(checks: list[Any]) -> list[bool]:
    return [check.ok for check in checks]


def test_too_few_looks_tell_nothing() -> None:
    assert verdicts(conditions.resources([look()] * 7, [], 1)) == [None, None]
    assert verdicts(conditions.resources([look()] * 8, [], 1)) == [True, True]


def test_what_grows_is_seen() -> None:
    samples = [look(trainer_pss=number * 2**23, descriptors=number) for number in range(40)]
    assert verdicts(conditions.resources(samples, [], 1)) == [False, False]


def test_reports_of_bad_samples_are_no_leak() -> None:
    with Loader(range(100), fail_on_odd, batch_size=10, num_workers=1, on_bad_sample="drop") as loader:
        list(loader)
        reported = loader.bad_samples()
    each = sum(map(conditions.report_bytes, reported)) / len(reported)
    samples = [look(trainer_pss=int(number * 5_000 * each), bad_samples=number * 5_000) for number in range(40)]
    assert growth([sample.trainer_pss for sample in samples]) > conditions.GROWTH_BYTES
    assert verdicts(conditions.resources(samples, reported, 1)) == [True, True]


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
    assert verdicts(conditions.faults(chaos, sampler, restarts=2)) == [True, True, True, None]
    with sampler:
        pass
    checks = conditions.faults(chaos, sampler, restarts=1)
    assert verdicts(checks) == [False, True, False, None]
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
    assert verdicts(conditions.faults(chaos, chaos, restarts=1)) == [True, True, True, False]


def test_a_stall_counts_once_the_loader_has_recovered_from_it(signals: list[tuple[int, str]]) -> None:
    chaos = stopped(signals)
    assert chaos.awaits_replacement
    assert verdicts(conditions.faults(chaos, chaos, restarts=0)) == [True, True, True, None]
    chaos.note(Workers([], [1], 1), 3.5)
    assert not chaos.awaits_replacement
    assert chaos.recovered == 1
    assert verdicts(conditions.faults(chaos, chaos, restarts=1)) == [True, True, True, True]


def test_a_stopped_worker_without_work_need_not_be_replaced(signals: list[tuple[int, str]]) -> None:
    chaos = stopped(signals)
    chaos.note(Workers([11], [1], 0), 3.5)
    assert not chaos.awaits_replacement
    chaos.note(Workers([11], [1], 1), 20.0)
    assert (chaos.recovered, chaos.overdue) == (0, 0)
    assert verdicts(conditions.faults(chaos, chaos, restarts=0)) == [True, True, True, None]


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


def test_checks_are_wrapped_at_words_and_say_what_was_not_tested(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [Check("batches", ok, "seventy characters " * 9) for ok in (True, False, None)]
    report = Report({}, 1.0, checks, [], [], "", "")
    stress_test.conclude(report, tmp_path, Console(width=80))
    shown = capsys.readouterr().out.partition("Reports:")[0]
    assert set(shown.split()) == {"passed", "FAILED", "not", "tested", "batches:", "seventy", "characters"}
    assert max(map(len, shown.splitlines())) <= 80
    page = (tmp_path / "report.html").read_text()
    assert "some checks FAILED, 1 not tested" in page
    assert page.count("<td class=") == 3
    facts = json.loads((tmp_path / "report.json").read_text())
    assert [check["ok"] for check in facts["checks"]] == [True, False, None]
    assert Report({}, 1.0, [checks[0], checks[2]], [], [], "", "").ok


ENDLESS = ["--minutes", "60", "--workers", "1", "--kill-rate", "0", "--stall-rate", "0", "--image-size", "8"]
"""Options of a run that does not end by the clock, however slow or fast the machine is."""

Batches = Callable[[Any, stress_test.StressTest], Iterator[Any]]


def use(batches: Batches) -> None:
    """Lets the stress test iterate over something else than a loader's epoch."""

    class Known(stress_test.StressTest):
        def _load(self, running: stress_test.Running) -> None:
            running.loader.test = self
            super()._load(running)

    class Changed(Loader):
        def __iter__(self) -> Iterator[Any]:
            return batches(self, self.test)

    stress_test.StressTest, stress_test.Loader = Known, Changed


def stress(
    monkeypatch: pytest.MonkeyPatch, out: pathlib.Path, batches: Batches, *options: str
) -> tuple[int, dict[str, str], dict[str, str], dict[str, Any]]:
    """Runs the test with other batches.

    Returns its exit status, the details of the checks that passed and of those that failed, and the report.
    """
    monkeypatch.setattr(stress_test, "StressTest", stress_test.StressTest)  # so that both are put back
    monkeypatch.setattr(stress_test, "Loader", Loader)
    monkeypatch.setattr(sampling, "INTERVAL_S", 0.01)
    use(batches)
    code = stress_test.main([*ENDLESS, "--out", str(out), *options])
    report = json.loads((out / "report.json").read_text())
    assert "<svg" in (out / "report.html").read_text()
    passed, failed = (
        {check["name"]: check["detail"] for check in report["checks"] if check["ok"] is ok} for ok in (True, False)
    )
    return code, passed, failed, report


def first_three(loader: Loader, test: stress_test.StressTest) -> Iterator[Any]:
    """An epoch that ends early; the time is over once there are enough looks at the processes to tell of growth."""
    if len(test._samples) >= FEWEST_VALUES:
        test._end_s = 0.0
    yield from itertools.islice(Loader.__iter__(loader), 3)


def test_short_epochs_fail_the_test(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    code, _, failed, report = stress(monkeypatch, tmp_path, first_three)
    assert code == 1
    assert not report["ok"]
    assert list(failed) == ["no sample is lost"]
    assert "epoch 0: ended after 3 of 625 batches" in failed["no sample is lost"]


def kills_at_the_end(loader: Loader, test: stress_test.StressTest) -> Iterator[Any]:
    """An epoch in which a worker is killed behind the last look at the processes."""
    yield from first_three(loader, test)
    running = test._running
    assert running is not None
    running.sampler.end()
    (pid,) = loader.worker_pids
    os.kill(pid, signal.SIGKILL)
    running.chaos.incidents.append(Incident(1.0, "kill", pid))
    test._end_s = 0.0


def test_the_last_view_shows_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, passed, _, _ = stress(monkeypatch, tmp_path, kills_at_the_end)
    assert passed["killed workers are replaced"] == "1 for 1 killed"
    assert "1 kills, 0 stalls, 1 workers replaced; 0 s left" in capsys.readouterr().out


def nothing(_: Loader, test: stress_test.StressTest) -> Iterator[Any]:
    test._end_s = 0.0
    return iter(())


def test_a_loader_without_batches_ends_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    code, _, failed, _ = stress(monkeypatch, tmp_path, nothing)
    assert code == 1
    assert {"batches were delivered", "no sample is lost"} <= set(failed)


def fails(loader: Loader, test: stress_test.StressTest) -> Iterator[Any]:
    yield from first_three(loader, test)
    loader._core.pool.fail(WorkerError("no worker can be kept alive"))
    yield from first_three(loader, test)


def test_an_error_of_the_loader_is_a_failed_check(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    code, passed, failed, report = stress(monkeypatch, tmp_path, fails)
    assert code == 1
    assert failed["the test ran to its end"] == "WorkerError: no worker can be kept alive"
    assert passed["batches were delivered"] == "3"
    assert report["statistics"].startswith("3 batches")
    assert "WorkerError" in report["stacks"]


def test_a_loader_that_cannot_be_made_is_a_failed_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    code, _, failed, _ = stress(monkeypatch, tmp_path, first_three, "--memory", "1KiB")
    assert code == 1
    assert failed["the test ran to its end"].startswith("ResourceError")


def interrupted(loader: Loader, test: stress_test.StressTest) -> Iterator[Any]:
    yield from first_three(loader, test)
    sampling.INTERVAL_S = 60  # no more than one look from here on
    test._samples.clear()
    raise KeyboardInterrupt


def test_ctrl_c_leaves_a_report_of_what_was_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    code, passed, failed, report = stress(monkeypatch, tmp_path, interrupted)
    assert code == 1
    assert failed == {"the test ran to its end": "interrupted by Ctrl-C"}
    states = {check["name"]: check["ok"] for check in report["checks"]}
    assert states["the trainer's memory is flat"] is states["descriptors are flat"] is None
    options = report["options"]
    assert (options["minutes"], options["memory"], options["tensorflow"]) == (60.0, None, False)
    assert options["out"] == str(tmp_path)
    assert passed["batches were delivered"] == "3"


def hangs(loader: Loader, test: stress_test.StressTest) -> Iterator[Any]:
    yield from first_three(loader, test)
    test.progress._asked_s -= 3600  # so long ago, as far as anybody can tell
    threading.Event().wait()


def hang(out: str) -> None:
    """The body of a process whose loader hangs at its fourth batch."""
    use(hangs)
    stress_test.main([*ENDLESS, "--pause-limit", "3000", "--out", out])


def test_a_hang_leaves_a_report_with_the_stacks(tmp_path: pathlib.Path) -> None:
    program = "import sys; from tests.test_stress import hang; hang(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    (ended, *others) = report["checks"]
    assert not ended["ok"]
    assert ended["detail"].endswith("for batch 3 of epoch 0")
    assert {check["name"]: check["detail"] for check in others}["batches were delivered"] == "3"
    assert "threading.Event().wait()" in report["stacks"]
    assert "threading.Event().wait()" in (tmp_path / "report.html").read_text()
    assert "thread 'MainThread' of the trainer" in done.stderr


def test_growth_is_seen_and_the_start_is_not() -> None:
    assert growth([0.0, 50, 90, 100] + [100.0] * 20) == 0
    assert growth([float(value) for value in range(40)]) == pytest.approx(20, abs=2)
