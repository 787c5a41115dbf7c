"""The stress test, run as a user runs it, and its parts where a fault must not go unseen."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from mploader.plan import Plan, SampleRandom

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "examples"))

from stress.report import growth  # noqa: E402
from stress.workload import Checker, Indexed, Work  # noqa: E402


@pytest.mark.slow
def test_a_quick_run_passes_and_leaves_its_reports(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "examples/stress_test.py", "--quick", "--workers", "2", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["ok"]
    assert {check["name"]: check["ok"] for check in facts["checks"]}["no sample is lost"]
    assert facts["incidents"]
    assert len(facts["samples"]) > 5
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "http" not in page  # it needs nothing but itself


def test_a_wrong_option_is_refused() -> None:
    command = [sys.executable, "examples/stress_test.py", "--kill-rate", "often"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True).returncode == 2


class Stream:
    """The batches of a small loader, made in this process."""

    def __init__(self) -> None:
        self.work = Work(size=8, bad_rate=0.1)
        self.plan = Plan(100, 10, seed=3, shuffle=True)
        self.source = Indexed(None, 100)
        self.checker = Checker(self.plan, self.work, is_synthetic=True)

    def batch(self, epoch: int, position: int) -> dict[str, Any]:
        random = SampleRandom(self.plan.seed)
        indices = [int(index) for index in self.plan.batch(epoch, position)]
        elements = [
            self.work(self.source[index], random(epoch, index)) for index in indices if not self.work.is_bad(index)
        ]
        return {key: np.array([element[key] for element in elements]) for key in elements[0]}

    def faults(self) -> tuple[int, int, int]:
        return self.checker.lost, self.checker.duplicated, self.checker.corrupted


def test_the_check_accepts_what_the_plan_says() -> None:
    stream = Stream()
    for epoch, position in ((0, 0), (0, 9), (1, 4)):
        stream.checker.check(epoch, position, stream.batch(epoch, position))
    assert stream.faults() == (0, 0, 0)
    assert stream.checker.samples + stream.checker.bad == 30


def test_the_check_sees_a_sample_that_is_lost_and_one_that_comes_twice() -> None:
    stream = Stream()
    batch = stream.batch(0, 0)
    for values in batch.values():
        values[2] = values[1]
    stream.checker.check(0, 0, batch)
    assert stream.faults() == (1, 1, 0)
    assert stream.checker.first_fault.startswith("epoch 0, batch 0: samples")


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
    assert stream.checker.lost > 0
    assert stream.checker.duplicated > 0


def test_growth_is_seen_and_the_start_is_not() -> None:
    assert growth([0.0, 50, 90, 100] + [100.0] * 20) == 0
    assert growth([float(value) for value in range(40)]) == pytest.approx(20, abs=2)
