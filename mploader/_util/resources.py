"""The processors and the memory that affinity and control groups allow this process."""

from __future__ import annotations

import numbers
import os
import re
from pathlib import Path

from mploader.errors import ArgumentError

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def usable_cpus() -> int:
    """Returns how many processors affinity and the control groups' quotas allow this process; at least 1."""
    cpus = len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    return max(1, min(cpus, int(quota))) if quota is not None else max(1, cpus)


def _cpu_quota() -> float | None:
    for folder in _cgroup_folders("cpu"):
        maximum = _read(folder / "cpu.max").split()  # version 2: "max 100000" or "200000 100000"
        if len(maximum) == 2 and maximum[0] != "max":
            return int(maximum[0]) / int(maximum[1])
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota and period and int(quota) > 0:
            return int(quota) / int(period)
    return None


def available_memory() -> int:
    """Returns how many bytes the machine and the control groups of this process still allow it to use."""
    import psutil  # here, since workers, which need only the rest of this module, save 15 ms and 4 MiB

    available: int = psutil.virtual_memory().available
    for folder in _cgroup_folders("memory"):
        for maximum_name, used_name in (
            ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):  # fmt: skip
            maximum, used = _read(folder / maximum_name), _read(folder / used_name)
            if maximum.isdigit() and used.isdigit():
                available = min(available, max(0, int(maximum) - int(used) + _reclaimable(folder)))
    return available


def _reclaimable(folder: Path) -> int:
    """Bytes of a group's page cache: they count as used, but the kernel frees them when memory is needed."""
    match = re.search(r"^(?:total_)?inactive_file (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
    return int(match[1]) if match else 0


def _cgroup_folders(controller: str) -> list[Path]:
    """The folders of the control groups of this process for one controller, innermost first."""
    folders = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup") / (controller if controllers else "")
        inner = root / path.lstrip("/")
        folders += [folder for folder in (inner, *inner.parents) if folder == root or root in folder.parents]
    return folders


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""  # another version of control groups, or none


def parse_bytes(value: int | str, name: str) -> int:
    """Returns a number of bytes from an int (NumPy's included) or text such as "512MiB", "2 GB", "1.5g".

    All units are powers of 1024.

    Raises:
        ArgumentError: ``value`` is not such a number, or not positive.
    """
    error = ArgumentError(f'{name}={value!r}: expected a positive number of bytes, such as 536870912 or "512MiB"')
    if isinstance(value, bool) or not isinstance(value, (numbers.Integral, str)):
        raise error
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", str(value).lower())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size <= 0:
        raise error
    return size
