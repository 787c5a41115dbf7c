"""Workers that do not die of SIGKILL, as in an endless read of a broken disk."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from mploader import Loader, StallError
from mploader.engine.supervisor import failure_handler, supervisor, worker_process
from mploader.testing import faults
from tests.faults.streams import make_loader, plain, read


@pytest.fixture
def let_die(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Makes workers immortal, until the function is called."""
    monkeypatch.setattr(supervisor, "TICK_S", 0.05)
    monkeypatch.setattr(failure_handler, "STACKS_S", 0.05)
    monkeypatch.setattr(failure_handler, "UNKILLABLE_S", 0.3)
    kill, spared = worker_process.WorkerProcess.kill, set[int]()

    def ignored(self: worker_process.WorkerProcess) -> None:
        self.killed_s = self.killed_s or time.monotonic()
        spared.add(self.pid)

    def let_die() -> None:
        monkeypatch.setattr(worker_process.WorkerProcess, "kill", kill)
        while spared:
            with suppress(OSError):
                os.kill(spared.pop(), signal.SIGKILL)

    monkeypatch.setattr(worker_process.WorkerProcess, "kill", ignored)
    yield let_die
    pids = sorted(spared)
    let_die()
    for pid in pids:
        with suppress(ChildProcessError):  # a pool that has failed meanwhile does not collect them any more
            os.waitpid(pid, 0)


def stop_at(*samples: int) -> Callable[[int], int]:
    def transform(sample: int) -> int:
        if sample in samples:
            os.kill(os.getpid(), signal.SIGSTOP)
        return sample

    return transform


@pytest.mark.usefixtures("let_die")
def test_it_costs_its_slots_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with faults("mid decode:5:STOP"):
        loader = make_loader(transform=plain, num_workers=1, stall_timeout=1)
    assert not read(loader).missing
    assert "does not die of SIGKILL" in caplog.text


def test_a_sample_that_hangs_in_the_kernel_is_condemned_once(let_die: Callable[[], None]) -> None:
    loader = Loader(range(60), stop_at(20), batch_size=4, num_workers=1, stall_timeout=0.4, on_bad_sample="drop")
    wanted = [number for number in range(60) if number != 20]
    assert [int(number) for batch in loader for number in batch] == wanted
    let_die()
    assert [int(number) for batch in loader for number in batch] == wanted
    assert [bad.index for bad in loader.bad_samples()] == [20, 20]
    assert loader.statistics().restarts == 3
    loader.close()


@pytest.mark.usefixtures("let_die")
def test_a_first_sample_that_hangs_in_the_kernel_is_passed_over() -> None:
    loader = Loader(range(60), stop_at(0), batch_size=4, num_workers=1, stall_timeout=0.4, on_bad_sample="drop")
    assert [int(number) for batch in loader for number in batch] == list(range(1, 60))


@pytest.mark.usefixtures("let_die")
def test_a_consumer_that_holds_the_last_slots_and_waits_is_told() -> None:
    loader = Loader(range(60), stop_at(4), batch_size=4, num_workers=1, stall_timeout=0.4, memory=140_000)
    run = iter(loader)
    held = next(run)
    with pytest.raises(StallError, match="no slot is left to work with"):
        next(run)
    assert held.tolist() == [0, 1, 2, 3]
