"""What all tests share."""

from __future__ import annotations

import gc
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# A run in the background of a shell has Ctrl-C ignored, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PHOTOS = REPOSITORY.parent / "shared" / "photos"


def pytest_collection_finish() -> None:
    """Takes all that is imported by now out of the garbage collector's sight.

    With TensorFlow a collection takes a quarter of a second, and there is one after every test.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def photos() -> pathlib.Path:
    """The folder with real photographs beside the repository."""
    if not PHOTOS.is_dir():
        pytest.skip("the photographs (../shared/photos) are not there")
    return PHOTOS


@pytest.fixture
def run_script(tmp_path: pathlib.Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program text as a user would run a script, in a fresh interpreter."""

    def run(text: str, *arguments: str, check: bool = True, timeout: float = 100) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "script.py"
        script.write_text(text)
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            [sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=timeout, env=environment,
            cwd=tmp_path, check=False,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(autouse=True)
def no_loader_outlives_its_test() -> Iterator[None]:
    """Closes what a test left open, so that its workers do not run beside the next test."""
    yield
    modules = [sys.modules[name] for name in ("mploader.loader", "mploader.generators") if name in sys.modules]
    for module in modules:
        module.close_all()
    if modules:
        gc.collect()
