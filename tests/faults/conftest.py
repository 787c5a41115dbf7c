"""The census: what every test under fault must leave behind, which is nothing.

Each test is followed by a count of processes (found by a token in their environment, so orphans count), memfds,
descriptors, threads, zombies, files in /dev/shm and temporary files (in a ``TMPDIR`` of the test's own, and of index
files beside its data). It comes before the fixtures close what a test left open, so a test must have closed or dropped
its loaders. Of a script only the processes are seen from here: one that is to leave nothing else prints its own
census. With the environment variable ``MPLOADER_CENSUS_FILE`` a line for each test is added to a file: its name, the
result, the seconds that it took, and for tests of recovery the seconds until the stream went on.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import pathlib
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from mploader.engine.worker.main import STACKS_SIGNAL
from mploader.loader import open_pools
from mploader.testing import Census

HANG_S = 60.0
SETTLE_S = 2.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test here that hangs fails alone: by a signal, and not by the end of all tests."""
    for item in items:
        if pathlib.Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(HANG_S, method="signal"))


@pytest.fixture
def recovery(request: pytest.FixtureRequest) -> Callable[[float], None]:
    """Records how many seconds a stream needed to go on."""
    seconds: list[float] = []
    request.node.user_properties.append(("recovery_s", seconds))
    return seconds.append


@pytest.fixture(autouse=True)
def census(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Counts before and after, and dumps the stacks of a test that hangs and of its workers."""
    token = f"MPLOADER_CENSUS={uuid.uuid4().hex}"
    monkeypatch.setenv(*token.split("=", 1))
    temporary = tmp_path_factory.mktemp("TMPDIR")
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)  # it is asked for anew
    gc.collect()
    before = Census.take(token)
    started = time.monotonic()
    faulthandler.dump_traceback_later(HANG_S - 5, file=sys.__stderr__)
    workers_too = threading.Timer(HANG_S - 5, dump_workers, [token])
    workers_too.start()
    yield
    faulthandler.cancel_dump_traceback_later()
    workers_too.cancel()
    workers_too.join()
    took_s = time.monotonic() - started
    left = before.settle(SETTLE_S)
    left += temporary_files(temporary, getattr(request.node, "funcargs", {}).get("tmp_path"))
    open_pools.close_all()
    _record(request, left, took_s)
    assert not left, f"left behind: {left}"


def dump_workers(token: str) -> None:
    """Makes the workers that have a token in their environment print their stacks."""
    for pid, command in Census.take(token).processes:
        if "mploader.engine.worker.main" in command:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, STACKS_SIGNAL)


def temporary_files(temporary: pathlib.Path, data: pathlib.Path | None) -> list[str]:
    """What is left in a folder for temporary files, and of index files that were being written beside the data."""
    left = [*temporary.iterdir(), *(data.rglob(".*.tmp") if data else ())]
    return [f"the temporary file {path} is left" for path in left]


def _record(request: pytest.FixtureRequest, left: list[str], took_s: float) -> None:
    path = os.environ.get("MPLOADER_CENSUS_FILE")
    if not path:
        return
    passed = getattr(request.node, "call_passed", False) and not left
    recovered = [value for key, values in request.node.user_properties if key == "recovery_s" for value in values]
    row = [
        request.node.nodeid.split("/")[-1],
        "passed" if passed else "FAILED",
        f"{took_s:.2f}",
        " ".join(f"{value:.2f}" for value in recovered),
    ]
    with pathlib.Path(path).open("a") as file:
        file.write("\t".join(row) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Tells the census whether the test itself has passed."""
    report = yield
    if call.when == "call":
        item.call_passed = report.passed
    return report
