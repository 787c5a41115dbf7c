"""The census: what every test under fault must leave behind, which is nothing.

Each test is followed by a count of processes (found by a token in their environment, so orphans count), memfds,
descriptors, threads, zombies, files in /dev/shm and temporary files. With the environment variable
``MPLOADER_CENSUS_FILE`` a line for each test is added to a file: its name, the result, the seconds that it took, and
for tests of recovery the seconds until the stream went on.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import pathlib
import sys
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from mploader import generators, loader
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
def census(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Counts before and after, and dumps all stacks of a test that hangs."""
    token = f"MPLOADER_CENSUS={uuid.uuid4().hex}"
    monkeypatch.setenv(*token.split("=", 1))
    gc.collect()
    before = Census.take(token)
    started = time.monotonic()
    faulthandler.dump_traceback_later(HANG_S - 5, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()
    took_s = time.monotonic() - started
    loader.close_all()
    generators.close_all()
    gc.collect()
    left = before.settle(SETTLE_S)
    _record(request, left, took_s)
    assert not left, f"left behind: {left}"


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
