"""What this process may use of the machine: processors and memory, as affinity and control groups allow."""

from __future__ import annotations

import numbers
import os
import re
from pathlib import Path

from mploader.errors import ArgumentError

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def usable_cpus() -> int:
    """How many processors this process may use, at least 1: what affinity and the control group's quota allow."""
    cpus = len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    return max(1, min(cpus, int(quota))) if quota is not None else max(1, cpus)


def _cpu_quota() -> float | None:
    for folder in _cgroup_folders("cpu"):
        limit = _read(folder / "cpu.max").split()  # version 2: "max 100000" or "200000 100000"
        if len(limit) == 2 and limit[0] != "max":
            return int(limit[0]) / int(limit[1])
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota and period and int(quota) > 0:
            return int(quota) / int(period)
    return None


def available_memory() -> int:
    """How many bytes this process may still take: of the machine, and of every control group that it is in."""
    import psutil  # 15 ms and 4 MiB in every worker, which needs the rest of this module

    available: int = psutil.virtual_memory().available
    for folder in _cgroup_folders("memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):  # fmt: skip
            limit, used = _read(folder / limit_name), _read(folder / used_name)
            if limit.isdigit() and used.isdigit():
                available = min(available, max(0, int(limit) - int(used) + _reclaimable(folder)))
    return available


def _reclaimable(folder: Path) -> int:
    """Bytes of the group's page cache: they count as used, but the kernel gives them up when memory is wanted."""
    match = re.search(r"^(?:total_)?inactive_file (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
    return int(match[1]) if match else 0


def _cgroup_folders(controller: str) -> list[Path]:
    """The folders of the control groups that this process is in, innermost first, for one controller."""
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
    """Reads a number of bytes: an int (NumPy's included), or text such as "512MiB", "2 GB", "1.5g".

    All units are powers of 1024.

    Raises:
        ArgumentError: the value cannot be read or is not positive.
    """
    wanted = f'{name}={value!r}: wants a positive number of bytes, such as 536870912 or "512MiB"'
    if isinstance(value, bool) or not isinstance(value, (numbers.Integral, str)):
        raise ArgumentError(wanted)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", str(value).lower())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size <= 0:
        raise ArgumentError(wanted)
    return size
