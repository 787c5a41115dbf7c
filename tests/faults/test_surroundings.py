"""Odd surroundings: finalizers that call the loader, no standard streams, a supervisor thread that fails."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mploader
from mploader.engine.ipc.arena import Arena
from mploader.engine.scheduler import crash_policy
from mploader.engine.supervisor import failure_handler
from mploader.engine.supervisor.shared_state import PoolState
from mploader.testing import faults
from tests.conftest import REPOSITORY, kill_all
from tests.faults.streams import Faulty, make_loader, plain, read

Script = Callable[..., Any]


def test_close_where_the_lock_is_held_does_not_wait() -> None:
    """As a ``__del__`` does that the garbage collector runs inside the loader."""
    loader = make_loader(transform=plain)
    with loader._core.pool._state.lock:
        loader.close()
        loader.statistics()
    loader.close()
    assert not loader.worker_pids


def test_close_in_the_supervisor_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = threading.Event()

    def collect(self: PoolState, collect: Any = PoolState.collect) -> None:
        collect(self)
        if threading.current_thread().name == "mploader supervisor" and not closed.is_set():
            closed.set()
            loader.close()

    loader = make_loader(transform=plain)
    monkeypatch.setattr(PoolState, "collect", collect)
    with pytest.raises(mploader.ClosedError):
        read(loader)
    assert closed.wait(5)
    loader.close()


def test_an_error_in_the_supervisor_thread_reaches_the_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    with make_loader(transform=plain) as loader:
        run = iter(loader)
        next(run)

        def fail(*_: Any) -> None:
            raise RuntimeError("a fault of mploader itself")

        monkeypatch.setattr(failure_handler.FailureHandler, "watch", fail)
        loader._core.pool._thread.join()  # it looks at its workers now and then, not between any two batches
        with pytest.raises(mploader.WorkerError, match=r"(?s)please report this.*a fault of mploader itself"):
            read(run)
        with pytest.raises(mploader.WorkerError, match="please report this"):
            iter(loader)


def test_an_error_between_taking_a_batch_and_handing_it_over_reaches_the_consumer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lend(self: Arena, *place: int, lend: Any = Arena.borrow) -> Any:
        loader._core.pool.fail(mploader.WorkerError("the real reason"))
        loader._core.pool._thread.join()
        return lend(self, *place)

    with make_loader(transform=plain) as loader:
        run = iter(loader)
        monkeypatch.setattr(Arena, "borrow", lend)
        with pytest.raises(mploader.WorkerError, match="the real reason"):
            next(run)


def test_an_error_that_is_raised_again_keeps_nothing_alive() -> None:
    with make_loader(Faulty({77: ValueError("bad")}), plain) as loader:
        errors = []
        for _ in range(3):
            with pytest.raises(mploader.SampleError, match="sample 77") as caught:
                read(loader)
            errors.append(caught.value)
    assert len(set(map(id, errors))) == 3
    assert len({str(error) for error in errors}) == 1


def shared_files() -> set[str]:
    """The inodes of the loader's files that this process has mapped; TensorFlow may keep some of tests before."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "memfd:mploader" in line}


def test_a_closed_loader_keeps_no_memory() -> None:
    before = shared_files()
    loader = make_loader(transform=plain)
    batch = next(iter(loader))
    loader.close()
    assert batch["sample"].shape == (16, 2)
    assert shared_files() > before
    del batch
    gc.collect()
    assert shared_files() <= before


def test_a_closed_loader_keeps_no_batch_that_was_made_ahead() -> None:
    def element(sample: int) -> bytes:
        return b"x" * (400_000 if sample == 2 else 1)  # its batch is larger than a slot, and so a file of its own

    before = shared_files()
    loader = mploader.Loader(range(1000), element, batch_size=4, num_workers=1)
    batch = next(iter(loader))
    while loader.statistics().workers[0].batches < 2:
        threading.Event().wait(0.01)
    loader.close()
    del batch
    assert shared_files() <= before
    assert not loader.worker_pids


def test_workers_that_are_killed_before_they_are_ready_end_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash_policy, "MAX_START_KILLS", 4)
    monkeypatch.setattr(crash_policy, "MAX_START_KILLS_S", 0.1)
    with faults("before hello:*:KILL:*"), pytest.raises(mploader.WorkerError, match=r"in a row .*SIGKILL"):
        make_loader()


def test_an_interpreter_that_breaks_while_workers_run_ends_the_loop_of_starts() -> None:
    from multiprocessing import spawn

    before = spawn.get_executable()
    with make_loader() as loader:
        run = iter(loader)
        next(run)
        spawn.set_executable("/bin/false")
        try:
            kill_all(loader)
            with pytest.raises(mploader.WorkerError, match=r"in a row before a batch was made.*code 1"):
                read(run)
        finally:
            spawn.set_executable(before)


def test_programs_started_by_a_worker_have_the_environment_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    def environment(sample: Any) -> dict[str, bytes]:
        return {"path": subprocess.check_output(["sh", "-c", "echo ${PYTHONPATH-unset}"])}

    monkeypatch.delenv("PYTHONPATH", raising=False)
    with make_loader(transform=environment) as loader:
        assert next(iter(loader))["path"].tolist()[0] == b"unset\n"


def test_a_file_in_the_current_folder_does_not_shadow_a_module(tmp_path: Path, run_script: Script) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "numpy.py").write_text("raise SystemExit('the wrong numpy')\n")
    done = run_script(
        f"import os, mploader\nos.chdir({str(folder)!r})\n"
        "print(len(list(mploader.Loader(range(8), batch_size=4, num_workers=1))))"
    )
    assert done.stdout.split() == ["2"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_trainer_without_standard_streams(closed: str, tmp_path: Path) -> None:
    result = tmp_path / "result"
    script = tmp_path / "script.py"
    script.write_text(
        "import mploader\n"
        "from mploader.testing import Census\n"
        "before = Census.take()\n"
        "with mploader.Loader(range(64), batch_size=4, num_workers=2) as loader:\n"
        "    read = [int(n) for batch in loader for n in batch]\n"
        "left = before.settle()\n"
        f"open({str(result)!r}, 'w').write(f'{{read == list(range(64))}} {{left}}')\n"
    )
    subprocess.run(
        ["sh", "-c", f"exec {sys.executable} {script} {closed}"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=50,
        check=False,
    )
    assert result.read_text() == "True []"


NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *(f"--{which}=-all,+dac_override" for which in ("inh-caps", "ambient-caps", "bounding-set")),
)
"""Runs a program as nobody, who is bound by RLIMIT_NPROC as root is not; it may read this folder all the same."""


@pytest.mark.parametrize(("processes", "result"), [(1, "ResourceError"), (2, "ResourceError"), (4, "2016")])
def test_few_processes(processes: int, result: str) -> None:
    if os.geteuid() or subprocess.run([*NOBODY, sys.executable, "-c", ""], check=False).returncode:
        pytest.skip("becoming another user needs root, and setpriv")
    program = f"""
import resource
import mploader
from mploader.testing import Census
mploader.Loader
before = Census.take()
resource.setrlimit(resource.RLIMIT_NPROC, ({processes}, {processes}))
def read():
    try:
        with mploader.Loader(range(64), batch_size=4, num_workers=4) as loader:
            print(sum(int(number) for batch in loader for number in batch))
    except mploader.ResourceError as error:
        print(type(error).__name__, error)
read()
print(before.settle())
"""
    done = subprocess.run(
        [*NOBODY, sys.executable, "-c", program],
        capture_output=True, text=True, timeout=50, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.stdout.startswith(result), done.stdout + done.stderr
    assert done.stdout.endswith("\n[]\n"), done.stdout
    assert "ulimit -u" in done.stdout + done.stderr


def test_blocked_and_ignored_signals_of_the_trainer_are_not_the_worker_s() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    try:
        with make_loader(transform=_masks) as loader:
            assert next(iter(loader))["blocked"].tolist()[0] == 0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _masks(sample: Any) -> dict[str, int]:
    return {"blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ()))}


def test_a_loader_inside_a_worker_of_another(recovery: Callable[[float], None]) -> None:
    def nested(sample: int) -> int:
        with mploader.Loader(range(sample + 1), batch_size=2, num_workers=1) as inner:
            return sum(int(number) for batch in inner for number in batch)

    with mploader.Loader(range(4), nested, batch_size=2, num_workers=1) as loader:
        assert [batch.tolist() for batch in loader] == [[0, 1], [3, 6]]
