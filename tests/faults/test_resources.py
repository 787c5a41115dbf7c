"""Memory, descriptors, processes and disk may be short: it works, or the constructor says what is missing."""

from __future__ import annotations

import gc
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from mploader import Loader
from tests.conftest import REPOSITORY

SCRIPT = """
import mploader, numpy as np
def element(sample):
    return np.full((64, 1024), sample, np.uint8)
try:
    with mploader.Loader(range(SAMPLES), element, batch_size=WIDTH, num_workers=WORKERS) as loader:
        print(sum(int(row[0, 0]) for batch in loader for row in batch), loader.statistics().slots)
except mploader.LoaderError as error:
    print(type(error).__name__, error)
"""


def script(batch_size: int = 20, workers: int = 2, samples: int = 200) -> str:
    sizes = {"SAMPLES": samples, "WIDTH": batch_size, "WORKERS": workers}
    return "".join(f"{name} = {value}\n" for name, value in sizes.items()) + SCRIPT


EXPECTED = str(sum(range(200)))


@pytest.mark.parametrize("size", ["64m", "4k"])
def test_a_small_dev_shm_does_not_matter(size: str, tmp_path: pathlib.Path) -> None:
    if os.geteuid() or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("mounting needs root")
    program = tmp_path / "script.py"
    program.write_text(script())
    command = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {sys.executable} {program}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.split()[0] == EXPECTED, done.stderr


def limited(limits: str, text: str) -> str:
    return f"import resource\n{limits}\n{text}"


@pytest.mark.parametrize(("workers", "works"), [(2, True), (8, True), (40, False)])
def test_few_descriptors(workers: int, works: bool, run_script: Callable[..., Any]) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    done = run_script(limited(limit, script(workers=workers)), check=False)
    if works:
        assert done.stdout.split()[0] == EXPECTED, done.stderr
    else:
        assert done.stdout.startswith("ResourceError a loader with 40 workers needs"), done.stdout + done.stderr
        assert "num_workers=" in done.stdout


def test_no_descriptors_at_all_is_an_error_of_the_constructor(run_script: Callable[..., Any]) -> None:
    limit = "import mploader, cloudpickle, psutil; mploader.Loader\nresource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))"
    done = run_script(limited(limit, script()), check=False)
    assert done.stdout.startswith("ResourceError"), done.stdout + done.stderr


def cgroup(controller: str, name: str) -> pathlib.Path | None:
    """A fresh control group of version 1 or 2, where this machine lets us make one."""
    for base in (pathlib.Path("/sys/fs/cgroup") / controller, pathlib.Path("/sys/fs/cgroup")):
        folder = base / f"mploader-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / name).exists():
            return folder
        folder.rmdir()
    return None


def in_cgroup(folder: pathlib.Path, text: str, tmp_path: pathlib.Path) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "script.py"
    program.write_text(f"import os\nopen({str(folder / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n{text}")
    try:
        return subprocess.run(
            [sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
    finally:
        folder.rmdir()


def test_a_control_group_without_room_for_the_slots(tmp_path: pathlib.Path) -> None:
    name = "memory.limit_in_bytes" if pathlib.Path("/sys/fs/cgroup/memory").is_dir() else "memory.max"
    folder = cgroup("memory", name)
    if folder is None:
        pytest.skip("no control group can be made here")
    (folder / name).write_text(str(200 * 2**20))
    done = in_cgroup(folder, script(batch_size=3000, samples=6000), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ResourceError"), done.stdout
    assert "slots of 187" in done.stdout


def test_a_control_group_with_few_processes(tmp_path: pathlib.Path) -> None:
    folder = cgroup("pids", "pids.max")
    if folder is None:
        pytest.skip("no control group can be made here")
    (folder / "pids.max").write_text("8")
    done = in_cgroup(folder, script(workers=20), tmp_path)
    assert done.stdout.split()[0] == EXPECTED, done.stdout + done.stderr
    assert "cannot start worker" in done.stderr


def test_a_full_disk_while_the_index_is_written(tmp_path: pathlib.Path) -> None:
    if os.geteuid() or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("mounting needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    program = tmp_path / "script.py"
    program.write_text(
        f"""
import os, pathlib
import mploader
from mploader.sources.tfrecord_write import TFRecordWriter
disk = pathlib.Path({str(disk)!r})
with TFRecordWriter(disk / "data.tfrecord") as writer:
    for number in range(500):
        writer.write(b"%04d" % number)
filler = open(disk / "filler", "wb", buffering=0)
try:
    while filler.write(b"x" * 512):
        pass
except OSError:
    pass
source = mploader.sources.TFRecordShards(str(disk / "*.tfrecord"), raw=True)
with mploader.Loader(source, lambda record: int(record), batch_size=50, num_workers=2) as loader:
    print(sum(int(number) for batch in loader for number in batch))
print(sorted(path.name for path in disk.iterdir() if path.suffix not in (".tfrecord", ".mpl-index")))
"""
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(disk)}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size=64k tmpfs {disk} && exec {sys.executable} {program}"],
        capture_output=True, text=True, env=environment, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[0] == str(sum(range(500))), done.stderr
    assert "filler" in done.stdout.splitlines()[1]


@pytest.mark.slow
@pytest.mark.timeout(0)  # as many as MPLOADER_BATCHES says; 100,000 take two minutes on two busy processors
def test_many_batches_cost_no_memory_and_no_descriptors() -> None:
    process, batches = psutil.Process(), int(os.environ.get("MPLOADER_BATCHES", "20000"))
    with Loader(range(4 * batches), abs, batch_size=4, num_workers=2) as loader:
        blocks, sizes, descriptors = [], [], []
        for place, _ in enumerate(loader):
            if place % 1000 == 999:
                gc.collect()
                blocks.append(sys.getallocatedblocks())
                sizes.append(process.memory_info().rss)
                descriptors.append(process.num_fds())
    assert max(descriptors) == min(descriptors)
    # Python's own memory is counted exactly: an object left by every tenth batch shows.
    assert blocks[-1] - blocks[2] < 700, blocks
    # The process's goes up and down by a megabyte or two, so the least of the end is held against the most of the
    # start: a kilobyte left by every batch shows.
    assert min(sizes[-3:]) - max(sizes[:3]) < 4 * 2**20, sizes
