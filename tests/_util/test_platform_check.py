"""Elsewhere than on Linux: one clear error, whichever module is imported first."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable

import pytest

from mploader._util.platform_check import require_linux

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
    "from mploader.engine.supervisor.pool import Pool",
    "from mploader.engine.supervisor.worker_process import WorkerProcess",
    "from mploader.cli.synthetic_data import synthesize",
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
    command = "from mploader.cli.main import main; sys.exit(main(['index', 'x']))"
    done = run_script(f"{PRETEND}\n{command}", name, check=False)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert line.startswith("mploader index: " + NEEDED.format(SYSTEMS[name]))


@pytest.mark.parametrize("release", ["5.4.0", "5.10.0-30-cloud-amd64", "6.1", "6.8.0-rc1+", "10.0.1"])
def test_linux_from_5_4_on_is_fine(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    require_linux()


@pytest.mark.parametrize("release", ["5.3.18-lp152", "4.19.0", "3.10.0-1160.el7.x86_64"])
def test_an_older_kernel_is_named(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    with pytest.raises(ImportError, match=f"Linux 5.4 or later.* this is Linux {release}"):
        require_linux()


@pytest.mark.parametrize(("system", "name"), [("darwin", "Darwin"), ("win32", "Windows")])
def test_another_system_is_named_with_a_way_out(system: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "system", lambda: name)
    with pytest.raises(ImportError, match=f"this is {name} .*Linux container"):
        require_linux()


@pytest.mark.parametrize("call", ["memfd_create", "pidfd_open", "eventfd", "posix_fallocate"])
def test_a_python_without_one_of_the_calls_is_refused(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, call)
    with pytest.raises(ImportError, match="memfd, pidfd, eventfd"):
        require_linux()
