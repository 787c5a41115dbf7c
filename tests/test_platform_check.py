"""Elsewhere than on Linux: one clear error, whichever module is imported first."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

PRETEND = """
import os, platform, signal, sys
import multiprocessing.spawn, psutil  # they work there, by modules that are not here

if sys.argv[1] == "win32":
    system, release = "Windows", "10"
    sys.modules.update(fcntl=None, resource=None)
    del os.fork, os.register_at_fork, signal.SIGHUP, signal.SIGUSR1
else:
    system, release = "Darwin", "23.1.0"
for name in ("memfd_create", "MFD_CLOEXEC", "pidfd_open", "eventfd", "posix_fallocate", "sched_getaffinity"):
    delattr(os, name)
platform.system, platform.release = lambda: system, lambda: release
sys.platform = sys.argv[1]
"""
STATEMENTS = (
    "import mploader; mploader.Loader",
    "import mploader; mploader.sources",
    "from mploader.pool import Pool",
    "from mploader.process import WorkerProcess",
    "from mploader.synth import synthesize",
)
NEEDED = "mploader needs Linux 5.4 or later (memfd, pidfd, eventfd), and this is {}. On macOS or Windows, run it in"
SYSTEMS = {"win32": "Windows 10", "darwin": "Darwin 23.1.0"}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("statement", STATEMENTS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_what_needs_linux_says_so_at_import(name: str, statement: str, run_script: Run) -> None:
    done = run_script(f"{PRETEND}\n{statement}", name, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: " + NEEDED.format(SYSTEMS[name])), done.stderr


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_needs_no_linux_can_be_imported_everywhere(name: str, run_script: Run) -> None:
    done = run_script(f"{PRETEND}\nimport mploader; print(mploader.LoaderError, mploader.ArraySpec)", name)
    assert done.stderr == ""


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_command_says_it_in_one_line(name: str, run_script: Run) -> None:
    command = "from mploader.cli import main; sys.exit(main(['index', 'x']))"
    done = run_script(f"{PRETEND}\n{command}", name, check=False)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert line.startswith("mploader index: " + NEEDED.format(SYSTEMS[name]))
