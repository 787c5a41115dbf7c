"""What all tests share."""

from __future__ import annotations

import contextlib
import gc
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import cloudpickle
import pytest

if TYPE_CHECKING:
    from mploader import Loader

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# A run in the background of a shell has Ctrl-C ignored, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PHOTOS = REPOSITORY.parent / "shared" / "photos"
"""Real photographs, beside the repository. A test that reads them is marked ``photos``."""
REPLACED_S = 30.0
"""The longest wait for workers to be replaced."""
TRIES = 3


def pytest_collection_finish() -> None:
    """Makes tests quicker.

    What a test module defines travels to workers by value, or each would import the module, and pytest with it. All
    that is imported by now is taken out of the garbage collector's sight: with TensorFlow a collection takes a quarter
    of a second, and there is one after every test.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("tests.") and ".test_" in name:
            cloudpickle.register_pickle_by_value(module)
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without the photographs their tests are skipped; in CI, where they have to run, they fail."""
    if item.get_closest_marker("photos") and not PHOTOS.is_dir():
        miss = pytest.fail if os.environ.get("CI") else pytest.skip
        miss(f"the photographs are not in {PHOTOS}")


def kill_one(loader: Loader, index: int, number: int = signal.SIGKILL) -> int:
    """Sends a signal to the worker with this index; waits first until every index has one.

    Returns:
        Its process id: the same as before if that one was killed a moment ago, and the loader does not know it yet.
    """
    count = len(loader.statistics().workers)
    deadline_s = time.monotonic() + REPLACED_S
    while len(pids := loader.worker_pids) < count:
        assert time.monotonic() < deadline_s, f"{len(pids)} of {count} workers are there after {REPLACED_S:g} s"
        time.sleep(0.005)
    _kill(pids[index], number)
    return pids[index]


def kill_all(loader: Loader) -> None:
    """Kills every worker that is there now."""
    for pid in loader.worker_pids:
        _kill(pid, signal.SIGKILL)


def _kill(pid: int, number: int) -> None:
    assert pid <= 2**22, "a worker in a thread cannot be killed: mark the test `processes`"
    with contextlib.suppress(ProcessLookupError):  # it has ended, and was collected, since its number was read
        os.kill(pid, number)


def is_in_time(attempt: Callable[[], float], deadline_s: float) -> bool:
    """Whether something keeps its deadline. Others may use the machine, so the best of some attempts counts.

    Args:
        attempt: does it and returns how many seconds it took.
        deadline_s: part of what the loader promises.
    """
    return any(attempt() < deadline_s for _ in range(TRIES))


NOTEBOOK = """
import code, sys, types
sys.modules["__main__"] = main = types.ModuleType("__main__")  # as IPython does: a module that no file belongs to
cell = compile(sys.stdin.read(), "<ipython-input-1>", "exec")
code.InteractiveInterpreter(main.__dict__).runcode(cell)
"""


@pytest.fixture
def run_script(tmp_path: pathlib.Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program text as a user would run it, in a fresh interpreter: as a "file", or in another ``way``.

    One that hangs is aborted, and the stacks of its threads are shown.
    """

    def run(
        text: str, *arguments: str, check: bool = True, timeout: float = 50, way: str = "file"
    ) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "script.py"
        script.write_text(text)
        program = {"file": [str(script)], "standard input": ["-"], "cell of a notebook": ["-c", NOTEBOOK]}[way]
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", *program, *arguments], cwd=tmp_path, text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            stdout, stderr = process.communicate(text, timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            stdout, stderr = process.communicate()
            pytest.fail(f"it did not end within {timeout:g} s\n{stdout}\n{stderr}")
        if check:
            assert process.returncode == 0, f"exit code {process.returncode}\n{stdout}\n{stderr}"
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run


@pytest.fixture
def workers_in_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """The loaders of a test start no process. In a module that uses this, a test marked ``processes`` is left out."""
    from mploader import testing

    with contextlib.nullcontext() if request.node.get_closest_marker("processes") else testing.workers_in_threads():
        yield


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """After the test the process holds what it held before."""
    from mploader import testing

    before = testing.Census.take()
    yield
    assert before.settle() == []


@pytest.fixture(autouse=True)
def no_loader_outlives_its_test() -> Iterator[None]:
    """Closes what a test left open, so that its workers do not run beside the next test."""
    yield
    open_pools = sys.modules.get("mploader.loader.open_pools")
    if open_pools is not None and open_pools.count():
        open_pools.close_all()
        gc.collect()
