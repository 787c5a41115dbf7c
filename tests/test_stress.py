"""The stress test, run as a user runs it: the command line, whole runs, and their reports."""

from __future__ import annotations

import itertools
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.console import Console

from mploader import Loader, WorkerError

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "examples"))

import stress_test  # noqa: E402
from stress import sampling  # noqa: E402
from stress.chaos import Incident  # noqa: E402
from stress.report import FEWEST_VALUES, Check, Report  # noqa: E402


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
    ("option", "got", "expected"),
    [
        ("--minutes", "0", "a number > 0"),
        ("--minutes", "-1", "a number > 0"),
        ("--minutes", "inf", "a number > 0"),
        ("--workers", "0", "a whole number >= 1"),
        ("--workers", "1.5", "a whole number >= 1"),
        ("--batch-size", "0", "a whole number >= 1"),
        ("--image-size", "0", "a whole number >= 1"),
        ("--kill-rate", "-5", "a number >= 0"),
        ("--kill-rate", "nan", "a number >= 0"),
        ("--stall-rate", "-1", "a number >= 0"),
        ("--bad-rate", "2", "a number from 0 to 1"),
        ("--speed", "-1", "a number >= 0"),
        ("--stall-timeout", "0", "a number > 0"),
        ("--pause-limit", "0", "a number > 0"),
        ("--seed", "-1", "a whole number >= 0"),
    ],
)
def test_invalid_numbers_are_refused(
    option: str, got: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        stress_test.parse([option, got])
    assert ended.value.code == 2
    assert f"argument {option}: expected {expected}, got {got!r}\n" in capsys.readouterr().err


def test_an_invalid_size_of_memory_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        stress_test.parse(["--memory", "much"])
    assert "argument --memory: memory='much'" in capsys.readouterr().err


def test_reports_that_cannot_be_written_are_an_error_at_the_start(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stress_test, "StressTest", None)  # nothing may be run
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "report.html").mkdir(parents=True)
    for out in ("/proc/nowhere/reports", str(tmp_path / "file"), str(tmp_path / "folder")):
        assert stress_test.main(["--out", out]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"stress_test.py: error: --out {out}: cannot write the reports there: ")


def test_a_wrong_option_is_refused() -> None:
    command = [sys.executable, "examples/stress_test.py", "--kill-rate", "often"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True).returncode == 2


class NothingRun:
    """In the place of the test: it finds nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def run(self) -> Report:
        return Report({}, 1.0, [], [], [], "", "")


def test_reports_go_to_a_temporary_folder_unless_asked_for_elsewhere(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(stress_test, "StressTest", NothingRun)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    assert stress_test.main([]) == 0
    (folder,) = (tmp_path / "temporary").iterdir()
    assert {path.name for path in folder.iterdir()} == {"report.html", "report.json"}
    assert f"Reports: {folder}/report.html and {folder}/report.json\n" in capsys.readouterr().out
    assert list((tmp_path / "here").iterdir()) == []
    assert stress_test.main(["--out", "asked"]) == 0
    assert (tmp_path / "here" / "asked" / "report.html").exists()
    assert len(list((tmp_path / "temporary").iterdir())) == 1


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
    assert report["statistics"].startswith("delivered: 3 batches")
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
